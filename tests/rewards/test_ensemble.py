"""Ensembles: aggregates and spreads by hand, members that share what is frozen, bootstrap weights, training, doubt."""

import json
import math
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import ttest_1samp

from guerdon.backbones.language import HashedText, InstructionCache, TextEncoder
from guerdon.backbones.vision import ConvEncoder, VisionEncoder
from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.hub import load_component
from guerdon.core.interfaces import RewardModel
from guerdon.datasets.episodes import Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.labels import with_progress_targets, with_success_targets
from guerdon.datasets.module import EpisodeData
from guerdon.rewards.ensemble import EnsembleReward, Spread, aggregate_rewards, bootstrap_weights, mixture_std
from guerdon.rewards.fit import RewardTraining
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedReward
from guerdon.rewards.success import SuccessReward
from guerdon.testing import check_reward_model, trajectory_batches


class Said(RewardModel):
    """Says what it was told, and how sure it is; abstains where told."""

    def __init__(self, rewards: list[float], std: float | None = None, unknown: int = -1) -> None:
        super().__init__()
        self.rewards, self.std, self.unknown = rewards, std, unknown
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        valid = batch.mask & (torch.arange(batch.mask.shape[1]) != self.unknown)
        rewards = torch.where(valid, torch.tensor(self.rewards).expand(batch.mask.shape), 0.0)
        seen = batch.observed & (torch.arange(batch.mask.shape[1] + 1) != self.unknown)
        level = torch.full(seen.shape, self.rewards[0])
        return RewardEstimates(
            rewards=rewards,
            valid=valid,
            progress=Labelled(values=torch.where(seen, level, 0.0), valid=seen),
            std=None if self.std is None else torch.full_like(rewards, self.std),
            terms={"first": rewards},
        )


class FrozenEyes(VisionEncoder):
    """Mean colour, frozen; counts the frames it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.name, self.trainable = 3, "mean-colour", False
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.frozen_reference = True
        self.seen = 0

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.float() / 255

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen += len(pixels)
        return pixels.mean((2, 3)) * self.scale


class FrozenWords(TextEncoder):
    """Length of a text, frozen; counts the texts it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.name, self.trainable, self.asked = 2, "length", False, 0
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.cache = InstructionCache()

    def forward(self, instructions):
        def compute(texts: list[str]) -> torch.Tensor:
            self.asked += len(texts)
            return torch.tensor([[len(text), 1.0] for text in texts])

        return torch.stack(self.cache.lookup(instructions, compute))


def members_of(model: Any) -> list[Any]:
    return list(model.members)


def weight(member):
    """Of the progress head."""
    return member.head.of["progress"].weight


def row(steps=3):
    return TrajectoryBatch(
        state=torch.zeros(1, steps + 1, 0),
        actions=torch.zeros(1, steps, 0),
        mask=torch.ones(1, steps, dtype=torch.bool),
    )


def ensemble_of(*said, **more):
    """An ensemble whose members say different things."""
    made = EnsembleReward(said[0], size=len(said), bootstrap=False, **more)
    made.members = torch.nn.ModuleList(said)
    return made


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_aggregates_by_hand():
    one, two = Said([1.0, 0.0, 2.0]), Said([3.0, 0.0, -2.0])
    assert ensemble_of(one, two)(row()).rewards.tolist() == [[2.0, 0.0, 0.0]]
    # deviations over members, ddof 0: |3 − 1| / 2 = 1, 0, 2
    step = {"bound": "step"}
    assert ensemble_of(one, two, aggregate="lower", **step)(row()).rewards.tolist() == [[1.0, 0.0, -2.0]]
    halved = ensemble_of(one, two, aggregate="lower", coefficient=0.5, **step)(row())
    assert halved.rewards.tolist() == [[1.5, 0.0, -1.0]]
    assert ensemble_of(one, two, aggregate="worst", **step)(row()).rewards.tolist() == [[1.0, 0.0, -2.0]]
    # totals so far 1, 1, 3 and 3, 3, 1: mean 2, 2, 2, deviation 1, 1, 1, worst 1, 1, 1; paid by its changes
    assert ensemble_of(one, two, aggregate="lower")(row()).rewards.tolist() == [[1.0, 0.0, 0.0]]
    assert ensemble_of(one, two, aggregate="worst")(row()).rewards.tolist() == [[1.0, 0.0, 0.0]]


