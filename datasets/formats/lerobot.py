"""Reader of LeRobot v3.0 data sets: parquet rows by row group, video in one pass, each when it is asked for."""

import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ...core.batch import End
from ..episodes import BadEpisodeError, Column, Episode, EpisodeSummary, FrameSource
from .lerobot_columns import KINDS, REWARD, valid_name
from .lerobot_final import (
    CHECKED,
    FOLDER,
    ROWS,
    ChainedFrames,
    FinalObservation,
    FinalReader,
    OtherRowsError,
    checksum,
    finite,
    with_final,
    with_unknown,
)
from .lerobot_meta import (
    camera_names,
    inconsistencies,
    read_episodes,
    read_info,
    read_own,
    read_tasks,
    split_of,
    vector_key,
    video_of,
)
from .lerobot_rows import EpisodeRows, Table, numbers

_SIGNALS = ("next.success", "next.done", REWARD, "final")


@dataclass(frozen=True)
class Piece:
    """Rows ``first … end − 1`` of a recorded episode, in which the task stays the same."""

    row: int
    """Place of the episode in the table of episodes."""
    first: int
    """First row of the piece."""
    end: int
    """Row after the last one of the piece."""
    last: bool
    """Whether the episode ends with the piece; else the next row is the final observation of the piece."""
    task: int | None = None
    """Task of the piece where the episode was split, else None."""


