"""The ``guerdon`` command: finds the module of a command, runs it, and reports errors in one line."""

import argparse
import importlib
import os
import re
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import __version__, nearest
from .commands.arguments import Parser, build_parser

COMMANDS = {
    "collect": "collect",
    "fit": "fit",
    "validate": "fit",
    "sft": "sft",
    "loop": "loop",
    "score": "score",
    "evaluate": "evaluate",
    "calibrate": "calibrate",
    "labels": "labels",
    "label": "label",
    "report": "report",
    "inspect": "inspecting",
    "init": "init",
    "demo": "demo",
}
"""Command → module in ``commands/``, with a function ``run(options, rest) -> int``; imported when the command runs."""

# Errors whose message says what was expected, what came and what to do; any other keeps its traceback.
_EXPECTED = (ValueError, OSError, NotImplementedError, argparse.ArgumentError)
_ARGUMENT = re.compile(r"\b([Pp])ass (\w+)=True")
_MISSING = re.compile(r"No module named '(\w+)[\w.]*'")
_NO_CLASS = re.compile(
    r"class_path 'guerdon\.(?:\w+\.)*(\w+)': (?:module '[\w.]+' has no attribute '\w+'|No module named '[\w.]+')"
)
_OPTIONAL = {"metaworld": "sim", "gymnasium": "sim", "gymnasium_robotics": "sim", "ray": "ray", "minari": "minari"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        0, 2 after an error that was explained in one line, or 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("GUERDON_DEBUG", "") not in ("", "0")
    arguments = [a for a in arguments if a != "--debug"]
    options = argparse.Namespace()
    try:
        options, rest = build_parser(__version__).parse_known_args(arguments)
        if rest and not options.overrides:
            Parser(prog=f"guerdon {options.command}").error(f"unrecognised arguments: {' '.join(rest)}")
        with _current_folder_importable(options), warnings.catch_warnings():
            # Python hides these from users; here it is their file that is old
            warnings.filterwarnings("default", r".* as version 0\.1 did", DeprecationWarning)
            command = importlib.import_module(f".commands.{COMMANDS[options.command]}", __package__)
            return command.run(options, rest)
    except SystemExit as stop:  # argparse leaves this way, after --help too
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except KeyboardInterrupt:
        print("\nguerdon: interrupted; nothing half-written remains", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `guerdon inspect … | head` closed the pipe: no error, and nothing more to print
        sys.stdout = open(os.devnull, "w")
        return 0
    except Exception as error:
        message = _explain(error, options)
        if debug or message is None:
            raise
        print(f"guerdon: error: {message}", file=sys.stderr)
        return 2


@contextmanager
def _current_folder_importable(options: argparse.Namespace) -> Generator[None]:
    """Let a command that imports classes by name find a user's own in the current folder, as ``python -m`` would.

    The folder comes last on the path, so that no file in it hides an installed module. Commands that open saved
    components import nothing of it without ``--trust``.
    """
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path or not _imports_own_classes(options):
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _imports_own_classes(options: argparse.Namespace) -> bool:
    """Tell whether a command imports classes outside guerdon by name: from a configuration, or with ``--trust``."""
    return bool(getattr(options, "own_classes", False) or getattr(options, "trust", False))


def _flag(found: re.Match[str], options: argparse.Namespace) -> str:
    """Return the flag that a command has for an argument, or the text as it is where it has none."""
    if not hasattr(options, found[2]):
        return found[0]
    return f"{'Give' if found[1] == 'P' else 'give'} --{found[2].replace('_', '-')}"


def _explain(error: Exception, options: argparse.Namespace) -> str | None:
    """Return one line for an expected error, None for one that should keep its traceback."""
    text = " ".join(str(error).split())
    # messages of functions name their arguments; here the reader gives flags
    text = _ARGUMENT.sub(lambda found: _flag(found, options), text)
    # lightning and jsonargparse are imported by now if they raised, and must not be imported just to ask
    expected = isinstance(error, _EXPECTED) or type(error).__name__ in ("MisconfigurationException", "ArgumentError")
    missing = _MISSING.search(text) if expected else None
    if missing and missing[1] not in ("guerdon", *_OPTIONAL) and _imports_own_classes(options):
        return (
            f"{text[: missing.end()]}; install it or, if it is a module of your own, run the command in its folder or "
            "put that folder on PYTHONPATH"
        )
    absent = _NO_CLASS.search(text) if expected else None
    if absent:
        return f"{text[: absent.end()]}{nearest(absent[1])}"
    if isinstance(error, ModuleNotFoundError):
        extra = _OPTIONAL.get((error.name or "").partition(".")[0])
        return f"{text}; install it with: pip install 'guerdon[{extra}]'" if extra and "pip" not in text else text
    if isinstance(error, RuntimeError) and "Error(s) in loading state_dict" in text:
        return (
            f"the checkpoint does not fit the configuration: {text[:300]} …; use the config.yaml of its run directory"
        )
    if isinstance(error, TypeError) and " holds a " in text:  # a folder with a component of another kind
        return text
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return (text[:1000] or type(error).__name__) if expected else None


if __name__ == "__main__":
    sys.exit(main())
