"""Cost files: what they hold, what they refuse, the objectives they can be turned to, and the library."""

import json
import math
import re

import numpy as np
import pytest
from pydantic import ValidationError

from guerdon.core.interfaces import TaskPlan, TaskStage
from guerdon.envs.libero_tasks.catalogue import task_goals
from guerdon.rewards.costs import cost_table
from guerdon.rewards.grape.cost_files import (
    TaskCosts,
    efficiency,
    grape_repo,
    library,
    load_costs,
    safety,
    task_completion,
    with_thresholds,
)
from guerdon.rewards.stages.rule_decomposer import RuleDecomposer

FILE = {
    "task": "mine",
    "stages": ["reach", "move"],
    "points": {"wall": [0.0, 0.0, 0.1]},
    "flags": {"closed": {"track": "gripper", "below": 0.5}},
    "constraints": [
        {"stage": 0, "name": "near", "kind": "path", "op": "dist", "a": "hand", "b": "wall", "aggregate": "min"},
        {"stage": 1, "name": "held", "kind": "grasp", "op": "flag", "a": "closed"},
        {"stage": 1, "name": "time", "kind": "path", "op": "steps", "a": "hand", "threshold": 1, "weight": 0.1},
        {"stage": 1, "name": "clear", "kind": "collision", "op": "clearance", "a": "hand", "b": "wall", "margin": 0.3}
        | {"threshold": 0.1},
    ],
}


def moved():
    return {
        "stage": np.array([0, 1, 1, 1]),
        "hand": np.array([[0, 0, 0.3], [0, 0, 0.3], [0, 0, 0.4], [0, 0, 0.6]]),
        "gripper": np.array([1.0, 0.4, 0.5, 0.6]),
    }


def test_fixed_points_and_made_flags_by_hand():
    costs = load_costs(FILE)
    assert costs.read_points == {"hand"}
    assert (costs.read_flags, costs.read_numbers) == (frozenset(), {"gripper"})
    table = cost_table(costs.constraints, costs.complete(moved()))
    # 0.2 from the wall; 0.5 and 0.6 are not below 0.5; 3 steps of which 1 is free; 0.3 - 0.2 = 0.1 at one step, free
    assert [row.cost for row in table] == pytest.approx([0.2, 2.0, 0.2, 0.0], abs=1e-12)


def test_objectives_by_hand():
    costs = load_costs(FILE)

    def each(constraints):
        return [row.cost for row in cost_table(constraints, costs.complete(moved()))]

    assert each(task_completion(costs.constraints)) == pytest.approx([0.2, 2.0, 0.0, 0.0], abs=1e-12)
    assert each(safety(costs.constraints, 10)) == pytest.approx([0.2, 2.0, 0.2, 1.0], abs=1e-12)  # 10 · 0.1
    assert each(efficiency(costs.constraints, 10)) == pytest.approx([0.2, 2.0, 3.0, 0.0], abs=1e-12)  # 10 · 0.1 · 3
    assert each(safety(costs.constraints)) == pytest.approx([0.2, 2.0, 0.2, 0.1], abs=1e-12)
    assert each(efficiency(costs.constraints)) == pytest.approx([0.2, 2.0, 0.3, 0.0], abs=1e-12)
    assert each(with_thresholds(costs.constraints, 0.5)) == pytest.approx([0.2, 2.0, 0.25, 0.05], abs=1e-12)
    only = with_thresholds(costs.constraints, 0, "collision")
    assert each(only) == pytest.approx([0.2, 2.0, 0.2, 0.1], abs=1e-12)
    for wrong in (-1.0, math.inf):
        with pytest.raises(ValueError, match="factor"):
            safety(costs.constraints, wrong)
        with pytest.raises(ValueError, match="factor"):
            with_thresholds(costs.constraints, wrong)


def test_efficiency_of_costs_that_count_no_steps_lowers_the_path():
    lowered = [c.threshold for c in efficiency(grape_repo())]
    assert lowered == [20.0, 40.0, 0.0, 0.0, 5.0, 0.0, 0.0]  # 2 and 2 of the paths were free
    assert [c.weight for c in efficiency(grape_repo(), 3)] == pytest.approx([0.01, 0.01, 0.03, 0.01, 0.01, 0.01, 0.03])


def test_objectives_without_anything_to_change_are_refused():
    near, held, _, clear = load_costs(FILE).constraints
    for others, kinds in (([near, held], "grasp, path"), ([], "none")):
        with pytest.raises(ValueError, match=rf'safety has nothing.*"collision", got {kinds}'):
            safety(others)
    with pytest.raises(ValueError, match=r'efficiency has nothing.*"steps".*"path", got collision, grasp'):
        efficiency([held, clear])
    with pytest.raises(ValueError, match="safety has nothing"):
        safety(load_costs("kitchen/kettle").constraints)


def test_names_of_recorded_tracks():
    """What datasets and simulators call things: dots, slashes, a trailing underscore."""
    near = FILE["constraints"][0]
    for name in ("observation.hand", "left/ee", "hand_", "h", "a b-c"):
        assert load_costs(FILE | {"constraints": [near | {"a": name}]}).read_points == {name}
    for name in ("_hand", "9th", "hand.", "hand/", "händ", "hand\n", "a" * 41, ""):
        with pytest.raises(ValidationError):
            load_costs(FILE | {"constraints": [near | {"a": name}]})
    with pytest.raises(ValidationError, match="plain names"):
        load_costs(FILE | {"constraints": [near | {"name": "near.by"}]})  # a title, not a recorded name


