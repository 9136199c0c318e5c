"""The ``label`` command: a page in the browser on which people compare two clips, and whose answers are kept."""

import argparse
import os
import sys
import webbrowser
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..datasets.episodes import EpisodeDataset
from ..datasets.opening import open_dataset
from ..pages.label_clips import Clips
from ..pages.label_queue import LabelQueue
from ..pages.label_server import HOST, LabelPage, bind, serve
from ..preference.answer_log import AnswerLog
from ..preference.answers import Answer
from ..preference.random_pairs import draw_segment_pairs
from ..preference.segments import SegmentPair, read_segment_pairs, write_segment_pairs
from .output import require_writable


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Serve the page until it is interrupted; print its address first, and the file of the answers last.

    Raises:
        FileNotFoundError: If there is no data set, or no such file of pairs.
        ValueError: If the data set has no frames or no such camera, does not hold a segment, or a file is damaged.
        BlockingIOError: If another process is writing the same answers.
        OSError: If the answers cannot be written, or the port is taken.
    """
    require_writable(options.out)
    dataset = open_dataset(options.data)
    clips = Clips(dataset, options.camera)
    drawn = options.pairs is None
    kept = options.out.with_name(f"{options.out.stem}.pairs.jsonl") if drawn else options.pairs
    pairs = _pairs(dataset, kept, drawn, options)
    clips.check(pairs)
    with AnswerLog(options.out) as log:
        if log.repaired:
            print(f"guerdon: {log.repaired}", file=sys.stderr)
        page = LabelPage(LabelQueue(pairs, log, options.rater), clips)
        with bind(options.port) as sock:
            address = f"http://{HOST}:{sock.getsockname()[1]}/?token={page.token}"
            print(f"{len(pairs)} pairs of {kept}, answers in {options.out}{_so_far(log.answers(), pairs)}")
            print("Open this address in a browser on this machine (Ctrl-C stops; the same command goes on):")
            print(f"  {address}", flush=True)
            if options.open and _has_screen():
                webbrowser.open(address)
            serve(page, sock)
        print(f"{options.out}{_so_far(log.answers(), pairs)}")
    return 0


def _pairs(dataset: EpisodeDataset, path: Path, drawn: bool, options: argparse.Namespace) -> list[SegmentPair]:
    """Read the pairs, or draw and write them where they are to be drawn and were not before."""
    if not drawn and not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected pairs, one JSON object a line; leave --pairs out to draw"
        )
    if drawn and not path.is_file():
        pairs = draw_segment_pairs(dataset, options.count, options.seconds, options.seed)
        write_segment_pairs(pairs, path)
        if len(pairs) < options.count:
            print(f"guerdon: {options.data} gives {len(pairs)} different pairs of {options.count}", file=sys.stderr)
    pairs = read_segment_pairs(path)
    if not pairs:
        raise ValueError(f"{path} holds no pair: expected at least one")
    return pairs


def _so_far(answers: Sequence[Answer], pairs: Sequence[SegmentPair]) -> str:
    """Count the answers of each rater in words; empty before the first."""
    asked = {pair.id for pair in pairs}
    counts = Counter(answer.rater for answer in answers if answer.pair in asked)
    return "".join(f"; {rater or 'unnamed'}: {count} of {len(pairs)}" for rater, count in sorted(counts.items()))


def _has_screen() -> bool:
    """Tell whether a window can open here; elsewhere a text browser would take the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
