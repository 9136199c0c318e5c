import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guerdon.envs.libero_tasks.expert import LiberoExpert

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # robosuite warns where it likes

IDLE = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


@pytest.fixture
def open_task() -> Iterator[Any]:
    """Function that opens a task and returns the environment and its official initial states."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        libero = pytest.importorskip("libero.libero")
        benchmark = pytest.importorskip("libero.libero.benchmark")
        wrapper = pytest.importorskip("libero.libero.envs.env_wrapper")
    opened: list[Any] = []

    def open_one(suite: str, number: int) -> tuple[Any, np.ndarray]:
        with contextlib.redirect_stdout(io.StringIO()):
            tasks = benchmark.get_benchmark(suite)(0)
        task = tasks.get_task(number)
        path = Path(libero.get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
        env = wrapper.ControlEnv(
            bddl_file_name=str(path), use_camera_obs=False, has_offscreen_renderer=False, ignore_done=True
        )
        opened.append(env)
        return env, tasks.get_task_init_states(number)

    yield open_one
    for env in opened:
        env.close()


def start(env: Any, state: np.ndarray) -> LiberoExpert:
    """Reset to an initial state, let the objects settle and build the expert."""
    env.seed(0)
    env.reset()
    env.set_init_state(state)
    for _ in range(10):
        env.step(IDLE)
    return LiberoExpert(env.env)


def solve(env: Any, expert: LiberoExpert, horizon: int) -> list[np.ndarray]:
    """Act until success; return the actions, or fail."""
    actions: list[np.ndarray] = []
    for _ in range(horizon):
        actions.append(expert(np.zeros(0)))
        assert actions[-1].shape == (7,) and np.all(np.abs(actions[-1]) <= 1.0)
        env.step(actions[-1])
        if env.check_success():
            return actions
    pytest.fail(f"not solved within {horizon} steps")


def test_an_object_is_put_into_the_basket_from_two_states_and_the_same_way_again(open_task: Any):
    env, states = open_task("libero_object", 0)
    first = solve(env, start(env, states[47]), 280)
    solve(env, start(env, states[48]), 280)
    assert np.array_equal(first, solve(env, start(env, states[47]), 280))


def test_a_drawer_is_opened(open_task: Any):
    env, states = open_task("libero_goal", 0)
    solve(env, start(env, states[47]), 300)


def test_a_knob_is_turned(open_task: Any):
    env, states = open_task("libero_goal", 7)
    solve(env, start(env, states[47]), 300)


def test_a_goal_that_is_unknown(open_task: Any):
    env, states = open_task("libero_goal", 7)
    start(env, states[0])
    env.env.parsed_problem["goal_state"] = [["juggle", "flat_stove_1"]]
    with pytest.raises(ValueError, match="demonstrations"):
        LiberoExpert(env.env)
