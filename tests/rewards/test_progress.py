import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import End, Labelled, Sampled, TrajectoryBatch
from guerdon.core.edit import reindex
from guerdon.core.metrics import value_order_correlation
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.negatives import reverse_map
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.testing import check_reward_model, trajectory_batches


def labelled(batch):
    return LabelFactory(assume_success=True).targets(batch)


def number(x):
    return x.detach().item()


def small(**more: Any):
    torch.manual_seed(1)
    return ProgressReward(**{"state_size": 2, "width": 16, "layers": 1, "heads": 2, "bins": 11, **more})


def pixels(cameras=("wrist",), **more):
    encoder = ConvEncoder(width=8, channels=(4, 8), size=8)
    return small(cameras=cameras, encoder=encoder, text=HashedText(width=8, buckets=32), **more)


@pytest.mark.slow
@settings(max_examples=10)
@given(batch=trajectory_batches(state_size=2, stored_labels=False))
@pytest.mark.parametrize("layers", [0, 1])
def test_states_alone_keep_every_promise(layers, batch):
    if bool((batch.steps > 0).any()) and bool((labelled(batch).labels["progress"].valid).any()):
        check_reward_model(small(layers=layers, text=HashedText(width=8, buckets=32)), labelled(batch))


@pytest.mark.slow
@settings(max_examples=8)
@given(batch=trajectory_batches(state_size=2, stored_labels=False, cameras=("wrist", "front")))
def test_frames_and_instructions_keep_every_promise(batch):
    if bool((labelled(batch).labels["progress"].valid).any()):
        check_reward_model(pixels(cameras=["wrist", "front", "absent"], state_size=0), labelled(batch))
        check_reward_model(pixels(fusion="sum", positions=True), labelled(batch))


def rows(state, steps=None, **more):
    steps = torch.tensor(steps or [state.shape[1] - 1] * len(state))
    mask = torch.arange(state.shape[1] - 1)[None] < steps[:, None]
    return TrajectoryBatch(state=state, actions=torch.zeros(*mask.shape, 0), mask=mask, **more)


def test_rewards_are_differences_of_the_potential():
    batch = rows(torch.randn(3, 6, 2), [5, 3, 1])
    model = small(success_weight=0.5).eval()
    scored = model(batch).map(torch.detach)
    phi = scored.progress.values + 0.5 * scored.success.values
    for row, length in enumerate([5, 3, 1]):
        for step in range(length):
            wanted = number(phi[row, step + 1] - phi[row, step])
            assert number(scored.rewards[row, step]) == pytest.approx(wanted, abs=1e-6)
        # a telescoping sum
        assert number(scored.rewards[row].sum()) == pytest.approx(number(phi[row, length] - phi[row, 0]), abs=1e-5)
    terms = scored.terms["progress"] + 0.5 * scored.terms["success"]
    assert torch.allclose(terms, scored.rewards, atol=1e-6)


def test_the_spread_is_that_of_the_bins():
    model = small(layers=0, bins=3).eval()
    with torch.no_grad():  # probabilities ½, 0, ½ on 0, ½, 1 everywhere: mean ½, variance ¼
        linear: Any = model.head.of["progress"]
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([0.0, -100.0, 0.0]))
    scored = model(rows(torch.randn(1, 3, 2)))
    assert scored.progress.values.tolist() == [pytest.approx([0.5, 0.5, 0.5])]
    assert scored.std.tolist() == [pytest.approx([0.5**0.5, 0.5**0.5])]  # √(¼ + ¼)


def test_an_unmade_last_observation_has_no_estimate_and_no_reward():
    scored = small().eval()(rows(torch.randn(1, 4, 2), last_observed=torch.tensor([False])))
    assert scored.valid.tolist() == [[True, True, False]] and number(scored.rewards[0, 2]) == 0
    assert scored.progress.valid.tolist() == [[True, True, True, False]]


