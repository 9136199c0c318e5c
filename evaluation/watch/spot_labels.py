"""Episodes a person is asked about: what is written for them, and the labels they write back."""

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

QUESTIONS, LABELS, EPISODES = "to_label.jsonl", "labels.jsonl", "episodes"
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
    """Write one row as ``name.safetensors``, and ``name.png`` to look at: its frames, or its state over time.

    The picture says nothing of what the reward thinks, so that whoever labels it is not told the answer.
    """
    row = stack_rows([row])
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"state": row.state, "actions": row.actions, "last_observed": row.last_observed}
    for kind in ("frames", "features"):
        for key, sampled in cast(Mapping[str, Sampled], getattr(row, kind)).items():
            tensors |= {f"{kind}.values.{key}": sampled.values, f"{kind}.step.{key}": sampled.step}
    said = {"instruction": row.instructions[0]}
    with replacing(folder / f"{name}.safetensors") as fresh:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, fresh, metadata=said)
    _picture(row, folder / f"{name}.png")


def load_episode(folder: Path, name: str) -> TrajectoryBatch:
    """Read what `save_episode` wrote, as a batch of one row.

    Raises:
        FileNotFoundError: If there is no such episode.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
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
    """Add episodes to the list a person works through; one asked about again replaces its line.

    Raises:
        ValueError: If the file holds something else.
    """
    lines = [*read_lines(path), *questions] if path.is_file() else list(questions)
    kept = {str(line.get("episode")): line for line in lines}
    write_lines(path, list(kept.values()))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON-lines file; a last line that is still being written is left out.

    Raises:
        ValueError: If a line is no JSON object; it is named.
    """
    text = path.read_text()
    found: list[dict[str, Any]] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r} ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r}")
        found.append(cast(dict[str, Any], value))
    return found


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replace a JSON-lines file in one go."""
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(text)


def read_labels(path: str | Path) -> dict[str, int]:
    """What a person said of episodes: ``{"episode": "000012-0-3", "success": 1}`` a line; the last one counts.

    Returns:
        Episode → 0 or 1; empty where there is no file yet.

    Raises:
        ValueError: If a line is something else; the file and the line are named.
    """
    place = Path(path)
    if not place.is_file():
        return {}
    labels: dict[str, int] = {}
    numbered = [n for n, line in enumerate(place.read_text().split("\n"), 1) if line.strip()]
    for number, line in zip(numbered, read_lines(place), strict=False):
        name, success = line.get("episode"), line.get("success")
        if not isinstance(name, str) or success not in (0, 1):
            raise ValueError(
                f'{place}, line {number}: expected {{"episode": "…", "success": 0 or 1}}, got {json.dumps(line)[:120]}'
            )
        labels[name] = int(success)
    return labels
