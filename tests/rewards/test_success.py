from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.datasets.labels import LabelFactory
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.success import SuccessReward, first_runs
from guerdon.testing import check_reward_model, trajectory_batches


@pytest.mark.slow
@settings(max_examples=15)
@given(batch=trajectory_batches(state_size=2, stored_labels=False))
def test_every_promise_is_kept(batch):
    labelled = LabelFactory(assume_success=True).targets(batch)
    if bool(labelled.labels["success"].valid.any()):
        check_reward_model(
            SuccessReward(state_size=2, threshold=0.4, patience=2, observer=ObservationEncoder(layers=0, width=8)),
            labelled,
        )


def test_runs_by_hand():
    done = torch.tensor([[0, 1, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1]], dtype=torch.bool)
    assert first_runs(done, 1, True).int().tolist() == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert first_runs(done, 2, True).int().tolist() == [[0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0]]
    assert first_runs(done, 2, False).int().tolist() == [[0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 1]]
    assert first_runs(torch.zeros(2, 0, dtype=torch.bool), 1, True).shape == (2, 0)


def line(values):
    """A model whose probability is σ(state), so that a state of ±5 says yes or no."""
    model = SuccessReward(state_size=1, observer=ObservationEncoder(layers=0, width=4)).eval()
    state = torch.tensor(values)[..., None]
    batch = TrajectoryBatch(
        state=state,
        actions=torch.zeros(len(values), state.shape[1] - 1, 0),
        mask=torch.ones(len(values), state.shape[1] - 1, dtype=torch.bool),
    )
    return model, batch


def test_success_is_paid_once_and_not_for_where_a_row_starts(monkeypatch):
    model, batch = line([[5.0, -5.0, 5.0, 5.0], [-5.0, -5.0, -5.0, -5.0]])
    with torch.no_grad():
        encode = model.observer.encode

        def state_itself(b):
            encoded = encode(b)
            hidden = torch.zeros_like(encoded.hidden)
            hidden[..., 0] = b.state[..., 0]
            return replace(encoded, hidden=hidden)

        monkeypatch.setattr(model.observer, "encode", state_itself)
        model.head.weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
        model.head.bias.zero_()
        scored = model(batch)
    assert scored.rewards.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert scored.success.values[0].tolist() == pytest.approx([0.9933, 0.0067, 0.9933, 0.9933], abs=1e-4)
    assert float(scored.std[0, 1]) == pytest.approx((0.9933 * 0.0067) ** 0.5, abs=1e-3)


def test_it_learns_what_success_looks_like():
    torch.manual_seed(0)
    state = torch.randn(64, 9, 2)
    flags = (state[..., 0] > 1).float()  # a sixth of the observations
    batch = TrajectoryBatch(
        state=state,
        actions=torch.zeros(64, 8, 0),
        mask=torch.ones(64, 8, dtype=torch.bool),
        labels={"success": Labelled(values=flags, valid=torch.ones(64, 9, dtype=torch.bool))},
        end=torch.full((64,), int(End.CUT)),
    )
    model = SuccessReward(state_size=2, observer=ObservationEncoder(layers=0, width=16))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        model.loss(batch)["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        parts = model.loss(batch)
        chance = model.eval()(batch).success.values
    assert float(parts["success_accuracy"]) > 0.95
    assert float(parts["success_positives"]) == float(flags.sum())
    assert float((chance[flags == 1] > 0.5).float().mean()) > 0.95


def test_bad_settings_and_missing_labels_are_named():
    with pytest.raises(ValueError, match=r"threshold 1.0, patience 1"):
        SuccessReward(state_size=1, threshold=1.0)
    model, batch = line([[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"learns from labels success, this batch holds none"):
        model.loss(batch)
