"""Does the gripper show what happens? Milestones of scripted experts in the 50 Meta-World tasks, and of people.

    python benchmarks/milestone_coverage.py --stack-cube FOLDER

FOLDER holds `annotated_dataset.hdf5`, ten demonstrations of stacking cubes with sub-tasks that the recording signals by
rules of its own; without it that part is left out.

Three scripted episodes per task, up to 500 steps, stopped at success. A task is functional where every success has a
gripper milestone before its success; it falls back where none has, and is mixed otherwise.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from common import command_line, write_result
from guerdon.envs.collect import collect
from guerdon.envs.instructions import METAWORLD
from guerdon.envs.vector import make_task
from guerdon.rewards.milestones.detection import MilestoneDetector, keyframe_steps, smoothed_speed

RULES = {
    "all": MilestoneDetector(start_steps=0),
    "complete": MilestoneDetector(start_rule="complete"),
    "begun": MilestoneDetector(),
}
"""Every change of the gripper; those not complete within the first ten steps; those not begun within them."""


def measure(name: str, episodes: int, horizon: int, seed: int) -> dict[str, Any]:
    """Measure what the detector finds in scripted episodes of one task."""
    with closing(make_task(f"metaworld/{name}", horizon, seed)) as task:
        played = list(collect(task, {"expert": 1.0}, episodes=episodes, seed=seed, frames=False))
    row: dict[str, Any] = {
        "task": name,
        "episodes": len(played),
        "successes": sum(int(e.success or 0) for e in played),
        "steps": [e.steps for e in played],
        "openness_span": [float(np.ptp(e.tracks["gripper"].values)) for e in played],
        "gripper_events": {
            rule: [len(detector.gripper(e.tracks["gripper"].values)) for e in played]
            for rule, detector in RULES.items()
        },
        "milestones": [],
        "fallback": [],
        "slow_stretches": [],
    }
    for episode in played:
        hand = episode.tracks["end_effector"].values
        alone = keyframe_steps(smoothed_speed(hand), np.array([episode.steps]))
        row["slow_stretches"].append(len(alone) if alone[0] != episode.steps - 1 or len(alone) > 1 else 0)
        if episode.success:
            found = RULES["begun"](episode.tracks["gripper"].values, hand, episode.steps)
            row["milestones"].append(found.gripper)
            row["fallback"].append(found.fallback)
    shares = row["fallback"]
    row["kind"] = (
        "no success" if not shares else "fallback" if all(shares) else "mixed" if any(shares) else "functional"
    )
    return row


def people(file: Path) -> list[dict[str, Any]]:
    """Milestones of the gripper beside the signalled sub-tasks, one line per demonstration."""
    import h5py  # pyright: ignore[reportMissingImports]

    rows: list[dict[str, Any]] = []
    with h5py.File(file) as recorded:
        data: Any = recorded["data"]
        for name in sorted(data, key=lambda demo: int(demo.split("_")[1])):
            fingers = data[name]["obs/gripper_pos"][:]
            signals = data[name]["obs/datagen_info/subtask_term_signals"]
            onsets = [int(np.argmax(signals[signal][:].ravel())) for signal in ("grasp_1", "stack_1", "grasp_2")]
            found = RULES["begun"].gripper((fingers[:, 0] - fingers[:, 1]) / 0.08)
            rows.append({"demo": name, "steps": len(fingers) - 1, "milestones": found.tolist(), "onsets": onsets})
    return rows


def numbers(values: list[Any]) -> str:
    """Format a list as one short cell."""
    return ", ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values)


def main() -> None:
    """Measure every task, then print the table."""
    parser = command_line(__doc__, "milestone_coverage")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--horizon", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stack-cube", type=Path, help="folder with annotated_dataset.hdf5")
    parser.add_argument("--quick", action="store_true", help="five tasks only; nothing is written")
    options = parser.parse_args()
    tasks = sorted(METAWORLD)[:5] if options.quick else sorted(METAWORLD)
    rows = [measure(t, options.episodes, options.horizon, options.seed) for t in track(tasks)]
    table = Table("task", "success", "steps", "span", "events", "complete", "begun", "milestones", "slow", "kind")
    for row in rows:
        table.add_row(
            row["task"],
            f"{row['successes']}/{row['episodes']}",
            numbers(row["steps"]),
            numbers(row["openness_span"]),
            *(numbers(row["gripper_events"][rule]) for rule in RULES),
            numbers(row["milestones"]),
            numbers(row["slow_stretches"]),
            row["kind"],
        )
    Console(width=160).print(table)
    kinds = {kind: sum(r["kind"] == kind for r in rows) for kind in ("functional", "mixed", "fallback", "no success")}
    print(kinds, "successes", sum(r["successes"] for r in rows), "of", sum(r["episodes"] for r in rows))
    late = [r["task"] for r in rows if all(r["gripper_events"]["begun"]) and not all(r["milestones"])]
    print("with a change in every episode that is merged into the success in some:", ", ".join(late))
    demos = people(options.stack_cube / "annotated_dataset.hdf5") if options.stack_cube else []
    for demo in demos:
        print(demo["demo"], "gripper", demo["milestones"], "signalled", demo["onsets"])
    if not options.quick:
        record = {"seed": options.seed, "horizon": options.horizon, "kinds": kinds, "tasks": rows, "stack_cube": demos}
        write_result(options.out, record)


if __name__ == "__main__":
    main()
