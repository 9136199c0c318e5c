"""What embedding once is worth: training steps and dense scoring with cached features, and without.

Usage: python benchmarks/embed_once.py [--size tiny|vit-b-32] [--device cpu|cuda] [--lengths 25 50 100 200] [--rows 16]

A progress reward (two causal blocks of width 64) looks through a frozen CLIP vision tower with random weights, opened
from a checkpoint on disk: "tiny" has two layers of width 128 on 96x96 pixels, "vit-b-32" the published size on 224x224.
Frames are noise at 96x96, in memory, so no way pays for decoding a video; peers do at every step.

* A training step is reading a batch, loss, gradient and update, on whole episodes of T steps: with features from the
  cache, and encoding the frames anew at every step.
* Dense scoring is a progress value at every observation of one episode of T steps: from the cache, into an empty cache
  (T + 1 encodes and one causal pass, then written and flushed), encoding anew without a cache (the same encodes and
  pass), and from every prefix, encoding all of it again for each observation. All four must agree.

Times are medians: of the processor, on one thread, on a CPU, so that what else a machine does counts little; by the
clock on a GPU. The exponent of T is the slope of a straight line through the logarithms. Prints tables and writes
benchmarks/results/embed_once.json, beside what other sizes and devices left there.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save_file

from common import command_line
from guerdon.backbones.openai_clip import CLIP, ClipEncoder
from guerdon.core.batch import End
from guerdon.datasets.collate import Window
from guerdon.datasets.episodes import ArrayFrames, Column, Episode
from guerdon.datasets.features import FeatureCache
from guerdon.datasets.reader import EpisodeReader
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward

RESULTS = Path(__file__).resolve().parent / "results" / "embed_once.json"
# embedding, pixels, layers, width, patch of the vision tower; the text tower is not used and kept small
SIZES = {"tiny": (128, 96, 2, 128, 16), "vit-b-32": (512, 224, 12, 768, 32)}


def write_checkpoint(size: str, folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / f"{size}.safetensors"
    save_file(CLIP(*SIZES[size], 77, 49408, 64, 1, 1).state_dict(), path)
    return path


def make_episode(index: int, steps: int) -> Episode:
    rng = np.random.default_rng(index)
    frames = rng.integers(0, 256, (steps + 1, 3, 96, 96), np.uint8)
    source = ArrayFrames(values=frames, step=np.arange(steps + 1), identity=f"noise {index} {steps}")
    return Episode(
        index=index,
        state=np.zeros((steps + 1, 0), np.float32),
        actions=np.zeros((steps, 0), np.float32),
        end=End.SUCCESS,
        success=1.0,
        frames={"front": source},
        labels={"progress": Column.known(np.linspace(0, 1, steps + 1, dtype=np.float32))},
    )


def seconds(run: Callable[[], object], times: int, device: str) -> float:
    """Median of some runs after one to warm up, if there is more than one."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    took: list[float] = []
    for _ in range(times + (times > 1)):
        start = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(clock() - start)
    return median(took[1:] or took)


def measure(encoder: ClipEncoder, steps: int, rows: int, device: str, folder: Path) -> dict[str, dict[str, float]]:
    """Seconds of every way at one length."""
    episodes = [make_episode(i, steps) for i in range(rows)]
    windows = [Window(episode=e) for e in episodes]
    model = ProgressReward(observer=ObservationEncoder(cameras=["front"], encoder=encoder, width=64, layers=2)).to(
        device
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)

    def reader(cache: Path | None) -> EpisodeReader:
        none: Any = []  # the episodes come in windows
        return EpisodeReader(none, ["front"], None, encoder, None if cache is None else FeatureCache(cache))

    cached, plain = reader(folder / str(steps)), reader(None)
    for episode in episodes:
        cached.prepare(episode)

    def train(source: EpisodeReader) -> None:
        loss = model.loss(source.batch(windows).to(device))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    training = {
        "cached": seconds(lambda: train(cached), 10, device),
        "re-encoded every step": seconds(lambda: train(plain), 3, device),
    }
    model.eval()

    @torch.no_grad()
    def dense(source: EpisodeReader) -> torch.Tensor:
        return model(source.batch(windows[:1]).to(device)).progress.values[0].cpu()

    @torch.no_grad()
    def prefixes() -> torch.Tensor:
        values: list[torch.Tensor] = []
        for last in range(1, steps + 1):
            part = plain.batch([Window(episode=episodes[0], steps=last)]).to(device)
            values.append(model(part).progress.values[0, last].cpu())
        return torch.stack(values)

    def fill() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            dense(reader(Path(empty)))

    found: list[torch.Tensor] = []
    scoring = {
        "cached": seconds(lambda: dense(cached), 20, device),
        "embedded once, into an empty cache": seconds(fill, 3, device),
        "embedded once, without a cache": seconds(lambda: dense(plain), 3, device),
        "every prefix re-encoded": seconds(lambda: found.append(prefixes()), 1, device),
    }
    for other in (dense(plain)[1:], dense(cached)[1:]):
        assert torch.allclose(found[0], other, atol=1e-2), "the ways disagree"
    return {"training step": training, "dense scoring": scoring}


def exponent(lengths: list[int], times: list[float]) -> float:
    return float(np.polyfit(np.log(lengths), np.log(times), 1)[0]) if len(lengths) > 1 else float("nan")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--rows", type=int, default=16, help="episodes in a training batch")
    options = parser.parse_args()
    console, lengths = Console(), options.lengths
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        encoder = ClipEncoder(str(write_checkpoint(options.size, Path(home)))).to(options.device)
        runs = [
            measure(encoder, steps, options.rows, options.device, Path(home))
            for steps in track(lengths, description="lengths", console=console)
        ]
    summary: dict[str, dict] = {}
    for what in runs[0]:
        title = f"{what}, {options.size} on {options.device}" + (f", {options.rows} rows" if "train" in what else "")
        table = Table("way", *(f"T = {steps}" for steps in lengths), "exponent", "of cached", title=title + ", in ms")
        summary[what] = {}
        for way in runs[0][what]:
            times = [run[what][way] for run in runs]
            ratios = [run[what][way] / run[what]["cached"] for run in runs]
            slope = exponent(lengths, times)
            summary[what][way] = {"seconds": times, "exponent": slope, "times the cached": ratios}
            span = "" if way == "cached" else f"{min(ratios):.0f} to {max(ratios):.0f} times"
            table.add_row(way, *(f"{1000 * t:,.1f}" for t in times), f"{slope:.2f}", span)
        console.print(table)
    setting = {
        "lengths": lengths,
        "rows": options.rows,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "time": "by the clock" if options.device == "cuda" else "of the processor, one thread",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
    }
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept[f"{options.size} on {options.device}"] = {"setting": setting, "results": summary}
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
