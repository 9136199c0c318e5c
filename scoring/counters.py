"""Counts of a model and its parts: how often, and why, each abstained or failed."""

from collections import Counter
from collections.abc import Mapping
from typing import cast

from ..core.interfaces import Component

Counters = Mapping[str, Mapping[str, int]]
"""Class and attribute, such as ``ShuffledFrames.abstained`` → reason → number of times."""


def model_counters(model: Component) -> dict[str, dict[str, int]]:
    """Collect the attributes ``abstained`` and ``failures`` of a model and its modules that are a ``Counter``.

    Returns:
        Class and attribute → reason → number of times since the model was made. Modules of one class are summed; empty
        counters are left out.
    """
    found: dict[str, dict[str, int]] = {}
    for module in model.modules():
        for name in ("abstained", "failures"):
            counter = getattr(module, name, None)
            if isinstance(counter, Counter):
                reasons = cast(Counter[object], counter).items()
                found = add_counters(found, {f"{type(module).__name__}.{name}": {str(why): n for why, n in reasons}})
    return found


def add_counters(one: Counters, other: Counters) -> dict[str, dict[str, int]]:
    """Add counters of the same name; zeros are left out."""
    total = {name: Counter(one.get(name, {})) + Counter(other.get(name, {})) for name in (*one, *other)}
    return {name: dict(counts) for name, counts in total.items() if counts}


def subtract_counters(after: Counters, before: Counters) -> dict[str, dict[str, int]]:
    """Subtract earlier counters from later ones; zeros are left out."""
    grown = {name: dict(Counter(counts) - Counter(before.get(name, {}))) for name, counts in after.items()}
    return {name: counts for name, counts in grown.items() if counts}
