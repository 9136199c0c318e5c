"""Table of published claims against the runs of ``recipe_claims.py``.

    python benchmarks/recipe_claims_table.py --runs runs/recipe_claims

Differences are taken within a seed, on the same held-out initial states. Intervals resample whole seeds; where there is
one seed only they resample its initial states. With three seeds an interval excludes 0 if all seeds agree in sign.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recipe_claims import ARMS, BASE, LIBERO, TOKENS, read
from rich.console import Console
from rich.table import Table

from common import command_line, write_result
from guerdon.core.intervals import bootstrap_interval

Run = Mapping[str, Any]
Curve = Callable[[Run], float]
WHOLE = "action ratio, whole episodes"


def rate(when: str, how: str = "success") -> Callable[[Run], np.ndarray]:
    """Make a function that reads the outcomes of a run at one time."""
    return lambda run: np.asarray(run[when][how], float)


class Runs:
    """Finished runs by arm and seed.

    Args:
        lines: Records of ``runs.jsonl``.
    """

    def __init__(self, lines: Sequence[Run]) -> None:
        self.by_name: dict[str, dict[int, Run]] = {}
        for line in lines:
            self.by_name.setdefault(line["arm"]["name"], {})[line["seed"]] = line

    def __getitem__(self, name: str) -> dict[int, Run]:
        return self.by_name.get(name, {})

    def difference(
        self,
        first: tuple[str, Callable[[Run], np.ndarray]],
        second: tuple[str, Callable[[Run], np.ndarray]],
    ) -> dict[str, Any] | None:
        """Compare two arms on the seeds that both have; None where there is none."""
        one, two = self[first[0]], self[second[0]]
        seeds = sorted(set(one) & set(two))
        if not seeds:
            return None
        pairs = [first[1](one[seed]) - second[1](two[seed]) for seed in seeds]
        each = [float(pair.mean()) for pair in pairs]
        if len(seeds) > 1:
            low, high = bootstrap_interval(np.array(each), np.arange(len(each)))
        else:
            low, high = bootstrap_interval(pairs[0], np.arange(len(pairs[0])))
        return {"value": float(np.mean(each)), "low": low, "high": high, "by_seed": each, "seeds": seeds}


def sign(found: Mapping[str, Any] | None) -> str:
    """Compare a difference with the sign that was claimed, which is the positive one here."""
    if found is None:
        return "not measured"
    few = "" if len(found["seeds"]) > 2 else f" ({len(found['seeds'])} of 3 seeds)"
    if not (np.isfinite(found["low"]) and np.isfinite(found["high"])) or found["low"] <= 0 <= found["high"]:
        return "not separable" + few
    return ("yes" if found["low"] > 0 else "no") + few


def mean_of(name: str) -> Curve:
    """Make a function that averages a metric over the rollouts of a run's environment steps."""
    return lambda run: float(np.nanmean([point.get(name, np.nan) for point in run["curve"][: run["rollouts"]]]))


def before_first_step(run: Run) -> float:
    """Return the explained variance of the critic on the first rollout that the policy learns from."""
    return float(run["curve"][run["arm"]["warmup"]]["explained_variance"])


def lowest(run: Run) -> float:
    """Return the lowest success of the rollouts after the policy began to learn, over that before."""
    curve = [point["success"] for point in run["curve"][: run["rollouts"]]]
    return min(curve[1:]) - curve[0]


def scalar(function: Curve) -> Callable[[Run], np.ndarray]:
    """Make a metric of a run comparable like its outcomes."""
    return lambda run: np.array([function(run)])


