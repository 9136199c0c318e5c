import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guerdon.core.interfaces import TaskPlan, TaskStage
from guerdon.rewards.costs import Constraint, cost_table, external_reward, reward_of, stage_costs
from guerdon.rewards.grape.cost_files import (
    TaskCosts,
    efficiency,
    grape_repo,
    load_costs,
    safety,
    task_completion,
    with_thresholds,
)

properties = settings(max_examples=40, deadline=None)
OPS = ("dist", "dist_xy", "above", "clearance", "flag", "steps")
AGGREGATES = ("sum", "mean", "last", "min", "max")


def constraint(**given):
    a = "held" if given.get("op") == "flag" else "a"
    defaults = {"stage": 0, "name": "one", "kind": "path", "op": "dist", "a": a}
    if given.get("op", "dist") not in ("flag", "steps"):
        defaults["b"] = "b"
    return Constraint(**defaults | given)


def track(seed=0, steps=7, stages=2):
    generator = np.random.default_rng(seed)
    return {
        "stage": np.sort(generator.integers(-1, stages, steps)),
        "a": generator.normal(0, 0.3, (steps, 3)),
        "b": generator.normal(0, 0.3, (steps, 3)),
        "held": generator.random(steps) < 0.5,
    }


HAND = {
    "stage": np.array([0, 0, 1, 1]),
    "a": np.array([[0.0, 0, 0], [0, 0, 1], [3, 4, 0], [0, 0, 0.5]]),
    "b": np.array([[0.0, 0, 2], [0, 0, 1], [0, 0, 0], [0, 0, 0]]),
    "held": np.array([False, True, False, False]),
}


@pytest.mark.parametrize(
    ("given", "cost"),
    [
        ({"op": "dist"}, 2.0 + 0.0),  # distances 2, 0, 5, 0.5; the stage has the first two
        ({"op": "dist", "stage": 1}, 5.0 + 0.5),
        ({"op": "dist_xy", "stage": 1}, 5.0 + 0.0),
        ({"op": "dist", "stage": 1, "aggregate": "mean"}, 2.75),
        ({"op": "dist", "stage": 1, "aggregate": "last"}, 0.5),
        ({"op": "dist", "stage": 1, "aggregate": "min"}, 0.5),
        ({"op": "dist", "stage": 1, "aggregate": "max"}, 5.0),
        ({"op": "above"}, 2.0),  # 0 <= 2 and 1 <= 1: at the same height it is not above
        ({"op": "above", "margin": -0.5}, 1.0),  # 1 <= 1 - 0.5 is false
        ({"op": "above", "stage": 1}, 1.0),  # 0 <= 0, and 0.5 is above
        ({"op": "clearance", "margin": 0.75, "stage": 1}, 0.25),  # max(0, 0.75 - 5) + max(0, 0.75 - 0.5)
        ({"op": "flag"}, 1.0),
        ({"op": "flag", "stage": 1}, 2.0),
        ({"op": "steps"}, 2.0),
        ({"op": "dist", "stage": 1, "threshold": 5.0}, 0.5),
        ({"op": "dist", "stage": 1, "threshold": 5.5}, 0.0),
        ({"op": "dist", "stage": 1, "threshold": 5.0, "weight": 3.0}, 1.5),
        ({"op": "steps", "stage": 2}, 5.0),  # never reached
        ({"op": "steps", "stage": 2, "weight": 100.0, "threshold": 9.0}, 5.0),  # not weighted, not free
        ({"op": "steps", "weight": 0.0}, 0.0),
    ],
)
def test_by_hand(given, cost):
    assert external_reward([constraint(**given)], HAND) == pytest.approx(math.exp(-cost), rel=1e-12)


def test_every_constraint_of_an_unreached_stage_costs_once():
    both = [constraint(stage=4, name="one"), constraint(stage=4, name="two", op="steps")]
    assert external_reward(both, HAND, unreached=0.7) == pytest.approx(math.exp(-1.4))
    assert external_reward(both, HAND, unreached=0) == 1.0
    assert [row.reached for row in cost_table(both, HAND)] == [False, False]


def test_nothing_asked_is_1_and_nothing_done_is_unreached():
    assert external_reward([], HAND) == 1.0
    empty = {"stage": np.zeros(0, np.int64), "a": np.zeros((0, 3)), "b": np.zeros((0, 3))}
    assert external_reward([constraint()], empty) == pytest.approx(math.exp(-5))


