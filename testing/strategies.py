"""Hypothesis strategies for trajectory batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..core.batch import End, Labelled, Sampled, TrajectoryBatch
from .altered import junk_padding


@st.composite
def trajectory_batches(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    max_rows: int = 4,
    max_steps: int = 6,
    state_size: int | None = None,
    action_size: int | None = None,
    cameras: Sequence[str] = (),
    min_length: int = 0,
    stored_labels: bool = True,
    tracks: bool = False,
    chunks: bool = False,
) -> TrajectoryBatch:
    """Hypothesis strategy: batches of any lengths, ends and outcomes, with NaN in the padding.

    Args:
        draw: Function that hypothesis passes in.
        max_rows: Largest number of rows B; the smallest is 1.
        max_steps: Largest number of steps T; the smallest is max(1, ``min_length``).
        state_size: Width S of the state; None draws 0 … 3.
        action_size: Width A of an action; None draws 0 … 3.
        cameras: Names of cameras; each gets 4 × 4 frames at observation 0 and some others.
        min_length: Fewest real steps of a row; 0 allows rows without any.
        stored_labels: Store recorded rewards and, sometimes, progress and success labels with gaps.
        tracks: Store a track per step, one per observation and features of an encoder.
        chunks: Record decisions at some steps only, with sampled chunks and log-probabilities.
    """
    rows = draw(st.integers(1, max_rows))
    steps = draw(st.integers(max(1, min_length), max_steps))
    length = torch.tensor(draw(st.lists(st.integers(min_length, steps), min_size=rows, max_size=rows)))
    states = draw(st.integers(0, 3)) if state_size is None else state_size
    actions = draw(st.integers(0, 3)) if action_size is None else action_size
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    ends = draw(st.lists(st.sampled_from([int(e) for e in End]), min_size=rows, max_size=rows))
    tasks = draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))
    mask = torch.arange(steps) < length[:, None]

    def flags(*shape: int, chance: float = 0.7) -> Tensor:
        return torch.rand(*shape, generator=generator) < chance

    def labelled(width: int) -> Labelled:
        return Labelled(values=torch.rand(rows, width, generator=generator), valid=flags(rows, width))

    labels: dict[str, Labelled] = {}
    if stored_labels:
        labels = {name: labelled(steps + 1) for name in ("progress", "success") if draw(st.booleans())}
    frames: dict[str, Sampled] = {}
    for camera in cameras:
        index = torch.arange(steps + 1)
        shown = (flags(rows, steps + 1, chance=0.6) | (index == 0)) & (index <= length[:, None])
        step = torch.where(shown, index, steps + 1).sort(1).values
        pixels = torch.randint(0, 256, (rows, steps + 1, 3, 4, 4), generator=generator, dtype=torch.uint8)
        frames[camera] = Sampled(values=pixels, step=torch.where(step > steps, -1, step))
    features: dict[str, Sampled] = {}
    followed: dict[str, Labelled] = {}
    if tracks:
        step = torch.where(torch.arange(steps + 1) <= length[:, None], torch.arange(steps + 1), -1)[:, :2]
        features = {"encoder/front": Sampled(values=torch.rand(rows, step.shape[1], 3, generator=generator), step=step)}
        point = Labelled(values=torch.rand(rows, steps + 1, 3, generator=generator), valid=flags(rows, steps + 1))
        followed = {"grasped": labelled(steps), "object": point}
    decided: dict[str, Any] = {}
    if chunks:
        index = torch.where(flags(rows, steps) & mask, torch.arange(steps), steps).sort(1).values
        count = int((index < steps).sum(1).max())
        index = torch.where(index == steps, -1, index)[:, :count]
        sample = torch.randn(rows, count, 2, actions, generator=generator)
        log_prob = torch.randn(rows, count, 4, generator=generator)
        decided = {"decision_step": index, "behaviour": {"sample": sample, "log_prob": log_prob}}
    batch = TrajectoryBatch(
        state=torch.randn(rows, steps + 1, states, generator=generator),
        actions=torch.randn(rows, steps, actions, generator=generator),
        mask=mask,
        frames=frames,
        instructions=tuple(f"task {task}" for task in tasks),
        task=torch.tensor(tasks),
        end=torch.tensor(ends),
        last_observed=flags(rows) | (length < 2),
        labels=labels,
        recorded={"reward": labelled(steps)} if stored_labels else {},
        features=features,
        tracks=followed,
        **decided,
    )
    return junk_padding(batch)
