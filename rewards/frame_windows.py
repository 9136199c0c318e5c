"""Which frames of an episode a vision-language model reads, and how many of them in one pass."""

from collections.abc import Sequence

from ..backbones.model_inputs import ModelInputs
from ..core.interfaces import Component


class FrameWindows(Component):
    """Frames that a vision-language model reads, and the windows that a long episode is read in.

    A row with more than ``max_frames`` moments is read in windows. The first shows the first ``max_frames``. Each later
    one shows ``context_frames`` again, the row's first frame and the last ones before it, and behind them the next
    ``max_frames`` − ``context_frames``, which alone are evaluated. Every frame is evaluated once and never sees a later
    one. A row of F frames costs about F · max_frames / (max_frames − context_frames) frames.

    Args:
        frame_size: Shorter side of the frames, in pixels; None keeps the recorded size. The model's processor scales
            them again.
        frames_every: Stride over recorded frames when scoring, at least 1; the last frame is always evaluated.
        max_frames: Number of moments shown in one pass.
        context_frames: Number of these that are shown again in a later window; less than ``max_frames``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, frame_size: int | None = None, frames_every: int = 1, max_frames: int = 16, context_frames: int = 4
    ) -> None:
        super().__init__()
        if not 0 <= context_frames < max_frames:
            raise ValueError(
                f"max_frames {max_frames}, context_frames {context_frames}: expected more frames than context"
            )
        if frames_every < 1:
            raise ValueError(f"frames_every is {frames_every}: expected at least 1")
        self.frame_size, self.frames_every = frame_size, frames_every
        self.max_frames, self.context_frames = max_frames, context_frames

    def split(self, count: int) -> list[tuple[list[int], int]]:
        """Split a row of ``count`` moments into windows; see `windows`."""
        return windows(count, self.max_frames, self.context_frames)

    def inputs(self, cameras: Sequence[str]) -> ModelInputs:
        """Return the inputs of a model that reads these frames, and the instruction.

        Args:
            cameras: Names of the cameras to read.
        """
        return ModelInputs(
            cameras=tuple(cameras), frame_size=self.frame_size, frames_every=self.frames_every, instruction=True
        )


def windows(count: int, size: int, context: int) -> list[tuple[list[int], int]]:
    """Split a row of moments into windows that are read one by one.

    Args:
        count: Number of moments of the row.
        size: Number of moments shown in one window.
        context: Number of these that are shown again in a later window, less than ``size``.

    Returns:
        Of each window the moments it shows, in order, and how many at its end are new. Where a window begins depends
        on nothing behind it. Shown again are the first moment and the last ``context`` − 1.
    """
    found: list[tuple[list[int], int]] = []
    start = 0
    while start < count:
        room = size if start == 0 else size - context
        new = list(range(start, min(start + room, count)))
        again = [0, *range(start - context + 1, start)] if start and context else []
        found.append((again + new, len(new)))
        start += room
    return found


__all__ = ["FrameWindows", "windows"]
