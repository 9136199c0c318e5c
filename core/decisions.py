"""Decision points taken out of a batch: observation, decision, and log-probability under the present policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from .record import Record, expect


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation(Record):
    """Input of a policy or a value function at M decision points."""

    state: Float[Tensor, "M S"]
    frames: Mapping[str, UInt8[Tensor, "M C H W"]] = field(default_factory=dict[str, Tensor])
    """Camera → the last frame at or before the decision; on the host."""
    features: Mapping[str, Float[Tensor, "M ..."]] = field(default_factory=dict[str, Tensor])
    """``encoder/camera`` → frozen features of that frame."""
    instructions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that every part has the same number of decision points."""
        expect("Observation.state", self.state, (-1, -1), "float")
        points = len(self.state)
        if not self.instructions:
            object.__setattr__(self, "instructions", ("",) * points)
        if len(self.instructions) != points:
            raise ValueError(f"Observation.instructions: expected {points}, got {len(self.instructions)}")
        for camera, frames in self.frames.items():
            expect(f"Observation.frames[{camera!r}]", frames, (points, -1, -1, -1), "uint8")
        for name, features in self.features.items():
            expect(f"Observation.features[{name!r}]", features, (points, -1), "float")


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision(Record):
    """Chunks of actions that a policy chose at M decision points."""

    chunk: Float[Tensor, "M H A"]
    """Actions as sampled, before the environment clips them."""
    executed: Int[Tensor, " M"]
    """Number of steps of the chunk that are (or were) executed, in 1 … H."""
    log_prob: Float[Tensor, "M U"] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        """Check that every part has the same number of decision points."""
        expect("Decision.chunk", self.chunk, (-1, -1, -1), "float")
        expect("Decision.executed", self.executed, (len(self.chunk),), "int")
        if self.log_prob is not None:
            expect("Decision.log_prob", self.log_prob, (len(self.chunk), -1), "float")
        for name, extra in self.extras.items():
            expect(f"Decision.extras[{name!r}]", extra, (len(self.chunk),))


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation(Record):
    """Log-probabilities of earlier decisions under the present policy."""

    log_prob: Float[Tensor, "M U"]
    unit_mask: Bool[Tensor, "M U"]
    """True on the units that were executed."""
    entropy: Float[Tensor, " M"] | None = None
    hidden: Float[Tensor, "M D"] | None = None


__all__ = ["Decision", "Evaluation", "Observation"]
