"""Accuracy per label: queries by ensemble disagreement, with and without k-centre, against random queries.

    GUERDON_REAL_DATA=… python benchmarks/active_queries.py

A pool of pairs is split at random into a part that may be asked about and a held-out part. All arms begin with the same
random pairs. After each batch of answers an ensemble of small Bradley–Terry networks is trained from scratch on pooled
features of the segments, and its mean score orders the held-out pairs; ties do not count there. Pools: simulated raters
on synthetic segments, and people's answers of the six files of ipl_human_preferences, where they are present.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from common import command_line, write_result
from guerdon.core.batch import PreferencePairs, TrajectoryBatch
from guerdon.core.metrics import bootstrap_interval, paired_bootstrap
from guerdon.preference.preference_arrays import read_preference_arrays
from guerdon.preference.queries import preference_probabilities, random_queries, select_queries
from guerdon.preference.raters import SimulatedRater, answer_pairs

MEMBERS, HIDDEN, UPDATES, ROUNDS = 5, 32, 150, 5
ARMS = ("random", "disagreement", "disagreement + k-centre")
CANDIDATES = 3
"""Candidates of k-centre for each selected pair."""


@dataclass(frozen=True)
class Pool:
    """Pairs with their answers: what may be asked about, and what is held out."""

    first: Tensor
    """Features (P, D) of the first segments."""
    second: Tensor
    label: Tensor
    """Answer (P,): probability that the first is better."""
    truth: Tensor
    """Label (P,) that held-out accuracy is measured against."""
    held_out: Tensor
    """True on held-out pairs."""
    batch: int
    """Labels per round."""


def pooled(batch: TrajectoryBatch) -> Tensor:
    """Compute mean, standard deviation and last value of states and actions over each row, standardised over rows."""
    values = torch.cat([batch.state[:, :-1], batch.actions], 2)
    found = torch.cat([values.mean(1), values.std(1), values[:, -1]], 1)
    return (found - found.mean(0)) / found.std(0).clamp(min=1e-3)


def pool_of(pairs: PreferencePairs, label: Tensor, truth: Tensor, batch: int, seed: int) -> Pool:
    """Split pairs by episode where they share some: no segment is on both sides."""
    draw = np.random.default_rng(seed)
    episodes = pairs.batch.episode
    parent = list(range(int(episodes.max()) + 1))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    ends = list(zip(episodes[pairs.chosen].tolist(), episodes[pairs.rejected].tolist(), strict=True))
    for one, two in ends:
        parent[root(one)] = root(two)
    cluster = np.array([root(one) for one, _ in ends])
    held_out = np.zeros(len(ends), dtype=bool)
    for name in draw.permutation(np.unique(cluster)):
        if held_out.sum() + (cluster == name).sum() <= 0.4 * len(ends):
            held_out |= cluster == name
    features = pooled(pairs.batch)
    return Pool(
        first=features[pairs.chosen],
        second=features[pairs.rejected],
        label=label,
        truth=truth,
        held_out=torch.from_numpy(held_out),
        batch=batch,
    )


def synthetic(seed: int, noisy: bool) -> Pool:
    """Make 600 pairs of 25-step segments of smooth random states, answered by a simulated rater."""
    draw = torch.Generator().manual_seed(seed)
    count, steps, size = 1200, 25, 10
    walk = torch.randn(count, 1, size, generator=draw) + 0.3 * torch.randn(
        count, steps + 1, size, generator=draw
    ).cumsum(1)
    actions = walk[:, 1:, :2] - walk[:, :-1, :2]
    rewards = walk[:, 1:, 0] + 0.5 * walk[:, 1:, 1].clamp(min=0) - 0.5 * (walk[:, 1:, 2] - 1).square()
    mask = torch.ones(count, steps, dtype=torch.bool)
    batch = TrajectoryBatch(state=walk, actions=actions, mask=mask)
    ones = torch.ones(count // 2)
    rows = torch.arange(count // 2)
    pairs = PreferencePairs(batch=batch, chosen=rows, rejected=rows + count // 2, label=ones, weight=ones)
    settings: dict[str, Any] = {"rationality": 0.05, "error": 0.1, "discount": 0.97, "tie": 3.0} if noisy else {}
    answers = answer_pairs(SimulatedRater(seed=seed, **settings), pairs, rewards, [f"p{n}" for n in rows.tolist()])
    label = torch.tensor([0.5 if answer.label is None else answer.label for answer in answers])
    total = rewards.sum(1)
    truth = (total[pairs.chosen] > total[pairs.rejected]).float()
    return pool_of(pairs, label, truth, 10, seed)


def human(path: Path, seed: int) -> Pool:
    """Read one file of people's answers."""
    pairs = read_preference_arrays(path)
    return pool_of(pairs, pairs.label, pairs.label, 6 if len(pairs) == 100 else 4, seed)


def scores(parameters: list[Tensor], features: Tensor) -> Tensor:
    """Score (K, N) of each segment by each member."""
    hidden = torch.tanh(torch.einsum("nd,kdh->knh", features, parameters[0]) + parameters[1][:, None])
    return torch.einsum("knh,kh->kn", hidden, parameters[2])


