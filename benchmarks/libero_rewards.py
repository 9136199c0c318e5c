"""What a process reward model knows of LIBERO-Object: ten tasks in one scene, two never trained on, and PRO variants.

    python benchmarks/libero_rewards.py --runs runs/libero_rewards

It collects logs of mixed quality of each task and of four tasks of each LIBERO-PRO suite, trains one model on eight
tasks at once, from states or from pixels, and evaluates it on held-out initial states, on the two other tasks, and on
other words, other looks, swapped places and other tasks in the same scene. Beside the usual metrics it asks the
strictest question about the instruction: does a success get more than the same episode under an instruction for
another object **that lies there too**? Data, models and results are kept in the runs folder, and a second run goes on
from there. Needs `pip install 'guerdon[libero]'` and, for pixels, an OpenGL library.
"""

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from common import command_line, silent_trainer, write_result
from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.hub import load_component
from guerdon.datasets.collate import collate
from guerdon.datasets.episodes import Episode, EpisodeSummary
from guerdon.datasets.joined import JoinedDatasets
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.datasets.opening import open_dataset
from guerdon.envs.collect import collect_dataset
from guerdon.envs.libero_tasks.catalogue import task_goals
from guerdon.evaluation.dataset import evaluate_dataset
from guerdon.rewards.fit import RewardTraining
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward

SUITE = "libero_object"
TASKS, UNSEEN, VARIED = range(8), (8, 9), (0, 2, 4, 6)
TRAIN, EVAL, VARIANT, HORIZON = 20, 10, 8, 200
EPOCHS = {"states": 30, "pixels": 30}
CAMERA, FRAME, EVERY = "agentview", 64, 4


def collect(runs: Path) -> None:
    """Collect logs of every task; those already there are kept."""
    wanted = [(f"{split}-{n}", SUITE, n, split, count) for n in range(10) for split, count in COUNTS.items()]
    wanted += [(f"{kind}-{n}", f"{SUITE}_{kind}", n, "eval", VARIANT) for kind in VARIANTS for n in VARIED]
    for name, suite, number, split, count in wanted:
        out = runs / "data" / name
        if not out.exists():
            env = f"libero/{suite}/{number}"
            collect_dataset(env, out, count, split=split, horizon=HORIZON, frames=True, frames_every=EVERY)


COUNTS = {"train": TRAIN, "eval": EVAL}
VARIANTS = {"object": "other looks", "swap": "swapped places", "task": "another task in the scene"}


class Reworded:
    """Data set with other instructions.

    Args:
        episodes: Data set.
        words: Instruction → the one that takes its place.
    """

    def __init__(self, episodes: JoinedDatasets, words: Mapping[str, str]) -> None:
        self.episodes, self.words = episodes, words
        self.name, self.fps, self.cameras = episodes.name, episodes.fps, episodes.cameras
        self.state_size, self.action_size = episodes.state_size, episodes.action_size

    def __len__(self) -> int:
        return len(self.episodes)

    def summary(self, place: int) -> EpisodeSummary:
        """Return what is known of an episode without reading it."""
        return self.episodes.summary(place)

    def __getitem__(self, place: int) -> Episode:
        """Read an episode, under its other instruction."""
        episode = self.episodes[place]
        return replace(episode, instruction=self.words[episode.instruction])


def model(inputs: str, state_size: int) -> ProgressReward:
    """Build the model for one kind of input, with everything trained from scratch."""
    text = HashedText(width=64)
    if inputs == "states":
        observer = ObservationEncoder(text=text, width=128, layers=1)
        return ProgressReward(state_size=state_size, success_weight=1.0, observer=observer)
    encoder = ConvEncoder(width=64, channels=(16, 32, 64, 64), size=FRAME)
    observer = ObservationEncoder(
        cameras=(CAMERA,), encoder=encoder, text=text, width=128, layers=1, frame_size=FRAME, frames_every=EVERY
    )
    return ProgressReward(success_weight=1.0, observer=observer)


def fit(inputs: str, seed: int, runs: Path) -> tuple[Path, float]:
    """Train and save, unless it was done; return the folder and the seconds it took."""
    folder = runs / f"{inputs}_{seed}"
    if (folder / "seconds.json").exists():
        return folder, float(json.loads((folder / "seconds.json").read_text()))
    lightning.seed_everything(seed, verbose=False)
    started = time.perf_counter()
    labels = LabelFactory(rewind=0.2, reverse=0.15, wrong_instruction=0.25, stall=0.1, warp=0.1)
    paths = [str(runs / "data" / f"train-{n}") for n in TASKS]
    pictures: dict[str, Any] = {}
    if inputs == "pixels":
        pictures = {"cameras": (CAMERA,), "frame_size": FRAME, "frame_count": 20, "cache": str(runs / "frames")}
    data = EpisodeData(
        paths, batch_size=32, repeats=4 if inputs == "states" else 2, labels=labels, seed=seed, **pictures
    )
    width = open_dataset(paths[0])[0].state.shape[1]
    module = RewardTraining(model(inputs, width), learning_rate=1e-3, schedule="cosine", warmup_steps=50)
    trainer = silent_trainer(EPOCHS[inputs], gradient_clip_val=1.0, enable_progress_bar=True)
    trainer.fit(module, datamodule=data)
    module.reward.eval().save_pretrained(folder / "model")
    seconds = time.perf_counter() - started
    (folder / "seconds.json").write_text(json.dumps(seconds))
    return folder, seconds


