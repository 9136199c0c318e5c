"""Which negatives teach a reward model to look: an ablation of the label factory on real video (DROID clips).

    python benchmarks/droid_labels.py --data shared/data/droid_visualizer

Every arm trains the same model from scratch on the training clips with other shares of negatives, for some seeds, and
is judged on validation clips and on clips of labs that training never saw: value order, the same clips played backwards
and shuffled (a model that looks gets below 0 backwards; a clock stays near 1), and whether the right instruction scores
above a wrong one. Models are kept in the runs folder, and a second run goes on from there.
"""

import json
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, silent_trainer, write_result
from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.hub import load_component
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.datasets.opening import open_dataset
from guerdon.evaluation.dataset import evaluate_dataset
from guerdon.rewards.fit import RewardTraining
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward

TIME = {"rewind": 0.2, "reverse": 0.15, "stall": 0.1, "warp": 0.1}
TASK = {"wrong_instruction": 0.2, "cross_task": 0.1}
NONE = dict.fromkeys((*TIME, *TASK), 0.0)
ARMS: dict[str, tuple[dict[str, float], bool]] = {
    "no negatives": (NONE, True),
    "time only": ({**NONE, **TIME}, True),
    "task only": ({**NONE, **TASK}, True),
    "time and task": ({**TIME, **TASK}, True),
    "time and task, no first frame": ({**TIME, **TASK}, False),
}
"""Shares of negatives, and whether the model also sees how a frame differs from the first one."""
SPLITS = ("val", "test_unseen_lab")


def fit(arm: str, seed: int, data: Path, runs: Path, epochs: int) -> Path:
    """Train and save one model, unless it was done."""
    folder = runs / arm.replace(" ", "_").replace(",", "") / str(seed)
    if folder.exists():
        return folder
    lightning.seed_everything(seed, verbose=False)
    shares: dict[str, Any] = ARMS[arm][0]
    since_start = ARMS[arm][1]
    model = ProgressReward(
        observer=ObservationEncoder(
            cameras=("video",),
            encoder=ConvEncoder(width=64, channels=(8, 16, 32, 64), size=64),
            text=HashedText(width=64),
            width=96,
            layers=2,
            dropout=0.1,
            frame_size=64,
            frames_every=4,
            since_start=since_start,
        )
    )
    clips = EpisodeData(
        str(data),
        cameras=("video",),
        frame_size=64,
        frame_count=16,
        cache=str(runs / "frames"),
        batch_size=16,
        labels=LabelFactory(assume_success=True, **shares),
        seed=seed,
    )
    trainer = silent_trainer(epochs, gradient_clip_val=1.0, enable_progress_bar=True)
    trainer.fit(RewardTraining(model, learning_rate=1e-3, schedule="cosine", warmup_steps=50), datamodule=clips)
    model.eval().save_pretrained(folder)
    return folder


def judge(folder: Path, data: Path, runs: Path) -> dict[str, Any]:
    """Evaluate the model on both splits, or open the result that is there."""
    kept = folder / "judged.json"
    if not kept.exists():
        reward = load_component(folder).eval()
        assert isinstance(reward, ProgressReward)
        clips = open_dataset(str(data))
        judged = {s: evaluate_dataset(reward, clips, split=s, cache=runs / "frames", confusion=0) for s in SPLITS}
        found = {split: evaluation.to_json() for split, evaluation in judged.items()}
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def headline(judged: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Pick the four metrics of one split, each with its interval over clips."""
    figures = judged["figures"]
    order = {name: figures[name]["value_order_correlation"] for name in ("model", "reversed", "shuffled")}
    found = {**order, "right > wrong": figures["model"]["instruction_accuracy"]}
    return {name: {k: figure[k] for k in ("value", "low", "high", "n")} for name, figure in found.items()}


def _over_seeds(values: list[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f} … {max(values):.2f})"


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "droid_labels")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/droid_labels"))
    parser.add_argument("--arm", choices=tuple(ARMS), action="append")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    table = Table("negatives", "split", "value order", "backwards", "shuffled", "right > wrong instruction")
    for arm in options.arm or ARMS:
        seeds = options.seed or [0, 1, 2]
        folders = [fit(arm, seed, options.data, options.runs, options.epochs) for seed in seeds]
        judged = [judge(folder, options.data, options.runs) for folder in folders]
        for split in SPLITS:
            runs = [headline(one[split]) for one in judged]
            results.setdefault(arm, {})[split] = {"seeds": seeds, "per_seed": runs}
            table.add_row(arm, split, *(_over_seeds([run[name]["value"] for run in runs]) for name in runs[0]))
    Console(width=120).print(table)
    Console().print("mean (smallest … largest) over seeds; intervals over clips are in the JSON")
    write_result(options.out, results)


if __name__ == "__main__":
    main()
