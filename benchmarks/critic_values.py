"""Which critic knows what an action is worth: learned values against returns that were rolled out again.

    python benchmarks/critic_values.py [--quick] [--seeds 3] [--tasks drawer-open-v3 push-v3]

On each Meta-World task a policy is cloned from a few experts. A buffer of other people's episodes (scripted experts,
noisy ones, ones that give up, random walks) is cut into fragments at random, and every critic learns from it alone.
Judged is what each says about the *cloned* policy, on held-out initial states: from states that others led to, a
candidate chunk is carried out and the policy goes on until it succeeds or 200 steps are over, several times. The return
is -1 a step and 0 on success, discounted; what never succeeds pays -1 for ever.

Critics: temporal differences on chunks of the current policy (ALOE); Q-chunking (the best of 4 chunks); implicit
Q-learning; Monte-Carlo values of whoever acted, as Q of the same network, as a state value, and as a distribution over
201 bins. Monte-Carlo returns need an end: failures, time limits and fragments that lead to one are labelled as RECAP
does, with a cost of the mean length of an episode; a fragment that leads nowhere has no return and is left out.
A state value has no opinion of a chunk: it is shown the state the chunk led to, which the others have to foresee.

Prints tables, writes JSON. Needs `pip install 'guerdon[sim]'`; about an hour and a half of one core.
"""

import math
import multiprocessing
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, write_result
from guerdon import __version__
from guerdon.core.batch import End, Observation, RewardEstimates, TrajectoryBatch, terminated_from
from guerdon.core.interfaces import Critic, Proposer
from guerdon.core.intervals import bootstrap_interval
from guerdon.critics.action import ActionCritic
from guerdon.critics.best_of import BestOfCritic
from guerdon.critics.chunks import ChunkCritic
from guerdon.critics.distributional import DistributionalValue
from guerdon.critics.expectile import ExpectileCritic
from guerdon.critics.monte_carlo import MonteCarloCritic
from guerdon.critics.networks import ChunkTransformer
from guerdon.critics.observations import CriticInputs
from guerdon.critics.value import StateCritic, ValueCritic
from guerdon.datasets.collate import Window, collate
from guerdon.datasets.episodes import Episode
from guerdon.envs.collect import collect
from guerdon.envs.experts import scripted_expert
from guerdon.envs.task import ResumableTask, Task
from guerdon.envs.vector import VectorEnv, make_task
from guerdon.evaluation.critics.diagnostics import chunk_ranking_auc, rank_correlation
from guerdon.evaluation.critics.reroll import reroll
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.proposer import PolicyProposer

DEMONSTRATIONS = {"drawer-open-v3": 1, "push-v3": 8}
"""Expert episodes of each task that the policy is cloned from: so few that it fails at times."""
MIXTURE = {"expert": 0.2, "noisy": 0.3, "aborted": 0.3, "random": 0.2}
NOISE, HORIZON, STEPS = 0.8, 150, 200
"""Of noisy experts, of a logged episode, and of a re-rolled one."""
GAMMA = 0.98
WORST = 1 / (1 - GAMMA)
"""Magnitude of the return of what never succeeds; values are learned and shown as shares of it."""
CHUNK = 4
EPISODES, UPDATES = 120, 2500
CONTEXTS, MOMENTS, ROLLOUTS = 18, 3, 3
"""Held-out initial states, moments of each (the first is its start), and rollouts of each candidate."""
CANDIDATES = ("policy", "policy again", "expert", "noisy expert", "random")
SPREAD = -1.5
"""Logarithm of the standard deviation of the cloned policy."""


