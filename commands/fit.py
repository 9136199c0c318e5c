"""The ``fit`` and ``validate`` commands: LightningCLI with a run directory, and a saved component at the end."""

import argparse
import os
import pickle
import shlex
import signal
import sys
import tempfile
import threading
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
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from ..core.files import replacing
from ..core.hub import is_component, save_component
from ..pages.learning_curve import LearningCurve
from ..policies.rollouts.checkpoint import RolloutCheckpoint
from ..policies.rollouts.data import RolloutData
from .key_hints import key_hint
from .learning_check import LearningCheck, NothingLearnedError, trained_component
from .logger_folders import loggers_in_run
from .loop import run_loop, sections_of
from .null_arguments import pass_nulls
from .old_configs import readable_configs, renewed_arguments
from .quiet import quiet
from .recorded_tasks import check_tasks_of_models, names_of_simulators, record_tasks
from .run_directory import (
    CHECKPOINTS,
    CONFIG,
    MODEL,
    asks_only,
    make_run_directory,
    note_checkpoint,
    offered_configs,
    tidy,
    trained_checkpoint,
)

_PARSERS: dict[str, Any] = {
    "prog": "guerdon",
    "exit_on_error": False,  # `cli.main` prints an error in one line
    "fit": {
        "exit_on_error": False,
        "usage": "guerdon fit --config FILE.yaml [--out DIR] [--ckpt_path FILE] [--model.… | --data.… | --trainer.…]",
        "description": "Train what a YAML file names; every value in it can be overridden.",
    },
    "validate": {
        "exit_on_error": False,
        "usage": "guerdon validate --config FILE.yaml [--ckpt_path FILE] [--model.… | --data.… | --trainer.…]",
        "description": "Print the validation metrics of what a YAML file names.",
    },
}


class _Interrupted(lightning.Callback):
    """Callback that keeps a checkpoint when training is interrupted."""

    def __init__(self, run: Path) -> None:
        self.run, self.happened, self.kept, self.step = run, False, None, 0
        self.terminated = False

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
        """Count the updates that an interrupt would lose."""
        self.step = max(trainer.global_step, 1)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Write a checkpoint when the exception is Ctrl-C or a request to terminate.

        A run on rollouts has one already, of the moment between two rollouts, from which it goes on exactly.
        """
        if not isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            return
        self.happened, self.terminated = True, isinstance(exception, SIGTERMException)
        between = [c.path for c in cast(Any, trainer).callbacks if isinstance(c, RolloutCheckpoint)]
        if between and between[0] is not None:
            self.kept = between[0]
            return
        if self.step and not trainer.sanity_checking and not getattr(trainer, "fast_dev_run", False):
            target = self.run / CHECKPOINTS / "interrupted.ckpt"
            with replacing(target) as fresh:
                trainer.save_checkpoint(fresh)
            self.kept = target


class _SaveConfig(SaveConfigCallback):
    """Callback that writes the whole configuration into the run directory, whatever the logger."""

    def save_config(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Write the configuration; Lightning calls this on the first process only."""
        target = Path(cast(str, self.config["out"])) / CONFIG
        with replacing(target) as fresh:
            self.parser.save(self.config, str(fresh), skip_none=False, overwrite=True, multifile=False)


