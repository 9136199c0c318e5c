"""The ``sft`` command: supervised fine-tuning of a vision-language task decomposer by TRL."""

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from ..core.files import replacing, write_json
from ..core.hub import save_component
from ..datasets.module import EpisodeData
from ..rewards.stages.decomposer_training import DecomposerTraining, write_examples
from .old_configs import readable_configs, renewed_arguments
from .run_directory import CONFIG, MODEL, asks_only, make_run_directory, tidy

METRICS, EXAMPLES, HISTORY = "figures.json", "examples.json", "history.json"


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Train, evaluate before and after on the validation split, and save the component in ``<out>/model``.

    A run that ends without a checkpoint, by an error or by Ctrl-C, leaves nothing behind.

    Args:
        options: ``config`` (YAML files with the sections ``model``, a `DecomposerTraining`, and ``data``, an
            `EpisodeData`), ``out`` (run directory, or None for a new one under ``runs/``) and ``resume`` (whether to
            continue the run in ``out`` by its own configuration: ``config`` may then be empty, and what is given must
            say the same).
        rest: Overrides, such as ``--data.path DIR``.

    Returns:
        0, or 130 when interrupted.

    Raises:
        ValueError: If the configuration makes no sense, is not the one of the run to continue, or the data teach
            nothing.
        FileNotFoundError: If there is nothing to continue from.
        FileExistsError: If ``out`` holds a run that is not to be continued.
    """
    configs, out, resume = cast(list[str], options.config), cast(Path | None, options.out), bool(options.resume)
    parser, only_asks = _parser(), asks_only(rest)
    if resume and not only_asks:
        if out is None:
            raise ValueError("--resume goes on with the run in --out DIR: name it")
        DecomposerTraining.last_checkpoint(out)  # found missing here, before anything is read
        configs = configs or [str(out / CONFIG)]
    if not configs and not only_asks:
        raise ValueError("nothing to fine-tune: expected --config FILE.yaml, such as configs/decomposer.yaml")
    with readable_configs(configs) as paths:
        return _run(parser, paths, renewed_arguments(rest, paths), out, resume)


def _run(parser: ArgumentParser, paths: Sequence[Path], rest: Sequence[str], out: Path | None, resume: bool) -> int:
    with _one_line():
        parsed = parser.parse_args([part for path in paths for part in ("--config", str(path))] + list(rest))
        if resume and (cast(Path, out) / CONFIG).is_file():
            _check_same(parser, parsed, cast(Path, out) / CONFIG)
    directory = make_run_directory(paths[0] if paths else None, out, resumes=resume, continuing="--resume")
    done = False
    try:
        _train(parser, parsed, directory.folder, resume)
        done = True
    except KeyboardInterrupt:
        _say_how_to_resume(directory.folder)
        return 130
    finally:
        if not done and _kept(directory.folder) is None:
            directory.take_back()
    print(directory.folder / MODEL)
    return 0


def _train(parser: ArgumentParser, parsed: Namespace, folder: Path, resume: bool) -> None:
    """Train from a parsed configuration and save everything in the run directory."""
    with _one_line():
        made = parser.instantiate_classes(parsed)
    training, data = cast(DecomposerTraining, made["model"]), cast(EpisodeData, made["data"])
    data.setup("fit")
    console = Console(stderr=True)
    with console.status("reading episodes"):
        examples = training.examples(data.episodes("train"))
    if examples.left_out:
        why = "; ".join(f"episode {number}: {reason}" for number, reason in list(examples.left_out.items())[:10])
        console.print(f"{len(examples.left_out)} episodes give no example: {why}")
    if not examples.prompts:
        raise ValueError("nothing to learn: no training episode has frames and stages; see above")
    if not (folder / CONFIG).exists():
        with replacing(folder / CONFIG) as fresh:
            parser.save(parsed, str(fresh), skip_none=False, overwrite=True, multifile=False)
    write_examples(examples, folder / EXAMPLES)
    _quieten()
    before = training.evaluate(data.episodes("val"))
    history = training.fit(examples, folder, resume)
    after = training.evaluate(data.episodes("val"))
    write_json(folder / HISTORY, history)
    write_json(folder / METRICS, {"before": before, "after": after, "examples": len(examples.prompts)})
    save_component(training.decomposer, folder / MODEL)
    _show(console, before, after)


@contextmanager
def _one_line() -> Generator[None]:
    """Reduce errors of jsonargparse about arguments, and of constructors about values, to one line."""
    try:
        yield
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(re.sub(r"^(- )+", "", tidy(str(error)))) from error


def _check_same(parser: ArgumentParser, parsed: Namespace, saved: Path) -> None:
    """Refuse to continue with other settings: the run's ``config.yaml`` would not describe how its model was made."""
    wanted, held = (_leaves(parser, namespace) for namespace in (parsed, parser.parse_path(str(saved))))
    other = [
        f"{key} is {wanted.get(key)}, but was {held.get(key)}"
        for key in sorted({*wanted, *held})
        if wanted.get(key) != held.get(key)
    ]
    if other:
        more = f", and {len(other) - 3} more" if len(other) > 3 else ""
        raise ValueError(
            f"--resume keeps to the settings of {saved}: {'; '.join(other[:3])}{more}; take these changes back, leave "
            f"out --config and the overrides, or start anew in another --out"
        )


