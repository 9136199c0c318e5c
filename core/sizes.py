"""Sizes from the data: a component made without a state or action size is built once a data set gives it."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn

SIZES = ("state_size", "action_size")
"""Constructor arguments that a data set can fill in; None means that it has not yet."""


@dataclass(frozen=True, kw_only=True)
class DataSizes:
    """Widths of the states, actions and frozen features of a data set or an environment."""

    name: str
    """Folder of the data set or name of the environment, for errors."""
    state_size: int
    action_size: int
    feature_sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Widths of the frozen features that are loaded, by their names ``encoder/camera``."""


@runtime_checkable
class HasSizes(Protocol):
    """A data module that knows the sizes of its data."""

    @property
    def sizes(self) -> DataSizes:
        """Widths of the states, actions and frozen features."""
        ...


def known_features(feature_sizes: Mapping[str, int | None] | None) -> dict[str, int] | None:
    """Return the widths of features by name; None where a data set has yet to name one."""
    widths = {name: width for name, width in (feature_sizes or {}).items() if width is not None}
    return widths if len(widths) == len(feature_sizes or {}) else None


def take_sizes(component: nn.Module, sizes: DataSizes) -> bool:
    """Build a component made without sizes, in place, with those of a data set.

    Sizes that were given are compared with the data; a size of 0 reads nothing and fits any. The constructor of every
    component that lacks a size runs again with the number filled in, and so does that of every component around it. The
    numbers end up in ``init_args``, so that a saved component holds them.

    Args:
        component: Component, or a module that holds components, such as a training module.
        sizes: Widths of the data's states, actions and features.

    Returns:
        True where something was built.

    Raises:
        ValueError: If a given size is another one than that of the data, or the data lack a feature without a width.
    """
    return _take(component, sizes, {})


def _take(component: nn.Module, sizes: DataSizes, built: dict[int, bool]) -> bool:
    """Build each component once, and every one around it; ``built`` holds what was done, by identity."""
    if id(component) in built:
        return built[id(component)]
    if "init_args" not in component.__dict__:
        return any([_take(child, sizes, built) for child in component.children()])
    arguments = cast(dict[str, Any], component.__dict__["init_args"])
    rebuilt = any([_take(part, sizes, built) for part in _parts(arguments)])
    accepted = inspect.signature(type(component).__init__).parameters
    for name in SIZES:
        if name not in accepted:
            continue
        given, found = getattr(component, name, arguments.get(name)), getattr(sizes, name)
        if given is None:
            arguments[name], rebuilt = found, True
        elif given not in (0, found):
            what = name.removesuffix("_size")
            raise ValueError(
                f"{type(component).__name__} has {name} {given}, and the {what}s of {sizes.name} are {found} wide: "
                f"leave {name} out to take it from the data, or name the data that the component was made for"
            )
    if "feature_sizes" in accepted:
        rebuilt |= _take_features(component, arguments, sizes)
    if rebuilt:
        training = component.training
        type(component).__init__(component, **arguments)
        component.train(training)
    built[id(component)] = rebuilt
    return rebuilt


def _take_features(component: nn.Module, arguments: dict[str, Any], sizes: DataSizes) -> bool:
    """Fill in the widths of features that were named without one, and compare those that were given."""
    given = cast(Mapping[str, int | None], arguments.get("feature_sizes") or {})
    for name, width in given.items():
        found = sizes.feature_sizes.get(name)
        if width is None and found is None:
            offered = ", ".join(f"{k} ({v} wide)" for k, v in sizes.feature_sizes.items()) or "none"
            raise ValueError(
                f"{type(component).__name__} reads features {name!r}, and {sizes.name} is loaded with features "
                f"{offered}: load the cameras with that encoder, or name features that are loaded"
            )
        if None not in (width, found) and width != found:
            raise ValueError(
                f"{type(component).__name__} has features {name!r} of width {width}, and those of {sizes.name} are "
                f"{found} wide: give the width null to take it from the data, or load the features of another encoder"
            )
    if None not in given.values():
        return False
    arguments["feature_sizes"] = {k: sizes.feature_sizes[k] if v is None else v for k, v in given.items()}
    return True


def _parts(value: Any) -> Iterator[nn.Module]:
    """Find the components among constructor arguments, in containers too."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, Mapping):
        for entry in cast(Mapping[str, Any], value).values():
            yield from _parts(entry)
    elif isinstance(value, list | tuple):
        for entry in cast(list[Any], value):
            yield from _parts(entry)


def unknown_sizes(component: nn.Module) -> list[str]:
    """List the sizes that a component or a part of it lacks, such as ``"GaussianPolicy.action_size"``."""
    missing = [
        f"{type(module).__name__}.{name}"
        for module in component.modules()
        if "init_args" in module.__dict__
        for name in SIZES
        if name in inspect.signature(type(module).__init__).parameters and getattr(module, name, 0) is None
    ]
    missing += [
        f"{type(module).__name__}.feature_sizes[{name!r}]"
        for module in component.modules()
        if "init_args" in module.__dict__ and "feature_sizes" in inspect.signature(type(module).__init__).parameters
        for name, width in cast(
            Mapping[str, int | None], module.__dict__["init_args"].get("feature_sizes") or {}
        ).items()
        if width is None
    ]
    return list(dict.fromkeys(missing))


def require_sizes(component: nn.Module) -> None:
    """Refuse to use a component that lacks a size.

    Raises:
        ValueError: If it or a part of it was made without one and no data set has named it yet.
    """
    missing = unknown_sizes(component)
    if missing:
        raise ValueError(
            f"{type(component).__name__} is not built yet, {' and '.join(missing)} unknown: give the number, or train "
            "it on a data set (`guerdon fit`, or a data module with sizes), which names it"
        )


__all__ = ["SIZES", "DataSizes", "HasSizes", "known_features", "require_sizes", "take_sizes", "unknown_sizes"]
