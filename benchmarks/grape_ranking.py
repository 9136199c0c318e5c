"""How well GRAPE's terms order simulated rollouts without the success flag, and whether thresholds steer a choice.

    python benchmarks/grape_ranking.py [--quick]

Ranking: on each Meta-World task a mixture of scripted experts, noisy ones, ones that give up and random walks acts on
evaluation contexts. Rollouts are scored by the external term (the cost files that come with guerdon, stages by rule
without the success flag), by the same on tracks with errors, by the self term, by both, and by both after training
weights and scales on successes and failures of training contexts. The external term reads the very positions that the
simulator's success flag is made of: errors in the tracks say how much that helps. Nobody recorded log-probabilities of
these behaviours, so the self term is a proxy: the log-density of the executed actions under a Gaussian policy cloned
from experts on training contexts. Beside them stand scores that know nothing of the task: the length of the rollout,
and a constant.

Steering: several rollouts of experts of different noise, speed and ways from each of some initial states; of each group
the best by the external term is taken, under the thresholds of the library and under those of other objectives. The
obstacle that safety is about exists in the costs only.

Prints tables, writes JSON. Needs `pip install 'guerdon[sim]'`; about ten minutes of one core.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line
from guerdon import __version__
from guerdon.core.batch import End, PreferencePairs, RewardEstimates, TrajectoryBatch
from guerdon.core.files import write_json
from guerdon.core.intervals import macro_bootstrap, nested_interval, percentile_interval
from guerdon.core.metrics import success_auroc
from guerdon.datasets.collate import collate
from guerdon.datasets.episodes import Column, Episode
from guerdon.envs.collect import collect
from guerdon.envs.experts import scripted_expert
from guerdon.envs.task import Context, Task
from guerdon.envs.vector import make_task
from guerdon.policies.advantages.group_score import complete_rows, term_shares
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.rewards.costs import Constraint
from guerdon.rewards.grape.cost_files import TaskCosts, efficiency, load_costs, safety, task_completion
from guerdon.rewards.grape.trajectory import WEIGHTS, GrapeScore
from guerdon.rewards.stages.rule_decomposer import RuleDecomposer

TASKS = (
    "push-v3",
    "pick-place-v3",
    "drawer-open-v3",
    "door-open-v3",
    "button-press-topdown-v3",
    "plate-slide-v3",
    "coffee-pull-v3",
    "soccer-v3",
)
MIXTURE = {"expert": 0.25, "noisy": 0.35, "aborted": 0.2, "random": 0.2}
NOISE, HORIZON = 0.8, 150
EXPERTS, TRAIN, EVAL = 24, 48, 72
"""Episodes of a task to clone, to train weights on, and to judge on."""
MARGIN = 0.1
"""Metres to keep from the obstacle, as in the paper's safety objective."""
ERRORS = (0.02, 0.05)
"""Standard deviations, in metres and of each coordinate, of points that are not read from the simulator."""
STATES, ROLLOUTS = 12, 8
"""Initial states of a task, and rollouts from each, to choose among."""
OBJECTIVES: dict[str, Callable[[TaskCosts], Any]] = {
    "library": lambda costs: list(costs.constraints),
    "task completion": lambda costs: task_completion(costs.constraints),
    "safety": lambda costs: safety(costs.constraints),
    "safety, weights × 10": lambda costs: safety(costs.constraints, 10.0),
    "efficiency": lambda costs: efficiency(costs.constraints),
    "efficiency, weights × 10": lambda costs: efficiency(costs.constraints, 10.0),
}


def clone(task: Task, episodes: int, steps: int, seed: int) -> GaussianPolicy:
    """Clone a Gaussian policy from scripted experts on training contexts; its deviation is that of the residual."""
    batch = collate(list(collect(task, {"expert": 1.0}, episodes, seed, "train", frames=False)))
    torch.manual_seed(seed)
    policy = GaussianPolicy(task.state_size, task.action_size)
    decided = batch.mask.nonzero()
    observation, decision = batch.at(decided[:, 0], decided[:, 1], 1)
    policy.inputs.fit(observation)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, len(observation), (256,), generator=generator)
        whole = torch.ones(256, 1, dtype=torch.bool)
        loss = policy.imitation_loss(observation[rows], decision.chunk[rows], whole).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        left = decision.chunk - policy.distribution(observation)[0]
        policy.log_std.copy_(left.square().mean(0).sqrt().log().clamp(*policy.log_std_range))
    return policy.eval()


