import math

import pytest
import torch
from hypothesis import given, settings

from guerdon.core.batch import Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedSuccess
from guerdon.rewards.shaping import FirstHit
from guerdon.testing import check_reward_model, trajectory_batches


class Told(RewardModel):
    """Says of progress and success what the state holds; NaN means it abstains."""

    causal = True

    def forward(self, batch):
        def part(column):
            values = batch.state[..., column]
            return Labelled(values=values.nan_to_num(0.0), valid=~values.isnan() & batch.observed)

        progress, success = part(0), part(1)
        rewards = torch.zeros_like(batch.weight)
        return RewardEstimates(rewards=rewards, valid=batch.mask, progress=progress, success=success)


def rows(progress, success):
    state = torch.stack([torch.tensor(progress), torch.tensor(success)], -1).float()
    mask = torch.ones(len(state), state.shape[1] - 1, dtype=torch.bool)
    return TrajectoryBatch(state=state, actions=torch.zeros(*mask.shape, 0), mask=mask)


@settings(max_examples=15, deadline=None)
@given(batch=trajectory_batches(state_size=2))
def test_every_promise_is_kept(batch):
    check_reward_model(FirstHit(ProgressReward(state_size=2, width=8, layers=1), 2.0), batch)


def test_leaving_costs_nothing_and_coming_back_pays_nothing_by_hand():
    batch = rows([[0.25, 0.5, 0.25, 0.5, 0.75], [0.5, 0.25, 0.0, 0.25, 0.5]], [[0.0] * 5, [0.0] * 5])
    assert FirstHit(Told(), 3.0)(batch).rewards.tolist() == [[0.25, 0, 0, 0.25], [0, 0, 0, 0]]
    batch = rows([[0.0, 0.5, 0.5, 0.0]], [[0.0, 0.0, 1.0, 0.5]])
    assert FirstHit(Told(), 2.0)(batch).rewards.tolist() == [[0.5, 2.0, 0.0]]
    assert FirstHit(Told(), 0.0)(batch).rewards.tolist() == [[0.5, 0.0, 0.0]]


def test_an_unknown_estimate_keeps_the_best_so_far():
    nan = math.nan
    scored = FirstHit(Told(), 0.0)(rows([[nan, 0.25, nan, 0.5, 0.75]], [[0.0] * 5]))
    assert scored.valid.tolist() == [[False, False, False, True]]
    assert scored.rewards.tolist() == [[0, 0, 0, 0.25]]
    scored = FirstHit(Told(), 0.0)(rows([[0.5, nan, 0.25, 0.5, 1.0]], [[0.0] * 5]))
    assert scored.valid.tolist() == [[False, False, True, True]]
    assert scored.rewards.tolist() == [[0, 0, 0, 0.5]]


@settings(max_examples=50, deadline=None)
@given(batch=trajectory_batches(state_size=2))
def test_it_is_the_loop(batch):
    model = ProgressReward(state_size=2, width=8, layers=0)
    with torch.no_grad():
        inner, scored = model(batch), FirstHit(model, 1.5)(batch)
    for row in range(len(batch.mask)):
        best = -math.inf
        for step in range(batch.mask.shape[1]):
            here, there = (
                float(inner.progress.values[row, i] + 1.5 * inner.success.values[row, i]) for i in (step, step + 1)
            )
            known = bool(inner.progress.valid[row, step]), bool(inner.progress.valid[row, step + 1])
            best = max(best, here) if known[0] else best
            if all(known) and batch.mask[row, step]:
                assert scored.valid[row, step]
                assert float(scored.rewards[row, step]) == pytest.approx(max(0.0, there - best), abs=1e-6)
            else:
                assert not scored.valid[row, step] and scored.rewards[row, step] == 0


def test_on_rising_estimates_it_is_the_change_of_the_potential():
    batch = rows([[0.0, 0.25, 0.5, 1.0]], [[0.0, 0.0, 0.5, 1.0]])
    phi = batch.state[..., 0] + 2 * batch.state[..., 1]
    assert torch.equal(FirstHit(Told(), 2.0)(batch).rewards, phi[:, 1:] - phi[:, :-1])


def test_it_is_frozen_and_says_what_it_lacks():
    model = FirstHit(ProgressReward(state_size=2, width=8, layers=0))
    assert not any(p.requires_grad for p in model.parameters())
    assert model.inputs.state_size == 2
    with pytest.raises(ValueError, match="RecordedSuccess estimates neither progress nor success"):
        FirstHit(RecordedSuccess())(rows([[0.0, 1.0]], [[0.0, 1.0]]))
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="success_weight"):
            FirstHit(Told(), weight)
