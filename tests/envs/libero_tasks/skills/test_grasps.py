import numpy as np
import pytest

from guerdon.envs.libero_tasks.skills.geometry import box_points
from guerdon.envs.libero_tasks.skills.grasps import find_grasp, hand_hits

YAWS = tuple(np.deg2rad([0, 30, -30, 60, -60, 90]))


def box(half: tuple[float, float, float], at: tuple[float, float, float]) -> np.ndarray:
    return box_points(np.array(half), 0.005, np.zeros(3), 1.0) + at


def test_a_long_box_is_grasped_across_its_narrow_side():
    along_x = box((0.05, 0.02, 0.03), (0.3, 0.1, 0.03))
    grasp = find_grasp(along_x, np.zeros((0, 3)), np.array([0.3, 0.1, 0.03]), YAWS)
    assert grasp is not None and grasp.yaw == 0.0  # at 0 the gripper closes along y
    assert np.allclose(grasp.position[:2], [0.3, 0.1], atol=0.006)
    along_y = box((0.02, 0.05, 0.03), (0.3, 0.1, 0.03))
    turned = find_grasp(along_y, np.zeros((0, 3)), np.array([0.3, 0.1, 0.03]), YAWS)
    assert turned is not None and turned.yaw == pytest.approx(np.pi / 2)


def test_what_is_too_wide_cannot_be_grasped():
    wide = find_grasp(box((0.06, 0.06, 0.02), (0, 0, 0.02)), np.zeros((0, 3)), np.zeros(3), YAWS[:1])
    assert wide is None or wide.cost > 10  # the fingers would be inside the box


def test_a_wall_beside_the_object_turns_the_gripper():
    cube = box((0.02, 0.02, 0.03), (0.0, 0.0, 0.03))
    wall = box((0.1, 0.005, 0.08), (0.0, 0.05, 0.08))
    free = find_grasp(cube, np.zeros((0, 3)), np.zeros(3), YAWS)
    beside = find_grasp(cube, wall, np.zeros(3), YAWS)
    assert free is not None and free.yaw == 0.0
    assert beside is not None and abs(beside.yaw) == pytest.approx(np.pi / 2)
    assert hand_hits(wall, free.position, free.rotation) > 0
    assert hand_hits(wall, beside.position, beside.rotation) == 0


def test_failed_grasps_are_avoided():
    plank = box((0.12, 0.02, 0.02), (0.0, 0.0, 0.02))
    first = find_grasp(plank, np.zeros((0, 3)), np.zeros(3), YAWS)
    assert first is not None
    second = find_grasp(plank, np.zeros((0, 3)), np.zeros(3), YAWS, failed=[first])
    assert second is not None
    assert np.linalg.norm(second.position - first.position) > 0.015


def test_fingertips_stay_above_the_support():
    flat = box((0.03, 0.02, 0.009), (0.0, 0.0, 0.009))
    grasp = find_grasp(flat, np.zeros((0, 3)), np.zeros(3), YAWS)
    assert grasp is not None and grasp.position[2] - 0.0095 > 0.0


def test_a_bowl_is_pinched_across_its_rim():
    angle, height = np.meshgrid(np.linspace(0, 2 * np.pi, 120), np.linspace(0.0, 0.05, 11))
    shells = [np.stack([r * np.cos(angle), r * np.sin(angle), height], -1).reshape(-1, 3) for r in (0.05, 0.054)]
    bowl, wall = np.concatenate(shells), box((0.1, 0.005, 0.1), (0.0, 0.08, 0.1))
    for around in (np.zeros((0, 3)), wall):
        grasp = find_grasp(bowl, around, np.array([0.0, 0.0, 0.02]), YAWS)
        assert grasp is not None
        radial = grasp.position[:2] / np.linalg.norm(grasp.position[:2])
        assert abs(grasp.rotation[:2, 0] @ radial) > 0.9
        assert hand_hits(around, grasp.position, grasp.rotation) == 0
