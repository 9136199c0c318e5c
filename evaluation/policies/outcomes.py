"""Outcomes of evaluated episodes, start by start, and the folder that an interrupted evaluation goes on from."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.files import read_json, replacing, write_json
from ...policies.rollouts.pieces import Piece

SETTINGS = "settings.json"
OUTCOMES = "outcomes"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one start."""

    policy: str
    """``"model"``, or ``"against"`` for the policy it is compared with."""
    task: str
    """Name of the task."""
    place: int
    """Place of the start in the order of evaluation, from 0."""
    context: str
    """Name of the initial state, ``<task>#<task seed>.<index>``, as collected episodes carry it."""
    index: int
    """Number of the initial state; see `guerdon.envs.task.Context`."""
    split: str
    """Split of the initial state."""
    task_seed: int
    """Seed that fixes the initial states, together with the task's name."""
    seed: int
    """Random seed of the policy's noise."""
    success: bool
    """Whether the task was solved at any step; the first success ends an episode."""
    steps: int
    """Number of control steps."""
    reward: float
    """Sum of the environment's own rewards, not discounted."""
    end: str
    """How the episode ended: success, failure or time_limit."""


SCHEMA = pa.schema(
    [
        ("policy", pa.string()),
        ("task", pa.string()),
        ("place", pa.int64()),
        ("context", pa.string()),
        ("index", pa.int64()),
        ("split", pa.string()),
        ("task_seed", pa.int64()),
        ("seed", pa.int64()),
        ("success", pa.bool_()),
        ("steps", pa.int64()),
        ("reward", pa.float64()),
        ("end", pa.string()),
    ]
)
"""Columns of a part: those of `Outcome`."""


def outcome_of(piece: Piece, policy: str, task: str, place: int, seeds: tuple[int, int]) -> Outcome:
    """Make the outcome of a whole episode.

    Args:
        piece: The episode.
        policy: Role of the policy that acted, see `Outcome.policy`.
        task: Name of the task as it was given.
        place: Place of the start in the order of evaluation.
        seeds: Seed of the task, and of the policy's noise.
    """
    context = piece.context
    return Outcome(
        policy=policy,
        task=task,
        place=place,
        context=f"{context.task}#{seeds[0]}.{context.index}",
        index=context.index,
        split=context.split,
        task_seed=seeds[0],
        seed=seeds[1],
        success=any(piece.success),
        steps=len(piece.actions),
        reward=math.fsum(float(reward) for reward in piece.reward),
        end=piece.end.name.lower(),
    )


def slug(task: str) -> str:
    """Turn the name of a task into a name of a file."""
    return re.sub(r"[^\w.-]+", "_", task)


class OutcomeFolder:
    """Folder in which outcomes are kept in parts, one file per part, each written whole or not at all.

    Args:
        folder: Folder; new, empty, or of an evaluation with the same identity.
        identity: JSON-able values that the outcomes depend on: ``"setting"``, ``"versions"``, ``"device"``, ``"model"``
            and, where another policy is compared, ``"against"``.
        machine: Description of the machine. A folder that was begun on another one gives a warning.

    Raises:
        ValueError: If the folder holds outcomes of another policy, setting or version, or something else.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], machine: str = "") -> None:
        self.folder = folder
        settings = folder / SETTINGS
        known = self._known(settings)
        for name, value in identity.items():
            if known.get(name) is not None and value is not None:
                self._require_same(name, known[name], value)
        kept = dict(known)
        for name, value in identity.items():
            if isinstance(value, Mapping):
                kept[name] = {**known.get(name, {}), **value}
            elif value is not None:
                kept[name] = value
        begun = str(known.get("machine", machine))
        if machine and begun != machine:
            warnings.warn(
                f"{folder} was begun on another machine ({begun} there, {machine} here): last bits may differ, and "
                "contacts magnify them; play all starts on one machine for outcomes that can be repeated",
                stacklevel=3,
            )
        if machine:
            kept["machine"] = begun
        if kept != known:
            write_json(settings, kept | {"format": FORMAT})
        # only now: a folder that holds anything but settings would be taken for something else
        (folder / OUTCOMES).mkdir(parents=True, exist_ok=True)

    def _known(self, settings: Path) -> dict[str, Any]:
        if settings.is_file():
            return read_json(settings, "the settings of an evaluation")
        if self.folder.exists() and (not self.folder.is_dir() or any(map(_of_others, self.folder.iterdir()))):
            raise ValueError(f"{self.folder} holds something else than an evaluation: name a new or empty folder")
        return {}

    def _require_same(self, name: str, known: Any, value: Any) -> None:
        if known == value:
            return
        what = name
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            entries: Mapping[str, Any] = {**known, **value}
            for entry in entries:
                # further tasks may bring further packages
                if entry in known and entry in value and known[entry] != value[entry]:
                    what, known, value = f"{name}, {entry}", known[entry], value[entry]
                    break
            else:
                return
        raise ValueError(
            f"{self.folder} holds outcomes of another evaluation ({what}: {known} there, {value} now): choose another "
            "folder, or give the same arguments"
        )

    def _part(self, policy: str, task: str, number: int) -> Path:
        return self.folder / OUTCOMES / f"{slug(task)}.{policy}.{number:05d}.parquet"

    def read(self, policy: str, task: str, number: int, count: int) -> list[Outcome] | None:
        """Return the first outcomes of a part, or None where fewer are kept.

        Args:
            policy: Role of the policy that acted, see `Outcome.policy`.
            task: Name of the task.
            number: Number of the part.
            count: Number of outcomes.
        """
        path = self._part(policy, task, number)
        if not path.is_file():
            return None
        rows = pq.read_table(path).to_pylist()[:count]
        if len(rows) < count or any(row["task"] != task for row in rows):
            return None
        return [Outcome(**row) for row in rows]

    def write(self, policy: str, task: str, number: int, outcomes: Sequence[Outcome]) -> None:
        """Write a part, whole or not at all; see `read`."""
        with replacing(self._part(policy, task, number)) as fresh:
            pq.write_table(pa.Table.from_pylist([asdict(outcome) for outcome in outcomes], schema=SCHEMA), fresh)


def _of_others(path: Path) -> bool:
    """Tell whether a path is none that an evaluation leaves which was killed while it began."""
    begun = path.name == OUTCOMES and path.is_dir() and not any(path.iterdir())
    return not begun and not (path.name.startswith(".settings.") and path.name.endswith(".part.json"))


__all__ = ["OUTCOMES", "SETTINGS", "Outcome", "OutcomeFolder", "outcome_of", "slug"]