@torch.no_grad()
def with_log_probs(batch: TrajectoryBatch, policy: GaussianPolicy) -> TrajectoryBatch:
    """Add the log-density of the executed actions to the batch, as the behaviour would have recorded it."""
    rows, steps = batch.mask.nonzero(as_tuple=True)
    observation, decision = batch.at(rows, steps, 1)
    density = policy.evaluate(observation, decision).log_prob
    log_prob = torch.zeros(*batch.mask.shape, density.shape[1])
    log_prob[rows, steps] = density
    return replace(batch, behaviour={"log_prob": log_prob})


def scorer(task: str, weights: Sequence[float], **given: Any) -> GrapeScore:
    return GrapeScore([f"metaworld/{task}"], weights, decomposer=RuleDecomposer(use_success=False), **given)


@torch.no_grad()
def row_scores(model: GrapeScore, batch: TrajectoryBatch) -> np.ndarray:
    """One score per row; every row of this benchmark can be scored."""
    estimates = model(batch)
    assert bool(estimates.valid.any(1).all()), next(why for why in model.why(batch) if why)
    return estimates.rewards.sum(1).numpy()


def rank_task(name: str, policy: GaussianPolicy, task: Task, sizes: tuple[int, int], seed: int) -> dict[str, Any]:
    """Scores of every evaluation rollout of one task, and what became of it."""
    train_count, count = sizes
    mixed = [
        with_log_probs(collate(list(collect(task, MIXTURE, episodes, seed, split, frames=False, noise=NOISE))), policy)
        for split, episodes in (("train", train_count), ("eval", count))
    ]
    train, judged = mixed
    repository = scorer(name, (*WEIGHTS["repository"][:2], 0.0))
    trained = scorer(name, (*WEIGHTS["repository"][:2], 0.0), compare="task")
    fitted = trained.fit(outcome_pairs(train), terms=("self", "external"))
    raw = repository.raw_terms(judged)
    mean = scorer(name, (1.0, 0.0, 0.0), self_reduce="mean").raw_terms(judged)["self"]
    scores = {
        "external": raw["external"].numpy(),
        **{
            f"external, tracks off by {1000 * error:.0f} mm": repository.raw_terms(mislocated(judged, error, seed))[
                "external"
            ].numpy()
            for error in ERRORS
        },
        "self, sum": raw["self"].numpy(),
        "self, mean": mean.numpy(),
        "both, repository weights": row_scores(repository, judged),
        "both, paper weights": row_scores(scorer(name, (*WEIGHTS["paper"][:2], 0.0)), judged),
        "both, one scale (mean ranks)": ranks(raw["external"].numpy()) + ranks(mean.numpy()),
        "both, trained on 48 rollouts": row_scores(trained, judged),
        "short length": -judged.steps.numpy().astype(np.float64),
        "constant": np.zeros(count),
    }
    return {
        "scores": scores,
        "success": judged.success.numpy(),
        "episodes": len(judged),
        "fitted": fitted,
        "learned weights": trained.term_weights.detach().tolist()[:2],
    }


def mislocated(batch: TrajectoryBatch, error: float, seed: int) -> TrajectoryBatch:
    """Points as a camera would find them: off by one offset in a rollout, and by half as much anew at each step."""
    generator = torch.Generator().manual_seed(seed)
    tracks = dict(batch.tracks)
    for name, track in batch.tracks.items():
        if track.values.ndim == 3:
            offset = torch.randn(len(batch), 1, 3, generator=generator)
            jitter = torch.randn(track.values.shape, generator=generator)
            tracks[name] = replace(track, values=track.values + error * (offset + 0.5 * jitter))
    return replace(batch, tracks=tracks)


