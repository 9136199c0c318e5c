"""The ``calibrate`` command: fits a calibration on a held-out split and saves it with the model as one component."""

import argparse
import math
import sys
import warnings
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.files import write_json
from ..core.hub import component_hash
from ..core.opening import open_reward_model
from ..datasets.opening import open_dataset
from ..datasets.splits import VAL_FRACTION
from ..evaluation.calibration.fit import calibrate
from ..evaluation.calibration.report import CalibrationReport, Estimate


def run(options: argparse.Namespace) -> int:
    """Calibrate, save, print.

    Raises:
        FileExistsError: If the output folder holds anything; before any work.
    """
    out = Path(options.out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out} exists already: name a folder that is not there yet")
    reward, said = open_reward_model(options.model, device=options.device, trust=options.trust)
    told = unseen_warning(Path(options.model), options.split)
    if told is not None:
        Console(stderr=True).print(told, style="yellow", markup=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "calibrated on ", UserWarning)  # it is among the notes below
        calibrated, report = calibrate(
            reward,
            open_dataset(options.data),
            split=options.split,
            method=options.method,
            progress=options.progress,
            abstain=options.abstain,
            by=options.by,
            batch_size=options.batch_size,
            cache=options.cache,
            seed=options.seed,
            console=Console(stderr=True),
        )
    calibrated.save_pretrained(out)
    if options.json is not None:
        saved = {"path": str(out), "hash": component_hash(out)}
        write_json(options.json, report.to_json() | {"model": said, "calibrated": saved})
    # a pipe has no width: give tables the room they need rather than fold them at 80 columns
    print_calibration(report, Console(width=None if sys.stdout.isatty() else 150))
    print(out)
    return 0


def unseen_warning(model: Path, split: str) -> str | None:
    """A warning where the run that left the model held out another part of its data than ``split`` would take.

    ``"val"`` means what training holds out by default; the configuration beside the model says what this one did.
    """
    config = (model if (model / "config.yaml").is_file() else model.parent) / "config.yaml"
    if split != "val" or not config.is_file():
        return None
    with config.open() as file:
        data = (yaml.safe_load(file) or {}).get("data") or {}
    arguments = data.get("init_args", data) if isinstance(data, dict) else {}
    fraction = arguments.get("val_fraction", VAL_FRACTION)
    if fraction == VAL_FRACTION:
        return None
    return (
        f"warning: this model was trained with val_fraction {fraction}; where its data record no validation split, "
        f"--split val takes {VAL_FRACTION}, some of which it may have been trained on: use data it never saw, with "
        "--split ''"
    )


def print_calibration(report: CalibrationReport, console: Console) -> None:
    """Print what a calibration is worth, as a table and notes."""
    counts = report.counts
    split = f", split {report.split}" if report.split else ""
    console.print(
        Text(
            f"{report.method} calibration on {report.data}{split}: {counts['episodes']} episodes "
            f"({counts['successes']} successes, {counts['failures']} failures), {counts['observations']} observations "
            f"({counts['positives']} of a success)"
        )
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("", "before", "after"):
        table.add_column(name)
    before, after = report.before, report.after
    rows = [("calibration error", before.calibration_error, after.calibration_error)]
    rows += [("Brier score", before.brier, after.brier)]
    if not math.isnan(before.progress_error.value):
        rows.append(("progress error", before.progress_error, after.progress_error))
    for name, old, new in rows:
        table.add_row(name, _shown(old), _shown(new))
    table.add_row("change of error", "", _shown(report.change))
    table.add_row("Brier score of the base rate", f"{report.base_brier:.3f}", "")
    if report.abstention is not None:
        kept, everything = report.abstention.kept, report.abstention.everything
        table.add_row(f"coverage, by {report.abstention.by}", "1.000", f"{report.abstention.coverage:.3f}")
        table.add_row("Brier score of what is kept", _shown(everything.brier), _shown(kept.brier))
    console.print(table)
    scaled = f"temperature {report.temperature:.3g}, bias {report.bias:.3g}"
    fitted = f"{report.knots} knots" if report.knots else scaled
    console.print(Text(f"{fitted}; figures after are by cross-validation in {report.folds} folds of whole families"))
    for note in report.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    for bad in report.bad:
        console.print(Text(f"  episode {bad['episode']} left out, {bad['status']}: {bad['reason']}", style="red"))


def _shown(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "–"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{interval}"