def train(first: Tensor, second: Tensor, label: Tensor, seed: int) -> list[Tensor]:
    """Train an ensemble by Bradley–Terry from scratch; each member sees its own bootstrap resample of the answers."""
    draw = torch.Generator().manual_seed(seed)
    size = first.shape[1]
    parameters = [
        torch.randn(MEMBERS, size, HIDDEN, generator=draw) / size**0.5,
        torch.zeros(MEMBERS, HIDDEN),
        torch.randn(MEMBERS, HIDDEN, generator=draw) / HIDDEN**0.5,
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    drawn = torch.randint(len(label), (MEMBERS, len(label)), generator=draw)
    weight = functional.one_hot(drawn, len(label)).sum(1).float()
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    both, target = torch.cat([first, second]), label.expand(MEMBERS, -1)
    for _ in range(UPDATES):
        one, two = scores(parameters, both).chunk(2, 1)
        loss = functional.binary_cross_entropy_with_logits(one - two, target, weight=weight)
        optimizer.zero_grad()
        (MEMBERS * loss).backward()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def curve(pool: Pool, arm: str, seed: int) -> list[float]:
    """Accuracy on held-out pairs without ties after each batch of answers."""
    asked = random_queries(len(pool.label), pool.batch, pool.held_out, seed)
    counted = pool.held_out & (pool.truth != 0.5)
    accuracy: list[float] = []
    for turn in range(ROUNDS):
        model = train(pool.first[asked], pool.second[asked], pool.label[asked], 1000 * seed + turn)
        one, two = scores(model, pool.first), scores(model, pool.second)
        mean = (one - two).mean(0)
        right = (mean > 0) == (pool.truth > 0.5)
        accuracy.append(float(right[counted].float().mean()))
        closed = pool.held_out.clone()
        closed[asked] = True
        if arm == "random":
            chosen = random_queries(len(pool.label), pool.batch, closed, 1000 * seed + turn + 500)
        else:
            features = pool.first - pool.second if "k-centre" in arm else None
            probability = preference_probabilities(one, two)
            chosen = select_queries(probability, pool.batch, features, closed, pool=CANDIDATES, seed=seed)
        asked = torch.cat([asked, chosen])
    return accuracy


def pools() -> dict[str, Any]:
    """Name every pool, and how it is made from a seed."""
    found: dict[str, Any] = {
        "synthetic, perfect rater": lambda seed: synthetic(seed, False),
        "synthetic, noisy rater": lambda seed: synthetic(seed, True),
    }
    root = Path(os.environ.get("GUERDON_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    for path in sorted((root / "ipl_human_preferences").glob("*.npz")):
        found[path.stem.split("_num")[0]] = lambda seed, path=path: human(path, seed)
    return found


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "active_queries")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    table = Table("pool", "arm", "labels", "accuracy by number of labels", "mean", "minus random")
    results: dict[str, Any] = {}
    people: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    for name, make in pools().items():
        made = [make(seed) for seed in range(options.seeds)]
        found = {arm: np.array([curve(pool, arm, seed) for seed, pool in enumerate(made)]) for arm in ARMS}
        labels = [made[0].batch * (turn + 1) for turn in range(ROUNDS)]
        results[name] = {"labels": labels, "arms": rows(found)}
        if not name.startswith("synthetic"):
            for arm in ARMS:
                people[arm].append(found[arm].mean(1).tolist())
        for arm, row in results[name]["arms"].items():
            shown = " ".join(f"{value:.3f}" for value in row["accuracy"])
            table.add_row(name, arm, " ".join(map(str, labels)), shown, f"{row['mean']:.3f}", difference(row))
    if people["random"]:
        results["six files of people"] = {"arms": rows({arm: np.array(people[arm]).mean(0)[:, None] for arm in ARMS})}
        for arm, row in results["six files of people"]["arms"].items():
            table.add_row("six files of people", arm, "", "", f"{row['mean']:.3f}", difference(row))
    Console(width=150).print(table)
    settings = {"seeds": options.seeds, "members": MEMBERS, "hidden": HIDDEN, "updates": UPDATES}
    settings |= {"candidates": CANDIDATES, "cpu_seconds": time.process_time() - started}
    write_result(options.out, {**settings, "results": results})


def rows(found: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Summarise accuracies (seeds, rounds) of each arm; intervals resample seeds."""
    seeds = np.arange(len(found["random"]))
    control = found["random"].mean(1)
    summary: dict[str, dict[str, Any]] = {}
    for arm, values in found.items():
        mean = values.mean(1)
        summary[arm] = {"accuracy": values.mean(0).tolist(), "mean": float(mean.mean())}
        summary[arm] |= {"interval": list(bootstrap_interval(mean, seeds)), "by_seed": mean.tolist()}
        if arm != "random":
            summary[arm]["minus_random"] = list(paired_bootstrap(mean, control, seeds))
    return summary


def difference(row: dict[str, Any]) -> str:
    """Show a difference with its interval."""
    if "minus_random" not in row:
        return ""
    return "{:+.3f} ({:+.3f} … {:+.3f})".format(*row["minus_random"])


if __name__ == "__main__":
    main()
