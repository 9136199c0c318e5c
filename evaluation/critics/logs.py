"""Values of a critic along logged episodes, with the returns of the log."""

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
    """Values along one episode of L steps; NaN where a value is unknown."""

    place: int
    """Place in the data set."""
    episode: int
    """Number of the episode."""
    success: float | None
    """Outcome in [0, 1]; None if it is unknown."""
    source: int
    """Number of the source that acted."""
    v: Float[np.ndarray, " L"]
    """V of the observations at which an action was taken. What follows a termination has no value."""
    q: Float[np.ndarray, " L"] | None
    """Pessimistic Q of the logged chunk at each step; None for a critic of observations only."""
    members: Float[np.ndarray, "K L"] | None
    """Q of each member for the logged chunk at each step; None without an ensemble."""
    returns: Float[np.ndarray, " L"]
    """Discounted return of the log, where the episode terminated and every later reward is known."""
    residual: Float[np.ndarray, " L"]
    """Target of the step (or chunk) under the critic's own V, minus its Q (or V)."""
    replan: Bool[np.ndarray, " L"] | None
    """Steps at which the acting policy decided anew; None if the log does not record them."""

    @property
    def outcome(self) -> str:
        """Outcome as a word: ``success``, ``failure`` or ``unknown``; a partial success counts as a failure."""
        return "unknown" if self.success is None else "success" if self.success >= 1 else "failure"


class LogReader:
    """Reader of episodes for a critic and for the reward that its values are compared with.

    Args:
        critic: Critic on its device, in evaluation mode.
        reward: Reward model on the same device.
        dataset: Data set that is read.
        terminating: Ends after which nothing is bootstrapped.
        proposer: Source of the policy's chunks, for a critic that needs them.
        cache: Cache of a frozen encoder's features.

    Raises:
        ValueError: If the data do not fit the critic, or it has no discount factor.
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
            raise ValueError(
                f"{type(critic).__name__} has no attribute gamma: which returns it predicts is not known; give it one"
            )
        self.gamma = float(gamma)
        self.device = next((p.device for p in critic.parameters()), torch.device("cpu"))

    @property
    def horizon(self) -> int:
        """Number of steps in the critic's chunks; 1 for a critic of observations only."""
        return self.critic.horizon if isinstance(self.critic, ChunkCritic) else 1

    def batch(
        self, places: Sequence[int], bad: dict[int, BadEpisodeError]
    ) -> tuple[TrajectoryBatch | None, list[tuple[int, Episode]]]:
        """Read whole episodes.

        Args:
            places: Places in the data set.
            bad: Filled with the episodes that turn out to be broken, by number.

        Returns:
            A batch on the critic's device, None if no episode is left, and place and episode of each row.
        """
        batch, episodes = read_usable(self.reader, self.critic, places, bad)
        where = {self.reader(place).index: place for place in places}
        return (None if batch is None else batch.to(self.device)), [(where[e.index], e) for e in episodes]

    def rewards(self, batch: TrajectoryBatch, episodes: Sequence[Episode]) -> RewardEstimates:
        """Compute the rewards of a batch.

        Args:
            batch: Episodes as the critic reads them.
            episodes: The same episodes, for a reward with inputs of its own.

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
                f"of episode {int(batch.episode[row])}: mark it invalid, or repair the episode"
            )
        return found

    @torch.no_grad()
    def values(self, places: Sequence[int], bad: dict[int, BadEpisodeError]) -> list[LoggedValues]:
        """Estimate the values along some episodes, read and valued together.

        Args:
            places: Places in the data set.
            bad: Filled with the episodes that turn out to be broken, by number.

        Raises:
            ValueError: If the critic needs chunks of a policy and there is no proposer, or a value is not finite.
        """
        batch, episodes = self.batch(places, bad)
        if batch is None:
            return []
        try:
            estimates = self.critic(batch, self.proposer)
        except ValueError as error:
            if self.proposer is None and "proposer" in str(error):
                raise ValueError(
                    f"{type(self.critic).__name__} values observations by chunks of a policy: name it with --policy DIR"
                ) from error
            raise
        wrong = (batch.mask & ~estimates.v[:, :-1].isfinite()).any(1)
        if bool(wrong.any()):
            episode = int(batch.episode[wrong][0])
            raise ValueError(
                f"the critic gave NaN or infinity as a value in episode {episode}: it diverged; train it again with a "
                "lower learning rate"
            )
        rewards = self.rewards(batch, [episode for _, episode in episodes])
        returns, known = returns_to_go(batch, rewards, self.gamma)
        if isinstance(self.critic, ChunkCritic):
            lengths = self.critic.lengths(batch, rewards)
        else:
            lengths = learnable_lengths(batch, rewards, 1)
        paid = torch.where(rewards.valid & batch.mask, rewards.rewards, 0.0)
        target = chunk_td_targets(paid, estimates.v, batch.mask, batch.terminated, lengths.clamp(min=1), self.gamma)
        residual = target - (estimates.v[:, :-1] if estimates.q is None else estimates.q)
        columns = {
            "v": estimates.v[:, :-1],
            "returns": torch.where(known, returns, torch.nan),
            "residual": torch.where(lengths > 0, residual, torch.nan),
        }
        arrays = {name: values.double().cpu().numpy() for name, values in columns.items()}
        q = None if estimates.q is None else estimates.q.double().cpu().numpy()
        members = None if estimates.members is None else estimates.members.double().cpu().numpy()
        boundary = replans(batch)
        found: list[LoggedValues] = []
        for row, (place, episode) in enumerate(episodes):
            real = slice(episode.steps)
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
    """Concatenate a column of all episodes.

    Args:
        found: Values of the episodes.
        name: Name of the field of `LoggedValues`.
    """
    return np.concatenate([getattr(one, name) for one in found]) if found else np.zeros(0)


def episode_of_steps(found: Sequence[LoggedValues]) -> Int[np.ndarray, " N"]:
    """Return the number of the episode of each step of `joined_steps`."""
    return np.repeat([one.episode for one in found], [len(one.v) for one in found])


__all__ = ["LogReader", "LoggedValues", "episode_of_steps", "joined_steps"]
