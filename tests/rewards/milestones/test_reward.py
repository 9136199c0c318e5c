"""The milestone model: what it learns, how it is paid, and what survives saving."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.batch import Labelled, TrajectoryBatch
from guerdon.core.sizes import DataSizes, take_sizes, unknown_sizes
from guerdon.datasets.collate import collate
from guerdon.rewards.milestones.payment import MODES, MilestonePayment
from guerdon.rewards.milestones.reward import MilestoneReward, in_mode
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.shaping import Potential
from guerdon.testing import check_reward_model, trajectory_batches

modes = st.sampled_from(MODES)


@pytest.mark.slow
@settings(max_examples=4)
@given(batch=trajectory_batches(state_size=2, action_size=2, stored_labels=False), mode=modes)
def test_every_promise_of_the_model_is_kept(batch, mode):
    labels = {
        "milestone": ((batch.actions[..., 0] > 0).float(), batch.mask),
        "progress": (torch.full_like(batch.state[..., 0], 0.5), batch.made),
    }
    labelled = replace(batch, labels={k: Labelled(values=v * valid, valid=valid) for k, (v, valid) in labels.items()})
    model = MilestoneReward(
        state_size=2,
        action_size=2,
        bins=11,
        observer=ObservationEncoder(width=8, layers=1),
        payment=MilestonePayment(mode=mode),
    )
    if bool(labelled.mask.any()):
        check_reward_model(model, labelled)


@settings(max_examples=10)
@given(batch=trajectory_batches(state_size=2, action_size=2))
def test_the_potential_is_the_one_of_shaping(batch):
    model = MilestoneReward(
        state_size=2,
        action_size=2,
        bins=11,
        observer=ObservationEncoder(layers=0, width=8),
        payment=MilestonePayment(beta=0.5, gamma=0.9),
    ).eval()
    with torch.no_grad():
        mine, theirs = model(batch), Potential(model, gamma=0.9)(batch)
    assert torch.equal(mine.valid, theirs.valid)
    assert torch.allclose(mine.rewards, 0.5 * theirs.rewards, atol=1e-6)


def test_a_trained_model_can_be_paid_in_another_way(tmp_path, episode):
    model = MilestoneReward(
        state_size=4, action_size=2, threshold=None, observer=ObservationEncoder(layers=0, width=8)
    ).eval()
    additive = in_mode(model, "additive", bonus=0.1)
    assert (model.payment.mode, additive.payment.mode, additive.training) == ("potential", "additive", False)
    batch = collate([episode()])
    with torch.no_grad():
        assert torch.equal(model(batch).progress.values, additive(batch).progress.values)
        chance = additive(batch)
    assert torch.allclose(chance.rewards, chance.terms["milestone"])
    assert bool(((chance.rewards > 0) & (chance.rewards < 0.1)).all())
    additive.save_pretrained(tmp_path / "additive")
    assert torch.equal(MilestoneReward.from_pretrained(tmp_path / "additive")(batch).rewards, chance.rewards)


def test_how_it_pays_is_kept_by_files_and_by_other_modes(tmp_path, episode):
    batch = collate([episode()])
    torch.manual_seed(3)
    model = MilestoneReward(
        state_size=4,
        action_size=2,
        observer=ObservationEncoder(layers=0, width=8),
        payment=MilestonePayment(milestones=3, bonus=0.2, beta=0.7, gamma=0.9, slack=0.3),
    )
    first = in_mode(model.eval(), "first_hit")
    for number, made in enumerate((model, first, in_mode(first, "potential"), in_mode(first, "potential", beta=0.1))):
        opened = MilestoneReward.from_pretrained(_saved(made, tmp_path / str(number)))
        for one in (made, opened):
            kept = one.payment
            assert (kept.milestones, kept.bonus, kept.gamma, kept.slack) == (3, 0.2, 0.9, 0.3)
            assert kept.beta == (0.1 if number == 3 else 0.7)
        with torch.no_grad():
            assert torch.equal(opened.eval()(batch).rewards, made(batch).rewards)
    with torch.no_grad():
        assert torch.equal(in_mode(first, "potential")(batch).rewards, model(batch).rewards)


def _saved(model, folder):
    model.save_pretrained(folder)
    return folder


def points(seed, rows=24, steps=20):
    """A point that wanders; a step that moves it up while it is in the upper half leads to a keyframe."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.rand(rows, steps + 1, 2, generator=generator)
    actions = torch.randn(rows, steps, 1, generator=generator)
    mask = torch.ones(rows, steps, dtype=torch.bool)
    y = ((state[:, :-1, 0] > 0.5) & (actions[..., 0] > 0)).float()
    labels = {
        "milestone": Labelled(values=y, valid=mask),
        "progress": Labelled(values=state[..., 1], valid=torch.ones(rows, steps + 1, dtype=torch.bool)),
    }
    return TrajectoryBatch(state=state, actions=actions, mask=mask, labels=labels)


