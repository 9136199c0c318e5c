"""What critics of action chunks share: which steps can be learned from, ensembles, target networks, proposals."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..backbones.model_inputs import ModelInputs
from ..core.batch import RewardEstimates, TrajectoryBatch
from ..core.interfaces import Critic, Proposer
from ..core.returns import chunk_td_targets
from .networks import ChunkNetwork

Aggregate = Literal["min", "mean", "lcb"]
REPLAN = "replan"
"""Recorded column (B, T), true on the steps at which the acting policy decided anew: the re-plan boundary flag."""


def aggregate(members: Float[Tensor, "K ..."], how: Aggregate, lcb: float | int = 1.0) -> Float[Tensor, "..."]:
    """One number for an ensemble of K: the smallest, the mean, or the mean minus ``lcb`` deviations (ddof = 0).

    For K = 2 the smallest is the mean minus one deviation; for K = 1 all three are the member itself.

    Raises:
        ValueError: If there is no such way, or no member.
    """
    if how not in get_args(Aggregate) or not len(members):
        raise ValueError(f"aggregate {how!r} over {len(members)} members: expected min, mean or lcb, and a member")
    if how == "min":
        return members.amin(0)
    mean = members.mean(0)
    return mean if how == "mean" else mean - lcb * members.std(0, correction=0)


@torch.no_grad()
def polyak(target: nn.Module, online: nn.Module, rate: float | int) -> None:
    """Move a target network: φ⁻ ← rate · φ + (1 − rate) · φ⁻ (ALOE, algorithm 1, line 8); buffers are copied."""
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        if slow is not fast:  # frozen encoders are shared
            slow.lerp_(fast.to(slow.dtype), rate)
    for slow, fast in zip(target.buffers(), online.buffers(), strict=True):
        if slow is not fast:
            slow.copy_(fast)


def replans(batch: TrajectoryBatch) -> Bool[Tensor, "B T"] | None:
    """Where the acting policy decided anew; None where the trajectories do not say.

    Rollouts of a policy say it by their decisions, logs by a recorded column ``"replan"``.
    """
    if "sample" in batch.behaviour:
        decided = torch.zeros(len(batch), batch.mask.shape[1] + 1, dtype=torch.bool, device=batch.mask.device)
        steps = torch.where(batch.decision_step >= 0, batch.decision_step, batch.mask.shape[1])
        return decided.scatter_(1, steps, True)[:, :-1] & batch.mask
    column = batch.recorded.get(REPLAN)
    if column is None or column.values.shape != batch.mask.shape:
        return None
    return column.valid & (column.values > 0) & batch.mask


def chunk_lengths(batch: TrajectoryBatch, horizon: int, across_replans: bool = False) -> Int[Tensor, "B T"]:
    """Steps of the logged chunk that begins at each real step: up to the horizon, the row's end, the next re-plan."""
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    length = (batch.steps[:, None] - index).clamp(max=horizon)
    boundary = None if across_replans else replans(batch)
    if boundary is not None:
        length = torch.minimum(length, _next(boundary, index, after=True) - index)
    return torch.where(batch.mask, length, 0)


def learnable_lengths(
    batch: TrajectoryBatch, rewards: RewardEstimates, horizon: int, across_replans: bool = False
) -> Int[Tensor, "B T"]:
    """Steps n of each chunk whose reward and next observation are known; 0 where there is nothing to learn from.

    A chunk ends before an unknown reward and, where a row is cut without a last observation, one step early: its value
    cannot be bootstrapped from an observation that nobody made.
    """
    index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    unseen = (~batch.last_observed & ~batch.terminated).long()
    length = torch.minimum(chunk_lengths(batch, horizon, across_replans), (batch.steps - unseen)[:, None] - index)
    unknown = ~(rewards.valid & batch.mask)
    return torch.minimum(length, _next(unknown, index, after=False) - index).clamp(min=0)


