"""Arguments of the ``guerdon`` command; nothing heavier than argparse is imported, so ``--help`` answers at once."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

JOBS = ("progress", "success", "critic", "clone")
"""What ``guerdon init`` writes a configuration for."""


class Parser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line and points to ``--help`` for the usage."""

    def error(self, message: str) -> NoReturn:
        """Print an error and leave with exit code 2."""
        print(f"guerdon: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser(version: str) -> Parser:
    """Build the parser of all commands.

    Args:
        version: Version of guerdon, for ``--version``.

    Returns:
        A parser whose result holds ``command``; ``overrides`` (whether the command accepts further arguments, which
        override values of a YAML file); and ``own_classes`` (whether the command imports classes by name).
    """
    parser = Parser(prog="guerdon", description="Train, evaluate and use reward models for robot policies.")
    parser.add_argument("--version", action="version", version=f"guerdon {version}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error (or GUERDON_DEBUG=1)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, overrides: bool = False, own_help: bool = False) -> Parser:
        command = commands.add_parser(name, help=help, description=f"{help}.", add_help=not own_help)
        command.set_defaults(overrides=overrides, own_classes=overrides)
        return command

    _add_collect(add("collect", "Collect simulated episodes of chosen quality into a LeRobot data set"))
    # the parsers of fit, validate, sft and loop print their own --help: they know every argument of the trainer
    for name, help in (
        ("fit", "Train the reward model, critic or policy that a YAML file names"),
        ("validate", "Print the validation metrics of what a YAML file names"),
        ("sft", "Fine-tune the vision-language task decomposer that a YAML file names"),
        ("loop", "Run the training loop of several stages that a YAML file names, such as iRe-VLA"),
    ):
        command = add(name, help, overrides=True, own_help=True)
        command.add_argument("--config", "-c", action="append", default=[], metavar="FILE.yaml")
        command.add_argument("--out", type=Path, metavar="DIR")
        if name == "sft":
            command.add_argument("--resume", action="store_true")
    _add_score(add("score", "Score every episode of a data set with a reward model or a critic"))
    _add_evaluate(add("evaluate", "Evaluate a reward model or a critic on a data set, or a policy on held-out starts"))
    _add_calibrate(add("calibrate", "Calibrate a reward model on a held-out split, and let it abstain"))
    _add_labels(add("labels", "Draw training samples with their targets, as a picture to check", overrides=True))
    _add_label(add("label", "Compare pairs of clips in the browser, and keep the answers"))
    _add_report(add("report", "Write one HTML page about a folder of scores"))
    _add_inspect(add("inspect", "Describe a folder: a data set, a component, scores, a run or a feature cache"))
    _add_init(add("init", "Write a commented configuration for `guerdon fit` that fits a data set"))
    _add_demo(add("demo", "Run the main job once: logs, a reward model, scores, a better policy, a report"))
    return parser


def names_in(text: str) -> list[str]:
    """Split a list of names at its commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _number_of(what: str) -> Callable[[str], int]:
    """Make a type of argument that is a whole number of at least 1.

    Args:
        what: Thing that is counted, in the singular, for the error.
    """

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected at least one {what}, got {text}")
        return int(text)

    return convert


def _noise(text: str) -> float:
    """Convert the argument of ``--noise`` to a number of at least 0."""
    try:
        noise = float(text)
    except ValueError:
        noise = math.nan
    if not 0 <= noise < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return noise


def _seconds(text: str) -> float:
    """Convert the argument of ``--seconds`` to a positive number."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text}")
    return seconds


def _port(text: str) -> int:
    """Convert the argument of ``--port`` to a port number; 0 is any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return int(text)


def _add_collect(parser: Parser) -> None:
    parser.add_argument(
        "--env",
        required=True,
        help="task: metaworld/drawer-open-v3, mujoco/reach, gymnasium/<ID>, my_module:MyTask, …",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder for the data set")
    parser.add_argument(
        "--episodes",
        type=_number_of("episode"),
        default=20,
        metavar="N",
        help="number of episodes; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of initial states and behaviour")
    parser.add_argument(
        "--quality",
        default="mixed",
        help="mixed, expert, noisy, aborted, random, or shares: expert=0.5,random=0.5; default: %(default)s, which is "
        "the policy alone with --policy; the quality policy may have a share too",
    )
    parser.add_argument(
        "--noise",
        type=_noise,
        metavar="SD",
        help="noise of noisy experts, in half ranges of the action; default: that of the task",
    )
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument("--frames", action="store_true", default=None, help="record pictures, or fail without OpenGL")
    frames.add_argument("--states-only", dest="frames", action="store_false", help="record no pictures")
    parser.add_argument(
        "--image-size",
        type=_number_of("pixel"),
        default=96,
        metavar="PIXELS",
        help="side of the pictures; default: %(default)s",
    )
    parser.add_argument("--camera", action="append", metavar="NAME", help="may be repeated; default: the first camera")
    parser.add_argument(
        "--frames-every",
        type=_number_of("step"),
        default=1,
        metavar="STEPS",
        help="control steps from one picture to the next; default: %(default)s",
    )
    parser.add_argument(
        "--split",
        choices=("train", "eval", "official"),
        default="train",
        help="set of initial states; official: the published protocol of a LIBERO task; default: %(default)s",
    )
    parser.add_argument(
        "--horizon", type=_number_of("step"), metavar="STEPS", help="time limit; default: that of the task"
    )
    parser.add_argument(
        "--policy",
        metavar="DIR",
        help="folder of a saved policy that acts; with --frames it sees what is recorded",
    )
    parser.add_argument(
        "--encoder", metavar="DIR", help="folder of the saved frozen encoder whose features the policy reads"
    )
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument(
        "--sampled", dest="deterministic", action="store_false", default=None, help="the policy samples; the default"
    )
    actions.add_argument(
        "--deterministic", dest="deterministic", action="store_true", help="take the policy's deterministic actions"
    )
    parser.add_argument("--trust", action="store_true", help="open a policy whose class is not part of guerdon")


def _add_model_and_data(parser: Parser, data_required: bool = True) -> None:
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="folder of a saved model, or owner/name on the hub"
    )
    what = "data set in any format guerdon reads" + ("" if data_required else "; needed unless the model is a policy")
    parser.add_argument("--data", type=Path, required=data_required, metavar="DIR", help=what)
    parser.add_argument(
        "--batch-size",
        type=_number_of("episode"),
        default=8,
        metavar="N",
        help="episodes in a batch; default: 8",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, …; default: a GPU where there is one")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder to keep features of a frozen encoder in")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="open a model whose class is not part of guerdon, which runs its code; the class is imported from an "
        "installed package or the current folder",
    )


def _add_score(parser: Parser) -> None:
    _add_model_and_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for scores.parquet")
    parser.add_argument("--policy", metavar="DIR", help="policy that proposes chunks to a critic")
    parser.add_argument(
        "--terminating",
        metavar="ENDS",
        help="ends after which a critic's value is left out, such as success,failure; default: the ends that the "
        "reward of its run prices",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the scores of another model or data set")


def _add_evaluate(parser: Parser) -> None:
    _add_model_and_data(parser, data_required=False)
    parser.set_defaults(batch_size=None)  # to know whether it was given: a policy has no use for it
    parser.add_argument(
        "--split", default="", help="use only the episodes of this split; default: all; for a policy: eval"
    )
    parser.add_argument(
        "--also", type=Path, action="append", default=[], metavar="DIR", help="one more data set, such as another task"
    )
    parser.add_argument(
        "--against", metavar="OTHER_MODEL", help="compare with this model or policy on the same episodes or starts"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to this file")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="random seed of shuffling, wrong instructions and the bootstrap; of a policy's noise",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="score from which an episode counts as predicted success; default: 0.5 for probabilities",
    )
    parser.add_argument(
        "--confusion",
        type=int,
        metavar="M",
        help="episodes of each of up to 12 tasks that are evaluated under every instruction; 0 for none; default: 5",
    )
    parser.add_argument(
        "--quality-order",
        default="",
        metavar="WORST,…,BEST",
        help="order of the recorded qualities; default: that of the qualities guerdon knows",
    )
    _add_critic(parser)
    _add_policy(parser)


def _add_critic(parser: Parser) -> None:
    group = parser.add_argument_group("for a critic")
    group.add_argument("--policy", metavar="DIR", help="policy that proposes chunks, and acts with --env")
    group.add_argument(
        "--env",
        action="append",
        metavar="TASK",
        help="estimate returns by rollouts in this task, such as mujoco/reach; for a policy: task to play, may be "
        "repeated",
    )
    group.add_argument("--states", type=int, metavar="N", help="states to start rollouts from; default: 32")
    group.add_argument("--rollouts", type=int, metavar="R", help="rollouts from each state; default: 4")
    group.add_argument("--candidates", type=int, metavar="C", help="logged chunks compared at a state; default: 4")
    group.add_argument(
        "--horizon",
        type=int,
        metavar="STEPS",
        help="time limit of the task, also for a policy; default: that of the task",
    )
    group.add_argument(
        "--reward",
        metavar="DIR",
        help="reward model that the critic learned; default: the one its run left, else a step cost",
    )
    group.add_argument(
        "--failure-cost", type=float, metavar="C", help="cost of a failure in the step cost; default: the mean length"
    )
    group.add_argument(
        "--scale", type=float, metavar="S", help="divisor of the step cost; default: taken from the data"
    )
    group.add_argument(
        "--terminating",
        metavar="ENDS",
        help="ends after which nothing is bootstrapped, such as success,failure; default: the ends the reward prices",
    )
    group.add_argument(
        "--tail",
        choices=("never", "failure", "zero"),
        help="what follows the time limit; default: failure where the time limit terminates, never elsewhere",
    )


def _add_policy(parser: Parser) -> None:
    group = parser.add_argument_group("for a policy (with --env)")
    group.add_argument(
        "--episodes", type=_number_of("episode"), metavar="N", help="starts of each task that are played; default: 50"
    )
    group.add_argument("--sampled", action="store_true", default=None, help="sample actions; default: deterministic")
    group.add_argument("--task-seed", type=int, metavar="SEED", help="seed that fixes the starts; default: 0")
    group.add_argument(
        "--workers", type=int, metavar="W", help="worker processes; the outcomes do not depend on them; default: 0"
    )
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="keep outcomes here as they come; the same command goes on from there"
    )
    group.add_argument(
        "--video",
        type=_number_of("episode"),
        metavar="N",
        help="write videos of the first N starts of each task to DIR",
    )
    group.add_argument("--camera", action="append", metavar="NAME", help="camera that the policy sees; may be repeated")
    group.add_argument(
        "--image-size", type=_number_of("pixel"), metavar="PIXELS", help="side of what it sees; default: 128"
    )
    group.add_argument(
        "--encoder",
        metavar="DIR",
        help="folder of the saved frozen encoder whose features the policy reads, with --camera",
    )


def _add_calibrate(parser: Parser) -> None:
    _add_model_and_data(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder for the model")
    parser.add_argument(
        "--split", default="val", help="split the model was not trained on; default: %(default)s; '' for all episodes"
    )
    parser.add_argument(
        "--method",
        choices=("temperature", "platt", "isotonic"),
        default="isotonic",
        help="calibration of success probabilities; default: %(default)s",
    )
    parser.add_argument("--progress", action="store_true", help="also calibrate progress, by isotonic regression")
    parser.add_argument(
        "--abstain", type=float, default=0.0, metavar="SHARE", help="share of observations to abstain on; default: none"
    )
    parser.add_argument(
        "--by",
        choices=("spread", "confidence"),
        help="quantity that decides on abstention; default: spread where the model gives one",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics to this file")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the folds and the bootstrap")


def _add_labels(parser: Parser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="data set to draw from, with the default labels")
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="instead of --data: training configuration whose data section is used"
    )
    parser.add_argument(
        "--show",
        type=_number_of("sample"),
        default=20,
        metavar="N",
        help="number of samples to draw; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, help="random seed of the samples; default: that of the configuration")
    parser.add_argument(
        "--out", type=Path, default=Path("labels.png"), metavar="FILE.png", help="picture; default: %(default)s"
    )


def _add_label(parser: Parser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set with frames")
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE.jsonl",
        help="pairs to compare; default: random ones, which are kept beside the answers",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("answers.jsonl"),
        metavar="FILE.jsonl",
        help="answers; a file that is there is gone on with; default: %(default)s",
    )
    parser.add_argument(
        "--rater",
        action="append",
        default=[],
        metavar="NAME",
        help="may be repeated; default: the page asks for a name",
    )
    parser.add_argument("--camera", metavar="NAME", help="camera that is shown; default: the first")
    parser.add_argument(
        "--count",
        type=_number_of("pair"),
        default=100,
        metavar="N",
        help="number of random pairs; default: %(default)s",
    )
    parser.add_argument(
        "--seconds", type=_seconds, default=3.0, metavar="S", help="length of a random segment; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the pairs; default: %(default)s")
    parser.add_argument("--port", type=_port, default=0, help="port on this machine; default: a free one")
    parser.add_argument("--no-open", dest="open", action="store_false", help="open no browser")


def _add_report(parser: Parser) -> None:
    parser.add_argument("--scores", type=Path, required=True, metavar="DIR", help="folder that `guerdon score` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE.html", help="page to write")
    parser.add_argument(
        "--episodes",
        type=_number_of("episode"),
        default=3,
        metavar="N",
        help="number of best, of worst and of doubtful episodes to show; default: %(default)s",
    )
    parser.add_argument(
        "--evaluation", type=Path, metavar="FILE", help="also show the metrics that `evaluate --json FILE` wrote"
    )


def _add_inspect(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to describe")
    parser.add_argument(
        "--evict",
        metavar="SIZE",
        help="reduce a feature cache to this size (20GB, 500MB, …) by removing the entries unused for longest",
    )


def _add_init(parser: Parser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="data set in any format guerdon reads")
    parser.add_argument(
        "--job",
        required=True,
        choices=JOBS,
        help="model to train: a progress reward, a success classifier, a critic (IQL) or a cloned policy",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.yaml", help="file to write; it must not exist")


def _add_demo(parser: Parser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder of the results; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of everything")
    parser.add_argument("--quick", action="store_true", help="take a minute instead of several, with weaker results")
