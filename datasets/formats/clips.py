"""Reader of folders of video clips with a ``metadata.jsonl``: recorded behaviour without state or actions."""

import json
import re
import warnings
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from ...core.batch import End
from ..episodes import BadEpisodeError, Column, Episode, EpisodeSummary
from ..stages import STAGE, stage_column
from .video import VideoFrames, count_frames

METADATA = "metadata.jsonl"
CAMERA = "video"
"""Name of the only camera of a clip."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ClipsDataset:
    """Folder of clips, with one JSON object per clip in ``metadata.jsonl``.

    The keys ``file`` (relative to the folder) and ``instruction`` are required. Optional keys are ``success`` in [0, 1]
    or null, ``split`` (or ``suggested_split``), ``task`` (a name that paraphrases share), ``quality``, ``context``,
    ``stages`` (first and last frame of each stage, in order), ``frames``, ``fps`` and ``sha256``. Other keys are
    ignored. Missing ``frames`` and ``fps`` are taken from the file when the clip is read; a given ``sha256`` is used
    without hashing the file.

    A clip of N frames is an episode of N − 1 steps whose state and action have width 0 and whose last observation is
    real.

    Args:
        folder: Folder of the clips.

    Raises:
        FileNotFoundError: If there is no ``metadata.jsonl``.
        ValueError: If a line of it is no such object, or there is no line.
    """

    state_size: int = 0
    action_size: int = 0
    cameras: tuple[str, ...] = (CAMERA,)

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = str(folder)
        self._clips = _read_metadata(self.folder)
        names = dict.fromkeys(str(clip.get("task", clip["instruction"])) for clip in self._clips)
        self.tasks = {task: number for number, task in enumerate(names)}
        self.fps = next((float(clip["fps"]) for clip in self._clips if "fps" in clip), 30.0)
        listed = {clip["file"] for clip in self._clips}
        found = {p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*.mp4")}
        if found - listed:
            warnings.warn(
                f"{self.folder / METADATA} leaves out {len(found - listed)} of {len(found)} mp4 files, "
                f"such as {min(found - listed)}: they are not read",
                stacklevel=2,
            )

    def __len__(self) -> int:
        """Return the number of clips in the metadata."""
        return len(self._clips)

    def summary(self, place: int) -> EpisodeSummary:
        """Return what the metadata say; packets are counted where they give no length, which is 0 for a broken file."""
        clip = self._clips[place]
        try:
            frames = self._frames(place, clip)
        except BadEpisodeError:
            frames = 0
        return EpisodeSummary(
            index=range(len(self))[place],
            steps=max(frames - 1, 0),
            instruction=clip["instruction"],
            success=_success(clip),
            split=_split(clip),
            quality=clip.get("quality", ""),
            context=clip.get("context", ""),
        )

    def __getitem__(self, place: int) -> Episode:
        """Read the episode of a clip; its frames are decoded when they are read.

        Raises:
            BadEpisodeError: If the file is missing or no video (status ``"video"``), holds fewer than two frames
                (``"empty"``), or its stages overlap, are out of order or leave the clip (``"label"``).
        """
        clip, index = self._clips[place], range(len(self))[place]
        path = self.folder / clip["file"]
        if not path.is_file():
            raise BadEpisodeError(index, "video", f"video {path}: there is no such file")
        frames = self._frames(index, clip)
        if frames < 2:
            raise BadEpisodeError(index, "empty", f"video {path}: expected at least two frames, got {frames}")
        fps = float(clip["fps"]) if "fps" in clip else _rate(path, index)
        success = _success(clip)
        labels: dict[str, Column] = {}
        if "stages" in clip:
            try:
                labels[STAGE] = stage_column([(first, last) for first, last in clip["stages"]], frames)
            except ValueError as error:
                raise BadEpisodeError(index, "label", f"{METADATA}: {error}") from error
        return Episode(
            index=index,
            state=np.zeros((frames, 0), np.float32),
            actions=np.zeros((frames - 1, 0), np.float32),
            instruction=clip["instruction"],
            task=self.tasks[str(clip.get("task", clip["instruction"]))],
            fps=fps,
            end=End.SUCCESS if success == 1.0 else End.CUT,
            success=success,
            frames={
                CAMERA: VideoFrames(path, np.arange(frames), fps=fps, episode=index, content=clip.get("sha256")),
            },
            labels=labels,
            quality=clip.get("quality", ""),
            context=clip.get("context", ""),
            split=_split(clip),
        )

    def _frames(self, place: int, clip: dict[str, Any]) -> int:
        if "frames" in clip:
            return int(clip["frames"])
        path = self.folder / clip["file"]
        try:
            clip["frames"] = count_frames(path)
        except (av.FFmpegError, OSError) as error:
            raise BadEpisodeError(
                range(len(self))[place], "video", f"video {path}: cannot be read ({error})"
            ) from error
        return int(clip["frames"])


class ClipsFormat:
    """Format of folders of clips; see `guerdon.datasets.opening.Format`."""

    accepted: str = f"a folder of clips ({METADATA} and mp4 files)"

    def recognises(self, folder: Path) -> bool:
        """Recognise a folder of clips by its ``metadata.jsonl``."""
        return (folder / METADATA).is_file()

    def open(self, folder: Path) -> ClipsDataset:
        """Open a folder of clips."""
        return ClipsDataset(folder)

    def files(self, folder: Path) -> list[Path]:
        """List the metadata and the clips."""
        return [*folder.glob("*.jsonl"), *folder.rglob("*.mp4")]


def _read_metadata(folder: Path) -> list[dict[str, Any]]:
    path = folder / METADATA
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a folder of clips: it has no {METADATA}")
    clips: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            clip = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object, {error}") from error
        clips.append(_checked(clip, f"{path}, line {number}"))
    if not clips:
        raise ValueError(f"{path}: expected at least one clip, got none")
    return clips


def _checked(clip: Any, where: str) -> dict[str, Any]:
    """Check the object of a metadata line; null means left out."""
    if not isinstance(clip, dict):
        raise ValueError(f"{where}: expected a JSON object, got {clip!r}")
    entries: dict[str, Any] = {key: value for key, value in clip.items() if value is not None}
    for key in ("file", "instruction"):
        if not isinstance(entries.get(key), str):
            raise ValueError(f"{where}: expected {key!r} as text, got {entries.get(key)!r}")
    for key in ("split", "suggested_split", "quality", "context", "task"):
        if not isinstance(entries.get(key, ""), str):
            raise ValueError(f"{where}: expected {key!r} as text, got {entries[key]!r}")
    if not isinstance(entries.get("success", 0), int | float) or not 0 <= entries.get("success", 0) <= 1:
        raise ValueError(f"{where}: expected 'success' in [0, 1] or null, got {entries['success']!r}")
    if not isinstance(entries.get("fps", 1), int | float) or not entries.get("fps", 1) > 0:
        raise ValueError(f"{where}: expected 'fps' > 0, got {entries['fps']!r}")
    if not isinstance(entries.get("frames", 0), int) or entries.get("frames", 0) < 0:
        raise ValueError(f"{where}: expected 'frames' as a whole number, got {entries['frames']!r}")
    stages = entries.get("stages", [])
    if not isinstance(stages, list) or not all(_is_span(span) for span in cast(list[Any], stages)):
        raise ValueError(f"{where}: expected 'stages' as [[first frame, last frame], …], got {stages!r}")
    if "sha256" in entries and not _SHA256.fullmatch(str(entries["sha256"])):
        raise ValueError(f"{where}: expected 'sha256' as 64 hexadecimal digits, got {entries['sha256']!r}")
    return entries


def _is_span(span: Any) -> bool:
    return isinstance(span, list) and [type(end) for end in cast(list[Any], span)] == [int, int]


def _success(clip: dict[str, Any]) -> float | None:
    return float(clip["success"]) if "success" in clip else None


def _split(clip: dict[str, Any]) -> str:
    return clip.get("split", clip.get("suggested_split", ""))


def _rate(path: Path, index: int) -> float:
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate
    except (av.FFmpegError, OSError, IndexError) as error:
        raise BadEpisodeError(index, "video", f"video {path}: cannot be read ({error})") from error
    if not rate:
        raise BadEpisodeError(index, "video", f"video {path}: holds no frame rate; give 'fps' in {METADATA}")
    return float(rate)
