import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.hub import load_component
from guerdon.core.interfaces import RewardModel
from guerdon.rewards.combine import Clip, Normalise, Scale, Sum
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedReward, RecordedSuccess
from guerdon.testing import check_reward_model, trajectory_batches


def batch(rewards, valid=None, end=End.SUCCESS):
    values = torch.tensor(rewards)
    mask = torch.ones(values.shape, dtype=torch.bool)
    known = mask if valid is None else torch.tensor(valid)
    rows, steps = values.shape
    return TrajectoryBatch(
        state=torch.zeros(rows, steps + 1, 2),
        actions=torch.zeros(rows, steps, 0),
        mask=mask,
        end=torch.full((rows,), int(end)),
        recorded={"reward": Labelled(values=values, valid=known), "other": Labelled(values=10 * values, valid=mask)},
    )


@pytest.mark.slow
@given(given=trajectory_batches(state_size=2))
def test_every_promise_is_kept(given):
    torch.manual_seed(0)
    model = ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=1))
    for combined in (Scale(model, -2.0), Clip(model, -0.1, 0.1), Sum([model, RecordedReward()], [1.0, 0.5])):
        check_reward_model(combined, given)
    scored = model(given)
    if len(scored.rewards[scored.valid].unique()) > 1:
        # dividing by a small deviation enlarges the rounding of the model inside by as much
        normalised = Normalise(model).fit([given])
        spread = float(scored.rewards[scored.valid].std(correction=0))
        check_reward_model(normalised, given, tolerance=max(1e-4, 2e-6 / spread))


def test_by_hand():
    held = batch([[1.0, -3.0, 2.0]])
    assert Scale(RecordedReward(), -0.5)(held).rewards.tolist() == [[-0.5, 1.5, -1.0]]
    assert Clip(RecordedReward(), -1.0, 1.5)(held).rewards.tolist() == [[1.0, -1.0, 1.5]]
    total = Sum([RecordedReward(), RecordedReward("other"), RecordedSuccess()], [1.0, 0.1, 5.0])(held)
    assert total.rewards[0].tolist() == pytest.approx([2.0, -6.0, 9.0])
    assert {name: term[0].tolist() for name, term in total.terms.items()} == {
        "RecordedReward": [1.0, -3.0, 2.0],
        "RecordedReward_1": pytest.approx([1.0, -3.0, 2.0]),
        "RecordedSuccess": [0.0, 0.0, 5.0],
    }
    assert float(Normalise(RecordedReward()).fit([batch([[1.0, -1.0]])]).deviation) == 1.0


def test_what_one_part_does_not_know_the_sum_does_not_know():
    held = batch([[1.0, -3.0, 2.0]], [[True, False, True]])
    for combined in (Sum([RecordedReward("other"), RecordedReward()]), Clip(RecordedReward(), 0.5, 1.0)):
        scored = combined(held)
        assert scored.valid.tolist() == [[True, False, True]]
        assert scored.rewards[0, 1] == 0, "a limit above 0 does not pay for what nobody knows"


@given(weights=st.lists(st.floats(-3, 3), min_size=2, max_size=2))
def test_a_sum_is_linear(weights):
    held = batch([[1.0, -3.0, 2.0], [0.5, 0.0, -1.0]])
    parts = [RecordedReward(), RecordedSuccess()]
    expected: Any = sum(w * part(held).rewards for w, part in zip(weights, parts, strict=True))
    assert torch.allclose(Sum(parts, weights)(held).rewards, expected)
    scaled = Sum([Scale(part, w) for w, part in zip(weights, parts, strict=True)])
    assert torch.allclose(scaled(held).rewards, expected)


@given(rewards=st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=2, max_size=4))
def test_what_was_fitted_has_deviation_one(rewards):
    held = batch(rewards)
    values = torch.tensor(rewards).double()
    if float(values.max() - values.min()) < 1e-3:
        return
    model = Normalise(RecordedReward()).fit([held[:1], held[1:]])
    assert float(model.deviation) == pytest.approx(float(values.std(correction=0)), rel=1e-5)
    assert float(model(held).rewards.double().std(correction=0)) == pytest.approx(1.0, rel=1e-4)


def test_a_scale_is_saved_with_the_reward(tmp_path):
    Normalise(RecordedReward("other")).fit([batch([[1.0, -3.0]])]).save_pretrained(tmp_path / "model")
    loaded = load_component(tmp_path / "model")
    assert isinstance(loaded, Normalise) and isinstance(loaded.reward, RecordedReward)
    assert float(loaded.deviation) == 20.0 and loaded.reward.key == "other"


def test_spread_and_terms_are_scaled_too():
    class Doubtful(RewardModel):
        def forward(self, batch):
            ones = torch.ones_like(batch.weight)
            return RewardEstimates(rewards=ones, valid=batch.mask, std=ones, terms={"part": ones})

    scored = Scale(Doubtful(), -3.0)(batch([[1.0, 2.0]]))
    assert scored.std.tolist() == [[3, 3]] and scored.terms["part"].tolist() == [[-3, -3]]


def test_inputs_are_those_of_the_parts_and_different_ones_are_refused():
    small, large = (
        ProgressReward(state_size=2, observer=ObservationEncoder(width=8)),
        ProgressReward(state_size=3, observer=ObservationEncoder(width=8)),
    )
    assert Scale(small, 2.0).inputs.state_size == Sum([RecordedSuccess(), small]).inputs.state_size == 2
    with pytest.raises(ValueError, match="read different inputs"):
        _ = Sum([small, large]).inputs


def test_one_part_that_looks_ahead_makes_the_sum_look_ahead():
    late = RecordedSuccess()
    late.causal = False
    assert not Sum([RecordedReward(), late]).causal and not Clip(late).causal and Sum([RecordedReward()]).causal


def test_clear_errors():
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="factor"):
            Scale(RecordedReward(), wrong)
    with pytest.raises(ValueError, match="low <= high"):
        Clip(RecordedReward(), 1.0, -1.0)
    for rewards, weights in (([], None), ([RecordedReward()], [1.0, 2.0]), ([RecordedReward()], [math.nan])):
        with pytest.raises(ValueError, match="one finite weight each"):
            Sum(rewards, weights)
    with pytest.raises(RuntimeError, match="no scale yet"):
        Normalise(RecordedReward())(batch([[1.0]]))
    with pytest.raises(ValueError, match=r"every reward is 2\.0"):
        Normalise(RecordedReward()).fit([batch([[2.0, 2.0]])])
    with pytest.raises(ValueError, match="no step has a valid reward"):
        Normalise(RecordedReward()).fit([batch([[2.0]], [[False]])])
