"""The ``inspect`` command: a summary of a folder, recognised by what lies in it."""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.hub import SPEC, component_hash, read_spec
from ..datasets.cache_folder import evict, is_cache, report
from ..datasets.episodes import BadEpisodeError, EpisodeDataset
from ..datasets.opening import open_dataset
from ..evaluation.learning_curve import CURVES, read_learning_record
from ..scoring.scores import PARTS, SCORES, read_scores


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Describe a folder, and reduce a feature cache where ``--evict`` is given; see `describe_folder`."""
    describe_folder(options.folder, None, options.evict)
    return 0


def describe_folder(folder: Path, console: Console | None = None, make_room: str | None = None) -> None:
    """Print a summary of a component, a run, a folder of scores, a feature cache or a data set.

    Args:
        folder: Folder to describe.
        console: Console to print on; None prints on standard output.
        make_room: Size to reduce a feature cache to, such as ``"20GB"``, by removing the entries used longest ago;
            None removes nothing.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds nothing that guerdon knows, or is to be reduced and is no feature cache.
    """
    out = console or Console()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: expected a data set, a component, scores, a run or a cache")
    if make_room is not None and not is_cache(folder):
        raise ValueError(f"{folder} is no feature cache: --evict removes nothing anywhere else")
    if is_cache(folder):
        _cache(folder, out, None if make_room is None else parse_size(make_room))
    elif (folder / SPEC).is_file():
        _component(folder, out)
    elif (folder / "model" / SPEC).is_file():
        out.print(Text(f"run of guerdon fit, with the component {folder / 'model'}"))
        _component(folder / "model", out)
        _learning_curve(folder, out)
        if (folder / "reward" / SPEC).is_file():
            out.print(Text(f"and the reward that its values are sums of, {folder / 'reward'}"))
            _component(folder / "reward", out)
    elif (folder / SCORES).is_file() or (folder / PARTS).is_dir():
        _scores(folder, out)
    else:
        _dataset(open_dataset(folder), out)


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str) -> int:
    """Convert a size to bytes, such as ``20GB`` (10⁹ a GB), ``1.5GiB`` (2³⁰), ``500M`` or ``0``.

    Raises:
        ValueError: If the text is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    if found is None:
        raise ValueError(f"{text!r} is no size: expected one such as 20GB, 500MB, 1.5GiB or 0")
    return round(float(found[1]) * _UNITS[found[2] or ""])


def shown_size(count: int) -> str:
    """Write a number of bytes with a unit: ``"1.2 GB"`` is 1.2·10⁹."""
    if count < 1000:
        return f"{count} bytes"
    unit = next(u for u in ("T", "G", "M", "K") if count >= _UNITS[u])
    return f"{count / _UNITS[unit]:.3g} {unit.replace('K', 'k')}B"


def _cache(folder: Path, out: Console, max_bytes: int | None) -> None:
    if max_bytes is not None:
        made = evict(folder, max_bytes)
        kept = f"; kept {made.in_use} that are in use" if made.in_use else ""
        out.print(Text(f"removed {made.removed} entries, {shown_size(made.freed)}{kept}"))
    found = report(folder)
    facts = _facts()
    facts.add_row("feature cache", Text(str(folder)))
    size = shown_size(found.bytes)
    facts.add_row("entries", f"{found.entries}, {size} (each: one camera of one episode under one encoder)")
    out.print(facts)
    if not found.groups:
        return
    table = Table("encoder", "revision", box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("entries", "frames", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for group in found.groups:
        used = datetime.fromtimestamp(group.last_used).strftime("%Y-%m-%d %H:%M")
        frames = f"{group.known:,} of {group.places:,}" if group.places else "unknown"
        names = (Text(group.encoder, overflow="fold"), Text(group.revision, overflow="fold"))
        table.add_row(*names, f"{group.entries:,}", frames, shown_size(group.bytes), used)
    out.print(table)
    for group in found.groups:
        if group.damaged:
            what = f"  {group.damaged} damaged files of {group.encoder} {group.revision}"
            out.print(Text(f"{what}: they are made again when they are needed", style="red"))


def _component(folder: Path, out: Console) -> None:
    spec = read_spec(folder)
    table = _facts()
    table.add_row("component", Text(str(spec["class_path"])))
    table.add_row("hash", component_hash(folder))
    table.add_row("guerdon", Text(str(spec.get("guerdon_version", "unknown"))))
    table.add_row("arguments", Text(json.dumps(spec["init_args"], indent=2)))
    out.print(table)


def _learning_curve(folder: Path, out: Console) -> None:
    """Print the success of the start policy and at the last validation, where the run recorded a learning curve."""
    record = read_learning_record(folder)
    if record is None:
        return
    table = _facts()
    for name, point in (("start policy", record.start), ("last validation", (record.validations or [None])[-1])):
        if point is not None:
            low, high = point.interval
            played = f"{point.successes} of {point.episodes} held-out starts"
            table.add_row(name, f"success {point.rate:.2f} ({low:.2f} … {high:.2f}), {played}")
    if record.rollouts:
        table.add_row("environment steps", f"{int(record.rollouts[-1]['env_steps']):,}")
    table.add_row("learning curve", Text(str(folder / CURVES)))
    out.print(table)


def _scores(folder: Path, out: Console) -> None:
    scores = read_scores(folder)
    metadata = scores.metadata
    table = _facts()
    table.add_row("scores of", Text(str(metadata.get("data", "unknown"))))
    status = [episode.status for episode in scores.episodes]
    table.add_row("episodes", Text(f"{len(status)} ({_counted(status)}), {len(scores.table)} rows"))
    table.add_row("model", Text(f"{metadata.get('model', '')} {metadata.get('class_path', '')}".strip() or "unknown"))
    for key in ("model_hash", "settings", "version", "created_at"):
        table.add_row(key.replace("_", " "), Text(str(metadata.get(key, "unknown"))))
    out.print(table)
    for episode in scores.episodes:
        if not episode.usable:
            why = scores.bad.get(episode.index, "")
            out.print(Text(f"  episode {episode.index} not scored, {episode.status}: {why}", style="red"))


def _dataset(dataset: EpisodeDataset, out: Console) -> None:
    """Print a summary of a data set; all but the frames is read, so that episodes that cannot be used are found."""
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
