"""Evaluation of a critic against re-rolled returns: candidate chunks are executed, then the policy goes on."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.batch import TrajectoryBatch
from ...core.interfaces import Policy, Proposer
from ...core.intervals import bootstrap_interval
from ...critics.chunks import ChunkCritic
from ...critics.logged import chunk_lengths
from ...datasets.episodes import BadEpisodeError, Episode
from ...envs.saved import SavedState
from ...envs.vector import VectorEnv, make_task
from .diagnostics import (
    Calibration,
    Estimate,
    calibration,
    chunk_ranking_auc,
    over_estimation,
    rank_correlation_interval,
)
from .logs import LoggedValues, LogReader
from .reroll import StepReward, Tail, context_of, replay, reroll

ENVS = 8
"""Copies of the task that are stepped together."""


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Settings of re-rolled returns."""

    env: str
    """Name of the task; only its episodes are used."""
    states: int = 32
    """Number of observations of logged episodes to start from, the first of each chosen episode among them."""
    rollouts: int = 4
    """Number of rollouts from each state, and of each candidate chunk there."""
    candidates: int = 4
    """Number of chunks compared at a state: the logged one, then the policy's and random ones in turn."""
    tail: Tail = "failure"
    """Value of what follows the time limit; see `guerdon.evaluation.critics.reroll.reroll`."""
    horizon: int | None = None
    """Time limit of the task, in control steps; None takes its own."""
    seed: int = 0
    """Random seed of the choice of states, of random chunks, of the policy's noise and of intervals."""


@dataclass(frozen=True, kw_only=True)
class RolledOut:
    """Predictions of a critic against re-rolled returns."""

    env: str
    """Name of the task."""
    states: int
    """Number of states that rollouts started from."""
    episodes: int
    """Number of episodes that these states are from."""
    rollouts: int
    """Number of rollouts from each state, and of each candidate chunk."""
    candidates: int
    """Largest number of chunks compared at a state."""
    tail: str
    """Value of what follows the time limit."""
    success: float
    """Share of the policy's own rollouts that succeeded."""
    over_estimation: Estimate
    """V minus the re-rolled return at initial states."""
    v_rank: Estimate
    """Rank correlation of V and the re-rolled return."""
    v_calibration: Calibration
    """Calibration of V against the re-rolled return."""
    q_rank: Estimate
    """Rank correlation of Q of the logged chunk and its re-rolled return."""
    q_calibration: Calibration
    """Calibration of Q of the logged chunk against its re-rolled return."""
    ranking: Estimate
    """Chunk-ranking AUC; ``n`` is the number of states with chunks whose returns differ."""
    ranking_pairs: int
    """Number of pairs of chunks whose returns differ."""
    notes: tuple[str, ...] = ()
    """Remarks on the numbers."""


@dataclass(kw_only=True, eq=False)
class _Start:
    """A state that rollouts start from."""

    values: LoggedValues
    """Its episode."""
    step: int
    """Its place in the episode."""
    left: int
    """Number of steps to the time limit of its episode."""
    saved: SavedState
    """State of the simulator."""
    chunks: list[Float[np.ndarray, "n A"]] = field(default_factory=list[Float[np.ndarray, "n A"]])
    """Candidate chunks, the logged one first."""
    predicted: list[float] = field(default_factory=list[float])
    """Q of each chunk."""


