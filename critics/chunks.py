"""What critics of action chunks share: targets, ensembles, target networks, proposals."""

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..backbones.model_inputs import ModelInputs
from ..core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Critic, Proposer
from ..core.returns import chunk_td_targets
from .ensembles import Aggregate, aggregate, polyak
from .logged import REPLAN, chunk_lengths, learnable_lengths, logged_chunks, replans, shown_lengths, silent_rows
from .networks import ChunkNetwork

Tails = Literal["complete", "mask"]


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
    first unknown reward. Nothing is bootstrapped after a termination; everything else (a time limit that does not
    terminate, a cut, a boundary of fragments) is continued. Which ends terminate is said where batches are made
    (``terminating`` of `EpisodeData`).

    The critic is shown n steps, and the rest is masked out. A chunk that a termination cuts short is shown whole,
    though (``tails``): a short one would tell the critic that the episode ends in n steps, whole ones would be those
    that did not end it, and a chunk of the policy, which is always whole, would be valued as if it never could.

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
        tails: What is shown behind a termination: ``"complete"`` goes on with the plan that the policy had where
            rollouts recorded it (``behaviour["sample"]``), else with the last action again; ``"mask"`` shows nothing.

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
        tails: Tails = "complete",
    ) -> None:
        super().__init__()
        if not 0 <= gamma <= 1 or not 0 < polyak_rate <= 1 or lcb < 0 or micro_batch < 1:
            raise ValueError(
                f"gamma {gamma}, polyak_rate {polyak_rate}, lcb {lcb}, micro_batch {micro_batch}: expected gamma in "
                "[0, 1], a rate in (0, 1], no negative bound, and at least one chunk at a time"
            )
        if pessimism not in get_args(Aggregate) or tails not in get_args(Tails):
            raise ValueError(
                f"pessimism {pessimism!r}, tails {tails!r}: expected min, mean or lcb, and complete or mask"
            )
        for source, factor in (source_weights or {}).items():
            if not re.fullmatch(r"-?[0-9]+", source) or not 0 <= factor < math.inf:
                raise ValueError(
                    f"source_weights[{source!r}] = {factor}: expected the number of a source, and a weight of 0 or more"
                )
        self.network, self.target = network, network.twin()
        self.gamma, self.lcb, self.polyak_rate = gamma, lcb, polyak_rate
        self.pessimism: Aggregate = pessimism
        self.source_weights = {int(k): float(v) for k, v in (source_weights or {}).items()}
        self.across_replans, self.micro_batch = across_replans, micro_batch
        self.tails: Tails = tails
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

    def requires_grad_(self, requires_grad: bool = True) -> "ChunkCritic":
        """Freeze or thaw what learns; the target network, which follows, and encoders stay frozen."""
        super().requires_grad_(requires_grad)
        self.target.requires_grad_(False)  # it shares the encoders
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
            ValueError: If a known reward, an action or an observed state is NaN or infinite.
        """
        wrong = rewards.valid & batch.mask & ~rewards.rewards.isfinite()
        if bool(wrong.any()):
            row, step = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"the reward of episode {int(batch.episode[row])} is {float(rewards.rewards[row, step])} at step "
                f"{step}, and counts as known: mark it invalid, or repair the episode"
            )
        odd = (batch.mask & ~batch.actions.isfinite().all(2)).any(1)
        if self.network.state_size:
            odd |= (batch.made & ~batch.state.isfinite().all(2)).any(1)
        if bool(odd.any()):
            episode = int(batch.episode[odd][0])
            raise ValueError(f"a state or action of episode {episode} is NaN or infinite: repair it, or leave it out")
        lengths = self.lengths(batch, rewards)
        self._warn_of_replans(batch)
        weight = batch.weight.clone()
        for source, factor in self.source_weights.items():
            weight[batch.source == source] *= factor
        rows, steps = ((lengths > 0) & (weight > 0)).nonzero(as_tuple=True)
        return Points(rows=rows, steps=steps, lengths=lengths, weight=weight[rows, steps])

    def lengths(self, batch: TrajectoryBatch, rewards: RewardEstimates) -> Int[Tensor, "B T"]:
        """Steps n of the chunk that begins at each step; 0 where there is nothing to learn from."""
        return learnable_lengths(batch, rewards, self.horizon, self.across_replans)

    def _warn_of_replans(self, batch: TrajectoryBatch) -> None:
        if self._warned or self.horizon == 1:
            return
        boundary = replans(batch)
        if self.across_replans and boundary is not None:
            # the first decision of a row is the beginning of a chunk, not a boundary inside one
            reason = "span re-plans of the policy that acted" if bool(boundary[:, 1:].any()) else ""
        else:
            silent = bool(silent_rows(batch).any())
            reason = "may span re-plans: these trajectories do not all say where there were" if silent else ""
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
            return {"loss": torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0.0}
        with torch.no_grad():
            targets = self.targets(batch, rewards, points, proposer).to(self.network.fitted.device)
        members = self.logged_members(batch, points.rows, points.steps, points.lengths)
        weight = points.weight.to(members.device)
        error = (members - targets).square().mean(0)
        loss = (error * weight).sum() / weight.sum()
        further = self.further_losses(batch, rewards, points, members, proposer)
        with torch.no_grad():
            figures = {
                "td_error": ((members - targets).mean(0).abs() * weight).sum() / weight.sum(),
                "q": members.mean(),
                "target": targets.mean(),
                "spread": members.std(0, correction=0).mean(),
            }
        if further:
            figures["td_loss"] = loss.detach()
        return {"loss": sum(further.values(), loss), **figures, **{k: v.detach() for k, v in further.items()}}

    def further_losses(
        self,
        batch: TrajectoryBatch,
        rewards: RewardEstimates,
        points: Points,
        members: Float[Tensor, "K M"],
        proposer: Proposer | None,
    ) -> dict[str, Tensor]:
        """What a critic minimises beside the squared error, by name: nothing here.

        Args:
            batch: The trajectories.
            rewards: Their rewards.
            points: The steps that are learned from.
            members: Q of each member for the logged chunks at the points, with gradients.
            proposer: The current policy.
        """
        return {}

    def logged_input(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], lengths: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "M h A"], Bool[Tensor, "M h"]]:
        """The logged chunks that begin at M steps as the critic is shown them, and which of their steps it sees."""
        shown = lengths
        if self.tails == "complete":
            shown = shown_lengths(batch, lengths, self.horizon, self.across_replans)
        return logged_chunks(batch, rows, steps, shown[rows, steps], self.horizon)

    def logged_members(
        self,
        batch: TrajectoryBatch,
        rows: Int[Tensor, " M"],
        steps: Int[Tensor, " M"],
        lengths: Int[Tensor, "B T"],
        network: ChunkNetwork | None = None,
    ) -> Float[Tensor, "K M"]:
        """Q of each member for the logged chunks that begin at M steps, by another network if one is given."""
        chunk, mask = self.logged_input(batch, rows, steps, lengths)
        return (network or self.network)(batch.observe(rows, steps), chunk, mask)

    @torch.no_grad()
    def logged_q(self, batch: TrajectoryBatch) -> Float[Tensor, "K B T"]:
        """Q of each member for the logged chunk at every real step; 0 on padding."""
        lengths = chunk_lengths(batch, self.horizon, self.across_replans)
        found = torch.zeros(self.network.members, *batch.mask.shape, device=batch.state.device)
        rows, steps = batch.mask.nonzero(as_tuple=True)
        for part in torch.arange(len(rows), device=rows.device).split(self.micro_batch) if len(rows) else ():
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
        parts = torch.arange(points, device=rows.device).split(max(1, self.micro_batch // count)) if points else ()
        for part in parts:
            observation = batch.observe(rows[part], steps[part])
            again = torch.arange(len(part), device=rows.device).repeat(count)
            mask = torch.ones(len(again), length, dtype=torch.bool, device=chunks.device)
            flat = chunks[:, part.to(chunks.device)].flatten(0, 1)
            found.append(network(observation[again], flat, mask).unflatten(1, (count, len(part))))
        return torch.cat(found, 2) if found else torch.zeros(network.members, count, 0, device=chunks.device)

    def observations(self, batch: TrajectoryBatch) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
        """Row and step of every observation from 0 to L."""
        index = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device)
        rows, steps = (index <= batch.steps[:, None]).nonzero(as_tuple=True)
        return rows, steps

    @torch.no_grad()
    def estimates(self, batch: TrajectoryBatch, value: Float[Tensor, " M"]) -> ValueEstimates:
        """V as given for ``observations``, pessimistic Q and members of the logged chunk at every real step."""
        v = torch.zeros(len(batch), batch.mask.shape[1] + 1, device=batch.state.device)
        v[self.observations(batch)] = value.to(v.device)
        members = self.logged_q(batch)
        return ValueEstimates(v=v, q=torch.where(batch.mask, self.pessimistic(members), 0.0), members=members)

    @torch.no_grad()
    def valued_by_proposals(
        self, batch: TrajectoryBatch, proposer: Proposer | None, count: int, over: Literal["mean", "max"]
    ) -> ValueEstimates:
        """Estimates whose V is the mean, or the largest, of the pessimistic Q of ``count`` chunks of the policy.

        Raises:
            ValueError: If there is no proposer, or what it proposes does not fit.
        """
        rows, steps = self.observations(batch)
        chunks = self.proposals(batch, rows, steps, count, proposer)
        found = self.pessimistic(self.proposed_q(self.network, batch, rows, steps, chunks))
        return self.estimates(batch, found.mean(0) if over == "mean" else found.amax(0))


__all__ = [
    "REPLAN",
    "Aggregate",
    "ChunkCritic",
    "Points",
    "Tails",
    "aggregate",
    "chunk_lengths",
    "learnable_lengths",
    "polyak",
    "replans",
]
