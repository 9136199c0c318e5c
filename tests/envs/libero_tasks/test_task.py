"""LIBERO behind the task protocol: its own numbers, exact contexts, exact restoring, and what each split holds."""

# MuJoCo's compiled half ships no type stubs: its names are unknown to the type checker.
# pyright: reportAttributeAccessIssue=false
import contextlib
import io

import mujoco
import numpy as np
import pytest

from guerdon.envs.libero_tasks.task import SETTLING_STEPS, Libero
from guerdon.envs.task import EVAL_OFFSET, OFFICIAL_OFFSET, ResumableTask

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("libero")]

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (40, 7))


def play(task, context, actions=ACTIONS):
    return np.array([task.reset(context), *(task.step(action).state for action in actions)])


def whole_state(task):
    """All that MuJoCo integrates, and the model's moved fixtures."""
    model, data = task.problem.sim.model._model, task.problem.sim.data._data
    state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    return np.concatenate([state, model.body_pos.ravel()])


def touching(task, name):
    """Whether the robot touches an object or fixture."""
    model, data = task.problem.sim.model._model, task.problem.sim.data._data
    body = [model.body(number).name for number in model.geom_bodyid]
    pairs = [(body[contact.geom1], body[contact.geom2]) for contact in data.contact[: data.ncon]]
    return any(a.startswith("gripper0") and b.startswith(name) for pair in pairs for a, b in (pair, pair[::-1]))


def test_a_task_says_what_it_is(libero):
    task = libero("libero_object", 0)
    assert isinstance(task, ResumableTask)
    assert task.instruction == "pick up the alphabet soup and place it in the basket"
    assert task.goal == (("in", "alphabet_soup_1", "basket_1_contain_region"),)
    assert task.cameras[:2] == ("agentview", "robot0_eye_in_hand")
    assert (task.horizon, task.fps, task.action_size) == (280, 20.0, 7)
    assert libero("libero_goal", 7).stage_names == ("satisfied", "goal_1")


def test_states_are_libero_s_own_observations(libero):
    """An independent run through LIBERO's environment and its protocol gives the same numbers."""
    task = libero("libero_goal", 7)
    with contextlib.redirect_stdout(io.StringIO()):
        from libero.libero.envs.env_wrapper import ControlEnv
        from robosuite.utils.transform_utils import quat2axisangle, quat2mat

        other = ControlEnv(
            bddl_file_name=task.problem.bddl_file_name, use_camera_obs=False, has_offscreen_renderer=False
        )
    context = task.contexts("official", 3)[2]
    assert task.official_state(context) == 2
    state = task.reset(context)
    other.reset()
    placed = other.sim.model._model
    placed.body_pos[:] = task.problem.sim.model._model.body_pos  # where fixtures stand is drawn, and not in the state
    placed.body_quat[:] = task.problem.sim.model._model.body_quat
    seen = other.set_init_state(task._states[2])
    for _ in range(SETTLING_STEPS):
        seen, *_ = other.step([0.0] * 6 + [-1.0])
    columns = task.columns
    for action in (None, *ACTIONS[:25]):
        if action is not None:
            state, (seen, _, done, _) = task.step(action).state, other.step(action)
            assert not done
        assert other.sim.data.qpos == pytest.approx(task.problem.sim.data.qpos, abs=1e-9)
        other.env._update_observables(force=True)  # as they come they are one internal step, 2 ms, older
        seen = other.env._get_observations()
        for name, first in {"robot0_eef_pos": "end_effector", "robot0_gripper_qpos": "gripper"}.items():
            assert state[slice(*columns[first])] == pytest.approx(seen[name], abs=1e-6)
        assert state[slice(*columns["arm"])] == pytest.approx(seen["robot0_joint_pos"], abs=1e-6)
        for name in ("akita_black_bowl_1", "plate_1", "wine_bottle_1"):
            assert state[slice(*columns[name])] == pytest.approx(seen[f"{name}_pos"], abs=1e-6)
        turned = quat2axisangle(seen["robot0_eef_quat"].copy())
        assert state[slice(*columns["end_effector.rotation"])] == pytest.approx(turned, abs=1e-5)
        matrix = quat2mat(seen["plate_1_quat"])[:, :2].T.ravel()
        assert state[slice(*columns["plate_1.rotation"])] == pytest.approx(matrix, abs=1e-5)
    other.close()