def test_between_frames_the_last_value_is_held():
    frames = torch.randint(0, 256, (1, 2, 3, 8, 8), dtype=torch.uint8)
    batch = rows(torch.zeros(1, 6, 0), frames={"wrist": Sampled(values=frames, step=torch.tensor([[1, 4]]))})
    scored = pixels(state_size=0).eval()(batch)
    values, valid = scored.progress.values[0], scored.progress.valid[0]
    assert valid.tolist() == [False, True, True, True, True, True]  # nothing was seen before observation 1
    assert values[1] == values[2] == values[3] != values[4] and values[4] == values[5]
    assert scored.rewards[0].nonzero().flatten().tolist() == [3]  # the step to observation 4


def test_a_row_without_any_frame_gets_no_estimate():
    frames = Sampled(values=torch.randint(0, 256, (2, 1, 3, 8, 8), dtype=torch.uint8), step=torch.tensor([[0], [-1]]))
    scored = pixels().eval()(rows(torch.randn(2, 3, 2), frames={"wrist": frames}))
    assert scored.valid.tolist() == [[True, True], [False, False]]
    with pytest.raises(ValueError, match="hold no frame of these"):
        pixels()(rows(torch.randn(2, 3, 2)))


def test_frozen_features_replace_frames():
    model = pixels(state_size=0).eval()
    model.observer.encoder.trainable = False
    frames = Sampled(
        values=torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8), step=torch.tensor([[0, 1, 3], [0, 2, -1]])
    )
    batch = rows(torch.zeros(2, 4, 0), frames={"wrist": frames})
    encoded = torch.stack([model.observer.encoder.encode(f) for f in frames.values])
    stored = {f"{model.observer.encoder.name}/wrist": Sampled(values=encoded, step=frames.step)}
    assert torch.allclose(model(batch).rewards, model(replace(batch, frames={}, features=stored)).rewards, atol=1e-6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="the model would read nothing"):
        ProgressReward(state_size=0)
    with pytest.raises(ValueError, match=r"predicts \['speed'\]: expected some of progress, success"):
        ProgressReward(predicts=["speed"])  # before the data have said how wide a state is
    with pytest.raises(ValueError, match="learn from labels progress and success"):
        small().loss(rows(torch.zeros(1, 3, 2)))


def test_the_loss_by_hand():
    model = small(layers=0, bins=3, success_loss_weight=2.0)
    with torch.no_grad():
        heads: Any = model.head.of
        for head, bias in ((heads["progress"], [0.0, 0.0, 0.0]), (heads["success"], [0.0])):
            head.weight.zero_()
            head.bias.copy_(torch.tensor(bias))
    valid = torch.tensor([[True, True, False]])
    batch = rows(
        torch.zeros(1, 3, 2),
        labels={
            "progress": Labelled(values=torch.tensor([[0.0, 0.25, torch.nan]]), valid=valid),
            "success": Labelled(values=torch.tensor([[0.0, 1.0, 1.0]]), valid=valid),
        },
    )
    parts = model.loss(batch)
    assert number(parts["progress_loss"]) == pytest.approx(1.0986, abs=1e-4)  # ln 3, whatever the target
    assert number(parts["success_loss"]) == pytest.approx(0.6931, abs=1e-4)  # ½ ln 2 + ½ ln 2
    assert number(parts["loss"]) == pytest.approx(1.0986 + 2 * 0.6931, abs=1e-3)
    assert number(parts["progress_labels"]) == 2 and number(parts["progress_error"]) == pytest.approx((0.5 + 0.25) / 2)


def test_weights_count_and_positives_balance_negatives():
    model = small(layers=0)
    state = torch.randn(1, 5, 2)
    values = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])
    label = {"success": Labelled(values=values, valid=torch.ones(1, 5, dtype=torch.bool))}
    logit = model.head.of["success"](model.observer.encode(rows(state)).hidden)[0, :, 0]
    minus_log = torch.nn.functional.softplus
    wanted = 0.5 * minus_log(-logit[4]) + 0.5 * minus_log(logit[:4]).mean()  # one positive weighs as much as four
    assert number(model.loss(rows(state, labels=label))["loss"]) == pytest.approx(number(wanted), abs=1e-6)
    weight = torch.tensor([[0.0, 0.0, 1.0, 1.0]])  # the observations of steps 2 and 3 are 2, 3 and 4
    wanted = 0.5 * minus_log(-logit[4]) + 0.5 * minus_log(logit[2:4]).mean()
    loss = model.loss(rows(state, labels=label, weight=weight))["loss"]
    assert number(loss) == pytest.approx(number(wanted), abs=1e-6)


