"""Interfaces of the components: reward models, critics, advantage sources, policies and objectives."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .arguments import remember_arguments
from .batch import (
    Advantages,
    Decision,
    End,
    Evaluation,
    Labelled,
    Observation,
    RewardEstimates,
    TrajectoryBatch,
    ValueEstimates,
)
from .hub import load_component, push_component, save_component

C = TypeVar("C", bound="Component")
A = TypeVar("A", bound="AdvantageSource")


class Component(nn.Module):
    """A module whose constructor is its configuration: JSON-able values or other components.

    The arguments are remembered at construction, so ``save_pretrained`` can write them and ``from_pretrained`` can call
    the constructor again.
    """

    frozen_reference: bool = False
    """True for a published backbone that is saved by name and revision: its weights stay out of the saved file."""

    init_args: dict[str, Any]
    """The constructor's arguments by name, defaults included."""

    def __new__(cls: type[C], *args: Any, **kwargs: Any) -> C:  # the one place where arguments pass through unseen
        """Remember the constructor's arguments."""
        # pyright knows the class behind super() as Self only, a type the run-time shape checks do not take
        module = super().__new__(cls)  # pyright: ignore[reportArgumentType]
        # copying and unpickling call __new__ bare, and a wrong call fails in __init__: both leave no record
        remember_arguments(module, cls.__init__, args, kwargs)
        return module

    @classmethod
    def renewed(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """Renew saved constructor arguments that the constructor no longer accepts. Here: none are.

        Args:
            args: Arguments of the constructor by name, as an earlier version may have saved them.
        """
        return dict(args)

    def save_pretrained(self, path: str | Path) -> None:
        """Write a folder that ``from_pretrained`` and ``load_component`` open: see `guerdon.core.hub`."""
        save_component(self, path)

    @classmethod
    def from_pretrained(cls: type[C], path_or_repo: str | Path, revision: str | None = None, trust: bool = False) -> C:
        """Open a saved component and check that it is one of this class.

        Raises:
            TypeError: If the folder holds a component of another class.
        """
        component = load_component(path_or_repo, revision=revision, trust=trust, known=(cls,))
        if not isinstance(component, cls):
            raise TypeError(f"{path_or_repo} holds a {type(component).__name__}, expected a {cls.__name__}")
        return component

    def push_to_hub(self, repo_id: str, private: bool = True) -> str:
        """Upload to the Hugging Face hub, only ever when called; returns the commit's address."""
        return push_component(self, repo_id, private=private)


class RewardModel(Component):
    """Scores every step of every row."""

    causal: bool = True
    """The reward at step t uses nothing after observation t + 1."""

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate rewards (B, T); entries without a basis are invalid, never a made-up number."""
        raise NotImplementedError(f"{type(self).__name__} does not score trajectories: write forward(batch)")

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute the training loss under the key ``"loss"``, its parts under their own names."""
        raise NotImplementedError(
            f"{type(self).__name__} has no loss(batch), so it does not learn from the labels of a data set: use it as "
            "it is, or, if its rewards carry gradients, train it from preferences with guerdon.PreferenceTraining"
        )


@runtime_checkable
class Normalised(Protocol):
    """A model with statistics of its inputs; training calls ``fit_normaliser`` once, before the first update."""

    @property
    def normalised(self) -> bool:
        """Whether the statistics are known, or there are none."""
        ...

    def fit_normaliser(self, batches: Iterable[TrajectoryBatch]) -> None:
        """Fit the statistics on the training data; they are kept in buffers whose names start with ``state_``."""
        ...


@runtime_checkable  # the tests' shape checks ask isinstance
class Proposer(Protocol):
    """Function by which a critic asks the current policy for chunks without owning it."""

    version: int
    """Changes whenever the policy does."""

    def __call__(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], n: int
    ) -> Float[Tensor, "n M H A"]:
        """Sample n chunks at each of M observations."""
        ...


