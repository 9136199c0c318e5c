"""Write GRAPE cost files for tasks of LIBERO from what the scripted expert does, and try them on worse behaviour.

    python benchmarks/libero_costs.py --suite libero_object --write
    python benchmarks/libero_costs.py --suite libero_object

With ``--write`` it plays expert episodes from training states, and writes one file to `configs/costs/libero` for each
task in which one succeeds: stages and distances of `guerdon.RuleDecomposer`, times of the expert. Without it, it scores
episodes of all qualities from evaluation states and prints how often a success costs less than a failure.
"""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.metrics import roc_auc_score

from common import command_line, write_result
from guerdon.datasets.collate import collate
from guerdon.datasets.episodes import Episode
from guerdon.envs.collect import collect
from guerdon.envs.libero_tasks.suites import SUITES
from guerdon.envs.naming import make_task
from guerdon.envs.task import ExpertTask
from guerdon.rewards.grape.cost_files import LIBRARY
from guerdon.rewards.grape.trajectory import GrapeScore
from guerdon.rewards.stages.rule_decomposer import RULES, RuleDecomposer
from guerdon.rewards.stages.task_rules import GOAL, HAND, OBJECT, TaskRule

CLEARANCE = 0.01
"""Distance in metres that the hand may come lower than the expert's did."""


def stage_steps(episodes: Sequence[Episode]) -> np.ndarray:
    """Count the control steps in each stage, (episodes, stages)."""
    decomposer, batch = RuleDecomposer(), collate(episodes)
    plans = decomposer.plan(batch.instructions)
    done = decomposer.completed(batch, plans, causal=True)
    count = [
        torch.bincount(v[m].floor().long(), minlength=len(plans[0].stages) + 1)
        for v, m in zip(done.values, done.valid, strict=True)
    ]
    return torch.stack(count)[:, :-1].numpy()


def constraints(rule: TaskRule, steps: np.ndarray) -> list[dict[str, Any]]:
    """Write the constraints of all stages of a task.

    Args:
        rule: Rule of the task.
        steps: Control steps of the expert in each stage, (episodes, stages).
    """
    found: list[dict[str, Any]] = []
    stage = 0
    for part in rule.parts:
        thing, goal = part.track(OBJECT), part.track(GOAL)
        hand = {"kind": "grasp", "op": "dist", "a": HAND, "b": thing, "aggregate": "mean"}
        held = {"name": "hand at object", **hand, "threshold": round(1.2 * part.near, 3), "weight": 5}
        reach = {"name": "hand at object", "kind": "path", "op": "dist", "a": HAND, "b": thing, "aggregate": "min"}
        arrive = {"name": "object at goal", "kind": "path", "op": "dist", "a": thing, "b": goal, "aggregate": "last"}
        stages = [[reach | {"threshold": part.near, "weight": 5}]]
        if part.lift is not None:
            stages.append([held | {"weight": 10}])
        stages.append([arrive | {"threshold": part.goal, "weight": 10}, held])
        for rows in stages:
            limit = int(5 * np.ceil(1.25 * steps[:, stage].max() / 5))
            low = {"name": "hand too low", "kind": "collision", "op": "above", "a": HAND, "b": "floor", "margin": 0.0}
            time = {"name": "time", "kind": "path", "op": "steps", "a": HAND, "threshold": limit, "weight": 0.005}
            rows = [*rows, low | {"threshold": 0, "weight": 0.2}, time]
            found += [{"stage": stage, **row} for row in rows]
            stage += 1
    return found


def write(name: str, episodes: int) -> bool:
    """Write the costs of a task; return whether the expert succeeded at all."""
    with closing(make_task(name)) as task:
        if not isinstance(task, ExpertTask):
            return False
        played = list(collect(task, {"expert": 1.0}, episodes, frames=False))
    won = [episode for episode in played if episode.success == 1]
    if not won:
        return False
    lowest = min(float(np.nanmin(episode.tracks[HAND].values[:, 2])) for episode in won)
    plan = RuleDecomposer().plan([won[0].instruction])[0]
    rows = constraints(RULES[name], stage_steps(won))
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    text = (
        "{\n"
        f'  "task": {json.dumps(name)},\n'
        f'  "instructions": {json.dumps([won[0].instruction])},\n'
        f'  "stages": {json.dumps([stage.name for stage in plan.stages])},\n'
        f'  "points": {json.dumps({"floor": [0.0, 0.0, round(lowest - CLEARANCE, 3)]})},\n'
        f'  "constraints": [\n{lines}\n  ]\n'
        "}\n"
    )
    path = Path(LIBRARY, *name.split("/")).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


def try_out(name: str, episodes: int) -> dict[str, Any]:
    """Score episodes of all qualities from evaluation states; return the AUROC of the external score for success."""
    with closing(make_task(name)) as task:
        played = list(collect(task, episodes=episodes, split="eval", seed=1, frames=False))
    batch = collate(played)
    model = GrapeScore([name], (0, 1, 0), decomposer=RuleDecomposer(use_success=False), open_ends=True)
    estimates = model(batch)
    rows = torch.arange(len(batch))
    scores = estimates.rewards[rows, batch.steps - 1]
    known = estimates.valid[rows, batch.steps - 1]
    success = batch.success >= 0.5
    auc = None
    if success[known].any() and not success[known].all():
        auc = float(roc_auc_score(success[known].numpy(), scores[known].detach().numpy()))
    return {
        "task": name,
        "episodes": len(played),
        "successes": int(success.sum()),
        "unknown": int((~known).sum()),
        "auroc": auc,
    }


def main() -> None:
    """Write the files, or try them."""
    parser = command_line(__doc__, "libero_costs")
    parser.add_argument("--suite", action="append", required=True)
    parser.add_argument("--task", type=int, action="append")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"libero/{suite}/{n}" for suite in options.suite for n in options.task or range(SUITES[suite])]
    if options.write:
        for name in track(names, "writing"):
            if not write(name, options.episodes):
                print(f"{name}: no success of the expert, no file")
        return
    rows = [try_out(name, options.episodes) for name in track(names, "scoring")]
    table = Table("task", "episodes", "successes", "not scored", "AUROC of the score for success")
    for row in rows:
        auc = "–" if row["auroc"] is None else f"{row['auroc']:.2f}"
        table.add_row(row["task"], str(row["episodes"]), str(row["successes"]), str(row["unknown"]), auc)
    Console().print(table)
    write_result(options.out, rows)


if __name__ == "__main__":
    main()
