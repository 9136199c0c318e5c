"""Filters of recorded episodes by success, quality and source."""

from collections import Counter
from collections.abc import Sequence

from .episodes import Episode


class EpisodeFilter:
    """Filter of episodes; an episode has to meet every condition that is given.

    What is not recorded meets no condition: an episode of unknown success is neither a success nor a failure.

    Args:
        success: True keeps known successes (1), False known failures (0). Neither keeps partial success. None keeps
            all.
        quality: Recorded quality of the behaviour, such as ``expert``, or several; None keeps all.
        source: Number of the recorded source, or several; None keeps all.

    Raises:
        ValueError: If a list is empty, or there is no condition.
    """

    def __init__(
        self,
        success: bool | None = None,
        quality: str | Sequence[str] | None = None,
        source: int | Sequence[int] | None = None,
    ) -> None:
        self.success = success
        self.quality = None if quality is None else (quality,) if isinstance(quality, str) else tuple(quality)
        self.source = None if source is None else (source,) if isinstance(source, int) else tuple(source)
        if self.quality == () or self.source == ():
            raise ValueError("quality and source: expected at least one each, or None to keep all")
        if success is None and self.quality is None and self.source is None:
            raise ValueError("an EpisodeFilter needs a condition: give success, quality or source, or leave it out")

    def conditions(self, episode: Episode) -> dict[str, bool]:
        """Return whether an episode meets each condition, by its text."""
        met: dict[str, bool] = {}
        if self.success is not None:
            known = episode.success
            name = "success" if self.success else "failure"
            met[name] = known is not None and (known >= 1 if self.success else known <= 0)
        if self.quality is not None:
            met[f"quality {' or '.join(self.quality)}"] = episode.quality in self.quality
        if self.source is not None:
            met[f"source {' or '.join(map(str, self.source))}"] = episode.source in self.source
        return met

    def __call__(self, episode: Episode) -> bool:
        """Tell whether an episode is kept."""
        return all(self.conditions(episode).values())


class FilterCount:
    """Number of episodes that a filter kept, and that met each of its conditions.

    Args:
        keep: Filter; None keeps everything.
    """

    def __init__(self, keep: EpisodeFilter | None) -> None:
        self.keep, self.kept, self.seen = keep, 0, 0
        self.met: Counter[str] = Counter()
        self.recorded: dict[str, Counter[str]] = {"quality": Counter(), "source": Counter(), "success": Counter()}

    def add(self, episode: Episode) -> bool:
        """Count an episode, and tell whether it is kept."""
        self.seen += 1
        if self.keep is None:
            self.kept += 1
            return True
        met = self.keep.conditions(episode)
        self.met.update({text: int(m) for text, m in met.items()})
        success = "unknown" if episode.success is None else f"{episode.success:g}"
        for name, value in (("quality", episode.quality), ("source", episode.source), ("success", success)):
            self.recorded[name][str(value) or "unknown"] += 1
        self.kept += all(met.values())
        return all(met.values())

    def describe(self) -> str:
        """Describe how many episodes met each condition, and what is recorded in its place."""
        parts: list[str] = []
        for text, count in self.met.items():
            name = text.partition(" ")[0]
            recorded = self.recorded["success" if name == "failure" else name].most_common(6)
            parts.append(f"{text}: {count} (recorded: {', '.join(f'{value} {n}' for value, n in recorded)})")
        return "; ".join(parts)


__all__ = ["EpisodeFilter", "FilterCount"]