class Critic(Component):
    """Values observations and, where it can, logged actions."""

    def forward(self, batch: TrajectoryBatch, proposer: Proposer | None = None) -> ValueEstimates:
        """Estimate the value of every observation (B, T+1), and of logged actions (B, T) where the critic can."""
        raise NotImplementedError(f"{type(self).__name__} does not value trajectories: write forward(batch)")

    def loss(
        self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None
    ) -> dict[str, Tensor]:
        """Compute the training loss under the key ``"loss"``."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to train: it has no loss(batch, rewards)")

    def after_step(self) -> None:
        """Update what follows an optimizer step, such as target networks; called after every one."""


@dataclass(frozen=True, kw_only=True)
class TaskStage:
    """One stage of a plan."""

    name: str
    description: str = ""
    completion: str = ""
    keypoints: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """The ordered stages of an instruction."""

    instruction: str
    stages: tuple[TaskStage, ...]


class TaskDecomposer(Component):
    """Turns instructions into stages, and trajectories into stage indices."""

    def plan(self, instructions: Sequence[str], first_frames: Sequence[Tensor] | None = None) -> list[TaskPlan]:
        """Propose the ordered stages of every instruction."""
        raise NotImplementedError(f"{type(self).__name__} does not plan: write plan(instructions, first_frames)")

    def segment(self, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool) -> Labelled:
        """Estimate the stage index of every observation (B, T+1)."""
        raise NotImplementedError(f"{type(self).__name__} does not segment: write segment(batch, plans, causal)")

    def completed(self, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool) -> Labelled:
        """Count the completed stages at every observation (B, T+1), in [0, S]; a fraction is progress in the next one.

        Here: the index of the stage, and all S at the last observation of a row that ends in success. A decomposer that
        knows more overrides it; whatever it adds, the stage is the whole part, at most S − 1.
        """
        stage = self.segment(batch, plans, causal)
        stages = torch.tensor([len(plan.stages) for plan in plans], device=stage.values.device)
        place = torch.arange(stage.valid.shape[1], device=stage.values.device)
        done = (batch.end == End.SUCCESS)[:, None] & (place == batch.steps[:, None])
        count = torch.where(done.to(stage.values.device), stages[:, None], stage.values).float()
        return Labelled(values=torch.where(stage.valid, count, 0.0), valid=stage.valid)


class Policy(Component):
    """Chooses chunks of actions and evaluates the log-probability of choosing them."""

    horizon: int
    """H, steps in a chunk."""

    @property
    def hidden_size(self) -> int:
        """Width D of what ``hidden`` returns."""
        raise NotImplementedError(
            f"{type(self).__name__} has no hidden state: write hidden(observation) and hidden_size"
        )

    def hidden(self, observation: Observation) -> Float[Tensor, "M D"]:
        """Compute the hidden state that a value head on the policy reads: the same as ``Evaluation.hidden``."""
        raise NotImplementedError(f"{type(self).__name__} has no hidden state: write hidden(observation)")

    def act(self, observation: Observation, deterministic: bool = False, generator: Any = None) -> Decision:
        """Choose a chunk at each of M observations."""
        raise NotImplementedError(f"{type(self).__name__} does not act: write act(observation)")

    def evaluate(self, observation: Observation, decision: Decision) -> Evaluation:
        """Compute the log-probability of earlier decisions under the policy as it is now."""
        raise NotImplementedError(f"{type(self).__name__} does not evaluate: write evaluate(observation, decision)")

    def imitation_loss(
        self, observation: Observation, chunk: Float[Tensor, "M H A"], chunk_mask: Tensor
    ) -> Float[Tensor, " M"]:
        """Compute the loss of imitating logged chunks, unreduced (M,)."""
        raise NotImplementedError(f"{type(self).__name__} does not imitate: write imitation_loss(…)")


@dataclass(frozen=True, kw_only=True, eq=False)
class Minibatch:
    """M decisions of a batch that are learned from in one update, taken out of the batch once for all that learn."""

    policy: Policy
    """Policy that is trained."""
    rows: Int[Tensor, " M"]
    """Row of each decision in the batch."""
    decisions: Int[Tensor, " M"]
    """Number of each decision in its row: its column in ``decision_step`` and in `Advantages`."""
    steps: Int[Tensor, " M"]
    """Step of each decision."""
    observation: Observation
    """Observations at the decisions."""
    decision: Decision
    """Decisions of the policy that acted."""
    learns: bool = True
    """Whether the policy is trained on the batch; if not, ``evaluation`` carries no gradient."""
    micro_batch: int | None = None
    """Largest number of decisions that are evaluated at a time; None evaluates all at once."""

    @cached_property
    def evaluation(self) -> Evaluation:
        """Evaluation of the decisions under the policy as it is now, computed at its first use.

        It carries gradients where the policy is trained, even if it is first used without (``torch.no_grad``). In
        micro-batches they end at its tensors, and ``propagate`` takes them on to the policy.
        """
        if not self._split:
            with torch.set_grad_enabled(self.learns):
                return self.policy.evaluate(self.observation, self.decision)
        with torch.no_grad():
            parts = [self._evaluate(part) for part in self._split]
        whole = _joined(parts)
        for values in _differentiable(whole) if self.learns else ():
            values.requires_grad_(True)
        return whole

    def propagate(self) -> None:
        """Take the gradients of a loss from ``evaluation`` on to the policy, one micro-batch after another.

        Each is evaluated again, so that the memory is that of one micro-batch whatever the loss averages over. Without
        micro-batches there is nothing to do.
        """
        if not self._split or not self.learns or "evaluation" not in self.__dict__:
            return
        whole = _differentiable(self.evaluation)
        for part in self._split:
            again = _differentiable(self._evaluate(part))
            # a part that is frozen may leave one of them without a graph
            pairs = [
                (a, w.grad[part]) for a, w in zip(again, whole, strict=True) if w.grad is not None and a.requires_grad
            ]
            if pairs:
                torch.autograd.backward([a for a, _ in pairs], [gradient for _, gradient in pairs])

    @cached_property
    def _split(self) -> list[slice]:
        count, size = len(self.rows), self.micro_batch
        return [] if size is None or count <= size else [slice(i, i + size) for i in range(0, count, size)]

    def _evaluate(self, part: slice) -> Evaluation:
        return self.policy.evaluate(self.observation[part], self.decision[part])


def _joined(parts: Sequence[Evaluation]) -> Evaluation:
    first = parts[0]
    return Evaluation(
        log_prob=torch.cat([part.log_prob for part in parts]),
        unit_mask=torch.cat([part.unit_mask for part in parts]),
        entropy=None if first.entropy is None else torch.cat([p.entropy for p in parts if p.entropy is not None]),
        hidden=None if first.hidden is None else torch.cat([p.hidden for p in parts if p.hidden is not None]),
    )


def _differentiable(evaluation: Evaluation) -> list[Tensor]:
    parts = (evaluation.log_prob, evaluation.entropy, evaluation.hidden)
    return [part for part in parts if part is not None]


class AdvantageSource(Component):
    """The only source of learning signal of a policy optimizer; a reward model in it stays in evaluation mode."""

    whole_episodes: bool = False
    """Whether advantages are of whole episodes, so that rollouts must not cut them."""

    def train(self: A, mode: bool = True) -> A:
        """Switch the mode of what learns alongside; reward models stay in evaluation mode."""
        super().train(mode)
        for part in self.children():
            if isinstance(part, RewardModel):
                part.eval()
        return self

    def attach(self, policy: Policy) -> None:
        """Build what depends on the policy, such as a value head on its hidden state. Here: nothing does.

        `PolicyOptimizer` calls this once policy and advantage source know their sizes, before it makes the optimizer.

        Args:
            policy: Policy that is trained; it must not become a part of the advantage source.
        """

    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Score a batch, once, when it was collected."""
        raise NotImplementedError(f"{type(self).__name__} gives no rewards: write estimate(batch)")

    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None) -> Advantages:
        """Compute advantages on the policy's decisions, once per rollout."""
        raise NotImplementedError(f"{type(self).__name__} gives no advantages: write forward(batch, rewards)")

    def loss(
        self, batch: TrajectoryBatch, advantages: Advantages, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]
    ) -> dict[str, Tensor]:
        """Compute the loss of what learns alongside the policy on a minibatch of decisions; empty where nothing does.

        Args:
            batch: The rollout.
            advantages: Result of ``forward`` for that rollout.
            rows: Row of each decision.
            steps: Step of each decision.
        """
        return {}

    _shared: Minibatch | None = None

    def on_minibatch(self, batch: TrajectoryBatch, advantages: Advantages, minibatch: Minibatch) -> dict[str, Tensor]:
        """Compute the loss of what learns alongside the policy on a minibatch; `PolicyOptimizer` calls this.

        Here: ``loss`` of its rows and steps. A subclass whose value is a head on the policy's hidden state overrides
        this one and reads ``minibatch.evaluation.hidden``: the policy is then evaluated once per minibatch, for the
        objective and for the value.

        Args:
            batch: The rollout.
            advantages: Result of ``forward`` for that rollout.
            minibatch: Decisions to learn from.
        """
        self._shared = minibatch
        try:
            return self.loss(batch, advantages, minibatch.rows, minibatch.steps)
        finally:
            self._shared = None

    def taken(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]
    ) -> tuple[Observation, Int[Tensor, " M"]]:
        """Take the observations of M decisions and the decisions' numbers in their rows, for use in ``loss``.

        Within ``on_minibatch`` they are not taken out of the batch again.

        Args:
            batch: The rollout.
            rows: Row of each decision.
            steps: Step of each decision.
        """
        shared = self._shared
        if shared is not None and rows is shared.rows and steps is shared.steps:
            return shared.observation, shared.decisions
        return batch.observe(rows, steps), (batch.decision_step[rows] == steps[:, None]).int().argmax(1)