def outcome_pairs(batch: TrajectoryBatch) -> PreferencePairs:
    """Every success beside every failure."""
    chosen, rejected = ((batch.success >= 1)[:, None] & (batch.success <= 0)).nonzero(as_tuple=True)
    ones = torch.ones(len(chosen))
    return PreferencePairs(batch=batch, chosen=chosen, rejected=rejected, label=ones, weight=ones)


def ranks(x: np.ndarray) -> np.ndarray:
    return np.array([(x < v).sum() + 0.5 * (x == v).sum() for v in x]) / len(x)


def auroc_draws(scores: np.ndarray, success: np.ndarray, samples: int) -> np.ndarray:
    """AUROC on resampled rollouts; each has an initial state of its own, so rollouts are the clusters."""
    generator = np.random.default_rng(0)
    draws = generator.integers(len(scores), size=(samples, len(scores)))
    return np.array([success_auroc(scores[d], success[d]) for d in draws])


def rank_table(results: dict[str, dict[str, Any]], samples: int) -> dict[str, Any]:
    """AUROC of each score on each task, and their mean over tasks, with intervals."""
    table: dict[str, Any] = {}
    for score in next(iter(results.values()))["scores"]:
        draws = [auroc_draws(r["scores"][score], r["success"], samples) for r in results.values()]
        points = [success_auroc(r["scores"][score], r["success"]) for r in results.values()]
        table[score] = {
            "tasks": {
                task: {"auroc": point, "interval": percentile_interval(drawn)}
                for task, point, drawn in zip(results, points, draws, strict=True)
            },
            "mean": float(np.mean(points)),
            "interval, these tasks": nested_interval(draws, fixed_tasks=True),
            "interval, other tasks": nested_interval(draws),
        }
    return table


# Steering