def roll_out(
    found: Sequence[LoggedValues],
    reader: LogReader,
    policy: Policy,
    reward: StepReward,
    setting: Rollouts,
    batch_size: int = 8,
) -> RolledOut:
    """Evaluate a critic against returns that are rolled out again from states of logged episodes.

    Episodes are replayed to the chosen states. There candidate chunks are executed, then the policy goes on.

    Args:
        found: The critic's estimates along the logs.
        reader: Reader of those episodes; its proposer, if any, samples the policy's candidates.
        policy: Policy that acts after a candidate chunk; it is sampled, as the critic's V is a mean over its chunks.
        reward: Reward of a step.
        setting: Task, and numbers of states, rollouts and candidates.
        batch_size: Number of episodes that are valued together.

    Raises:
        ValueError: If no episode is of this task, none can be replayed, or an argument makes no sense.
    """
    if min(setting.states, setting.rollouts) < 1 or setting.candidates < 0:
        raise ValueError(
            f"states {setting.states}, rollouts {setting.rollouts}, candidates {setting.candidates}: expected at least "
            "one state and one rollout, and 0 candidates or more"
        )
    generator = torch.Generator().manual_seed(setting.seed)
    starts: list[_Start] = []
    v: list[Float[np.ndarray, " n"]] = []
    success: list[bool] = []
    returns: list[list[float]] = []
    notes: list[str] = []
    for envs, chosen in _by_seed(found, reader, setting, notes):
        with closing(envs):
            _add_candidates(chosen, reader, envs, setting, batch_size)
            # where a time-out is a failure, a state late in an episode has little time left
            steps = [s.left if setting.tail == "failure" else envs.task.horizon for s in chosen]
            again = partial(
                reroll,
                envs,
                policy,
                rollouts=setting.rollouts,
                gamma=reader.gamma,
                reward=reward,
                tail=setting.tail,
                generator=generator,
            )
            own = again([s.saved for s in chosen], steps=steps)
            v.extend(own.returns)
            success.extend(own.success.ravel().tolist())
            saved = [s.saved for s in chosen for _ in s.chunks]
            limits = [limit for s, limit in zip(chosen, steps, strict=True) for _ in s.chunks]
            tried = again(saved, [chunk for s in chosen for chunk in s.chunks], steps=limits)
            each = iter(tried.mean.tolist())
            returns += [[next(each) for _ in s.chunks] for s in chosen]
        starts += chosen
    return _metrics(starts, np.stack(v), success, returns, setting, notes)


