"""The ``evaluate`` command for policies: success rates on held-out starts, and differences on the same starts."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from .. import __version__
from ..backbones.vision import VisionEncoder
from ..core.files import write_json
from ..core.interfaces import Policy
from ..core.intervals import Estimate
from ..core.opening import open_component
from ..evaluation.policies.evaluate import evaluate_policy
from ..evaluation.policies.results import APART, PairedResult, PolicyEvaluation, TaskResult
from ..evaluation.policies.setting import OpenedPolicy, PlaySetting
from ..policies.rollouts.frames import RolloutFrames
from .output import require_writable, table_console

EPISODES = 50
"""Default number of starts of each task."""

NOT_FOR_POLICIES = {
    "also": "data sets",
    "cache": "data sets",
    "batch_size": "data sets",
    "confusion": "reward models",
    "threshold": "reward models",
    "quality_order": "reward models",
    "policy": "critics",
    "reward": "critics",
    "failure_cost": "critics",
    "scale": "critics",
    "terminating": "critics",
    "tail": "critics",
    "states": "critics",
    "rollouts": "critics",
    "candidates": "critics",
}
"""Options that a policy has no use for, and what they are for."""


def run(options: argparse.Namespace, rest: Sequence[str], opened: tuple[Policy, dict[str, Any]]) -> int:
    """Play a policy, print its success rates, and write them as JSON where a file is named.

    Args:
        options: Parsed arguments of ``guerdon evaluate``.
        rest: Further arguments; not used.
        opened: Policy that is open already, with its path, class path, content hash and arguments.

    Raises:
        ValueError: If an option is missing, is not for policies, or makes no sense.
        OSError: If the output cannot be written.
    """
    require_writable(options.json)
    _check_options(options)
    device = "cpu" if options.device == "auto" else options.device
    model = OpenedPolicy(policy=opened[0].to(device), identity=opened[1] | {"device": device})
    against = None
    if options.against is not None:
        other, identity = open_component(options.against, Policy, "a policy", device, options.trust)
        against = OpenedPolicy(policy=other, identity=identity | {"device": device})
    setting = PlaySetting(
        split=options.split or "eval",
        seed=options.seed,
        task_seed=options.task_seed or 0,
        horizon=options.horizon,
        sampled=bool(options.sampled),
        frames=_frames(options, device),
    )
    evaluation = evaluate_policy(
        model,
        options.env,
        options.episodes or EPISODES,
        setting,
        against=against,
        workers=options.workers or 0,
        out=options.out,
        videos=options.video or 0,
        version=__version__,
    )
    print_policies(evaluation, table_console(100))
    if options.json is not None:
        write_json(options.json, evaluation.to_json())
    return 0


def _frames(options: argparse.Namespace, device: str) -> RolloutFrames | None:
    """Return what the policy sees, with the encoder of the features that it reads."""
    if not options.camera:
        return None
    encoder = None
    if options.encoder is not None:
        encoder, _ = open_component(options.encoder, VisionEncoder, "a vision encoder", device, options.trust)
    return RolloutFrames(cameras=options.camera, image_size=options.image_size or 128, encoder=encoder)


def _check_options(options: argparse.Namespace) -> None:
    if options.data is not None:
        raise ValueError(
            f"{options.model} holds a policy: expected a reward model or a critic with --data; a policy is played: "
            "name its task with --env and leave --data out"
        )
    for name, kind in NOT_FOR_POLICIES.items():
        if getattr(options, name) not in (None, "", []):
            raise ValueError(
                f"--{name.replace('_', '-')} is for {kind}, {options.model} holds a policy, which is played: name its "
                "task with --env and leave that out"
            )
    if not options.env:
        raise ValueError(
            f"{options.model} holds a policy, which is played on held-out starts: name its task with --env, such as "
            "--env mujoco/reach"
        )
    if options.image_size is not None and not options.camera:
        raise ValueError("--image-size is the size of what the policy sees: name its camera with --camera")
    if options.encoder is not None and not options.camera:
        raise ValueError("--encoder makes features of what the policy sees: name its camera with --camera")
    if options.video is not None and options.out is None:
        raise ValueError("--video writes videos to a folder: name it with --out DIR")
    if (options.workers or 0) < 0:
        raise ValueError(f"--workers {options.workers}: expected a number of processes, 0 or more")
    if options.workers and options.device != "auto" and torch.device(options.device).type != "cpu":
        raise ValueError(
            f"--device {options.device} with --workers {options.workers}: workers act on the CPU; leave one out"
        )


def print_policies(evaluation: PolicyEvaluation, console: Console | None = None) -> None:
    """Print success rates with their intervals; tables fit into 100 columns.

    Args:
        evaluation: Results.
        console: Console to print on; None prints on standard output.
    """
    out = console or Console()
    for name, identity in (("model", evaluation.model), ("against", evaluation.against)):
        if identity is not None:
            text = f"{name}: {identity.get('class_path')} {identity.get('hash', '')} in {identity.get('path')}"
            out.print(Text(text, style="bold"))
    setting = evaluation.setting
    limit = "" if setting["horizon"] is None else f", at most {setting['horizon']} steps"
    out.print(
        Text(
            f"{setting['actions']} actions, split {setting['split']}, seed {setting['seed']}, task seed "
            f"{setting['task_seed']}{limit}"
        )
    )
    out.print(Text(", ".join(f"{name} {version}" for name, version in evaluation.versions.items()), style="dim"))
    if setting["split"] == "train":
        out.print(Text("note: these are starts of training, not held-out ones", style="yellow"))
    _print_tasks(evaluation, out)
    if evaluation.paired:
        _print_paired(evaluation, out)
    _print_aggregates(evaluation, out)
    for video in evaluation.videos:
        out.print(_indented(f"video: {video}"))


def _print_tasks(evaluation: PolicyEvaluation, out: Console) -> None:
    columns = ("episodes", "success %", "95 % interval", "steps", "steps of succ.", "return")
    table = Table(Column("task", overflow="fold"), box=None, pad_edge=False)
    two = evaluation.against is not None
    if two:
        table.add_column("policy")
    for column in columns:
        table.add_column(column, justify="right")
    for result in evaluation.tasks:
        table.add_row(result.task, *((result.policy,) if two else ()), *_task_row(result))
    _show(table, out)
    for result in evaluation.tasks:
        if result.policy == "model":
            out.print(
                _indented(
                    f"{result.task}: {100 * APART:.0f} points from {_percent(result.success.value)} % are told apart "
                    f"by {result.to_tell} episodes of each policy on starts of its own (power 0.8, level 0.05)"
                )
            )


def _task_row(result: TaskResult) -> Sequence[str]:
    found = (result.steps, result.steps_of_successes, result.reward)
    numbers = ("—" if number != number else f"{number:.1f}" for number in found)
    return (str(result.episodes), _percent(result.success.value), _range(result.success), *numbers)


def _print_paired(evaluation: PolicyEvaluation, out: Console) -> None:
    columns = ("starts", "points", "95 % interval", "won", "lost", "p", "to tell 5 points")
    table = Table(Column("model − against", overflow="fold"), box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    for result in evaluation.paired:
        table.add_row(result.task or "mean over tasks", *_paired_row(result))
    _show(table, out)
    out.print(
        _indented(
            "the same starts for both: the interval is from a bootstrap over starts; won and lost are starts that only "
            "the model or only the other policy solved; p is McNemar's, exact and two-sided; the last column is the "
            "number of starts that tell five points apart at this share of won and lost ones",
            dim=True,
        )
    )


def _paired_row(result: PairedResult) -> Sequence[str]:
    shown = (f"{100 * result.difference.value:+.1f}", _range(result.difference))
    counts = (str(result.wins), str(result.losses), f"{result.p_value:.3g}", str(result.to_tell))
    return (str(result.episodes), *shown, *counts)


def _print_aggregates(evaluation: PolicyEvaluation, out: Console) -> None:
    if not evaluation.interquartile_mean:
        return
    out.print()
    for policy, found in evaluation.interquartile_mean.items():
        out.print(_indented(f"interquartile mean over tasks, {policy}: {_percent(found.value)} % [{_range(found)}]"))
    if evaluation.improvement is not None:
        found = evaluation.improvement
        out.print(
            _indented(
                f"probability of improvement in a task, model over against: {found.value:.2f} [{found.low:.2f}, "
                f"{found.high:.2f}]"
            )
        )
    out.print(_indented("intervals are from a bootstrap over starts within each task; tasks are fixed", dim=True))


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _range(found: Estimate) -> str:
    return "—" if found.low != found.low else f"{_percent(found.low)} … {_percent(found.high)}"


def _indented(text: str, dim: bool = False) -> Padding:
    return Padding(Text(text, style="dim" if dim else ""), (0, 0, 0, 2))


def _show(table: Table, out: Console) -> None:
    out.print()
    out.print(Padding(table, (0, 0, 0, 2)))


__all__ = ["print_policies", "run"]
