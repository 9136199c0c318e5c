"""Gymnasium observations as a state and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space, spaces

WHOLE = "observation"
"""Name of the only part of an observation that is no dictionary."""


@dataclass(frozen=True)
class _Part:
    """One leaf of an observation."""

    path: tuple[str, ...]
    """Keys that lead to it."""
    space: Space[Any]
    """Space that the environment declares for it."""

    @property
    def name(self) -> str:
        """Keys joined by dots, or the name of an observation that is no dictionary."""
        return ".".join(self.path) or WHOLE

    @property
    def channels_first(self) -> bool | None:
        """Whether a picture is (3, H, W) and not (H, W, 3); None for what is no picture."""
        space = self.space
        if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
            return None
        return False if space.shape[2] == 3 else True if space.shape[0] == 3 else None

    @property
    def numbers(self) -> bool:
        """Whether it is an array of numbers with at most two dimensions."""
        return isinstance(self.space, spaces.Box) and len(self.space.shape) < 3


class Observations:
    """Layout of an environment's observations: which parts become the state, and which are pictures.

    Numbers (Box of at most two dimensions) are the state, flattened and joined in the order of the space, which is the
    order of `gymnasium.spaces.flatten`: alphabetical for a ``Dict`` made from a plain dictionary. Pictures are Box of
    uint8 with the shape (H, W, 3) or (3, H, W). Parts of a nested ``Dict`` are named with dots.

    Args:
        name: Full name of the task, for errors.
        space: Observation space.
        state_keys: Parts that are the state, in this order; None takes all numbers.

    Raises:
        ValueError: If a part is neither numbers nor a picture and ``state_keys`` does not leave it out, a key is
            unknown, or there is nothing to observe.
    """

    def __init__(self, name: str, space: Space[Any], state_keys: Sequence[str] | None = None) -> None:
        self._name = name
        parts = _leaves(space, ())
        self._pictures = {part.name: part for part in parts if part.channels_first is not None}
        numbers = {part.name: part for part in parts if part.numbers}
        if state_keys is not None:
            unknown = [key for key in state_keys if key not in numbers]
            if unknown:
                raise ValueError(
                    f"{name}: state_keys names {unknown[0]!r}, which is no array of numbers of this environment: "
                    f"expected some of {', '.join(numbers) or 'none'}"
                )
            numbers = {key: numbers[key] for key in state_keys}
        else:
            odd = [part for part in parts if not part.numbers and part.channels_first is None]
            if odd:
                raise ValueError(
                    f"{name}: the part {odd[0].name!r} of the observation is {odd[0].space}, expected a Box of numbers "
                    "with at most two dimensions, or of uint8 with the shape (H, W, 3): leave it out with state_keys=, "
                    "or wrap the environment (gymnasium.wrappers.FlattenObservation, TransformObservation)"
                )
        self._numbers = numbers
        if not self._numbers and not self._pictures:
            raise ValueError(f"{name}: nothing is left of the observation space {space}")

    @property
    def state_parts(self) -> dict[str, slice]:
        """Place of each part in the state, by name."""
        places: dict[str, slice] = {}
        start = 0
        for name, part in self._numbers.items():
            size = int(np.prod(part.space.shape or (1,)))
            places[name] = slice(start, start + size)
            start += size
        return places

    @property
    def state_size(self) -> int:
        """Width S of the state."""
        return max((place.stop for place in self.state_parts.values()), default=0)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Names of the pictures."""
        return tuple(self._pictures)

    def state(self, observation: Any) -> np.ndarray:
        """Join the numbers of an observation to a state (S,) float64.

        Raises:
            ValueError: If a part is missing or has another shape than the space declares.
        """
        found = [np.asarray(self._read(observation, part), np.float64).reshape(-1) for part in self._numbers.values()]
        return np.concatenate(found) if found else np.zeros(0)

    def picture(self, observation: Any, name: str) -> np.ndarray:
        """Return one picture of an observation, (H, W, 3) uint8.

        Raises:
            ValueError: If it is missing or has another shape than the space declares.
        """
        part = self._pictures[name]
        picture = self._read(observation, part)
        return picture.transpose(1, 2, 0) if part.channels_first else picture

    def check(self, observation: Any) -> None:
        """Check an observation against the space.

        Raises:
            ValueError: If a part is missing or has another shape or type; it is named.
        """
        self.state(observation)
        for name in self._pictures:
            picture = self.picture(observation, name)
            if picture.dtype != np.uint8:
                raise ValueError(
                    f"{self._name}: the picture {name!r} is {picture.dtype}, and the space declares uint8: correct the "
                    "environment, or its observation space"
                )

    def _read(self, observation: Any, part: _Part) -> np.ndarray:
        value = observation
        for key in part.path:
            if not isinstance(value, dict) or key not in value:
                held = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
                raise ValueError(
                    f"{self._name}: the observation has no {part.name!r}, which the observation space declares; it "
                    f"holds {held}: correct the environment, or its observation space"
                )
            value = value[key]
        array = np.asarray(value)
        if array.shape != part.space.shape or array.dtype.kind not in "biuf":
            raise ValueError(
                f"{self._name}: the part {part.name!r} of the observation is {array.dtype} of shape {array.shape}, and "
                f"the observation space declares {part.space.shape}: the space must not change; correct the "
                "environment, or its observation space"
            )
        return array


def _leaves(space: Space[Any], path: tuple[str, ...]) -> list[_Part]:
    if not isinstance(space, spaces.Dict):
        return [_Part(path, space)]
    return [part for key, inner in space.spaces.items() for part in _leaves(inner, (*path, str(key)))]
