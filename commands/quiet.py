"""Silence of Lightning: its notes about devices and services, and warnings that mean nothing to a user."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

_QUIET = (
    # inside torch's own pytree code, called by lightning
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # small networks on few cores: workers cost more than they bring, and the YAML can ask for them
    "does not have many workers",
    "The number of training batches",
    # a frozen encoder inside a model stays in evaluation mode
    r"Found \d+ module\(s\) in eval mode",
    # a data set without a validation split is allowed, and EpisodeData then gives no loader
    "Total length of `list` across ranks is zero",
    # resuming into the run directory is what --ckpt_path is for
    r"Checkpoint directory .* exists and is not empty",
    # validate keeps no checkpoints, so it has no callback that would
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # tasks have no optimizer state worth a warning when resumed in the middle of an epoch
    "You're resuming from a checkpoint that ended before the epoch ended",
)


@contextmanager
def quiet() -> Generator[None]:
    """Silence Lightning's notes about devices and services, and its warnings that mean nothing to a user."""
    notes = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in notes]
    try:
        with warnings.catch_warnings():
            for message in _QUIET:
                warnings.filterwarnings("ignore", message=f".*{message}")
            for log in notes:
                log.setLevel(logging.WARNING)
            yield
    finally:
        for log, level in zip(notes, levels, strict=True):
            log.setLevel(level)


__all__ = ["quiet"]
