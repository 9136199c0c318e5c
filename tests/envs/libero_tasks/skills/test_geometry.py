import numpy as np
import pytest

from guerdon.envs.libero_tasks.skills.geometry import (
    DOWN,
    Terrain,
    box_points,
    count_inside,
    height_map,
    raised,
    rotation_vector,
    rotation_z,
    segment_distance,
)


def test_down_is_a_rotation_that_points_down():
    assert np.allclose(DOWN @ DOWN.T, np.eye(3))
    assert np.linalg.det(DOWN) == pytest.approx(1.0)
    assert np.allclose(DOWN[:, 2], [0, 0, -1])


@pytest.mark.parametrize("angle", [-3.0, -0.4, 0.0, 1e-6, 0.4, 3.0, np.pi])
def test_rotation_vector_of_a_turn_about_the_vertical(angle: float):
    vector = rotation_vector(rotation_z(angle))
    assert np.allclose(rotation_z(vector[2]), rotation_z(angle), atol=1e-6)
    assert np.allclose(vector[:2], 0.0, atol=1e-6)


def test_rotation_vector_of_half_a_turn_about_a_slanted_axis():
    axis = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
    vector = rotation_vector(2 * np.outer(axis, axis) - np.eye(3))
    assert np.linalg.norm(vector) == pytest.approx(np.pi)
    assert abs(vector @ axis) == pytest.approx(np.pi)


def test_box_points_lie_on_the_surface_and_are_dense():
    half = np.array([0.02, 0.03, 0.01])
    points = box_points(half, 0.005, np.zeros(3), 1.0)
    assert np.all(np.abs(points) <= half + 1e-12)
    assert np.all(np.isclose(np.abs(points), half).any(axis=1))
    corners = np.array(np.meshgrid(*[(-h, h) for h in half])).reshape(3, -1).T
    assert all(np.linalg.norm(points - corner, axis=1).min() < 1e-9 for corner in corners)
    middle = np.array([0.0, 0.0, half[2]])
    assert np.linalg.norm(points - middle, axis=1).min() <= 0.005


def test_large_boxes_are_cut_to_their_surroundings():
    points = box_points(np.array([3.0, 3.0, 0.01]), 0.01, np.array([1.0, 0.0, 0.0]), 0.05)
    assert np.all(np.abs(points[:, 0] - 1.0) <= 0.05 + 1e-12)
    assert len(box_points(np.full(3, 0.1), 0.01, np.full(3, 5.0), 0.05)) == 0


def test_height_map_keeps_one_height_a_cell():
    points = np.array([[0.001, 0.001, 1.0], [0.002, 0.002, 3.0], [0.011, 0.001, 2.0]])
    cells, low = height_map(points, 0.01, lowest=True)
    assert cells.tolist() == [[0, 0], [1, 0]] and low.tolist() == [1.0, 2.0]
    assert height_map(points, 0.01, lowest=False)[1].tolist() == [3.0, 2.0]


def test_drop_is_the_smallest_gap_below_the_object():
    grid = np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) * 0.01 + 0.005
    heights = np.where(grid[:, 0] > 0.05, 0.2, 0.0)
    terrain = Terrain(np.column_stack([grid, heights]), cell=0.01)
    cells, low = height_map(np.array([[0.005, 0.005, 0.5], [0.015, 0.005, 0.45]]), 0.01, lowest=True)
    assert terrain.drop(cells, low, np.zeros(2)) == pytest.approx(0.45)
    assert terrain.drop(cells, low, np.array([0.05, 0.0])) == pytest.approx(0.25)  # the second cell is over the step
    assert terrain.drop(cells, low, np.array([1.0, 0.0])) == np.inf


def test_count_inside_and_raised():
    points = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [2.0, 0.0, 0.0]])
    assert count_inside(points, np.full(3, -1.0), np.full(3, 1.0)) == 2
    assert raised(points[1], 0.25).tolist() == [0.5, 0.5, 0.75]


def test_segment_distance_to_the_middle_and_the_ends():
    points = np.array([[0.5, 1.0], [-3.0, 4.0], [1.0, 0.0]])
    assert segment_distance(points, np.zeros(2), np.array([1.0, 0.0])).tolist() == [1.0, 5.0, 0.0]
    assert segment_distance(points, np.zeros(2), np.zeros(2))[1] == pytest.approx(5.0)
