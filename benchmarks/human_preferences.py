"""Cross-validated accuracy of reward models on human preferences, beside majority and trivial rules.

    python benchmarks/human_preferences.py --data FOLDER

The folder holds the six files of human labels of Preference Transformer as packed with inverse preference learning
(``lift_ph_num100_q50.npz`` and so on). Accuracy is that on pairs that are no tie; equal scores are half right. Folds
are drawn at random for every seed, and a training pair that shares a segment with a test pair is left out: no segment
is on both sides. Segments are windows of a few demonstrations and overlap, so in a second run no frame is on both sides
either. Ties take part in training as labels of 0.5. The settings of the models are fixed beforehand, the same for all
files. Intervals are bootstrapped over pairs, each with all its seeds.
"""

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader

from common import command_line, silent_trainer, write_result
from guerdon import (
    BradleyTerry,
    EnsembleReward,
    PreferencePairs,
    PreferenceTraining,
    PreferenceTransformer,
    RewardModel,
    ScheduledAdamW,
    StateActionReward,
)
from guerdon.core.metrics import bootstrap_interval
from guerdon.core.sizes import take_sizes
from guerdon.preference.pair_sources import ArrayPairs
from guerdon.preference.preference_arrays import read_preference_arrays
from guerdon.preference.scores import Reduce, row_scores

FILES = {
    "lift_ph": "lift_ph_num100_q50",
    "lift_mh": "lift_mh_num500_q100",
    "can_ph": "can_ph_num100_q50",
    "can_mh": "can_mh_num500_q100",
    "square_ph": "square_ph_num100_q50",
    "square_mh": "square_mh_num500_q100",
}
FOLDS, EPOCHS, MEMBERS = 5, 30, 5
OPTIMIZER: dict[str, Any] = {"learning_rate": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-2, "warmup_steps": 10}
MODELS: dict[str, tuple[Callable[[], RewardModel], Reduce, int]] = {
    "MLP, sum": (lambda: StateActionReward(hidden=(64, 64)), "sum", 16),
    "MLP, mean": (lambda: StateActionReward(hidden=(64, 64)), "mean", 16),
    "ensemble of 5, mean": (lambda: EnsembleReward(StateActionReward(hidden=(64, 64)), size=MEMBERS), "mean", 16),
    "preference transformer": (lambda: PreferenceTransformer(width=32, layers=1), "sum", 8),
}
"""Model → constructor, reduction of its rewards to a score, and number of pairs in an update."""
STRICT = "MLP, mean"
"""Model that is also evaluated without any common frame."""


def rules(pairs: PreferencePairs, script: np.ndarray) -> dict[str, np.ndarray]:
    """Return the score of the first segment minus that of the second, of rules without parameters.

    The last action is the gripper's command (1 closes), the first three are the motion, and the third number of an
    observation is the height of the object.

    Args:
        pairs: Pairs.
        script: Label of the scripted rater: probability that the first segment is better.
    """
    actions, state = pairs.batch.actions, pairs.batch.state[:, :-1]
    motion = actions[..., :3].norm(dim=-1).sum(1)
    scores = {
        "gripper more closed": actions[..., -1].mean(1),
        "more motion": motion,
        "less motion": -motion,
        "object higher at the end": state[:, -1, 2],
    }
    gaps = {name: (score[pairs.chosen] - score[pairs.rejected]).numpy() for name, score in scores.items()}
    return gaps | {"scripted label": script - 0.5}


