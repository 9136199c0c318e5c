"""Tasks by name: families, near names, missing simulators, and classes of a user's own."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guerdon.envs.naming import make_task, task_names
from guerdon.envs.vector import make_task as make_task_as_before
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.pool import TaskSetting, WorkerPool


@pytest.mark.parametrize(
    ("name", "near"),
    [("metaworld/push", "metaworld/push-v3"), ("kitchen/kettel", "kitchen/kettle"), ("reach", "mujoco/reach")],
)
def test_an_unknown_name_lists_near_ones(name, near):
    with pytest.raises(ValueError, match=f"unknown task '{name}': did you mean .*{near}"):
        make_task(name)


def test_an_impossible_horizon_is_refused():
    with pytest.raises(ValueError, match="horizon of at least one step, got 0"):
        make_task("mujoco/reach", horizon=0)


def test_a_missing_simulator_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "guerdon.envs.sawyer", None)
    with pytest.raises(ModuleNotFoundError):
        make_task("metaworld/push-v3")
    monkeypatch.delitem(sys.modules, "guerdon.envs.sawyer")
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs metaworld.*pip install 'guerdon\[sim\]'"):
        make_task("metaworld/push-v3")


def test_every_name_is_a_task_of_its_family():
    names = task_names()
    assert len(names) == len(set(names)) == 50 + 7 + 290 + 1
    assert {name.split("/")[0] for name in names} == {"metaworld", "kitchen", "mujoco", "libero"}


def test_gymnasium_itself_may_be_missing(monkeypatch: pytest.MonkeyPatch):
    for module in [name for name in sys.modules if name.startswith("guerdon.envs.gym_tasks.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ModuleNotFoundError, match=r"gymnasium/Any-v0 needs gymnasium.*pip install 'guerdon\[sim\]'"):
        make_task("gymnasium/Any-v0")


def test_an_unknown_name_says_which_forms_there_are():
    with pytest.raises(ValueError, match=r"unknown task 'zzz': Names are .*gymnasium/<ID>.*package.module:Class"):
        make_task("zzz")
    for name in ("kitchen/", "gymnasium/", "mujoco/reach/again", "metaworld", "a-b:C"):
        with pytest.raises(ValueError, match=f"unknown task '{name}'"):
            make_task(name)


def test_the_function_is_found_where_it_was():
    assert make_task_as_before is make_task


OWN = '''
"""A simulator of the user's own: a point on a line."""

import numpy as np

from guerdon.envs.task import Step, check_action, check_context, check_state, list_contexts


class Line:
    instruction = "move to the origin"
    state_size, action_size = 1, 1
    action_low, action_high = np.full(1, -1, np.float32), np.full(1, 1, np.float32)
    fps, stage_names, cameras = 10.0, ("distance",), ()

    def __init__(self, horizon: int = 7, seed: int = 0) -> None:
        self.name, self.horizon, self.seed, self.x = "NAME:Line", horizon, seed, 0.0

    def contexts(self, split, count=None):
        return list_contexts(self.name, split, count)

    def reset(self, context):
        check_context(self.name, context)
        self.x = np.random.default_rng([self.seed, context.index]).uniform(-1, 1)
        return check_state(self.name, np.array([self.x]))

    def step(self, action):
        self.x += 0.1 * check_action(self.name, action, self.action_low, self.action_high)[0]
        away = abs(self.x)
        return Step(state=check_state(self.name, np.array([self.x])), reward=-away, success=bool(away < 0.1),
                    terminated=False, stages={"distance": away}, tracks={})

    def tracks(self):
        return {}

    def render(self, camera=None, size=(96, 96)):
        raise ValueError("no camera")

    def close(self):
        pass


class Half:
    def __init__(self, horizon=7, seed=0):
        self.name = "half"


class Needy(Line):
    def __init__(self, address, horizon=7, seed=0):
        super().__init__(horizon, seed)


class Fixed(Line):
    def __init__(self, seed=0):
        super().__init__(3, seed)


def build(horizon=5, seed=0):
    return Line(horizon, seed)


number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Name of a module in the current folder, which is not on the path."""
    name = f"own_line_{abs(hash(request.node.name)) % 10**8}"
    (tmp_path / f"{name}.py").write_text(OWN.replace("NAME", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    return name


def test_a_class_of_the_current_folder_is_a_task(own: str):
    before = list(sys.path)
    task = make_task(f"{own}:Line")
    assert (task.horizon, task.seed, task.name) == (7, 0, f"{own}:Line")
    assert sys.path == before  # the folder is searched while the class is imported, and not after
    other = make_task(f"{own}:Line", horizon=4, seed=2)
    assert (other.horizon, other.seed) == (4, 2)
    assert make_task(f"{own}:build").horizon == 5


def test_a_class_on_the_path_may_lie_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "own_package" / "tasks"
    folder.mkdir(parents=True)
    (folder / "line.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_task("own_package.tasks.line:Line", horizon=2).horizon == 2


def test_classes_that_are_not_there_are_named(own: str):
    with pytest.raises(ModuleNotFoundError, match="nothing_here:Task: there is no module nothing_here: run"):
        make_task("nothing_here:Task")
    with pytest.raises(ModuleNotFoundError, match=f"there is no module {own}.deeper"):
        make_task(f"{own}.deeper:Task")
    Path("imports_more.py").write_text("import nothing_there\n")
    with pytest.raises(ModuleNotFoundError, match="imports_more imports nothing_there, which is not installed"):
        make_task("imports_more:Task")
    with pytest.raises(ValueError, match=f"{own} has no Lime; did you mean Line.*classes are Fixed, Half, Line, Needy"):
        make_task(f"{own}:Lime")
    with pytest.raises(ValueError, match="number: it is int, no class"):
        make_task(f"{own}:number")


def test_classes_that_are_no_tasks_say_what_is_missing(own: str):
    with pytest.raises(ValueError, match=r"Half is no task: it lacks instruction, .*contexts, reset, step.*check_task"):
        make_task(f"{own}:Half")
    with pytest.raises(ValueError, match=r"made by \(horizon=…, seed=…\) with defaults .* got \(address, horizon=7"):
        make_task(f"{own}:Needy")
    assert make_task(f"{own}:Fixed").horizon == 3
    with pytest.raises(ValueError, match=r"made by \(horizon=…, seed=…\).*unexpected keyword argument 'horizon'"):
        make_task(f"{own}:Fixed", horizon=3)


@pytest.mark.slow
def test_workers_find_a_class_of_the_current_folder(own: str):
    name = f"{own}:Line"
    setting = TaskSetting(task=name, horizon=4, end_on_success=False)
    policy: Any = GaussianPolicy(1, 1, hidden=(4,))
    contexts = make_task(name).contexts("train", 3)
    with WorkerPool(setting, envs=1, workers=1) as pool:
        pieces = pool.play(policy, contexts, seed=0)
    with WorkerPool(setting, envs=1) as here:
        again = here.play(policy, contexts, seed=0)
    for left, right in zip(pieces, again, strict=True):
        assert len(left.actions) == 4 and np.array_equal(left.state, right.state)