@pytest.mark.parametrize("text", ['"task": "b"', '"points": {"w": [0, 0, 0], "w": [1, 1, 1]}'])
def test_a_key_given_twice_is_refused(text, tmp_path):
    path = tmp_path / "twice.json"
    path.write_text('{"task": "a", "stages": ["all"], "constraints": [], ' + text + "}")
    with pytest.raises(ValueError, match=r"twice\.json: expected every key once in an object, got '(task|w)' twice"):
        load_costs(path)
    path.write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=r"twice\.json"):
        load_costs(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stages": ["reach"]}, "stage 1"),
        ({"stages": ["reach", "Reach"]}, "distinct"),
        ({"stages": [f"stage {i}" for i in range(100)]}, "stages"),
        ({"stages": ["__import__('os').system('x')", "move"]}, "stages"),
        ({"stages": []}, "stages"),
        ({"points": {"stage": [0, 0, 0]}}, "stage"),
        ({"flags": {"closed": {"track": "stage", "below": 0.5}}}, "'stage' holds the stages"),
        ({"constraints": [FILE["constraints"][0] | {"a": "stage"}]}, "'stage' holds the stages"),
        ({"points": {"closed": [0, 0, 0]}}, "distinct"),
        ({"points": {"wall": [0, math.nan, 0]}}, "wall"),
        ({"flags": {"closed": {"track": "gripper", "below": 1, "above": 0}}}, "one bound"),
        ({"flags": {"closed": {"track": "gripper"}}}, "one bound"),
        ({"further": 1}, "further"),
        ({"constraints": [FILE["constraints"][0]] * 2}, "two constraints"),
        ({"constraints": [FILE["constraints"][1] | {"b": "wall"}]}, "reads no second point"),
        ({"constraints": [FILE["constraints"][0] | {"weight": 1e9}]}, "weight"),
        ({"constraints": [FILE["constraints"][0] | {"a": "hand; drop"}]}, "plain names"),
    ],
)
def test_bad_files_are_named(change, named):
    with pytest.raises(ValidationError, match=named):
        load_costs(FILE | change)


def test_what_does_not_fit_a_file_is_named(tmp_path):
    costs = load_costs(FILE)
    with pytest.raises(ValueError, match=r"'wall'.*recorded too"):
        costs.complete(moved() | {"wall": np.zeros((4, 3))})
    with pytest.raises(ValueError, match="'gripper'"):
        costs.complete({"stage": np.zeros(4, int)})
    with pytest.raises(ValueError, match=r"'gripper'.*finite"):
        costs.complete(moved() | {"gripper": np.full(4, np.nan)})
    plan = TaskPlan(instruction="do it", stages=(TaskStage(name="reach"), TaskStage(name="move")))
    costs.check_plan(plan)
    with pytest.raises(ValueError, match=r"reach, move.*grasp"):
        costs.check_plan(TaskPlan(instruction="do it", stages=(TaskStage(name="reach"), TaskStage(name="grasp"))))
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(FILE))
    assert load_costs(path) == load_costs(str(path)) == costs
    assert TaskCosts.model_validate(json.loads(costs.model_dump_json())) == costs
    path.write_text('{"task": "half')
    with pytest.raises(ValueError, match=r"mine\.json"):
        load_costs(path)
    with pytest.raises(ValueError, match=r"no costs for 'nothing/here'.*metaworld/push-v3"):
        load_costs("nothing/here")


def test_the_library_reads_what_the_simulators_record():
    names = library()
    assert sum(name.startswith("metaworld/") for name in names) >= 12
    assert sum(name.startswith("kitchen/") for name in names) == 7
    for suite, least in {"libero_object": 10, "libero_spatial": 9, "libero_goal": 9, "libero_10": 7}.items():
        assert sum(name.startswith(f"libero/{suite}/") for name in names) >= least
    for name in names:
        costs = load_costs(name)
        assert costs.task == re.sub(r"_(safety|efficiency)$", "", name)  # files of one task for other objectives
        (plan,) = RuleDecomposer().plan(costs.instructions)
        costs.check_plan(plan)
        recorded = {"end_effector", "object"} | (set() if name.startswith("kitchen/") else {"goal"})
        if name.startswith("libero/"):
            parts = range(2, len(task_goals()[costs.task].parts) + 1)
            recorded |= {f"{track}_{number}" for track in ("object", "goal") for number in parts}
        assert costs.read_points <= recorded
        assert costs.read_numbers <= {"gripper"}
        assert not costs.read_flags
        assert {c.stage for c in costs.constraints} == set(range(len(costs.stages)))


def test_the_files_of_objectives_differ_from_the_task_in_what_they_are_for():
    names = set(library())
    for name in names:
        base, _, objective = name.rpartition("_")
        if objective not in ("safety", "efficiency"):
            continue
        task, other = load_costs(base), load_costs(name)
        assert (task.stages, task.instructions) == (other.stages, other.instructions)
        if objective == "safety":  # the smallest violation costs something
            collisions = [c for c in other.constraints if c.kind == "collision"]
            assert collisions and all(c.threshold == 0 and c.weight > 0 for c in collisions)
        else:  # so does every step
            steps = [c for c in other.constraints if c.op == "steps"]
            assert {c.stage for c in steps} == set(range(len(other.stages)))
            assert all(c.threshold == 0 and c.weight > 0 for c in steps)