CLAIMS: tuple[tuple[str, str, str, tuple[Any, Any], tuple[Any, Any]], ...] = (
    (
        "leave-one-out lifts a few-demonstration policy (5, push)",
        "RIPT-VLA",
        "63.6 → 76.0 (5-shot ML45)",
        (BASE.name, rate("end")),
        (BASE.name, rate("start")),
    ),
    (
        "… sampled",
        "RIPT-VLA",
        "",
        (BASE.name, rate("end", "sampled")),
        (BASE.name, rate("start", "sampled")),
    ),
    (
        "… more than cloning its own successes",
        "LOOP",
        "71.3 vs 58.3 (expert iteration)",
        (BASE.name, rate("end")),
        ("filtered cloning", rate("end")),
    ),
    (
        "… from 2 demonstrations (reach)",
        "RIPT-VLA",
        "",
        ("reach, 2 demonstrations", rate("end")),
        ("reach, 2 demonstrations", rate("start")),
    ),
    (
        "action ratio above trajectory ratio",
        "LOOP",
        "71.3 vs 53.3",
        (WHOLE, rate("end")),
        ("trajectory ratio, whole episodes", rate("end")),
    ),
    (
        "… fewer ratios clipped (share)",
        "toy calculation",
        "31 % vs 0 %",
        ("trajectory ratio, whole episodes", scalar(mean_of("clipped"))),
        (WHOLE, scalar(mean_of("clipped"))),
    ),
    (
        "rejection at equal iterations",
        "RIPT-VLA",
        "93.5 vs 90.2",
        ("rejection", lambda run: rate("matched" if "matched" in run else "end")(run)),
        (BASE.name, rate("end")),
    ),
    ("rejection at equal steps", "none", "", ("rejection", rate("end")), (BASE.name, rate("end"))),
    ("25 contexts above 1", "RIPT-VLA", "rises with 1 … 40", (BASE.name, rate("end")), ("1 context", rate("end"))),
    ("25 contexts above 5", "RIPT-VLA", "", (BASE.name, rate("end")), ("5 contexts", rate("end"))),
    ("25 contexts above 10", "RIPT-VLA", "", (BASE.name, rate("end")), ("10 contexts", rate("end"))),
    (
        "critic warm-up of 5 above none",
        "VLA-RL",
        "90.2 vs 80.0",
        ("critic, warm-up of 5", rate("end")),
        ("critic, no warm-up", rate("end")),
    ),
    (
        "… explained variance at the first policy step",
        "VLA-RL",
        "",
        ("critic, warm-up of 5", scalar(before_first_step)),
        ("critic, no warm-up", scalar(before_first_step)),
    ),
    *(
        (
            f"temperature {arm.temperature} above 1.0",
            "VLA-RL, SimpleVLA-RL",
            "90.2 vs 85.8 (1.5); ~ +15 (1.6)",
            (arm.name, rate("end")),
            (TOKENS[0].name, rate("end")),
        )
        for arm in TOKENS[1:]
    ),
    (
        "LIBERO: leave-one-out lifts a clone",
        "RIPT-VLA",
        "96.7 → 97.5, 82.7 → 93.6",
        (LIBERO[0].name, rate("end")),
        (LIBERO[0].name, rate("start")),
    ),
    (
        "LIBERO: critic PPO lifts a clone",
        "VLA-RL",
        "76.5 → 81.0",
        ("LIBERO, critic, warm-up of 2", rate("end")),
        ("LIBERO, critic, warm-up of 2", rate("start")),
    ),
    (
        "LIBERO: action ratio above trajectory ratio",
        "LOOP",
        "71.3 vs 53.3",
        ("LIBERO, action ratio, whole episodes", rate("end")),
        ("LIBERO, trajectory ratio, whole episodes", rate("end")),
    ),
    (
        "LIBERO: rejection at equal steps",
        "none",
        "",
        ("LIBERO, rejection", rate("end")),
        ("LIBERO, leave one out", rate("end")),
    ),
    (
        "LIBERO: 20 contexts above 1",
        "RIPT-VLA",
        "rises with 1 … 40",
        ("LIBERO, leave one out", rate("end")),
        ("LIBERO, 1 context", rate("end")),
    ),
    (
        "LIBERO: critic warm-up of 2 above none",
        "VLA-RL",
        "90.2 vs 80.0",
        ("LIBERO, critic, warm-up of 2", rate("end")),
        ("LIBERO, critic, no warm-up", rate("end")),
    ),
    (
        "LIBERO: 3 demonstrations are lifted",
        "RIPT-VLA",
        "larger with fewer demonstrations",
        ("LIBERO, 3 demonstrations", rate("end")),
        ("LIBERO, 3 demonstrations", rate("start")),
    ),
)
DEMONSTRATIONS = {
    0: "0 demonstrations",
    1: "1 demonstration",
    2: "2 demonstrations",
    5: BASE.name,
    20: "20 demonstrations",
}


