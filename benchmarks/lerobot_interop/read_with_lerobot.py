"""Open a LeRobot v3.0 data set with ``lerobot`` itself and print what it sees as JSON.

Usage: python read_with_lerobot.py FOLDER; run by a Python that has lerobot 0.4 … 0.6 installed.
"""

import json
import sys

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]


def main(folder: str) -> None:
    dataset = LeRobotDataset("test/interop", root=folder, video_backend="pyav")
    rows = []
    for place in range(len(dataset)):
        item = dataset[place]
        row = {
            "episode": int(item["episode_index"]),
            "frame": int(item["frame_index"]),
            "task": item["task"],
            "state": item["observation.state"].tolist(),
            "action": torch.atleast_1d(item["action"]).tolist(),
            "reward": float(item["next.reward"]),
            "success": bool(item["next.success"]),
        }
        for camera in dataset.meta.camera_keys:
            picture = item[camera]  # (3, H, W) in [0, 1]
            row[camera] = [round(float(v) * 255, 2) for v in picture.mean((1, 2))]
            row[f"{camera}.shape"] = list(picture.shape)
        rows.append(row)
    # windows in time, as a policy is trained on, and a batch through torch's own loader
    times = {"observation.images.front": [-0.1, 0.0], "action": [0.0, 0.1]}
    windows = LeRobotDataset("test/interop", root=folder, video_backend="pyav", delta_timestamps=times)
    window = windows[1]
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    summary = {
        "episodes": dataset.num_episodes,
        "frames": dataset.num_frames,
        "fps": dataset.fps,
        "window": list(window["observation.images.front"].shape),
        "window_greens": [round(float(v) * 255, 2) for v in window["observation.images.front"][:, 1].mean((1, 2))],
        "batch": list(batch["observation.state"].shape),
        "stats": {k: v["mean"].tolist() for k, v in dataset.meta.stats.items()},
        "rows": rows,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main(sys.argv[1])
