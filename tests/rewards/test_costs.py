import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guerdon.rewards.costs import Constraint, cost_table, external_reward, reward_of, stage_costs
from guerdon.rewards.grape.cost_files import (
    grape_repo,
)

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


@given(constraints=many, seed=st.integers(0, 1000), steps=st.integers(0, 12), unreached=st.floats(0, 9))
def test_the_same_as_a_literal_loop(constraints, seed, steps, unreached):
    given = track(seed, steps)
    assert external_reward(constraints, given, unreached) == pytest.approx(
        literal(constraints, given, unreached), rel=1e-9, abs=1e-300
    )


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
