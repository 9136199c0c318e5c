"""The ``score`` command: scores of every episode of a data set by a reward model or a critic."""

import argparse
from collections.abc import Sequence

from ..core.batch import named_ends
from ..scoring.dataset import ScoringReport, score_dataset
from ..scoring.scores import SCORES
from .arguments import names_in
from .output import require_writable
from .proposer import open_proposer


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Score a data set, and print how many observations have an estimate and which episodes have none.

    Raises:
        ValueError: If the data do not fit the model, a critic lacks a policy, or the folder holds other scores.
        OSError: If the scores cannot be written.
    """
    require_writable(options.out / SCORES)
    terminating = None if options.terminating is None else names_in(options.terminating)
    named_ends("--terminating", terminating or ())
    proposer = None
    if options.policy is not None:
        proposer, _ = open_proposer(options.policy, options.device, options.trust)
    existed = options.out.exists()
    try:
        report = score_dataset(
            options.model,
            options.data,
            options.out,
            batch_size=options.batch_size,
            device=options.device,
            cache=options.cache,
            overwrite=options.overwrite,
            trust=options.trust,
            proposer=proposer,
            terminating=terminating,
        )
    except BaseException:
        if not existed and options.out.is_dir() and not any(options.out.iterdir()):
            options.out.rmdir()
        raise
    print("\n".join(lines(report)))
    return 0


def lines(report: ScoringReport) -> list[str]:
    """Describe a scoring run in lines, the last of which is the path of the scores."""
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    return [
        f"{report.episodes - len(report.bad)} of {report.episodes} episodes scored{resumed}",
        f"{report.estimated} of {report.observations} observations have an estimate",
        *(f"  {name} {count}: {why}" for name, reasons in report.counters.items() for why, count in reasons.items()),
        *(f"  episode {bad.index} not scored, {bad.status}: {bad.reason}" for bad in report.bad),
        str(report.path),
    ]
