"""The report of a scored data set: one HTML page with its best, worst and most doubtful episodes.

Styles, pictures and curves are inside the page, and it loads nothing. Curves are SVG: they need no script, print well,
and follow the reader's light or dark colours. Jinja escapes every text.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..core.files import write_text
from ..scoring.scores import ScoredEpisode, read_scores
from .episode_cards import EpisodeCard, ScoredData, episode_cards
from .evaluation_section import EvaluationSection, evaluation_section, read_evaluation
from .score_charts import OutcomeChart, outcome_chart
from .time_charts import BOTTOM, HEIGHT, TOP, WIDTH

VALUE = "final value"
"""Score that episodes are ranked by where a critic gave the scores."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Some episodes under a heading."""

    heading: str
    line: str
    """How they were chosen."""
    cards: Sequence[EpisodeCard]


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the report shows."""

    title: str
    facts: Mapping[str, str]
    counts: Mapping[str, str]
    configuration: str
    """Arguments of the model as JSON; empty where they are unknown."""
    score_name: str
    """Name of the score that episodes are ranked by."""
    outcomes: OutcomeChart | None
    sections: Sequence[Section]
    bad: Sequence[tuple[int, str, str]]
    """Number, status and reason of each episode that could not be scored."""
    evaluation: EvaluationSection | None


def write_report(scores: str | Path, out: str | Path, episodes: int = 3, evaluation: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about a folder of scores.

    Args:
        scores: Folder that ``guerdon score`` wrote.
        out: Page to write; it appears whole or not at all.
        episodes: Number of best, of worst and of doubtful episodes to show.
        evaluation: File that ``guerdon evaluate --json`` wrote about the same model, to show its metrics too.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: If there are no scores, or no such file of metrics.
        ValueError: If the scores hold no row, ``episodes`` is below 1, or the metrics are of another model.
        OSError: If the page cannot be written.
    """
    if episodes < 1:
        raise ValueError(f"expected at least one episode to show, got {episodes}")
    page = Path(out)
    if page.is_dir():
        raise IsADirectoryError(f"{page} is a folder: name the page to write, such as {page / 'report.html'}")
    found = read_scores(scores)
    metrics = None if evaluation is None else read_evaluation(evaluation)
    if metrics is not None:
        evaluated, scored = str(metrics.get("model", {}).get("hash", "")), str(found.metadata.get("model_hash", ""))
        if evaluated and scored and evaluated != scored:
            raise ValueError(
                f"{evaluation} is about model {evaluated}, {scores} holds scores of model {scored}: evaluate that model"
            )
    text = render(build(found.episodes, found.metadata, found.bad, episodes, metrics))
    try:
        write_text(page, text)
    except OSError as error:
        raise OSError(f"cannot write {page}: {error.strerror or error}; choose another --out") from error
    return page