class LeRobotDataset:
    """LeRobot v3.0 data set, written by guerdon or any other program.

    N recorded rows are N steps. Their last observation comes from the folder ``final``, where guerdon keeps it, and is
    a repeat otherwise. In data sets that guerdon wrote before, the column ``final`` marks the last row as the final
    observation, so that N rows are N − 1 steps.

    A final observation is used only with the rows that it was written with. Where another program has changed the rows,
    the last observation counts as not recorded, and a warning says so.

    An episode in which the task changes is split at the changes. Every piece but the last ends in ``CUT``, with a real
    last observation and unknown success. Episodes keep their recorded number, unless an episode of the data set is
    split: then all are numbered by place, because numbers must be unique.

    Success and end come from guerdon's columns in the table of episodes. Without them, a ``next.success`` that is True
    in any row, or a 1 in a ``next.reward`` of zeros and ones, is a success. A ``next.success`` that is never True is a
    success of 0. Otherwise success is unknown.

    Args:
        folder: Folder of the data set.
        state_key: Column of the state.
        action_key: Column of the action.

    Raises:
        FileNotFoundError: If the folder holds no LeRobot data set.
        ValueError: If its version is not v3.0, its tables cannot be read, or a named column is missing.
    """

    def __init__(self, folder: str | Path, *, state_key: str = "observation.state", action_key: str = "action") -> None:
        self.folder = Path(folder)
        self.name = str(folder)
        self.info = read_info(self.folder)
        features: dict[str, Any] = self.info["features"]
        self.fps = float(self.info["fps"])
        self._cameras = camera_names(features)
        self.cameras = tuple(self._cameras)
        self._state = vector_key(self.folder, features, state_key, "observation")
        self._action = vector_key(self.folder, features, action_key, "action")
        self.state_size = int(features[self._state]["shape"][0]) if self._state else 0
        self.action_size = int(features[self._action]["shape"][0]) if self._action else 0
        self._own = read_own(self.folder, self.info)
        self._episodes = read_episodes(self.folder, self._cameras)
        self.tasks = read_tasks(self.folder)
        wanted = [n for n in features if n in _SIGNALS or n.split(".")[0] in KINDS]
        wanted += [n for n in (self._state, self._action) if n]
        wanted += [n for n in CHECKED if self._own and n in features and n not in wanted]
        self._columns = [n for n in wanted if features[n]["dtype"] not in ("video", "image", "string")]
        self._rows = EpisodeRows([*self._columns, "timestamp", "episode_index", "task_index"])
        self._finals = FinalReader(self.folder, self._observed_columns(), tuple(self._cameras.values()), self.fps)
        self._pieces = self._split()
        self._renumber = len(self._pieces) > len(self._episodes)
        self._warn()

    def __len__(self) -> int:
        """Return the number of episodes, after splitting at changes of the task."""
        return len(self._pieces)

    def summary(self, place: int) -> EpisodeSummary:
        """Return what the table of episodes holds of an episode."""
        piece = self._pieces[place]
        row = self._episodes[piece.row]
        final = piece.last and self._observed(row)
        texts = row.get("tasks") or [""]
        return EpisodeSummary(
            index=self._number(place),
            steps=piece.end - piece.first - int(final),
            instruction=str(texts[0]) if piece.task is None else self.tasks.get(piece.task, ""),
            success=_stored_success(row) if piece.last else None,
            split=split_of(self.info, row),
            quality=row.get("quality") or "",
            context=row.get("context") or "",
        )

    def __getitem__(self, place: int) -> Episode:
        """Read the rows of an episode; its frames are decoded when they are read.

        Raises:
            BadEpisodeError: If its rows cannot be read or make no episode.
        """
        piece = self._pieces[place]
        row = self._episodes[piece.row]
        try:
            return self._assemble(self._number(place), piece, row, self._table(row))
        except BadEpisodeError as error:
            if error.index == self._number(place):
                raise
            raise BadEpisodeError(self._number(place), error.status, error.reason) from error

    def _observed_columns(self) -> list[str]:
        """Return the columns that a final observation may have, those that are left out of the rows included."""
        names = dict.fromkeys((*self._columns, *self._own.get("unknown", {})))
        return [*names, *(valid_name(name) for name in names if valid_name(name) not in names)]

    def _number(self, place: int) -> int:
        return (
            range(len(self))[place] if self._renumber else int(self._episodes[self._pieces[place].row]["episode_index"])
        )

    def _observed(self, row: dict[str, Any]) -> bool:
        """Tell whether the last row of an episode is a final observation, from the table of episodes where it can."""
        if "final" not in self._columns:
            return False
        if row.get("last_observed") is not None:
            return bool(row["last_observed"])
        try:
            return bool(numbers(self._table(row), "final", 0)[-1:].any())
        except BadEpisodeError:
            return False

    def _table(self, row: dict[str, Any]) -> Table:
        path = self.info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        return self._rows.read(self.folder / path, int(row["episode_index"]), int(row["length"]))

    def _split(self) -> list[Piece]:
        pieces: list[Piece] = []
        for place, row in enumerate(self._episodes):
            bounds, task = [0, int(row["length"])], None
            if len(row.get("tasks") or ()) > 1:
                try:
                    task = numbers(self._table(row), "task_index", int(row["episode_index"]))
                    bounds[1:1] = (np.flatnonzero(np.diff(task)) + 1).tolist()
                except BadEpisodeError:
                    pass  # unreadable: one piece, which raises the error when it is read
            for a, b in pairwise(bounds):
                pieces.append(Piece(place, a, b, b == bounds[-1], None if task is None else int(task[a])))
        return pieces

    def _warn(self) -> None:
        wrong = inconsistencies(self.info, self._episodes, self.tasks)
        images = [name for name, feature in self.info["features"].items() if feature["dtype"] == "image"]
        if images:
            wrong.append(f"{', '.join(images)}: pictures inside parquet are not read, only video is")
        if self._own.get("final_observations") and not self._finals.exists:
            wrong.append(f"there is no {ROWS}, so that the last observation of an episode counts as not recorded")
        if wrong:
            warnings.warn(f"{self.folder / 'meta' / 'info.json'}: {'; '.join(wrong)}", stacklevel=3)

    def _assemble(self, index: int, piece: Piece, row: dict[str, Any], table: Table) -> Episode:
        columns = {name: numbers(table, name, index) for name in self._rows.columns}
        flagged = self._flagged(index, columns, int(row["length"])) and piece.last
        steps = piece.end - piece.first - int(flagged)
        seen = piece.end - piece.first + int(not piece.last)  # observations that are rows
        cut = {name: values[piece.first : piece.first + seen] for name, values in columns.items()}
        seconds = cut["timestamp"]
        final, changed = self._final(row, columns, steps) if piece.last and not flagged else (None, "")
        cut = with_final(with_unknown(cut, self._own), final)
        seen += int(final is not None)
        state = self._vectors(index, cut, self._state, self.state_size, seen)
        if seen == steps:
            state = np.concatenate([state, state[-1:]])
        task = int(cut["task_index"][0])
        if task not in self.tasks:
            raise BadEpisodeError(
                index, "task", f"task_index {task} is not in meta/tasks.parquet, which has {sorted(self.tasks)[:10]}"
            )
        success, end = self._outcome(index, row, columns) if piece.last else (None, End.CUT)
        kinds = self._labelled(cut, steps)
        episode = Episode(
            index=index,
            state=state,
            actions=self._vectors(index, cut, self._action, self.action_size, seen)[:steps],
            instruction=self.tasks[task],
            task=task if not self._own or row.get("task") is None else int(row["task"]),
            fps=self.fps,
            end=end,
            last_observed=seen > steps,
            success=success,
            frames=self._frames(row, piece, seconds, final),
            labels=kinds["label"],
            tracks=kinds["track"],
            recorded=kinds["recorded"],
            group=row.get("group") if self._own else None,  # joined sets may share numbers
            source=int(row.get("source") or 0),
            quality=row.get("quality") or "",
            context=row.get("context") or "",
            split=split_of(self.info, row),
        )
        if changed:
            warnings.warn(
                f"{self.folder}: {changed}, so another program has changed the data set; the last observation of such "
                "an episode counts as not recorded",
                stacklevel=2,
            )
        return episode

    def _frames(
        self, row: dict[str, Any], piece: Piece, seconds: np.ndarray, final: FinalObservation | None
    ) -> dict[str, FrameSource]:
        """Return the frames of a piece at the rows of the given times, and at the final observation."""
        frames: dict[str, FrameSource] = {}
        for camera, key in self._cameras.items():
            frames[camera] = video_of(self.folder, self.info, row, camera, key, seconds, piece.first)
            if final is not None and key in final.frames:
                frames[camera] = ChainedFrames(frames[camera], final.frames[key])
        return frames

    def _final(
        self, row: dict[str, Any], columns: dict[str, np.ndarray], steps: int
    ) -> tuple[FinalObservation | None, str]:
        """Return the final observation of an episode, or None, and why it cannot be used if there is one."""
        if not self._own or not self._finals.exists:
            return None, ""
        number = int(row["episode_index"])
        try:
            final = self._finals.read(number, checksum(columns), steps)
        except OtherRowsError as error:
            return None, str(error)
        if final is not None and self._state and self._state not in final.values:
            return None, f"the final observation of episode {number} has no {self._state}"
        return final, ""

    def _flagged(self, index: int, columns: dict[str, np.ndarray], rows: int) -> bool:
        """Tell whether the last row is a final observation, as guerdon wrote it in format 1."""
        flags = columns.get("final", np.zeros(rows, bool)).astype(bool)
        if flags[:-1].any():
            raise BadEpisodeError(index, "shape", f"row {int(flags.argmax())} of {rows} is flagged final")
        return bool(flags[-1:].any())

    def _vectors(
        self, index: int, columns: dict[str, np.ndarray], key: str | None, width: int, rows: int
    ) -> np.ndarray:
        if key is None:
            return np.zeros((rows, 0), np.float32)
        values = columns[key]
        values = values[:, None] if values.ndim == 1 else values
        if values.dtype.kind == "b":
            raise BadEpisodeError(index, "dtype", f"column {key!r}: expected numbers, got bools")
        if values.shape[1] != width:
            raise BadEpisodeError(
                index,
                "shape",
                f"column {key!r}: expected {width} numbers per row as in info.json, got {values.shape[1]}",
            )
        return values.astype(np.float32)

    def _outcome(self, index: int, row: dict[str, Any], columns: dict[str, np.ndarray]) -> tuple[float | None, End]:
        """Return success and end, from guerdon's columns or by LeRobot's conventions."""
        if row.get("end") is not None:
            try:
                return _stored_success(row), End[row["end"]]
            except KeyError as error:
                names = ", ".join(end.name for end in End)
                raise BadEpisodeError(index, "label", f"end is {row['end']!r}: expected one of {names}") from error
        done = bool(columns["next.done"][-1]) if "next.done" in columns else False
        success = _stored_success(row)
        if success is None and "next.success" in columns:
            success = float(columns["next.success"].astype(bool).any())
        elif (
            success is None
            and REWARD in columns
            and columns.get(valid_name(REWARD), np.ones(1, bool)).all()
            and np.isin(columns[REWARD], (0, 1)).all()
            and (columns[REWARD] == 1).any()
        ):
            success = 1.0  # zeros alone mean nothing: recorders without a reward write them
        if success == 1.0:
            return success, End.SUCCESS
        return success, End.TIME_LIMIT if done else End.CUT

    def _labelled(self, columns: dict[str, np.ndarray], steps: int) -> dict[str, dict[str, Column]]:
        """Return the columns that carry their own validity, by kind and name."""
        own: dict[str, Any] = self._own.get("columns", {})
        found: dict[str, dict[str, Column]] = {kind: {} for kind in KINDS}
        for stored, values in columns.items():
            key = "recorded.reward" if stored == REWARD else stored
            kind, _, name = key.partition(".")
            if kind not in KINDS or (
                name.endswith(".valid") and key.removesuffix(".valid") in {*columns, "recorded.reward"}
            ):
                continue
            layout = own.get(key, {"per": "step" if kind == "recorded" else "observation"})
            values = values.reshape(len(values), *layout["shape"]) if "shape" in layout else values
            valid = finite(values)
            if f"{key}.valid" in columns:
                valid = columns[f"{key}.valid"].astype(bool)
                if values.dtype.kind == "f":  # 0 on disk
                    values = np.where(valid.reshape(-1, *(1,) * (values.ndim - 1)), values, values.dtype.type(np.nan))
            length = steps if layout["per"] == "step" else steps + 1
            if len(values) < length:  # the last observation was not recorded, so its value is unknown
                blank = np.full_like(values[:1], np.nan if values.dtype.kind == "f" else 0)
                values, valid = np.concatenate([values, blank]), np.concatenate([valid, [False]])
            found[kind][name] = Column(values=values[:length], valid=valid[:length])
        return found


class LeRobotFormat:
    """Format of LeRobot data sets; see `guerdon.datasets.opening.Format`."""

    accepted: str = "a LeRobot v3.0 data set (meta/info.json, data/, videos/)"

    def recognises(self, folder: Path) -> bool:
        """Recognise a LeRobot data set of any version by its ``meta/info.json``."""
        return (folder / "meta" / "info.json").is_file()

    def open(self, folder: Path) -> LeRobotDataset:
        """Open a LeRobot data set of version v3.0."""
        return LeRobotDataset(folder)

    def files(self, folder: Path) -> list[Path]:
        """List the tables, rows and videos."""
        return [file for part in ("meta", "data", "videos", FOLDER) for file in (folder / part).rglob("*")]


def _stored_success(row: dict[str, Any]) -> float | None:
    stored = row.get("success")
    return None if stored is None else float(stored)
