"""Flags of decisions as advantages."""

from dataclasses import replace

import pytest
import torch

from guerdon.core.batch import End, TrajectoryBatch
from guerdon.policies.advantages.flagged import FlaggedDecisions


def episodes():
    return TrajectoryBatch(
        state=torch.zeros(3, 6, 1),
        actions=torch.zeros(3, 5, 1),
        mask=torch.tensor([[True] * 5, [True] * 5, [True] * 4 + [False]]),
        end=torch.tensor([End.SUCCESS, End.FAILURE, End.TAKEOVER]),
    )


def test_the_sign_of_the_advantage_is_the_flag():
    batch = episodes()
    source = FlaggedDecisions(rate=2.0, seconds=1.0)
    estimates = source.estimate(batch)
    assert not estimates.valid.any()
    found = source(batch, estimates)
    assert found.advantages.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, -1, -1], [0, 0, -1, -1, 0]]
    assert found.valid.tolist() == [[True] * 5, [False] * 3 + [True] * 2, [False, False, True, True, False]]


def test_steps_without_weight_are_left_out():
    batch = episodes()
    weight = batch.weight.clone()
    weight[0, :2] = 0
    source, weighed = FlaggedDecisions(rate=2.0, seconds=1.0), replace(batch, weight=weight)
    found = source(weighed, source.estimate(weighed))
    assert found.valid[0].tolist() == [False, False, True, True, True]


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="rate 0"):
        FlaggedDecisions(rate=0.0)
