import numpy as np
import pytest

from guerdon.envs.libero_tasks.skills.geometry import DOWN, box_points
from guerdon.envs.libero_tasks.skills.placing import Carried, find_placement


def box(half: tuple[float, float, float], at: tuple[float, float, float]) -> np.ndarray:
    return box_points(np.array(half), 0.004, np.zeros(3), 1.0) + at


@pytest.fixture
def carried() -> Carried:
    """Cube of 4 cm at a height of 30 cm, held at its top."""
    return Carried(box((0.02, 0.02, 0.02), (0, 0, 0.3)), np.array([0, 0, 0.3]), np.array([0, 0, 0.31]), DOWN)


TABLE = box((0.4, 0.4, 0.01), (0.3, 0.0, -0.01))


def test_the_object_comes_to_rest_on_its_support(carried: Carried):
    placement = find_placement(carried, np.array([[0.3, 0.0]]), TABLE, lambda origin: True)
    assert placement is not None and placement.drop == 0.0
    assert np.allclose(placement.position, [0.3, 0.0, 0.03], atol=0.007)  # 1 cm above the resting cube's middle


def test_lower_spots_win_over_the_rim(carried: Carried):
    rim = box((0.06, 0.005, 0.03), (0.3, 0.0, 0.03))
    placement = find_placement(
        carried, np.array([[0.3, 0.0], [0.3, 0.1]]), np.concatenate([TABLE, rim]), lambda origin: True
    )
    assert placement is not None and placement.position[1] == pytest.approx(0.1, abs=0.007)


def test_the_hand_stays_clear_of_walls(carried: Carried):
    walls = np.concatenate([box((0.1, 0.005, 0.06), (0.3, side, 0.06)) for side in (-0.06, 0.06)])
    placement = find_placement(carried, np.array([[0.3, 0.0]]), np.concatenate([TABLE, walls]), lambda origin: True)
    assert placement is not None and placement.drop > 0.03
    turned = find_placement(
        carried, np.array([[0.3, 0.0]]), np.concatenate([TABLE, walls]), lambda origin: True, (0.0, np.pi / 2)
    )
    assert turned is not None and turned.drop == 0.0
    assert abs(turned.rotation[0, 0]) == pytest.approx(1.0)  # it closes along x, beside the walls


def test_no_spot_fulfils_the_goal(carried: Carried):
    assert find_placement(carried, np.array([[0.3, 0.0]]), TABLE, lambda origin: False) is None
    assert find_placement(carried, np.array([[5.0, 0.0]]), TABLE, lambda origin: True) is None