class _Command(LightningCLI):
    """LightningCLI with two commands, whose logs and checkpoints go into the run directory."""

    _check: LearningCheck

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer ``fit`` and ``validate``; ``score`` and ``evaluate`` are commands of their own."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run directory as an argument, so that the saved configuration holds it."""
        parser.add_argument(
            "--out",
            type=str | None,
            default=None,
            help="Run directory; default runs/<name of the config>/<date and time>.",
        )

    def _parse_ckpt_path(self) -> None:
        # LightningCLI would let hyper-parameters stored in the checkpoint override the YAML: here the YAML rules, and
        # weights that do not fit it are an error. A file that is no checkpoint is found here, before data are read
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

    def instantiate_classes(self) -> None:
        """Build everything; an error about a value of the configuration names its key."""
        with self._naming_keys():
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        with self._naming_keys():
            super()._run_subcommand(subcommand)

    @contextmanager
    def _naming_keys(self) -> Generator[None]:
        try:
            yield
        except (FileNotFoundError, ValueError) as error:
            if type(error) not in (FileNotFoundError, ValueError):  # others are made of more than a text
                raise
            config = self.config[self.config["subcommand"]].as_dict()
            text = tidy(str(error)) if "Does not validate" in str(error) else str(error)
            hint = key_hint(text, config)
            if not hint:
                raise
            raise type(error)(f"{text.rstrip()}; {hint}") from error

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Put logs and checkpoints into the run directory unless the YAML names another place."""
        settings = cast(dict[str, Any], self._get(self.config_init, "trainer"))
        given = settings.get("callbacks") or []
        callbacks: list[Any] = [*given] if isinstance(given, list) else [given]
        checkpoints = any(isinstance(c, Checkpoint) for c in callbacks)
        if self.subcommand == "validate":  # a checkpoint callback of the configuration keeps nothing here
            return super().instantiate_trainer(**{"logger": False, "enable_checkpointing": checkpoints, **kwargs})
        run = Path(cast(str, self._get(self.config, "out")))
        rollouts = isinstance(self.datamodule, RolloutData)
        if settings.get("enable_checkpointing") is not False:
            if rollouts and not any(isinstance(c, RolloutCheckpoint) for c in callbacks):
                callbacks.append(RolloutCheckpoint(run / CHECKPOINTS))
            elif not checkpoints:
                callbacks.append(ModelCheckpoint(dirpath=run / CHECKPOINTS, save_last=True))
        self._check = LearningCheck()
        callbacks.append(self._check)
        defaults: dict[str, Any] = {"callbacks": callbacks}
        if settings.get("default_root_dir") is None:
            defaults["default_root_dir"] = str(run)
        if settings.get("logger") in (None, True):
            defaults["logger"] = CSVLogger(str(run), name="logs")
        if rollouts:
            if not any(isinstance(c, LearningCurve) for c in callbacks):
                callbacks.append(LearningCurve())
            if settings.get("log_every_n_steps") is None:
                defaults["log_every_n_steps"] = 1  # a rollout is long; Lightning's 50 would log nothing
        return super().instantiate_trainer(**{**defaults, **kwargs})

    def before_fit(self) -> None:
        """Refuse to play a task that the models of the configuration were not trained on."""
        data = self.datamodule
        if isinstance(data, RolloutData):
            named = any(a.partition("=")[0] in ("--data.task", "--data.init_args.task") for a in sys.argv)
            config = self.config["fit"].as_dict()
            check_tasks_of_models(config["model"], data.task_names, named, lambda: names_of_simulators(data))

    def after_fit(self) -> None:
        """Save the trained component, with the best weights where a checkpoint callback monitored a metric."""
        if not self.trainer.is_global_zero:
            return
        if self._check.component_unchanged and not getattr(self.trainer, "fast_dev_run", False):
            what = type(trained_component(self.model)).__name__
            print(
                f"guerdon: warning: no weight of {what} was changed by this run; it is saved as it was", file=sys.stderr
            )
        kept: list[Any] = list(self.trainer.checkpoint_callbacks)
        monitored = [
            c
            for c in kept
            if getattr(c, "monitor", None) and Path(getattr(c, "best_model_path", None) or "?").is_file()
        ]
        if monitored:
            source = monitored[0].best_model_path
            stored = torch.load(source, map_location="cpu", weights_only=True)
            self.model.load_state_dict(stored["state_dict"])
            print(f"saving the weights of {source}, where {monitored[0].monitor} was best")
        else:
            paths = [Path(getattr(c, "last_model_path", None) or getattr(c, "path", None) or "?") for c in kept]
            source = max((p for p in paths if p.is_file()), key=lambda p: p.stat().st_mtime, default=None)
        run = Path(cast(str, self._get(self.config, "out")))
        save_component(trained_component(self.model), run / MODEL)
        for name, companion in companions(self.model).items():
            save_component(companion, run / name)
        record_tasks(run, self.datamodule)
        if source is not None:
            note_checkpoint(run, Path(source), self.model.state_dict())


def companions(module: nn.Module) -> dict[str, nn.Module]:
    """Return the components that a LightningModule saves with its own, by folder: its ``companions``, if any.

    A critic saves the reward that its values are sums of, with the numbers it took from the data.
    """
    found = cast(dict[str, Any], getattr(module, "companions", {}))
    return {name: part for name, part in found.items() if is_component(part)}


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run ``fit`` or ``validate``.

    Args:
        options: ``command`` ("fit" or "validate"), ``config`` (names or paths) and ``out`` (run directory, or None for
            a new one under ``runs/``).
        rest: Overrides and other arguments that LightningCLI reads.

    Returns:
        0, 130 when interrupted, or 143 when terminated.

    Raises:
        ValueError: If the configuration makes no sense, or there is none.
        FileNotFoundError: If a configuration, a checkpoint or the data are missing.
        FileExistsError: If the run directory holds a run that is not continued.
    """
    with readable_configs(options.config) as configs:
        if any("loop" in sections_of(config) for config in configs):
            if options.command != "fit":
                raise ValueError(
                    f"{options.config[-1]} has the section loop, and a loop has nothing to validate: run it with "
                    "guerdon fit, and evaluate the policy that it saves with guerdon evaluate"
                )
            return run_loop(options.config, configs, rest, options.out)
        arguments = pass_nulls(renewed_arguments(rest, configs), configs)
        return _run(options.command, configs, arguments, options.out, options.config)


