"""Pictures, and the search for a backend."""

import subprocess
import sys

import numpy as np
import pytest

from guerdon.envs import render
from guerdon.envs.reach import Reach
from guerdon.envs.render import fastest, rendering_backend, require_backend
from guerdon.envs.vector import make_task

pytestmark = pytest.mark.slow


@pytest.fixture
def renders():
    if rendering_backend() is None:
        pytest.skip("no OpenGL backend renders here (install libegl1 or libosmesa6)")


@pytest.mark.pixels
@pytest.mark.parametrize("name", ["mujoco/reach", "metaworld/push-v3", "kitchen/microwave"])
def test_pictures_have_the_size_asked_for_and_show_the_scene_move(name, renders):
    task = make_task(name)
    task.reset(task.contexts("train", 1)[0])
    before = task.render(size=(48, 64))
    assert before.shape == (3, 48, 64) and before.dtype == np.uint8
    assert before.std() > 10
    assert np.array_equal(task.render(size=(48, 64)), before)  # nothing moved
    for _ in range(8):
        task.step(np.ones(task.action_size))
    assert np.abs(task.render(size=(48, 64)).astype(int) - before).max() > 30
    assert task.render(task.cameras[1], (128, 96)).shape == (3, 128, 96)  # larger than before
    with pytest.raises(ValueError, match="unknown camera 'nowhere'"):
        task.render("nowhere")
    with pytest.raises(ValueError, match="at least 1 × 1"):
        task.render(size=(0, 4))
    task.close()


@pytest.mark.pixels
def test_the_goal_is_seen_where_it_is(renders):
    task, seen = Reach(), 0
    for context in task.contexts("train", 6):
        goal = task.reset(context)[9:12]
        red, green, blue = task.render("top", (101, 101)).astype(int)
        ball = (red > 100) & (green < 60) & (blue < 60)
        if not ball.any():
            continue  # behind the arm
        seen += 1
        # From above the picture's right is −y and its top is +x; the camera stands over (0.2, 0).
        row, column = np.argwhere(ball).mean(0)
        scale = 50.5 / (np.tan(np.pi / 8) * (1.9 - goal[2]))  # pixels per metre at the ball, 45° field of view
        assert column == pytest.approx(50 - goal[1] * scale, abs=3)
        assert row == pytest.approx(50 - (goal[0] - 0.2) * scale, abs=3)
    assert seen >= 3
    task.close()


@pytest.mark.slow
def test_rendering_switched_off_is_respected_and_said_clearly():
    code = (
        "from guerdon.envs.render import rendering_backend\n"
        "from guerdon.envs.reach import Reach\n"
        "assert rendering_backend() is None\n"
        "task = Reach(); task.reset(task.contexts('train', 1)[0])\n"
        "try: task.render()\n"
        "except RuntimeError as error: print(error)\n"
    )
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MUJOCO_GL": "off"}, capture_output=True, text=True, check=True
    )
    assert "no OpenGL backend renders here" in done.stdout and "libegl1" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.pixels
def test_a_process_that_rendered_ends_quietly(renders):
    code = (
        "from guerdon.envs.reach import Reach\n"
        "task = Reach(); task.reset(task.contexts('train', 1)[0]); print(task.render().shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(3, 96, 96)"
    assert done.stderr == ""


def test_require_backend_agrees(renders):
    assert require_backend() == rendering_backend()


def test_the_faster_backend_is_taken_if_it_is_much_faster():
    assert fastest({"egl": 1.0, "osmesa": 0.7}) == "egl"
    assert fastest({"egl": 1.0, "osmesa": 0.6}) == "osmesa"
    assert fastest({"osmesa": 9.0}) == "osmesa"
    assert fastest({}) is None


def test_backends_are_tried_once_and_later_processes_are_told(monkeypatch):
    tried = []

    def seconds(backend):
        tried.append(backend)
        return {"egl": 0.09, "osmesa": 0.03}[backend]

    monkeypatch.setattr(render, "_seconds_per_picture", seconds)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("GUERDON_RENDERER", "")
    rendering_backend.cache_clear()
    assert rendering_backend() == rendering_backend() == "osmesa" and tried == ["egl", "osmesa"]
    rendering_backend.cache_clear()  # as in a process that was started now
    assert rendering_backend() == "osmesa" and tried == ["egl", "osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "egl")
    rendering_backend.cache_clear()
    assert rendering_backend() == "egl"
    rendering_backend.cache_clear()


def test_a_backend_that_gives_nothing_or_black_pictures_does_not_count(monkeypatch):
    assert render._seconds_per_picture("nonsense") is None
    monkeypatch.setattr(render, "_PROBE", "print('black')  # {backend}")
    assert render._seconds_per_picture("egl") is None


@pytest.mark.pixels
def test_black_pictures_are_noticed(renders, monkeypatch):
    import mujoco

    task = Reach()
    task.reset(task.contexts("train", 1)[0])
    with monkeypatch.context() as patched:
        patched.setattr(mujoco, "mjr_render", lambda *_: None)
        patched.setattr(mujoco, "mjr_readPixels", lambda picture, *_: picture.fill(0))
        with pytest.raises(RuntimeError, match=r"black pictures of camera 'front'.*MUJOCO_GL=osmesa"):
            task.render()
    assert task.render().any()
    task.close()
