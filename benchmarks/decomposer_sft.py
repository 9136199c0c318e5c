"""A tiny vision-language model learns the stages of simulated tasks: before and after fine-tuning, beside a clock.

    python benchmarks/decomposer_sft.py [--episodes 24] [--seeds 0 1 2] [--quick]

For each of three Meta-World tasks episodes of experts and noisy experts are recorded with pictures of 64 × 64 pixels,
on training contexts, and judged on evaluation contexts that training never saw. The teacher is the rule-based
decomposer, which reads the simulator's tracks; the model sees pictures and the plan alone. One Qwen2.5-VL of random
weights (width 64, two layers) is fine-tuned on all tasks together with `DecomposerTraining`, once for each seed of
weights, low-rank updates and draws.

Beside it: the most frequent stage of a task everywhere, and a clock that knows at which share of an episode each stage
of a task ends on average in training. The clock looks at the length of the whole episode, which a model online could
not. Intervals are those of a bootstrap over held-out episodes, all seeds together.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import command_line
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.core.batch import TrajectoryBatch
from guerdon.core.metrics import bootstrap_interval
from guerdon.datasets.collate import Window, collate
from guerdon.envs.collect import collect
from guerdon.envs.vector import make_task
from guerdon.rewards.stages.decomposer import VlmDecomposer
from guerdon.rewards.stages.decomposer_training import DecomposerTraining
from guerdon.rewards.stages.fine_tuning import FineTuning
from guerdon.rewards.stages.rule_decomposer import RuleDecomposer
from guerdon.rewards.stages.stage_metrics import stage_accuracy, stage_iou
from guerdon.testing.vlm_checkpoints import tiny_vlm

RESULT = Path(__file__).parent / "results" / "decomposer_sft.json"
TASKS = ("metaworld/drawer-open-v3", "metaworld/pick-place-v3", "metaworld/door-open-v3")
CAMERA, PIXELS, EVERY = "corner2", 64, 4
Prediction = Callable[[TrajectoryBatch], Tensor]


def record(task_name: str, split: str, episodes: int) -> list[TrajectoryBatch]:
    with closing(make_task(task_name)) as task:
        made = collect(
            task, {"expert": 0.6, "noisy": 0.4}, episodes, split=split, frames=True, image_size=(PIXELS, PIXELS)
        )
        return [collate([Window(episode=e)], cameras=(CAMERA,), frames_every=EVERY) for e in made]


def truth(teacher: RuleDecomposer, batch: TrajectoryBatch) -> tuple[Tensor, Tensor]:
    stages = teacher.segment(batch, teacher.plan(batch.instructions, None), causal=False)
    return stages.values[0].long(), stages.valid[0]


def constant(teacher: RuleDecomposer, batches: Sequence[TrajectoryBatch]) -> Prediction:
    """Predict the most frequent stage of each instruction."""
    most = {
        text: torch.cat([s[v] for b in batches if b.instructions[0] == text for s, v in [truth(teacher, b)]]).mode()
        for text in {b.instructions[0] for b in batches}
    }
    return lambda batch: most[batch.instructions[0]].values.expand(batch.mask.shape[1] + 1)


def clock(teacher: RuleDecomposer, batches: Sequence[TrajectoryBatch]) -> Prediction:
    """Of each instruction the mean share of the episode at which a stage begins."""
    begins: dict[str, list[Tensor]] = {}
    for batch in batches:
        stages, valid = truth(teacher, batch)
        count = len(teacher.plan(batch.instructions, None)[0].stages)
        length = int(batch.steps[0])
        shares = [float((valid & (stages >= k)).nonzero()[0]) / length for k in range(count) if (stages >= k).any()]
        if len(shares) == count:
            begins.setdefault(batch.instructions[0], []).append(torch.tensor(shares))
    mean = {text: torch.stack(found).mean(0) for text, found in begins.items()}

    def tell(batch: TrajectoryBatch) -> Tensor:
        share = torch.arange(batch.mask.shape[1] + 1) / float(batch.steps[0])
        return (share[:, None] >= mean[batch.instructions[0]][None, 1:]).sum(1)

    return tell


def judged(predict: Prediction, teacher: RuleDecomposer, held_out: Sequence[TrajectoryBatch]) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for batch in held_out:
        stages, valid = truth(teacher, batch)
        predicted = predict(batch)
        pair = (predicted.long(), stages, valid, torch.ones_like(valid))
        rows.append({"stage_accuracy": stage_accuracy(*pair), "stage_iou": stage_iou(*pair)})
    return rows


def by_model(training: DecomposerTraining, causal: bool) -> Prediction:
    def tell(batch: TrajectoryBatch) -> Tensor:
        stages = training.decomposer.segment(batch, training.teacher.plan(batch.instructions, None), causal)
        return torch.where(stages.valid[0], stages.values[0], -1)

    return tell


def figure(rows: Sequence[dict[str, float]], name: str, clusters: Sequence[int]) -> dict[str, float]:
    values = torch.tensor([row[name] for row in rows])
    low, high = bootstrap_interval(values, torch.tensor(clusters))
    return {"value": float(values.mean()), "low": low, "high": high}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--episodes", type=int, default=24, help="of each task, to train on")
    parser.add_argument("--held-out", type=int, default=12, help="of each task, to judge on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--quick", action="store_true", help="one seed, few episodes: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.episodes, options.held_out, options.seeds, options.epochs = 3, 2, [0], 1
    torch.set_num_threads(1)
    teacher = RuleDecomposer()
    train = [b for name in TASKS for b in record(name, "train", options.episodes)]
    held_out = [b for name in TASKS for b in record(name, "eval", options.held_out)]
    print(f"{len(train)} episodes to train on, {len(held_out)} held out")
    found: dict[str, list[dict[str, float]]] = {
        "most frequent stage": judged(constant(teacher, train), teacher, held_out),
        "clock": judged(clock(teacher, train), teacher, held_out),
    }
    plans: dict[str, list[float]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory() as place:
        for seed in options.seeds:
            folder = tiny_vlm(Path(place) / f"vlm{seed}", "qwen2_5_vl", width=64, seed=seed)
            torch.manual_seed(seed)
            pixels = {"size": {"shortest_edge": 64, "longest_edge": PIXELS**2}}
            vlm = VLM(str(folder), image_options=pixels, batch_size=32, lora=LoRA(rank=16))
            decomposer = VlmDecomposer(vlm, [CAMERA], attempts=1, max_new_tokens=512, min_mass=0.0)
            training = DecomposerTraining(
                decomposer,
                teacher,
                frames_per_episode=16,
                seed=seed,
                tuning=FineTuning(learning_rate=3e-3, epochs=options.epochs, batch_size=8, warmup_steps=10),
            )
            for when in ("before", "after"):
                if when == "after":
                    training.fit(training.examples(train), Path(place) / f"run{seed}")
                for causal, name in ((False, "whole episode"), (True, "online")):
                    rows = judged(by_model(training, causal), teacher, held_out)
                    found.setdefault(f"model {when}, {name}", []).extend(rows)
                plans[when].append(float(training.evaluate(held_out[:: options.held_out])["plans_equal"]))
                last = found[f"model {when}, whole episode"][-len(held_out) :]
                mean = sum(row["stage_accuracy"] for row in last) / len(last)
                print(f"seed {seed} {when}: stage accuracy {mean:.2f}, plans equal {plans[when][-1]:.2f}", flush=True)
    table: dict[str, Any] = {}
    print(f"{'':<32} {'stage accuracy':<22} mean IoU")
    for name, rows in found.items():
        clusters = [i % len(held_out) for i in range(len(rows))]
        table[name] = {key: figure(rows, key, clusters) for key in ("stage_accuracy", "stage_iou")}
        cells = ["{value:.2f} ({low:.2f} … {high:.2f})".format(**cell) for cell in table[name].values()]
        print(f"{name:<32} {cells[0]:<22} {cells[1]}")
    if not options.quick:
        told = {"tasks": TASKS, "train": len(train), "held_out": len(held_out), "seeds": options.seeds}
        RESULT.write_text(json.dumps(told | {"table": table, "plans_equal": plans}, indent=1) + "\n")


if __name__ == "__main__":
    main()
