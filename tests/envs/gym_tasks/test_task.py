"""Gymnasium environments behind the task protocol: what becomes of their spaces, ends, seeds and notices."""

import logging
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from guerdon.envs.checking import check_task
from guerdon.envs.gym_tasks.success import InfoKey, InfoThreshold, RewardThreshold
from guerdon.envs.gym_tasks.task import GymnasiumTask
from guerdon.envs.naming import make_task
from guerdon.envs.task import ResumableTask, Task
from guerdon.envs.vector import VectorEnv


def start(task: GymnasiumTask | Task, split: str = "train") -> np.ndarray:
    return task.reset(task.contexts(split, 1)[0])


def test_numbers_become_the_state_in_the_order_of_the_space(dot):
    task: Any = make_task(f"gymnasium/{dot()}")
    # alphabetical, as gymnasium.spaces.flatten: arm.x (1), then velocity (2 × 2)
    assert task.state_parts == {"arm.x": slice(0, 1), "velocity": slice(1, 5)} and task.state_size == 5
    state = start(task)
    x = task._env.unwrapped.x
    assert state == pytest.approx(np.array([x, x, 1 + x, 2 + x, 3 + x]))
    chosen = GymnasiumTask(dot(), state_keys=("velocity",))
    assert chosen.state_size == 4 and start(chosen) == pytest.approx(state[1:])
    turned = GymnasiumTask(dot(), state_keys=("velocity", "arm.x"))
    assert start(turned) == pytest.approx(np.roll(state, -1))


def test_pictures_become_cameras_of_any_size(dot):
    task = GymnasiumTask(dot())
    assert task.cameras == ("arm.eye", "top", "render")
    state = start(task)
    assert (task.render(size=(8, 6))[:, 1:] == int(abs(state[0]) * 10)).all()
    top = task.render("top", (12, 10))
    assert top.shape == (3, 12, 10) and top[1].min() == 200 and top[0].max() == top[2].max() == 0
    view = task.render("render", (20, 30))
    assert view.shape == (3, 20, 30) and view[:, 0, 0].tolist() == [250, 10, 60] and view[:, 0, -1].max() == 0
    with pytest.raises(ValueError, match=r"unknown camera 'side'; it has arm.eye, top, render"):
        task.render("side")
    states_only = GymnasiumTask(dot(space=spaces.Box(-9, 9, (1,)), observe=lambda env: np.array([env.x], np.float32)))
    assert states_only.cameras == ("render",)


def test_an_environment_that_cannot_draw_has_no_camera(dot):
    task = GymnasiumTask(dot(space=spaces.Box(-9, 9, ()), observe=lambda env: env.x), options={"render_mode": None})
    assert task.cameras == () and task.state_size == 1
    start(task)
    with pytest.raises(ValueError, match=r"draws no pictures .*record states only"):
        task.render()


def test_actions_are_scaled_to_one_and_clipped(dot):
    task: Any = GymnasiumTask(dot())
    assert (task.action_low.tolist(), task.action_high.tolist()) == ([-1.0], [1.0])
    sent: list[float] = []
    step = task._env.unwrapped.step
    task._env.unwrapped.step = lambda action: (sent.append(float(action[0])), step(action))[1]
    start(task)
    for action in (-1.0, 0.0, 1.0, 7.0):
        task.step(np.array([action]))
    assert sent == [-2.0, 1.0, 4.0, 4.0]  # bounds −2 and 4


def test_contexts_are_seeds(dot):
    task, other = GymnasiumTask(dot()), GymnasiumTask(dot(), seed=1)
    starts = [tuple(task.reset(context)) for context in task.contexts("train", 4) + task.contexts("eval", 4)]
    assert len(set(starts)) == 8
    assert tuple(start(task)) == starts[0] != tuple(start(other))


def test_a_success_ends_nothing_and_an_end_without_success_does(dot):
    task = GymnasiumTask(dot())
    state, steps = start(task), []
    for _ in range(task.horizon):
        steps.append(task.step(np.clip(-state[:1] * 10 / 3 - 1 / 3, -1, 1)))
        state = steps[-1].state
    assert any(step.success for step in steps) and not any(step.terminated for step in steps)
    start(task)
    while not (step := task.step(np.ones(1))).terminated:
        assert step.state[0] <= 8
    assert step.state[0] > 8 and not step.success


def test_the_time_limit_is_the_registered_one_and_left_to_the_caller(dot):
    name = f"gymnasium/{dot(limit=6)}"
    assert make_task(name).horizon == 6 and make_task(name, horizon=9).horizon == 9
    vector = VectorEnv([make_task(name, horizon=9)])
    vector.reset(0, vector.contexts("train", 1)[0])
    ends = [vector.step(np.full((1, 1), -1 / 3)) for _ in range(9)]
    assert [end.truncated[0] for end in ends] == [False] * 8 + [True]
    with pytest.raises(
        ValueError, match=r"without a time limit: give a horizon in control steps \(on the command line"
    ):
        make_task(f"gymnasium/{dot(limit=None)}")


