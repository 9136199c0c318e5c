"""Writes the report of a scored data set: its best, worst and most doubtful episodes, with pictures and curves."""

import base64
import io
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.files import replacing
from ..datasets.episodes import BadEpisodeError, Episode, EpisodeDataset, EpisodeSummary
from ..datasets.opening import open_dataset
from ..evaluation.series import largest_fall
from ..scoring.scores import ScoredEpisode, read_scores
from .report_metrics import read_evaluation
from .report_page import VALUE, Card, Page, render

_FRAMES, _PICTURE = 8, 120  # pictures in a strip, and the shorter side of one in pixels


def write_report(scores: str | Path, out: str | Path, episodes: int = 3, evaluation: str | Path | None = None) -> Path:
    """Write one self-contained HTML page about a folder of scores.

    Args:
        scores: Folder that ``guerdon score`` wrote.
        out: Page to write; it appears whole or not at all.
        episodes: How many best, worst and doubtful episodes to show.
        evaluation: File that ``guerdon evaluate --json`` wrote about the same model, to show its figures too.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: If there are no scores, or no figures where some were named.
        ValueError: If the scores hold no row, ``episodes`` is below 1, or the figures are of another model.
        OSError: If the page cannot be written.
    """
    if episodes < 1:
        raise ValueError(f"expected at least one episode to show, got {episodes}")
    page = Path(out)
    if page.is_dir():
        raise IsADirectoryError(f"{page} is a folder: name the page to write, such as {page / 'report.html'}")
    found = read_scores(scores)
    figures = None if evaluation is None else read_evaluation(evaluation)
    if figures is not None:
        judged, scored = str(figures.get("model", {}).get("hash", "")), str(found.metadata.get("model_hash", ""))
        if judged and scored and judged != scored:
            raise ValueError(
                f"{evaluation} is about model {judged}, {scores} holds scores of model {scored}: evaluate that model"
            )
    text = render(build(found.episodes, found.metadata, found.bad, episodes, figures))
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with replacing(page) as fresh:
            fresh.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write {page}: {error.strerror or error}; choose another --out") from error
    return page


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
        metadata: Of the score file.
        reasons: Why an episode has no scores, by its number.
        count: How many best, worst and doubtful episodes to show.
        evaluation: Figures as `Evaluation.to_json` gives them.

    Raises:
        ValueError: If there is no episode.
    """
    if not scored:
        raise ValueError("the scores hold no episode: run `guerdon score` on a data set that has some")
    data = _Data(str(metadata.get("data", "")))
    usable = [e for e in scored if e.usable]
    name, rank = _ranking(usable)
    ranked = [e for e in usable if not np.isnan(rank[e.index])]
    order = sorted(ranked, key=lambda e: (-rank[e.index], -np.nan_to_num(e.last("progress")), e.index))
    half = min(count, (len(order) + 1) // 2)  # of few episodes none is best and worst at once
    best, worst = order[:half], order[::-1][: min(half, len(order) - half)]
    shown = {e.index for e in (*best, *worst)}
    doubt_name, doubt = _doubt(usable)
    others = [e for e in usable if e.index not in shown and not np.isnan(doubt[e.index])]
    doubtful = sorted(others, key=lambda e: -doubt[e.index])[:count]
    limits = _limits(usable)
    chosen = {
        "Best episodes": (f"Highest {name}.", best),
        "Worst episodes": (f"Lowest {name}.", worst),
        "Most doubtful episodes": (f"{doubt_name}; those above are left out.", doubtful),
    }
    return Page(
        title="Value report" if limits is not None else "Reward report",
        facts=_facts(metadata, data),
        counts=_counts(scored, data),
        configuration=dict(metadata.get("configuration") or {}),
        outcomes=_outcomes(usable, data, rank),
        score_name=name,
        sections={k: (line, _cards(rows, data, name, rank, limits)) for k, (line, rows) in chosen.items() if rows},
        bad=[(e.index, e.status, reasons.get(e.index, "")) for e in scored if not e.usable],
        evaluation=evaluation,
    )


def _ranking(usable: Sequence[ScoredEpisode]) -> tuple[str, dict[int, float]]:
    """Final success probability, progress or value, else summed reward: the first that any episode has."""
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


class _Data:
    """The scored data set, or why it cannot be opened: the page is made either way."""

    def __init__(self, folder: str) -> None:
        self.folder, self.problem = folder, ""
        self.dataset: EpisodeDataset | None = None
        self.summaries: dict[int, tuple[int, EpisodeSummary]] = {}
        try:
            dataset = open_dataset(folder)
            summaries = [dataset.summary(place) for place in range(len(dataset))]
        except (OSError, ValueError) as error:
            self.problem = f"the data cannot be opened any more: {error}"
            return
        self.dataset = dataset
        self.summaries = {s.index: (place, s) for place, s in enumerate(summaries)}

    def outcome(self, index: int) -> float | None:
        return self.summaries[index][1].success if index in self.summaries else None

    def read(self, index: int) -> tuple[Episode | None, str]:
        if self.dataset is None or index not in self.summaries:
            return None, self.problem or "the data set no longer holds this episode"
        try:
            return self.dataset[self.summaries[index][0]], ""
        except BadEpisodeError as error:
            return None, f"{error.status}: {error.reason}"


def _limits(usable: Sequence[ScoredEpisode]) -> tuple[float, float] | None:
    """Smallest and largest value of a critic; None where there is none."""
    values = [e.value[~np.isnan(e.value)] for e in usable]
    joined = np.concatenate([*values, np.zeros(0)])
    return (float(joined.min()), float(joined.max())) if joined.size else None


def _cards(
    episodes: Sequence[ScoredEpisode],
    data: _Data,
    name: str,
    rank: Mapping[int, float],
    limits: tuple[float, float] | None,
) -> list[Card]:
    cards: list[Card] = []
    for scored in episodes:
        episode, note = data.read(scored.index)
        jpegs: list[str] = []
        state: np.ndarray | None = None
        if episode is not None and episode.frames:
            try:
                jpegs = _strip(episode)
            except BadEpisodeError as error:
                note = f"{error.status}: {error.reason}"
        elif episode is not None:
            state = _states(episode, scored)
        outcome = data.outcome(scored.index)
        failed = limits is not None and outcome is not None and outcome < 1
        spread = f", mean standard deviation {np.nanmean(scored.std):.2f}" if not np.isnan(scored.std).all() else ""
        cards.append(
            Card(
                index=scored.index,
                instruction=data.summaries[scored.index][1].instruction if scored.index in data.summaries else "",
                outcome=outcome,
                seconds=scored.seconds,
                progress=scored.progress,
                success=scored.success,
                std=scored.std,
                remark=f"{name} {rank[scored.index]:.2f}{spread}",
                jpegs=jpegs,
                state=state,
                note=note,
                value=None if limits is None else scored.value,
                limits=limits or (0.0, 0.0),
                fall=largest_fall(scored.value) if failed else None,
            )
        )
    return cards


def _strip(episode: Episode) -> list[str]:
    """Eight pictures of the first camera, each from the middle of its eighth of the episode."""
    source = next(iter(episode.frames.values()))
    wanted = (np.arange(_FRAMES) + 0.5) / _FRAMES * episode.steps
    places = np.clip(np.searchsorted(source.step, wanted, side="right") - 1, 0, None)
    return [_jpeg(frame) for frame in source.read(places, _PICTURE)]


def _jpeg(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()


def _states(episode: Episode, scored: ScoredEpisode) -> np.ndarray:
    """State at the scored frames."""
    count = len(scored.seconds)
    chosen = (
        np.linspace(0, len(episode.state) - 1, count).round().astype(int)
        if count > len(episode.state)
        else slice(count)
    )
    return episode.state[chosen]


def _facts(metadata: Mapping[str, Any], data: _Data) -> dict[str, str]:
    facts = {"data": f"{data.folder or 'unknown'}{f' ({data.problem})' if data.problem else ''}"}
    keys = {"model": "model", "model class": "class_path", "model hash": "model_hash", "policy hash": "policy_hash"}
    for label, key in keys.items():
        if metadata.get(key):
            facts[label] = str(metadata[key])
    facts["scored"] = f"{metadata.get('created_at', 'unknown')} by guerdon {metadata.get('version', 'unknown')}"
    facts["report"] = time.strftime("%Y-%m-%d %H:%M:%S")
    return facts


def _counts(scored: Sequence[ScoredEpisode], data: _Data) -> dict[str, str]:
    counts = {"episodes": str(len(scored))}
    for status, number in Counter(e.status for e in scored).most_common():
        counts[f"status {status}"] = str(number)
    outcomes = [data.outcome(e.index) for e in scored if e.usable]
    counts["successes"] = str(sum(o is not None and o >= 1 for o in outcomes))
    counts["failures"] = str(sum(o is not None and o <= 0 for o in outcomes))
    counts["outcome unknown"] = str(sum(o is None for o in outcomes))
    return counts


def _outcomes(usable: Sequence[ScoredEpisode], data: _Data, rank: Mapping[int, float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"success": [], "failure": [], "partial": [], "unknown": []}
    for episode in usable:
        outcome = data.outcome(episode.index)
        kind = "unknown" if outcome is None else "success" if outcome >= 1 else "failure" if outcome <= 0 else "partial"
        found[kind].append(rank[episode.index])
    return found
