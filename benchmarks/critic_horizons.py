"""What the horizon of a critic's chunks buys and costs: how fast values travel, and the bias of closed-loop chunks.

    python benchmarks/critic_horizons.py [--quick] [--seeds 2]

Travel: sweeps of the chunked target over a corridor of 100 steps until the first value is within 1 % of its limit; and
on drawer-open-v3 (buffer and held-out states as in critic_values.py) how well V follows the re-rolled returns after
some numbers of updates, for horizons 1 to 16. One policy predicts 16 steps and carries out as many as the horizon.

Bias: the arm is pushed about by a disturbance that no state shows, and whoever acted in the logs answered to it at
every step. A critic that takes such steps for a blind chunk believes that the chunk itself would do as well. Shown is
Q of an expert's logged chunk minus its return when it is carried out blindly under new disturbances.

Prints tables, writes JSON. Needs `pip install 'guerdon[sim]'`; about a quarter of an hour of one core.
"""

import copy
import multiprocessing
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from statistics import mean
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, write_result
from critic_values import (
    DEMONSTRATIONS,
    GAMMA,
    HORIZON,
    NOISE,
    ROLLOUTS,
    STEPS,
    WORST,
    Probe,
    clone,
    evaluated,
    fragments,
    network,
    probe,
    train,
    values_of,
)
from guerdon import __version__
from guerdon.core.batch import Observation
from guerdon.core.intervals import bootstrap_interval
from guerdon.core.returns import chunk_td_targets
from guerdon.critics.action import ActionCritic
from guerdon.critics.ensembles import Aggregation
from guerdon.envs.collect import collect
from guerdon.envs.experts import scripted_expert
from guerdon.envs.saved import SavedState
from guerdon.envs.task import ResumableTask, Step, Task
from guerdon.envs.vector import VectorEnv, make_task
from guerdon.evaluation.critics.diagnostics import rank_correlation
from guerdon.evaluation.critics.reroll import reroll
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.proposer import PolicyProposer

TASK, HORIZONS, MARKS = "drawer-open-v3", (1, 4, 8, 16), (125, 250, 500)
MIXTURE = {"expert": 0.5, "noisy": 0.3, "random": 0.2}
EPISODES, CONTEXTS = 120, 8
PUSH, PERSISTENCE = 0.6, 0.9
"""Deviation of the disturbance in half ranges of the action, and its correlation from step to step."""
CORRIDOR, CORRIDOR_HORIZONS = 100, (1, 5, 10, 25, 50)


