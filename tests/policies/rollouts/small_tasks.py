"""What tests of rollouts share: corridors that write episode and step into everything they return, and policies."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any
from unittest import mock

import numpy as np
import torch

from guerdon.core.batch import Decision
from guerdon.core.interfaces import Policy
from guerdon.envs.task import Step, check_context, list_contexts
from guerdon.policies.rollouts import simulators as simulators_module
from guerdon.policies.rollouts.runner import Runner


class Corridor:
    """State (context, step); reward 100 · context + step. What happens at which step is told by the context's number.

    Context 3 succeeds at step 4; context 4 is ended by the simulator at step 2, context 5 likewise but in success;
    every other context walks to the time limit.
    """

    name, instruction, seed, fps = "test/corridor", "walk", 0, 10.0
    state_size, action_size, stage_names, cameras = 2, 1, (), ()
    action_low, action_high = np.full(1, -1, np.float32), np.full(1, 1, np.float32)

    def __init__(self, horizon=7):
        self.horizon = horizon

    def contexts(self, split, count=None):
        return list_contexts(self.name, split, count)

    def reset(self, context):
        check_context(self.name, context)
        self.index, self.at = context.index, 0
        return self._state()

    def step(self, action):
        assert (self.action_low <= action).all() and (action <= self.action_high).all(), "the runner keeps the bounds"
        self.at += 1
        return Step(
            state=self._state(),
            reward=100.0 * self.index + self.at,
            success=(self.index, self.at) in ((3, 4), (5, 2)),
            terminated=self.index in (4, 5) and self.at == 2,
            stages={},
            tracks=self.tracks(),
        )

    def tracks(self):
        return {}

    def render(self, camera=None, size=(96, 96)):
        raise AssertionError("nobody asked for pictures")

    def close(self):
        self.closed = True

    def _state(self):
        return np.array([self.index, self.at], np.float32)


class Tracked(Corridor):
    """A point with the context and the step in it, and a number of a sensor that fails after the third step."""

    def tracks(self):
        reading = np.nan if self.at == 3 else self.at / 10
        return {"point": np.array([self.index, self.at, 1], np.float32), "sensor": np.array([reading], np.float32)}


class Street(Corridor):
    """Another task of the same sizes: a shorter time limit, wider bounds, a track of its own."""

    name, instruction = "test/street", "cross"
    action_low, action_high = np.full(1, -5, np.float32), np.full(1, 5, np.float32)

    def __init__(self, horizon=5):
        super().__init__(horizon)

    def tracks(self):
        return {"car": np.array([self.at], np.float32)}


class Slow(Corridor):
    """Its resets take random times, and it renders in the thread of the test alone."""

    cameras = ("eye",)

    def reset(self, context):
        time.sleep(random.random() / 100)
        return super().reset(context)

    def render(self, camera=None, size=(96, 96)):
        assert threading.current_thread() is threading.main_thread(), "a rendering context is bound to its thread"
        return np.full((3, *size), (10 * self.index + self.at + 1) % 256, np.uint8)


class SlowStreet(Slow, Street):
    """The other task, as slow."""


class Numbered(Policy):
    """Every decision it ever takes has a number of its own, written into each step of its sample."""

    def __init__(self, horizon: int = 1, execute: int = 1):
        super().__init__()
        self.horizon, self.execute, self.given = horizon, execute, 0

    def act(self, observation, deterministic=False, generator=None):
        count = len(observation)
        numbers = self.given + torch.arange(count)
        self.given += count
        chunk = 1000.0 * numbers[:, None, None] + torch.arange(self.horizon)[None, :, None]
        executed, log_prob = torch.full((count,), self.execute), -numbers.float()[:, None]
        return Decision(chunk=chunk, executed=executed, log_prob=log_prob, extras={"number": numbers})


class Noisy(Policy):
    """Acts by the state and the generator, and remembers what it saw."""

    horizon = 1

    def __init__(self):
        super().__init__()
        self.seen: list[Any] = []

    def act(self, observation, deterministic=False, generator=None):
        self.seen.append(observation)
        noise = torch.randn(len(observation), 1, 1, generator=generator)
        return Decision(
            chunk=observation.state.sum(1)[:, None, None] / 100 + noise,
            executed=torch.ones(len(observation), dtype=torch.long),
        )


def building(make):
    """Within it, runners build their tasks by a function of the name."""
    return mock.patch.object(simulators_module, "make_task", lambda name, horizon, seed: make(name))


def corridor(envs=2, horizon=7, end_on_success=True, task=Corridor, **more):
    with building(lambda name: task(horizon)):
        return Runner(task.name, envs, end_on_success=end_on_success, **more)


def both(envs=2, tasks=(Corridor, Street), **more):
    """A runner of two tasks."""
    built = {task.name: task for task in tasks}
    with building(lambda name: built[name]()):
        return Runner(list(built), envs, **more)


def contexts(*indices, task: Any = Corridor):
    return [c for i in indices for c in list_contexts(task.name, "train", i + 1) if c.index == i]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}[{name!r}]")
    elif hasattr(value, "__dataclass_fields__"):
        for f in fields(value):
            yield from leaves(getattr(value, f.name), f"{path}.{f.name}")


def same(one, other):
    """Whether two batches hold the same bits."""
    first, second = dict(leaves(one)), dict(leaves(other))
    equal = all(torch.equal(value.nan_to_num(-7.5), second[path].nan_to_num(-7.5)) for path, value in first.items())
    return first.keys() == second.keys() and one.instructions == other.instructions and equal
