from dataclasses import replace

import pytest
import torch
from hypothesis import given

from guerdon.core.batch import (
    Decision,
    End,
    Evaluation,
    Labelled,
    RewardEstimates,
    TrajectoryBatch,
    ValueEstimates,
)
from guerdon.core.interfaces import Critic, Policy, RewardModel
from guerdon.testing import check_critic, check_policy, check_reward_model, trajectory_batches


def a_batch():
    length = torch.tensor([5, 3, 1])
    mask = torch.arange(5)[None] < length[:, None]
    return TrajectoryBatch(
        state=torch.randn(3, 6, 2),
        actions=torch.randn(3, 5, 2),
        mask=mask,
        end=torch.tensor([int(End.SUCCESS), int(End.CUT), int(End.FAILURE)]),
        labels={"progress": Labelled(values=torch.rand(3, 6), valid=torch.ones(3, 6, dtype=torch.bool))},
    )


class Linear(RewardModel):
    """A right and simple model: the base of the broken ones."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.layer = torch.nn.Linear(2, 1)

    def value(self, batch):
        shown = torch.where(batch.observed[..., None], batch.state, 0.0)
        return (self.layer(shown).squeeze(-1) * self.scale).sigmoid()

    def forward(self, batch):
        return self.estimates(batch, self.value(batch))

    def estimates(self, batch, value):
        valid = batch.mask & batch.observed[:, 1:]
        seen = batch.observed
        return RewardEstimates(
            rewards=torch.where(valid, value[:, 1:] - value[:, :-1], 0.0),
            valid=valid,
            progress=Labelled(values=torch.where(seen, value, 0.0), valid=seen),
        )

    def loss(self, batch):
        label = batch.labels["progress"]
        error = torch.where(label.valid & batch.observed, self.value(batch) - label.values, 0.0)
        return {"loss": error.square().mean()}


def test_a_right_model_passes_whatever_the_batch():
    check_reward_model(Linear(), a_batch())


@pytest.mark.slow
@given(batch=trajectory_batches(state_size=2, stored_labels=False, cameras=("wrist",)))
def test_a_right_model_passes_on_drawn_batches(batch):
    label = Labelled(values=torch.zeros(batch.observed.shape), valid=batch.observed)
    check_reward_model(Linear(), replace(batch, labels={"progress": label}))


class WrongShape(Linear):
    def forward(self, batch):
        good = super().forward(batch)
        return RewardEstimates(rewards=good.rewards[:, :-1], valid=good.valid[:, :-1])


class ValidOnPadding(Linear):
    def forward(self, batch):
        return replace(super().forward(batch), valid=torch.ones_like(batch.mask))


class NanReward(Linear):
    def forward(self, batch):
        good = super().forward(batch)
        return replace(good, rewards=torch.where(good.valid, torch.nan, 0.0))


class RubbishWhereInvalid(Linear):
    def forward(self, batch):
        good = super().forward(batch)
        return replace(good, rewards=torch.where(good.valid, good.rewards, 7.0))


class ProgressOfTwo(Linear):
    def forward(self, batch):
        good = super().forward(batch)
        assert good.progress is not None
        return replace(good, progress=replace(good.progress, values=2.0 * good.progress.valid))


class SeesPaddingContent(Linear):
    def value(self, batch):
        return super().value(batch) + 0.01 * batch.actions.nan_to_num(5.0).sum((1, 2))[:, None]


class SeesPaddingAmount(Linear):
    def forward(self, batch):
        good = super().forward(batch)
        return replace(good, rewards=good.rewards * batch.mask.shape[1])


class SeesBatchMates(Linear):
    def forward(self, batch):
        good = super().forward(batch)
        return replace(good, rewards=torch.where(good.valid, good.rewards - good.rewards.mean(0), 0.0))


class SeesTheFuture(Linear):
    def forward(self, batch):
        value = self.value(batch) * batch.observed
        return self.estimates(batch, (value.flip(1).cumsum(1).flip(1) / 10).square())


class SeesTheEnd(Linear):
    def forward(self, batch):
        return self.estimates(batch, self.value(batch) * (batch.end == End.SUCCESS).float()[:, None])


class SeesTheLength(Linear):
    def forward(self, batch):
        return self.estimates(batch, self.value(batch) / batch.length[:, None])


class CountsCalls(Linear):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(scale)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch):
        self.calls += 1
        return super().forward(batch)


class Random(Linear):
    def value(self, batch):
        return super().value(batch) * torch.rand(())


class ForgetsAWeight(Linear):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(scale)
        self.hidden = [torch.nn.Linear(2, 1)]  # in a list: not saved

    def value(self, batch):
        return self.hidden[0](torch.where(batch.observed[..., None], batch.state, 0.0)).squeeze(-1).sigmoid()


class NoLoss(Linear):
    def loss(self, batch):
        return {"mistake": super().loss(batch)["loss"]}


class NanLoss(Linear):
    def loss(self, batch):
        return {"loss": super().loss(batch)["loss"] * torch.nan}


class NoGradient(Linear):
    def loss(self, batch):
        return {"loss": super().loss(batch)["loss"].detach()}


class ZeroGradient(Linear):
    def loss(self, batch):
        return {"loss": super().loss(batch)["loss"] * 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongShape, "rewards: expected"),
        (ValidOnPadding, "valid on a step that is not real"),
        (NanReward, "rewards is not a number where valid"),
        (RubbishWhereInvalid, "rewards is not 0 where invalid"),
        (ProgressOfTwo, "progress is not in"),
        (SeesPaddingContent, "other padding"),
        (SeesPaddingAmount, "more padding"),
        (SeesBatchMates, "row 0 alone"),
        (SeesTheFuture, "not causal: with another future"),
        (SeesTheEnd, "not causal"),
        (SeesTheLength, "not causal"),
        (CountsCalls, "changed its state 'calls'"),
        (Random, "evaluating twice"),
        (ForgetsAWeight, "saved and opened again"),
        (NoLoss, "no entry 'loss'"),
        (NanLoss, "not finite"),
        (NoGradient, "carries no gradient"),
        (ZeroGradient, "no parameter gets a gradient"),
    ],
)
def test_every_broken_promise_is_named(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_reward_model(broken(), a_batch())


def test_a_model_that_says_it_is_not_causal_may_look_ahead():
    model = SeesTheFuture()
    model.causal = False
    check_reward_model(model, a_batch())


class LinearCritic(Critic):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, batch, proposer=None):
        seen = batch.observed & (torch.arange(batch.state.shape[1]) <= batch.steps[:, None])
        v = self.layer(torch.where(seen[..., None], batch.state, 0.0)).squeeze(-1)
        return ValueEstimates(v=torch.where(seen, v, 0.0))

    def loss(self, batch, rewards, proposer=None):
        return {"loss": (self.forward(batch).v[:, :-1] - rewards.rewards).square().mean()}


class CriticOfMates(LinearCritic):
    def forward(self, batch, proposer=None):
        v = super().forward(batch).v
        return ValueEstimates(v=v - v[:, :1].mean())


class CriticOfPadding(LinearCritic):
    def forward(self, batch, proposer=None):
        return ValueEstimates(v=super().forward(batch).v + batch.state.nan_to_num(9.0).sum((1, 2))[:, None])


class ShortCritic(LinearCritic):
    def forward(self, batch, proposer=None):
        return ValueEstimates(v=super().forward(batch).v[:, :-1])


def test_check_critic():
    batch = a_batch()
    rewards = Linear().forward(batch).map(torch.detach)
    check_critic(LinearCritic(), batch, rewards)
    for broken, message in (
        (CriticOfMates, "row 0 alone"),
        (CriticOfPadding, "other padding"),
        (ShortCritic, "v: expected"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_critic(broken(), batch, rewards)


class Normal(Policy):
    def __init__(self, horizon: int = 2) -> None:
        super().__init__()
        self.horizon = horizon
        self.layer = torch.nn.Linear(2, 2 * horizon)

    def mean(self, observation):
        return self.layer(observation.state).view(-1, self.horizon, 2)

    def log_prob(self, mean, chunk):
        return torch.distributions.Normal(mean, 1.0).log_prob(chunk).flatten(1)

    def act(self, observation, deterministic=False, generator=None):
        mean = self.mean(observation)
        noise = torch.zeros_like(mean) if deterministic else torch.randn(mean.shape, generator=generator)
        chunk = mean + noise
        return Decision(
            chunk=chunk,
            executed=torch.full((len(chunk),), self.horizon),
            log_prob=self.log_prob(mean, chunk),
        )

    def evaluate(self, observation, decision):
        log_prob = self.log_prob(self.mean(observation), decision.chunk)
        return Evaluation(log_prob=log_prob, unit_mask=torch.ones_like(log_prob, dtype=torch.bool))

    def imitation_loss(self, observation, chunk, chunk_mask):
        return ((self.mean(observation) - chunk).square().sum(-1) * chunk_mask).sum(1)


class IgnoresTheGenerator(Normal):
    def act(self, observation, deterministic=False, generator=None):
        return super().act(observation, deterministic, None)


class OtherLogProb(Normal):
    def log_prob(self, mean, chunk):
        return super().log_prob(mean, chunk) + (0.0 if mean.requires_grad else 1.0)


class ExecutesTooMuch(Normal):
    def act(self, observation, deterministic=False, generator=None):
        good = super().act(observation, deterministic, generator)
        return replace(good, executed=good.executed + 1)


class ImitatesPadding(Normal):
    def imitation_loss(self, observation, chunk, chunk_mask):
        return super().imitation_loss(observation, chunk, torch.ones_like(chunk_mask))


def test_check_policy():
    check_policy(Normal(), a_batch())
    for broken, message in (
        (IgnoresTheGenerator, "same generator"),
        (OtherLogProb, "log_prob of act and of evaluate"),
        (ExecutesTooMuch, "executed is not in"),
        (ImitatesPadding, "where chunk_mask is False"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_policy(broken(), a_batch())


@given(batch=trajectory_batches(min_length=1, max_steps=4, cameras=("a", "b")))
def test_drawn_batches_keep_their_bounds(batch):
    assert 1 <= len(batch) <= 4 and batch.mask.shape[1] <= 4 and bool((batch.steps >= 1).all())
    assert set(batch.frames) == {"a", "b"} and bool((batch.frames["a"].step[:, 0] == 0).all())
    reached = torch.arange(batch.state.shape[1]) <= batch.steps[:, None]
    assert bool(batch.state[reached].isfinite().all()) and bool(batch.state[~reached].isnan().all())