@pytest.mark.parametrize(("suite", "number"), [("libero_spatial", 7), ("libero_10", 3)])
def test_drawn_states_are_those_of_a_full_reset(libero, suite, number):
    """Objects on a stove or in a drawer are placed from where the compiled model has it, as robosuite does."""
    task = libero(suite, number)
    with contextlib.redirect_stdout(io.StringIO()):
        from libero.libero.envs.env_wrapper import ControlEnv

        other = ControlEnv(
            bddl_file_name=task.problem.bddl_file_name, use_camera_obs=False, has_offscreen_renderer=False
        )
    for context in task.contexts("eval", 12)[10:]:
        task.reset(context)
        seed = int(np.random.SeedSequence([0, context.index, 1]).spawn(1)[0].generate_state(1)[0])
        other.seed(seed)
        other.env.object_property_initializers.clear()  # each full reset adds them once more, and draws from all
        other.reset()
        for _ in range(SETTLING_STEPS):
            other.step([0.0] * 6 + [-1.0])
        ours, theirs = task.problem.sim, other.sim
        assert np.array_equal(ours.model._model.body_pos, theirs.model._model.body_pos)
        assert ours.data.qpos == pytest.approx(theirs.data.qpos, abs=1e-5)
    other.close()


def test_the_proprioceptive_state_is_the_beginning_of_the_full_one(libero):
    full, robot = libero("libero_object", 0), libero("libero_object", 0, state="proprio")
    assert (full.name, robot.name) == ("libero/libero_object/0", "libero/libero_object/0/proprio")
    one, other = (play(task, task.contexts("eval", 1)[0]) for task in (full, robot))
    assert other.shape == (41, 8) and np.array_equal(one[:, :8], other)


@pytest.mark.parametrize(("suite", "number"), [("libero_object", 0), ("libero_goal", 7), ("libero_10", 3)])
def test_a_context_is_one_episode_in_any_order_and_in_a_fresh_task(libero, suite, number):
    task = libero(suite, number)
    official, drawn = task.contexts("train", 41)[39:]
    first, other, again = play(task, official), play(task, drawn), play(task, official)
    fresh = Libero(suite, number)
    elsewhere, afterwards = play(fresh, drawn), play(fresh, official)
    fresh.close()
    assert np.array_equal(first, again) and np.array_equal(first, afterwards) and np.array_equal(other, elsewhere)
    assert not np.array_equal(first[0], other[0])


def test_resetting_does_not_touch_numpy_s_own_generator(libero):
    task = libero("libero_goal", 7)
    np.random.seed(3)
    expected = np.random.rand(2)
    np.random.seed(3)
    task.reset(task.contexts("eval", 30)[29])
    assert np.array_equal(np.random.rand(2), expected)


def test_training_and_evaluation_share_no_initial_state(libero):
    task = libero("libero_goal", 7)
    train, held_out = task.contexts("train", 60), task.contexts("eval", 60)
    used = [task.official_state(context) for context in train + held_out]
    official = [number for number in used if number is not None]
    assert sorted(official) == list(range(50)) and len(set(official)) == 50
    assert used[:40] == list(range(40)) and used[60:70] == list(range(40, 50))
    assert len({tuple(task.reset(context)) for context in train[38:43] + held_out[8:13]}) == 10


