"""Constructor arguments of components: recording them, and accepting those of an object argument one by one."""

import functools
import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., None])


def remember_arguments(instance: object, constructor: Callable[..., None], args: Any, kwargs: Any) -> bool:
    """Record the arguments of a constructor call on an object as ``init_args``, defaults included.

    Args:
        instance: Object under construction.
        constructor: Its ``__init__``.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        False where the call does not fit the constructor; nothing is recorded then.
    """
    signature = inspect.signature(constructor)
    try:
        bound = signature.bind(instance, *args, **kwargs)
    except TypeError:
        return False
    bound.apply_defaults()
    given = dict(list(bound.arguments.items())[1:])
    for parameter in signature.parameters.values():  # a class without a constructor of its own has torch's
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            given.pop(parameter.name)
    instance.__dict__["init_args"] = {name: _copied(value) for name, value in given.items()}
    return True


def _copied(value: Any) -> Any:
    """Copy containers, so that a constructor that changes its argument does not change the record of it."""
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_copied(v) for v in cast(list[Any], value)]
    return value


def folds(**objects: Callable[..., Any]) -> Callable[[F], F]:
    """Decorate a constructor that takes an object so that it also accepts the object's arguments one by one.

    ``@folds(observer=ObservationEncoder)`` on ``__init__(self, observer=None)`` makes ``Model(width=8)`` mean
    ``Model(observer=ObservationEncoder(width=8))``. Saved components, configurations and scripts from before 0.2 give
    arguments so; type checkers see the new signature alone.

    Args:
        objects: Argument of the constructor → class of the object, or a partial of it with other defaults.

    Raises:
        TypeError: When called, if the object and some of its arguments are both given.
    """

    def decorate(constructor: F) -> F:
        own = inspect.signature(constructor).parameters

        @functools.wraps(constructor)
        def init(self: object, *args: Any, **kwargs: Any) -> None:
            if not kwargs.keys() <= own.keys():
                kwargs = fold_arguments(kwargs, own, objects)
                # a component whose constructor this is; what a subclass passes on is none of its own arguments
                if hasattr(self, "save_pretrained") and type(self).__init__ is init:
                    remember_arguments(self, constructor, args, kwargs)
            constructor(self, *args, **kwargs)

        init.folded_objects = objects  # pyright: ignore[reportAttributeAccessIssue]
        return cast(F, init)

    return decorate


def fold_arguments(
    given: Mapping[str, Any], own: Mapping[str, Any], objects: Mapping[str, Callable[..., Any]]
) -> dict[str, Any]:
    """Gather arguments that a constructor does not have into the objects that have them.

    Args:
        given: Keyword arguments, flat ones among them.
        own: Arguments the constructor has.
        objects: Argument → class of the object.

    Raises:
        TypeError: If the object and some of its arguments are both given.
    """
    folded = dict(given)
    for name, make in objects.items():
        inside = taken_by(make, given, own)
        if not inside:
            continue
        if folded.get(name) is not None:
            raise TypeError(f"{name} and {', '.join(inside)} are both given: put {', '.join(inside)} into {name}")
        folded[name] = make(**{key: folded.pop(key) for key in inside})
    return folded


def taken_by(make: Callable[..., Any], given: Iterable[str], own: Container[str]) -> list[str]:
    """Return the names of arguments that an object takes and a constructor does not have.

    Args:
        make: Class of the object, or a partial of it.
        given: Names of the arguments that were given.
        own: Names of the arguments that the constructor has.
    """
    accepted = inspect.signature(make).parameters
    return [name for name in given if name not in own and name in accepted]


__all__ = ["fold_arguments", "folds", "remember_arguments", "taken_by"]
