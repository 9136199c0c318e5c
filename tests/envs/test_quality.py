"""Behaviours of chosen quality: what each does with its expert, its noise and its end."""

from typing import Any

import numpy as np
import pytest

from guerdon.envs.experts import scripted_expert
from guerdon.envs.quality import (
    QUALITIES,
    Aborted,
    Behaviour,
    Constant,
    Expert,
    NoisyExpert,
    RandomWalk,
    behaviour,
    expert_steps,
)
from guerdon.envs.vector import make_task


@pytest.fixture(scope="module")
def reach():
    task = make_task("mujoco/reach")
    yield task
    task.close()


def test_an_aborted_expert_follows_the_expert_then_leaves_it_then_stops(reach):
    expert = scripted_expert("mujoco/reach")
    context = reach.contexts("train", 1)[0]
    generator = np.random.default_rng(0)
    actor = Aborted(expert, 3, generator, abort_at=4, afterwards=3)
    state = reach.reset(context)
    for t in range(7):
        action = actor(state)
        assert action is not None
        assert np.array_equal(action, expert(state)) == (t < 4)
        state = reach.step(action).state
    assert actor(state) is None
    needed = expert_steps(reach, context)
    reach.reset(context)
    assert 1 < needed < reach.horizon


def test_noise_has_the_scale_asked_for():
    actor = NoisyExpert(lambda state: np.zeros(2), 2, np.random.default_rng(0), noise=0.2, burst_rate=0.0)
    actions = np.array([actor(np.zeros(1)) for _ in range(4000)])
    assert actions.std() == pytest.approx(0.2, rel=0.05)
    walk = RandomWalk(1, np.random.default_rng(0), persistence=0.9, scale=0.2)
    steps = np.array([walk(np.zeros(1))[0] for _ in range(20000)])
    assert steps.std() == pytest.approx(0.2, rel=0.1)
    assert np.corrcoef(steps[:-1], steps[1:])[0, 1] == pytest.approx(0.9, abs=0.02)


def test_a_burst_wanders_instead_of_following_the_expert():
    calm, wild = (
        NoisyExpert(lambda state: np.full(2, 0.5), 2, np.random.default_rng(0), noise=0.0, burst_rate=rate)
        for rate in (0.0, 0.2)
    )
    assert all(calm(np.zeros(1)).tolist() == [0.5, 0.5] for _ in range(50))
    away = [wild(np.zeros(1)).tolist() != [0.5, 0.5] for _ in range(200)]
    lengths = "".join("x" if there else " " for there in away).split()
    assert lengths and min(len(part) for part in lengths[:-1]) >= 5  # bursts of 5 to 15 steps, perhaps joined


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_behaviour_follows_from_its_generator(reach, quality):
    context = reach.contexts("train", 1)[0]

    def act():
        actor = behaviour(reach, context, quality, np.random.default_rng(7))
        state = reach.reset(context)
        return [actor(state) for _ in range(10)]

    for one, other in zip(act(), act(), strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or np.array_equal(one, other)


def test_each_quality_is_its_own_behaviour(reach):
    context, generator = reach.contexts("train", 1)[0], np.random.default_rng(0)
    kinds = [type(behaviour(reach, context, quality, generator)) for quality in QUALITIES]
    assert kinds == [Expert, NoisyExpert, Aborted, RandomWalk]
    assert Constant(np.ones(3))(np.zeros(12)).tolist() == [1.0] * 3
    with pytest.raises(NotImplementedError):
        Behaviour()(np.zeros(1))


def test_qualities_that_cannot_be_given_are_refused(reach):
    context, generator = reach.contexts("train", 1)[0], np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown quality 'clumsy': expected one of expert"):
        behaviour(reach, context, "clumsy", generator)

    class Named:
        name, action_size = "kitchen/kettle", 9

        def __getattr__(self, name):
            return getattr(reach, name)

    named: Any = Named()
    with pytest.raises(ValueError, match="kitchen/kettle has no scripted expert: only quality 'random'"):
        behaviour(named, context, "expert", generator)
    assert isinstance(behaviour(named, context, "random", generator), RandomWalk)


def test_an_expert_that_fails_needs_the_whole_time_limit():
    task = make_task("mujoco/reach", horizon=2)  # nobody arrives in two steps
    assert expert_steps(task, task.contexts("train", 1)[0]) == 2
    assert callable(scripted_expert(task.name))
    task.close()
