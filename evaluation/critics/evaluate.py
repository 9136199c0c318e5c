"""Evaluation of a critic on a data set: values along the logs, residuals, ensembles, and re-rolled returns."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...core.files import without_nan
from ...datasets.episodes import BadEpisodeError
from ...datasets.joined import joined
from ...datasets.splits import SplitInfo, in_split_each
from ...policies.weights import exponential_weights
from .diagnostics import (
    Calibration,
    Estimate,
    Residual,
    calibration,
    drop,
    effective_sample_share,
    ensemble_correlation,
    rank_correlation_interval,
    spanning_share,
    spread_error_correlation,
    td_residual_by_source,
)
from .logs import LoggedValues, LogReader, episode_of_steps, joined_steps
from .rollouts import RolledOut

OUTCOMES = ("success", "failure", "unknown")


@dataclass(frozen=True, kw_only=True)
class EpisodeMeans:
    """Mean values over the episodes of one outcome."""

    episodes: int
    """Number of episodes."""
    v_start: float
    """V at the first observation."""
    v_end: float
    """V at the last observation at which an action was taken."""
    q_start: float
    """Q of the first logged chunk."""
    q_end: float
    """Q of the last logged chunk."""
    drop: float
    """V at the end minus its maximum before."""


@dataclass(frozen=True, kw_only=True)
class ReturnFit:
    """Predictions against the discounted return of the log: that of the behaviour policy, not of any other."""

    rank: Estimate
    """Rank correlation of prediction and return."""
    calibration: Calibration
    """Calibration of the prediction against the return."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSubject:
    """Identity of what is evaluated, as a report names it."""

    model: Mapping[str, Any]
    """Critic: path, class and hash."""
    reward: str
    """Reward that the returns are sums of, in words."""
    policy: Mapping[str, Any] | None = None
    """Policy that proposed chunks and acted: path, class and hash; None without one."""
    split: str = ""
    """Name of the split; empty for all episodes."""
    version: str = ""
    """Version of this package."""


@dataclass(frozen=True, kw_only=True)
class CriticEvaluation:
    """Metrics of a critic on a data set."""

    model: Mapping[str, Any]
    """Critic: path, class and hash."""
    policy: Mapping[str, Any] | None
    """Policy that proposed chunks and acted: path, class and hash; None without one."""
    reward: str
    """Reward that the returns are sums of, in words."""
    gamma: float
    """Discount factor per control step."""
    data: str
    """Name of the data set."""
    split: str
    """Name of the split; empty for all episodes."""
    version: str
    """Version of this package."""
    counts: Mapping[str, int]
    """Numbers of episodes, steps, episodes of each outcome, steps with a known return, and episodes not used."""
    along: Mapping[str, EpisodeMeans]
    """Mean values along the episodes, by outcome."""
    v: ReturnFit
    """V against the return of the log."""
    q: ReturnFit | None
    """Q of logged chunks against the return of the log; None for a critic of observations only."""
    residuals: Mapping[int, Residual]
    """Temporal-difference residuals, by source."""
    members: int
    """Number K of members; 0 for a critic without an ensemble."""
    member_correlation: float
    """Mean pairwise correlation of the members' values of logged chunks."""
    error_correlation: float
    """Mean pairwise correlation of the members' errors, where the return of the log is known."""
    spread_error: float
    """Rank correlation of the members' standard deviation and the absolute error of their mean."""
    spanning: float
    """Share of logged chunks that go on past a re-plan; NaN if the logs do not record re-plans."""
    weight_share: float
    """Effective share of the samples under weights exp((Q − V)/β) of logged steps, β the standard deviation of Q − V;
    NaN without Q."""
    rolled_out: RolledOut | None
    """Metrics from re-rolled returns; None if none were rolled out."""
    notes: tuple[str, ...]
    """Remarks on the numbers."""
    bad: tuple[Mapping[str, Any], ...]
    """Episodes that were not used: number, status and reason."""

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-able values, with null for what is not known."""
        return {"kind": "critic", **without_nan(dataclasses.asdict(self))}


def read_values(reader: LogReader, split: str, batch_size: int, bad: dict[int, BadEpisodeError]) -> list[LoggedValues]:
    """Estimate the values along every episode of a split.

    Args:
        reader: Reader of the episodes, with the critic.
        split: Name of the split; empty for all episodes.
        batch_size: Number of episodes that are valued together.
        bad: Filled with the episodes that cannot be used, by number.

    Returns:
        Values of each episode, in the order of the data.

    Raises:
        ValueError: If no episode can be used, or the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"expected at least one episode at once, got {batch_size}")
    dataset = joined(reader.reader.dataset)
    usable: list[tuple[int, int]] = []
    sets: list[list[SplitInfo]] = [[] for _ in dataset.datasets]
    for place, episode in reader.reader.usable(bad):
        which, info = dataset.split_info(place, episode)
        sets[which].append(info)
        usable.append((place, episode.steps))
    chosen = [usable[i] for i in in_split_each(sets, split, dataset.name)]
    chosen.sort(key=lambda one: (one[1], one[0]))
    found: list[LoggedValues] = []
    for start in range(0, len(chosen), batch_size):
        found += reader.values([place for place, _ in chosen[start : start + batch_size]], bad)
    if not found:
        raise ValueError(f"{dataset.name}: no episode{f' of split {split!r}' if split else ''} can be used")
    return sorted(found, key=lambda one: one.place)