def render(page: Page) -> str:
    """Render a page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, px=_pixels)
    environment.tests["known"] = _known
    size = {"width": WIDTH, "height": HEIGHT, "top": TOP, "bottom": BOTTOM}
    return environment.get_template("report.html").render(page=page, size=size)


def _number(value: float, signed: bool = False) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}" if signed else f"{value:.2f}"


def _pixels(place: float) -> str:
    return f"{place:.1f}"


def _known(value: float) -> bool:
    return not math.isnan(value)


def build(
    scored: Sequence[ScoredEpisode],
    metadata: Mapping[str, Any],
    reasons: Mapping[int, str],
    count: int = 3,
    evaluation: Mapping[str, Any] | None = None,
) -> Page:
    """Choose what to show and collect it from scores and data.

    Args:
        scored: Every episode of the scores.
        metadata: Metadata of the score file.
        reasons: Why an episode has no scores, by its number.
        count: Number of best, of worst and of doubtful episodes to show.
        evaluation: Metrics as `guerdon.evaluation.evaluate.Evaluation.to_json` gives them.

    Raises:
        ValueError: If there is no episode.
    """
    if not scored:
        raise ValueError("the scores hold no episode: run `guerdon score` on a data set that has some")
    data = ScoredData(str(metadata.get("data", "")))
    usable = [e for e in scored if e.usable]
    name, rank = _ranking(usable)
    limits = _limits(usable)
    configuration = metadata.get("configuration")
    return Page(
        title="Value report" if limits is not None else "Reward report",
        facts=_facts(metadata, data),
        counts=_counts(scored, data),
        configuration=json.dumps(configuration, indent=2, ensure_ascii=False) if configuration else "",
        score_name=name,
        outcomes=outcome_chart(_outcomes(usable, data, rank), unit=name != VALUE),
        sections=[
            Section(heading=heading, line=line, cards=episode_cards(episodes, data, (name, rank), limits))
            for heading, line, episodes in _choose(usable, name, rank, count)
            if episodes
        ],
        bad=[(e.index, e.status, reasons.get(e.index, "")) for e in scored if not e.usable],
        evaluation=None if evaluation is None else evaluation_section(evaluation),
    )


def _choose(
    usable: Sequence[ScoredEpisode], name: str, rank: Mapping[int, float], count: int
) -> list[tuple[str, str, list[ScoredEpisode]]]:
    """Choose best, worst and most doubtful episodes, each with heading and line."""
    ranked = [e for e in usable if not np.isnan(rank[e.index])]
    order = sorted(ranked, key=lambda e: (-rank[e.index], -np.nan_to_num(e.last("progress")), e.index))
    half = min(count, (len(order) + 1) // 2)  # of few episodes none is best and worst at once
    best, worst = order[:half], order[::-1][: min(half, len(order) - half)]
    shown = {e.index for e in (*best, *worst)}
    doubt_name, doubt = _doubt(usable)
    others = [e for e in usable if e.index not in shown and not np.isnan(doubt[e.index])]
    doubtful = sorted(others, key=lambda e: -doubt[e.index])[:count]
    return [
        ("Best episodes", f"Highest {name}.", best),
        ("Worst episodes", f"Lowest {name}.", worst),
        ("Most doubtful episodes", f"{doubt_name}; those above are left out.", doubtful),
    ]


def _ranking(usable: Sequence[ScoredEpisode]) -> tuple[str, dict[int, float]]:
    """Rank by final success probability, progress or value, else by summed reward: the first that any episode has."""
    for name, column in (
        ("final success probability", "success"),
        ("final progress", "progress"),
        (VALUE, "value"),
    ):
        rank = {e.index: e.last(column) for e in usable}
        if any(not np.isnan(v) for v in rank.values()):
            return name, rank
    return "summed reward", {e.index: e.total for e in usable}


def _doubt(usable: Sequence[ScoredEpisode]) -> tuple[str, dict[int, float]]:
    spread = {e.index: float(np.nanmean(e.std)) if not np.isnan(e.std).all() else math.nan for e in usable}
    if any(v > 0 for v in spread.values()):
        return "Largest mean standard deviation", spread
    for column, name in (("success", "success probability"), ("progress", "progress")):
        near = {e.index: -abs(e.last(column) - 0.5) for e in usable}
        if any(not np.isnan(v) for v in near.values()):
            return f"Final {name} nearest ½", near
    return "", {e.index: math.nan for e in usable}


def _limits(usable: Sequence[ScoredEpisode]) -> tuple[float, float] | None:
    """Return the smallest and largest value of a critic; None where there is none."""
    values = [e.value[~np.isnan(e.value)] for e in usable]
    joined = np.concatenate([*values, np.zeros(0)])
    return (float(joined.min()), float(joined.max())) if joined.size else None


def _facts(metadata: Mapping[str, Any], data: ScoredData) -> dict[str, str]:
    facts = {"data": f"{data.folder or 'unknown'}{f' ({data.problem})' if data.problem else ''}"}
    keys = {"model": "model", "model class": "class_path", "model hash": "model_hash", "policy hash": "policy_hash"}
    for label, key in keys.items():
        if metadata.get(key):
            facts[label] = str(metadata[key])
    facts["scored"] = f"{metadata.get('created_at', 'unknown')} by guerdon {metadata.get('version', 'unknown')}"
    facts["report"] = time.strftime("%Y-%m-%d %H:%M:%S")
    return facts


def _counts(scored: Sequence[ScoredEpisode], data: ScoredData) -> dict[str, str]:
    counts = {"episodes": str(len(scored))}
    for status, number in Counter(e.status for e in scored).most_common():
        counts[f"status {status}"] = str(number)
    outcomes = [data.outcome(e.index) for e in scored if e.usable]
    counts["successes"] = str(sum(o is not None and o >= 1 for o in outcomes))
    counts["failures"] = str(sum(o is not None and o <= 0 for o in outcomes))
    counts["outcome unknown"] = str(sum(o is None for o in outcomes))
    return counts


def _outcomes(usable: Sequence[ScoredEpisode], data: ScoredData, rank: Mapping[int, float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"success": [], "failure": [], "partial": [], "unknown": []}
    for episode in usable:
        outcome = data.outcome(episode.index)
        kind = "unknown" if outcome is None else "success" if outcome >= 1 else "failure" if outcome <= 0 else "partial"
        found[kind].append(rank[episode.index])
    return found
