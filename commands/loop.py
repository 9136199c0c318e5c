"""The ``loop`` command: training loops of several stages, such as iRe-VLA and GRAPE, that can be resumed."""

import argparse
import re
import shlex
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ..core.files import replacing
from ..policies.loops.stages import Terminated, TrainingLoop, terminating
from .key_hints import key_hint
from .old_configs import readable_configs, renewed_arguments
from .quiet import quiet
from .run_directory import CONFIG, MODEL, asks_only, make_run_directory, offered_configs, tidy

_DESCRIPTION = (
    "Run the training loop that a YAML file names; every value in it can be overridden. --out DIR is the run "
    "directory; default: runs/<name of the config>/<date and time>. Given again with the --out of a run that was "
    "interrupted, the same command goes on with it: stages that are complete are skipped."
)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run a loop, or go on with the run in ``out``; the trained component is in ``<out>/model``.

    Args:
        options: ``config`` (YAML files with the section ``loop``, a `TrainingLoop`) and ``out`` (run directory, or None
            for a new one under ``runs/``).
        rest: Overrides, such as ``--loop.init_args.seed 1``.

    Returns:
        0, 130 when interrupted, or 143 when terminated.

    Raises:
        ValueError: If the configuration makes no sense, or is not that of the run in ``out``.
        FileNotFoundError: If a configuration or the data are missing.
    """
    configs, out = cast(list[str], options.config), cast(Path | None, options.out)
    if not configs and not asks_only(rest):
        raise ValueError(f"nothing to run: expected --config FILE.yaml, such as ire_vla; {offered_configs()}")
    with readable_configs(configs) as paths:
        return run_loop(configs, paths, rest, out)


def run_loop(names: Sequence[str], configs: Sequence[Path], rest: Sequence[str], out: Path | None) -> int:
    """Run the loop of configurations that are open already, for the commands ``fit`` and ``loop``.

    Args:
        names: Names of the configurations as they were given.
        configs: Configurations as this version reads them.
        rest: Overrides, such as ``--loop.init_args.seed 1``.
        out: Run directory, or None for a new one under ``runs/``.

    Returns:
        0, 130 when interrupted, or 143 when terminated.

    Raises:
        ValueError: If a configuration has sections beside ``loop``, or makes no sense.
        FileNotFoundError: If the data are missing.
    """
    for name, path in zip(names, configs, strict=True):
        sections = sections_of(path)
        if sections and sections != ["loop"]:
            raise ValueError(
                f"{name} has the sections {', '.join(sections)}, and a loop has one, loop: run it with guerdon fit"
            )
    return _run(_parser(), configs, renewed_arguments(rest, configs), out)


def sections_of(config: Path) -> list[str]:
    """Return the names of the sections of a configuration.

    Args:
        config: YAML file.
    """
    read: Any = yaml.safe_load(config.read_text(encoding="utf-8"))
    return list(cast(dict[str, Any], read)) if isinstance(read, dict) else []


def _run(parser: ArgumentParser, paths: Sequence[Path], rest: Sequence[str], out: Path | None) -> int:
    with _one_line({}):
        parsed = parser.parse_args([part for path in paths for part in ("--config", str(path))] + list(rest))
    if out is not None and (out / CONFIG).is_file():
        _check_same(parser, parsed, out / CONFIG)
    directory = make_run_directory(paths[0] if paths else None, out, resumes=True)
    folder, begun = directory.folder, False
    try:
        with _one_line(parsed.as_dict()):
            torch.manual_seed(0)  # of components that are built here, with sizes of their own
            loop = cast(TrainingLoop, parser.instantiate_classes(parsed)["loop"])
        if not (folder / CONFIG).exists():
            with replacing(folder / CONFIG) as fresh:
                parser.save(parsed, str(fresh), skip_none=False, overwrite=True, multifile=False)
        with quiet(), terminating(), _one_line(parsed.as_dict()):
            model = loop.run(folder)
        begun = True
    except KeyboardInterrupt as stop:
        begun = _begun(folder)
        _say_how_to_resume(folder, begun)
        return 143 if isinstance(stop, Terminated) else 130
    finally:
        if not begun and not _begun(folder):
            directory.take_back()
    print(model)
    return 0


def _begun(folder: Path) -> bool:
    """Return whether a stage holds a checkpoint, a model or rollouts, from which the run can go on."""
    return any(any(folder.glob(kept)) for kept in ("*/checkpoints/last.ckpt", f"*/{MODEL}", "*/part-*.safetensors"))


def _say_how_to_resume(folder: Path, begun: bool) -> None:
    if not begun:
        print("\nguerdon: interrupted before the first checkpoint; nothing was kept", file=sys.stderr)
        return
    print(
        f"\nguerdon: interrupted; go on with the same command and --out {shlex.quote(str(folder))}: complete stages "
        "are skipped, and the unfinished one goes on from its last checkpoint",
        file=sys.stderr,
    )


@contextmanager
def _one_line(config: dict[str, Any]) -> Generator[None]:
    """Reduce errors about arguments and values to one line, which names the key where it is known."""
    try:
        yield
    except (ArgumentError, FileNotFoundError, TypeError, ValueError) as error:
        if type(error) not in (ArgumentError, FileNotFoundError, TypeError, ValueError):  # made of more than a text
            raise
        text = re.sub(r"^(- )+", "", tidy(str(error)))
        hint = key_hint(text, config)
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{text.rstrip()}; {hint}" if hint else text) from error


def _check_same(parser: ArgumentParser, parsed: Namespace, saved: Path) -> None:
    """Print which settings differ from those that a run began with, and write the new ones beside the old.

    Stages that are complete keep what they were trained with, so ``config.yaml`` stays as it is.
    """
    wanted, held = (_leaves(parser.dump(namespace, skip_none=False)) for namespace in (parsed, _read(parser, saved)))
    other = [
        f"{key} is {wanted.get(key)}, but was {held.get(key)}"
        for key in sorted({*wanted, *held})
        if wanted.get(key) != held.get(key)
    ]
    if not other:
        return
    more = f", and {len(other) - 3} more" if len(other) > 3 else ""
    print(
        f"guerdon: warning: the run in {saved.parent} began with other settings: {'; '.join(other[:3])}{more}; "
        "complete stages stay as they are, and the others go on with these",
        file=sys.stderr,
    )
    number = next(n for n in range(2, 10_000) if not saved.with_name(f"config-{n}.yaml").exists())
    with replacing(saved.with_name(f"config-{number}.yaml")) as fresh:
        parser.save(parsed, str(fresh), skip_none=False, overwrite=True, multifile=False)


def _read(parser: ArgumentParser, saved: Path) -> Namespace:
    with _one_line({}):
        return parser.parse_path(str(saved))


def _leaves(text: str) -> dict[str, Any]:
    """Return every setting of a YAML text by its dotted name."""
    found: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in cast(dict[str, Any], value).items():
                walk(f"{name}.{key}" if name else str(key), inner)
        else:
            found[name] = value

    walk("", yaml.safe_load(text))
    return found


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="guerdon loop",
        exit_on_error=False,
        usage="guerdon loop --config FILE.yaml [--out DIR] [--loop.…]",
        description=_DESCRIPTION,
    )
    parser.add_argument("--config", "-c", action="config", help="YAML file with the section loop.")
    parser.add_subclass_arguments(TrainingLoop, "loop", required=True)
    return parser