def test_a_success_paid_on_different_steps_is_paid_when_the_last_member_agrees():
    early, late = Said([0.0, 1.0, 0.0]), Said([0.0, 0.0, 1.0])
    assert ensemble_of(early, late, aggregate="worst")(row()).rewards.tolist() == [[0.0, 0.0, 1.0]]
    assert ensemble_of(early, late, aggregate="worst", bound="step")(row()).rewards.tolist() == [[0.0, 0.0, 0.0]]
    # (0 + 1) / 2 − ½ = 0, then 1 − 0
    assert ensemble_of(early, late, aggregate="lower")(row()).rewards.tolist() == [[0.0, 0.0, 1.0]]


def test_spread_is_the_deviation_of_the_mixture():
    one, two = Said([1.0, 1.0, 1.0], std=3.0), Said([3.0, 1.0, 1.0], std=1.0)
    # mean of 9 and 1 is 5; between 1 and 3 the variance is 1: √6, and √5 where they agree
    found = ensemble_of(one, two)(row()).std
    assert found[0].tolist() == pytest.approx([math.sqrt(6), math.sqrt(5), math.sqrt(5)])
    assert ensemble_of(one, two, spread="members")(row()).std.tolist() == [[1.0, 0.0, 0.0]]
    assert ensemble_of(Said([1.0] * 3), two)(row()).std.tolist() == [[1.0, 0.0, 0.0]], "one does not say how sure it is"
    # progress is 1 and 3 at every observation: a variance of 1 at both ends
    assert ensemble_of(one, two, spread="levels")(row()).std[0].tolist() == pytest.approx([math.sqrt(2)] * 3)
    drawn = torch.cat([1 + 3 * torch.randn(200_000), 3 + torch.randn(200_000)])
    assert float(drawn.std()) == pytest.approx(math.sqrt(6), rel=0.01), "drawn from either member, half and half"


def test_what_one_member_does_not_know_the_ensemble_does_not_know():
    scored = ensemble_of(Said([0.2] * 3, unknown=1), Said([0.6] * 3), aggregate="worst")(row())
    assert scored.valid.tolist() == [[True, False, True]] and scored.rewards[0, 1] == 0 and scored.std[0, 1] == 0
    assert scored.progress.valid.tolist() == [[True, False, True, True]] and scored.progress.values[0, 1] == 0
    assert scored.progress.values[0, 0] == pytest.approx(0.4) and scored.terms["first"][0, 1] == 0
    # the unknown step adds nothing to either total: 0.2 and 0.6, then 0.4 and 1.2
    assert scored.rewards[0].tolist() == pytest.approx([0.2, 0.0, 0.2])


def slow_aggregate(rewards, aggregate, coefficient, bound):
    members, rows, steps = len(rewards), len(rewards[0]), len(rewards[0][0])

    def low(values):
        mean = sum(values) / members
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / members)
        return {"mean": mean, "lower": mean - coefficient * deviation, "worst": min(values)}[aggregate]

    found = [[0.0] * steps for _ in range(rows)]
    for b in range(rows):
        paid = 0.0
        for t in range(steps):
            if bound == "step":
                found[b][t] = low([rewards[k][b][t] for k in range(members)])
            else:
                reached = low([sum(rewards[k][b][: t + 1]) for k in range(members)])
                found[b][t], paid = reached - paid, reached
    return found


@given(
    seed=st.integers(0, 2**31),
    members=st.integers(1, 5),
    steps=st.integers(1, 6),
    coefficient=st.floats(0, 3),
    aggregate=st.sampled_from(["mean", "lower", "worst"]),
)
def test_aggregates_against_a_loop_and_the_order_of_the_bounds(seed, members, steps, coefficient, aggregate):
    rewards = torch.randn(members, 2, steps, generator=torch.Generator().manual_seed(seed))
    found = {b: aggregate_rewards(rewards, aggregate, coefficient, b) for b in ("total", "step")}
    for bound, value in found.items():
        expected = slow_aggregate(rewards.double().tolist(), aggregate, coefficient, bound)
        assert torch.allclose(value.double(), torch.tensor(expected).double(), atol=1e-5)
        assert value.dtype == torch.float32
    mean = rewards.mean(0).sum(1)
    assert (found["step"].sum(1) <= found["total"].sum(1) + 1e-4).all()
    assert (found["total"].sum(1) <= mean + 1e-4).all()
    if members == 1:
        assert torch.allclose(found["total"], rewards[0], atol=1e-6)


def test_mixture_of_equal_members_is_the_member():
    means, stds = torch.full((7, 2, 3), 0.1), torch.full((7, 2, 3), 0.3)
    assert torch.equal(mixture_std(means, stds), stds[0]) and bool((mixture_std(means) == 0).all())


