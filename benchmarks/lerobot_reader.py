"""Frames per second of the LeRobot reader against ``lerobot``'s own data set class and naive seeking.

Usage: python benchmarks/lerobot_reader.py

Writes data sets of 8 episodes x 150 frames at 96x96 and 256x256 with our writer (key frame every 8), reads whole
episodes and random windows of 16 frames, with the states that belong to them. Set GUERDON_LEROBOT_PYTHON to a Python
that has lerobot 0.4 to time its class on the same files. Every way is timed three times; the best counts. Prints a
table and writes benchmarks/results/lerobot_reader.json.
"""

import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from guerdon.datasets.episodes import ArrayFrames, Episode
from guerdon.datasets.formats.lerobot import LeRobotDataset
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter

HERE = Path(__file__).resolve().parent
EPISODES, FRAMES, WINDOW, FPS = 8, 150, 16, 20


def scene(rng: np.random.Generator, size: int) -> np.ndarray:
    """(F, 3, H, W): a textured ground seen by a camera with noise, and an arm-like block that moves."""
    ground = rng.integers(30, 220, (size // 8 + 1, size // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:size, :size]
    frames = np.empty((FRAMES, 3, size, size), np.uint8)
    for t in range(FRAMES):
        picture = ground + rng.integers(-12, 13, (size, size, 1))
        x = int((0.5 + 0.4 * np.sin(t / 20)) * (size - size // 4))
        picture[size // 3 : size // 2, x : x + size // 4] = (200, 60, 40)
        frames[t] = picture.clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    return frames


def write(folder: Path, size: int) -> float:
    """Write the data set; frames per second of writing."""
    rng = np.random.default_rng(0)
    spent = 0.0
    with LeRobotWriter(folder, fps=FPS) as writer:
        for index in range(EPISODES):
            state = rng.random((FRAMES, 8)).astype(np.float32)
            actions = rng.random((FRAMES - 1, 4)).astype(np.float32)
            frames = {"front": ArrayFrames(values=scene(rng, size), step=np.arange(FRAMES))}
            episode = Episode(index=index, state=state, actions=actions, instruction="move the block", frames=frames)
            start = time.perf_counter()
            writer.add(episode)
            spent += time.perf_counter() - start
    return EPISODES * FRAMES / spent


def best(run: Callable[[], int]) -> float:
    rates: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        frames = run()
        rates.append(frames / (time.perf_counter() - start))
    return max(rates)


def time_ours(folder: Path, starts: list[int]) -> dict[str, float]:
    dataset = LeRobotDataset(folder)

    def whole(size: int | None = None) -> int:
        return sum(len(dataset[e].frames["front"].read(np.arange(FRAMES), size)) for e in range(4))

    def windows() -> int:
        count = 0
        for row in starts:
            episode, first = divmod(row, FRAMES)
            count += len(dataset[episode].frames["front"].read(np.arange(first, first + WINDOW)))
        return count

    rates = {"whole episodes": best(whole), "random windows": best(windows)}
    return rates | {"whole episodes, scaled to 64": best(lambda: whole(64))}


def time_seeking(folder: Path, starts: list[int]) -> dict[str, float]:
    """Time the naive way: open once, seek to every single frame and decode from the key frame before it."""
    path = next((folder / "videos").rglob("*.mp4"))

    def frames(rows: list[int]) -> int:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            base = stream.time_base
            assert base is not None
            for row in rows:
                wanted = round(row / FPS / base)
                container.seek(wanted, stream=stream)
                for frame in container.decode(stream):
                    if frame.pts is not None and frame.pts >= wanted:
                        frame.to_ndarray(format="rgb24")
                        break
        return len(rows)

    return {
        "whole episodes": best(lambda: frames(list(range(FRAMES)))),
        "random windows": best(lambda: frames([row + i for row in starts for i in range(WINDOW)])),
    }


def time_lerobot(folder: Path, starts: list[int], backend: str) -> dict[str, float] | str:
    """Its figures, or why there are none."""
    python = os.environ.get("GUERDON_LEROBOT_PYTHON")
    if not python:
        return "GUERDON_LEROBOT_PYTHON is not set"
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": home}
        command = [python, str(HERE / "lerobot_interop" / "time_lerobot.py"), str(folder), backend]
        command += [json.dumps(starts), str(WINDOW)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        return ":".join((errors or ["no reason given"])[-1].split(":")[:2])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    console = Console()
    results: dict[str, dict] = {}
    for size in track((96, 256), description="sizes", console=console):
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home) / "set"
            written = write(folder, size)
            rng = np.random.default_rng(1)
            picks = rng.integers(0, (EPISODES, FRAMES - WINDOW), (30, 2))
            starts = [int(episode * FRAMES + first) for episode, first in picks]
            video = next((folder / "videos").rglob("*.mp4"))
            results[str(size)] = {
                "written, frames/s": written,
                "bytes per frame": video.stat().st_size / EPISODES / FRAMES,
                "guerdon": time_ours(folder, starts),
                "seek every frame": time_seeking(folder, starts),
                "lerobot, pyav": time_lerobot(folder, starts, "pyav"),
                "lerobot, torchcodec": time_lerobot(folder, starts, "torchcodec"),
            }
    for size, result in results.items():
        table = Table("reader", "access", "frames/s", title=f"{size}x{size}, key frame every 8, windows of {WINDOW}")
        for reader in ("guerdon", "seek every frame", "lerobot, pyav", "lerobot, torchcodec"):
            rates = result[reader]
            if isinstance(rates, str):
                table.add_row(reader, f"not measured: {rates}", "")
            else:
                for access, rate in rates.items():
                    table.add_row(reader, access, f"{rate:,.0f}")
        console.print(table)
        console.print(
            f"written at {result['written, frames/s']:,.0f} frames/s, {result['bytes per frame']:,.0f} bytes each"
        )
    target = HERE / "results" / "lerobot_reader.json"
    target.parent.mkdir(exist_ok=True)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    target.write_text(json.dumps({"setting": machine | {"av": av.__version__}, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
