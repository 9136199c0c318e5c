"""A small Gymnasium environment, registered under names of its own, with every oddity that a test asks for."""

import warnings
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import guerdon.envs.gym_tasks.task as module


class Dot(gymnasium.Env[Any, Any]):
    """A dot on a line that should reach 0; pictures in the observation, noise in the motion."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None, **odd: Any) -> None:
        self.render_mode, self.odd = render_mode, odd
        self.action_space = odd.get("actions", spaces.Box(np.array([-2], np.float32), np.array([4], np.float32)))
        self.observation_space = odd.get("space") or spaces.Dict(
            {
                "velocity": spaces.Box(-np.inf, np.inf, (2, 2)),
                "arm": spaces.Dict({"x": spaces.Box(-9, 9, ()), "eye": spaces.Box(0, 255, (8, 6, 3), np.uint8)}),
                "top": spaces.Box(0, 255, (3, 4, 5), np.uint8),
            }
        )
        self.x, self.count = 0.0, 0
        if "says" in odd:
            print("a notice on import")
            warnings.warn("an old version", stacklevel=1)

    def _observe(self) -> Any:
        if "observe" in self.odd:
            return self.odd["observe"](self)
        eye = np.full((8, 6, 3), int(abs(self.x) * 10) % 256, np.uint8)
        eye[0] = 255  # the sky
        top = np.zeros((3, 4, 5), np.uint8)
        top[1] = 200
        return {
            "velocity": np.arange(4.0).reshape(2, 2) + self.x,
            "arm": {"x": np.float64(self.x), "eye": eye},
            "top": top,
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=None if "ignores_seed" in self.odd else seed)
        self.x, self.count = float(self.np_random.uniform(2, 4)), 0
        if "says" in self.odd:
            print("reset")
            warnings.warn("reset", stacklevel=1)
        return self._observe() if self.odd.get("api") == "old reset" else (self._observe(), {})

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.x += 0.1 * float(np.ravel(action)[0]) + 0.01 * float(self.np_random.normal())
        self.count += 1
        if "says" in self.odd:
            print("step")
            warnings.warn("step", stacklevel=1)
        solved = abs(self.x) < 0.3
        info = {"is_success": np.bool_(solved), "distance": abs(self.x), "note": "text"} | self.odd.get("info", {})
        for key in self.odd.get("lacks", ()):
            del info[key]
        ended = solved or abs(self.x) > 8
        if self.odd.get("api") == "old step":
            return self._observe(), -abs(self.x), ended, info
        return self._observe(), np.float32(-abs(self.x)), np.bool_(ended), self.count == self.odd.get("own_limit"), info

    def render(self) -> Any:
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[:, : int(20 + 5 * self.x) % 60] = (250, 10, 60)
        return picture[..., :1] if "grey" in self.odd else picture


@pytest.fixture
def dot(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that registers a `Dot` with some oddities, and returns its ID."""
    monkeypatch.setattr(module, "_announced", set[str]())
    made: list[str] = []

    def register(limit: int | None = 30, **odd: Any) -> str:
        made.append(f"guerdon_test/BigDot{len(made)}-v0")
        gymnasium.register(made[-1], entry_point=Dot, max_episode_steps=limit, kwargs=odd)
        return made[-1]

    yield register
    for name in made:
        del gymnasium.registry[name]
