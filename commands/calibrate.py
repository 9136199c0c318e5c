"""The ``calibrate`` command: a calibration fitted on a held-out split, saved with the model as one component."""

import argparse
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core.files import write_json
from ..core.hub import component_hash
from ..core.intervals import Estimate
from ..core.opening import open_reward_model
from ..datasets.episodes import BadEpisodeError
from ..datasets.opening import open_dataset
from ..datasets.splits import VAL_FRACTION
from ..evaluation.calibration.data import collect
from ..evaluation.calibration.fit import calibrate_on
from ..evaluation.calibration.report import CalibrationReport
from .output import require_writable, table_console


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Calibrate a reward model, save both as one component, and print the metrics of the calibration.

    Raises:
        FileExistsError: If the output folder holds anything; before any work.
        ValueError: If the folder holds no reward model, or the split does not suit.
        OSError: If the folder or the JSON file cannot be written.
    """
    require_writable(options.json)
    out = Path(options.out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out} exists already: name a folder that is not there yet")
    reward, identity = open_reward_model(options.model, device=options.device, trust=options.trust)
    warning = unseen_warning(Path(options.model), options.split)
    if warning is not None:
        Console(stderr=True).print(warning, style="yellow", markup=False)
    dataset = open_dataset(options.data)
    bad: dict[int, BadEpisodeError] = {}
    data = collect(reward, dataset, options.split, options.batch_size, options.cache, bad, progress_bar=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "calibrated on ", UserWarning)  # it is among the notes below
        calibrated, report = calibrate_on(
            reward,
            data,
            method=options.method,
            progress=options.progress,
            abstain=options.abstain,
            by=options.by,
            seed=options.seed,
            name=dataset.name,
            split=options.split,
            bad=list(bad.values()),
        )
    calibrated.save_pretrained(out)
    if options.json is not None:
        saved = {"path": str(out), "hash": component_hash(out)}
        write_json(options.json, report.to_json() | {"model": identity, "calibrated": saved})
    print_calibration(report, table_console(150))
    print(out)
    return 0


def unseen_warning(model: Path, split: str) -> str | None:
    """Make a warning where the run of the model held out another part of its data than ``split`` takes.

    ``"val"`` takes what training holds out by default; the configuration of the run says what it held out.

    Args:
        model: Folder of the model, or of its run.
        split: Split that the calibration is fitted on.

    Returns:
        The warning, or None where there is nothing to warn of.
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
        f"warning: this model was trained with val_fraction {fraction}. Where its data record no validation split, "
        f"--split val takes {VAL_FRACTION}, and the model may have been trained on some of that: use data that it was "
        "not trained on, with --split ''"
    )


def print_calibration(report: CalibrationReport, console: Console) -> None:
    """Print the errors before and after a calibration as a table, and its notes."""
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
    console.print(Text(f"{fitted}; errors after are by cross-validation in {report.folds} folds of whole families"))
    for note in report.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    for bad in report.bad:
        console.print(Text(f"  episode {bad['episode']} left out, {bad['status']}: {bad['reason']}", style="red"))


def _shown(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "–"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{interval}"
