"""The ``evaluate`` command: metrics of a reward model and its controls.

Critics are left to `evaluate_critic`, policies to `evaluate_policy`. A reward model needs no environment or MuJoCo, so
none is imported here.
"""

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from ..core.files import write_json
from ..core.interfaces import Critic, Policy, RewardModel
from ..core.opening import open_component, open_reward_model
from ..datasets.joined import open_joined
from ..evaluation.dataset import OpenedModel, evaluate_dataset
from ..evaluation.table import print_evaluation
from .arguments import names_in
from .output import require_writable, table_console

FOR_CRITICS = (
    *("policy", "env", "reward", "failure_cost", "scale", "terminating", "tail"),
    *("states", "rollouts", "candidates", "horizon"),
)
"""Names of the options for critics in the parsed arguments; each is None where it was not given."""

FOR_POLICIES = ("episodes", "sampled", "task_seed", "workers", "out", "video", "camera", "image_size", "encoder")
"""Names of the options for policies in the parsed arguments; each is None where it was not given."""

DEFAULTS = {"batch_size": 8, "confusion": 5, "states": 32, "rollouts": 4, "candidates": 4}
"""Values of options that the parser leaves None, so that one which has no use can be refused."""


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Evaluate a reward model, a critic or a policy, print its metrics, and write them as JSON where a file is named.

    Raises:
        ValueError: If the folder holds something else, or an option does not suit it or is missing.
        OSError: If the JSON file cannot be written.
    """
    require_writable(options.json)
    kinds = (RewardModel, Critic, Policy)
    expected = "a reward model, a critic or a policy"
    model, opened = open_component(options.model, kinds, expected, options.device, options.trust)
    if isinstance(model, Policy):
        policies = importlib.import_module(".evaluate_policy", __package__)
        return policies.run(options, rest, (model, opened))
    given = _given(options, FOR_POLICIES)
    if given:
        raise ValueError(f"{given} is for policies, {options.model} holds a {type(model).__name__}")
    if options.data is None:
        raise ValueError(
            f"{options.model} holds a {type(model).__name__}, which is evaluated on a data set: name it with --data DIR"
        )
    if isinstance(model, Critic):
        _set_defaults(options)
        # imported by name and only here, because it imports policies and environments
        critics = importlib.import_module(".evaluate_critic", __package__)
        return critics.run(options, rest, (model, opened))
    return _evaluate(options, model, opened)


def _evaluate(options: argparse.Namespace, reward: RewardModel, opened: dict[str, Any]) -> int:
    dataset = open_joined([options.data, *options.also])
    given = _given(options, FOR_CRITICS)
    if given:
        kinds = "critics and policies" if given in ("--env", "--horizon") else "critics"
        raise ValueError(f"{given} is for {kinds}, {options.model} holds a reward model")
    _set_defaults(options)
    against = None
    if options.against is not None:
        other, identity = open_reward_model(options.against, device=options.device, trust=options.trust)
        against = OpenedModel(reward=other, identity=identity)
    evaluation = evaluate_dataset(
        OpenedModel(reward=reward, identity=opened),
        dataset,
        split=options.split,
        batch_size=options.batch_size,
        cache=options.cache,
        seed=options.seed,
        threshold=options.threshold,
        confusion=options.confusion,
        quality_order=names_in(options.quality_order),
        against=against,
        progress_bar=True,
    )
    print_evaluation(evaluation, table_console(100))
    if options.json is not None:
        write_json(options.json, evaluation.to_json())
    return 0


def _set_defaults(options: argparse.Namespace) -> None:
    for name, value in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def _given(options: argparse.Namespace, names: Sequence[str]) -> str | None:
    """Return the flag of the first of some options that was given, None where none was."""
    return next((f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None), None)
