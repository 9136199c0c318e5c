"""The ``sft`` command: supervised fine-tuning of a vision-language task decomposer by TRL.

Kept apart from `cli` because importing trl takes seconds and ``guerdon --version`` must not wait for it.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from .cli_fit import CONFIG, MODEL, resolve_config, run_directory, tidy
from .core.files import write_json
from .core.hub import save_component
from .datasets.module import EpisodeData
from .rewards.decomposer_training import DecomposerTraining, write_examples

FIGURES, EXAMPLES, HISTORY = "figures.json", "examples.json", "history.json"


def run(configs: Sequence[str], arguments: Sequence[str], out: Path | None, resume: bool) -> int:
    """Train, judge before and after on the validation split, and leave a shareable folder at ``<out>/model``.

    Args:
        configs: YAML files with the sections ``model`` (a `DecomposerTraining`) and ``data`` (an `EpisodeData`).
        arguments: Overrides, such as ``--data.path DIR``.
        out: Run directory; None makes a new one under ``runs/``.
        resume: Go on with the run in ``out``.

    Raises:
        ValueError: If the configuration makes no sense, or the data teach nothing.
        FileNotFoundError: If there is nothing to go on from.
    """
    parser = _parser()
    paths = [resolve_config(name) for name in configs]
    if not any(a in ("-h", "--help") for a in arguments) and not paths:
        raise ValueError("nothing to fine-tune: expected --config FILE.yaml, such as configs/decomposer.yaml")
    if resume and out is None:
        raise ValueError("--resume goes on with the run in --out DIR: name it")
    try:
        parsed = parser.parse_args([part for path in paths for part in ("--config", str(path))] + list(arguments))
        made = parser.instantiate_classes(parsed)
    except Exception as error:
        if type(error).__name__ in ("ArgumentError", "TypeError"):
            raise ValueError(tidy(str(error))) from error
        raise
    training, data = cast(DecomposerTraining, made["model"]), cast(EpisodeData, made["data"])
    data.setup("fit")
    console = Console(stderr=True)
    with console.status("reading episodes"):
        examples = training.examples(data.episodes("train"))
    if examples.left_out:
        told = "; ".join(f"episode {number}: {why}" for number, why in list(examples.left_out.items())[:10])
        console.print(f"{len(examples.left_out)} episodes taught nothing: {told}")
    if not examples.prompts:
        raise ValueError("nothing to learn: no training episode has frames and stages; see above")
    folder, _ = run_directory(paths[0] if paths else None, out, resumes=resume)
    if not resume:
        parser.save(parsed, str(folder / CONFIG), skip_none=False, overwrite=True, multifile=False)
    write_examples(examples, folder / EXAMPLES)
    _quieten()
    before = training.judge(data.episodes("val"))
    history = training.fit(examples, folder, resume)
    after = training.judge(data.episodes("val"))
    write_json(folder / HISTORY, history)
    write_json(folder / FIGURES, {"before": before, "after": after, "examples": len(examples.prompts)})
    save_component(training.decomposer, folder / MODEL)
    _show(console, before, after)
    print(folder / MODEL)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="guerdon sft",
        exit_on_error=False,
        usage="guerdon sft --config FILE.yaml [--out DIR [--resume]] [--model.… | --data.…]",
        description="Fine-tune what a YAML file names; every value of it can be overridden.",
    )
    parser.add_argument("--config", "-c", action="config", help="YAML file with the sections model and data.")
    parser.add_subclass_arguments(DecomposerTraining, "model", required=True)
    parser.add_subclass_arguments(EpisodeData, "data", required=True)
    return parser


def _quieten() -> None:
    """Without a progress bar for every file, and notes on settings that were chosen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)


def _show(console: Console, before: dict[str, Any], after: dict[str, Any]) -> None:
    table = Table(title=f"held-out episodes: {after['episodes']}")
    for column in ("figure", "before", "after"):
        table.add_column(column)
    for name in ("stage_accuracy", "stage_iou", "plans", "plans_equal"):
        table.add_row(name.replace("_", " "), _cell(before[name]), _cell(after[name]))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        figure = cast(dict[str, float | None], value)
        low, high = figure["low"], figure["high"]
        span = "" if low is None or high is None else f" ({low:.2f} … {high:.2f})"
        return "–" if figure["mean"] is None else f"{figure['mean']:.2f}{span}"
    return "–" if value is None else f"{value:.2f}"
