"""The `guerdon` command: collect, labels, fit, validate, sft, score, evaluate, calibrate, report, inspect, demo."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from . import __version__

# Nothing heavier than argparse is imported up here, and guerdon's own modules only inside the command that needs them:
# most of them import torch, which alone takes longer than `guerdon --version` may.

# Errors that say themselves what was expected, what came and what to do; anything else keeps its traceback.
_EXPECTED = (ValueError, OSError, NotImplementedError, argparse.ArgumentError)
_OPTIONAL = {"metaworld": "sim", "gymnasium": "sim", "gymnasium_robotics": "sim", "ray": "ray", "minari": "minari"}


class _Parser(argparse.ArgumentParser):
    """Errors in one line; the usage is a ``--help`` away."""

    def error(self, message: str) -> NoReturn:
        print(f"guerdon: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


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
    try:
        parsed, rest = _parser().parse_known_args(arguments)
        if rest and parsed.command not in ("fit", "validate", "labels", "sft"):
            _Parser(prog=f"guerdon {parsed.command}").error(f"unrecognised arguments: {' '.join(rest)}")
        run = cast(Callable[[argparse.Namespace, list[str]], int], parsed.run)
        return run(parsed, rest)
    except SystemExit as stop:  # argparse leaves this way, after --help too
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except KeyboardInterrupt:
        print("\nguerdon: interrupted; nothing half-written remains", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `guerdon inspect … | head` closed the pipe: no error, but nothing more to say either
        sys.stdout = open(os.devnull, "w")
        return 0
    except Exception as error:
        message = _explain(error)
        if debug or message is None:
            raise
        print(f"guerdon: error: {message}", file=sys.stderr)
        return 2


def _explain(error: Exception) -> str | None:
    """One line for an expected error, None for one that should keep its traceback."""
    text = " ".join(str(error).split())
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
    # lightning and jsonargparse are imported by now if they raised, and must not be imported just to ask
    expected = isinstance(error, _EXPECTED) or type(error).__name__ in ("MisconfigurationException", "ArgumentError")
    return (text[:1000] or type(error).__name__) if expected else None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="guerdon", description="Train, judge and use reward models for robot policies.")
    parser.add_argument("--version", action="version", version=f"guerdon {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error (or GUERDON_DEBUG=1)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace, list[str]], int], help: str, **options: Any) -> _Parser:
        command = commands.add_parser(name, help=help, description=f"{help}.", **options)
        command.set_defaults(run=run)
        return command

    _add_collect(add("collect", _collect, "Collect simulated episodes of chosen quality into a LeRobot data set"))
    for name, help in (
        ("fit", "Train the reward model, critic or policy that a YAML file names"),
        ("validate", "Print the validation figures of what a YAML file names"),
    ):
        # LightningCLI answers --help: it knows every argument of the trainer
        command = add(name, _fit, help, add_help=False)
        command.add_argument("--config", "-c", action="append", default=[], metavar="FILE.yaml")
        command.add_argument("--out", type=Path, metavar="DIR")
    sft = add("sft", _sft, "Fine-tune the vision-language task decomposer that a YAML file names", add_help=False)
    sft.add_argument("--config", "-c", action="append", default=[], metavar="FILE.yaml")
    sft.add_argument("--out", type=Path, metavar="DIR")
    sft.add_argument("--resume", action="store_true")
    _add_score(add("score", _score, "Score every episode of a data set with a reward model or a critic"))
    _add_evaluate(add("evaluate", _evaluate, "Judge a reward model, beside controls, or a critic on a data set"))
    _add_calibrate(add("calibrate", _calibrate, "Calibrate a reward model on a held-out split, and let it abstain"))
    labels = add("labels", _labels, "Draw training samples with their targets, as a picture to check")
    labels.add_argument("--data", type=Path, metavar="DIR", help="data set, drawn from with the default labels")
    labels.add_argument("--config", metavar="FILE.yaml", help="instead: the data section of a training configuration")
    labels.add_argument("--show", type=int, default=20, metavar="N", help="samples; default: %(default)s")
    labels.add_argument("--seed", type=int, help="of the draws; default: the configuration's")
    labels.add_argument("--out", type=Path, default=Path("labels.png"), metavar="FILE.png", help="default: %(default)s")
    report = add("report", _report, "Write one HTML page about a folder of scores")
    report.add_argument("--scores", type=Path, required=True, metavar="DIR", help="folder `guerdon score` wrote")
    report.add_argument("--out", type=Path, required=True, metavar="PAGE.html", help="page to write")
    report.add_argument("--episodes", type=int, default=3, metavar="N", help="best, worst and doubtful ones to show")
    report.add_argument("--evaluation", type=Path, metavar="FILE", help="also show what `evaluate --json FILE` wrote")
    inspect = add("inspect", _inspect, "Say what a folder is: a data set, a component, scores, a run, a feature cache")
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument("--evict", metavar="SIZE", help="cut a feature cache to 20GB, 500MB…, what is unused longest")
    demo = add("demo", _demo, "Run the main job once: logs, reward model, scores, a better policy, a report")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--quick", action="store_true", help="a minute instead of several, with weaker results")
    return parser


def _add_collect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", required=True, help="task, such as metaworld/drawer-open-v3 or mujoco/reach")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not hold anything")
    parser.add_argument("--episodes", type=int, default=20, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of initial states and behaviour")
    parser.add_argument(
        "--quality", default="mixed", help="mixed, expert, noisy, aborted, random, or shares: expert=0.5,random=0.5"
    )
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument("--frames", action="store_true", default=None, help="record pictures, or fail")
    frames.add_argument("--states-only", dest="frames", action="store_false", help="record no pictures")
    parser.add_argument("--image-size", type=int, default=96, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--camera", action="append", metavar="NAME", help="may be repeated; default: the first")
    parser.add_argument("--split", choices=("train", "eval"), default="train", help="whose initial states")
    parser.add_argument("--horizon", type=int, metavar="STEPS", help="time limit; default: the task's own")


def _add_model_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a saved model, or owner/name")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set, in any format read here")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="episodes at once; default: %(default)s")
    parser.add_argument("--device", default="auto", help="cpu, cuda, …; default: a GPU where there is one")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep features of a frozen encoder here")
    parser.add_argument("--trust", action="store_true", help="open a model whose class is not part of guerdon")


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_model_and_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for scores.parquet")
    parser.add_argument("--policy", metavar="DIR", help="policy whose chunks a critic values observations by")
    parser.add_argument("--terminating", metavar="ENDS", help="no value after these; default: what its reward prices")
    parser.add_argument("--overwrite", action="store_true", help="replace the scores of another model or data set")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_model_and_data(parser)
    parser.add_argument("--split", default="", help="only episodes of this split; default: all")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], metavar="DIR", help="one more data set, such as another task"
    )
    parser.add_argument("--against", metavar="OTHER_MODEL", help="compare with this model on the same episodes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--seed", type=int, default=0, help="of shuffling, wrong instructions and the bootstrap")
    parser.add_argument(
        "--threshold", type=float, metavar="SCORE", help="called a success from here; default: 0.5, for probabilities"
    )
    parser.add_argument(
        "--confusion",
        type=int,
        default=5,
        metavar="M",
        help="episodes of each of up to 12 tasks that are asked every instruction; 0 for none; default: %(default)s",
    )
    parser.add_argument(
        "--quality-order", default="", metavar="WORST,…,BEST", help="of recorded qualities; default: where known"
    )

    group = parser.add_argument_group("for a critic")
    group.add_argument("--policy", metavar="DIR", help="policy whose chunks are valued, and that acts with --env")
    group.add_argument("--env", metavar="TASK", help="roll returns out again in this task, such as mujoco/reach")
    group.add_argument("--states", type=int, default=32, metavar="N", help="to roll out from; default: %(default)s")
    group.add_argument("--rollouts", type=int, default=4, metavar="R", help="of each; default: %(default)s")
    group.add_argument("--candidates", type=int, default=4, metavar="C", help="chunks at a state; default: %(default)s")
    group.add_argument("--horizon", type=int, metavar="STEPS", help="time limit of the task; default: its own")
    group.add_argument(
        "--reward",
        metavar="DIR",
        help="reward model that the critic learned; default: the one its run left, else a step cost",
    )
    group.add_argument("--failure-cost", type=float, metavar="C", help="of the step cost; default: the mean length")
    group.add_argument("--scale", type=float, metavar="S", help="of the step cost; default: taken from the data")
    group.add_argument("--terminating", metavar="ENDS", help="such as success,failure; default: what the reward prices")
    group.add_argument(
        "--tail",
        choices=("never", "failure", "zero"),
        help="what follows the time limit; default: failure where that terminates, never elsewhere",
    )


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    _add_model_and_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not hold anything")
    parser.add_argument("--split", default="val", help="one it was not trained on; default: %(default)s; '' for all")
    parser.add_argument("--method", choices=("temperature", "platt", "isotonic"), default="isotonic")
    parser.add_argument("--progress", action="store_true", help="also calibrate progress, by isotonic regression")
    parser.add_argument("--abstain", type=float, default=0.0, metavar="SHARE", help="of observations; default: none")
    parser.add_argument("--by", choices=("spread", "confidence"), help="what to abstain by; default: spread if known")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--seed", type=int, default=0, help="of the folds and the bootstrap")


def _collect(options: argparse.Namespace, rest: list[str]) -> int:
    from .envs.collect import collect_dataset

    report = collect_dataset(
        env=options.env,
        out=options.out,
        episodes=options.episodes,
        seed=options.seed,
        quality=_quality(options.quality),
        frames=options.frames,
        image_size=options.image_size,
        cameras=options.camera,
        split=options.split,
        horizon=options.horizon,
    )
    print("\n".join(report.lines()))
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _quality(text: str) -> str | dict[str, float]:
    if "=" not in text:
        return text
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise ValueError(f"--quality {text}: expected shares such as expert=0.5,random=0.5") from None
    return shares


def _fit(options: argparse.Namespace, rest: list[str]) -> int:
    from .commands import fit

    configs = [fit.resolve_config(name) for name in options.config]
    arguments = [part for config in configs for part in ("--config", str(config))] + rest
    return fit.run(options.command, arguments, configs[0] if configs else None, options.out)


def _sft(options: argparse.Namespace, rest: list[str]) -> int:
    from .commands import sft

    return sft.run(options.config, rest, options.out, options.resume)


def _score(options: argparse.Namespace, rest: list[str]) -> int:
    from .scoring.dataset import score_dataset
    from .scoring.scores import SCORES

    _can_write(options.out / SCORES)
    proposer = None
    if options.policy is not None:
        from .commands.evaluate_critic import open_proposer

        proposer, _ = open_proposer(options.policy, options.device, options.trust)
    existed = options.out.exists()
    try:
        report = score_dataset(
            options.model,
            options.data,
            options.out,
            batch_size=options.batch_size,
            device=options.device,
            cache=options.cache,
            overwrite=options.overwrite,
            trust=options.trust,
            proposer=proposer,
            terminating=None if options.terminating is None else _names(options.terminating),
        )
    except BaseException:
        if not existed and options.out.is_dir() and not any(options.out.iterdir()):
            options.out.rmdir()
        raise
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    print(f"{report.episodes - len(report.bad)} of {report.episodes} episodes scored{resumed}")
    print(f"{report.estimated} of {report.observations} observations have an estimate")
    for name, reasons in report.counters.items():
        for why, count in reasons.items():
            print(f"  {name} {count}: {why}")
    for bad in report.bad:
        print(f"  episode {bad.index} not scored, {bad.status}: {bad.reason}")
    print(report.path)
    return 0


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:

    from rich.console import Console

    from .commands import evaluate_critic
    from .core.files import write_json
    from .core.interfaces import Critic, RewardModel
    from .core.opening import open_component, open_reward_model
    from .datasets.joined import JoinedDatasets
    from .datasets.opening import open_dataset
    from .evaluation.dataset import evaluate_dataset
    from .evaluation.table import print_evaluation

    _can_write(options.json)
    model, said = open_component(
        options.model, (RewardModel, Critic), "a reward model or a critic", options.device, options.trust
    )
    datasets = [open_dataset(path) for path in (options.data, *options.also)]
    dataset = JoinedDatasets(datasets) if options.also else datasets[0]
    if isinstance(model, Critic):
        return evaluate_critic.run(options, model, said, dataset)
    evaluate_critic.refuse_for_reward_models(options)
    other, other_said = None, None
    if options.against is not None:
        other, other_said = open_reward_model(options.against, device=options.device, trust=options.trust)
    evaluation = evaluate_dataset(
        model,
        dataset,
        split=options.split,
        batch_size=options.batch_size,
        cache=options.cache,
        seed=options.seed,
        model=said,
        version=__version__,
        console=Console(stderr=True),
        threshold=options.threshold,
        confusion=options.confusion,
        quality_order=_names(options.quality_order),
        against=other,
        against_model=other_said,
    )
    # a pipe has no width: give tables the room they need rather than fold them at 80 columns
    print_evaluation(evaluation, Console(width=None if sys.stdout.isatty() else 100))
    if options.json is not None:
        write_json(options.json, evaluation.to_json())
    return 0


def _calibrate(options: argparse.Namespace, rest: list[str]) -> int:
    from .commands.calibrate import run

    _can_write(options.json)
    return run(options)


def _labels(options: argparse.Namespace, rest: list[str]) -> int:
    from .commands.labels import run

    return run(options.data, options.config, rest, options.show, options.seed, options.out)


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    from .pages.report import write_report

    _can_write(options.out)
    print(write_report(options.scores, options.out, episodes=options.episodes, evaluation=options.evaluation))
    return 0


def _inspect(options: argparse.Namespace, rest: list[str]) -> int:
    from .commands.inspecting import describe_folder

    describe_folder(options.folder, None, options.evict)
    return 0


def _can_write(path: Path | None) -> None:
    """Refuse an output that cannot be written before the work is done, not after."""
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the file to write")
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK) or not (existing.is_dir() or existing == path.absolute()):
        raise PermissionError(f"cannot write {path}: {existing} is no folder that can be written; choose another place")


def _demo(options: argparse.Namespace, rest: list[str]) -> int:
    from .commands.demo import run

    run(options.out, seed=options.seed, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
