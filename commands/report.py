"""The ``report`` command: one HTML page about a folder of scores."""

import argparse
from collections.abc import Sequence

from ..pages.report import write_report
from .output import require_writable


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Write the page and print its path.

    Raises:
        FileNotFoundError: If the folder holds no scores.
        ValueError: If the scores or the evaluation were not written by guerdon.
        OSError: If the page cannot be written.
    """
    require_writable(options.out)
    print(write_report(options.scores, options.out, episodes=options.episodes, evaluation=options.evaluation))
    return 0
