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
from guerdon.envs.task import expert_noise
from guerdon.envs.vector import make_task


@pytest.fixture(scope="module")
def reach():
    task = make_task("mujoco/reach")
    yield task
    task.close()


class Without:
    """A task without one of its members."""

    def __init__(self, task, member):
        self._task, self._member = task, member

    def __getattr__(self, name):
        if name == self._member:
            raise AttributeError(name)
        return getattr(self._task, name)


class Reading:
    """A reach task in other bounds, whose expert reads the goal at the reset that it acts in, and keeps still."""

    action_low, action_high = np.array([0.0, 0.0, 0.0], np.float32), np.array([512.0, 100.0, 4.0], np.float32)

    def __init__(self, task, noise=None):
        self._task, self.made = task, []
        if noise is not None:
            self.expert_noise = np.array(noise)

    def __getattr__(self, name):
        if name in ("expert", "expert_noise"):
            raise AttributeError(name)
        return getattr(self._task, name)

    def expert(self):
        self.made.append(self._task.tracks()["goal"].copy())
        return lambda state: np.array([384.0, 50.0, 1.0])


@pytest.mark.parametrize("quality", ["expert", "noisy", "aborted"])
def test_an_expert_is_made_after_the_reset_that_it_acts_in(reach, quality):
    task: Any = Reading(reach)
    other, context = reach.contexts("train", 2)
    reach.reset(other)
    actor = behaviour(task, context, quality, np.random.default_rng(0))
    task.made.clear()  # an aborted expert ran once, to count its steps
    state = reach.reset(context)
    goal = reach.tracks()["goal"]
    actor(state)
    actor(state)
    assert len(task.made) == 1 and np.array_equal(task.made[0], goal)


def test_behaviours_act_in_the_bounds_of_the_task(reach):
    task: Any = Reading(reach)
    context = reach.contexts("train", 1)[0]
    state = reach.reset(context)
    assert behaviour(task, context, "expert", np.random.default_rng(0))(state).tolist() == [384.0, 50.0, 1.0]
    for quality in ("noisy", "random"):
        actor = behaviour(task, context, quality, np.random.default_rng(0))
        actions = np.array([actor(state) for _ in range(400)])
        assert (actions >= task.action_low).all() and (actions <= task.action_high).all()
        spread = actions.std(0) / ((task.action_high - task.action_low) / 2)
        assert spread == pytest.approx(spread.mean(), rel=0.4) and spread.min() > 0.2


def test_the_expert_keeps_the_dimensions_that_take_no_noise(reach):
    """The third is a gripper, say: neither noise nor bursts may open it."""
    context = reach.contexts("train", 1)[0]
    for noise, spread in ((None, [0.2, 0.1]), (0.3, [0.3, 0.3])):
        task: Any = Reading(reach, [0.2, 0.1, 0.0])
        pooled = []
        for seed in range(20):
            actor: Any = behaviour(task, context, "noisy", np.random.default_rng(seed), noise)
            actor._actor._burst_rate = 0.0
            pooled += [actor(reach.reset(context)) for _ in range(100)]
        actions = (np.array(pooled) - [384.0, 50.0, 1.0]) / [256.0, 50.0, 2.0]
        assert (actions[:, 2] == 0).all()
        # each episode draws between half of it and all of it: 0.76 of it in the root mean square
        assert actions[:, :2].std(0) == pytest.approx(0.76 * np.array(spread), rel=0.15)
    wild: Any = behaviour(task, context, "noisy", np.random.default_rng(0), 0.0)
    wild._actor._burst_rate = 1.0
    burst = np.array([wild(np.zeros(12)) for _ in range(20)])
    assert (burst[:, 2] == 1.0).all() and (burst[:, :2] != [384.0, 50.0]).all()


def test_noise_that_makes_no_sense_is_refused(reach):
    with pytest.raises(ValueError, match="noise of at least 0, in half ranges of the action, got -1"):
        expert_noise(reach, -1)
    short: Any = Reading(reach, [0.2])
    with pytest.raises(ValueError, match=r"expected expert_noise of shape \(3,\)"):
        expert_noise(short)
    assert expert_noise(reach).tolist() == [0.5] * 3 and expert_noise(reach, 0.1).tolist() == [0.1] * 3


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

    bare: Any = Without(reach, "expert")
    with pytest.raises(ValueError, match="mujoco/reach has no scripted expert: only quality 'random'"):
        behaviour(bare, context, "expert", generator)
    assert isinstance(behaviour(bare, context, "random", generator), RandomWalk)


def test_an_expert_that_fails_needs_the_whole_time_limit():
    task: Any = make_task("mujoco/reach", horizon=2)  # nobody arrives in two steps
    assert expert_steps(task, task.contexts("train", 1)[0]) == 2
    assert callable(scripted_expert(task.name))
    task.close()