def slope(runs: Runs) -> dict[str, Any]:
    """Regress gain on start over all arms of the sweep of demonstrations, and again without starts below 0.1."""
    points = [
        (seed, rate("start")(run).mean(), rate("end")(run).mean() - rate("start")(run).mean())
        for name in DEMONSTRATIONS.values()
        for seed, run in runs[name].items()
    ]
    found: dict[str, Any] = {"points": points}
    for label, kept in (("all", points), ("above 0.1", [point for point in points if point[1] >= 0.1])):
        seeds = sorted({seed for seed, _, _ in kept})
        if len(kept) < 3:
            continue
        value = float(np.polyfit([x for _, x, _ in kept], [y for _, _, y in kept], 1)[0])
        draws: list[float] = []
        generator = np.random.default_rng(0)
        for _ in range(2000 if len(seeds) > 1 else 0):
            drawn = generator.choice(seeds, len(seeds))
            again = [point for seed in drawn for point in kept if point[0] == seed]
            if np.ptp([x for _, x, _ in again]) > 0:
                draws.append(float(np.polyfit([x for _, x, _ in again], [y for _, _, y in again], 1)[0]))
        low, high = np.quantile(draws, [0.025, 0.975]) if draws else (np.nan, np.nan)
        found[label] = {"slope": value, "low": float(low), "high": float(high), "seeds": seeds, "runs": len(kept)}
    return found


def arm_table(runs: Runs) -> tuple[Table, dict[str, Any]]:
    """Describe every arm: start, end, steps, rollouts, by seed."""
    table = Table(
        "arm", "seeds", "start", "end", "by seed", "sampled", "training starts", "steps", "rollouts", "clipped"
    )
    found: dict[str, Any] = {}
    for arm in (*ARMS, *TOKENS, *LIBERO):
        done = [run for _, run in sorted(runs[arm.name].items())]
        if not done:
            continue
        starts, ends, first, last = (
            [float(rate(when, how)(run).mean()) for run in done]
            for how in ("success", "sampled")
            for when in ("start", "end")
        )
        trained = [float(np.mean([p["success"] for p in run["curve"][: run["rollouts"]][-3:]])) for run in done]
        clipped = [mean_of("clipped")(run) if run["arm"]["learner"] != "filtered" else np.nan for run in done]
        found[arm.name] = {
            "seeds": [run["seed"] for run in done],
            "start": starts,
            "end": ends,
            "start_sampled": first,
            "end_sampled": last,
            "trained_on": trained,
            "clipped": clipped,
            "env_steps": [run["env_steps"] for run in done],
            "rollouts": [run["rollouts"] for run in done],
            "explained_variance": [before_first_step(run) for run in done if run["arm"]["learner"] == "critic"],
            "lowest": [lowest(run) for run in done],
            "matched": [float(np.mean(run["matched"]["success"])) for run in done if "matched" in run],
            "matched_steps": [run["matched"]["env_steps"] for run in done if "matched" in run],
        }
        table.add_row(
            arm.name,
            str(len(done)),
            f"{np.mean(starts):.2f}",
            f"{np.mean(ends):.2f}",
            " ".join(f"{a:.2f}→{b:.2f}" for a, b in zip(starts, ends, strict=True)),
            f"{np.mean(first):.2f}→{np.mean(last):.2f}",
            f"{np.mean(trained):.2f}",
            f"{np.mean([run['env_steps'] for run in done]):,.0f}",
            " ".join(str(run["rollouts"]) for run in done),
            f"{np.mean(clipped):.3f}",
        )
    return table, found


def main() -> None:
    """Print both tables and write the result."""
    parser = command_line(__doc__, "recipe_claims")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipe_claims"))
    options = parser.parse_args()
    runs = Runs(read(options.runs / "runs.jsonl"))
    arms, found = arm_table(runs)
    table = Table("claim", "source", "theirs", "ours", "by seed", "same sign?")
    claims: dict[str, Any] = {}
    for claim, source, theirs, first, second in CLAIMS:
        difference = runs.difference(first, second)
        claims[claim] = {"source": source, "theirs": theirs, "difference": difference, "same_sign": sign(difference)}
        if difference is not None:
            ours = "{value:+.3f} ({low:+.3f} … {high:+.3f})".format(**difference)
            table.add_row(
                claim, source, theirs, ours, " ".join(f"{x:+.2f}" for x in difference["by_seed"]), sign(difference)
            )
    console = Console(width=220)
    console.print(arms)
    console.print(table)
    slopes = slope(runs)
    for label in ("all", "above 0.1"):
        console.print(f"gain on start, {label}: {slopes.get(label)}")
    write_result(options.out, {"arms": found, "claims": claims, "gain_on_start": slopes})


if __name__ == "__main__":
    main()