class Disturbed:
    """A task whose actions are disturbed by a persistent push that no state shows; whoever records sees the command."""

    def __init__(self, task: ResumableTask, seed: int) -> None:
        self._task, self._generator = task, np.random.default_rng(seed)
        self._push = np.zeros(task.action_size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def reset(self, context: Any) -> np.ndarray:
        """Begin an episode with a push of its own."""
        self._push = self._generator.normal(0, PUSH, self._task.action_size)
        return self._task.reset(context)

    def restore(self, saved: SavedState) -> np.ndarray:
        """Go on from a saved state under a push that is drawn anew."""
        self._push = self._generator.normal(0, PUSH, self._task.action_size)
        return self._task.restore(saved)

    def step(self, action: np.ndarray) -> Step:
        """Carry out the command and the push together."""
        fresh = self._generator.normal(0, PUSH, self._task.action_size)
        self._push = PERSISTENCE * self._push + (1 - PERSISTENCE**2) ** 0.5 * fresh
        return self._task.step(np.clip(action + self._push, -1, 1))


def corridor_sweeps(horizon: int, gamma: float = 0.99) -> int:
    """Sweeps of the chunked target over one walk down the corridor until V(0) is within 1 % of its limit."""
    rewards = torch.full((1, CORRIDOR), -1.0, dtype=torch.float64)
    rewards[0, -1] = 0.0
    limit = -(1 - gamma ** (CORRIDOR - 1)) / (1 - gamma)
    values = torch.zeros(1, CORRIDOR + 1, dtype=torch.float64)
    mask, over = torch.ones(1, CORRIDOR, dtype=torch.bool), torch.tensor([True])
    for sweep in range(1, CORRIDOR + 1):
        values[:, :-1] = chunk_td_targets(rewards, values, mask, over, horizon, gamma)
        if abs(float(values[0, 0]) - limit) <= 0.01 * abs(limit):
            return sweep
    return CORRIDOR


def closed_loop(
    seed: int, policies: Mapping[int, GaussianPolicy], contexts: int
) -> tuple[np.ndarray, Mapping[int, np.ndarray], Mapping[int, np.ndarray]]:
    """States on the way of disturbed experts; by horizon their commands there, and what these bring when blind."""
    generator = np.random.default_rng([seed, 3])
    envs = VectorEnv([Disturbed(make_task(f"metaworld/{TASK}", STEPS, seed), seed + i) for i in range(4)])  # pyright: ignore
    task, longest = cast(ResumableTask, envs.tasks[0]), max(HORIZONS)
    saved: list[SavedState] = []
    states: list[np.ndarray] = []
    commands: list[np.ndarray] = []
    for context in task.contexts("eval", contexts):
        state, expert = task.reset(context), scripted_expert(task.name)
        moments = {0, *generator.choice(np.arange(1, 50), 2, replace=False).tolist()}
        walk: list[tuple[SavedState, np.ndarray, np.ndarray]] = []
        for _ in range(max(moments) + longest):
            walk.append((task.save(), state, np.clip(expert(state), -1, 1)))
            came = task.step(walk[-1][2])
            if came.success:
                break
            state = came.state
        for moment in sorted(m for m in moments if m + longest <= len(walk)):
            saved.append(walk[moment][0])
            states.append(walk[moment][1])
            commands.append(np.stack([w[2] for w in walk[moment : moment + longest]]))
    chunks = {h: np.stack(commands)[:, :h].astype(np.float32) for h in HORIZONS}
    noise = torch.Generator().manual_seed(seed)
    blind = {
        h: reroll(envs, policies[h], saved, chunks[h], rollouts=2 * ROLLOUTS, gamma=GAMMA, generator=noise).mean / WORST
        for h in HORIZONS
    }
    envs.close()
    return np.stack(states), chunks, blind


def run(seed: int, marks: tuple[int, ...], episodes: int, contexts: int) -> list[dict[str, Any]]:
    """Every horizon on one seed: travel without the disturbance, bias with it."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="logged chunks of")
    full, rows = f"metaworld/{TASK}", []
    with closing(make_task(full, HORIZON, seed)) as task:
        policy = clone(task, DEMONSTRATIONS[TASK], seed, max(HORIZONS))
        policies = {horizon: copy.deepcopy(policy) for horizon in HORIZONS}
        for horizon, one in policies.items():
            one.execute = horizon
        calm = fragments(list(collect(task, MIXTURE, episodes, seed, "train", frames=False, noise=NOISE)), seed)
        pushed = Disturbed(cast(ResumableTask, task), seed)
        moved = fragments(list(collect(pushed, MIXTURE, episodes, seed, "train", frames=False, noise=NOISE)), seed)  # pyright: ignore
        states, chunks, blind = closed_loop(seed, policies, contexts)
        for horizon in HORIZONS:
            began = time.perf_counter()
            held = probe(full, policies[horizon], seed, contexts, horizon)
            proposer = PolicyProposer(policies[horizon], keep=0, seed=seed)
            row: dict[str, Any] = {
                "seed": seed,
                "horizon": horizon,
                "policy success": float(held.success[:, :2].mean()),
            }
            critic = learner(task, calm, horizon, seed)

            watch = _Watch(critic, held, PolicyProposer(policies[horizon], keep=0, seed=seed), marks, row)
            train(critic, *evaluated(calm), proposer, max(marks), seed, watch)
            critic = learner(task, moved, horizon, seed)
            train(critic, *evaluated(moved), proposer, max(marks), seed)
            row["bias of closed-loop chunks, steps"] = float(
                (said(critic, states, chunks[horizon]) - blind[horizon]).mean() * WORST
            )
            row["states"], row["seconds"] = len(states), time.perf_counter() - began
            rows.append(row)
            print(row, flush=True)
    return rows


@dataclass
class _Watch:
    """Holds V against the re-rolled returns after some numbers of updates."""

    critic: ActionCritic
    held: Probe
    proposer: PolicyProposer
    marks: tuple[int, ...]
    row: dict[str, Any]

    def __call__(self, update: int) -> None:
        if update in self.marks:
            value = values_of(self.critic.eval(), self.held.states, self.proposer)
            self.row[f"rank correlation of V after {update}"] = rank_correlation(value, self.held.value)
            self.row[f"error of V after {update}, steps"] = float(np.abs(value - self.held.value).mean() * WORST)
            self.critic.train()


def learner(task: Task, batch: Any, horizon: int, seed: int) -> ActionCritic:
    torch.manual_seed(seed)
    critic = ActionCritic(
        network(task, chunk=horizon), GAMMA, "mean", aggregation=Aggregation("mean"), polyak_rate=0.01
    )
    critic.fit_scales(batch)
    return critic


@torch.no_grad()
def said(critic: ActionCritic, states: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    real = torch.ones(chunks.shape[:2], dtype=torch.bool)
    members = critic.network(Observation(state=torch.from_numpy(states)), torch.from_numpy(chunks), real)
    return critic.pessimistic(members).numpy()


def main() -> None:
    parser = command_line(__doc__, "critic_horizons")
    parser.add_argument("--quick", action="store_true", help="one seed, a few updates: to see that it runs")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    marks, episodes, contexts, seeds = (
        ((5, 10), 12, 3, 1) if options.quick else (MARKS, EPISODES, CONTEXTS, options.seeds)
    )
    sweeps = {horizon: corridor_sweeps(horizon) for horizon in CORRIDOR_HORIZONS}
    print("sweeps over the corridor:", sweeps, flush=True)
    jobs = [(seed, marks, episodes, contexts) for seed in range(seeds)]
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = [row for found in pool.map(run, *zip(*jobs, strict=True)) for row in found]
    figures = [f"rank correlation of V after {m}" for m in marks] + [f"error of V after {m}, steps" for m in marks]
    figures.append("bias of closed-loop chunks, steps")
    found: list[dict[str, Any]] = []
    table = Table(title=f"{TASK}: horizon of the critic, mean (95 % over seeds)")
    table.add_column("horizon")
    for figure in figures:
        table.add_column(figure, justify="right")
    for horizon in HORIZONS:
        entry: dict[str, Any] = {"horizon": horizon}
        for figure in figures:
            values = [r[figure] for r in rows if r["horizon"] == horizon]
            entry[figure] = mean(values)
            entry[f"{figure}, interval"] = bootstrap_interval(values, np.arange(len(values)))
        found.append(entry)
        table.add_row(
            str(horizon),
            *(f"{entry[f]:.2f} ({entry[f'{f}, interval'][0]:.2f}…{entry[f'{f}, interval'][1]:.2f})" for f in figures),
        )
    Console(width=220).print(table)
    if not options.quick:
        settings = {
            **{"task": TASK, "mixture": MIXTURE, "episodes": episodes, "contexts": contexts, "seeds": seeds},
            **{"push": PUSH, "persistence": PERSISTENCE, "rollouts": 2 * ROLLOUTS, "gamma": GAMMA},
        }
        told = {"version": __version__, "settings": settings, "corridor sweeps": sweeps}
        write_result(options.out, {**told, "summary": found, "runs": rows})


if __name__ == "__main__":
    main()
