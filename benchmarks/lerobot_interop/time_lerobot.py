"""Time ``lerobot``'s own data set class and print frames per second as JSON; run by a Python that has lerobot 0.4.

Usage: python time_lerobot.py FOLDER BACKEND WINDOW_STARTS WINDOW, with WINDOW_STARTS a JSON list of rows.

Each way is timed three times over, the best is printed, as in ``benchmarks/lerobot_reader.py``.
"""

import json
import sys
import time

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

CAMERA = "observation.images.front"


def best(run) -> float:  # noqa: ANN001
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        frames = run()
        rates.append(frames / (time.perf_counter() - start))
    return max(rates)


def main(folder: str, backend: str, starts: list[int], window: int) -> None:
    torch.set_num_threads(1)
    plain = LeRobotDataset("test/bench", root=folder, video_backend=backend)
    length = plain.meta.episodes[0]["length"]
    fps = plain.fps

    def stacked(count: int) -> LeRobotDataset:
        times = {CAMERA: [i / fps for i in range(count)]}
        return LeRobotDataset("test/bench", root=folder, video_backend=backend, delta_timestamps=times)

    def whole_by_frame() -> int:
        return sum(plain[row][CAMERA].ndim == 3 for row in range(2 * length))

    episodes = stacked(length)

    def whole_by_episode() -> int:
        return sum(len(episodes[place * length][CAMERA]) for place in range(4))

    windows = stacked(window)

    def random_windows() -> int:
        return sum(len(windows[row][CAMERA]) for row in starts)

    rates = {"whole episodes, item by item": best(whole_by_frame)}
    rates["whole episodes, one item each"] = best(whole_by_episode)
    rates["random windows"] = best(random_windows)
    print(json.dumps(rates))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))
