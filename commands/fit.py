"""The ``fit`` and ``validate`` commands: LightningCLI with a run directory, and a shareable folder at the end.

Kept apart from `cli` because importing lightning takes seconds and ``guerdon --version`` must not wait for it.
"""

import logging
import os
import pickle
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from ..core.files import replacing
from ..core.hub import is_component, save_component

MODEL, CONFIG, CHECKPOINTS = "model", "config.yaml", "checkpoints"
_PARSERS: dict[str, Any] = {
    "prog": "guerdon",
    "exit_on_error": False,  # an error is told in one line by `cli.main`
    "fit": {
        "exit_on_error": False,
        "usage": "guerdon fit --config FILE.yaml [--out DIR] [--ckpt_path FILE] [--model.… | --data.… | --trainer.…]",
        "description": "Train what a YAML file names; every value of it can be overridden.",
    },
    "validate": {
        "exit_on_error": False,
        "usage": "guerdon validate --config FILE.yaml [--ckpt_path FILE] [--model.… | --data.… | --trainer.…]",
        "description": "Print the validation figures of what a YAML file names.",
    },
}
_SHARED = ("component", "reward", "critic", "policy")
_QUIET = (
    # inside torch's own pytree code, called by lightning
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # small networks on few cores: workers cost more than they bring, and the YAML can ask for them
    "does not have many workers",
    "The number of training batches",
    # a frozen encoder inside a model stays in evaluation mode
    r"Found \d+ module\(s\) in eval mode",
    # a data set without a validation split is allowed, and EpisodeData then gives no loader
    "Total length of `list` across ranks is zero",
    # resuming into the run directory is what --ckpt_path is for
    r"Checkpoint directory .* exists and is not empty",
    # validate keeps no checkpoints, so it has no callback that would
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # tasks have no optimizer state worth a warning when resumed in the middle of an epoch
    "You're resuming from a checkpoint that ended before the epoch ended",
)


class _Interrupted(lightning.Callback):
    """Keeps a checkpoint when training is interrupted."""

    def __init__(self, run: Path) -> None:
        self.run, self.happened, self.kept, self.step = run, False, None, 0

    kept: Path | None
    step: int

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count what would be lost."""
        self.step = max(trainer.global_step, 1)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Write what there is, whole or not at all."""
        if not isinstance(exception, KeyboardInterrupt):
            return
        self.happened = True
        if self.step and not trainer.sanity_checking and not getattr(trainer, "fast_dev_run", False):
            target = self.run / CHECKPOINTS / "interrupted.ckpt"
            with replacing(target) as fresh:
                trainer.save_checkpoint(fresh)
            self.kept = target


class _SaveConfig(SaveConfigCallback):
    """Writes the whole configuration into the run directory, once, whatever the logger."""

    def save_config(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Called on the first process only."""
        target = Path(cast(str, self.config["out"])) / CONFIG
        with replacing(target) as fresh:
            self.parser.save(self.config, str(fresh), skip_none=False, overwrite=True, multifile=False)


class _Command(LightningCLI):
    """LightningCLI with two commands, logs and checkpoints inside the run directory, and no surprise elsewhere."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit`` and ``validate``; the other two have commands of their own (``score``, ``evaluate``)."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run directory is an argument like any other, so that the saved configuration holds it."""
        parser.add_argument(
            "--out",
            type=str | None,
            default=None,
            help="Run directory; default runs/<name of the config>/<date and time>.",
        )

    def _parse_ckpt_path(self) -> None:
        # LightningCLI would let hyper-parameters stored in the checkpoint override the YAML: here the YAML rules, and
        # weights that do not fit it are an error. What is no checkpoint at all is found here, before data are read
        given = cast(str | None, self.config[self.config["subcommand"]].get("ckpt_path"))
        if given is None or given in ("best", "last"):
            return
        if not Path(given).is_file():
            raise FileNotFoundError(f"there is no checkpoint {given}")
        try:
            stored = torch.load(given, map_location="cpu", weights_only=True, mmap=True)
            known = "state_dict" in stored
        except (pickle.UnpicklingError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"{given} is no checkpoint that can be read: it was cut short, or is another file"
            ) from error
        if not known:
            raise ValueError(f"{given} is no checkpoint of a training run: it holds no state_dict")

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Put logs and checkpoints into the run directory unless the YAML says where they go."""
        settings = cast(dict[str, Any], self._get(self.config_init, "trainer"))
        if self.subcommand == "validate":
            return super().instantiate_trainer(**{"logger": False, "enable_checkpointing": False, **kwargs})
        run = Path(cast(str, self._get(self.config, "out")))
        given = settings.get("callbacks") or []
        callbacks: list[Any] = [*given] if isinstance(given, list) else [given]
        if settings.get("enable_checkpointing") is not False and not any(isinstance(c, Checkpoint) for c in callbacks):
            callbacks.append(ModelCheckpoint(dirpath=run / CHECKPOINTS, save_last=True))
        defaults: dict[str, Any] = {"callbacks": callbacks}
        if settings.get("default_root_dir") is None:
            defaults["default_root_dir"] = str(run)
        if settings.get("logger") in (None, True):
            defaults["logger"] = CSVLogger(str(run), name="logs")
        return super().instantiate_trainer(**{**defaults, **kwargs})

    def after_fit(self) -> None:
        """Save the component that was trained, with the best weights where a checkpoint callback watched a figure."""
        if not self.trainer.is_global_zero:
            return
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "") if getattr(checkpoint, "monitor", None) else ""
        if best and Path(best).is_file():
            stored = torch.load(best, map_location="cpu", weights_only=True)
            self.model.load_state_dict(stored["state_dict"])
            print(f"sharing the weights of {best} ({checkpoint.monitor} was best there)")  # pyright: ignore
        run = Path(cast(str, self._get(self.config, "out")))
        save_component(trained_component(self.model), run / MODEL)
        for name, companion in companions(self.model).items():
            save_component(companion, run / name)


