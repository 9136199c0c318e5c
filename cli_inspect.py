"""The ``inspect`` command: says what a folder is, from what lies in it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .core.hub import SPEC, component_hash, read_spec
from .datasets.episodes import BadEpisodeError, EpisodeDataset
from .datasets.opening import open_dataset
from .rewards.scores import PARTS, SCORES, read_scores


def describe_folder(folder: Path, console: Console | None = None) -> None:
    """Print a summary of a component, a run, a folder of scores or a data set.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If nothing known lies in it.
    """
    out = console or Console()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: expected a data set, a saved component, scores or a run")
    if (folder / SPEC).is_file():
        _component(folder, out)
    elif (folder / "model" / SPEC).is_file():
        out.print(Text(f"run of guerdon fit; it left the component {folder / 'model'}"))
        _component(folder / "model", out)
    elif (folder / SCORES).is_file() or (folder / PARTS).is_dir():
        _scores(folder, out)
    else:
        _dataset(open_dataset(folder), out)


def _component(folder: Path, out: Console) -> None:
    spec = read_spec(folder)
    table = _facts()
    table.add_row("component", Text(str(spec["class_path"])))
    table.add_row("hash", component_hash(folder))
    table.add_row("guerdon", Text(str(spec.get("guerdon_version", "unknown"))))
    table.add_row("arguments", Text(json.dumps(spec["init_args"], indent=2)))
    out.print(table)


def _scores(folder: Path, out: Console) -> None:
    scores = read_scores(folder)
    said = scores.metadata
    table = _facts()
    table.add_row("scores of", Text(str(said.get("data", "unknown"))))
    status = [episode.status for episode in scores.episodes]
    table.add_row("episodes", Text(f"{len(status)} ({_counted(status)}), {len(scores.table)} rows"))
    table.add_row("model", Text(f"{said.get('model', '')} {said.get('class_path', '')}".strip() or "unknown"))
    for key in ("model_hash", "settings", "version", "created_at"):
        table.add_row(key.replace("_", " "), Text(str(said.get(key, "unknown"))))
    out.print(table)
    for episode in scores.episodes:
        if not episode.usable:
            why = scores.bad.get(episode.index, "")
            out.print(Text(f"  episode {episode.index} not scored, {episode.status}: {why}", style="red"))


def _dataset(dataset: EpisodeDataset, out: Console) -> None:
    """Everything is read, frames excepted, so that episodes that cannot be used are found."""
    summaries = [dataset.summary(place) for place in range(len(dataset))]
    bad: list[BadEpisodeError] = []
    for place in range(len(dataset)):
        try:
            dataset[place]
        except BadEpisodeError as error:
            bad.append(error)
    steps = [s.steps for s in summaries]
    outcomes = [s.success for s in summaries]
    table = _facts()
    table.add_row("data set", Text(dataset.name))
    table.add_row("episodes", f"{len(summaries)}, of which {len(bad)} cannot be used")
    span = f", {min(steps)} to {max(steps)} an episode" if steps else ""
    table.add_row("steps", f"{sum(steps)}{span}, {dataset.fps:g} a second")
    table.add_row("state, action", f"{dataset.state_size}, {dataset.action_size} wide")
    table.add_row("cameras", Text(", ".join(dataset.cameras) or "none"))
    known = [o for o in outcomes if o is not None]
    table.add_row(
        "success",
        f"{sum(o >= 1 for o in known)} successes, {sum(o <= 0 for o in known)} failures, "
        f"{sum(0 < o < 1 for o in known)} partial, {len(outcomes) - len(known)} unknown",
    )
    for name, values in (("splits", [s.split for s in summaries]), ("qualities", [s.quality for s in summaries])):
        if any(values):
            table.add_row(name, Text(_counted(values)))
    table.add_row("instructions", Text(_counted([s.instruction or "(none)" for s in summaries], most=8, between="\n")))
    out.print(table)
    for error in bad:
        out.print(Text(f"  episode {error.index} cannot be used, {error.status}: {error.reason}", style="red"))


def _counted(values: list[Any], most: int = 20, between: str = ", ") -> str:
    counts = Counter(values).most_common()
    shown = between.join(f"{value or '(none)'}: {count}" for value, count in counts[:most])
    return shown + (f"{between}and {len(counts) - most} more" if len(counts) > most else "")


def _facts() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table
