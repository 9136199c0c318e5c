"""Base of the critics of action chunks: targets, ensembles, target networks, proposals."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..backbones.model_inputs import ModelInputs
from ..core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.interfaces import Critic, Proposer
from ..core.returns import chunk_td_targets
from ..core.sizes import require_sizes
from .ensembles import Aggregate, Aggregation, aggregate, polyak
from .logged import REPLAN, LoggedChunks, Tails, chunk_lengths, learnable_lengths, replans
from .networks import ChunkNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """M steps to learn from."""

    rows: Int[Tensor, " M"]
    """Row of each step in the batch."""
    steps: Int[Tensor, " M"]
    """Number of each step in its row."""
    lengths: Int[Tensor, "B T"]
    """Number n of steps of the chunk that begins at each step of the batch; 0 where nothing can be learned."""
    weight: Float[Tensor, " M"]
    """Weight of each step, above 0."""


class ChunkCritic(Critic):
    """Base of the critics of action chunks; a subclass writes ``bootstrap`` and ``forward``.

    The target of a chunk is Σ_{k<n} γ^k r_{t+k} + γ^n · bootstrap. Here n is the number of logged steps of the chunk:
    up to the horizon, the end of the row, the next re-plan (where the trajectories record when the policy planned
    anew), and the first unknown reward. Nothing is bootstrapped after a termination. Everything else is continued: a
    time limit that does not terminate, a cut, a boundary of fragments. Which ends terminate is set where batches are
    made (``terminating`` of `EpisodeData`).

    The critic is shown n steps, and the rest is masked out. A chunk that a termination cuts short is shown whole,
    though (``tails`` of `LoggedChunks`). A short chunk would show the critic that the episode ends in n steps, all
    whole chunks would be ones that did not end it, and a chunk of the policy, which is always whole, would be valued as
    if it never could.

    Args:
        network: Ensemble of K Q-networks.
        gamma: Discount factor per control step, in [0, 1].
        polyak_rate: Share of the network that its target takes over in each update, in (0, 1].
        micro_batch: Number of chunks that are valued at a time where no gradient is needed.
        aggregation: Reduction of the members to one pessimistic Q outside of the targets.
        logged: Rules for reading logged chunks; None takes the defaults of `LoggedChunks`.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        network: ChunkNetwork,
        gamma: float,
        polyak_rate: float,
        micro_batch: int,
        aggregation: Aggregation,
        logged: LoggedChunks | None,
    ) -> None:
        super().__init__()
        if not 0 <= gamma <= 1 or not 0 < polyak_rate <= 1 or micro_batch < 1:
            raise ValueError(
                f"gamma {gamma}, polyak_rate {polyak_rate}, micro_batch {micro_batch}: expected gamma in [0, 1], a "
                "rate in (0, 1], and at least one chunk at a time"
            )
        self.network, self.target = network, network.twin()
        self.gamma, self.polyak_rate, self.micro_batch = gamma, polyak_rate, micro_batch
        self.aggregation, self.logged = aggregation, LoggedChunks() if logged is None else logged

    @property
    def horizon(self) -> int:
        """Largest number of steps in a chunk."""
        return self.network.horizon

    @property
    def inputs(self) -> ModelInputs:
        """Inputs that the critic reads."""
        return self.network.inputs

    def train(self, mode: bool = True) -> "ChunkCritic":
        """Set the mode; the target network stays in evaluation mode."""
        super().train(mode)
        self.target.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "ChunkCritic":
        """Freeze or unfreeze the network; its target, which follows it, and the encoders stay frozen."""
        super().requires_grad_(requires_grad)
        self.target.requires_grad_(False)  # it shares the encoders
        return self

    @torch.no_grad()
    def fit_scales(self, batch: TrajectoryBatch) -> None:
        """Compute the scales of states and actions from a batch, for the network and its target."""
        self.network.fit(batch.state[batch.made], batch.actions[batch.mask])
        for mine, theirs in zip(self.target.buffers(), self.network.buffers(), strict=True):
            mine.copy_(theirs)

    def after_step(self) -> None:
        """Move the target network."""
        polyak(self.target, self.network, self.polyak_rate)

    def pessimistic(self, members: Float[Tensor, "K ..."]) -> Float[Tensor, "..."]:
        """Reduce the members' Q to one."""
        return self.aggregation(members)

    def points(self, batch: TrajectoryBatch, rewards: RewardEstimates) -> Points:
        """Find the steps to learn from: real, of positive weight, with a known reward and a known continuation.

        Raises:
            ValueError: If a known reward, an action or an observed state is NaN or infinite, or a size is not known.
        """
        if not self.network.built:
            require_sizes(self)
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
        self.logged.warn_of_replans(batch, self.horizon)
        weight = self.logged.weights(batch)
        rows, steps = ((lengths > 0) & (weight > 0)).nonzero(as_tuple=True)
        return Points(rows=rows, steps=steps, lengths=lengths, weight=weight[rows, steps])

    def lengths(self, batch: TrajectoryBatch, rewards: RewardEstimates) -> Int[Tensor, "B T"]:
        """Compute the number n of steps of the chunk at each step; 0 where there is nothing to learn from."""
        return self.logged.learnable(batch, rewards, self.horizon)

    def targets(
        self, batch: TrajectoryBatch, rewards: RewardEstimates, points: Points, proposer: Proposer | None
    ) -> Float[Tensor, "J M"]:
        """Compute the regression targets at the points: one for all members (J = 1), or one for each (J = K).

        Bootstrap values are computed once per observation at which some chunk ends.
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
        """Estimate the value of M observations, without gradients: one for all members (J = 1), or one each (J = K)."""
        raise NotImplementedError(f"{type(self).__name__} does not bootstrap: write bootstrap(batch, rows, steps, …)")

    def loss(
        self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Proposer | None = None
    ) -> dict[str, Tensor]:
        """Compute the mean squared error of all members over the steps to learn from (ALOE, equation 8), and metrics.

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
            metrics = {
                "td_error": ((members - targets).mean(0).abs() * weight).sum() / weight.sum(),
                "q": members.mean(),
                "target": targets.mean(),
                "spread": members.std(0, correction=0).mean(),
            }
        if further:
            metrics["td_loss"] = loss.detach()
        return {"loss": sum(further.values(), loss), **metrics, **{k: v.detach() for k, v in further.items()}}

    def further_losses(
        self,
        batch: TrajectoryBatch,
        rewards: RewardEstimates,
        points: Points,
        members: Float[Tensor, "K M"],
        proposer: Proposer | None,
    ) -> dict[str, Tensor]:
        """Compute further losses by name, to be added to the squared error. Here: none.

        Args:
            batch: Trajectories.
            rewards: Rewards of their steps.
            points: Steps that are learned from.
            members: Q of each member for the logged chunks at the points, with gradients.
            proposer: Source of the current policy's chunks.
        """
        return {}

    def logged_input(
        self, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], lengths: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "M h A"], Bool[Tensor, "M h"]]:
        """Return the logged chunks that begin at M steps as the critic is shown them; see `LoggedChunks.shown`."""
        return self.logged.shown(batch, rows, steps, lengths, self.horizon)

    def logged_members(
        self,
        batch: TrajectoryBatch,
        rows: Int[Tensor, " M"],
        steps: Int[Tensor, " M"],
        lengths: Int[Tensor, "B T"],
        network: ChunkNetwork | None = None,
    ) -> Float[Tensor, "K M"]:
        """Compute the Q of each member for the logged chunks that begin at M steps, by another network if given."""
        chunk, mask = self.logged_input(batch, rows, steps, lengths)
        return (network or self.network)(batch.observe(rows, steps), chunk, mask)

    @torch.no_grad()
    def logged_q(self, batch: TrajectoryBatch) -> Float[Tensor, "K B T"]:
        """Compute the Q of each member for the logged chunk at every real step; 0 on padding."""
        lengths = self.logged.lengths(batch, self.horizon)
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
        """Sample chunks of the current policy at M observations, cut to the critic's horizon.

        Raises:
            ValueError: If there is no proposer, or its chunks do not fit.
        """
        if proposer is None:
            raise ValueError(
                f"{type(self).__name__} values observations by chunks of the current policy: pass a proposer, such as "
                "guerdon.PolicyProposer(policy)"
            )
        if not self.network.built:
            require_sizes(self)
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
        """Compute the Q of each member for n chunks at each of M observations."""
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
        """Return row and step of every observation from 0 to L."""
        index = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device)
        rows, steps = (index <= batch.steps[:, None]).nonzero(as_tuple=True)
        return rows, steps

    @torch.no_grad()
    def estimates(self, batch: TrajectoryBatch, value: Float[Tensor, " M"]) -> ValueEstimates:
        """Gather V as given for ``observations``, and pessimistic Q and members of the logged chunk at every step."""
        v = torch.zeros(len(batch), batch.mask.shape[1] + 1, device=batch.state.device)
        v[self.observations(batch)] = value.to(v.device)
        members = self.logged_q(batch)
        return ValueEstimates(v=v, q=torch.where(batch.mask, self.pessimistic(members), 0.0), members=members)

    @torch.no_grad()
    def valued_by_proposals(
        self, batch: TrajectoryBatch, proposer: Proposer | None, count: int, over: Literal["mean", "max"]
    ) -> ValueEstimates:
        """Estimate values, with V the mean or the largest of the pessimistic Q of ``count`` chunks of the policy.

        Raises:
            ValueError: If there is no proposer, or its chunks do not fit.
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
