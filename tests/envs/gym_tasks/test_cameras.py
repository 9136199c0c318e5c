"""Cameras of environments: drawn by our renderer for MuJoCo, by `render()` for others."""

import numpy as np
import pytest

from guerdon.envs.gym_tasks.cameras import resize
from guerdon.envs.gym_tasks.task import GymnasiumTask


def test_pictures_are_resized_to_channels_first():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 4:, 1] = 200
    small = resize(picture, (2, 4))
    assert small.shape == (3, 2, 4) and small[1, 0].tolist()[0] == 0 and small[1, 0].tolist()[3] == 200
    assert np.array_equal(resize(picture, (4, 8)), picture.transpose(2, 0, 1))


@pytest.mark.pixels
def test_cameras_of_a_mujoco_model_are_drawn_without_moving_the_simulation():
    task, unseen = GymnasiumTask("FetchPush-v4", instruction="x"), GymnasiumTask("FetchPush-v4", instruction="x")
    assert task.cameras[0] == "render" and "head_camera_rgb" in task.cameras
    context = task.contexts("train", 1)[0]
    assert np.array_equal(task.reset(context), unseen.reset(context))
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4))
    for action in actions:
        front, head = task.render("render", (48, 64)), task.render("head_camera_rgb", (48, 64))
        assert front.shape == (3, 48, 64) and front.std() > 10 and not np.array_equal(front, head)
        assert np.array_equal(task.step(action).state, unseen.step(action).state)
    # the mark of the goal is drawn where this episode has it
    red = [task.render("render", (96, 96)) for _ in range(2)]
    assert np.array_equal(red[0], red[1])
    task.reset(task.contexts("train", 2)[1])
    assert not np.array_equal(task.render("render", (96, 96)), red[0])
    for one in (task, unseen):
        one.close()


def test_what_render_returns_is_checked(dot):
    task = GymnasiumTask(dot(grey=True))
    task.reset(task.contexts("train", 1)[0])
    with pytest.raises(ValueError, match=r"expected render\(\) to return \(H, W, 3\) uint8, got uint8 \(40, 60, 1\)"):
        task.render("render")