def test_the_numbers_of_the_released_code():
    """Three stages of 50, 10 and 10 steps; hand-computed from its thresholds (20, 40, 2), (0, 5, 2), (0, 10, 2)."""
    steps = 70
    stage = np.repeat([0, 1, 2], [50, 10, 10])
    hand, thing, target = (np.zeros((steps, 3)) for _ in range(3))
    hand[stage == 0] = [0.1, 0, -1]  # below the object
    hand[stage == 1] = hand[stage == 2] = [0, 0, 1]
    target[stage == 1] = [0.3, 0.4, 0.7]  # 0.5 away in the plane
    target[stage == 2] = [0.0, 0, 0.3]
    grasped = stage > 0
    grasped[np.flatnonzero(stage == 1)[:7]] = False
    held = {"stage": stage, "end_effector": hand, "object": thing, "target": target, "grasped": grasped}
    reach = math.sqrt(0.01 + 1) * 50  # distance of the hand, 50 steps
    expected = (50 - 20) + (50 - 40) + (reach - 2)  # stage 1: collision, grasp, path
    expected += (10 * 0.5 - 0) + (7 - 5)  # stage 2: in the plane, and 7 steps not held
    expected += 0 + (10 * 0.3 - 2)  # stage 3: always above, 10 steps 0.3 from the target
    assert external_reward(grape_repo(), held) == pytest.approx(math.exp(-0.01 * expected), rel=1e-12)
    short = {name: values[:50] for name, values in held.items()}
    first = math.exp(-0.01 * (30 + 10 + reach - 2))
    assert external_reward(grape_repo(), short, unreached=0) == pytest.approx(first)  # as there: failing early is free
    assert external_reward(grape_repo(), short) == pytest.approx(first * math.exp(-4 * 5))  # here it is not


def literal(constraints, track, unreached=5.0):
    """One step at a time, in words of its own."""
    total = 0.0
    for c in constraints:
        costs = []
        for t, stage in enumerate(track["stage"]):
            if stage != c.stage:
                continue
            if c.op == "steps":
                costs.append(1.0)
            elif c.op == "flag":
                costs.append(0.0 if track[c.a][t] else 1.0)
            else:
                a, b = track[c.a][t], track[c.b][t]
                gap = math.dist(a, b)
                costs.append(
                    {
                        "dist": gap,
                        "dist_xy": math.dist(a[:2], b[:2]),
                        "above": 1.0 if a[2] <= b[2] + c.margin else 0.0,
                        "clearance": max(0.0, c.margin - gap),
                    }[c.op]
                )
        if not costs:
            total += unreached
            continue
        value = {
            "sum": sum(costs),
            "mean": sum(costs) / len(costs),
            "last": costs[-1],
            "min": min(costs),
            "max": max(costs),
        }[c.aggregate]
        total += c.weight * max(0.0, value - c.threshold)
    return math.exp(-total)


numbers = st.floats(-3, 3)
many = st.lists(
    st.builds(
        lambda stage, op, margin, aggregate, threshold, weight: constraint(
            stage=stage, op=op, margin=margin, aggregate=aggregate, threshold=threshold, weight=weight
        ),
        st.integers(0, 3),
        st.sampled_from(OPS),
        numbers,
        st.sampled_from(AGGREGATES),
        numbers,
        st.floats(0, 3),
    ),
    max_size=6,
)


@properties
@given(constraints=many, seed=st.integers(0, 1000), steps=st.integers(0, 12), unreached=st.floats(0, 9))
def test_the_same_as_a_literal_loop(constraints, seed, steps, unreached):
    given = track(seed, steps)
    assert external_reward(constraints, given, unreached) == pytest.approx(
        literal(constraints, given, unreached), rel=1e-9, abs=1e-300
    )


@properties
@given(constraints=many, seed=st.integers(0, 1000))
def test_a_product_over_stages_in_0_to_1(constraints, seed):
    given = track(seed)
    table = cost_table(constraints, given)
    reward = external_reward(constraints, given)
    assert 0 < reward <= 1
    product = math.prod(reward_of(cost) for cost in stage_costs(table).values())
    assert reward == pytest.approx(product, rel=1e-9)
    apart = math.prod(external_reward([c], given) for c in constraints)
    assert reward == pytest.approx(apart, rel=1e-9)
    as_dictionaries = [json.loads(c.model_dump_json()) for c in constraints]
    assert external_reward(as_dictionaries, given) == reward


@properties
@given(constraints=many, seed=st.integers(0, 1000), more=st.floats(0, 4))
def test_looser_never_costs_more(constraints, seed, more):
    given = track(seed)
    reward = external_reward(constraints, given)
    looser = [c.model_copy(update={"threshold": c.threshold + more}) for c in constraints]
    heavier = [c.model_copy(update={"weight": c.weight + more}) for c in constraints]
    assert external_reward(looser, given) >= reward
    assert external_reward(heavier, given) <= reward
    assert external_reward([*constraints, constraint(name="another")], given) <= reward
    assert external_reward(constraints, given, unreached=5 + more) <= reward


@properties
@given(seed=st.integers(0, 1000), aggregate=st.sampled_from(AGGREGATES), further=st.floats(1.01, 3))
def test_farther_never_costs_less_and_up_to_the_threshold_is_free(seed, aggregate, further):
    given = track(seed, steps=9) | {"stage": np.zeros(9, np.int64)}
    one = constraint(aggregate=aggregate)
    away = given | {"a": given["b"] + further * (given["a"] - given["b"])}
    assert external_reward([one], away) < external_reward([one], given)
    (row,) = cost_table([one], given)
    assert external_reward([one.model_copy(update={"threshold": row.aggregate})], given) == 1.0


