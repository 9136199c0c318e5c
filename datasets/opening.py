"""Opens a data set of any format we read, by what lies in its folder."""

from pathlib import Path

from .episodes import EpisodeDataset
from .formats.clips import METADATA, ClipsDataset
from .formats.lerobot import LeRobotDataset

ACCEPTED = (
    "a LeRobot v3.0 data set (meta/info.json, data/, videos/)",
    f"a folder of clips ({METADATA} and mp4 files)",
)


def open_dataset(path: str | Path) -> EpisodeDataset:
    """Open a data set; nothing of an episode is read yet.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If what is there is no format we read, or a broken one.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"there is no data set at {folder}")
    if (folder / "meta" / "info.json").is_file():
        return LeRobotDataset(folder)
    if (folder / METADATA).is_file():
        return ClipsDataset(folder)
    inside = sorted(entry.name for entry in folder.iterdir())[:5] if folder.is_dir() else ["a single file"]
    found = ", ".join(inside) or "nothing"
    raise ValueError(f"{folder} is no data set we read (found: {found}); accepted are: {'; '.join(ACCEPTED)}")
