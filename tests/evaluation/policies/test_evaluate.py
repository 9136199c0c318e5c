"""Evaluated policies: the same outcomes every time, whatever was played before, beside, or by how many workers."""

import json
import multiprocessing
import os
import signal
import time
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from torch import nn

from guerdon.core.batch import Decision
from guerdon.core.interfaces import Policy
from guerdon.envs.reach import joint_angles
from guerdon.evaluation.policies import evaluate as module
from guerdon.evaluation.policies.evaluate import evaluate_policy
from guerdon.evaluation.policies.playing import PART
from guerdon.evaluation.policies.setting import OpenedPolicy, PlaySetting

QUIET = Console(quiet=True)


class Arm(Policy):
    """Moves the arm's joints to the goal, with noise that depends on everything a run could get wrong."""

    horizon = 1

    def __init__(self, noise=0.8, name="arm"):
        super().__init__()
        self.noise, self.name = noise, name
        self.dropout = nn.Dropout(0.5)

    def act(self, observation, deterministic=False, generator=None):
        state = observation.state.numpy()
        wanted = np.stack([joint_angles(goal) for goal in state[:, 9:12]])
        action = torch.from_numpy((wanted - state[:, :3]) / 0.08).float().clamp(-1, 1)
        if not deterministic:
            action = action + self.noise * torch.randn(action.shape, generator=generator)
            action = action + self.noise * torch.randn(action.shape)  # of the global generator
        return Decision(chunk=self.dropout(action)[:, None], executed=torch.ones(len(state), dtype=torch.long))


def opened(noise=0.8, name="arm"):
    return OpenedPolicy(policy=Arm(noise), identity={"path": name, "class_path": "Arm", "hash": f"{name}{noise}"})


def evaluate(model=None, episodes=5, *, sampled=True, seed=0, horizon=14, tasks: Any = "mujoco/reach", **more: Any):
    setting = PlaySetting(sampled=sampled, seed=seed, horizon=horizon)
    return evaluate_policy(model or opened(), tasks, episodes, setting, console=QUIET, version="1", **more)


def rows(evaluation, policy="model"):
    return [(o.index, o.success, o.steps, o.reward) for o in evaluation.outcomes if o.policy == policy]


def test_the_same_call_gives_the_same_outcomes_and_another_seed_others():
    torch.manual_seed(1)
    first = rows(evaluate())
    torch.manual_seed(2)
    assert rows(evaluate()) == first
    assert rows(evaluate(seed=1)) != first
    assert [row[0] for row in first] == [1_000_000 + i for i in range(5)]


def test_more_starts_and_another_policy_beside_change_nothing():
    few = rows(evaluate(episodes=3))
    many = evaluate(episodes=PART + 3, against=opened(0.1, "other"))
    assert rows(many)[:3] == few
    alone = evaluate(opened(0.1, "other"), episodes=PART + 3)
    assert rows(many, "against") == rows(alone)


def test_policies_act_in_evaluation_mode():
    model = opened()
    model.policy.train()
    assert rows(evaluate(model, sampled=False)) == rows(evaluate(model, sampled=False))
    assert model.policy.training


def test_a_perfect_arm_and_a_lame_one():
    found = evaluate(opened(0.0), episodes=8, sampled=False, horizon=50, against=OpenedPolicy(
        policy=Lame(), identity={"path": "lame", "class_path": "Lame"}))  # fmt: skip
    model, against = found.tasks
    assert (model.success.value, against.success.value) == (1.0, 0.0)
    (paired,) = found.paired
    assert (paired.difference.value, paired.wins, paired.losses) == (1.0, 8, 0)
    assert paired.p_value == pytest.approx(2 / 2**8)


class Lame(Policy):
    """Never moves."""

    horizon = 2

    def act(self, observation, deterministic=False, generator=None):
        count = len(observation)
        return Decision(chunk=torch.zeros(count, 2, 3), executed=torch.full((count,), 2))


