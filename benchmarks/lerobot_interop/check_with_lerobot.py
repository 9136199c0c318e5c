"""Read a data set of ours with ``lerobot`` as a trainer does and print what it sees as JSON.

Usage: python check_with_lerobot.py FOLDER EXPECTED.npz EDITED; run by a Python that has lerobot 0.6 with its extra
``dataset``.

EXPECTED.npz holds ``state/E``, ``action/E`` and ``frames/E/CAMERA`` of every episode E as guerdon reads them, steps
only. Reports the warnings of opening, the largest differences, what windows of ten actions hold, whether batches and
statistics are finite, and which tools of ``lerobot-edit-dataset`` run; what they write is left in the folder EDITED.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.dataset_tools import (  # pyright: ignore[reportMissingImports]
    delete_episodes,
    merge_datasets,
    remove_feature,
    split_dataset,
)
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]

WINDOW = 10


class Records(logging.Handler):
    """Collects what is logged as a warning or worse, and what ``warnings`` says."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the last line of a record."""
        text = record.getMessage().splitlines()[-1]
        if "torchcodec" not in text:  # a library that this machine lacks, whatever the data set
            self.lines.append(f"{record.levelname}: {text}")


def opened(folder: Path, **options: Any) -> Any:
    return LeRobotDataset("test/check", root=folder, video_backend="pyav", **options)


def compare(dataset: Any, expected: Any) -> dict[str, Any]:
    """Largest differences to what guerdon reads; a row too many or too few is an error."""
    found: dict[str, Any] = {"rows": len(dataset), "state": 0.0, "action": 0.0, "pixel": 0.0, "mean pixel": 0.0}
    place = 0
    pixels: list[float] = []
    for episode in range(dataset.num_episodes):
        for step in range(len(expected[f"action/{episode}"])):
            item = dataset[place]
            place += 1
            assert (int(item["episode_index"]), int(item["frame_index"])) == (episode, step)
            for ours, theirs in (("state", "observation.state"), ("action", "action")):
                gap = np.abs(np.atleast_1d(item[theirs].numpy()) - expected[f"{ours}/{episode}"][step]).max()
                found[ours] = max(found[ours], float(gap))
            for camera in dataset.meta.camera_keys:
                picture = item[camera].numpy() * 255
                name = camera.removeprefix("observation.images.")
                gap = np.abs(picture - expected[f"frames/{episode}/{name}"][step])
                found["pixel"] = max(found["pixel"], float(gap.max()))
                pixels.append(float(gap.mean()))
    found["mean pixel"] = float(np.mean(pixels)) if pixels else 0.0
    assert place == len(dataset), f"expected {place} rows, lerobot sees {len(dataset)}"
    return found


def windows(folder: Path, fps: float, expected: Any) -> dict[str, int]:
    """Count the real actions in the windows that start at each row; a repeated last action is one too many."""
    times = {"action": [i / fps for i in range(WINDOW)], "observation.state": [-1 / fps, 0.0]}
    dataset = opened(folder, delta_timestamps=times)
    wrong = fake = place = 0
    for episode in range(dataset.num_episodes):
        actions = expected[f"action/{episode}"]
        for step in range(len(actions)):
            item = dataset[place]
            place += 1
            real = (~item["action_is_pad"]).numpy()
            want = actions[step : step + WINDOW]
            fake += int(real.sum()) - len(want)
            got = item["action"].numpy().reshape(WINDOW, -1)[: len(want)]
            wrong += int(not np.array_equal(got, want))
    return {"windows": place, "wrong windows": wrong, "actions beyond the last step": fake}


def batches(dataset: Any) -> dict[str, Any]:
    """Read everything once through torch's loader with two workers."""
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, num_workers=2)
    rows, bad = 0, set()
    for batch in loader:
        rows += len(batch["index"])
        for name, values in batch.items():
            if isinstance(values, torch.Tensor) and values.is_floating_point() and not values.isfinite().all():
                bad.add(name)
    return {"rows in batches": rows, "not finite": sorted(bad)}


def statistics(dataset: Any) -> dict[str, Any]:
    """Check that every feature has finite statistics, and that states and actions are normalised with them."""
    missing = sorted(set(dataset.meta.features) - set(dataset.meta.stats))
    bad = [
        f"{name}/{key}"
        for name, stats in dataset.meta.stats.items()
        for key, value in stats.items()
        if not np.isfinite(value).all()
    ]
    found: dict[str, Any] = {"without statistics": missing, "statistics not finite": bad}
    for name in ("observation.state", "action"):
        values = np.stack([np.atleast_1d(row) for row in dataset.hf_dataset.with_format("numpy")[name]])
        stats = dataset.meta.stats[name]
        moving = stats["std"] > 1e-6
        normal = ((values - stats["mean"]) / np.maximum(stats["std"], 1e-6))[:, moving]
        found[f"{name} normalised"] = [float(np.abs(normal.mean(0)).max()), float(np.abs(normal.std(0) - 1).max())]
    return found


def edit(folder: Path, out: Path) -> dict[str, str]:
    """Run the tools of ``lerobot-edit-dataset``; 'ok' or the error of each."""
    feature = next(n for n in opened(folder).meta.features if n.startswith(("label.", "track.")))
    calls: dict[str, Callable[[], Any]] = {
        "delete": lambda: delete_episodes(opened(folder), [1], output_dir=out / "delete", repo_id="test/a"),
        "merge": lambda: merge_datasets([opened(folder)] * 2, output_repo_id="test/b", output_dir=out / "merge"),
        "remove": lambda: remove_feature(
            opened(folder), feature_names=feature, output_dir=out / "remove", repo_id="test/c"
        ),
        "split": lambda: split_dataset(opened(folder), {"train": 0.5, "val": 0.5}, output_dir=out / "split"),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "ok"
        except Exception as error:  # whatever a tool raises is what a user would see
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
    return found


def main(folder: Path, expected: Path, edited: Path) -> None:
    records = Records()
    logging.getLogger().addHandler(records)
    logging.captureWarnings(True)
    warnings.simplefilter("always")
    dataset = opened(folder)
    values = np.load(expected)
    found: dict[str, Any] = {"opening": list(records.lines)}
    found |= compare(dataset, values)
    found |= windows(folder, dataset.fps, values)
    found |= batches(dataset)
    found |= statistics(dataset)
    found["warnings"] = sorted(set(records.lines))
    found["tools"] = edit(folder, edited)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
