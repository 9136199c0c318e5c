"""What a calibration is fitted on: labelled observations of a split."""

from dataclasses import replace

import numpy as np
import pytest

from guerdon.datasets.episodes import BadEpisodeError
from guerdon.evaluation.calibration.data import collect
from guerdon.rewards.calibration import Calibrated
from guerdon.rewards.calibration_curves import Curve

from .state_models import Memory, Told, episode


def test_splits_and_bad_episodes():
    rng = np.random.default_rng(0)
    val = [episode(i, bool(i % 2), rng, context=f"c{i // 2}") for i in range(12)]
    train = [episode(100 + i, True, rng, split="train") for i in range(3)]
    broken = BadEpisodeError(50, "video", "ends early")
    seen = collect(Told(), Memory([*val, *train, broken]), "val", bad=(bad := {}))
    assert set(seen.episode) == set(range(12)) and bad == {50: broken}
    assert len(np.unique(seen.family)) == 6, "two of a context belong together"
    # a step's spread stands at the observation it leads to, and nothing leads to the first
    first = seen.spread[seen.episode == 0]
    assert first[0] == 0 and np.allclose(first[1:], val[0].state[1:, 2])
    assert len(np.unique(collect(Told(), Memory([*val, *train])).episode)) == 15
    with pytest.raises(ValueError, match="no usable episode of the split 'test': it has train, val"):
        collect(Told(), Memory([*val, *train]), "test")
    unsplit = Memory([replace(e, split="", context="") for e in val])
    assert 0 < len(np.unique(collect(Told(), unsplit, "val").episode)) < 12
    with pytest.raises(ValueError, match="no split is recorded"):
        collect(Told(), unsplit, "test")


def test_an_unknown_last_observation_and_abstentions_inside_are_left_out():
    rng = np.random.default_rng(0)
    episodes = [replace(episode(i, bool(i % 2), rng), last_observed=False) for i in range(2)]
    seen = collect(Told(), Memory(episodes))
    assert len(seen.label) == 2 * 6 and seen.label.sum() == 1
    limited = Calibrated.from_curves(Told(), "temperature", Curve(), spread_limit=0.05)
    assert len(collect(limited, Memory(episodes)).label) < 12, "a model that abstains already can be calibrated again"
