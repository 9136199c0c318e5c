"""Unfinished episodes as plain tensors and numbers in a checkpoint, from which they can be repeated."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...envs.task import Context
from .pieces import Piece

Saved = dict[str, Any]
"""What is kept of one episode: plain numbers, texts and tensors, so that a checkpoint opens without pickle."""


def to_plain(piece: Piece) -> Saved:
    """Convert an unfinished episode to what it can be repeated from.

    States, rewards, tracks and frames are not kept, since the simulator makes them again; of the states only the last
    is, to compare with.

    Args:
        piece: Unfinished episode.
    """
    return {
        "context": (piece.context.task, piece.context.index, piece.context.split),
        "task": piece.task,
        "env": piece.env,
        "draw": piece.draw,
        "last_state": torch.from_numpy(np.array(piece.state[-1])),
        "actions": torch.from_numpy(np.array(piece.actions)),
        "decision_step": [int(step) for step in piece.decision_step],
        "behaviour": {
            name: [torch.from_numpy(np.array(part)) for part in parts]
            if isinstance(parts, list)
            else torch.from_numpy(np.array(parts))
            for name, parts in piece.behaviour.items()
        },
        "frame_step": [int(step) for step in piece.frame_step],
    }


def from_plain(saved: Mapping[str, Any]) -> Piece:
    """Convert what `to_plain` made back to an unfinished episode, with its last state only.

    Args:
        saved: What was kept.
    """
    return Piece(
        context=Context(*saved["context"]),
        task=saved["task"],
        env=saved["env"],
        draw=saved["draw"],
        state=saved["last_state"].numpy()[None],
        actions=saved["actions"].numpy(),
        decision_step=list(saved["decision_step"]),
        behaviour={
            name: [part.numpy() for part in parts] if isinstance(parts, list) else parts.numpy()
            for name, parts in saved["behaviour"].items()
        },
        frame_step=list(saved["frame_step"]),
    )


def contexts_to_plain(contexts: Sequence[Context]) -> list[tuple[str, int, str]]:
    """Convert contexts to plain tuples."""
    return [(context.task, context.index, context.split) for context in contexts]


__all__ = ["Saved", "contexts_to_plain", "from_plain", "to_plain"]
