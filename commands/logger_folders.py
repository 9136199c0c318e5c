"""Loggers of a configuration write into the run directory unless it names another place."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import loggers as known_loggers

_OPTION = "--trainer.logger"


def loggers_in_run(configs: Sequence[Path], arguments: Sequence[str], run: Path, folder: Path) -> list[str]:
    """Give every logger that has a ``save_dir`` and was given none the run directory.

    Args:
        configs: Configurations.
        arguments: Arguments after them.
        run: Run directory.
        folder: Folder for copies of the configurations that are changed.

    Returns:
        All arguments, the configurations among them.
    """
    found: list[str] = []
    for number, config in enumerate(configs):
        found += ["--config", str(_copy(config, run, folder / str(number)))]
    found += arguments
    named = [a.partition("=")[2] or b for a, b in zip(found, [*found[1:], ""], strict=True) if _names_logger(a)]
    given = any(a.startswith(_OPTION) and a.partition("=")[0].endswith(".save_dir") for a in arguments)
    if named and not given and _takes_folder(named[-1]):
        found += [f"{_OPTION}.init_args.save_dir", str(run)]
    return found


def _names_logger(argument: str) -> bool:
    return argument.partition("=")[0] in (_OPTION, f"{_OPTION}.class_path")


def _copy(config: Path, run: Path, folder: Path) -> Path:
    """Return a copy of a configuration in which loggers write into the run, or the file itself if none needs it."""
    read = cast(dict[str, Any], yaml.safe_load(config.read_text(encoding="utf-8")) or {})
    trainer = read.get("trainer")
    if not isinstance(trainer, dict) or not trainer.get("logger"):
        return config
    trainer = cast(dict[str, Any], trainer)
    given = trainer["logger"]
    entries = [_in_run(entry, run) for entry in (cast(list[Any], given) if isinstance(given, list) else [given])]
    changed = entries if isinstance(given, list) else entries[0]
    if changed == given:
        return config
    trainer["logger"] = changed
    folder.mkdir(parents=True)
    copy = folder / config.name
    copy.write_text(yaml.safe_dump(read, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return copy


def _in_run(entry: Any, run: Path) -> Any:
    path = entry if isinstance(entry, str) else cast(dict[str, Any], entry).get("class_path") if entry else None
    if not isinstance(path, str) or not _takes_folder(path):
        return entry
    given: dict[str, Any] = {} if isinstance(entry, str) else cast(dict[str, Any], entry.get("init_args") or {})
    if given.get("save_dir") is not None or given.get("dir") is not None:
        return entry
    return {"class_path": path, "init_args": {**given, "save_dir": str(run)}}


def _takes_folder(path: str) -> bool:
    """Tell whether a class path or a short name is one of Lightning's loggers with a ``save_dir``."""
    package, _, name = path.rpartition(".")
    logger = getattr(known_loggers, name, None) if package in ("", known_loggers.__name__) else None
    return logger is not None and "save_dir" in inspect.signature(logger.__init__).parameters


__all__ = ["loggers_in_run"]