class Objective(Component):
    """Loss that a policy optimizer minimises on a minibatch of decisions."""

    ratios: bool = False
    """Whether it compares the policy with the one that acted. The policy then learns in evaluation mode, as it acted:
    dropout would move every ratio away from 1."""

    @property
    def whole_rows(self) -> bool:
        """Whether a minibatch must hold all decisions of its rows. Here: it need not."""
        return False

    def attach(self, policy: Policy) -> None:
        """Build what depends on the policy before its first update, such as a reference. Here: nothing does.

        `PolicyOptimizer` calls this once the policy knows its sizes, before a checkpoint is loaded.

        Args:
            policy: Policy that is trained.
        """

    def weights(self, batch: TrajectoryBatch, advantages: Advantages) -> Float[Tensor, "B N"]:
        """Compute the weight of each decision, once per batch, before the passes over it; ``forward`` receives it.

        Here: the weight that its step has in the batch. Padding may hold anything.
        """
        last = max(batch.weight.shape[1] - 1, 0)
        return batch.weight.gather(1, batch.decision_step.clamp(0, last))

    def forward(
        self,
        policy: Policy,
        observation: Observation,
        decision: Decision,
        advantage: Float[Tensor, " M"],
        weight: Float[Tensor, " M"],
    ) -> dict[str, Tensor]:
        """Compute the loss under the key ``"loss"``, and metrics to log under their own names."""
        raise NotImplementedError(f"{type(self).__name__} has no objective: write forward(…)")

    _shared: Minibatch | None = None

    def on_minibatch(
        self, minibatch: Minibatch, advantage: Float[Tensor, " M"], weight: Float[Tensor, " M"]
    ) -> dict[str, Tensor]:
        """Compute ``forward`` on a minibatch; `PolicyOptimizer` calls this.

        Args:
            minibatch: Decisions to learn from.
            advantage: Advantage of each decision.
            weight: Weight of each decision, as ``weights`` returned it.
        """
        self._shared = minibatch
        try:
            return self(minibatch.policy, minibatch.observation, minibatch.decision, advantage, weight)
        finally:
            self._shared = None

    def evaluate(self, policy: Policy, observation: Observation, decision: Decision) -> Evaluation:
        """Evaluate decisions under the policy, for use in ``forward``.

        Within ``on_minibatch`` this is the evaluation that the advantage source reads too, so that the policy is
        evaluated once. ``policy.evaluate`` gives the same, evaluated again.

        Args:
            policy: Policy that is trained.
            observation: M observations.
            decision: Decisions of the policy that acted.
        """
        shared = self._shared
        if shared is not None and observation is shared.observation and decision is shared.decision:
            return shared.evaluation
        return policy.evaluate(observation, decision)
