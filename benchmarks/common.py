"""Helpers of the benchmarks: a command line with a result file, a silent trainer, intervals of success rates."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import numpy as np

from guerdon.core.files import without_nan, write_json

RESULTS = Path(__file__).resolve().parent / "results"


def command_line(description: str | None, result: str | None = None) -> argparse.ArgumentParser:
    """Make the argument parser of a benchmark.

    Args:
        description: Docstring of the module.
        result: Name of the result file without its ending; adds the option ``--out``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if result is not None:
        parser.add_argument("--out", type=Path, default=RESULTS / f"{result}.json", help="default: %(default)s")
    return parser


def silent_trainer(epochs: int, **settings: Any) -> lightning.Trainer:
    """Make a trainer on the CPU without logs, checkpoints, bars and validation.

    Args:
        epochs: Epochs to train for.
        settings: Further arguments of `lightning.Trainer`, which take precedence.
    """
    chosen: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    chosen |= {"enable_model_summary": False, "enable_progress_bar": False}
    chosen |= {"num_sanity_val_steps": 0, "limit_val_batches": 0}
    return lightning.Trainer(max_epochs=epochs, **(chosen | settings))


def success_interval(rates: Sequence[float], episodes: int, samples: int = 10_000) -> tuple[float, float]:
    """Return the 95 % interval of a mean success rate: seeds are resampled, then the episodes of each.

    Args:
        rates: Success rate of each seed.
        episodes: Episodes behind each rate.
        samples: Bootstrap resamples.
    """
    draw = np.random.default_rng(0)
    chosen = np.asarray(rates)[draw.integers(len(rates), size=(samples, len(rates)))]
    means = (draw.binomial(episodes, chosen) / episodes).mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Compute the mean difference of two arms at the same seeds, with a bootstrap interval over seeds.

    Args:
        first: Number of the first arm at each seed.
        second: The same of the second arm.
    """
    apart = np.array(first) - np.array(second)
    draws = np.random.default_rng(0).integers(len(apart), size=(10_000, len(apart)))
    low, high = np.quantile(apart[draws].mean(1), (0.025, 0.975))
    return {"difference": float(apart.mean()), "low": float(low), "high": float(high)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest of repeated measurements."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def write_result(path: Path, record: Any) -> None:
    """Write a result file whole or not at all; numbers that are not finite become null."""
    plain = json.loads(json.dumps(record, default=lambda number: number.item()))  # numbers of numpy become Python's
    write_json(path, without_nan(plain))
    print(path)
