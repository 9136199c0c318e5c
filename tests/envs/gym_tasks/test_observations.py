"""Layout of observations: parts by name, what is neither numbers nor a picture, and what leaves its space."""

import numpy as np
import pytest
from gymnasium import spaces

from guerdon.envs.gym_tasks.observations import Observations

BOX = spaces.Box(-1, 1, (2,))


def test_the_order_is_that_of_flatten():
    space = spaces.Dict(
        {"b": BOX, "a": spaces.Dict({"z": spaces.Box(-1, 1, (1,)), "c": BOX}), "d": spaces.Box(0, 9, ())}
    )
    layout = Observations("here", space)
    observation = {"a": {"z": np.array([3.0]), "c": np.array([1.0, 2.0])}, "b": np.array([4.0, 5.0]), "d": 6}
    assert list(layout.state_parts) == ["a.c", "a.z", "b", "d"]
    assert (
        layout.state(observation).tolist()
        == [1, 2, 3, 4, 5, 6]
        == np.asarray(spaces.flatten(space, observation)).tolist()
    )
    chosen = Observations("here", space, ("d", "a.c"))
    assert chosen.state(observation).tolist() == [6, 1, 2] and chosen.state_parts == {
        "d": slice(0, 1),
        "a.c": slice(1, 3),
    }


def test_pictures_are_told_from_numbers():
    picture = spaces.Box(0, 255, (4, 6, 3), np.uint8)
    layout = Observations("here", picture)
    assert layout.pictures == ("observation",) and layout.state_size == 0
    assert layout.state(np.zeros((4, 6, 3), np.uint8)).shape == (0,)
    bytes_ = Observations("here", spaces.Box(0, 255, (5,), np.uint8))
    assert bytes_.pictures == () and bytes_.state_size == 5
    first = Observations("here", spaces.Box(0, 255, (3, 4, 6), np.uint8))
    values = np.arange(72, dtype=np.uint8).reshape(3, 4, 6)
    assert np.array_equal(first.picture(values, "observation"), values.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "odd",
    [spaces.Discrete(3), spaces.Text(4), spaces.Box(0, 1, (4, 6, 3)), spaces.Box(0, 255, (4, 6, 1), np.uint8)],
    ids=str,
)
def test_other_parts_are_named_and_can_be_left_out(odd):
    space = spaces.Dict({"odd": odd, "arm": BOX})
    with pytest.raises(ValueError, match=r"here: the part 'odd' of the observation is .*leave it out with state_keys="):
        Observations("here", space)
    assert Observations("here", space, ("arm",)).state_size == 2
    with pytest.raises(
        ValueError, match=r"state_keys names 'odd', which is no array of numbers .* expected some of arm"
    ):
        Observations("here", space, ("odd",))


def test_nothing_to_observe_is_refused():
    with pytest.raises(ValueError, match="nothing is left of the observation space"):
        Observations("here", spaces.Dict({"arm": BOX}), ())


def test_observations_outside_of_the_space_are_named():
    space = spaces.Dict({"arm": BOX, "eye": spaces.Box(0, 255, (4, 6, 3), np.uint8)})
    layout = Observations("here", space)
    eye = np.zeros((4, 6, 3), np.uint8)
    layout.check({"arm": np.zeros(2), "eye": eye})
    with pytest.raises(
        ValueError, match="the observation has no 'eye', which the observation space declares; it holds arm"
    ):
        layout.check({"arm": np.zeros(2)})
    with pytest.raises(ValueError, match=r"the part 'arm' of the observation is float64 of shape \(3,\)"):
        layout.check({"arm": np.zeros(3), "eye": eye})
    with pytest.raises(ValueError, match="the picture 'eye' is float64, and the space declares uint8"):
        layout.check({"arm": np.zeros(2), "eye": eye / 255})
    with pytest.raises(ValueError, match="it holds ndarray"):
        layout.check(np.zeros(2))