def _next(flags: Bool[Tensor, "B T"], index: Int[Tensor, " T"], after: bool) -> Int[Tensor, "B T"]:
    """Step of the next flag at (or strictly after) each step; T where none follows."""
    steps = flags.shape[1]
    place = torch.where(flags, index, steps).flip(1).cummin(1).values.flip(1)
    return torch.cat([place[:, 1:], place.new_full((len(place), 1), steps)], 1) if after else place


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """M steps to learn from."""

    rows: Int[Tensor, " M"]
    steps: Int[Tensor, " M"]
    lengths: Int[Tensor, "B T"]
    """n of every step of the batch, 0 where nothing can be learned."""
    weight: Float[Tensor, " M"]


class ChunkCritic(Critic):
    """Base of the critics of action chunks; a subclass writes ``bootstrap`` and ``forward``.

    The target of a chunk is Σ_{k<n} γ^k r_{t+k} + γ^n · bootstrap, with n the steps that were logged of it: up to the
    horizon, the end of the row, the next re-plan (where the trajectories say when the policy planned anew), and the
    first unknown reward. The steps behind n are masked out of the critic's input. Nothing is bootstrapped after a
    termination; everything else (a time limit that does not terminate, a cut, a boundary of fragments) is continued.
    Which ends terminate is said where batches are made (``terminating`` of `EpisodeData`).

    Args:
        network: Q of K members.
        gamma: Discount per control step.
        pessimism: How members become one Q outside the target.
        lcb: Deviations below the mean, for ``"lcb"``.
        polyak_rate: Of the target network, per update.
        source_weights: Weight of the steps of each source, by its number as text; others count 1.
        across_replans: Let logged chunks span re-plans. What they did then depended on what the policy saw on the way,
            and their value as blind chunks comes out too high.
        micro_batch: Chunks valued at a time where no gradient is needed.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        network: ChunkNetwork,
        gamma: float,
        pessimism: Aggregate,
        lcb: float,
        polyak_rate: float,
        source_weights: Mapping[str, float] | None,
        across_replans: bool,
        micro_batch: int,
    ) -> None:
        super().__init__()
        if not 0 <= gamma <= 1 or not 0 < polyak_rate <= 1 or lcb < 0 or micro_batch < 1:
            raise ValueError(
                f"gamma {gamma}, polyak_rate {polyak_rate}, lcb {lcb}, micro_batch {micro_batch}: expected gamma in "
                "[0, 1], a rate in (0, 1], no negative bound, and at least one chunk at a time"
            )
        if pessimism not in get_args(Aggregate):
            raise ValueError(f"pessimism {pessimism!r}: expected min, mean or lcb")
        wrong = [k for k, v in (source_weights or {}).items() if not k.lstrip("-").isdigit() or not 0 <= v < torch.inf]
        if wrong:
            raise ValueError(
                f"source_weights[{wrong[0]!r}]: expected the number of a source, and a weight of 0 or more"
            )
        self.network, self.target = network, network.twin()
        self.gamma, self.lcb, self.polyak_rate = gamma, lcb, polyak_rate
        self.pessimism: Aggregate = pessimism
        self.source_weights = {int(k): float(v) for k, v in (source_weights or {}).items()}
        self.across_replans, self.micro_batch = across_replans, micro_batch
        self._warned = False

    @property
    def horizon(self) -> int:
        """Steps of a chunk at most."""
        return self.network.horizon

    @property
    def inputs(self) -> ModelInputs:
        """What the critic reads."""
        return self.network.inputs

    def train(self, mode: bool = True) -> "ChunkCritic":
        """Switch mode; the target network stays in evaluation mode."""
        super().train(mode)
        self.target.eval()
        return self

    @torch.no_grad()
    def fit_scales(self, batch: TrajectoryBatch) -> None:
        """Take the scales of states and actions from a batch, for the network and its target."""
        self.network.fit(batch.state[batch.made], batch.actions[batch.mask])
        for mine, theirs in zip(self.target.buffers(), self.network.buffers(), strict=True):
            mine.copy_(theirs)

    def after_step(self) -> None:
        """Move the target network."""
        polyak(self.target, self.network, self.polyak_rate)

    def pessimistic(self, members: Float[Tensor, "K ..."]) -> Float[Tensor, "..."]:
        """One Q for the members."""
        return aggregate(members, self.pessimism, self.lcb)

    def points(self, batch: TrajectoryBatch, rewards: RewardEstimates) -> Points:
        """Steps to learn from: real, of positive weight, with a known reward and a known continuation.

        Raises:
            ValueError: If a known reward is NaN or infinite.
        """
        wrong = rewards.valid & batch.mask & ~rewards.rewards.isfinite()
        if bool(wrong.any()):
            row, step = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"the reward of episode {int(batch.episode[row])} is {float(rewards.rewards[row, step])} at step "
                f"{step}, and counts as known: mark it invalid, or repair the episode"
            )
        lengths = learnable_lengths(batch, rewards, self.horizon, self.across_replans)
        self._warn_of_replans(batch)
        weight = batch.weight.clone()
        for source, factor in self.source_weights.items():
            weight[batch.source == source] *= factor
        rows, steps = ((lengths > 0) & (weight > 0)).nonzero(as_tuple=True)
        return Points(rows=rows, steps=steps, lengths=lengths, weight=weight[rows, steps])

    def _warn_of_replans(self, batch: TrajectoryBatch) -> None:
        if self._warned or self.horizon == 1:
            return
        boundary = replans(batch)
        if self.across_replans and boundary is not None:
            # the first decision of a row is the beginning of a chunk, not a boundary inside one
            reason = "span re-plans of the policy that acted" if bool(boundary[:, 1:].any()) else ""
        else:
            reason = "" if boundary is not None else "may span re-plans: these trajectories do not say where there were"
        if reason:
            self._warned = True
            warnings.warn(
                f"logged chunks of {self.horizon} steps {reason}. Their later actions may have answered to what was "
                "seen on the way, and their value as blind chunks then comes out too high. Take the steps that were "
                f'executed as horizon, or record a column "{REPLAN}"',
                stacklevel=3,
            )

    def targets(
        self, batch: TrajectoryBatch, rewards: RewardEstimates, points: Points, proposer: Proposer | None
    ) -> Float[Tensor, "J M"]:
        """What to regress to at the points: one for all members (J = 1), or one for each (J = K).

        Bootstrap values are asked for once per observation that some chunk ends at.
        """
        rows, steps, length = points.rows, points.steps, points.lengths
        end = steps + length[rows, steps]
        continued = ~(batch.terminated[rows] & (end == batch.steps[rows]))
        wanted = torch.zeros(len(batch), batch.mask.shape[1] + 1, dtype=torch.bool, device=end.device)
        wanted[rows[continued], end[continued]] = True
        at_rows, at_steps = wanted.nonzero(as_tuple=True)
        count = 1
        value = torch.zeros(1, 0, device=batch.state.device)
        if len(at_rows):
            value = self.bootstrap(batch, at_rows, at_steps, proposer).to(batch.state.device)
            count = len(value)
        next_values = value.new_zeros(count, *wanted.shape)
        next_values[:, at_rows, at_steps] = value
        known = torch.where(rewards.valid & batch.mask, rewards.rewards, 0.0)
        found = [
            chunk_td_targets(known, values, batch.mask, batch.terminated, length.clamp(min=1), self.gamma)
            for values in next_values
        ]
        return torch.stack(found)[:, rows, steps]

    def bootstrap(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], proposer: Proposer | None
    ) -> Float[Tensor, "J M"]:
        """Value of going on from M observations, without gradients: one for all members, or one for each."""
        raise NotImplementedError(f"{type(self).__name__} does not bootstrap: write bootstrap(batch, rows, steps, …)")

    def loss(
        self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None
    ) -> dict[str, Tensor]:
        """Squared error of every member at every step that can be learned from (ALOE, equation 8), and figures.

        Raises:
            ValueError: If a known reward is not finite, or widths do not fit.
        """
        points = self.points(batch, rewards)
        if not len(points.rows):
            return {"loss": torch.stack([p.sum() for p in self.network.parameters() if p.requires_grad]).sum() * 0.0}
        with torch.no_grad():
            targets = self.targets(batch, rewards, points, proposer).to(self.network.fitted.device)
        members = self.logged_members(batch, points.rows, points.steps, points.lengths)
        weight = points.weight.to(members.device)
        error = (members - targets).square().mean(0)
        loss = (error * weight).sum() / weight.sum()
        with torch.no_grad():
            figures = {
                "td_error": ((members - targets).mean(0).abs() * weight).sum() / weight.sum(),
                "q": members.mean(),
                "target": targets.mean(),
                "spread": members.std(0, correction=0).mean(),
            }
        return {"loss": loss, **figures}

    def logged_members(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], lengths: Int[Tensor, "B T"]
    ) -> Float[Tensor, "K M"]:
        """Q of each member for the logged chunks that begin at M steps."""
        offset = torch.arange(self.horizon, device=rows.device)
        mask = offset < lengths[rows, steps][:, None]
        index = (steps[:, None] + offset).clamp(max=batch.mask.shape[1] - 1)
        chunk = batch.actions[rows[:, None], index]
        return self.network(batch.observe(rows, steps), chunk, mask)

    @torch.no_grad()
    def logged_q(self, batch: TrajectoryBatch) -> Float[Tensor, "K B T"]:
        """Q of each member for the logged chunk at every real step; 0 on padding."""
        lengths = chunk_lengths(batch, self.horizon, self.across_replans)
        found = torch.zeros(self.network.members, *batch.mask.shape, device=batch.state.device)
        rows, steps = batch.mask.nonzero(as_tuple=True)
        for part in torch.arange(len(rows), device=rows.device).split(self.micro_batch):
            members = self.logged_members(batch, rows[part], steps[part], lengths)
            found[:, rows[part], steps[part]] = members.to(found.device)
        return found

    def proposals(
        self,
        batch: TrajectoryBatch,
        rows: Int[Tensor, " M"],
        steps: Int[Tensor, " M"],
        count: int,
        proposer: Proposer | None,
    ) -> Float[Tensor, "n M H A"]:
        """Chunks of the current policy at M observations, cut to the critic's horizon.

        Raises:
            ValueError: If nobody proposes, or what is proposed does not fit.
        """
        if proposer is None:
            raise ValueError(
                f"{type(self).__name__} values observations by chunks of the current policy: pass a proposer, such as "
                "guerdon.policies.proposer.PolicyProposer(policy)"
            )
        chunks = proposer(batch, rows, steps, count)
        if chunks.ndim != 4 or chunks.shape[:2] != (count, len(rows)) or not chunks.shape[2]:
            raise ValueError(f"proposer: expected chunks ({count}, {len(rows)}, H, A), got {tuple(chunks.shape)}")
        if chunks.shape[3] != self.network.action_size:
            raise ValueError(
                f"the policy proposes actions of {chunks.shape[3]} dimensions, the critic was made for "
                f"{self.network.action_size}: they belong to different robots, or one pads its actions"
            )
        if not bool(chunks.isfinite().all()):
            raise ValueError("the policy proposed an action that is NaN or infinite: it diverged, or its input did")
        return chunks[:, :, : self.horizon].detach()

    @torch.no_grad()
    def proposed_q(
        self,
        network: ChunkNetwork,
        batch: TrajectoryBatch,
        rows: Int[Tensor, " M"],
        steps: Int[Tensor, " M"],
        chunks: Float[Tensor, "n M H A"],
    ) -> Float[Tensor, "K n M"]:
        """Q of each member for n chunks at each of M observations."""
        count, points, length = chunks.shape[:3]
        found: list[Tensor] = []
        for part in torch.arange(points, device=rows.device).split(max(1, self.micro_batch // count)):
            observation = batch.observe(rows[part], steps[part])
            again = torch.arange(len(part), device=rows.device).repeat(count)
            mask = torch.ones(len(again), length, dtype=torch.bool, device=chunks.device)
            flat = chunks[:, part.to(chunks.device)].flatten(0, 1)
            found.append(network(observation[again], flat, mask).unflatten(1, (count, len(part))))
        return torch.cat(found, 2) if found else torch.zeros(network.members, count, 0, device=chunks.device)


__all__ = [
    "REPLAN",
    "Aggregate",
    "ChunkCritic",
    "Points",
    "aggregate",
    "chunk_lengths",
    "learnable_lengths",
    "polyak",
    "replans",
]