class Hand:
    """A scripted expert of its own pace and noise, which sets out in a direction of its own, in one episode."""

    def __init__(self, task: Task, generator: np.random.Generator) -> None:
        self._expert, self._generator = scripted_expert(task.name), generator
        self._noise, self._pace = generator.uniform(0.0, 0.8), generator.uniform(0.4, 1.0)
        self._aside, self._left = generator.normal(0.0, 0.6, 3), int(generator.integers(0, 25))

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Act on a state (S,)."""
        action = np.array(self._expert(state))
        action[:3] *= self._pace
        if self._left > 0:
            self._left -= 1
            action[:3] += self._aside
        return np.clip(action + self._generator.normal(0.0, self._noise, 4), -1.0, 1.0)


def play(task: Task, context: Context, hand: Hand, index: int) -> Episode:
    """One rollout until the first success or the time limit."""
    states, tracks = [task.reset(context)], [task.tracks()]
    actions: list[np.ndarray] = []
    success = False
    while not success and len(actions) < task.horizon:
        actions.append(hand(states[-1]).astype(np.float32))
        step = task.step(actions[-1])
        states.append(step.state)
        tracks.append(step.tracks)
        success = step.success
    points = {name: np.stack([track[name] for track in tracks]) for name in tracks[0]}
    return Episode(
        index=index,
        state=np.stack(states),
        actions=np.stack(actions),
        instruction=task.instruction,
        end=End.SUCCESS if success else End.TIME_LIMIT,
        success=float(success),
        tracks={name: Column.known(p[:, 0] if p.shape[1] == 1 else p) for name, p in points.items()},
        group=context.index,
    )


def steer_task(name: str, policy: GaussianPolicy, task: Task, states: int, rollouts: int, seed: int) -> dict[str, Any]:
    """Measure the best rollout of each group under each objective, and the shares of the terms within groups."""
    contexts = task.contexts("eval", states)
    episodes = [
        play(task, context, Hand(task, np.random.default_rng([seed, place, take])), place * rollouts + take)
        for place, context in enumerate(contexts)
        for take in range(rollouts)
    ]
    batch = with_log_probs(collate(episodes), policy)
    costs = with_obstacle(load_costs(f"metaworld/{name}"), task, seed)
    steps = batch.steps.numpy().reshape(states, rollouts).astype(np.float64)
    success = batch.success.numpy().reshape(states, rollouts)
    close = violations(batch, costs).reshape(states, rollouts)
    chosen: dict[str, np.ndarray] = {}
    for objective, of in OBJECTIVES.items():
        turned = costs.model_copy(update={"constraints": tuple(of(costs))})
        model = GrapeScore(
            [turned.model_dump(mode="json")], (0.0, 1.0, 0.0), decomposer=RuleDecomposer(use_success=False)
        )
        # the logarithm would be the same choice, were float32 fine enough: ties go to the first
        cost = -np.log(model.raw_terms(batch)["external"].numpy())
        chosen[objective] = cost.reshape(states, rollouts).argmin(1)
    shares: dict[str, Any] = {}
    for weights, numbers in WEIGHTS.items():
        estimates: RewardEstimates = scorer(name, numbers)(batch)
        terms = {k: v.detach().sum(1) for k, v in estimates.terms.items()}
        shares[weights] = term_shares(terms, batch.group, complete_rows(batch, estimates))
    every = np.arange(states)
    picked = {
        objective: {
            "steps": steps[every, best],
            "violations": close[every, best],
            "success": success[every, best],
            "other choice": (best != chosen["library"]).astype(np.float64),
        }
        for objective, best in chosen.items()
    }
    picked["any (mean of the group)"] = {
        "steps": steps.mean(1),
        "violations": close.mean(1),
        "success": success.mean(1),
        "other choice": (np.arange(rollouts)[None] != chosen["library"][:, None]).mean(1),
    }
    return {"picked": picked, "shares": shares}


def with_obstacle(costs: TaskCosts, task: Task, seed: int) -> TaskCosts:
    """Add to the library's costs an obstacle, absent from the simulator, on the experts' way to the object."""
    way: list[np.ndarray] = []
    for episode in collect(task, {"expert": 1.0}, 6, seed, "train", frames=False):
        hand, thing = (episode.tracks[name].values for name in ("end_effector", "object"))
        there = int(np.linalg.norm(hand - thing, axis=1).argmin())
        way.append(hand[int(0.5 * there)])
    constraints = [
        *costs.constraints,
        *(
            Constraint(
                stage=stage,
                name="clear of the obstacle",
                kind="collision",
                op="clearance",
                a="end_effector",
                b="obstacle",
                margin=MARGIN,
                threshold=5.0,  # metres · steps, a hundred at half the margin: free until it is lowered
                weight=1.0,
            )
            for stage in range(len(costs.stages))
        ),
    ]
    place = tuple(float(x) for x in np.mean(way, 0))
    return costs.model_copy(update={"constraints": tuple(constraints), "points": {**costs.points, "obstacle": place}})


def violations(batch: TrajectoryBatch, costs: TaskCosts) -> np.ndarray:
    """Count the steps of each rollout with the hand within the obstacle's margin, whatever the thresholds."""
    place = torch.tensor(costs.points["obstacle"])
    close = (batch.tracks["end_effector"].values - place).norm(dim=-1) < MARGIN
    return (close[:, 1:] & batch.mask).sum(1).double().numpy()