def trained_component(module: nn.Module) -> nn.Module:
    """What a LightningModule shares: its ``component``, or its reward, critic or policy.

    Raises:
        ValueError: If it has none of them.
    """
    for name in _SHARED:
        found = getattr(module, name, None)
        if is_component(found):
            return cast(nn.Module, found)
    raise ValueError(
        f"{type(module).__name__} has nothing to share: give it a property `component` that returns what it trains"
    )


def companions(module: nn.Module) -> dict[str, nn.Module]:
    """What a LightningModule leaves beside its component, by folder: its ``companions``, where it has any.

    A critic's values mean little without the reward they are sums of, fitted numbers included.
    """
    found = cast(dict[str, Any], getattr(module, "companions", {}))
    return {name: part for name, part in found.items() if is_component(part)}


def run(command: str, arguments: Sequence[str], config: Path | None, out: Path | None) -> int:
    """Run ``fit`` or ``validate``.

    Args:
        command: ``"fit"`` or ``"validate"``.
        arguments: What LightningCLI reads, ``--config`` included.
        config: The first ``--config``, which names the run.
        out: Run directory; None makes a new one under ``runs/``.

    Returns:
        0, or 130 when interrupted.
    """
    asks_only = any(a in ("-h", "--help") or a.startswith(("--help", "--print_config")) for a in arguments)
    if not asks_only and not any(a.startswith(("-c", "--config", "--model")) for a in arguments):
        raise ValueError(f"nothing to {command}: expected --config FILE.yaml; {_offered()}")
    trains = command == "fit" and not asks_only
    folder, made = Path(), list[Path]()
    if trains:
        folder, made = run_directory(config, out, resumes=any(a.startswith("--ckpt_path") for a in arguments))
        arguments = [*arguments, "--out", str(folder)]
    elif out is not None:
        arguments = [*arguments, "--out", str(out)]
    keeper = _Interrupted(folder)
    earlier = set(folder.iterdir()) if trains else set[Path]()
    done = False
    try:
        with _as_process(command, arguments):
            _Command(
                save_config_callback=_SaveConfig if trains else None,
                save_config_kwargs={"save_to_log_dir": False},
                trainer_defaults={"callbacks": [keeper]} if trains else None,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                parser_kwargs=_PARSERS,
            )
        done = True
    except SystemExit as stop:
        if not keeper.happened:
            return int(stop.code or 0)
        _say_how_to_resume(keeper)
        return 130
    except ArgumentError as error:
        raise ValueError(tidy(str(error))) from error
    except ValueError as error:
        if "Does not validate" not in str(error):
            raise
        raise ValueError(tidy(str(error))) from error  # what a constructor refused, inside an account of every type
    finally:
        if trains and not done and not keeper.step:
            take_back(folder, earlier, made)
    if trains and "LOCAL_RANK" not in os.environ:
        print(folder / MODEL)
    return 0


