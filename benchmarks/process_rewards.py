"""How far a process reward model can be trusted: eight Meta-World tasks, held-out contexts, two tasks never trained on.

    python benchmarks/process_rewards.py --runs runs/process_rewards

For each task it collects logs of mixed quality (scripted expert, noisy expert, aborted, random), trains one model on
all eight at once, from states or from pixels, calibrates it on a tenth of the training contexts that it was not trained
on, and judges it on held-out contexts of the same tasks and on two tasks it never saw. Data, models and judgements are
kept in the runs folder, and a second run goes on from there. Prints a table, writes JSON. Needs
`pip install 'guerdon[sim]'` and, for pixels, an OpenGL library.
"""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, silent_trainer, write_result
from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.hub import load_component
from guerdon.datasets.joined import JoinedDatasets
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.datasets.opening import open_dataset
from guerdon.envs.collect import collect_dataset
from guerdon.evaluation.calibration.fit import calibrate
from guerdon.evaluation.dataset import evaluate_dataset
from guerdon.rewards.fit import RewardTraining
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward

TASKS = (
    "drawer-open-v3",
    "door-open-v3",
    "button-press-topdown-v3",
    "window-open-v3",
    "plate-slide-v3",
    "handle-press-v3",
    "faucet-open-v3",
    "coffee-button-v3",
)
UNSEEN = ("drawer-close-v3", "window-close-v3")
"""Never trained on, and a hard pair: the scenes of two training tasks, asked to be undone."""
TRAIN, EVAL, HORIZON = 48, 24, 120
EPOCHS = {"states": 30, "pixels": 30}
CAMERA, FRAME = "corner2", 64
AIMS = {
    "success AUROC": "≥ 0.95",
    "value order of successes": "≥ 0.9",
    "… played backwards": "≤ −0.5",
    "right > wrong instruction, AUROC": "≥ 0.9",
    "dense calibration error": "≤ 0.10",
}
"""What is hoped for on held-out contexts."""


def collect(runs: Path) -> None:
    """Collect logs of every task; those already there are kept."""
    for task in (*TASKS, *UNSEEN):
        for split, episodes, seed in (("train", TRAIN, 0), ("eval", EVAL, 1)):
            out = runs / "data" / task / split
            if not out.exists():
                collect_dataset(f"metaworld/{task}", out, episodes, seed, split=split, horizon=HORIZON)


def model(inputs: str) -> ProgressReward:
    """Build the model for one kind of input, with everything trained from scratch."""
    text = HashedText(width=64)
    if inputs == "states":
        return ProgressReward(
            state_size=39, success_weight=1.0, observer=ObservationEncoder(text=text, width=128, layers=1)
        )
    encoder = ConvEncoder(width=64, channels=(16, 32, 64, 64), size=FRAME)
    return ProgressReward(
        success_weight=1.0,
        observer=ObservationEncoder(
            cameras=(CAMERA,), encoder=encoder, text=text, width=128, layers=1, frame_size=FRAME, frames_every=2
        ),
    )


def data(inputs: str, runs: Path, seed: int) -> EpisodeData:
    """Training rows of all tasks, with negatives that time alone cannot explain."""
    labels = LabelFactory(rewind=0.2, reverse=0.15, wrong_instruction=0.25, stall=0.1, warp=0.1)
    paths = [str(runs / "data" / task / "train") for task in TASKS]
    if inputs == "states":
        return EpisodeData(paths, batch_size=32, repeats=4, labels=labels, seed=seed)
    return EpisodeData(
        paths,
        cameras=(CAMERA,),
        frame_size=FRAME,
        frame_count=20,
        cache=str(runs / "frames"),
        batch_size=32,
        repeats=2,
        labels=labels,
        seed=seed,
    )


def fit(inputs: str, seed: int, runs: Path, epochs: int) -> tuple[Path, float]:
    """Train and save, unless it was done; the folder and the seconds it took."""
    folder = runs / f"{inputs}_{seed}"
    if (folder / "seconds.json").exists():
        return folder, float(json.loads((folder / "seconds.json").read_text()))
    lightning.seed_everything(seed, verbose=False)
    started = time.perf_counter()
    module = RewardTraining(model(inputs), learning_rate=1e-3, schedule="cosine", warmup_steps=50)
    trainer = silent_trainer(epochs, gradient_clip_val=1.0, enable_progress_bar=True)
    trainer.fit(module, datamodule=data(inputs, runs, seed))
    module.reward.eval().save_pretrained(folder / "model")
    seconds = time.perf_counter() - started
    (folder / "seconds.json").write_text(json.dumps(seconds))
    return folder, seconds