def steer_table(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over tasks of what was chosen, and of its difference from the library's choice, with intervals."""
    tasks = np.concatenate([[t] * len(r["picked"]["library"]["steps"]) for t, r in results.items()])
    table: dict[str, Any] = {}
    for objective in next(iter(results.values()))["picked"]:
        row: dict[str, Any] = {}
        for figure in ("steps", "violations", "success", "other choice"):
            values = np.concatenate([r["picked"][objective][figure] for r in results.values()])
            base = np.concatenate([r["picked"]["library"][figure] for r in results.values()])
            for what, numbers in ((figure, values), (f"{figure} − library", values - base)):
                mean, low, high = macro_bootstrap(numbers, tasks, fixed_tasks=True)
                row[what] = {"mean": mean, "interval": (low, high)}
        table[objective] = row
    return table


def show(console: Console, ranking: dict[str, Any], steering: dict[str, Any], shares: dict[str, Any]) -> None:
    tasks = list(next(iter(ranking.values()))["tasks"])
    table = Table("score", *tasks, "mean", "95 %", title="AUROC of success against failure, success flag not looked at")
    for score, row in ranking.items():
        low, high = row["interval, these tasks"]
        cells = [f"{cell['auroc']:.2f}" for cell in row["tasks"].values()]
        table.add_row(score, *cells, f"{row['mean']:.3f}", f"{low:.3f} … {high:.3f}")
    console.print(table)
    table = Table("best of the group by", "steps", "violations", "success", "− library: steps", "violations", "changed")
    for objective, row in steering.items():

        def cell(what: str, row: dict[str, Any] = row) -> str:
            low, high = row[what]["interval"]
            return f"{row[what]['mean']:.2f} ({low:.2f} … {high:.2f})"

        table.add_row(objective, *map(cell, ("steps", "violations", "success")), cell("steps − library"),
                      cell("violations − library"), cell("other choice"))  # fmt: skip
    console.print(table)
    table = Table("weights", "self", "external", "success", title="share of the variance within groups, mean of tasks")
    for weights, row in shares.items():
        table.add_row(weights, *(f"{row[name]:.4f}" for name in ("self", "external", "success")))
    console.print(table)


def plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 5) if math.isfinite(value) else None
    return value


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--quick", action="store_true", help="two tasks, few rollouts; writes nothing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = TASKS[:2] if options.quick else TASKS
    experts, train, count = (6, 16, 20) if options.quick else (EXPERTS, TRAIN, EVAL)
    states, rollouts = (3, 4) if options.quick else (STATES, ROLLOUTS)
    console, started = Console(width=200), time.perf_counter()
    ranked: dict[str, dict[str, Any]] = {}
    steered: dict[str, dict[str, Any]] = {}
    for name in tasks:
        with closing(make_task(f"metaworld/{name}", HORIZON)) as task:
            policy = clone(task, experts, 100 if options.quick else 600, options.seed + 1)
            ranked[name] = rank_task(name, policy, task, (train, count), options.seed + 2)
            steered[name] = steer_task(name, policy, task, states, rollouts, options.seed + 3)
        rate = float(ranked[name]["success"].mean())
        console.print(f"{name}: {time.perf_counter() - started:.0f} s, success {rate:.2f}")
    ranking, steering = rank_table(ranked, 200 if options.quick else 1000), steer_table(steered)
    shares = {
        weights: {
            term: float(np.mean([r["shares"][weights][term] for r in steered.values()]))
            for term in ("self", "external", "success")
        }
        for weights in WEIGHTS
    }
    show(console, ranking, steering, shares)
    if options.quick:
        return
    result = {
        "guerdon": __version__,
        "seed": options.seed,
        "seconds": time.perf_counter() - started,
        "episodes a task": {"cloned experts": experts, "training": train, "evaluation": count},
        "mixture": MIXTURE,
        "noise": NOISE,
        "horizon": HORIZON,
        "success rate": {name: float(r["success"].mean()) for name, r in ranked.items()},
        "external term": "reads the positions that the simulator's success flag is made of; see the rows of tracks off",
        "self term": "log-density of executed actions under a Gaussian clone of experts (a proxy)",
        "AUROC": ranking,
        "training": {name: r["fitted"] | {"weights": r["learned weights"]} for name, r in ranked.items()},
        "groups": {"states a task": states, "rollouts a state": rollouts},
        "best of the group": steering,
        "variance shares within groups": {"mean": shares, "tasks": {n: r["shares"] for n, r in steered.items()}},
    }
    out = Path(__file__).parent / "results" / "grape_ranking.json"
    write_json(out, plain(result))
    console.print(f"written to {out}")


if __name__ == "__main__":
    main()