def _by_seed(
    found: Sequence[LoggedValues], reader: LogReader, setting: Rollouts, notes: list[str]
) -> Iterator[tuple[VectorEnv, list[_Start]]]:
    """Yield environments of each task seed in the data, and the states to start from in them."""
    seeds: dict[int, list[LoggedValues]] = {}
    others = unknown = 0
    for one in found:
        episode = reader.reader(one.place)
        try:
            name, seed, _ = context_of(episode)
        except ValueError:
            unknown += 1
            continue
        if name == setting.env:
            seeds.setdefault(seed, []).append(one)
        else:
            others += 1
    if not seeds:
        make_task(setting.env).close()  # an unknown name raises its own error
        raise ValueError(
            f"none of {len(found)} episodes is from {setting.env} ({others} are from other tasks, {unknown} do not "
            "record where they started): only episodes of `guerdon collect` can be rolled out again"
        )
    if others + unknown:
        notes.append(f"{others + unknown} episodes are not from {setting.env} and were not rolled out")
    chooser = np.random.default_rng([setting.seed, 17])
    usable = [(seed, one) for seed, group in seeds.items() for one in group]
    episodes = min(len(usable), -(-setting.states // 2))
    order = chooser.permutation(len(usable))
    share = [setting.states // episodes + (i < setting.states % episodes) for i in range(episodes)]
    broken: list[str] = []
    any_left = False
    for seed in seeds:
        tasks = [make_task(setting.env, setting.horizon, seed) for _ in range(min(ENVS, setting.states))]
        envs = VectorEnv(tasks)
        chosen: list[_Start] = []
        for place, count in zip(order[:episodes].tolist(), share, strict=True):
            of, one = usable[place]
            if of == seed:
                try:
                    chosen += _starts(one, reader.reader(one.place), envs, count, chooser)
                except ValueError as error:
                    broken.append(str(error))
        if chosen:
            any_left = True
            yield envs, chosen
        else:
            envs.close()
    if broken and not any_left:
        raise ValueError(broken[0])
    if broken:
        notes.append(f"{len(broken)} of {episodes} chosen episodes could not be replayed; the first: {broken[0]}")


def _starts(
    values: LoggedValues, episode: Episode, envs: VectorEnv, count: int, chooser: np.random.Generator
) -> list[_Start]:
    """Choose the first observation of an episode and some later ones, never the last, after which nothing was done."""
    horizon = envs.task.horizon
    last = min(episode.steps, horizon)
    later = np.sort(chooser.permutation(np.arange(1, last))[: count - 1]).tolist()
    steps = [0, *later]
    saved = replay(envs.tasks[0], episode, steps)
    return [
        _Start(values=values, step=step, left=horizon - step, saved=state)
        for step, state in zip(steps, saved, strict=True)
    ]


def _add_candidates(
    starts: Sequence[_Start], reader: LogReader, envs: VectorEnv, setting: Rollouts, batch_size: int
) -> None:
    """Add the candidate chunks of every state, and the critic's Q of each."""
    critic = reader.critic
    if not isinstance(critic, ChunkCritic) or not setting.candidates:
        return
    chooser = np.random.default_rng([setting.seed, 18])
    by_place: dict[int, list[_Start]] = {}
    for start in starts:
        by_place.setdefault(start.values.place, []).append(start)
    places, bad = list(by_place), dict[int, BadEpisodeError]()
    for first in range(0, len(places), batch_size):
        batch, episodes = reader.batch(places[first : first + batch_size], bad)
        assert batch is not None, "these episodes were read before"
        pairs = [(row, start) for row, (place, _) in enumerate(episodes) for start in by_place[place]]
        rows = torch.tensor([row for row, _ in pairs], device=batch.state.device)
        steps = torch.tensor([start.step for _, start in pairs], device=batch.state.device)
        lengths = chunk_lengths(batch, critic.horizon, critic.logged.across_replans)
        for (row, start), length in zip(pairs, lengths[rows, steps].tolist(), strict=True):
            assert start.values.q is not None, "a critic of chunks values the logged ones"
            start.chunks.append(batch.actions[row, start.step : start.step + length].cpu().numpy())
            start.predicted.append(float(start.values.q[start.step]))
        for chunks in _proposed(critic, reader.proposer, envs, chooser, setting.candidates - 1, (batch, rows, steps)):
            q = critic.pessimistic(critic.proposed_q(critic.network, batch, rows, steps, chunks)).double().cpu()
            for point, (_, start) in enumerate(pairs):
                start.chunks.extend(chunks[:, point].cpu().numpy())
                start.predicted.extend(q[:, point].tolist())


def _proposed(
    critic: ChunkCritic,
    proposer: Proposer | None,
    envs: VectorEnv,
    chooser: np.random.Generator,
    count: int,
    where: tuple[TrajectoryBatch, Tensor, Tensor],
) -> Iterator[Float[Tensor, "n M H A"]]:
    """Yield the policy's chunks and random ones, half each, the policy's first."""
    batch, rows, steps = where
    own = (count + 1) // 2 if proposer is not None else 0
    if own:
        yield critic.proposals(batch, rows, steps, own, proposer)
    if count - own > 0:
        low, high = envs.task.action_low, envs.task.action_high
        drawn = chooser.uniform(low, high, (count - own, len(rows), critic.horizon, len(low)))
        yield torch.from_numpy(drawn.astype(np.float32)).to(rows.device)


def _metrics(
    starts: Sequence[_Start],
    own: Float[np.ndarray, "M n"],
    success: Sequence[bool],
    returns: Sequence[Sequence[float]],
    setting: Rollouts,
    notes: list[str],
) -> RolledOut:
    """Compute the metrics from predictions and re-rolled returns."""
    episodes = np.array([s.values.episode for s in starts])
    v = np.array([s.values.v[s.step] for s in starts])
    initial = np.array([s.step == 0 for s in starts])
    came = own.mean(1)
    logged_q = np.array([s.predicted[0] if s.predicted else math.nan for s in starts])
    logged_return = np.array([r[0] if r else math.nan for r in returns])
    most = max(len(r) for r in returns)
    table = np.full((2, len(starts), max(most, 1)), np.nan)
    for row, (start, found) in enumerate(zip(starts, returns, strict=True)):
        table[0, row, : len(found)], table[1, row, : len(found)] = start.predicted, found
    ranking = chunk_ranking_auc(table[0], table[1])
    low, high = bootstrap_interval(ranking.by_state, episodes, seed=setting.seed)
    if not most:
        notes.append("no chunks were compared: the critic values observations only, or no candidates were requested")
    return RolledOut(
        env=setting.env,
        states=len(starts),
        episodes=len(set(episodes.tolist())),
        rollouts=setting.rollouts,
        candidates=most,
        tail=setting.tail,
        success=float(np.mean(success)),
        over_estimation=over_estimation(v[initial], came[initial], episodes[initial], setting.seed),
        v_rank=rank_correlation_interval(v, came, episodes, seed=setting.seed),
        v_calibration=calibration(v, came, bins=5),
        q_rank=rank_correlation_interval(logged_q, logged_return, episodes, seed=setting.seed),
        q_calibration=calibration(logged_q, logged_return, bins=5),
        ranking=Estimate(value=ranking.auc, low=low, high=high, n=ranking.states),
        ranking_pairs=ranking.pairs,
        notes=tuple(notes),
    )


__all__ = ["RolledOut", "Rollouts", "roll_out"]
