"""Models whose estimates are read from the state, and episodes for them."""

from dataclasses import replace

import numpy as np
import torch
from scipy.special import expit

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.datasets.episodes import BadEpisodeError, Episode, EpisodeSummary
from guerdon.evaluation.calibration.data import CalibrationData


class Told(RewardModel):
    """Success is state 0, progress state 1 and the spread of the step that leads to an observation state 2."""

    def __init__(self, scale: float = 1.0, spread: bool = True) -> None:
        super().__init__()
        self.scale, self.spread = scale, spread

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        seen, valid = batch.observed & (batch.steps > 0)[:, None], batch.mask & batch.observed[:, 1:]
        state = torch.where(seen[..., None], batch.state, 0.0)
        rewards = torch.where(valid, self.scale * state[..., 1].diff(dim=1), 0.0)
        return RewardEstimates(
            rewards=rewards,
            valid=valid,
            success=Labelled(values=state[..., 0], valid=seen),
            progress=Labelled(values=state[..., 1], valid=seen),
            std=torch.where(valid, state[:, 1:, 2], 0.0) if self.spread else None,
            terms={"progress": rewards},
        )


class Broken(Told):
    """Claims to know what is no number, or has no success."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        found = super().forward(batch)
        if self.what == "absent":
            return replace(found, success=None)
        if self.what == "std":
            return replace(found, std=torch.full_like(found.rewards, torch.inf))
        column = getattr(found, self.what)
        return replace(found, **{self.what: replace(column, values=torch.full_like(column.values, torch.nan))})


class Memory:
    """A data set in memory."""

    name, fps, state_size, action_size, cameras = "memory", 10.0, 3, 1, ()

    def __init__(self, episodes):
        self.episodes = episodes

    def __len__(self):
        return len(self.episodes)

    def summary(self, place):
        episode = self.episodes[place]
        if isinstance(episode, BadEpisodeError):
            return EpisodeSummary(index=episode.index, steps=0)
        return EpisodeSummary(index=episode.index, steps=episode.steps, split=episode.split)

    def __getitem__(self, place):
        if isinstance(self.episodes[place], BadEpisodeError):
            raise self.episodes[place]
        return self.episodes[place]


def episode(index, success, rng, steps=6, split="val", context=""):
    """A model that is too sure: its logit is three times what the outcome allows, and a bit too high."""
    truth = np.linspace(-3, 3 if success else -1, steps + 1) + rng.normal(0, 0.8, steps + 1)
    progress = np.linspace(0, 1 if success else 0.5, steps + 1) ** 2
    state = np.stack([expit(3 * truth + 1), progress, np.abs(rng.normal(0, 0.1, steps + 1))], 1)
    return Episode(
        index=index,
        state=state.astype(np.float32),
        actions=np.zeros((steps, 1), np.float32),
        end=End.CUT if success is None else End.SUCCESS if success else End.TIME_LIMIT,
        success=None if success is None else float(success),
        split=split,
        context=context,
    )


def dataset(count=24, seed=0, **more):
    rng = np.random.default_rng(seed)
    return Memory([episode(i, bool(i % 2), rng, 4 + i % 4, **more) for i in range(count)])


def data(probability, label, episode=None, **more):
    number = np.arange(len(label)) if episode is None else np.asarray(episode)
    return CalibrationData(
        probability=np.asarray(probability, float),
        label=np.asarray(label, float),
        episode=number,
        family=more.pop("family", number),
        **more,
    )


def drawn(count=4000, slope=1.0, bias=0.0, seed=0):
    """Probabilities, and outcomes that happen with σ(slope · logit + bias)."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, count)
    return expit(truth), (rng.random(count) < expit(slope * truth + bias)).astype(float)


def held(success, progress=None, spread=None):
    steps = len(success) - 1
    columns = [success, progress or np.linspace(0, 1, steps + 1).tolist(), [0.0, *(spread or [0.0] * steps)]]
    return TrajectoryBatch(
        state=torch.tensor(columns).T[None],
        actions=torch.zeros(1, steps, 1),
        mask=torch.ones(1, steps, dtype=torch.bool),
        end=torch.tensor([int(End.SUCCESS)]),
    )