def judge(inputs: str, seed: int, runs: Path, folder: Path) -> dict[str, Any]:
    """Calibrate on the contexts held out of training, then judge on held-out contexts and on unseen tasks."""
    cache = runs / "frames" if inputs == "pixels" else None
    reward = load_component(folder / "model").eval()
    assert isinstance(reward, ProgressReward)
    logs = JoinedDatasets([open_dataset(str(runs / "data" / task / "train")) for task in TASKS])
    calibrated, _ = calibrate(reward, logs, split="val", method="platt", cache=cache, seed=seed)
    calibrated.save_pretrained(folder / "calibrated")
    found: dict[str, Any] = {}
    for name, tasks in (("held-out contexts", TASKS), ("unseen tasks", UNSEEN)):
        judged = JoinedDatasets([open_dataset(str(runs / "data" / task / "eval")) for task in tasks])
        for what, subject in (("as trained", reward), ("calibrated", calibrated.eval())):
            evaluation = evaluate_dataset(subject, judged, cache=cache, progress_bar=True)
            found[f"{name}, {what}"] = evaluation.to_json()
    return found


def headline(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each figure with its interval and beside it what its control says."""
    figures = evaluation["figures"]
    model, clock, backwards = figures["model"], figures["clock"], figures["reversed"]
    pairs = {
        "success AUROC": (model["success_auroc"], clock["success_auroc"]),
        "value order of successes": (model["value_order_correlation"], clock["value_order_correlation"]),
        "… of failures": (model["value_order_failures"], clock["value_order_failures"]),
        "… played backwards": (backwards["value_order_correlation"], clock["value_order_correlation"]),
        "right > wrong instruction, AUROC": (model["instruction_auroc"], clock["instruction_auroc"]),
        "dense calibration error": (model["calibration_error"], figures["constant"]["calibration_error"]),
        "false positives at ½": (model["false_positive_rate"], figures["constant"]["false_positive_rate"]),
        "progress error": (model["progress_error"], figures["constant"]["progress_error"]),
        "quality order, Kendall τ-b": (model["quality_ranking"], clock["quality_ranking"]),
    }
    kept = ("value", "low", "high", "n", "n_undefined")
    return {name: {**{k: one[k] for k in kept}, "control": control["value"]} for name, (one, control) in pairs.items()}


def show(results: dict[str, Any], inputs: str) -> Table:
    """Means over seeds, and the widest interval of any seed."""
    runs = [run for run in results.values() if run["inputs"] == inputs]
    parts = list(runs[0]["judged"])
    table = Table("figure", "hoped for", *parts, "control", title=f"{inputs}, {len(runs)} seeds")
    for name in runs[0]["judged"][parts[0]]:
        cells: list[str] = []
        for part in parts:
            found = [run["judged"][part][name] for run in runs]
            values = [f["value"] for f in found if f["value"] is not None]
            lows, highs = ([f[k] for f in found if f[k] is not None] for k in ("low", "high"))
            cells.append(f"{sum(values) / len(values):.3f} ({min(lows):.2f}…{max(highs):.2f})" if values else "–")
        control = runs[0]["judged"][parts[0]][name]["control"]
        table.add_row(name, AIMS.get(name, ""), *cells, "–" if control is None else f"{control:.2f}")
    return table


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "process_rewards")
    parser.add_argument("--runs", type=Path, default=Path("runs/process_rewards"))
    parser.add_argument("--inputs", choices=tuple(EPOCHS), action="append")
    parser.add_argument("--seed", type=int, action="append")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    collect(options.runs)
    results: dict[str, Any] = {}
    wanted = options.inputs or list(EPOCHS)
    for inputs in wanted:
        for seed in options.seed or [0, 1, 2]:
            folder, seconds = fit(inputs, seed, options.runs, EPOCHS[inputs])
            kept = folder / "judged.json"
            if not kept.exists():
                kept.write_text(json.dumps(judge(inputs, seed, options.runs, folder)))
            judged = {part: headline(evaluation) for part, evaluation in json.loads(kept.read_text()).items()}
            results[f"{inputs} {seed}"] = {"inputs": inputs, "seed": seed, "seconds": seconds, "judged": judged}
    for inputs in wanted:
        Console(width=180).print(show(results, inputs))
    Console().print("mean over seeds (smallest lower … largest upper bound of their 95 % intervals over episodes)")
    write_result(options.out, results)


if __name__ == "__main__":
    main()