def test_the_official_protocol_is_all_fifty_and_says_so(libero):
    task = libero("libero_goal", 7)
    contexts = task.contexts("official")
    assert [context.index - OFFICIAL_OFFSET for context in contexts] == list(range(50))
    assert {context.split for context in contexts} == {"official"}
    train, held_out = task.contexts("train", 1)[0], task.contexts("eval", 1)[0]
    assert np.array_equal(task.reset(contexts[0]), task.reset(train))
    assert np.array_equal(task.reset(contexts[40]), task.reset(held_out)) and held_out.index == EVAL_OFFSET
    with pytest.raises(ValueError, match="between 1 and 50 official contexts, got 51"):
        task.contexts("official", 51)
    with pytest.raises(ValueError, match="expected split 'train' or 'eval'"):
        task.contexts("test")


def test_seeds_share_no_initial_state_apart_from_the_official_protocol(libero):
    task, other = libero("libero_object", 0), Libero("libero_object", 0, seed=1)
    pairs = zip(task.contexts("train", 3), other.contexts("train", 3), strict=True)
    assert all(not np.array_equal(task.reset(a), other.reset(b)) for a, b in pairs)
    assert np.array_equal(task.reset(task.contexts("official")[7]), other.reset(other.contexts("official")[7]))
    other.close()


def test_fixtures_move_between_contexts(libero):
    task = libero("libero_goal", 7)
    first, second = (task.reset(context)[slice(*task.columns["flat_stove_1"])] for context in task.contexts("train", 2))
    assert 0 < np.abs(first - second).max() < 0.03


@pytest.mark.parametrize(("suite", "number"), [("libero_object", 0), ("libero_10", 3)])
def test_restoring_in_the_middle_of_an_episode_is_exact(libero, suite, number):
    task, fresh = libero(suite, number), Libero(suite, number)
    task.reset(task.contexts("train", 1)[0])
    for action in ACTIONS[:15]:
        task.step(action)
    saved = task.save()
    steps = [task.step(action) for action in ACTIONS[15:]]
    after = whole_state(task)
    for other in (task, fresh):
        other.reset(other.contexts("eval", 1)[0])
        other.step(ACTIONS[0])
        assert np.array_equal(other.restore(saved), saved.state)
        again = [other.step(action) for action in ACTIONS[15:]]
        assert all(np.array_equal(a.state, b.state) and a.stages == b.stages for a, b in zip(steps, again, strict=True))
        assert np.array_equal(whole_state(other), after)
    fresh.close()


def test_restoring_in_contact_with_a_moved_fixture_is_exact(libero):
    task, fresh = libero("libero_goal", 7), Libero("libero_goal", 7)
    state = task.reset(task.contexts("train", 6)[5])
    for _ in range(120):  # the closed hand goes over the stove's knob and presses it
        goal = state[slice(*task.columns["flat_stove_1"])]
        off = goal - state[:3]
        if np.linalg.norm(off[:2]) > 0.02:
            off[2] += 0.165
        state = task.step(np.concatenate([np.clip(10 * off, -1, 1), np.zeros(3), [1.0]])).state
        if touching(task, "flat_stove_1"):
            break
    assert touching(task, "flat_stove_1")
    for _ in range(3):
        task.step(np.array([0.3, 0.2, -1.0, 0, 0, 0, 1.0]))
    assert touching(task, "flat_stove_1")
    saved = task.save()
    push = np.random.default_rng(1).uniform(-1, 1, (35, 7)) * [1, 1, 0.3, 1, 1, 1, 1] + [0, 0, -0.7, 0, 0, 0, 0]
    push = np.clip(push, -1, 1)
    expected = [task.step(action).state for action in push]
    after = whole_state(task)
    for other in (fresh, task):  # the fixtures of the fresh one stand elsewhere
        other.reset(other.contexts("eval", 3)[2])
        other.restore(saved)
        assert np.array_equal([other.step(action).state for action in push], expected)
        assert np.array_equal(whole_state(other), after)
    fresh.close()


