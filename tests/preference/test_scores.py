"""Scores of rows: sums and means over the steps that can be scored."""

import pytest
import torch

from guerdon.core.batch import RewardEstimates
from guerdon.preference.scores import row_scores


def test_by_hand_and_a_row_without_a_valid_step_has_no_score():
    estimates = RewardEstimates(
        rewards=torch.tensor([[1.0, 2.0, 4.0], [3.0, torch.nan, 5.0], [7.0, 7.0, 7.0]]),
        valid=torch.tensor([[True, True, True], [True, False, True], [False, False, False]]),
    )
    total, scored = row_scores(estimates)
    assert total.tolist() == [7.0, 8.0, 0.0] and scored.tolist() == [True, True, False]
    mean, scored = row_scores(estimates, "mean")
    assert mean.tolist() == [pytest.approx(7 / 3), 4.0, 0.0] and scored.tolist() == [True, True, False]


def test_gradients_reach_the_valid_steps_alone():
    rewards = torch.zeros(1, 3, requires_grad=True)
    estimates = RewardEstimates(rewards=rewards, valid=torch.tensor([[True, False, True]]))
    row_scores(estimates, "mean")[0].sum().backward()
    assert rewards.grad is not None and rewards.grad.tolist() == [[0.5, 0.0, 0.5]]