def test_an_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = evaluate(episodes=2 * PART + 3)
    played: list[int] = []
    real = module.play_part

    def stopping(pool, policy, contexts, number, setting):
        if len(played) == 1:
            raise KeyboardInterrupt
        played.append(number)
        return real(pool, policy, contexts, number, setting)

    monkeypatch.setattr(module, "play_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(episodes=2 * PART + 3, out=tmp_path / "out")
    monkeypatch.setattr(module, "play_part", lambda *order: [played.append(order[3]), real(*order)][1])
    found = evaluate(episodes=2 * PART + 3, out=tmp_path / "out")
    assert played == [0, 1, 2], "part 0 is played once"
    assert found.outcomes == whole.outcomes
    assert evaluate(episodes=2 * PART + 3, out=tmp_path / "out").outcomes == whole.outcomes and len(played) == 3
    more = evaluate(episodes=2 * PART + 5, out=tmp_path / "out")
    assert played[3:] == [2] and rows(more)[:-2] == rows(whole)
    assert rows(evaluate(episodes=4, out=tmp_path / "out")) == rows(whole)[:4]
    kept = pq.read_table(tmp_path / "out" / "outcomes").to_pylist()
    assert len(kept) == 2 * PART + 5
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["success"] for row in written["outcomes"]] == [row[1] for row in rows(whole)[:4]]
    assert written["versions"]["guerdon"] == "1" and written["setting"]["episodes"] == 4


@pytest.mark.parametrize("change", [{"model": opened(0.7)}, {"seed": 1}, {"sampled": False}, {"horizon": 15}])
def test_a_folder_of_something_else_is_refused(tmp_path, change):
    evaluate(episodes=1, out=tmp_path)
    with pytest.raises(ValueError, match="another evaluation"):
        evaluate(episodes=1, out=tmp_path, **change)


def test_several_tasks_have_aggregates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    twin = "class Twin(Reach):\n    name = 'twin_task/Twin'\n"
    (tmp_path / "twin_task.py").write_text(f"from guerdon.envs.reach import Reach\n\n\n{twin}")
    tasks = ["mujoco/reach", "twin_task:Twin"]
    found = evaluate(opened(0.3), 3, tasks=tasks, against=opened(0.9, "other"))
    assert [result.task for result in found.tasks] == [task for task in tasks for _ in range(2)]
    # a task's outcomes do not depend on the tasks before it
    alone = evaluate(opened(0.3), 3, tasks=tasks[1])
    assert alone.outcomes == [o for o in found.outcomes if (o.task, o.policy) == (tasks[1], "model")]
    assert set(found.interquartile_mean) == {"model", "against"}
    assert found.improvement is not None and len(found.paired) == 3


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"episodes": 0}, "at least 1 episode"),
        ({"workers": -1}, "0 or more workers"),
        ({"videos": 9}, "as many videos as episodes"),
        ({"videos": 1}, "name it with out"),
        ({"tasks": []}, "at least one, each once"),
        ({"tasks": ["mujoco/reach", "mujoco/reach"]}, "at least one, each once"),
    ],
)
def test_settings_that_make_no_sense_are_refused(more, says):
    with pytest.raises(ValueError, match=says):
        evaluate(**more)


def _evaluate_in(folder):
    evaluate(episodes=6 * PART, out=folder)


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [True, False])
def test_workers_change_nothing(sampled):
    found = [
        evaluate(episodes=PART + 4, sampled=sampled, workers=workers, against=opened(0.2, "o")) for workers in (0, 1, 2)
    ]
    assert found[0].outcomes == found[1].outcomes == found[2].outcomes


@pytest.mark.slow
def test_a_killed_evaluation_loses_at_most_a_part(tmp_path):
    out = tmp_path / "out"
    process = multiprocessing.get_context("spawn").Process(target=_evaluate_in, args=(out,))
    process.start()
    deadline = time.time() + 60
    while not list(out.glob("outcomes/*.00000.parquet")) and time.time() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = len(list(out.glob("outcomes/*.parquet")))
    assert kept >= 1
    assert evaluate(episodes=6 * PART, out=out).outcomes == evaluate(episodes=6 * PART).outcomes
