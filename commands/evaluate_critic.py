"""The ``evaluate`` command for critics: values along logged episodes and, with a task, against returns of rollouts."""

import argparse
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..core.batch import End, named_ends
from ..core.files import write_json
from ..core.interfaces import Critic, Policy, RewardModel
from ..core.opening import open_component, open_reward_model
from ..datasets.collate import Window
from ..datasets.episodes import BadEpisodeError, EpisodeDataset
from ..datasets.features import FeatureCache
from ..datasets.joined import open_joined
from ..datasets.reader import EpisodeReader
from ..evaluation.critics.diagnostics import Calibration, Estimate
from ..evaluation.critics.evaluate import CriticEvaluation, EvaluationSubject, ReturnFit, evaluate_critic, read_values
from ..evaluation.critics.logs import LoggedValues, LogReader
from ..evaluation.critics.reroll import Tail, step_cost
from ..evaluation.critics.rollouts import RolledOut, Rollouts, roll_out
from ..policies.proposer import PolicyProposer
from ..rewards.step_cost import StepCost
from ..scoring.ends import reward_beside
from .arguments import names_in
from .output import require_writable, table_console
from .proposer import open_proposer

NOT_FOR_CRITICS = {"against": "--against", "threshold": "--threshold", "quality_order": "--quality-order"}


def run(options: argparse.Namespace, rest: Sequence[str], opened: tuple[Critic, dict[str, Any]] | None = None) -> int:
    """Evaluate a critic, print its metrics, and write them as JSON where a file is named.

    Args:
        options: Parsed arguments of ``guerdon evaluate``.
        rest: Further arguments; not used.
        opened: Critic that is open already, with its path, class path, content hash and arguments; None opens it.

    Raises:
        ValueError: If the folder holds no critic; or an option is for reward models, is missing, or makes no sense.
        OSError: If the JSON file cannot be written.
    """
    require_writable(options.json)
    critic, model = opened or open_component(options.model, Critic, "a critic", options.device, options.trust)
    dataset = open_joined([options.data, *options.also])
    _check_options(options, critic)
    device = str(next((p.device for p in critic.parameters()), "cpu"))
    proposer, policy = None, None
    if options.policy is not None:
        proposer, policy = open_proposer(options.policy, device, options.trust)
    reward, words = _reward(options, dataset, float(getattr(critic, "gamma", 0.99)), device)
    ends = _terminating(options.terminating, reward)
    cache = None if options.cache is None else FeatureCache(options.cache)
    reader = LogReader(critic, reward, dataset, [int(end) for end in ends], proposer, cache)
    bad: dict[int, BadEpisodeError] = {}
    console = Console(stderr=True)
    with console.status("evaluating the logged episodes"):
        found = read_values(reader, options.split, options.batch_size, bad)
    rolled: RolledOut | None = None
    if options.env is not None and proposer is not None:
        with console.status(f"rolling out in {options.env[0]}"):
            rolled = _roll_out(options, found, reader, proposer.policy, ends)
    evaluation = evaluate_critic(
        found,
        reader,
        EvaluationSubject(model=model, reward=words, policy=policy, split=options.split, version=__version__),
        bad=[error for _, error in sorted(bad.items())],
        rolled_out=rolled,
        notes=[
            f"terminating ends: {', '.join(sorted(end.name.lower() for end in ends))}",
            *_length_note(critic, proposer),
        ],
        seed=options.seed,
    )
    print_critic(evaluation, table_console(100))
    if options.json is not None:
        write_json(options.json, evaluation.to_json())
    return 0


def _check_options(options: argparse.Namespace, critic: Critic) -> None:
    for name, flag in NOT_FOR_CRITICS.items():
        if getattr(options, name):
            raise ValueError(f"{flag} is for reward models, {options.model} holds a {type(critic).__name__}")
    if options.env is not None and len(options.env) > 1:
        raise ValueError(f"--env: a critic is evaluated in one task, got {', '.join(options.env)}")
    if options.env is not None and options.policy is None:
        raise ValueError("--env estimates returns by rollouts with a policy: name it with --policy DIR")
    if options.tail is not None and options.env is None:
        raise ValueError("--tail says what follows the time limit of rollouts: name their task with --env")