def opened(runs: Path, names: Sequence[str]) -> JoinedDatasets:
    """Open some of the collected data sets as one."""
    return JoinedDatasets([open_dataset(str(runs / "data" / name)) for name in names])


def test_sets(runs: Path) -> Iterator[tuple[str, Any]]:
    """Open what a model is evaluated on."""
    held_out = opened(runs, [f"eval-{n}" for n in TASKS])
    yield "held-out states", held_out
    yield "unseen tasks", opened(runs, [f"eval-{n}" for n in UNSEEN])
    goals = task_goals()
    words = {goals[f"libero/{SUITE}/{n}"].instruction: goals[f"libero/{SUITE}_lan/{n}"].instruction for n in TASKS}
    yield "other words", Reworded(held_out, words)
    for kind, what in VARIANTS.items():
        yield what, opened(runs, [f"{kind}-{n}" for n in VARIED])


def final_values(reward: ProgressReward, episodes: Sequence[Episode]) -> np.ndarray:
    """Return the predicted probability of success at the end of each episode."""
    values: list[float] = []
    for start in range(0, len(episodes), 8):
        batch = collate(episodes[start : start + 8], cameras=reward.observer.cameras)
        with torch.no_grad():
            estimates = reward(batch)
        assert estimates.success is not None
        rows = torch.arange(len(batch))
        values += estimates.success.values[rows, batch.steps].tolist()
    return np.array(values)


def right_over_wrong(reward: ProgressReward, data: Any, draws: int = 2000) -> dict[str, float]:
    """Compare each success under its instruction and under those for other objects of the scene.

    Returns:
        Share of pairs in which the right instruction gets more (half for ties), averaged over episodes, its 95 %
        interval by the bootstrap over episodes, and the number of episodes.
    """
    about = {goal.parts[0][1]: goal.instruction for name, goal in task_goals().items() if f"{SUITE}/" in name}
    shares: list[float] = []
    for index in range(len(data)):
        episode = data[index]
        if episode.success != 1:
            continue
        mine = [name for name, words in about.items() if words == episode.instruction]
        others = [words for name, words in about.items() if name in episode.tracks and name not in mine]
        values = final_values(reward, [episode, *(replace(episode, instruction=words) for words in others)])
        shares.append(float(np.mean((values[0] > values[1:]) + 0.5 * (values[0] == values[1:]))))
    chosen = np.random.default_rng(0).integers(len(shares), size=(draws, len(shares)))
    means = np.array(shares)[chosen].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(np.mean(shares)), "low": float(low), "high": float(high), "n": len(shares)}


METRICS = {
    "success AUROC": ("model", "success_auroc", "clock"),
    "value order of successes": ("model", "value_order_correlation", "clock"),
    "… played backwards": ("reversed", "value_order_correlation", "clock"),
    "right > any wrong instruction, AUROC": ("model", "instruction_auroc", "clock"),
    "progress error": ("model", "progress_error", "constant"),
}


def judge(inputs: str, runs: Path, folder: Path) -> dict[str, Any]:
    """Evaluate a trained model on every test set."""
    reward = load_component(folder / "model").eval()
    assert isinstance(reward, ProgressReward)
    found: dict[str, Any] = {}
    for name, data in test_sets(runs):
        if inputs == "states" and name == VARIANTS["object"]:
            continue  # other objects, so another state
        cache = runs / "frames" if inputs == "pixels" else None
        metrics = evaluate_dataset(reward, data, cache=cache, progress_bar=False).to_json()["figures"]
        found[name] = {
            what: {**metrics[who][metric], "control": metrics[control][metric]["value"]}
            for what, (who, metric, control) in METRICS.items()
        }
        if name in ("held-out states", "unseen tasks"):
            found[name]["right > wrong object that lies there"] = right_over_wrong(reward, data) | {"control": 0.5}
    return found


def show(results: Mapping[str, Any], inputs: str) -> Table:
    """Show means over seeds, with the widest interval of any seed."""
    runs = [run["judged"] for run in results.values() if run["inputs"] == inputs]
    table = Table("metric", *runs[0], "control", title=f"{inputs}, {len(runs)} seeds")
    for metric in (*METRICS, "right > wrong object that lies there"):
        cells: list[str] = []
        for part in runs[0]:
            found = [run[part][metric] for run in runs if metric in run.get(part, {})]
            values = [f["value"] for f in found if f["value"] is not None]
            if not values:
                cells.append("–")
                continue
            lows, highs = ([f[k] for f in found if f[k] is not None] for k in ("low", "high"))
            cells.append(f"{np.mean(values):.2f} ({min(lows):.2f}…{max(highs):.2f})")
        control = runs[0]["held-out states"][metric]["control"]
        table.add_row(metric, *cells, "–" if control is None else f"{control:.2f}")
    return table


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "libero_rewards")
    parser.add_argument("--runs", type=Path, default=Path("runs/libero_rewards"))
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
            folder, seconds = fit(inputs, seed, options.runs)
            kept = folder / "judged.json"
            if not kept.exists():
                kept.write_text(json.dumps(judge(inputs, options.runs, folder)))
            judged = json.loads(kept.read_text())
            results[f"{inputs} {seed}"] = {"inputs": inputs, "seed": seed, "seconds": seconds, "judged": judged}
    for inputs in wanted:
        Console(width=200).print(show(results, inputs))
    print("mean over seeds (smallest lower … largest upper bound of their 95 % intervals over episodes)")
    write_result(options.out, results)


if __name__ == "__main__":
    main()
