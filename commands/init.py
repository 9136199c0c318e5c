"""The ``init`` command: writes a commented configuration for `guerdon fit` that fits a data set."""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.progress import track

from ..core.batch import End
from ..core.files import write_text
from ..datasets.episodes import BadEpisodeError, EpisodeDataset
from ..datasets.opening import open_dataset
from ..datasets.survey import holds_progress, name_of_success
from .arguments import JOBS

_FRAME_SIZE, _FRAME_COUNT, _EVALUATED = 96, 16, 5.0  # pixels; frames of a training row; evaluated frames a second
_BATCH, _UPDATES = 16, 2000
_READ = 1000  # episodes that are looked into; more would say nothing else


@dataclass(kw_only=True)
class DataFacts:
    """What a configuration has to fit."""

    name: str
    fps: float
    state_size: int
    action_size: int
    cameras: tuple[str, ...]
    episodes: int
    steps: list[int] = field(default_factory=list[int])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    """Episodes by outcome: success, failure, partial, unknown."""
    ends: Counter[End] = field(default_factory=Counter[End])
    splits: Counter[str] = field(default_factory=Counter[str])
    instructions: int = 0
    progress: bool = False
    """Whether progress is recorded."""
    action_low: float = math.inf
    action_high: float = -math.inf


def survey(dataset: EpisodeDataset, progress_bar: bool = False) -> DataFacts:
    """Survey a data set for what a configuration has to fit; no frame is decoded.

    Args:
        dataset: Data set; of a large one, evenly spaced episodes are read.
        progress_bar: Show one.

    Raises:
        ValueError: If no episode can be used.
    """
    facts = DataFacts(
        name=dataset.name,
        fps=dataset.fps,
        state_size=dataset.state_size,
        action_size=dataset.action_size,
        cameras=dataset.cameras,
        episodes=len(dataset),
    )
    summaries = [dataset.summary(place) for place in range(len(dataset))]
    facts.instructions = len({summary.instruction for summary in summaries})
    facts.splits = Counter(summary.split for summary in summaries if summary.split)
    places = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _READ)).round().astype(int)).tolist()
    reason = "it holds none"
    rates: list[float] = []
    for place in track(
        places, description="reading episodes", transient=True, console=Console(stderr=True), disable=not progress_bar
    ):
        try:
            episode = dataset[place]
        except BadEpisodeError as error:
            reason = str(error)
            continue
        facts.steps.append(episode.steps)
        rates.append(episode.fps)
        facts.ends[episode.end] += 1
        facts.outcomes[name_of_success(episode.success)] += 1
        facts.progress |= holds_progress(episode)
        if episode.actions.size:
            facts.action_low = min(facts.action_low, float(episode.actions.min()))
            facts.action_high = max(facts.action_high, float(episode.actions.max()))
    if not facts.steps:
        raise ValueError(f"no episode of {dataset.name} can be used ({reason}): nothing to write a configuration for")
    facts.fps = median(rates)
    return facts


def write_config(data: str | Path, job: str, out: str | Path, progress_bar: bool = False) -> Path:
    """Write a configuration that fits a data set, ready for ``guerdon fit --config``.

    Args:
        data: Folder of the data set.
        job: ``"progress"``, ``"success"``, ``"critic"`` or ``"clone"``.
        out: YAML file to write; it must not be there.
        progress_bar: Show one while episodes are read.

    Returns:
        The file.

    Raises:
        ValueError: If the data cannot serve the job.
        FileExistsError: If the file is there.
    """
    if job not in JOBS:
        raise ValueError(f"--job {job}: expected one of {', '.join(JOBS)}")
    target = Path(out)
    if target.exists():
        raise FileExistsError(f"{target} exists already: name another file, or remove it")
    facts = survey(open_dataset(data), progress_bar)
    _check(facts, job)
    text = render(facts, job, str(data), str(out))
    write_text(target, text)
    return target