def correct(gap: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return 1, 0.5 or 0 for each pair by the sign of its gap; NaN for a tie in the label."""
    right = 0.5 + 0.5 * np.sign(gap) * np.sign(label - 0.5)
    return np.where(label == 0.5, np.nan, right)


def common(pairs: PreferencePairs, frames: bool) -> np.ndarray:
    """Find which pairs share a segment, or a single frame, with which others: bool (P, P).

    Args:
        pairs: Pairs.
        frames: Compare the states and actions of single steps instead of whole segments.
    """
    rows = torch.cat([pairs.batch.state[:, :-1], pairs.batch.actions], 2).numpy()
    keys = [
        {step.tobytes() for step in row} if frames else {int(episode)}
        for row, episode in zip(rows, pairs.batch.episode, strict=True)
    ]
    sides = zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    held = [keys[first] | keys[second] for first, second in sides]
    return np.array([[not mine.isdisjoint(other) for other in held] for mine in held])


def folds(count: int, shared: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw folds: places to train on and to test on, with nothing shared between them.

    Args:
        count: Number of pairs.
        shared: Which pairs share something with which others (P, P).
        seed: Random seed.
    """
    order = np.random.default_rng(seed).permutation(count)
    parts = [order[fold::FOLDS] for fold in range(FOLDS)]
    return [(np.array([p for p in order if not shared[p, test].any()], dtype=int), test) for test in parts]


def train(name: str, source: ArrayPairs, places: np.ndarray, seed: int) -> RewardModel:
    """Build and train a model.

    Args:
        name: Model.
        source: Pairs.
        places: Places of the training pairs.
        seed: Random seed of weights and order.
    """
    make, reduce, batch = MODELS[name]
    torch.manual_seed(seed)
    model = make()
    take_sizes(model, source.sizes)
    order: Any = places.tolist()
    draw = torch.Generator().manual_seed(seed)
    loader = DataLoader(order, batch, shuffle=True, collate_fn=source.pairs, generator=draw)
    module = PreferenceTraining(model, BradleyTerry(reduce), ScheduledAdamW(**OPTIMIZER))
    silent_trainer(EPOCHS).fit(module, loader)
    return model.eval()


def gaps_of(name: str, source: ArrayPairs, split: list[tuple[np.ndarray, np.ndarray]], seed: int) -> np.ndarray:
    """Return the gap of every pair as predicted by the model of the fold that did not see it.

    Args:
        name: Model.
        source: Pairs.
        split: Folds.
        seed: Random seed of weights and order.
    """
    gaps = np.full(len(source.names), np.nan)
    for fold, (places, test) in enumerate(split):
        if not len(places):
            gaps[test] = 0.0
            continue
        model = train(name, source, places, 1000 * seed + fold)
        pairs = source.pairs(test.tolist())
        with torch.no_grad():
            scores, _ = row_scores(model(pairs.batch), MODELS[name][1])
        gaps[test] = (scores[pairs.chosen] - scores[pairs.rejected]).numpy()
    return gaps


def majority(labels: np.ndarray, split: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the gap that prefers the side which is preferred more often in training."""
    gaps = np.zeros(len(labels))
    for places, test in split:
        gaps[test] = np.sign((labels[places] - 0.5).sum())
    return gaps


def summary(right: np.ndarray) -> dict[str, Any]:
    """Summarise whether pairs are in the right order.

    Args:
        right: Result of `correct` for each seed and pair (R, P).
    """
    kept = right[:, ~np.isnan(right[0])]
    clusters = np.tile(np.arange(kept.shape[1]), len(kept))
    low, high = bootstrap_interval(kept.ravel(), clusters)
    by_seed = kept.mean(1)
    return {"accuracy": kept.mean(), "low": low, "high": high, "seeds": by_seed.tolist()}


def evaluate(path: Path, seeds: int) -> dict[str, Any]:
    """Evaluate every rule and model on one file.

    Args:
        path: File of pairs.
        seeds: Number of seeds of folds and weights.
    """
    pairs = read_preference_arrays(path)
    script = read_preference_arrays(path, "script").label.numpy()
    source, labels = ArrayPairs(pairs, path.stem), pairs.label.numpy()
    segment, frame = common(pairs, frames=False), common(pairs, frames=True)
    splits = [folds(len(labels), segment, seed) for seed in range(seeds)]
    strict = [folds(len(labels), frame, seed) for seed in range(seeds)]
    found = {
        "majority of the training pairs": summary(np.stack([correct(majority(labels, s), labels) for s in splits]))
    }
    found |= {name: summary(correct(gap, labels)[None]) for name, gap in rules(pairs, script).items()}
    for name in MODELS:
        runs = [correct(gaps_of(name, source, split, seed), labels) for seed, split in enumerate(splits)]
        found[name] = summary(np.stack(runs))
    runs = [correct(gaps_of(STRICT, source, split, seed), labels) for seed, split in enumerate(strict)]
    found[f"{STRICT}, no common frame"] = summary(np.stack(runs))
    decided = labels[labels != 0.5]
    return {
        "pairs": len(labels),
        "decided": len(decided),
        "majority_side": max((decided > 0.5).mean(), (decided < 0.5).mean()),
        "segments": len(pairs.batch.episode.unique()),
        "train_pairs": np.mean([len(places) for split in splits for places, _ in split]),
        "train_pairs_no_common_frame": np.mean([len(places) for split in strict for places, _ in split]),
        "results": found,
    }


def main() -> None:
    """Run the benchmark."""
    parser = command_line(__doc__, "human_preferences")
    parser.add_argument("--data", type=Path, required=True, help="folder with the six files")
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    started = time.process_time()
    console = Console()
    found = {
        name: evaluate(options.data / f"{FILES[name]}.npz", options.seeds)
        for name in track(options.files, console=Console(stderr=True))
    }
    table = Table("accuracy on decided pairs", *found)
    table.add_row("pairs, decided", *(f"{of['pairs']}, {of['decided']}" for of in found.values()))
    for row in next(iter(found.values()))["results"]:
        cells = [of["results"][row] for of in found.values()]
        table.add_row(row, *(f"{c['accuracy']:.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in cells))
    console.print(table)
    batches = {name: batch for name, (_, _, batch) in MODELS.items()}
    settings = {"folds": FOLDS, "batch": batches, "seeds": options.seeds, "epochs": EPOCHS, "optimizer": OPTIMIZER}
    write_result(options.out, {"settings": settings, "cpu_seconds": time.process_time() - started, "files": found})


if __name__ == "__main__":
    main()
