"""Signals of success: from a key of a Gymnasium environment's ``info``, its reward, or a function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SuccessSignal = Callable[[float, bool, Mapping[str, Any]], bool]
"""Function of (reward, terminated, info) of a step: whether the task is solved at the observation after it."""

DEFAULT_KEYS = ("is_success", "success")
"""Keys of ``info`` that are looked for when no signal is given, in this order."""


@dataclass(frozen=True)
class InfoKey:
    """Success is a flag in ``info``."""

    key: str
    """Key of ``info``; its value counts as success where it is true."""
    absent: bool | None = None
    """Meaning of a step whose ``info`` lacks the key; None makes it an error."""

    def __call__(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        """Read the flag.

        Raises:
            ValueError: If the key is missing and no meaning is given, or the value is no single number.
        """
        if self.key not in info and self.absent is not None:
            return self.absent
        return bool(
            _number(info, self.key, f"; if its absence means failure, give InfoKey({self.key!r}, absent=False)")
        )


@dataclass(frozen=True)
class InfoThreshold:
    """Success is a number in ``info`` that reaches a threshold."""

    key: str
    """Key of ``info``."""
    least: float | int
    """Smallest number that counts as success."""

    def __call__(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        """Compare the number.

        Raises:
            ValueError: If the key is missing, or the value is no single number.
        """
        return _number(info, self.key, "") >= self.least


@dataclass(frozen=True)
class RewardThreshold:
    """Success is a reward of one step that reaches a threshold."""

    least: float | int
    """Smallest reward that counts as success."""

    def __call__(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        """Compare the reward."""
        return reward >= self.least


def _number(info: Mapping[str, Any], key: str, advice: str) -> float:
    if key not in info:
        raise ValueError(f"success: info has no {key!r} at this step, it holds {_keys(info)}{advice}")
    value = np.asarray(info[key])
    if value.size != 1 or value.dtype.kind not in "biuf":
        raise ValueError(f"success: expected info[{key!r}] to be one number or flag, got {info[key]!r:.80}")
    return float(value.reshape(()))


def _keys(info: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key in info) or "nothing"


def find_success(name: str, info: Mapping[str, Any]) -> SuccessSignal:
    """Find the signal of success in the ``info`` of a step: one of `DEFAULT_KEYS`.

    Args:
        name: Full name of the task, for the error.
        info: ``info`` of a step.

    Raises:
        ValueError: If it holds none of them; the message says how to give a signal.
    """
    for key in DEFAULT_KEYS:
        if key in info:
            return InfoKey(key)
    raise ValueError(
        f"{name} does not say when the task is solved: info holds {_keys(info)}, not {' or '.join(DEFAULT_KEYS)}. Give "
        "success= to guerdon.GymnasiumTask: InfoKey(…), InfoThreshold(…, least), RewardThreshold(least) or a function "
        "of (reward, terminated, info), in a class of your own that --env my_module:MyClass names; docs/simulators.md "
        "has an example"
    )
