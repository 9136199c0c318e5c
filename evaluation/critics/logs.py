"""What a critic says along logged episodes, beside what came of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ...backbones.model_inputs import inputs_of
from ...core.batch import RewardEstimates, TrajectoryBatch
from ...core.interfaces import Critic, Proposer, RewardModel
from ...core.returns import chunk_td_targets
from ...critics.chunks import ChunkCritic
from ...critics.logged import learnable_lengths, replans
from ...critics.monte_carlo import returns_to_go
from ...datasets.episodes import BadEpisodeError, Episode, EpisodeDataset
from ...datasets.features import FeatureCache
from ...datasets.model_reader import model_reader, read_for, read_usable


@dataclass(frozen=True, kw_only=True, eq=False)
class LoggedValues:
    """One episode of L steps; NaN where nothing is known."""

    place: int
    """In the data set."""
    episode: int
    success: float | None
    source: int
    v: Float[np.ndarray, " L"]
    """Of the observations that something was done at. What follows a termination has no value."""
    q: Float[np.ndarray, " L"] | None
    members: Float[np.ndarray, "K L"] | None
    returns: Float[np.ndarray, " L"]
    """Discounted return of the log, where the episode terminated and every later reward is known."""
    residual: Float[np.ndarray, " L"]
    """Target of the step (or chunk) under the critic's own V, minus its Q (or V)."""
    replan: Bool[np.ndarray, " L"] | None
    """Where the policy that acted decided anew."""

    @property
    def outcome(self) -> str:
        """``success``, ``failure`` or ``unknown``; what is partly done has failed."""
        return "unknown" if self.success is None else "success" if self.success >= 1 else "failure"


class LogReader:
    """Reads episodes for a critic and for the reward it is judged by.

    Args:
        critic: On its device, in evaluation mode.
        reward: On the same device.
        dataset: Where from.
        terminating: Ends after which nothing is bootstrapped.
        proposer: Chunks of the policy, where the critic needs them.
        cache: Of a frozen encoder's features.

    Raises:
        ValueError: If the data do not fit the critic, or it does not say its discount.
    """

    def __init__(
        self,
        critic: Critic,
        reward: RewardModel,
        dataset: EpisodeDataset,
        terminating: Iterable[int],
        proposer: Proposer | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self.critic, self.reward, self.proposer = critic, reward, proposer
        ends = frozenset(terminating)
        self.reader = model_reader(critic, dataset, cache)
        self.reader.terminating = ends
        reads = inputs_of(reward)
        self._own = model_reader(reward, dataset, cache) if reads.cameras or reads.state_size else None
        if self._own is not None:
            self._own.terminating = ends
        gamma = getattr(critic, "gamma", None)
        if gamma is None:
            raise ValueError(f"{type(critic).__name__} has no attribute gamma: which returns it predicts is not known")
        self.gamma = float(gamma)
        self.device = next((p.device for p in critic.parameters()), torch.device("cpu"))

    @property
    def horizon(self) -> int:
        """Steps of the critic's chunks; 1 where it values observations only."""
        return self.critic.horizon if isinstance(self.critic, ChunkCritic) else 1

    def batch(
        self, places: Sequence[int], bad: dict[int, BadEpisodeError]
    ) -> tuple[TrajectoryBatch | None, list[tuple[int, Episode]]]:
        """Whole episodes on the critic's device, and which they are; those that turn out to be broken go to ``bad``."""
        batch, episodes = read_usable(self.reader, self.critic, places, bad)
        where = {self.reader(place).index: place for place in places}
        return (None if batch is None else batch.to(self.device)), [(where[e.index], e) for e in episodes]

    def rewards(self, batch: TrajectoryBatch, episodes: Sequence[Episode]) -> RewardEstimates:
        """What the reward pays along a batch.

        Raises:
            ValueError: If a reward that counts as known is not finite.
        """
        shown = batch if self._own is None else read_for(self._own, self.reward, episodes).to(self.device)
        with torch.no_grad():
            found = self.reward(shown)
        wrong = found.valid & batch.mask & ~found.rewards.isfinite()
        if bool(wrong.any()):
            row, step = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"{type(self.reward).__name__} gave {float(found.rewards[row, step])} as a known reward at step {step} "
                f"of episode {int(batch.episode[row])}"
            )
        return found

    @torch.no_grad()
    def values(self, places: Sequence[int], bad: dict[int, BadEpisodeError]) -> list[LoggedValues]:
        """What the critic says of some episodes, read and valued together.

        Raises:
            ValueError: If the critic needs chunks of a policy and has none, or gives what is not a number.
        """
        batch, episodes = self.batch(places, bad)
        if batch is None:
            return []
        try:
            said = self.critic(batch, self.proposer)
        except ValueError as error:
            if self.proposer is None and "proposer" in str(error):
                raise ValueError(
                    f"{type(self.critic).__name__} values observations by chunks of a policy: name it with --policy DIR"
                ) from error
            raise
        rewards = self.rewards(batch, [episode for _, episode in episodes])
        returns, known = returns_to_go(batch, rewards, self.gamma)
        if isinstance(self.critic, ChunkCritic):
            lengths = self.critic.lengths(batch, rewards)
        else:
            lengths = learnable_lengths(batch, rewards, 1)
        paid = torch.where(rewards.valid & batch.mask, rewards.rewards, 0.0)
        target = chunk_td_targets(paid, said.v, batch.mask, batch.terminated, lengths.clamp(min=1), self.gamma)
        residual = target - (said.v[:, :-1] if said.q is None else said.q)
        columns = {
            "v": said.v[:, :-1],
            "returns": torch.where(known, returns, torch.nan),
            "residual": torch.where(lengths > 0, residual, torch.nan),
        }
        arrays = {name: values.double().cpu().numpy() for name, values in columns.items()}
        q = None if said.q is None else said.q.double().cpu().numpy()
        members = None if said.members is None else said.members.double().cpu().numpy()
        boundary = replans(batch)
        found: list[LoggedValues] = []
        for row, (place, episode) in enumerate(episodes):
            real = slice(episode.steps)
            if not np.isfinite(arrays["v"][row, real]).all():
                raise ValueError(f"the critic gave NaN or infinity as a value in episode {episode.index}: it diverged")
            found.append(
                LoggedValues(
                    place=place,
                    episode=episode.index,
                    success=episode.success,
                    source=episode.source,
                    q=None if q is None else q[row, real],
                    members=None if members is None else members[:, row, real],
                    replan=None if boundary is None else boundary[row, real].cpu().numpy(),
                    **{name: values[row, real] for name, values in arrays.items()},
                )
            )
        return found


def joined_steps(found: Sequence[LoggedValues], name: str) -> Float[np.ndarray, " N"]:
    """A column of all episodes, end to end."""
    return np.concatenate([getattr(one, name) for one in found]) if found else np.zeros(0)


def episode_of_steps(found: Sequence[LoggedValues]) -> Int[np.ndarray, " N"]:
    """The episode of each step of `joined_steps`."""
    return np.repeat([one.episode for one in found], [len(one.v) for one in found])


__all__ = ["LogReader", "LoggedValues", "episode_of_steps", "joined_steps"]