def clone(task: Task, episodes: int, seed: int, chunk: int = CHUNK, steps: int = 3000) -> GaussianPolicy:
    """Clone a policy from expert episodes, good enough to succeed at times."""
    batch = collate(list(collect(task, {"expert": 1.0}, episodes, seed, "train", frames=False)))
    torch.manual_seed(seed)
    policy = GaussianPolicy(task.state_size, task.action_size, horizon=chunk, execute=chunk, log_std=SPREAD)
    decided = batch.mask.nonzero()
    observation, decision = batch.at(decided[:, 0], decided[:, 1], chunk)
    policy.inputs.fit(observation)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    real = torch.arange(chunk)[None] < decision.executed[:, None]
    for _ in range(steps):
        rows = torch.randint(0, len(observation), (256,), generator=generator)
        loss = policy.imitation_loss(observation[rows], decision.chunk[rows], real[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval()


def fragments(episodes: Sequence[Episode], seed: int) -> TrajectoryBatch:
    """Episodes cut into one to three pieces each; pieces of one episode are never joined again."""
    generator = np.random.default_rng(seed)
    pieces: list[Window] = []
    for episode in episodes:
        cuts = generator.choice(
            np.arange(1, episode.steps), min(int(generator.integers(0, 3)), episode.steps - 1), False
        )
        edges = [0, *sorted(int(c) for c in cuts), episode.steps]
        pieces += [Window(episode=episode, offset=a, steps=b - a) for a, b in pairwise(edges)]
    return collate(pieces)


def evaluated(batch: TrajectoryBatch) -> tuple[TrajectoryBatch, RewardEstimates]:
    """-1 a step, 0 where it succeeds. Only success ends the task: who gave up or ran out of time could have gone on."""
    done = (batch.end == End.SUCCESS)[:, None] & (torch.arange(batch.mask.shape[1]) == batch.steps[:, None] - 1)
    rewards = torch.where(batch.mask & ~done, -1.0 / WORST, 0.0)
    batch = replace(batch, terminated=terminated_from(batch.end, (End.SUCCESS,)))
    return batch, RewardEstimates(rewards=rewards, valid=batch.mask)


def labelled(batch: TrajectoryBatch) -> tuple[TrajectoryBatch, RewardEstimates]:
    """Label as RECAP does: a failure or time limit is terminal and costs the mean length of an episode."""
    cost = float(batch.length.float().mean())
    ends = (End.SUCCESS, End.FAILURE, End.TIME_LIMIT)
    terminated = terminated_from(batch.end, ends)
    batch, rewards = evaluated(batch)
    failed = (terminated & (batch.end != End.SUCCESS))[:, None]
    last = torch.arange(batch.mask.shape[1]) == batch.steps[:, None] - 1
    paid = torch.where(failed & last, -cost / WORST, rewards.rewards)
    return replace(batch, terminated=terminated), RewardEstimates(rewards=paid, valid=batch.mask)


def network(task: Task, members: int = 2, chunk: int = CHUNK, shared: bool = True) -> ChunkTransformer:
    return ChunkTransformer(
        task.state_size,
        task.action_size,
        chunk,
        members,
        width=64,
        layers=2,
        heads=4,
        shared=shared,
        reads=CriticInputs(action_range=(-1, 1)),
    )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A critic and what it learns from."""

    make: Callable[[Task], ChunkCritic | StateCritic]
    data: Callable[[TrajectoryBatch], tuple[TrajectoryBatch, RewardEstimates]] = evaluated


ARMS = {
    "ALOE (TD, current policy)": Arm(make=lambda t: ActionCritic(network(t), GAMMA, polyak_rate=0.01)),
    "Monte-Carlo Q": Arm(make=lambda t: MonteCarloCritic(network(t), GAMMA), data=labelled),
    "Monte-Carlo V": Arm(
        make=lambda t: ValueCritic(t.state_size, (128, 128), gamma=GAMMA, lam=1.0, cuts="leave_out"), data=labelled
    ),
    "distributional V": Arm(
        make=lambda t: DistributionalValue(t.state_size, (128, 128), gamma=GAMMA, low=-3.0), data=labelled
    ),
    "IQL": Arm(make=lambda t: ExpectileCritic(network(t), (128, 128), GAMMA, polyak_rate=0.01)),
    "Q-chunking (best of 4)": Arm(make=lambda t: BestOfCritic(network(t), GAMMA, candidates=4, polyak_rate=0.01)),
}


def train(
    critic: Critic,
    batch: TrajectoryBatch,
    rewards: RewardEstimates,
    proposer: Proposer,
    updates: int,
    seed: int,
    watch: Callable[[int], None] | None = None,
    rows: int = 64,
    each: int = 2,
) -> Critic:
    """Adam on steps drawn evenly: rows by their length, then steps of each."""
    optimizer = torch.optim.Adam([p for p in critic.parameters() if p.requires_grad], lr=5e-4)
    generator = torch.Generator().manual_seed(seed)
    critic.train()
    for update in range(1, updates + 1):
        chosen = torch.multinomial(batch.steps.float(), rows, replacement=True, generator=generator)
        part = batch[chosen]
        drawn = (torch.rand(rows, each, generator=generator) * part.steps[:, None]).long()
        weight = torch.zeros_like(part.weight).scatter_(1, drawn, 1.0)
        loss = critic.loss(replace(part, weight=weight), rewards[chosen], proposer)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        optimizer.step()
        critic.after_step()
        if watch is not None:
            watch(update)
    return critic.eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """M held-out states of a task, C candidate chunks at each, and what came of them with the policy."""

    states: np.ndarray
    """(M, S)."""
    chunks: np.ndarray
    """(M, C, h, A)."""
    after: np.ndarray
    """(M, C, S): where each chunk led."""
    taken: np.ndarray
    """(M, C): steps of each chunk until it ended or solved the task …"""
    solved: np.ndarray
    """(M, C): … and whether it did."""
    returns: np.ndarray
    """(M, C): mean re-rolled return, as a share of the worst."""
    success: np.ndarray
    """(M, C): share of the rollouts that succeeded."""
    context: np.ndarray
    """(M,)."""
    moment: np.ndarray
    """(M,): step of the episode."""

    @property
    def value(self) -> np.ndarray:
        """(M,): return of the policy itself, the mean of its two candidates."""
        return self.returns[:, :2].mean(1)


def probe(name: str, policy: GaussianPolicy, seed: int, contexts: int = CONTEXTS, chunk: int = CHUNK) -> Probe:
    """Let noisy experts and the policy lead to states, and roll the returns of candidate chunks out from there."""
    generator, noise = np.random.default_rng([seed, 7]), torch.Generator().manual_seed(seed)
    envs = VectorEnv([make_task(name, STEPS, seed) for _ in range(4)])
    task = cast(ResumableTask, envs.tasks[0])
    saved, rows = [], []
    for number, context in enumerate(task.contexts("eval", contexts)):
        wanted = {0, *generator.choice(np.arange(1, 80), MOMENTS - 1, replace=False).tolist()}
        state, expert = task.reset(context), scripted_expert(name)
        for step in range(max(wanted) + 1):
            if step in wanted:
                saved.append(task.save())
                rows.append((state, context.index, step))
            by_policy = number % 2 == 1
            action = act(policy, state, noise)[0] if by_policy else expert(state) + generator.normal(0, 0.5, 4)
            came = task.step(np.clip(action, -1, 1))
            if came.success:
                break
            state = came.state
    chunks = np.stack([candidates(task, s, policy, generator, noise, chunk) for s in saved])
    after, taken, solved = carried(task, saved, chunks)
    count = len(CANDIDATES)
    found = reroll(
        envs,
        policy,
        [s for s in saved for _ in range(count)],
        chunks.reshape(-1, *chunks.shape[2:]).astype(np.float32),
        rollouts=ROLLOUTS,
        gamma=GAMMA,
        generator=noise,
    )
    envs.close()
    return Probe(
        states=np.stack([r[0] for r in rows]),
        chunks=chunks,
        after=after,
        taken=taken,
        solved=solved,
        returns=found.mean.reshape(-1, count) / WORST,
        success=found.success.mean(1).reshape(-1, count),
        context=np.array([r[1] for r in rows]),
        moment=np.array([r[2] for r in rows]),
    )


@torch.no_grad()
def act(policy: GaussianPolicy, state: np.ndarray, noise: torch.Generator) -> np.ndarray:
    return policy.act(Observation(state=torch.from_numpy(state)[None]), generator=noise).chunk[0].numpy()


def candidates(
    task: ResumableTask,
    saved: Any,
    policy: GaussianPolicy,
    generator: np.random.Generator,
    noise: torch.Generator,
    chunk: int,
) -> np.ndarray:
    """Chunks of each kind at a saved state, as the environment would clip them."""
    state = task.restore(saved)
    own = [act(policy, state, noise)[:chunk] for _ in range(2)]
    expert, chosen = scripted_expert(task.name), []
    for _ in range(chunk):
        chosen.append(expert(state))
        state = task.step(chosen[-1]).state
    best = np.stack(chosen)
    found = [*own, best, best + generator.normal(0, 0.5, best.shape), generator.uniform(-1, 1, best.shape)]
    return np.clip(np.stack(found), -1, 1)


def carried(task: ResumableTask, saved: Sequence[Any], chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each chunk leads, after how many steps, and whether it solves the task."""
    after = np.zeros((*chunks.shape[:2], task.state_size), np.float32)
    taken, solved = np.zeros(chunks.shape[:2], int), np.zeros(chunks.shape[:2], bool)
    for row, column in np.ndindex(*chunks.shape[:2]):
        task.restore(saved[row])
        for action in chunks[row, column]:
            came = task.step(action)
            after[row, column], taken[row, column] = came.state, taken[row, column] + 1
            if came.success:
                solved[row, column] = True
                break
    return after, taken, solved


@torch.no_grad()
def values_of(critic: Critic, states: np.ndarray, proposer: Proposer) -> np.ndarray:
    """V of M states."""
    state = torch.from_numpy(states.astype(np.float32))
    batch = TrajectoryBatch(
        state=torch.stack([state, state], 1),
        actions=torch.zeros(len(state), 1, 4),
        mask=torch.ones(len(state), 1, dtype=torch.bool),
    )
    return critic(batch, proposer).v[:, 0].numpy()


@torch.no_grad()
def said_of(critic: Critic, held: Probe, proposer: Proposer) -> tuple[np.ndarray, np.ndarray]:
    """V (M,) and Q (M, C); a state value is shown where the chunk led."""
    value = values_of(critic, held.states, proposer)
    if isinstance(critic, ChunkCritic):
        chunks = torch.from_numpy(held.chunks.astype(np.float32))
        flat = chunks.flatten(0, 1)
        state = torch.from_numpy(held.states.astype(np.float32)).repeat_interleave(chunks.shape[1], 0)
        real = torch.ones(flat.shape[:2], dtype=torch.bool)
        members = critic.network(Observation(state=state), flat, real)
        return value, critic.pessimistic(members).reshape(chunks.shape[:2]).numpy()
    later = values_of(critic, held.after.reshape(-1, held.after.shape[2]), proposer).reshape(held.solved.shape)
    paid = held.taken - held.solved
    spent = -(1 - GAMMA**paid) / (1 - GAMMA) / WORST
    return value, spent + np.where(held.solved, 0.0, GAMMA**held.taken * later)


def judge(value: np.ndarray, q: np.ndarray, held: Probe) -> dict[str, float]:
    """Compare the predicted values with the measured returns."""
    start = held.moment == 0
    return {
        "rank correlation of Q": rank_correlation(q.ravel(), held.returns.ravel()),
        "rank correlation of V": rank_correlation(value, held.value),
        "chunk ranking AUC": chunk_ranking_auc(q, held.returns, margin=0.01).auc,
        "error of V, steps": float(np.abs(value - held.value).mean() * WORST),
        "over-estimation at the start, steps": float((value - held.value)[start].mean() * WORST),
    }


def run(name: str, seed: int, updates: int, episodes: int, contexts: int) -> list[dict[str, Any]]:
    """Every critic on one task and seed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="logged chunks of")  # said in the table's notes
    full = f"metaworld/{name}"
    with closing(make_task(full, HORIZON, seed)) as task:
        policy = clone(task, DEMONSTRATIONS[name], seed)
        logs = list(collect(task, MIXTURE, episodes, seed, "train", frames=False, noise=NOISE))
        held = probe(full, policy, seed, contexts)
        buffer = fragments(logs, seed)
        rows = [
            {
                "task": name,
                "seed": seed,
                "critic": "clock",
                "states": len(held.states),
                "policy success from the start": float(held.success[held.moment == 0][:, :2].mean()),
                "rank correlation of V": rank_correlation(held.moment, held.value),
            }
        ]
        for arm, made in ARMS.items():
            began = time.perf_counter()
            torch.manual_seed(seed)
            batch, rewards = made.data(buffer)
            critic, proposer = made.make(task), PolicyProposer(policy, keep=0, seed=seed)
            critic.fit_scales(batch)
            train(critic, batch, rewards, proposer, updates, seed)
            found = judge(*said_of(critic, held, proposer), held)
            seconds = time.perf_counter() - began
            rows.append({"task": name, "seed": seed, "critic": arm, **found, "seconds": seconds})
            print(name, seed, arm, {k: round(v, 3) for k, v in found.items()}, f"{seconds:.0f} s", flush=True)
    return rows


FIGURES = (
    "rank correlation of Q",
    "chunk ranking AUC",
    "rank correlation of V",
    "error of V, steps",
    "over-estimation at the start, steps",
)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over tasks and seeds with a bootstrap interval over them, and the paired difference to the first critic."""
    first = next(iter(ARMS))
    found: list[dict[str, Any]] = []
    for arm in ("clock", *ARMS):
        for figure in FIGURES:
            mine = {(r["task"], r["seed"]): r[figure] for r in rows if r["critic"] == arm and figure in r}
            if not mine:
                continue
            base = {(r["task"], r["seed"]): r[figure] for r in rows if r["critic"] == first}
            values = list(mine.values())
            lead = [base[k] - v for k, v in mine.items()]
            found.append(
                {
                    "critic": arm,
                    "figure": figure,
                    "mean": mean(values),
                    "interval": bootstrap_interval(values, np.arange(len(values))),
                    "lead of ALOE": mean(lead),
                    "lead interval": bootstrap_interval(lead, np.arange(len(lead))),
                    "runs": len(values),
                }
            )
    return found


def table(found: Sequence[dict[str, Any]]) -> Table:
    shown = Table(title="against re-rolled returns: mean (95 % over tasks and seeds)")
    shown.add_column("critic")
    for figure in FIGURES:
        shown.add_column(figure, justify="right")
    for arm in ("clock", *ARMS):
        cells = []
        for figure in FIGURES:
            entry = next((f for f in found if f["critic"] == arm and f["figure"] == figure), None)
            low, high = entry["interval"] if entry else (math.nan, math.nan)
            cells.append(f"{entry['mean']:.2f} ({low:.2f}…{high:.2f})" if entry else "-")
        shown.add_row(arm, *cells)
    return shown


def main() -> None:
    parser = command_line(__doc__, "critic_values")
    parser.add_argument("--quick", action="store_true", help="one task, one seed, a few updates: to see that it runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", default=list(DEMONSTRATIONS), choices=list(DEMONSTRATIONS))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    updates, episodes, contexts = (20, 12, 2) if options.quick else (UPDATES, EPISODES, CONTEXTS)
    tasks, seeds = (options.tasks[:1], 1) if options.quick else (options.tasks, options.seeds)
    jobs = [(name, seed, updates, episodes, contexts) for seed in range(seeds) for name in tasks]
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = [row for found in pool.map(run, *zip(*jobs, strict=True)) for row in found]
    found = summary(rows)
    console = Console(width=160)
    console.print(table(found))
    if options.quick:
        return
    settings = {
        "tasks": {name: DEMONSTRATIONS[name] for name in tasks},
        "mixture": MIXTURE,
        "noise": NOISE,
        "gamma": GAMMA,
        "chunk": CHUNK,
        "episodes": episodes,
        "updates": updates,
        "states": "held-out contexts × moments",
        "contexts": contexts,
        "moments": MOMENTS,
        "candidates": CANDIDATES,
        "rollouts": ROLLOUTS,
        "seeds": seeds,
    }
    told = {"version": __version__, "settings": settings, "summary": found, "runs": rows}
    write_result(options.out, told)
    print(options.out)


if __name__ == "__main__":
    main()