@pytest.mark.slow
def test_it_learns_labels_that_depend_on_state_and_action():
    right, wrong, error = [], [], []
    for seed in range(3):
        torch.manual_seed(seed)
        logs, held_out = points(seed), points(100 + seed)
        for size, kept in ((1, right), (0, wrong)):
            model = MilestoneReward(
                state_size=2,
                action_size=size,
                bins=21,
                observer=ObservationEncoder(layers=0, width=16),
                payment=MilestonePayment(mode="additive"),
            )
            optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
            for _ in range(60):
                optimiser.zero_grad()
                model.loss(logs)["loss"].backward()
                optimiser.step()
            with torch.no_grad():
                said = model.eval()(held_out)
            kept.append(float((said.rewards == held_out.labels["milestone"].values).float().mean()))
        error.append(float((said.progress.values - held_out.state[..., 1]).abs().mean()))
    assert np.mean(right) > 0.93
    assert np.mean(wrong) < 0.85  # half of the steps in the upper half are positive: who sees no action must guess
    assert np.mean(error) < 0.05


def test_positives_and_negatives_weigh_the_same_and_pseudo_rewards_weigh_positives():
    batch = points(0)
    few = batch.labels["milestone"].values.clone()
    few[1:] = 0
    batch = replace(batch, labels={"milestone": Labelled(values=few, valid=batch.mask)})
    model = MilestoneReward(state_size=2, action_size=1, observer=ObservationEncoder(layers=0, width=8)).eval()
    last: Any = model.step_head[2]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 1.0)
    # −log σ(1) = 0.31326 on every positive, −log σ(−1) = 1.31326 on every negative, however many of each
    with torch.no_grad():
        parts = model.loss(batch)
        heavy = MilestoneReward(
            state_size=2, action_size=1, pseudo_reward=3.0, observer=ObservationEncoder(layers=0, width=8)
        )
        heavy.load_state_dict(model.state_dict())
        heavier = heavy.loss(batch)
    assert float(parts["milestone_loss"]) == pytest.approx(0.5 * 0.31326 + 0.5 * 1.31326, abs=1e-4)
    assert float(heavier["milestone_loss"]) == pytest.approx(1.5 * 0.31326 + 0.5 * 1.31326, abs=1e-4)
    assert float(parts["milestone_positives"]) == float(few.sum())


def test_a_model_names_what_it_cannot_use():
    model, batch = (
        MilestoneReward(state_size=2, action_size=1, observer=ObservationEncoder(layers=0, width=8)),
        points(0),
    )
    with pytest.raises(ValueError, match="learns from labels milestone and progress, this batch holds none"):
        model.loss(replace(batch, labels={}))
    with pytest.raises(ValueError, match="reads actions of 3 numbers, these trajectories have 1"):
        MilestoneReward(state_size=2, action_size=3, observer=ObservationEncoder(layers=0, width=8))(batch)
    broken = batch.actions.clone()
    broken[0, 0] = math.nan
    with pytest.raises(ValueError, match="an action is NaN or infinite"):
        model(replace(batch, actions=broken))
    per_observation = Labelled(values=torch.zeros(24, 21), valid=torch.ones(24, 21, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"labels\['milestone'\]: expected one number per step \(24, 20\)"):
        model.loss(replace(batch, labels={"milestone": per_observation}))
    with pytest.raises(ValueError, match="threshold is 1"):
        MilestoneReward(state_size=2, threshold=1.0)


def test_the_payment_is_an_object_or_given_flat():
    sizes: dict[str, Any] = {"state_size": 2, "action_size": 1}
    for model in (
        MilestoneReward(**sizes, width=8, mode="first_hit", bonus=0.5),  # pyright: ignore[reportCallIssue]
        MilestoneReward(  # one object and one argument of the other
            **sizes,
            width=8,  # pyright: ignore[reportCallIssue]
            payment=MilestonePayment(mode="first_hit", bonus=0.5),
        ),
    ):
        paid = model.payment
        assert (paid.mode, paid.bonus, paid.milestones, paid.slack) == ("first_hit", 0.5, 4, 0.05)


def test_actions_are_read_by_default_and_not_with_a_size_of_zero():
    model = MilestoneReward(state_size=2, observer=ObservationEncoder(layers=0, width=8))
    assert unknown_sizes(model) == ["MilestoneReward.action_size"]
    data = DataSizes(name="data/points", state_size=2, action_size=1)
    take_sizes(model, data)
    assert (model.action_size, model.init_args["action_size"]) == (1, 1)
    blind = MilestoneReward(action_size=0, observer=ObservationEncoder(layers=0, width=8))
    take_sizes(blind, data)
    batch = points(0, rows=2)
    other = replace(batch, actions=-batch.actions)
    with torch.no_grad():
        for reader, same in ((model, False), (blind, True)):
            scored = [reader.eval()(part).progress.values for part in (batch, other)]
            assert torch.equal(*scored), "progress never depends on actions"
            logits = [reader._step_logits(reader.observer.encode(part), part) for part in (batch, other)]
            assert torch.equal(*logits) == same