def _roll_out(
    options: argparse.Namespace,
    found: Sequence[LoggedValues],
    reader: LogReader,
    policy: Policy,
    ends: Collection[End],
) -> RolledOut:
    """Estimate returns by rollouts of the policy from states of the logs, under the step cost the critic learned."""
    reward = reader.reward
    if not isinstance(reward, StepCost):
        raise ValueError(
            f"--env needs a reward that is known while a simulation runs: a step cost, not a "
            f"{type(reward).__name__}; leave --env out to evaluate the critic along the logs only"
        )
    tail: Tail = options.tail or ("failure" if End.TIME_LIMIT in ends else "never")
    setting = Rollouts(
        env=options.env[0],
        states=options.states,
        rollouts=options.rollouts,
        candidates=options.candidates,
        horizon=options.horizon,
        tail=tail,
        seed=options.seed,
    )
    paid = step_cost(float(reward.cost), float(reward.divisor))
    return roll_out(found, reader, policy, paid, setting, options.batch_size)


def _reward(options: argparse.Namespace, dataset: EpisodeDataset, gamma: float, device: str) -> tuple[RewardModel, str]:
    """Open or make the reward whose discounted sum the critic should predict; also describe it in words."""
    if options.reward is not None:
        if options.failure_cost is not None or options.scale is not None:
            raise ValueError(
                "--reward names the reward: --failure-cost and --scale would change another one, so leave them out"
            )
        return _saved_reward(options.reward, device, options.trust)
    beside = reward_beside(options.model)
    if beside is not None and options.failure_cost is None and options.scale is None:
        return _saved_reward(beside, device, options.trust)
    reward = StepCost(failure_cost=options.failure_cost, scale=options.scale, gamma=gamma)
    taken = ""
    if not bool(reward.fitted):
        reader, bad = EpisodeReader(dataset), dict[int, BadEpisodeError]()
        reward.fit(reader.batch([Window(episode=episode)]) for _, episode in reader.usable(bad))
        taken = " (what was not given is taken from these data; the critic may have learned another scale)"
    words = f"step cost: −1 a step, −{float(reward.cost):.4g} at a failure, over {float(reward.divisor):.4g}{taken}"
    return reward.to(device).eval(), words


def _length_note(critic: Critic, proposer: PolicyProposer | None) -> list[str]:
    """Make a note where the policy's chunks have another length than those the critic was trained on."""
    horizon = getattr(critic, "horizon", None)
    if proposer is None or horizon is None or proposer.steps == horizon:
        return []
    return [
        f"the policy proposes chunks of {proposer.steps} steps, the critic's horizon is {horizon}: V is then the value "
        "of another policy, or of chunks of a length that hardly occurs in the logs"
    ]


def _saved_reward(path: str | Path, device: str, trust: bool) -> tuple[RewardModel, str]:
    reward, opened = open_reward_model(path, device, trust)
    words = repr(reward) if isinstance(reward, StepCost) else f"{opened['class_path']} {opened.get('hash', '')}".strip()
    return reward, f"{opened['path']}: {words}"


def _terminating(text: str | None, reward: RewardModel) -> frozenset[End]:
    if text is not None:
        return named_ends("--terminating", names_in(text))
    if isinstance(reward, StepCost):
        return frozenset({End.SUCCESS, *reward.failures})
    return frozenset({End.SUCCESS, End.FAILURE})


def print_critic(evaluation: CriticEvaluation, console: Console | None = None) -> None:
    """Print the metrics of a critic; tables fit into 100 columns.

    Args:
        evaluation: Metrics of the critic.
        console: Console to print on; None prints on standard output.
    """
    out = console or Console()
    counts = evaluation.counts
    out.print(Text(f"{evaluation.model.get('class_path', 'critic')} {evaluation.model.get('hash', '')}", style="bold"))
    split = f", split {evaluation.split}" if evaluation.split else ""
    out.print(Text(f"on {evaluation.data}{split}"))
    kinds = [f"{counts[k]} {w}" for k, w in (("success", "successes"), ("failure", "failures"), ("unknown", "unknown"))]
    out.print(
        Text(f"{counts['episodes']} episodes, {counts['steps']} steps: {', '.join(kinds)}; {counts['bad']} not used")
    )
    out.print(Text(f"reward: {evaluation.reward}; discount {evaluation.gamma:g}"))
    if evaluation.policy is not None:
        out.print(Text(f"policy: {evaluation.policy.get('path')}"))
    _print_along(evaluation, out)
    _print_against(evaluation, out)
    _print_residuals(evaluation, out)
    if evaluation.rolled_out is not None:
        _print_rolled(evaluation.rolled_out, out)
    out.print()
    for note in evaluation.notes:
        out.print(_indented(f"note: {note}"))
    for bad in evaluation.bad:
        out.print(Text(f"  episode {bad['episode']} not used, {bad['status']}: {bad['reason']}", style="red"))


