"""Files for the labels of a person: the episodes to label, the list of them, and the labels written back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import save_file

from ...core.batch import End, Labelled, Sampled, TrajectoryBatch
from ...core.edit import concat, truncate, without_outcome
from ...core.files import replacing
from .json_lines import read_json_lines, write_json_lines

QUESTIONS, LABELS, EPISODES = "to_label.jsonl", "labels.jsonl", "episodes"
"""Names of the list of episodes to label, of the file with the labels, and of the folder with the episodes."""

_SHOWN = 8  # frames of a camera in the picture


def stack_rows(rows: Sequence[TrajectoryBatch]) -> TrajectoryBatch:
    """Join rows of any length to one batch on the host, without their outcomes.

    Raises:
        ValueError: If there is no row.
    """
    return concat([truncate(without_outcome(row.to("cpu")), row.steps.cpu()) for row in rows])


def as_failures(batch: TrajectoryBatch) -> TrajectoryBatch:
    """Label every row as a failure: success 0 at every observation, the outcome known."""
    known = batch.observed
    return replace(
        without_outcome(batch),
        end=torch.full_like(batch.end, int(End.FAILURE)),
        terminated=torch.ones_like(batch.terminated),
        success=torch.zeros_like(batch.success),
        success_known=torch.ones_like(batch.success_known),
        labels={"success": Labelled(values=torch.zeros(known.shape, device=known.device), valid=known)},
    )


def save_episode(row: TrajectoryBatch, folder: Path, name: str) -> None:
    """Write an episode as ``name.safetensors``, and a picture ``name.png`` of its frames, or of its state over time.

    The picture does not show what the reward model predicts, so that it does not influence the label.

    Args:
        row: Episode, a batch of one row.
        folder: Folder to write to; it is made if it is not there.
        name: Name of the episode.

    Raises:
        OSError: If a file cannot be written.
    """
    row = stack_rows([row])
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"state": row.state, "actions": row.actions, "last_observed": row.last_observed}
    for kind in ("frames", "features"):
        for key, sampled in cast(Mapping[str, Sampled], getattr(row, kind)).items():
            tensors |= {f"{kind}.values.{key}": sampled.values, f"{kind}.step.{key}": sampled.step}
    metadata = {"instruction": row.instructions[0]}
    with replacing(folder / f"{name}.safetensors") as fresh:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, fresh, metadata=metadata)
    _picture(row, folder / f"{name}.png")


def load_episode(folder: Path, name: str) -> TrajectoryBatch:
    """Read an episode that `save_episode` wrote.

    Args:
        folder: Folder of the episodes.
        name: Name of the episode.

    Returns:
        A batch of one row.

    Raises:
        FileNotFoundError: If there is no such episode.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}: expected an episode that was written for labelling; remove its label, or restore it"
        )
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        instruction = file.metadata()["instruction"]

    def sampled(kind: str) -> dict[str, Sampled]:
        start = f"{kind}.values."
        names = [key.removeprefix(start) for key in tensors if key.startswith(start)]
        return {n: Sampled(values=tensors[start + n], step=tensors[f"{kind}.step.{n}"]) for n in names}

    steps = tensors["actions"].shape[1]
    return TrajectoryBatch(
        state=tensors["state"],
        actions=tensors["actions"],
        mask=torch.ones(1, steps, dtype=torch.bool),
        frames=sampled("frames"),
        features=sampled("features"),
        instructions=(instruction,),
        last_observed=tensors["last_observed"],
    )


def _picture(row: TrajectoryBatch, path: Path) -> None:
    """Draw frames of every camera, and the state over time; nothing where the episode has neither."""
    lines = int(row.state.shape[2] > 0)
    count = len(row.frames) + lines
    if not count:
        return
    figure = Figure(figsize=(1.5 * _SHOWN, 1.7 * count), layout="constrained")
    figure.suptitle(row.instructions[0])
    for place, (camera, sampled) in enumerate(row.frames.items()):
        shown = torch.linspace(0, int(sampled.mask.sum()) - 1, _SHOWN).round().long().unique()
        strip = torch.cat(list(sampled.values[0, shown]), 2).permute(1, 2, 0)
        axes = figure.add_subplot(count, 1, place + 1)
        axes.imshow(strip.numpy())
        axes.set_title(f"{camera}: observations {', '.join(str(int(s)) for s in sampled.step[0, shown])}", fontsize=8)
        axes.set_axis_off()
    if lines:
        axes = figure.add_subplot(count, 1, count)
        axes.plot(row.state[0].numpy())
        axes.set_xlabel("observation")
        axes.set_ylabel("state")
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=80)


def write_questions(path: Path, questions: Sequence[Mapping[str, Any]]) -> None:
    """Add episodes to the list of those to label; an episode that is listed already gets the new line.

    Args:
        path: JSON-lines file.
        questions: Lines, each with the name of its episode under ``"episode"``.

    Raises:
        ValueError: If the file holds anything but JSON objects.
    """
    listed = list(read_json_lines(path).values()) if path.is_file() else []
    kept = {str(line.get("episode")): line for line in [*listed, *questions]}
    write_json_lines(path, list(kept.values()))


def read_labels(path: str | Path) -> dict[str, int]:
    """Read labels, one ``{"episode": "000012-0-3", "success": 1}`` a line; the last one of an episode counts.

    Args:
        path: JSON-lines file.

    Returns:
        Name of the episode to its success, 0 or 1; empty where there is no file yet.

    Raises:
        ValueError: If a line is something else; the message names the file and the line.
    """
    place = Path(path)
    if not place.is_file():
        return {}
    labels: dict[str, int] = {}
    for number, line in read_json_lines(place).items():
        name, success = line.get("episode"), line.get("success")
        if not isinstance(name, str) or success not in (0, 1):
            raise ValueError(
                f'{place}, line {number}: expected {{"episode": "…", "success": 0 or 1}}, got {json.dumps(line)[:120]}'
            )
        labels[name] = int(success)
    return labels
