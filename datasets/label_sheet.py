"""Picture of training samples to check: their frames, their instructions and their targets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..core.batch import Labelled, TrajectoryBatch
from ..core.files import replacing
from .labels import KINDS

_SHOWN, _TRACES = 8, 6  # frames of a strip; numbers of a state


def draw_sheet(samples: Sequence[TrajectoryBatch], path: str | Path, columns: int = 2) -> None:
    """Draw samples as a PNG with a cell each: a film strip, or the state where there is none, above the targets.

    The title names episode, window, kind of negative and instruction. Targets are lines over the observations of the
    row, with gaps where they are unknown.

    Args:
        samples: Samples of one row each, as a `LabelFactory` makes them.
        path: PNG file; it is written whole or not at all.
        columns: Number of cells in a line.

    Raises:
        ValueError: If there is no sample.
        OSError: If the file cannot be written.
    """
    if not samples:
        raise ValueError("expected at least one sample to draw, got none")
    lines = -(-len(samples) // columns)
    figure = Figure(figsize=(7.5 * columns, 2.5 * lines), layout="constrained")
    cells = figure.subfigures(lines, columns, squeeze=False)
    for cell, sample in zip(cells.flat, samples, strict=False):
        above, below = cell.subplots(2, 1, height_ratios=(1, 1))
        above.set_title(_title(sample), fontsize=9, loc="left")
        _show(above, sample)
        _targets(below, sample)
    with replacing(Path(path)) as fresh:
        figure.savefig(fresh, dpi=90, format="png")


def describe(sample: TrajectoryBatch) -> str:
    """Name the kind of negative of a row; ``"original"`` where it is none."""
    named = sample.labels.get("negative")
    return KINDS[int(named.values[0, 0])] if named is not None else KINDS[0]


def _title(sample: TrajectoryBatch) -> str:
    first, steps, length = int(sample.offset[0]), int(sample.steps[0]), int(sample.length[0])
    text = sample.instructions[0]
    text = text if len(text) <= 60 else f"{text[:59]}…"
    return (
        f"episode {int(sample.episode[0])}, {steps} steps from {first} of {length}  ·  {describe(sample)}  ·  “{text}”"
    )


def _show(axes: Axes, sample: TrajectoryBatch) -> None:
    """Draw a strip of the first camera's frames with their observations, or the first numbers of the state."""
    axes.set_xticks([])
    axes.set_yticks([])
    shown = next((s for s in sample.frames.values() if bool(s.mask[0].any())), None)
    if shown is not None:
        places = np.flatnonzero(shown.mask[0].numpy())
        places = places[np.unique(np.linspace(0, len(places) - 1, min(_SHOWN, len(places))).round().astype(int))]
        frames = shown.values[0][places].numpy().transpose(0, 2, 3, 1)
        axes.imshow(np.concatenate(list(frames), axis=1), aspect="auto")
        width = frames.shape[2]
        for i, place in enumerate(places):
            axes.text(i * width + 2, 2, f"{int(shown.step[0, place])}", fontsize=7, va="top", color="w",
                      bbox={"facecolor": "k", "alpha": 0.5, "pad": 1, "linewidth": 0})  # fmt: skip
        return
    made = int(sample.observed[0].sum())
    state = sample.state[0, :made, :_TRACES].numpy()
    span = np.ptp(state, axis=0)
    axes.plot((state - state.min(0, initial=np.inf)) / np.where(span > 0, span, 1), linewidth=0.8)
    axes.set_xlim(0, max(sample.mask.shape[1], 1))


def _targets(axes: Axes, sample: TrajectoryBatch) -> None:
    for name, colour in (("progress", "tab:blue"), ("success", "tab:orange")):
        label: Labelled | None = sample.labels.get(name)
        known = None if label is None else label.valid[0].numpy()
        if label is None or known is None or not known.any():
            axes.plot([], [], " ", label=f"{name} unknown")
        else:
            axes.plot(np.where(known, label.values[0].numpy(), np.nan), ".-", color=colour, label=name, markersize=3)
    axes.set(xlim=(0, max(sample.mask.shape[1], 1)), ylim=(-0.05, 1.05))
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, loc="upper right", frameon=False)
