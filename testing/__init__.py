"""Conformance checks, hypothesis strategies and tiny checkpoints for the tests of guerdon and of what builds on it.

Needs the ``dev`` extra.
"""

import importlib
from typing import TYPE_CHECKING

from .altered import cut_after, pad_steps, with_other_future
from .conformance import check_critic, check_policy, check_reward_model, reopen
from .strategies import trajectory_batches

if TYPE_CHECKING:
    from .clip_checkpoints import tiny_clip
    from .vlm_checkpoints import tiny_vlm

# Their libraries take seconds to import, which no other test should pay.
_CHECKPOINTS = {"tiny_clip": "clip_checkpoints", "tiny_vlm": "vlm_checkpoints"}


def __getattr__(name: str) -> object:
    """Import the makers of checkpoints when they are asked for (PEP 562)."""
    if name not in _CHECKPOINTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_CHECKPOINTS[name]}", __name__), name)


__all__ = [
    "check_critic",
    "check_policy",
    "check_reward_model",
    "cut_after",
    "pad_steps",
    "reopen",
    "tiny_clip",
    "tiny_vlm",
    "trajectory_batches",
    "with_other_future",
]