def test_a_batch_without_a_valid_label_gives_zero_and_says_so():
    model = small()
    unknown = Labelled(values=torch.full((1, 4), torch.nan), valid=torch.zeros(1, 4, dtype=torch.bool))
    parts = model.loss(rows(torch.randn(1, 4, 2), labels={"progress": unknown, "success": unknown}))
    parts["loss"].backward()
    assert number(parts["loss"]) == 0 and number(parts["progress_labels"]) == 0
    assert all(number(p.grad.abs().sum()) == 0 for p in model.parameters() if p.grad is not None)


def reaches(count, seed, tasks=1):
    """Points that go from where they start to where they should, at speeds that differ, with detours."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(12, 25, (count,), generator=generator)
    start, goal = torch.rand(2, count, 2, generator=generator) * 2 - 1
    state = torch.zeros(count, 25, 4)
    for row in range(count):
        t = torch.linspace(0, 1, int(steps[row]) + 1)[:, None] ** (
            0.6 + 0.8 * number(torch.rand((), generator=generator))
        )
        path = start[row] + (goal[row] - start[row]) * t + 0.05 * torch.randn(len(t), 2, generator=generator) * (1 - t)
        state[row, : len(t)] = torch.cat([path, goal[row].expand(len(t), 2)], 1)
    return rows(state, steps.tolist(), end=torch.full((count,), int(End.SUCCESS)))


def train(model, batch, factory, updates, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    model.fit_normaliser([batch])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(updates):
        chosen = batch[torch.randperm(len(batch), generator=generator)[:32]]
        loss = model.loss(factory(chosen, generator))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_progress_is_learned_and_runs_backwards_on_reversed_trajectories(seed):
    torch.manual_seed(seed)
    model = ProgressReward(state_size=4, bins=15, observer=ObservationEncoder(width=32, layers=1, heads=2))
    model = train(model, reaches(48, seed), LabelFactory(wrong_instruction=0.0), 90, seed)
    unseen = reaches(40, 100 + seed)
    with torch.no_grad():
        order = value_order_correlation(model(unseen).progress.values, unseen.mask)
        backwards = reindex(unseen, reverse_map(unseen.observed.sum(1), unseen.state.shape[1]))
        reversed_order = value_order_correlation(model(backwards).progress.values, backwards.mask)
    assert number(order.nanmean()) > 0.9
    assert number(reversed_order.nanmean()) < -0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_instruction_is_learned(seed):
    """Two tasks, told apart by the sign of where they go: under the other one's instruction nothing is achieved."""
    torch.manual_seed(seed)
    batch = reaches(64, seed)
    texts = ("push the red cube left", "pull the blue drawer right")
    task = (batch.state[:, 0, 2] > 0).long()
    batch = replace(batch, task=task, instructions=tuple(texts[i] for i in task))
    model = ProgressReward(
        state_size=4, bins=15, observer=ObservationEncoder(text=HashedText(width=16, buckets=64), width=32, layers=0)
    )
    model = train(model, batch, LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.4), 90, seed)
    swapped = replace(batch, instructions=tuple(texts[1 - i] for i in task))
    last = batch.steps[:, None]
    with torch.no_grad():
        right = model(batch).progress.values.gather(1, last)
        wrong = model(swapped).progress.values.gather(1, last)
    assert number((right > wrong).float().mean()) > 0.9


@pytest.mark.parametrize("make", [lambda: ProgressReward(), lambda: EnsembleReward(ProgressReward(), size=2)])
def test_a_model_without_a_size_says_so_when_it_is_used(make):
    batch = TrajectoryBatch(state=torch.zeros(1, 3, 2), actions=torch.zeros(1, 2, 1), mask=torch.ones(1, 2).bool())
    for use in (make(), make().loss):
        with pytest.raises(ValueError, match=r"is not built yet, .*state_size"):
            use(batch)