def _print_along(evaluation: CriticEvaluation, out: Console) -> None:
    table = _table("along the logs", "episodes", "V start", "V end", "Q start", "Q end", "V end − max before")
    for name, row in evaluation.along.items():
        numbers = (row.v_start, row.v_end, row.q_start, row.q_end, row.drop)
        table.add_row(name, str(row.episodes), *(_number(n) for n in numbers))
    _show(table, out)


def _print_against(evaluation: CriticEvaluation, out: Console) -> None:
    table = _table("logged return", "rank corr.", "slope", "intercept", "mean error", "steps")
    for name, found in (("V", evaluation.v), ("Q", evaluation.q)):
        if found is not None:
            table.add_row(name, *_against(found))
    _show(table, out)
    out.print(_indented("the logged return is that of the policy that acted, not of another policy", dim=True))


def _against(found: ReturnFit) -> Sequence[str]:
    return _row(found.rank, found.calibration)


def _row(rank: Estimate, line: Calibration) -> Sequence[str]:
    numbers = (_number(n) for n in (line.slope, line.intercept, line.mean_error))
    return [_interval(rank), *numbers, str(line.n)]


def _print_residuals(evaluation: CriticEvaluation, out: Console) -> None:
    if evaluation.residuals:
        table = _table("TD residual by source", "mean", "rms", "steps")
        for source, found in evaluation.residuals.items():
            table.add_row(str(source), _number(found.mean), _number(found.rms), str(found.n))
        _show(table, out)
    out.print()
    if evaluation.members > 1:
        pairs = (
            ("correlation of values", evaluation.member_correlation),
            ("of errors", evaluation.error_correlation),
            ("spread against error", evaluation.spread_error),
        )
        shown = ", ".join(f"{words} {_number(value)}" for words, value in pairs)
        out.print(_indented(f"ensemble of {evaluation.members}: {shown}"))
    elif evaluation.members == 1:
        out.print(_indented("one member: no metrics of an ensemble"))
    if not math.isnan(evaluation.spanning):
        out.print(_indented(f"logged chunks that go on past a re-plan: {100 * evaluation.spanning:.0f} %"))


def _print_rolled(found: RolledOut, out: Console) -> None:
    table = _table("return rolled out again", "rank corr.", "slope", "intercept", "mean error", "states")
    table.add_row("V", *_row(found.v_rank, found.v_calibration))
    if found.candidates:
        table.add_row("Q of logged chunks", *_row(found.q_rank, found.q_calibration))
    _show(table, out)
    for line in found.v_calibration.bins:
        shown = f"V about {_number(line.predicted)}: return {_number(line.observed)} ({line.count} states)"
        out.print(_indented(shown, dim=True))
    over = found.over_estimation
    out.print(_indented(f"V − return at the {over.n} first observations: {_interval(over)}"))
    if found.candidates:
        pairs = f"{found.ranking_pairs} pairs at {found.ranking.n} states"
        out.print(_indented(f"chunk-ranking AUC (chance 0.5): {_interval(found.ranking)}, {pairs}"))
    out.print(
        _indented(
            f"{found.env}: {found.states} states of {found.episodes} episodes, {found.rollouts} rollouts of each and "
            f"of each of {found.candidates} chunks; the policy succeeded in {100 * found.success:.0f} %; after the "
            f"time limit: {found.tail}",
            dim=True,
        )
    )


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def _show(table: Table, out: Console) -> None:
    out.print()
    out.print(table)


def _indented(text: str, dim: bool = False) -> Padding:
    return Padding(Text(text, style="dim" if dim else ""), (0, 0, 0, 2), expand=False)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _interval(found: Estimate) -> str:
    interval = "" if math.isnan(found.low) else f" ({_number(found.low)}…{_number(found.high)})"
    return _number(found.value) + interval


__all__ = ["print_critic", "run"]
