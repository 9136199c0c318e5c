"""Collected episodes: how qualities are dealt, what an episode holds, and the data set they become."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from guerdon.core.batch import End
from guerdon.datasets.episodes import ArrayFrames
from guerdon.envs.collect import can_draw, check_qualities, collect, collect_dataset
from guerdon.envs.quality import MIXED, QUALITIES
from guerdon.envs.render import rendering_backend
from guerdon.envs.vector import make_task

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def reach():
    task = make_task("mujoco/reach")
    yield task
    task.close()


@pytest.fixture(scope="module")
def mixed(reach):
    return list(collect(reach, episodes=40, seed=2, frames=False))


def success_rate(task, quality, episodes=30, noise=0.5):
    played = collect(task, {quality: 1.0}, episodes, frames=False, noise=noise)
    successes = [episode.success for episode in played]
    assert None not in successes
    return float(np.mean(np.array(successes, float)))


def test_the_noise_of_a_data_set_is_that_of_the_task_or_the_one_given(reach):
    def first(noise=None):
        return next(collect(reach, {"noisy": 1.0}, 1, seed=5, frames=False, noise=noise)).actions

    assert np.array_equal(first(), first(0.5)) and not np.array_equal(first()[:3], first(1.5)[:3])


def test_tasks_that_draw_without_opengl_need_none(reach, monkeypatch):
    """A simulator that draws by itself gives pictures where no OpenGL backend works; the others say what is missing."""
    monkeypatch.setattr("guerdon.envs.collect.rendering_backend", lambda: None)
    monkeypatch.setattr("guerdon.envs.render.rendering_backend", lambda: None)
    assert not can_draw(reach)
    with pytest.raises(RuntimeError, match="no OpenGL backend renders here"):
        next(collect(reach, {"random": 1.0}, 1, frames=True))
    monkeypatch.setattr(reach, "draws_without_opengl", True, raising=False)
    monkeypatch.setattr(reach, "render", lambda camera=None, size=(96, 96): np.full((3, *size), 7, np.uint8))
    episode = next(collect(reach, {"random": 1.0}, 1, frames=None, image_size=(16, 16)))
    assert can_draw(reach) and episode.frames["front"].read(np.array([0])).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_pictures_are_recorded_every_few_steps_and_at_the_end(reach, monkeypatch, every):
    monkeypatch.setattr(reach, "draws_without_opengl", True, raising=False)
    drawn = iter(range(1, 10_000))
    monkeypatch.setattr(
        reach, "render", lambda camera=None, size=(96, 96): np.full((3, *size), next(drawn) % 256, np.uint8)
    )
    episode = next(collect(reach, {"random": 1.0}, 1, frames=True, image_size=(16, 16), frames_every=every))
    source = episode.frames["front"]
    expected = sorted({*range(0, episode.steps + 1, every), episode.steps})
    assert list(source.step) == expected
    assert source.read(np.arange(len(expected)))[:, 0, 0, 0].tolist() == [n % 256 for n in range(1, len(expected) + 1)]
    with pytest.raises(ValueError, match="every 1 or more control steps, got 0"):
        next(collect(reach, {"random": 1.0}, 1, frames_every=0))


@pytest.mark.slow
def test_qualities_are_ordered_by_success(reach):
    expert, noisy, aborted, wild = (
        success_rate(reach, "expert"),
        success_rate(reach, "noisy", noise=1.5),
        success_rate(reach, "aborted"),
        success_rate(reach, "random"),
    )
    assert expert == 1.0
    assert aborted < noisy < expert and wild < noisy
    assert max(aborted, wild) <= 0.1


def test_the_default_mixture_is_dealt_exactly(mixed):
    # 40 episodes at 40, 30, 15 and 15 %.
    assert Counter(episode.quality for episode in mixed) == {"expert": 16, "noisy": 12, "aborted": 6, "random": 6}
    assert all(episode.source == QUALITIES.index(episode.quality) for episode in mixed)
    for count in range(1, 40):  # every beginning has its share to within one
        dealt = Counter(episode.quality for episode in mixed[:count])
        assert all(abs(dealt[quality] - share * count) <= 1 for quality, share in MIXED.items())


def test_episodes_say_what_happened(mixed, reach):
    ends = {End.SUCCESS: 0, End.FAILURE: 0, End.TIME_LIMIT: 0}
    for episode in mixed:
        ends[episode.end] += 1
        solved = episode.labels["success"]
        assert len(episode.state) == len(solved.values) == episode.steps + 1
        assert not solved.valid[0] and solved.valid[1:].all()
        assert episode.success == float(episode.end == End.SUCCESS)
        assert solved.values[1:-1].max(initial=0) == 0  # the first success ends the episode
        assert solved.values[-1] == episode.success
        distance = np.linalg.norm(episode.state[:, 6:9] - episode.state[:, 9:12], axis=1)
        assert episode.labels["stage.distance"].values[1:] == pytest.approx(distance[1:], abs=1e-6)
        assert episode.recorded["reward"].values == pytest.approx(solved.values[1:] - distance[1:], abs=1e-6)
        assert np.array_equal(episode.tracks["end_effector"].values, episode.state[:, 6:9])
        assert np.array_equal(episode.tracks["goal"].values, episode.state[:, 9:12])
        assert episode.instruction == reach.instruction and episode.fps == 25 and episode.split == "train"
        assert (episode.end == End.TIME_LIMIT) == (episode.success == 0 and episode.steps == reach.horizon)
        assert np.abs(episode.actions).max() <= 1
    assert min(ends.values()) > 0
    assert len({episode.context for episode in mixed}) == len({episode.group for episode in mixed}) == 40


def test_the_recorded_actions_lead_from_state_to_state(mixed, reach):
    contexts = {context.index: context for context in reach.contexts("train", 40)}
    for episode in mixed[::9]:
        assert np.array_equal(reach.reset(contexts[episode.group]), episode.state[0])
        for action, state in zip(episode.actions, episode.state[1:], strict=True):
            assert np.array_equal(reach.step(action).state, state)


def test_an_episode_depends_on_its_seed_and_number_alone(mixed, reach):
    again = list(collect(make_task("mujoco/reach"), episodes=7, seed=2, frames=False))
    for left, right in zip(mixed, again, strict=False):
        assert left.quality == right.quality and left.end == right.end
        assert np.array_equal(left.actions, right.actions) and np.array_equal(left.state, right.state)
    other = next(collect(reach, {"random": 1.0}, 1, seed=3, frames=False))
    same = next(collect(reach, {"random": 1.0}, 1, seed=4, frames=False))
    assert np.array_equal(other.state[0], same.state[0]) and not np.array_equal(other.actions, same.actions)


def test_episodes_can_run_on_after_a_success(reach):
    episode = next(collect(reach, {"expert": 1.0}, 1, frames=False, stop_at_success=False))
    assert episode.end == End.TIME_LIMIT and episode.steps == reach.horizon
    assert episode.success == 1.0 and episode.labels["success"].values.sum() > 10


def test_metaworld_episodes_carry_stages_and_tracks():
    task = make_task("metaworld/coffee-button-v3")
    expert, aborted = collect(task, {"expert": 1.0, "aborted": 1.0}, 2, frames=False, split="eval")
    assert (expert.quality, expert.end, expert.split) == ("expert", End.SUCCESS, "eval")
    assert (aborted.quality, aborted.end, aborted.success) == ("aborted", End.FAILURE, 0.0)
    assert set(expert.labels) == {"success", *(f"stage.{name}" for name in task.stage_names)}
    assert expert.tracks.keys() == {"end_effector", "gripper", "object", "goal"}
    assert expert.tracks["gripper"].values.shape == (expert.steps + 1,)
    assert np.array_equal(expert.tracks["object"].values, expert.state[:, 4:7])
    assert expert.labels["stage.obj_to_target"].values[-1] < expert.labels["stage.obj_to_target"].values[1]
    task.close()


def test_bad_requests_are_refused(reach, tmp_path):
    with pytest.raises(ValueError, match="unknown quality 'clumsy'"):
        check_qualities(reach, {"clumsy": 1.0})
    with pytest.raises(ValueError, match="weight of at least 0, got nan"):
        check_qualities(reach, {"expert": float("nan")})
    with pytest.raises(ValueError, match="at least one quality with a positive weight"):
        check_qualities(reach, {"expert": 0.0})
    kettle = make_task("kitchen/kettle")
    with pytest.raises(ValueError, match="kitchen/kettle has no scripted expert, so it gives no expert, noisy"):
        check_qualities(kettle, {"expert": 1.0, "noisy": 1.0, "random": 1.0})
    kettle.close()
    with pytest.raises(ValueError, match="unknown camera 'back'; it has front, top"):
        next(collect(reach, episodes=1, frames=rendering_backend() is not None or None, cameras=["back"]))
    with pytest.raises(ValueError, match="at least one episode, got 0"):
        collect_dataset("mujoco/reach", tmp_path / "x", episodes=0, console=QUIET)
    with pytest.raises(ValueError, match="unknown quality 'superb': expected mixed, expert"):
        collect_dataset("mujoco/reach", tmp_path / "x", episodes=1, quality="superb", console=QUIET)
    with pytest.raises(ValueError, match="unknown task 'mujoco/raech'"):
        collect_dataset("mujoco/raech", tmp_path / "x", episodes=1, console=QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_data_set_is_written_once_and_the_same_every_time(tmp_path):
    def rows(folder):
        return (folder / "data" / "chunk-000" / "file-000.parquet").read_bytes()

    report = collect_dataset("mujoco/reach", tmp_path / "a", 6, seed=5, frames=False, console=QUIET)
    collect_dataset("mujoco/reach", tmp_path / "b", 6, seed=5, frames=False, console=QUIET)
    collect_dataset("mujoco/reach", tmp_path / "c", 6, seed=6, frames=False, console=QUIET)
    assert rows(tmp_path / "a") == rows(tmp_path / "b") != rows(tmp_path / "c")
    episodes = pq.read_table(tmp_path / "a" / "meta" / "episodes").to_pandas()
    assert len(episodes) == report.episodes.total() == 6
    assert episodes["success"].sum() == report.successes.total()
    assert not report.frames and "no pictures" in report.lines()[-1]
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        collect_dataset("mujoco/reach", tmp_path / "a", 1, frames=False, console=QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.pixels
def test_pictures_come_along_where_something_renders(tmp_path):
    if rendering_backend() is None:
        pytest.skip("no OpenGL backend renders here (install libegl1 or libosmesa6)")
    report = collect_dataset("mujoco/reach", tmp_path / "a", 2, image_size=64, cameras=["front", "top"], console=QUIET)
    info = json.loads((tmp_path / "a" / "meta" / "info.json").read_text())
    for camera in ("front", "top"):
        assert info["features"][f"observation.images.{camera}"]["shape"] == [64, 64, 3]
    assert report.frames
    episode = next(collect(make_task("mujoco/reach"), episodes=1, image_size=(48, 32)))
    front = episode.frames["front"]
    assert isinstance(front, ArrayFrames) and front.values.shape == (episode.steps + 1, 3, 48, 32)


@pytest.mark.slow
def test_without_a_backend_states_are_recorded_and_it_is_said(tmp_path):
    code = (
        "from guerdon.envs.collect import collect_dataset\n"
        f"print(collect_dataset('mujoco/reach', {str(tmp_path / 'a')!r}, 2).lines()[-1])\n"
        f"collect_dataset('mujoco/reach', {str(tmp_path / 'b')!r}, 2, frames=True)\n"
    )
    environment = os.environ | {"MUJOCO_GL": "off"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "recording states only: no OpenGL backend" in done.stderr.replace("\n", " ")
    assert "no pictures" in done.stdout
    assert done.returncode == 1 and "RuntimeError: no OpenGL backend renders here" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_behind(tmp_path):
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job may ignore it
        "from guerdon.envs.collect import collect_dataset\n"
        f"collect_dataset('mujoco/reach', {str(tmp_path / 'a')!r}, 100000, frames=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".a.*/data/*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir())
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0 and b"KeyboardInterrupt" in error
    assert not list(tmp_path.iterdir())


def test_a_camera_that_shows_nothing_is_named_once(reach, caplog, monkeypatch):
    monkeypatch.setattr("guerdon.envs.collect.require_backend", lambda: None)
    pictures = {"front": np.zeros((3, 8, 8), np.uint8), "top": np.arange(192, dtype=np.uint8).reshape(3, 8, 8)}
    monkeypatch.setattr(reach, "render", lambda camera, size: pictures[camera])
    found = collect(reach, {"random": 1.0}, 3, frames=True, image_size=(8, 8), cameras=["front", "top"])
    assert len(list(found)) == 3
    told = [record.message for record in caplog.records if "one colour" in record.message]
    assert len(told) == 1 and "mujoco/reach: every picture of camera 'front' in episode 0" in told[0]


def test_a_diverging_episode_is_left_out_and_named(reach, caplog):
    class Diverging:
        def __init__(self):
            self.resets = 0

        def __getattr__(self, name):
            return getattr(reach, name)

        def reset(self, context):
            self.resets += 1
            if self.resets == 2:
                raise FloatingPointError("mujoco/reach: the simulation diverged")
            return reach.reset(context)

    diverging: Any = Diverging()
    episodes = list(collect(diverging, {"random": 1.0}, 3, frames=False))
    assert [episode.index for episode in episodes] == [0, 2]
    assert "episode 1 left out: mujoco/reach: the simulation diverged" in caplog.text
