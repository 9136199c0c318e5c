"""Over-estimation against the number of members, their reduction inside the target, and shared or separate trunks.

    python benchmarks/critic_ensembles.py [--quick] [--seeds 2]

The task, buffer, policy and held-out states of critic_values.py on drawer-open-v3; only the ensemble of the ALOE critic
changes. Over-estimation is V minus the re-rolled return of the policy at held-out initial states, in steps. Members are
compared by their errors on the candidate chunks: what they get wrong together no reduction can mend.

Prints a table, writes JSON. Needs `pip install 'guerdon[sim]'`; about a quarter of an hour of one core.
"""

import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from statistics import mean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, write_result
from critic_values import (
    DEMONSTRATIONS,
    EPISODES,
    GAMMA,
    HORIZON,
    MIXTURE,
    NOISE,
    Probe,
    clone,
    evaluated,
    fragments,
    judge,
    network,
    probe,
    said_of,
    train,
)
from guerdon import __version__
from guerdon.core.batch import Observation
from guerdon.core.intervals import bootstrap_interval
from guerdon.critics.action import ActionCritic, TargetAggregate
from guerdon.critics.ensembles import Aggregation
from guerdon.envs.collect import collect
from guerdon.envs.vector import make_task
from guerdon.evaluation.critics.diagnostics import ensemble_correlation
from guerdon.policies.proposer import PolicyProposer

TASK, UPDATES, CONTEXTS = "drawer-open-v3", 1000, 12
ENSEMBLES: tuple[tuple[int, TargetAggregate, bool], ...] = (
    (1, "min", True),
    (2, "mean", True),
    (2, "independent", True),
    (2, "min", True),
    (2, "min", False),
    (5, "lcb", True),
    (5, "min", True),
)
"""Members, reduction inside the target, shared trunk."""
FIGURES = (
    "over-estimation at the start, steps",
    "error of V, steps",
    "correlation of members' errors",
    "rank correlation of Q",
    "chunk ranking AUC",
)


@torch.no_grad()
def members_of(critic: ActionCritic, held: Probe) -> np.ndarray:
    """Q of each member for every candidate, (K, M · C)."""
    chunks = torch.from_numpy(held.chunks.astype(np.float32))
    state = torch.from_numpy(held.states.astype(np.float32)).repeat_interleave(chunks.shape[1], 0)
    flat = chunks.flatten(0, 1)
    return critic.network(Observation(state=state), flat, torch.ones(flat.shape[:2], dtype=torch.bool)).numpy()


def run(seed: int, updates: int, episodes: int, contexts: int) -> list[dict[str, Any]]:
    """Every ensemble on one seed; V and Q are read out with the mean of the members, so that only training differs."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="logged chunks of")
    full, rows = f"metaworld/{TASK}", []
    with closing(make_task(full, HORIZON, seed)) as task:
        policy = clone(task, DEMONSTRATIONS[TASK], seed)
        logs = list(collect(task, MIXTURE, episodes, seed, "train", frames=False, noise=NOISE))
        held = probe(full, policy, seed, contexts)
        batch, rewards = evaluated(fragments(logs, seed))
        for members, how, shared in ENSEMBLES:
            began = time.perf_counter()
            torch.manual_seed(seed)
            critic = ActionCritic(
                network(task, members, shared=shared), GAMMA, how, aggregation=Aggregation("mean"), polyak_rate=0.01
            )
            critic.fit_scales(batch)
            proposer = PolicyProposer(policy, keep=0, seed=seed)
            train(critic, batch, rewards, proposer, updates, seed)
            found = judge(*said_of(critic, held, proposer), held)
            errors = members_of(critic, held) - held.returns.ravel()
            found["correlation of members' errors"] = ensemble_correlation(errors)
            row = {"seed": seed, "members": members, "target": how, "shared": shared, **found}
            rows.append({**row, "seconds": time.perf_counter() - began})
            print(row, flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds, with an interval over them."""
    found: list[dict[str, Any]] = []
    for members, how, shared in ENSEMBLES:
        mine = [r for r in rows if (r["members"], r["target"], r["shared"]) == (members, how, shared)]
        entry: dict[str, Any] = {"members": members, "target": how, "shared": shared, "seeds": len(mine)}
        for figure in FIGURES:
            values = [r[figure] for r in mine]
            entry[figure] = mean(values)
            entry[f"{figure}, interval"] = bootstrap_interval(values, np.arange(len(values)))
        found.append(entry)
    return found


def main() -> None:
    parser = command_line(__doc__, "critic_ensembles")
    parser.add_argument("--quick", action="store_true", help="one seed, a few updates: to see that it runs")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    updates, episodes, contexts, seeds = (
        (10, 12, 2, 1) if options.quick else (UPDATES, EPISODES, CONTEXTS, options.seeds)
    )
    jobs = [(seed, updates, episodes, contexts) for seed in range(seeds)]
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = [row for found in pool.map(run, *zip(*jobs, strict=True)) for row in found]
    found = summary(rows)
    table = Table(title=f"{TASK}: ensembles of the ALOE critic, mean (95 % over seeds)")
    for name in ("members", "target", "trunk", *FIGURES):
        table.add_column(name, justify="right")
    for entry in found:
        cells = [f"{entry[f]:.2f} ({entry[f'{f}, interval'][0]:.2f}…{entry[f'{f}, interval'][1]:.2f})" for f in FIGURES]
        table.add_row(str(entry["members"]), entry["target"], "shared" if entry["shared"] else "separate", *cells)
    Console(width=180).print(table)
    if not options.quick:
        settings = {"task": TASK, "updates": updates, "episodes": episodes, "contexts": contexts, "seeds": seeds}
        told = {"version": __version__, "settings": settings, "summary": found, "runs": rows}
        write_result(options.out, told)  # one member has no correlation


if __name__ == "__main__":
    main()
