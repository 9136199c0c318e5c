"""Do the rules for stages fit what happens? All of Meta-World, scripted experts and mixed behaviour, held-out starts.

    python benchmarks/rule_stages.py
    python benchmarks/rule_stages.py --suite libero_object --episodes 5

For successes of the expert: how often all stages are passed in order, each for at least one observation, online and in
hindsight; and how often the distances alone see the end that the simulator's flag sees. For failures of noisy, aborted
and random behaviour: how often the distances alone say that the task was done. Intervals are Wilson's, at 95 %.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, write_result
from guerdon.core.batch import Labelled, TrajectoryBatch
from guerdon.core.intervals import wilson_interval
from guerdon.datasets.collate import collate
from guerdon.datasets.episodes import Episode
from guerdon.envs.collect import collect
from guerdon.envs.instructions import METAWORLD
from guerdon.envs.libero_tasks.suites import SUITES
from guerdon.envs.naming import make_task
from guerdon.envs.task import ExpertTask
from guerdon.rewards.stages.rule_decomposer import RULES, RuleDecomposer

WORSE = {"noisy": 0.4, "aborted": 0.3, "random": 0.3}
HORIZON = 300


def passed_in_order(done: Labelled, stages: int) -> list[bool]:
    """Rows that end with every stage complete, none of them in the same observation as the one before."""
    answers: list[bool] = []
    for values, valid in zip(done.values, done.valid, strict=True):
        count = values[valid].floor().long()
        visited = torch.bincount(count, minlength=stages + 1)
        answers.append(bool((visited > 0).all()))
    return answers


def finished(done: Labelled, stages: int) -> list[bool]:
    """Rows in which all stages are complete at some observation."""
    return (done.values.floor() >= stages).any(1).tolist()


def batch_of(episodes: Sequence[Episode]) -> TrajectoryBatch:
    """Collate the episodes into one batch."""
    return collate(episodes)


def one(name: str, episodes: int, seed: int) -> dict[str, Any]:
    """Count for one task."""
    rule = RULES[name]
    task = make_task(name, HORIZON if name.startswith("metaworld/") else None, seed)
    if not isinstance(task, ExpertTask):
        task.close()
        return {"stages": [], "successes": 0, "failures": 0}
    expert = list(collect(task, {"expert": 1.0}, episodes=episodes, seed=seed, split="eval", frames=False))
    worse = list(collect(task, WORSE, episodes=episodes, seed=seed, split="eval", frames=False))
    task.close()
    won = [e for e in expert if e.success == 1]
    lost = [e for e in [*expert, *worse] if e.success == 0]
    found: dict[str, Any] = {"stages": [], "successes": len(won), "failures": len(lost)}
    with_flag, without = RuleDecomposer(), RuleDecomposer(use_success=False)
    if won:
        batch = batch_of(won)
        plans = with_flag.plan(batch.instructions)
        stages = len(plans[0].stages)
        found["stages"] = [stage.name for stage in plans[0].stages]
        online = with_flag.completed(batch, plans, causal=True)
        found["in_order"] = sum(passed_in_order(online, stages))
        found["in_order_hindsight"] = sum(passed_in_order(with_flag.completed(batch, plans, causal=False), stages))
        reached = [(online.values.floor() >= k + 1).int().argmax(1) / batch.steps for k in range(stages)]
        found["median_completion"] = [round(float(np.median(part.numpy())), 3) for part in reached]
        if not rule.needs_success:
            found["end_seen"] = sum(finished(without.completed(batch, plans, causal=True), stages))
    if lost and not rule.needs_success:
        batch = batch_of(lost)
        plans = without.plan(batch.instructions)
        found["false_ends"] = sum(finished(without.completed(batch, plans, causal=True), len(plans[0].stages)))
    return found


def main() -> None:
    """Measure, print, write."""
    parser = command_line(__doc__, "rule_stages")
    parser.add_argument("--task", action="append", help="full name; default: all fifty")
    parser.add_argument("--episodes", type=int, default=25, help="of the expert, and as many of the mixture")
    parser.add_argument("--seed", type=int, default=1, help="0 chose the distances")
    parser.add_argument("--suite", action="append", help="suites of LIBERO in place of Meta-World")
    options = parser.parse_args()
    libero = [f"libero/{suite}/{number}" for suite in options.suite or () for number in range(SUITES[suite])]
    names = options.task or libero or [f"metaworld/{name}" for name in METAWORLD]
    torch.set_num_threads(1)
    results = {name: one(name, options.episodes, options.seed) for name in names}
    table = Table("task", "stages, completed at", "in order", "in hindsight", "end seen", "false ends")
    for name, found in results.items():
        told = "flag" if RULES[name].needs_success else None
        at = zip(found["stages"], found.get("median_completion", []), strict=False)
        table.add_row(
            name,
            ", ".join(f"{stage} {when:.2f}" for stage, when in at),
            f"{found.get('in_order', 0)}/{found['successes']}",
            f"{found.get('in_order_hindsight', 0)}/{found['successes']}",
            told or f"{found.get('end_seen', 0)}/{found['successes']}",
            told or f"{found.get('false_ends', 0)}/{found['failures']}",
        )
    Console(width=140).print(table)
    totals: dict[str, Any] = {}
    for key, of in (("in_order", "successes"), ("in_order_hindsight", "successes"), ("end_seen", "successes")):
        totals[key] = total(results, key, of)
    totals["false_ends"] = total(results, "false_ends", "failures")
    for key, value in totals.items():
        print(f"{key}: {value['count']}/{value['of']}, {value['low']:.3f} … {value['high']:.3f}")
    setting = {"episodes": options.episodes, "seed": options.seed, "horizon": HORIZON, "worse": WORSE}
    write_result(options.out, {**setting, "totals": totals, "tasks": results})


def total(results: dict[str, dict[str, Any]], key: str, of: str) -> dict[str, float]:
    """Pool a count over all tasks that have it, with its interval."""
    some = [found for found in results.values() if key in found]
    count, played = sum(found[key] for found in some), sum(found[of] for found in some)
    low, high = wilson_interval(count, played)
    return {"count": count, "of": played, "low": low, "high": high}


if __name__ == "__main__":
    main()
