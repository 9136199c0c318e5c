"""Write a small LeRobot v3.0 data set with ``lerobot`` itself; run by a Python that has lerobot 0.4 … 0.6 installed.

Usage: python write_with_lerobot.py FOLDER

Three episodes of 9, 10 and 11 frames at 10 fps, two cameras (48x64 and 64x64), two tasks. Values name their episode e
and step t: state (e, t, e + t), action (−e, t / 10); picture red 40 + 60 e, green 10 + 15 t, blue 90 (front) or 160
(wrist).
"""

import inspect
import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

CAMERAS = {"front": (48, 64, 90), "wrist": (64, 64, 160)}


def main(folder: str) -> None:
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["episode", "step", "sum"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["minus", "tenth"]},
    }
    for camera, (height, width, _) in CAMERAS.items():
        names = ["height", "width", "channels"]
        features[f"observation.images.{camera}"] = {"dtype": "video", "shape": (height, width, 3), "names": names}
    if "vcodec" in inspect.signature(LeRobotDataset.create).parameters:
        codec = {"vcodec": "h264"}
    else:  # since 0.6
        from lerobot.configs import RGBEncoderConfig  # pyright: ignore[reportMissingImports]

        codec = {"rgb_encoder": RGBEncoderConfig(vcodec="h264")}
    dataset = LeRobotDataset.create("test/interop", fps=10, features=features, root=folder, **codec)
    for episode in range(3):
        for step in range(9 + episode):
            row = {
                "observation.state": np.array([episode, step, episode + step], np.float32),
                "action": np.array([-episode, step / 10], np.float32),
                "task": f"task {episode % 2}",
            }
            for camera, (height, width, blue) in CAMERAS.items():
                picture = np.empty((height, width, 3), np.uint8)
                picture[:] = (40 + 60 * episode, 10 + 15 * step, blue)
                row[f"observation.images.{camera}"] = picture
            dataset.add_frame(row)
        dataset.save_episode()
    dataset.finalize()


if __name__ == "__main__":
    main(sys.argv[1])