def _run(command: str, configs: Sequence[Path], rest: Sequence[str], out: Path | None, given: Sequence[str]) -> int:
    arguments = [*(part for config in configs for part in ("--config", str(config))), *rest]
    only_asks = asks_only(arguments)
    if not only_asks and not any(a.startswith(("-c", "--config", "--model")) for a in arguments):
        raise ValueError(f"nothing to {command}: expected --config FILE.yaml; {offered_configs()}")
    if command == "fit" and not only_asks:
        return _train(configs, rest, out)
    with tempfile.TemporaryDirectory(prefix="guerdon-config-") as copies:
        if not only_asks:  # a logger that needs a folder is built, and then not used
            arguments = loggers_in_run(configs, rest, out or Path(), Path(copies))
        if out is not None:
            arguments += ["--out", str(out)]
        if command == "validate" and not only_asks:
            arguments += _trained_weights(given, arguments)
        with _as_process(command, arguments):
            return _call_lightning(None)


def _trained_weights(configs: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the argument that validates the trained weights of a run, where its own configuration was given.

    Raises:
        ValueError: If the run kept no checkpoint with the weights of its model.
    """
    runs = [path.parent for path in map(Path, configs) if path.name == CONFIG]
    runs = [run for run in runs if (run / MODEL).is_dir() or (run / CHECKPOINTS).is_dir()]
    if not runs or any(a.partition("=")[0] == "--ckpt_path" for a in arguments):
        return []
    run = runs[-1]
    checkpoint, ended = trained_checkpoint(run), (run / MODEL).is_dir()
    if checkpoint is None and not ended:
        return []
    if checkpoint is None:
        raise ValueError(
            f"{run} kept no checkpoint with the weights of its model, so that its configuration alone would validate "
            f"the model it started from: evaluate the trained one with guerdon evaluate --model "
            f"{shlex.quote(str(run / MODEL))}, or give --ckpt_path null to validate the start"
        )
    what = "the trained weights" if ended else "the last weights of a run that did not end"
    print(
        f"guerdon: validating {what}, {checkpoint}; give --ckpt_path FILE for others, or --ckpt_path null "
        "for what training started from",
        file=sys.stderr,
    )
    return ["--ckpt_path", str(checkpoint)]


def _train(configs: Sequence[Path], rest: Sequence[str], out: Path | None) -> int:
    """Train in a run directory, which is removed again where no update was made."""
    config = configs[0] if configs else None
    directory = make_run_directory(config, out, resumes=any(a.startswith("--ckpt_path") for a in rest))
    keeper, done = _Interrupted(directory.folder), False
    try:
        with tempfile.TemporaryDirectory(prefix="guerdon-config-") as copies:
            arguments = loggers_in_run(configs, rest, directory.folder, Path(copies))
            with _as_process("fit", [*arguments, "--out", str(directory.folder)]):
                code = _call_lightning(keeper)
        done = code == 0 and not keeper.happened
    except NothingLearnedError:
        directory.take_back()  # neither checkpoints nor logs are worth keeping
        raise
    finally:
        if not done and not keeper.step:
            directory.take_back()
    if keeper.happened:
        _say_how_to_resume(keeper)
        return 143 if keeper.terminated else 130
    if done and "LOCAL_RANK" not in os.environ:
        print(directory.folder / MODEL)
    return code


def _call_lightning(keeper: "_Interrupted | None") -> int:
    """Run LightningCLI on ``sys.argv`` and return the exit code.

    Args:
        keeper: Callback that keeps a checkpoint when training is interrupted; None where nothing is trained.

    Raises:
        ValueError: If arguments or configuration make no sense, in one line.
    """
    try:
        _Command(
            save_config_callback=None if keeper is None else _SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=None if keeper is None else {"callbacks": [keeper]},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs=_PARSERS,
        )
    except SystemExit as stop:
        return int(stop.code or 0)
    except ArgumentError as error:
        raise ValueError(tidy(str(error))) from error
    except ValueError as error:
        if "Does not validate" not in str(error):
            raise
        raise ValueError(tidy(str(error))) from error  # what a constructor refused, inside an account of every type
    return 0


@contextmanager
def _as_process(command: str, arguments: Sequence[str]) -> Generator[None]:
    """Put the arguments into ``sys.argv`` for LightningCLI, silence its notes, and restore everything afterwards.

    LightningCLI warns when it is given arguments other than those of the process, and the processes of a distributed
    run are started again from ``sys.argv``.
    """
    before, handler = sys.argv, signal.getsignal(signal.SIGINT)
    sys.argv = [before[0] if before else "guerdon", command, *arguments]
    try:
        with quiet():
            yield
    finally:
        sys.argv = before
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)  # lightning ignores Ctrl-C from the first one on


def _say_how_to_resume(interrupted: _Interrupted) -> None:
    if interrupted.kept is None:
        print("guerdon: interrupted before the first update; nothing was kept", file=sys.stderr)
        return
    print(
        f"guerdon: interrupted after {interrupted.step} updates; kept {interrupted.kept}; go on with the same command "
        f"and --out {shlex.quote(str(interrupted.run))} --ckpt_path {shlex.quote(str(interrupted.kept))}",
        file=sys.stderr,
    )
