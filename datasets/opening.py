"""Opens a data set of any format that is read, recognised by what lies in its folder."""

from pathlib import Path
from typing import Protocol

from .episodes import EpisodeDataset
from .formats.clips import ClipsFormat
from .formats.lerobot import LeRobotFormat


class Format(Protocol):
    """Format of data sets: how a folder of it is recognised, opened and listed.

    A new format is one file in ``datasets/formats/`` and one entry in `FORMATS`.
    """

    accepted: str
    """Content of a folder of this format in words, for error messages."""

    def recognises(self, folder: Path) -> bool:
        """Tell whether a folder holds this format, by the names of its files."""
        ...

    def open(self, folder: Path) -> EpisodeDataset:
        """Open a folder of this format.

        Raises:
            ValueError: If the data set is broken or of a version that is not read.
        """
        ...

    def files(self, folder: Path) -> list[Path]:
        """List the files of a recording, without others in its folder (scores, a feature cache)."""
        ...


FORMATS: tuple[Format, ...] = (LeRobotFormat(), ClipsFormat())
"""Every format that is read; the first that recognises a folder opens it."""


def open_dataset(path: str | Path) -> EpisodeDataset:
    """Open a data set; nothing of an episode is read yet.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the folder holds no format that is read, or a broken data set.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"there is no data set at {folder}")
    for known in FORMATS:
        if known.recognises(folder):
            return known.open(folder)
    inside = sorted(entry.name for entry in folder.iterdir())[:5] if folder.is_dir() else ["a single file"]
    found = ", ".join(inside) or "nothing"
    accepted = "; ".join(known.accepted for known in FORMATS)
    raise ValueError(f"{folder} is no data set we read (found: {found}); accepted are: {accepted}")


def recorded_files(path: str | Path) -> list[Path]:
    """List the files of a recording in a fixed order; of a folder in no known format, its videos and JSON lines."""
    folder = Path(path)
    known = next((known for known in FORMATS if known.recognises(folder)), None)
    files = [*folder.glob("*.jsonl"), *folder.rglob("*.mp4")] if known is None else known.files(folder)
    return sorted(file for file in files if file.is_file())