def test_success_reward_and_stages_are_the_goal_s_own_predicates(libero):
    """The soup is put above the basket and let go; the drawer of another task is closed by hand."""
    task = libero("libero_object", 0)
    task.reset(task.contexts("train", 1)[0])
    sim = task.problem.sim
    sim.data.set_joint_qpos("alphabet_soup_1_joint0", [*(task.tracks()["goal"] + [0, 0, 0.06]), 1, 0, 0, 0])
    steps = [task.step(np.zeros(7)) for _ in range(10)]
    assert steps[-1].success and steps[-1].reward == 1.0 and not steps[-1].terminated
    assert steps[-1].stages == {"satisfied": 1.0, "goal_1": 1.0}
    assert not task.problem.done

    drawer = libero("libero_10", 3)
    assert drawer.goal[0][0] == "close" and drawer.goal[1][0] == "in"
    drawer.reset(drawer.contexts("train", 1)[0])
    first = drawer.step(np.zeros(7))
    open_drawer = drawer.tracks()
    assert first.stages == {"satisfied": 0.0, "goal_1": 0.0, "goal_2": 0.0}
    joint = drawer.problem.object_sites_dict["white_cabinet_1_bottom_region"].joints[0]
    drawer.problem.sim.data.set_joint_qpos(joint, 0.004)
    drawer.problem.sim.data.set_joint_qvel(joint, 0.0)
    second = drawer.step(np.zeros(7))
    assert second.stages == {"satisfied": 1.0, "goal_1": 1.0, "goal_2": 0.0} and not second.success
    assert [part[0] for part in drawer.parts] == ["in", "close"]  # the drawer is the second thing to do
    wanted = open_drawer["goal_2"]
    assert np.linalg.norm(second.tracks["object_2"] - wanted) < 0.01 < np.linalg.norm(open_drawer["object_2"] - wanted)


def test_tracks_name_the_hand_and_every_object(libero):
    task = libero("libero_goal", 7)
    state = task.reset(task.contexts("train", 1)[0])
    tracks = task.tracks()
    names = {"akita_black_bowl_1", "cream_cheese_1", "plate_1", "wine_bottle_1"}
    fixtures = {"flat_stove_1", "wine_rack_1", "wooden_cabinet_1"}
    assert set(tracks) == names | fixtures | {"end_effector", "gripper", "object", "goal"}
    for name in names | fixtures | {"end_effector"}:
        assert np.array_equal(tracks[name], state[slice(*task.columns[name])])
    assert tracks["gripper"].shape == (1,) and 0.07 < tracks["gripper"][0] < 0.09
    knob = np.linalg.norm((tracks["object"] - tracks["flat_stove_1"])[:2])
    assert 0.03 < knob < 0.08  # a grip of the knob, next to its axis


def test_objects_that_a_scene_lacks_are_marked_absent(libero):
    task = libero("libero_object", 0)
    state = task.reset(task.contexts("train", 1)[0])
    present = {name for name in task.problem.obj_body_id if name != "floor"}
    for name in task._layout.objects:
        block = state[task._layout.first[name] :][:10]
        assert block[9] == (name in present)
        assert name in present or not block.any()


@pytest.mark.pixels
def test_pictures_are_upright_and_of_the_size_asked_for(libero):
    task = libero("libero_goal", 7)
    task.reset(task.contexts("train", 1)[0])
    for camera in task.cameras[:2]:
        picture = task.render(camera, (48, 64))
        assert picture.shape == (3, 48, 64) and picture.dtype == np.uint8 and picture.std() > 10
    picture = task.render("agentview", (96, 96)).mean(0)
    assert picture[60:].mean() > picture[:12].mean() + 20  # the bright table is at the bottom, the wall above it
    with pytest.raises(ValueError, match="unknown camera 'nowhere'"):
        task.render("nowhere")


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="expected state 'full' or 'proprio', got 'pixels'"):
        Libero("libero_object", 0, state="pixels")
    with pytest.raises(ValueError, match="unknown task 'libero/libero_object/99'"):
        Libero("libero_object", 99)