@contextmanager
def _as_process(command: str, arguments: Sequence[str]) -> Generator[None]:
    """Let LightningCLI read the arguments from ``sys.argv``, without its chatter, and put everything back.

    It warns when it is given arguments beside those of the process, and the processes of a distributed run are started
    again from ``sys.argv``.
    """
    before, handler = sys.argv, signal.getsignal(signal.SIGINT)
    # lightning's notes speak of devices and of services to subscribe to, not of the training
    notes = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in notes]
    sys.argv = [before[0] if before else "guerdon", command, *arguments]
    try:
        with warnings.catch_warnings():
            for message in _QUIET:
                warnings.filterwarnings("ignore", message=f".*{message}")
            for log in notes:
                log.setLevel(logging.WARNING)
            yield
    finally:
        sys.argv = before
        for log, level in zip(notes, levels, strict=True):
            log.setLevel(level)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # lightning ignores Ctrl-C from the first one on


def tidy(message: str) -> str:
    """What is wrong, out of jsonargparse's account of every type it tried."""
    text = " ".join(message.split())
    for noise in (
        r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: ",
        r"- Expected a <class 'NoneType'> ?",
        r"- Type [^:]{1,120} expects a function or a callable class: .*?(?=Given value type|$)",
        r"- Expected a path but \S+ either not accessible or invalid ?",
        r"Given value type: <class '[\w.]*(?:NestedArg|Namespace)'> Given value: (?:NestedArg|Namespace)\(.*\)",
    ):
        text = re.sub(noise, "", text)
    text = re.sub(r"Given value type: <class '\w+'> Given value: ", "got ", text)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text).replace(": - ", ": ").replace("Parser key ", "")
    return re.sub(r"^(- )+", "", " ".join(text.split()))


def take_back(folder: Path, earlier: set[Path], made: Sequence[Path]) -> None:
    """Remove what a run that failed before its first update wrote: an empty run helps nobody."""
    for path in set(folder.iterdir()) - earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in made:
        if not any(path.iterdir()):
            path.rmdir()


def _say_how_to_resume(interrupted: _Interrupted) -> None:
    if interrupted.kept is None:
        print("guerdon: interrupted before the first update; nothing was kept", file=sys.stderr)
        return
    print(
        f"guerdon: interrupted after {interrupted.step} updates; kept {interrupted.kept}; go on with the same command "
        f"and --out {shlex.quote(str(interrupted.run))} --ckpt_path {shlex.quote(str(interrupted.kept))}",
        file=sys.stderr,
    )


def run_directory(
    config: Path | None, out: Path | None, resumes: bool, going_on: str | None = None
) -> tuple[Path, list[Path]]:
    """Make the run directory; say also which folders did not exist, innermost first.

    Args:
        config: Its name becomes part of a new directory's.
        out: The directory; None takes a new one under ``runs/``.
        resumes: Whether an earlier run in it is gone on with.
        going_on: Argument that would go on with it; None says Lightning's.

    Raises:
        FileExistsError: If it holds an earlier run that is not being resumed.
        OSError: If it cannot be made.
    """
    if out is None:
        # a second run within a second takes the next free name
        stem = Path("runs") / (config.stem if config else "run") / time.strftime("%Y%m%d-%H%M%S")
        out = next(p for n in range(1, 1000) if not (p := stem if n == 1 else Path(f"{stem}-{n}")).exists())
    elif (out / CONFIG).exists() and not resumes and "LOCAL_RANK" not in os.environ:
        how = going_on or f"--ckpt_path {out / CHECKPOINTS / 'last.ckpt'}"
        raise FileExistsError(f"{out} holds an earlier run: choose another --out, or go on with it: {how}")
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot make the run directory {out}: {error.strerror or error}; choose another --out"
        ) from error
    if not os.access(out, os.W_OK):
        raise PermissionError(f"cannot write into the run directory {out}: choose another --out")
    return out, made


def resolve_config(name: str) -> Path:
    """A configuration by path, or by the name of one that comes with guerdon.

    Raises:
        FileNotFoundError: If there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = Path(__file__).parents[1] / "configs"
    packaged = shipped / (path.name if path.suffix else f"{path.name}.yaml")
    if packaged.is_file() and path.parent in (Path("."), Path("configs")):
        return packaged
    raise FileNotFoundError(f"no configuration {name}: expected a YAML file; {_offered()}")


def _offered() -> str:
    names = sorted(p.stem for p in (Path(__file__).parents[1] / "configs").glob("*.yaml"))
    return f"guerdon comes with {', '.join(names)}"