def _leaves(parser: ArgumentParser, parsed: Namespace) -> dict[str, Any]:
    """Return every setting by its dotted name, with its value as in YAML."""
    found: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in cast(dict[str, Any], value).items():
                walk(f"{name}.{key}" if name else str(key), inner)
        else:
            found[name] = value

    walk("", yaml.safe_load(parser.dump(parsed, skip_none=False)))
    return found


def _kept(folder: Path) -> Path | None:
    """Return the checkpoint that a run can be continued from, or None."""
    try:
        return DecomposerTraining.last_checkpoint(folder)
    except FileNotFoundError:
        return None


def _say_how_to_resume(folder: Path) -> None:
    kept = _kept(folder)
    if kept is None:
        print("\nguerdon: interrupted before the first checkpoint; nothing was kept", file=sys.stderr)
        return
    print(
        f"\nguerdon: interrupted; kept {kept}; go on with the same command and "
        f"--out {shlex.quote(str(folder))} --resume",
        file=sys.stderr,
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="guerdon sft",
        exit_on_error=False,
        usage="guerdon sft --config FILE.yaml [--out DIR [--resume]] [--model.… | --data.…]",
        description="Fine-tune what a YAML file names; every value in it can be overridden. --out DIR is the run "
        "directory; default: runs/<name of the config>/<date and time>. --resume continues the run in --out from its "
        "last checkpoint, with the settings of its config.yaml.",
    )
    parser.add_argument("--config", "-c", action="config", help="YAML file with the sections model and data.")
    parser.add_subclass_arguments(DecomposerTraining, "model", required=True)
    parser.add_subclass_arguments(EpisodeData, "data", required=True)
    return parser


def _quieten() -> None:
    """Silence progress bars of single files and notes about settings."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)


def _show(console: Console, before: dict[str, Any], after: dict[str, Any]) -> None:
    table = Table(title=f"held-out episodes: {after['episodes']}")
    for column in ("metric", "before", "after"):
        table.add_column(column)
    for name in ("stage_accuracy", "stage_iou", "plans", "plans_equal"):
        table.add_row(name.replace("_", " "), _cell(before[name]), _cell(after[name]))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        metric = cast(dict[str, float | None], value)
        low, high = metric["low"], metric["high"]
        span = "" if low is None or high is None else f" ({low:.2f} … {high:.2f})"
        return "–" if metric["mean"] is None else f"{metric['mean']:.2f}{span}"
    return "–" if value is None else f"{value:.2f}"
