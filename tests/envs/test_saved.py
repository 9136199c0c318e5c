"""Saved states go on as if nothing had happened, in the task that saved them and in another copy."""

from typing import Any

import numpy as np
import pytest

from guerdon.envs.experts import has_expert, scripted_expert
from guerdon.envs.saved import check_saved
from guerdon.envs.vector import make_task

pytestmark = pytest.mark.slow

NAMES = (
    *("mujoco/reach", "kitchen/microwave"),
    *("metaworld/button-press-v3", "metaworld/drawer-open-v3", "metaworld/pick-place-v3"),
    *("metaworld/peg-insert-side-v3", "metaworld/hammer-v3", "metaworld/basketball-v3", "metaworld/door-lock-v3"),
)


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    tasks = make_task(request.param, seed=2), make_task(request.param, seed=2)
    yield tasks
    for task in tasks:
        task.close()


def act(task, state, expert, generator):
    """The expert with some noise, so that something is touched; at random where there is none."""
    noise = generator.uniform(task.action_low, task.action_high)
    return noise if expert is None else np.clip(expert(state) + 0.2 * noise, task.action_low, task.action_high)


def play(task, state, actions):
    found = []
    for action in actions:
        step = task.step(action)
        stages = [step.stages[name] for name in task.stage_names]
        points = np.concatenate([step.tracks[name] for name in sorted(step.tracks)])
        found.append(np.concatenate([step.state, [step.reward, step.success], stages, points]))
    return np.array(found)


def test_the_same_actions_lead_to_the_same_bits_from_every_saved_state(pair):
    task, other = pair
    expert = scripted_expert(task.name) if has_expert(task.name) else None
    generator = np.random.default_rng(0)
    context, elsewhere = task.contexts("train", 2)
    state = task.reset(context)
    saved, states, tracks, actions = [], [], [], []
    length = 20 if task.name.startswith("kitchen/") else 60
    for t in range(length):
        if t in (0, 1, 17, 40):
            saved.append((t, task.save()))
            states.append(state)
            tracks.append(task.tracks())
        actions.append(act(task, state, expert, generator))
        state = task.step(actions[-1]).state
    whole = [(t, play_from(task, context, actions, t)) for t, _ in saved]
    other.reset(elsewhere)  # what another episode left behind must not matter
    play(other, None, actions[:7])
    for place, (t, kept) in enumerate(saved):
        for copy in (task, other, task):
            assert np.array_equal(copy.restore(kept), states[place])
            now = copy.tracks()
            assert all(np.array_equal(now[name], tracks[place][name]) for name in now)
            assert np.array_equal(play(copy, None, actions[t:]), whole[place][1])


def play_from(task, context, actions, first):
    """What the episode gives from a step on, played from its reset."""
    task.reset(context)
    return play(task, None, actions)[first:]


def test_a_restored_task_can_be_reset_to_its_contexts_as_before(pair):
    task, other = pair
    first, second = task.contexts("eval", 2)
    actions = np.random.default_rng(1).uniform(-1, 1, (8, task.action_size))
    task.reset(first)
    before = play(task, None, actions)
    task.reset(second)
    play(task, None, actions[:3])
    task.restore(task.save())
    task.reset(first)
    assert np.array_equal(play(task, None, actions), before)
    other.restore(task.save())
    other.reset(first)
    assert np.array_equal(play(other, None, actions), before)


def test_states_of_other_tasks_are_refused():
    reach: Any = make_task("mujoco/reach")
    seeded: Any = make_task("mujoco/reach", seed=1)
    drawer: Any = make_task("kitchen/kettle")
    reach.reset(reach.contexts("train", 1)[0])
    saved = reach.save()
    with pytest.raises(ValueError, match=r"saved by Reach mujoco/reach with seed 1, got one of .* with seed 0"):
        seeded.restore(saved)
    with pytest.raises(ValueError, match="Kitchen kitchen/kettle"):
        drawer.restore(saved)
    with pytest.raises(TypeError, match=r"expected what Task.save\(\) returned, got ndarray"):
        check_saved(reach, np.zeros(12))
    for task in (reach, seeded, drawer):
        task.close()