# --- one copy of what is frozen --------------------------------------------------------------------------------------


def seeing(**more):
    eyes, words = FrozenEyes(), FrozenWords()
    member = ProgressReward(
        observer=ObservationEncoder(cameras=["a", "b"], encoder=eyes, text=words, width=8, layers=1, heads=2)
    )
    return EnsembleReward(member, size=4, **more), eyes, words


def shown(rows=2, cameras=("a", "b"), size=None, seed=0):
    strategy = trajectory_batches(max_rows=rows, max_steps=5, cameras=cameras, min_length=2, state_size=size)
    found: list[TrajectoryBatch] = []

    @settings(max_examples=1, database=None, derandomize=True)
    @given(batch=strategy)
    def draw(batch):
        found.append(batch)

    draw()
    return found[0]


def test_members_share_a_frozen_encoder_and_see_each_frame_once():
    model, eyes, words = seeing()
    assert all(member.observer.encoder is eyes and member.observer.text is words for member in members_of(model))
    assert len({float(weight(m).detach().sum()) for m in model.members}) == 4, "each starts with weights of its own"
    batch = shown()
    frames = sum(int(s.mask.sum()) for s in batch.frames.values())
    scored = model(batch)
    assert eyes.seen == frames and words.asked == len(set(batch.instructions))
    by_hand = torch.stack([member(batch).progress.values for member in model.members]).mean(0)
    assert torch.allclose(scored.progress.values, by_hand, atol=1e-6)
    eyes.seen = 0
    model.train().loss(with_targets(batch))
    assert eyes.seen == frames


def with_targets(batch):
    """Every row a success, so that any model has something to learn."""
    done = replace(batch, success=torch.ones(len(batch)), success_known=torch.ones(len(batch), dtype=torch.bool))
    return with_success_targets(with_progress_targets(done))


def test_cached_features_are_read_and_no_frame_is_encoded():
    model, eyes, _ = seeing()
    batch = shown()
    expected = model(batch)
    embedded = {}
    for camera, frames in batch.frames.items():
        values = torch.zeros(*frames.mask.shape, 3)
        values[frames.mask] = eyes.encode(frames.values[frames.mask])
        embedded[f"mean-colour/{camera}"] = replace(frames, values=values)
    eyes.seen = 0
    scored = model(replace(batch, frames={}, features=embedded))
    assert eyes.seen == 0 and torch.allclose(scored.rewards, expected.rewards, atol=1e-6)


def test_a_frozen_encoder_is_saved_by_name_alone_and_shared_again(tmp_path):
    model, _, _ = seeing()
    model.save_pretrained(tmp_path / "model")
    kept = load_file(tmp_path / "model" / "model.safetensors")
    assert not [name for name in kept if ".encoder." in name], "weights of a published encoder stay out, under any name"
    loaded = load_component(tmp_path / "model", trust=True, known=(FrozenEyes, FrozenWords))
    assert len({id(member.observer.encoder) for member in members_of(loaded)}) == 1
    batch = shown()
    assert torch.equal(loaded(batch).rewards, model.eval()(batch).rewards)


def test_a_trainable_encoder_belongs_to_each_member():
    encoder = ConvEncoder(width=4, channels=(4, 4), size=8)
    member = ProgressReward(
        observer=ObservationEncoder(cameras=["a"], encoder=encoder, text=HashedText(4, 16), width=8, layers=0)
    )
    model = EnsembleReward(member, size=3)
    observers = [m.observer for m in members_of(model)]
    assert len({id(o.encoder) for o in observers}) == len({id(o.text) for o in observers}) == 3
    assert model.members[0] is member, "the one given is the first"
    assert model.inputs.encoder is None and model.inputs.cameras == ("a",)


# --- the promises every reward model keeps ---------------------------------------------------------------------------


@pytest.mark.slow
@given(
    batch=trajectory_batches(state_size=2, max_steps=4, min_length=1, stored_labels=False),
    aggregate=st.sampled_from(["mean", "lower", "worst"]),
    kind=st.sampled_from([ProgressReward, SuccessReward]),
)
def test_every_promise_is_kept(batch, aggregate, kind):
    member = kind(state_size=2, width=8, layers=0)
    check_reward_model(EnsembleReward(member, size=2, aggregate=aggregate, bootstrap=False), with_targets(batch))