def test_never_below_the_smallest_positive_float():
    for heavy in (
        {"weight": 1e300},
        {"weight": 1e308, "stage": 1},
        {"op": "steps", "weight": 1e308, "threshold": -1e308},
    ):
        assert external_reward([constraint(**heavy)], HAND) == sys.float_info.min
    far = HAND | {"a": np.full((4, 3), 1.7e308), "b": np.full((4, 3), -1.7e308)}
    assert external_reward([constraint()], far) == sys.float_info.min  # even the distance overflows
    assert external_reward([constraint(weight=0.0)], far) == 1.0
    wide = HAND | {"a": np.full((4, 3), 1e200), "b": np.zeros((4, 3))}
    assert external_reward([constraint(threshold=1e201)], wide) == 1.0  # squares would overflow, the distance does not
    assert external_reward([constraint(stage=9)] * 400, HAND) == sys.float_info.min


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"a": None}, "'a'"),
        ({"b": None}, "'b'"),
        ({"stage": None}, "'stage'"),
        ({"a": np.full((4, 3), np.nan)}, "'a'"),
        ({"b": np.array([[0, 0, 0]] * 3 + [[0, np.inf, 0.0]])}, "'b'.*step 3"),  # also at a step of another stage
        ({"a": np.zeros((4, 2))}, "'a'.*points"),
        ({"a": np.zeros(4)}, "'a'.*points"),
        ({"a": np.zeros((3, 3))}, "'a'.*4 steps"),
        ({"other": np.zeros((5, 3))}, "'other'.*4 steps"),
        ({"other": 3.0}, "'other'.*4 steps"),
        ({"a": np.array([["x"] * 3] * 4)}, "'a'.*points"),
        ({"a": np.array([[None] * 3] * 4)}, "'a'.*points"),
        ({"stage": np.zeros(4)}, "'stage'.*whole"),
        ({"stage": np.zeros(4, bool)}, "'stage'.*whole"),
        ({"stage": np.zeros((4, 1), int)}, "'stage'.*whole"),
        ({"stage": np.array([0, 0, -2, 0])}, "'stage' is -2 at step 2"),
    ],
)
def test_bad_tracks_are_named(change, named):
    given = {name: values for name, values in (HAND | change).items() if values is not None}
    with pytest.raises(ValueError, match=named):
        external_reward([constraint()], given)


def test_bad_names_are_found_in_stages_never_reached_too():
    with pytest.raises(ValueError, match="'nowhere'"):
        external_reward([constraint(stage=7, a="nowhere")], HAND)
    with pytest.raises(ValueError, match=r"'a'.*flag"):
        external_reward([constraint(op="flag", a="a")], HAND)
    with pytest.raises(ValueError, match=r"'held'.*flag"):
        external_reward([constraint(op="flag")], HAND | {"held": np.array([0, 1, 0, 1])})
    with pytest.raises(ValueError, match="unreached"):
        external_reward([constraint()], HAND, unreached=-1.0)
    with pytest.raises(ValueError, match="unreached"):
        external_reward([constraint()], HAND, unreached=math.nan)


def test_what_no_constraint_reads_may_be_anything():
    given = HAND | {"gripper": np.full(4, np.nan)}
    assert external_reward([constraint()], given) == external_reward([constraint()], HAND)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "collission"},
        {"op": "exec"},
        {"op": "dist", "b": None},
        {"op": "clearance", "b": None},
        {"aggregate": "median"},
        {"stage": -1},
        {"stage": 0.0},
        {"stage": True},
        {"stage": "0"},
        {"weight": -1.0},
        {"weight": math.inf},
        {"weight": True},
        {"weight": "1"},
        {"weight": 10**400},
        {"threshold": math.nan},
        {"margin": math.inf},
        {"name": ""},
        {"a": ""},
        {"a": 3},
        {"tau": 1.0},
    ],
)
def test_constraints_that_are_none(change):
    with pytest.raises(ValidationError):
        constraint(**change)
    with pytest.raises(ValueError):
        external_reward([constraint().model_dump() | change], HAND)


def test_numpy_numbers_are_numbers():
    one = constraint(stage=np.int64(0), weight=np.float32(0.5), threshold=np.int32(1))
    assert external_reward([one], HAND) == pytest.approx(math.exp(-0.5))


def test_nothing_is_ever_executed(tmp_path):
    trap = tmp_path / "trap"
    text = f"open({str(trap)!r}, 'w')"
    with pytest.raises(ValueError, match="holds no"):
        external_reward([constraint(a=text[:90])], HAND)
    with pytest.raises(ValidationError):
        constraint(op=text)
    assert not trap.exists()


# cost files

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