def test_an_environment_that_truncates_itself_ends_the_episode_and_says_so(dot, caplog):
    task = GymnasiumTask(dot(own_limit=4))
    start(task)
    still = np.full(1, -1 / 3)
    assert [task.step(still).terminated for _ in range(4)] == [False, False, False, True]
    start(task)
    assert [task.step(still).terminated for _ in range(4)] == [False, False, False, True]
    told = [
        record.message for record in caplog.records if "truncated an episode itself after 4 of 30" in record.message
    ]
    assert len(told) == 1
    exact = GymnasiumTask(dot(own_limit=4), horizon=4)
    start(exact)
    assert not any(exact.step(still).terminated for _ in range(4))


def test_success_is_found_or_given(dot):
    def solved(task: GymnasiumTask) -> list[bool]:
        state = start(task)
        return [task.step(np.clip(-state[:1] - 1 / 3, -1, 1)).success for _ in range(30)]

    found = solved(GymnasiumTask(dot()))
    assert 0 < sum(found) < 30
    for signal in (
        InfoKey("is_success"),
        RewardThreshold(-0.3),
        InfoThreshold("closeness", 1),
        lambda reward, terminated, info: info["distance"] < 0.3,
    ):
        closeness = {"info": {"closeness": 1}} if isinstance(signal, InfoThreshold) else {}
        got = solved(GymnasiumTask(dot(**closeness), success=signal))
        assert got == ([True] * 30 if closeness else found)


def test_an_environment_without_a_signal_of_success_says_how_to_give_one(dot):
    says = (
        r"does not say when the task is solved: info holds 'distance', 'note', not is_success or success. Give success="
    )
    with pytest.raises(ValueError, match=says):
        make_task(f"gymnasium/{dot(lacks=('is_success',))}")


def test_stages_are_numbers_of_info(dot):
    task = GymnasiumTask(dot(), stages=("distance",))
    start(task)
    step = task.step(np.zeros(1))
    assert step.stages == {"distance": pytest.approx(abs(step.state[0]))}
    with pytest.raises(ValueError, match=r"one number info\['hops'\] at every step.*holds 'is_success', 'distance'"):
        GymnasiumTask(dot(), stages=("hops",))


def test_the_instruction_is_given_or_made_of_the_id(dot, caplog):
    name = dot()
    for _ in range(2):
        assert make_task(f"gymnasium/{name}").instruction == "big dot0"
    told = [r.message for r in caplog.records if "carry 'big dot0', the words of its ID" in r.message]
    assert len(told) == 1  # once, however many copies are made
    caplog.clear()
    assert GymnasiumTask(name, instruction="move to the middle").instruction == "move to the middle"
    assert not caplog.records


def test_the_control_rate_is_that_of_the_environment(dot):
    def without_rate() -> Any:
        env: Any = gymnasium.make(dot(), disable_env_checker=True)
        env.unwrapped.metadata = {"render_modes": []}
        return env

    assert GymnasiumTask(dot()).fps == 20
    assert GymnasiumTask(without_rate, fps=5, name="dot").fps == 5
    with pytest.raises(ValueError, match=r"how long a control step takes is not known .* give fps="):
        GymnasiumTask(without_rate, name="dot")
    with pytest.raises(ValueError, match="expected a name for an environment that a function builds"):
        GymnasiumTask(without_rate)


def test_a_function_may_wrap_an_environment(dot):
    def build() -> Any:
        env = gymnasium.make(dot(lacks=("is_success",)), disable_env_checker=True)  # with its TimeLimit
        return gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) * 10)

    task = GymnasiumTask(build, success=RewardThreshold(-3), name="wrapped", fps=2)
    assert task.horizon == 30 and task.name == "wrapped"
    start(task)
    for _ in range(31):  # its own limit is lifted
        step = task.step(np.full(1, -1 / 3))
    assert not step.terminated and step.reward == pytest.approx(-10 * abs(step.state[0]), rel=1e-4)
    with pytest.raises(ValueError, match="options are given to a registered environment"):
        GymnasiumTask(build, name="wrapped", options={"a": 1})


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (spaces.Discrete(3), r"expected continuous actions \(a Box\), got Discrete\(3\).*Wrap the environment"),
        (spaces.Box(-np.inf, np.inf, (2,)), "expected actions with finite bounds"),
        (spaces.Box(np.zeros(2), np.array([1.0, 0.0]), dtype=np.float64), "lower below upper"),
    ],
)
def test_actions_that_no_policy_here_can_choose_are_refused(dot, space, says):
    with pytest.raises(ValueError, match=says):
        GymnasiumTask(dot(actions=space))