@given(batch=trajectory_batches(state_size=2), aggregate=st.sampled_from(["mean", "lower", "worst"]))
def test_identical_members_reduce_to_the_member(batch, aggregate):
    member = ProgressReward(
        state_size=2, success_weight=0.5, observer=ObservationEncoder(width=8, layers=1, heads=2)
    ).eval()
    model = EnsembleReward(member, size=3, aggregate=aggregate).eval()
    for other in model.members:
        other.load_state_dict(member.state_dict())
    alone, together = member(batch), model(batch)
    assert torch.equal(alone.valid, together.valid)
    assert torch.allclose(alone.rewards, together.rewards, atol=1e-6)
    assert torch.allclose(alone.std, together.std, atol=1e-6)
    assert torch.equal(alone.progress.values, together.progress.values)
    assert torch.equal(alone.success.values, together.success.values)
    for name, term in alone.terms.items():
        assert torch.allclose(term, together.terms[name], atol=1e-6)


def test_clear_errors():
    member = SuccessReward(state_size=2, observer=ObservationEncoder(layers=0, width=8))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"size": 0}, "at least one member"),
        ({"coefficient": math.nan}, "coefficient"),
        ({"coefficient": -1.0}, "coefficient"),
        ({"seed": -1}, "seed"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            EnsembleReward(member, **arguments)
    with pytest.raises(ValueError, match="nothing to train"):
        EnsembleReward(RecordedReward())


# --- the bootstrap ---------------------------------------------------------------------------------------------------


def test_bootstrap_weights_are_poisson_and_depend_on_member_episode_and_seed_alone():
    episode = torch.arange(20_000)
    weights = bootstrap_weights(episode, 3, seed=7)
    order = torch.randperm(len(episode))
    assert torch.equal(bootstrap_weights(episode[order], 3, seed=7), weights[order])
    counted = Counter(weights.int().tolist())
    for times in range(4):  # P(k) = 1 / (e · k!); five standard errors of a share
        chance = 1 / (math.e * math.factorial(times))
        error = 5 * math.sqrt(chance * (1 - chance) / len(episode))
        assert abs(counted[times] / len(episode) - chance) < error
    others = [bootstrap_weights(episode, 4, seed=7), bootstrap_weights(episode, 3, seed=8), weights.roll(1)]
    for other in others:
        assert abs(float(np.corrcoef(weights, other)[0, 1])) < 5 / math.sqrt(len(episode))
    far = torch.tensor([2**33 + 5, 5])  # an episode of a second data set is another episode
    assert bootstrap_weights(far.repeat(50) + torch.arange(100) // 2, 0).reshape(50, 2).unique(dim=1).shape[1] == 2


def test_members_learn_from_their_own_weights_and_only_in_training():
    batch = logs(np.random.default_rng(0), rows=5)
    model = EnsembleReward(ProgressReward(state_size=4, observer=ObservationEncoder(width=8, layers=0)), size=3, seed=1)
    for bootstrap, mode in ((True, True), (True, False), (False, True)):
        model.bootstrap = bootstrap
        model.train(mode)
        times = [
            bootstrap_weights(batch.episode, k, seed=1)[:, None] if bootstrap and mode else 1.0
            for k in range(len(model.members))
        ]
        alone = [m.loss(replace(batch, weight=batch.weight * w)) for m, w in zip(members_of(model), times, strict=True)]
        together = model.loss(batch)
        assert together.keys() == alone[0].keys()
        for name, value in together.items():
            assert float(value.detach()) == pytest.approx(sum(float(a[name].detach()) for a in alone) / 3, rel=1e-5)
    model.members[0].zero_grad()
    together["loss"].backward()
    mine = weight(model.members[0]).grad.clone()
    model.members[0].zero_grad()
    alone[0]["loss"].backward()
    assert torch.allclose(3 * mine, weight(model.members[0]).grad, atol=1e-6)


# --- training --------------------------------------------------------------------------------------------------------


def reach(index, rng):
    steps, good = 8 + index % 3, index % 3 != 2
    start, goal = rng.uniform(-1, 1, (2, 2))
    t = np.linspace(0, 1 if good else 0.4, steps + 1)[:, None]
    state = np.concatenate([start + (goal - start) * t, np.broadcast_to(goal, (steps + 1, 2))], 1)
    return Episode(
        index=index,
        state=(5 + state).astype(np.float32),
        actions=np.zeros((steps, 1), np.float32),
        instruction="reach",
        end=End.SUCCESS if good else End.TIME_LIMIT,
        success=float(good),
    )


def fit(model, data, folder, epochs, **more):
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        max_epochs=epochs,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*number of training batches")
        trainer.fit(RewardTraining(model, learning_rate=3e-3), datamodule=data, **more)
    return trainer


@pytest.mark.slow
def test_guerdon_fit_trains_every_member_and_a_resumed_run_agrees(tmp_path):
    rng = np.random.default_rng(0)
    with LeRobotWriter(tmp_path / "reach", fps=10) as writer:
        for i in range(24):
            writer.add(reach(i, rng))

    def fresh():
        torch.manual_seed(3)
        member = ProgressReward(state_size=4, observer=ObservationEncoder(width=8, layers=0))
        return EnsembleReward(member, size=3), EpisodeData(str(tmp_path / "reach"), batch_size=8, val_fraction=0.2)

    whole, data = fresh()
    before = [weight(m).detach().clone() for m in whole.members]
    assert not whole.normalised
    trainer = fit(whole, data, tmp_path, 2)
    assert whole.normalised and {"val_loss", "val_value_order"} <= set(trainer.callback_metrics)
    mean = torch.cat([b.state[b.observed] for b in data.state_batches()]).mean(0)
    for member, old in zip(members_of(whole), before, strict=True):
        assert torch.allclose(member.observer.state_mean, mean, atol=1e-4) and float(member.observer.state_count) > 100
        assert not torch.equal(weight(member), old)
    half, data = fresh()
    fit(half, data, tmp_path, 1).save_checkpoint(tmp_path / "half.ckpt")
    resumed, data = fresh()
    fit(resumed, data, tmp_path, 2, ckpt_path=tmp_path / "half.ckpt")
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
    whole.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "component.json").read_text())["init_args"]["size"] == 3
    batch = next(iter(data.val_dataloader()))
    again = EnsembleReward.from_pretrained(tmp_path / "model")(batch)
    assert torch.equal(again.rewards, whole.eval()(batch).rewards)