def evaluate_critic(
    found: Sequence[LoggedValues],
    reader: LogReader,
    subject: EvaluationSubject,
    *,
    bad: Sequence[BadEpisodeError] = (),
    rolled_out: RolledOut | None = None,
    notes: Sequence[str] = (),
    seed: int = 0,
) -> CriticEvaluation:
    """Compute the metrics of a critic from its values along logged episodes.

    Args:
        found: Values of at least one episode.
        reader: Reader that they come from.
        subject: Identity of critic, reward, policy and data split, copied into the result.
        bad: Episodes that could not be used.
        rolled_out: Metrics from re-rolled returns.
        notes: Further remarks on the numbers.
        seed: Random seed of the intervals.
    """
    episodes, returns = episode_of_steps(found), joined_steps(found, "returns")
    v = joined_steps(found, "v")
    q = None if found[0].q is None else joined_steps(found, "q")
    remarks = list(notes)
    if np.isnan(returns).all():
        remarks.append("no return of the log is known: no episode terminated with all its rewards known")
    members = None
    if found[0].members is not None:
        members = np.concatenate([one.members for one in found if one.members is not None], 1)
    share = math.nan if q is None else _weight_share(q - v)
    if not math.isnan(share):
        remarks.append(f"weights exp((Q − V)/spread) of these steps would rest on {share:.0%} of them")
    replan = _replans(found)
    spanning = math.nan if replan is None else spanning_share(*replan, reader.horizon)
    return CriticEvaluation(
        model=subject.model,
        policy=subject.policy,
        reward=subject.reward,
        gamma=reader.gamma,
        data=reader.reader.dataset.name,
        split=subject.split,
        version=subject.version,
        counts=_counts(found, bad, returns),
        along={name: _along([one for one in found if one.outcome == name]) for name in _outcomes(found)},
        v=_against(v, returns, episodes, seed),
        q=None if q is None else _against(q, returns, episodes, seed),
        residuals=td_residual_by_source(
            joined_steps(found, "residual"), np.repeat([one.source for one in found], [len(one.v) for one in found])
        ),
        members=0 if members is None else len(members),
        member_correlation=math.nan if members is None else ensemble_correlation(members),
        error_correlation=math.nan if members is None else ensemble_correlation(members - returns),
        spread_error=math.nan if members is None else spread_error_correlation(members, returns),
        spanning=spanning,
        weight_share=share,
        rolled_out=rolled_out,
        notes=(*remarks, *(() if rolled_out is None else rolled_out.notes)),
        bad=tuple({"episode": e.index, "status": e.status, "reason": e.reason} for e in bad),
    )


def _outcomes(found: Sequence[LoggedValues]) -> list[str]:
    return [name for name in OUTCOMES if any(one.outcome == name for one in found)]


def _counts(found: Sequence[LoggedValues], bad: Sequence[BadEpisodeError], returns: np.ndarray) -> dict[str, int]:
    counts = {name: sum(one.outcome == name for one in found) for name in OUTCOMES}
    steps = sum(len(one.v) for one in found)
    return {"episodes": len(found), "steps": steps, **counts, "known": int((~np.isnan(returns)).sum()), "bad": len(bad)}


def _along(group: Sequence[LoggedValues]) -> EpisodeMeans:
    def mean(values: Sequence[float]) -> float:
        known = [value for value in values if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    return EpisodeMeans(
        episodes=len(group),
        v_start=mean([one.v[0] for one in group]),
        v_end=mean([one.v[-1] for one in group]),
        q_start=mean([math.nan if one.q is None else one.q[0] for one in group]),
        q_end=mean([math.nan if one.q is None else one.q[-1] for one in group]),
        drop=mean([drop(one.v) for one in group]),
    )


def _against(values: np.ndarray, returns: np.ndarray, episodes: np.ndarray, seed: int) -> ReturnFit:
    return ReturnFit(
        rank=rank_correlation_interval(values, returns, episodes, seed=seed), calibration=calibration(values, returns)
    )


def _weight_share(advantages: np.ndarray) -> float:
    """Compute the effective share of exponential weights; 1 if all advantages are equal."""
    spread = float(advantages.std()) if advantages.max() > advantages.min() else 0.0
    if not spread > 0:
        return 1.0
    return effective_sample_share(exponential_weights(torch.from_numpy(advantages), spread).numpy())


def _replans(found: Sequence[LoggedValues]) -> tuple[np.ndarray, np.ndarray] | None:
    """Stack re-plan flags and mask (B, T) of the episodes; None if the logs record no re-plan at all."""
    if any(one.replan is None for one in found) or not any(one.replan.any() for one in found if one.replan is not None):
        return None
    longest = max(len(one.v) for one in found)
    flags, mask = np.zeros((2, len(found), longest), bool)
    for row, one in enumerate(found):
        flags[row, : len(one.v)], mask[row, : len(one.v)] = one.replan, True
    return flags, mask


__all__ = ["CriticEvaluation", "EpisodeMeans", "EvaluationSubject", "ReturnFit", "evaluate_critic", "read_values"]
