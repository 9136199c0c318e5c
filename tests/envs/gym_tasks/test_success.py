"""Signals of success: what counts, and what a missing key says."""

import numpy as np
import pytest

from guerdon.envs.gym_tasks.success import InfoKey, InfoThreshold, RewardThreshold, find_success


def test_a_flag_a_number_and_a_reward_are_signals():
    for value, means in ((True, True), (np.float32(0.0), False), (np.array([1]), True), (0, False)):
        assert InfoKey("done_well")(0.0, False, {"done_well": value}) is means
    covered = InfoThreshold("coverage", 0.95)
    assert [covered(0.0, False, {"coverage": c}) for c in (0.94, 0.95, 1.0)] == [False, True, True]
    assert [RewardThreshold(0)(r, False, {}) for r in (-0.1, 0.0)] == [False, True]


def test_a_missing_key_is_an_error_or_has_a_meaning():
    with pytest.raises(ValueError, match=r"info has no 'won' at this step, it holds 'lost'; if .* absent=False\)"):
        InfoKey("won")(0.0, False, {"lost": 1})
    assert InfoKey("won", absent=False)(0.0, False, {}) is False
    assert InfoKey("won", absent=False)(0.0, False, {"won": True}) is True
    with pytest.raises(ValueError, match="expected info\\['won'\\] to be one number or flag, got 'yes'"):
        InfoKey("won")(0.0, False, {"won": "yes"})
    with pytest.raises(ValueError, match="info has no 'coverage' at this step, it holds nothing"):
        InfoThreshold("coverage", 0.5)(0.0, False, {})


def test_the_usual_keys_are_found():
    assert find_success("here", {"success": 1, "is_success": 0}) == InfoKey("is_success")
    assert find_success("here", {"success": 1}) == InfoKey("success")
    with pytest.raises(ValueError, match="here does not say when the task is solved: info holds nothing"):
        find_success("here", {})