def test_notices_and_warnings_of_an_environment_are_dropped(dot, capfd):
    task: Any = GymnasiumTask(dot(says=True), instruction="be quiet")
    start(task)
    task.step(np.zeros(1))
    assert capfd.readouterr() == ("", "")  # and the warnings, which are errors here, are none


@pytest.mark.parametrize(("api", "method"), [("old reset", "reset"), ("old step", "step")])
def test_the_old_api_is_named(dot, api, method):
    with pytest.raises(ValueError, match=rf"expected {method} to return \(observation.*old gym package.*shimmy"):
        GymnasiumTask(dot(api=api))


def test_observations_that_leave_their_space_are_named(dot):
    def grows(env: Any) -> Any:
        return np.zeros(3 if env.count > 6 else 2)

    task = GymnasiumTask(dot(space=spaces.Box(-1, 1, (2,)), observe=grows))
    start(task)
    with pytest.raises(
        ValueError, match=r"the part 'observation' .* of shape \(3,\), and the observation space declares"
    ):
        for _ in range(8):
            task.step(np.zeros(1))
    with pytest.raises(ValueError, match=r"space declares \(2,\): the space must not change"):
        GymnasiumTask(dot(space=spaces.Box(-1, 1, (2,)), observe=lambda env: np.zeros(4)))
    nan = GymnasiumTask(
        dot(space=spaces.Box(-1, 1, ()), observe=lambda env: np.nan if env.count > 6 else 0.0), instruction="x"
    )
    start(nan)
    with pytest.raises(FloatingPointError, match="simulation diverged"):
        for _ in range(8):
            nan.step(np.zeros(1))


def test_an_environment_without_a_snapshot_is_restored_by_its_actions(dot):
    task, copy = GymnasiumTask(name := dot()), GymnasiumTask(name)
    assert isinstance(task, ResumableTask)
    start(task)
    for _ in range(3):
        task.step(np.full(1, 0.2))
    saved = task.save()
    future = [task.step(np.full(1, 0.1)).state for _ in range(4)]
    start(task, "eval")
    for one in (task, copy, task):
        assert np.array_equal(one.restore(saved), saved.state)
        assert np.array_equal([one.step(np.full(1, 0.1)).state for _ in range(4)], future)
    assert (task.render("arm.eye", (8, 6))[:, 1:] == int(abs(future[-1][0]) * 10)).all()


def test_an_environment_that_does_not_repeat_itself_cannot_be_restored(dot, caplog):
    caplog.set_level(logging.WARNING)
    task = GymnasiumTask(dot(ignores_seed=True), instruction="x")
    assert isinstance(task, Task) and not isinstance(task, ResumableTask)
    assert "gives another episode for the same seed and actions" in caplog.text and "use the seed?" in caplog.text


def test_a_restore_that_ends_elsewhere_is_noticed(dot):
    task: Any = GymnasiumTask(dot())
    start(task)
    task.step(np.zeros(1))
    saved = task.save()
    task._env.unwrapped.odd["ignores_seed"] = True
    with pytest.raises(RuntimeError, match="another state than the saved one: the environment is not deterministic"):
        task.restore(saved)


def test_what_needs_a_reset_says_so(dot):
    task = GymnasiumTask(dot())
    for call in (lambda: task.step(np.zeros(1)), task.save):
        with pytest.raises(RuntimeError, match="expected a reset before"):
            call()


CLASS = """
from guerdon import GymnasiumTask, InfoThreshold

class Far(GymnasiumTask):
    def __init__(self, horizon=None, seed=0):
        super().__init__("ID", horizon, seed, instruction="go far", success=InfoThreshold("distance", 3.0))

    def expert(self):
        return lambda state: [1.0]
"""


def test_a_class_of_ones_own_sets_what_its_task_needs(dot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_far.py").write_text(CLASS.replace("ID", dot()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_far", raising=False)
    task: Any = make_task("own_far:Far", horizon=12)
    assert (task.name, task.instruction, task.horizon) == ("own_far:Far", "go far", 12)
    start(task)
    assert [task.step(np.ones(1)).success for _ in range(6)][-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gymnasium/FetchReach-v4", "gymnasium/FetchPush-v4", "gymnasium/gym_pusht/PushT-v0"])
def test_environments_of_others_keep_the_whole_protocol(name):
    report = check_task(name)
    assert "save and restore repeat the future bit for bit" in report.checked


def test_a_toy_keeps_the_whole_protocol(dot):
    check_task(f"gymnasium/{dot()}")
