"""Judges a reward model on logged episodes: order, discrimination, calibration, each with an interval and controls.

Everything here is computation on what a model said of every episode (`Judged`); `controls` asks the model, and
`evaluation_table` prints the result. An undefined figure is NaN, counted, and explained in a note; it is never 0 or ½.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..core.files import without_nan
from ..core.metrics import instruction_confusion, reliability_curve
from .comparison import Comparison, compare
from .metrics import Figure, Figures, Resampling, all_figures, by_task, mean_figure
from .notes import notes_of
from .predictions import CONTROLS, MODEL, Basis, Judged, Reading, basis_of
from .rules import BINS, calibration_pair

__all__ = [
    "CONTROLS",
    "MODEL",
    "SEVERAL_TASKS",
    "Confusion",
    "Evaluation",
    "Figure",
    "Figures",
    "Judged",
    "QualityFigures",
    "Reading",
    "Reliability",
    "TaskFigures",
    "evaluate",
]
SEVERAL_TASKS = 5
"""From this many tasks on whole tasks are resampled; with fewer, an interval over tasks would say nothing."""


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
class Reliability:
    """The reliability curve behind ``calibration_error``: one entry per bin of equal width on [0, 1]."""

    probability: tuple[float, ...]
    """Mean of what the model said; NaN where a bin is empty."""
    happened: tuple[float, ...]
    """Mean of what was so."""
    count: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Mean score of each task's videos (columns) under each task's instruction (rows)."""

    tasks: tuple[int, ...]
    instructions: tuple[str, ...]
    cells: tuple[tuple[float, ...], ...]
    """NaN where nothing was asked or answered; never 0."""
    counts: tuple[tuple[int, ...], ...]
    missing: tuple[str, ...]
    """What the empty cells are, in words."""


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
    threshold: float
    """From which score on an episode counts as called a success; NaN where that is undefined."""
    reliability: Reliability | None = None
    confusion: Confusion | None = None
    comparison: Comparison | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values; NaN becomes null, because JSON has none."""
        found: dict[str, Any] = without_nan(asdict(self))
        return found


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
    threshold: float | int | None = None,
    quality_order: Sequence[str] = (),
    instructions: Mapping[int, str] | None = None,
    against: Sequence[Judged] = (),
    against_model: Mapping[str, Any] | None = None,
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
        threshold: From which score on an episode counts as called a success; None takes ½ where scores are in [0, 1].
        quality_order: Qualities from worst to best; empty takes the order of those that are known.
        instructions: Task → instruction, the rows and columns of the instruction matrix; None takes those judged.
        against: What another model said of the same episodes, to compare with.
        against_model: Which that is.

    Raises:
        ValueError: If there is no episode to judge, or the order of qualities fits none of them.
    """
    if not judged:
        reasons = f" ({len(bad)} could not be read, the first: {bad[0]['reason']})" if bad else ""
        raise ValueError(f"expected at least one episode to evaluate on, got none{reasons}; check --data and --split")
    kinds = by_task(judged)
    basis = basis_of(judged, threshold, quality_order)
    resampling = Resampling(samples=samples, seed=seed, by_task=len(kinds) >= SEVERAL_TASKS)
    alone = Resampling(samples=samples, seed=seed, by_task=False)
    figures = {name: all_figures(judged, name, basis, resampling) for name in (MODEL, *CONTROLS)}
    tasks = tuple(
        TaskFigures(
            task=t, instruction=rows[0].instruction, episodes=len(rows), figures=all_figures(rows, MODEL, basis, alone)
        )
        for t, rows in kinds.items()
        if len(kinds) > 1
    )
    counts = _counts(judged, len(kinds), len(bad))
    confusion = _confusion(judged, instructions)
    return Evaluation(
        model=dict(model or {}),
        data=data,
        split=split,
        version=version,
        counts=counts,
        bad=tuple(dict(b) for b in bad),
        conventions={**conventions, **_conventions(basis, resampling)},
        figures=figures,
        tasks=tasks,
        qualities=_qualities(judged, basis, resampling),
        notes=notes_of(judged, figures, counts, basis),
        threshold=basis.threshold,
        reliability=_reliability(judged, basis),
        confusion=confusion,
        comparison=compare(
            judged, against, (basis, basis_of(against, threshold, quality_order)), resampling, against_model
        )
        if against
        else None,
    )


def _conventions(basis: Basis, resampling: Resampling) -> dict[str, str]:
    drawn = "tasks" if resampling.by_task else "episodes"
    inner = "tasks, then over episodes" if resampling.by_task else "the episodes of each task"
    found = {
        "value order over": "all episodes: no outcome is labelled" if basis.unlabelled else "successful episodes",
        "pairs": "of one task, labels by success, scores by summed reward; a tie counts ½",
        "intervals": f"95 %, bootstrap over {drawn}; of means over tasks, over {inner}",
    }
    if not math.isnan(basis.threshold):
        found["called a success"] = f"an episode whose score is at least {basis.threshold:g}"
    if basis.levels:
        order = sorted(basis.levels, key=lambda name: basis.levels[name])
        found["qualities"] = f"{' < '.join(order)}, ranked inside a task by final progress or score"
    return found


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


def _qualities(judged: Sequence[Judged], basis: Basis, resampling: Resampling) -> tuple[QualityFigures, ...]:
    """Best first where the order is known; qualities without a place in it come last, by name."""
    names = sorted({j.quality for j in judged if j.quality}, key=lambda q: (-basis.levels.get(q, -math.inf), q))
    found: list[QualityFigures] = []
    for quality in names:
        rows = [j for j in judged if j.quality == quality]
        final = mean_figure(rows, [j.readings[MODEL].end for j in rows], resampling)
        found.append(QualityFigures(quality=quality, final=final))
    return tuple(found)


def _reliability(judged: Sequence[Judged], basis: Basis) -> Reliability | None:
    pairs = [calibration_pair(j, MODEL, basis) for j in judged]
    probability, happened = (np.concatenate([p[i] for p in pairs]) for i in (0, 1))
    if len(probability) == 0:
        return None
    said, was, count = reliability_curve(probability, happened, BINS)
    return Reliability(probability=tuple(said.tolist()), happened=tuple(was.tolist()), count=tuple(count.tolist()))


def _confusion(judged: Sequence[Judged], instructions: Mapping[int, str] | None) -> Confusion | None:
    shown = [j for j in judged if j.under]
    if not shown:
        return None
    tasks = tuple(instructions) if instructions is not None else tuple(sorted({t for j in shown for t in j.under}))
    place = {task: i for i, task in enumerate(tasks)}
    texts = dict(instructions or {})
    for j in shown:
        texts.setdefault(j.task, j.instruction)
    asked = [(j, t, score) for j in shown for t, score in j.under.items() if t in place and j.task in place]
    cells, counts = instruction_confusion(
        [score for _, _, score in asked],
        [place[t] for _, t, _ in asked],
        [place[j.task] for j, _, _ in asked],
        len(tasks),
    )
    names = [texts.get(t, f"task {t}") for t in tasks]
    missing: list[str] = []
    for column, name in enumerate(names):
        rows = [names[row] for row in range(len(tasks)) if counts[row, column] == 0]
        if len(rows) == len(tasks):
            missing.append(f"no video of {name!r} was judged")
        else:
            missing.extend(f"videos of {name!r} have no score under {row!r}" for row in rows)
    return Confusion(
        tasks=tasks,
        instructions=tuple(names),
        cells=tuple(tuple(row) for row in cells.tolist()),
        counts=tuple(tuple(row) for row in counts.tolist()),
        missing=tuple(missing),
    )