def _check(facts: DataFacts, job: str) -> None:
    """Refuse a job that the data cannot serve.

    Raises:
        ValueError: Naming what is missing.
    """
    succeeded = facts.outcomes["success"] + facts.outcomes["partial"] + facts.outcomes["unknown"] * (job == "progress")
    if job in ("critic", "clone") and not facts.action_size:
        raise ValueError(f"{facts.name} holds no actions: a {job} learns from them; choose progress or success")
    if job in ("critic", "clone") and not facts.state_size:
        raise ValueError(
            f"{facts.name} holds no state: the networks written here read states; start from a configuration in "
            "configs/ and give its network cameras and a frozen encoder"
        )
    if job in ("progress", "success") and not (facts.state_size or facts.cameras):
        raise ValueError(f"{facts.name} holds neither states nor frames: there is nothing to look at")
    if job == "progress" and not succeeded and not facts.progress:
        raise ValueError(
            f"{facts.name} holds no success and no recorded progress: progress has no target; add successes, or record "
            "progress or success per observation"
        )
    if job == "success" and not (facts.outcomes["success"] and facts.outcomes["failure"]):
        raise ValueError(
            f"{facts.name} holds {facts.outcomes['success']} successes and {facts.outcomes['failure']} failures: a "
            "success classifier needs both; record the outcomes, or choose progress"
        )


def render(facts: DataFacts, job: str, data: str, out: str) -> str:
    """Fill in the template of a job."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # YAML, no HTML; what comes from data goes through json
    )
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.filters["line"] = lambda value: " ".join(str(value).split())  # a comment ends with its line
    return environment.get_template(f"{job}.yaml").render(_context(facts, job) | {"data": data, "out": out, "job": job})


def _context(facts: DataFacts, job: str) -> dict[str, Any]:
    """Choose what the templates fill in."""
    train, val, trained = _splits(facts)
    repeats = max(1, math.ceil(8 * _BATCH / max(trained, 1)))
    updates = max(1, trained * repeats // _BATCH)
    every = max(1, round(facts.fps / _EVALUATED))
    typical = round(median(facts.steps))
    ends = [end for end in End if end != End.CUT and facts.ends[end]]
    low, high = _range(facts.action_low, facts.action_high)
    return {
        "facts": facts,
        "outcomes": ", ".join(f"{count} {name}" for name, count in facts.outcomes.most_common()),
        "steps": f"{min(facts.steps)} to {max(facts.steps)} steps, {facts.fps:g} a second",
        "typical": typical,
        "assume_success": job == "progress" and not facts.outcomes["success"] and not facts.progress,
        "failures": facts.outcomes["failure"] + facts.outcomes["partial"],
        "several": facts.instructions > 1,
        "train_split": train,
        "val_split": val,
        "repeats": repeats,
        "epochs": min(max(round(_UPDATES / updates), 5), 200),
        "updates": updates,
        "batch_size": _BATCH,
        "frame_size": _FRAME_SIZE,
        "frame_count": _FRAME_COUNT,
        "frames_every": every,
        "evaluated": f"{facts.fps / every:.3g}",
        "ends": [end.name.lower() for end in ends],
        "end_counts": ", ".join(f"{facts.ends[end]} {end.name.lower()}" for end in End if facts.ends[end]),
        "gamma": round(max(0.9, 1 - 1 / max(typical, 2)), 3),
        "action_low": low,
        "action_high": high,
    }


def _splits(facts: DataFacts) -> tuple[str, str, int]:
    """Name the recorded splits to train and validate on (empty where none is), and count training episodes."""
    if not facts.splits:
        return "", "", facts.episodes
    train = "train" if "train" in facts.splits else facts.splits.most_common(1)[0][0]
    others = [name for name in ("val", "validation", "valid", "eval", "test") if name in facts.splits and name != train]
    return train, others[0] if others else "", facts.splits[train]


def _range(low: float, high: float) -> tuple[float, float]:
    """Round the range of the logged actions outwards, to two digits."""
    if not low <= high:
        return -1.0, 1.0
    size = 10 ** (math.floor(math.log10(max(abs(low), abs(high), 1e-6))) - 1)
    low, high = math.floor(low / size + 1e-4) * size, math.ceil(high / size - 1e-4) * size
    return float(f"{low:.6g}"), float(f"{high if high > low else low + size:.6g}")


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Write the configuration and print how to train with it."""
    file = write_config(options.data, options.job, options.out, progress_bar=True)
    print(f"read the comments in {file}, then run: guerdon fit --config {file}", file=sys.stderr)
    print(file)
    return 0
