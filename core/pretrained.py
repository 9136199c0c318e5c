"""Saved components as arguments of a configuration: ``class_path: guerdon.pretrained_reward``."""

from typing import TypeVar

from .hub import load_component
from .interfaces import Component, Critic, Policy, RewardModel

C = TypeVar("C", bound=Component)


def pretrained_reward(path: str, revision: str | None = None, trust: bool = False) -> RewardModel:
    """Open a saved reward model; see `guerdon.load_component`.

    Raises:
        TypeError: If the folder holds another component.
    """
    return _expect(path, load_component(path, revision, trust), RewardModel)


def pretrained_critic(path: str, revision: str | None = None, trust: bool = False) -> Critic:
    """Open a saved critic; see `pretrained_reward`."""
    return _expect(path, load_component(path, revision, trust), Critic)


def pretrained_policy(path: str, revision: str | None = None, trust: bool = False) -> Policy:
    """Open a saved policy; see `pretrained_reward`."""
    return _expect(path, load_component(path, revision, trust), Policy)


def _expect(path: str, component: object, kind: type[C]) -> C:
    if not isinstance(component, kind):
        raise TypeError(f"{path} holds a {type(component).__name__}, expected a {kind.__name__}")
    return component
