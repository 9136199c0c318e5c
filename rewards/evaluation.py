"""Judges a reward model on logged episodes: order, discrimination, calibration, each with an interval and controls.

Everything here is computation on what a model said of every episode (`Judged`); `controls` asks the model, and
`evaluation_table` prints the result. An undefined figure is NaN, counted, and explained in a note; it is never 0 or ½.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ..core.metrics import bootstrap_interval, expected_calibration_error, success_auroc, value_order_correlation

MODEL = "model"
CONTROLS = ("clock", "constant", "reversed", "shuffled", "wrong_instruction")
"""clock: t / T. constant: one number, the share of successes. The others are the same model on an altered episode."""
SEVERAL_TASKS = 5
"""From this many tasks on whole tasks are resampled; with fewer, an interval over tasks would say nothing."""
_NONE = np.zeros(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a model or a control says of one episode, in the order it was played."""

    values: Float[np.ndarray, " K"]
    """At each evaluated observation: progress, or what stands in for it."""
    score: float
    """Of success: its probability at the last observation, else final progress, else total."""
    total: float
    """Summed reward over valid steps; what preferences and group baselines use."""
    final: float = math.nan
    """Progress at the last observation; NaN for a model without progress."""
    probability: Float[np.ndarray, " P"] = field(default_factory=lambda: _NONE)
    """Success probability where the data label single observations."""
    label: Float[np.ndarray, " P"] = field(default_factory=lambda: _NONE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One episode with every reading of it."""

    episode: int
    task: int
    instruction: str
    success: float
    """In [0, 1]; NaN where nobody said."""
    readings: Mapping[str, Reading]
    """By name: `MODEL` and the `CONTROLS` that are defined for the episode."""
    quality: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of merit with its 95 % cluster-bootstrap interval; NaN where undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """Episodes it is computed from."""
    n_undefined: int = 0
    """Episodes that could not enter it: no label, or no value (a constant has no order)."""
    undefined_as_zero: float = math.nan
    """Mean with undefined episodes counted as 0, for comparison with tools that do so; per-episode figures only."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The five figures of a model or a control."""

    value_order_correlation: Figure
    success_auroc: Figure
    pairwise_accuracy: Figure
    calibration_error: Figure
    instruction_accuracy: Figure


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """The model's figures on one task."""

    task: int
    instruction: str
    episodes: int
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class QualityFigures:
    """Mean final progress (or score, for a model without progress) of the episodes of one quality."""

    quality: str
    final: Figure


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The judgement of one model on one data set."""

    model: Mapping[str, Any]
    data: str
    split: str
    version: str
    counts: Mapping[str, int]
    bad: tuple[Mapping[str, Any], ...]
    """Episodes that could not be used: episode, status, reason."""
    conventions: Mapping[str, str]
    """What each figure was computed of."""
    figures: Mapping[str, Figures]
    """By name: `MODEL`, then the `CONTROLS`."""
    tasks: tuple[TaskFigures, ...]
    qualities: tuple[QualityFigures, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values; NaN becomes null, because JSON has none."""
        found: dict[str, Any] = _null(asdict(self))
        return found


def _null(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        entries: dict[Any, Any] = value
        return {str(k): _null(v) for k, v in entries.items()}
    if isinstance(value, list | tuple):
        items: Sequence[Any] = value
        return [_null(v) for v in items]
    return value


def evaluate(
    judged: Sequence[Judged],
    conventions: Mapping[str, str],
    model: Mapping[str, Any] | None = None,
    data: str = "",
    split: str = "",
    version: str = "",
    bad: Sequence[Mapping[str, Any]] = (),
    samples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Compute every figure of a model and its controls.

    Args:
        judged: One entry per episode that could be read.
        conventions: What values, score and calibration were computed of; shown as they are.
        model: Class, hash, folder of the model; shown as it is.
        data: Folder of the data set.
        split: Which episodes of it; empty for all.
        version: Of this package.
        bad: Episodes that could not be used: episode, status, reason.
        samples: Bootstrap resamples.
        seed: Of the bootstrap.

    Raises:
        ValueError: If there is no episode to judge.
    """
    if not judged:
        reasons = f" ({len(bad)} could not be read, the first: {bad[0]['reason']})" if bad else ""
        raise ValueError(f"expected at least one episode to evaluate on, got none{reasons}; check --data and --split")
    kinds = {task: [j for j in judged if j.task == task] for task in dict.fromkeys(j.task for j in judged)}
    by_task = len(kinds) >= SEVERAL_TASKS
    cluster = _task if by_task else _episode
    per_observation = any(len(j.readings[MODEL].label) for j in judged)
    draw = _Draw(samples=samples, seed=seed, cluster=cluster, per_observation=per_observation)
    figures = {name: draw.figures(judged, name) for name in (MODEL, *CONTROLS)}
    alone = _Draw(samples=samples, seed=seed, cluster=_episode, per_observation=per_observation)
    tasks = tuple(
        TaskFigures(task=t, instruction=rows[0].instruction, episodes=len(rows), figures=alone.figures(rows, MODEL))
        for t, rows in kinds.items()
        if len(kinds) > 1
    )
    counts = _counts(judged, len(kinds), len(bad))
    return Evaluation(
        model=dict(model or {}),
        data=data,
        split=split,
        version=version,
        counts=counts,
        bad=tuple(dict(b) for b in bad),
        conventions={
            **conventions,
            "value order over": _ordered_rows(judged)[1],
            "pairs": "of one task, labels by success, scores by summed reward; a tie counts ½",
            "intervals": f"95 %, bootstrap over {'tasks' if by_task else 'episodes'}",
        },
        figures=figures,
        tasks=tasks,
        qualities=_qualities(judged, draw),
        notes=_notes(judged, figures, counts),
    )


def _task(judged: Judged) -> int:
    return judged.task


def _episode(judged: Judged) -> int:
    return judged.episode


def _counts(judged: Sequence[Judged], tasks: int, bad: int) -> dict[str, int]:
    success = np.array([j.success for j in judged])
    return {
        "episodes": len(judged),
        "bad": bad,
        "tasks": tasks,
        "successes": int((success == 1).sum()),
        "failures": int((success == 0).sum()),
        "partial": int(((success > 0) & (success < 1)).sum()),
        "unknown": int(np.isnan(success).sum()),
    }


def _ordered_rows(judged: Sequence[Judged]) -> tuple[list[Judged], str]:
    """Episodes in which values should rise: successes, or everything where nobody labelled any outcome."""
    if all(math.isnan(j.success) for j in judged):
        return list(judged), "all episodes: no outcome is labelled"
    return [j for j in judged if j.success >= 0.5], "successful episodes"


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """How figures are resampled."""

    samples: int
    seed: int
    cluster: Callable[[Judged], int]
    per_observation: bool

    def figures(self, judged: Sequence[Judged], name: str) -> Figures:
        """All figures of one model or control."""
        rows = [j for j in judged if name in j.readings]
        absent = len(judged) - len(rows)
        return Figures(
            value_order_correlation=self._order(rows, name, absent),
            success_auroc=self._pairs(rows, [j.readings[name].score for j in rows], absent, auroc=True),
            pairwise_accuracy=self._pairs(rows, [j.readings[name].total for j in rows], absent, auroc=False),
            calibration_error=self._calibration(rows, name, absent),
            instruction_accuracy=self._instruction(rows, name, absent),
        )

    def mean(self, rows: Sequence[Judged], values: Sequence[float], absent: int = 0) -> Figure:
        """Mean of a value per episode."""
        found = np.array(values, float)
        known = ~np.isnan(found)
        low, high = bootstrap_interval(found, [self.cluster(j) for j in rows], samples=self.samples, seed=self.seed)
        return Figure(
            value=float(found[known].mean()) if known.any() else math.nan,
            low=low,
            high=high,
            n=int(known.sum()),
            n_undefined=int((~known).sum()) + absent,
            undefined_as_zero=float(np.where(known, found, 0).mean()) if len(found) else math.nan,
        )

    def _order(self, judged: Sequence[Judged], name: str, absent: int) -> Figure:
        rows = _ordered_rows(judged)[0]
        if not rows:
            return Figure(value=math.nan, n_undefined=absent)
        longest = max(2, *(len(j.readings[name].values) for j in rows))
        values = np.full((len(rows), longest), math.nan)
        for row, j in zip(values, rows, strict=True):
            row[: len(j.readings[name].values)] = j.readings[name].values
        found = value_order_correlation(values, np.ones((len(rows), longest - 1), bool), valid=~np.isnan(values))
        return self.mean(rows, found.tolist(), absent)

    def _pairs(self, rows: Sequence[Judged], scores: Sequence[float], absent: int, auroc: bool) -> Figure:
        score, success = np.array(scores, float), np.array([j.success for j in rows], float)
        known = ~(np.isnan(score) | np.isnan(success))
        score, success = score[known], success[known]
        kept = [j for j, k in zip(rows, known, strict=True) if k]
        label = (success >= 0.5).astype(float) if auroc else success
        task = np.zeros(len(kept), int) if auroc else np.array([j.task for j in kept], int)
        missing = int((~known).sum()) + absent
        if len(kept) == 0:
            return Figure(value=math.nan, n_undefined=missing)
        win, better = _wins(score, label, task)
        pairs = float(better.sum())
        value = success_auroc(score, label) if auroc else float(win.sum()) / pairs if pairs else math.nan
        low, high = math.nan, math.nan
        if pairs:
            weight = self._weights(kept)
            over = ((weight @ better) * weight).sum(1)
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn = ((weight @ win) * weight).sum(1) / over
            low, high = _interval(drawn, len({self.cluster(j) for j in kept}))
        return Figure(value=value, low=low, high=high, n=len(kept), n_undefined=missing)

    def _calibration(self, rows: Sequence[Judged], name: str, absent: int) -> Figure:
        bins = 15
        pieces = [_calibration_pair(j, name, self.per_observation) for j in rows]
        used = [(j, p) for j, p in zip(rows, pieces, strict=True) if len(p[0])]
        missing = len(rows) - len(used) + absent
        if not used:
            return Figure(value=math.nan, n_undefined=missing)
        excess, count = np.zeros((len(used), bins)), np.zeros(len(used))
        for row, (_, (probability, label)) in enumerate(used):
            # one episode's share of every bin; the figure is the sum over bins of the absolute total
            place = np.minimum((probability * bins + 1e-9).astype(int), bins - 1)
            excess[row] = np.bincount(place, probability - label, bins)
            count[row] = len(probability)
        value = expected_calibration_error(
            np.concatenate([p[0] for _, p in used]), np.concatenate([p[1] for _, p in used]), bins
        )
        weight = self._weights([j for j, _ in used])
        drawn = np.abs(weight @ excess).sum(1) / (weight @ count)
        low, high = _interval(drawn, len({self.cluster(j) for j, _ in used}))
        return Figure(value=value, low=low, high=high, n=len(used), n_undefined=missing)

    def _instruction(self, judged: Sequence[Judged], name: str, absent: int) -> Figure:
        """Share of episodes whose end is valued higher under the right instruction than under a wrong one, ties ½."""
        rows = _ordered_rows(judged)[0]
        if name in ("clock", "constant"):
            blind = [0.5 if "wrong_instruction" in j.readings else math.nan for j in rows]
            return self.mean(rows, blind, absent) if rows else Figure(value=math.nan, n_undefined=absent)
        if name != MODEL or not rows:
            return Figure(value=math.nan, n_undefined=absent + len(rows))
        return self.mean(rows, [_prefers_right(j) for j in rows], absent)

    def _weights(self, rows: Sequence[Judged]) -> Float[np.ndarray, "samples n"]:
        """How often each episode is drawn in each resample of whole clusters."""
        index = np.unique([self.cluster(j) for j in rows], return_inverse=True)[1]
        clusters = int(index.max()) + 1
        # pairs cost samples · n²: fewer resamples do where episodes are many
        samples = self.samples if len(rows) <= 2000 else min(self.samples, 200)
        drawn = np.random.default_rng(self.seed).integers(clusters, size=(samples, clusters))
        flat = (drawn + clusters * np.arange(samples)[:, None]).ravel()
        times = np.bincount(flat, minlength=samples * clusters).reshape(samples, clusters)
        return times[:, index].astype(np.float32)


def _wins(
    score: Float[np.ndarray, " n"], label: Float[np.ndarray, " n"], task: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n n"], Bool[np.ndarray, "n n"] | Float[np.ndarray, "n n"]]:
    """For every ordered pair (better, worse) of one task: 1, ½ or 0 for the scores' verdict, and 1 for the pair."""
    better = ((label[:, None] > label[None]) & (task[:, None] == task[None])).astype(np.float32)
    verdict = (score[:, None] > score[None]) + 0.5 * (score[:, None] == score[None])
    return better * verdict.astype(np.float32), better


def _interval(drawn: Float[np.ndarray, " samples"], clusters: int) -> tuple[float, float]:
    """Percentile interval; NaN with one cluster, or where most resamples are undefined."""
    known = drawn[~np.isnan(drawn)]
    if clusters < 2 or len(known) < 0.5 * len(drawn):
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _calibration_pair(
    judged: Judged, name: str, per_observation: bool
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    reading = judged.readings[name]
    if per_observation:
        known = ~np.isnan(reading.probability)
        return reading.probability[known], reading.label[known]
    # a total reward is no probability
    if math.isnan(judged.success) or math.isnan(reading.score) or not 0 <= reading.score <= 1:
        return _NONE, _NONE
    return np.array([reading.score]), np.array([judged.success])


def _prefers_right(judged: Judged) -> float:
    wrong = judged.readings.get("wrong_instruction")
    if wrong is None:
        return math.nan
    right = judged.readings[MODEL]
    above, below = (right.score, wrong.score) if math.isnan(right.final) else (right.final, wrong.final)
    return math.nan if math.isnan(above) or math.isnan(below) else float(above > below) + 0.5 * (above == below)


def _qualities(judged: Sequence[Judged], draw: _Draw) -> tuple[QualityFigures, ...]:
    found: list[QualityFigures] = []
    for quality in dict.fromkeys(sorted(j.quality for j in judged if j.quality)):
        rows = [j for j in judged if j.quality == quality]
        ends = [j.readings[MODEL] for j in rows]
        values = [r.score if math.isnan(r.final) else r.final for r in ends]
        found.append(QualityFigures(quality=quality, final=draw.mean(rows, values)))
    return tuple(found)


def _notes(judged: Sequence[Judged], figures: Mapping[str, Figures], counts: Mapping[str, int]) -> tuple[str, ...]:
    """One line for each undefined figure, and for what a reader would otherwise take for a fault."""
    model, notes = figures[MODEL], list[str]()
    labelled = counts["episodes"] - counts["unknown"]
    if math.isnan(model.success_auroc.value):
        lacking = "successes" if not any(j.success >= 0.5 for j in judged) else "failures"
        why = f"no {lacking} labelled" if labelled else "no outcome labelled"
        notes.append(f"{why}: success AUROC undefined (n={labelled or counts['episodes']})")
    if math.isnan(model.pairwise_accuracy.value) and not math.isnan(model.success_auroc.value):
        notes.append("no task has episodes of different outcome: pairwise accuracy undefined")
    if math.isnan(model.calibration_error.value):
        notes.append("no labelled outcome beside a probability: calibration undefined")
    order = model.value_order_correlation
    if math.isnan(order.value):
        rows = len(_ordered_rows(judged)[0])
        why = "the model's values never change in them" if rows else "no success labelled"
        notes.append(f"{why}: value order undefined (n={rows})")
    elif order.n_undefined:
        notes.append(f"value order: {order.n_undefined} of {order.n + order.n_undefined} episodes have no order")
    if counts["tasks"] < 2:
        notes.append("one task only: there is no wrong instruction to try")
    if counts["partial"]:
        notes.append(f"{counts['partial']} partial successes: success AUROC counts ½ and more as success")
    notes.append("the clock is t / T with no model at all: its value order is 1 by construction")
    return tuple(notes)
