"""Declaration of what a model reads of a trajectory, so that a loader of data needs no options."""

from dataclasses import dataclass

from ..core.interfaces import Component
from .vision import VisionEncoder


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """Inputs of a reward model, critic or decomposer."""

    state_size: int = 0
    """S the model was built for; 0 = reads no state."""
    cameras: tuple[str, ...] = ()
    frame_size: int | None = None
    """Shorter side of the frames, in pixels; None = as recorded."""
    frames_every: int = 1
    """Every how many recorded frames of a camera one is evaluated when scoring; the last always is."""
    encoder: VisionEncoder | None = None
    """Frozen encoder whose features may come from a cache, under ``features["<encoder.name>/<camera>"]``."""
    instruction: bool = False
    """Whether the model reads the instruction."""


def inputs_of(model: Component) -> ModelInputs:
    """Return what a component reads; one without ``inputs`` needs neither cameras nor a certain state."""
    inputs = getattr(model, "inputs", None)
    return inputs if isinstance(inputs, ModelInputs) else ModelInputs()