def logs(rng, far=0.0, rows=12, steps=5):
    """The first number is progress; the others are of no use, and in one group of episodes far from where they were."""
    t = np.broadcast_to(np.linspace(0, 1, steps + 1)[None, :, None], (rows, steps + 1, 1))
    idle = rng.uniform(-1, 1, (rows, 1, 3)) + far
    state = np.concatenate([t, np.repeat(idle, steps + 1, 1)], 2)
    batch = TrajectoryBatch(
        state=torch.tensor(state, dtype=torch.float32),
        actions=torch.zeros(rows, steps, 0),
        mask=torch.ones(rows, steps, dtype=torch.bool),
    )
    return with_targets(batch)


@pytest.mark.slow
def test_members_disagree_more_on_states_they_were_not_trained_on():
    """Paired over 5 seeds, one-sided t-test."""
    gaps: dict[Spread, list[float]] = {"predictive": [], "levels": []}
    for seed in range(5):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        train, held, away = logs(rng), logs(rng), logs(rng, far=5.0)
        model = EnsembleReward(
            ProgressReward(state_size=4, observer=ObservationEncoder(width=16, layers=0)), size=3, seed=seed
        )
        model.fit_normaliser([train])
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            model.loss(train)["loss"].backward()
            optimizer.step()
        model.eval()
        for model.spread in gaps:
            with torch.no_grad():
                gaps[model.spread].append(float(model(away).std.mean() - model(held).std.mean()))
    for spread, found in gaps.items():
        test: Any = ttest_1samp(found, 0, alternative="greater")
        assert test.pvalue < 0.01, (spread, found)


def test_a_preference_head_compares_only_what_its_member_sees():
    batch = logs(np.random.default_rng(0), rows=6)
    outcome = (torch.arange(6) % 2).float()
    batch = with_success_targets(replace(batch, success=outcome, labels={}))
    member = ProgressReward(
        state_size=4, predicts=["progress", "preference"], observer=ObservationEncoder(width=8, layers=0)
    )
    model = EnsembleReward(member, size=1, seed=2).train()
    kept = bootstrap_weights(batch.episode, 0, seed=2) > 0
    won, lost = int((kept & (outcome == 1)).sum()), int((kept & (outcome == 0)).sum())
    assert 0 < won < 3 or 0 < lost < 3, "the seed leaves something out"
    assert float(model.loss(batch)["preference_pairs"]) == float(member.loss(batch[kept])["preference_pairs"])
    assert float(model.loss(batch)["preference_pairs"]) < float(member.loss(batch)["preference_pairs"])
