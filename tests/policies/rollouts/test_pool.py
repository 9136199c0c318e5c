"""Worker processes: the same meaning as in one process, and clear ends."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from guerdon.core.sizes import DataSizes
from guerdon.envs.task import EVAL_OFFSET, list_contexts
from guerdon.envs.vector import make_task
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.data import hash_seed
from guerdon.policies.rollouts.frames import RolloutFrames
from guerdon.policies.rollouts.links import ProcessLink
from guerdon.policies.rollouts.pieces import GROUPS_APART, batch_pieces
from guerdon.policies.rollouts.pool import TaskSetting, WorkerError, WorkerPool, play_episodes

pytestmark = pytest.mark.slow  # every test starts worker processes

REACH = TaskSetting(task="mujoco/reach", horizon=8)


def gaussian(**more: Any) -> Any:
    return GaussianPolicy(12, 3, hidden=(8,), **more).eval()


def contexts(count=5, split="train"):
    return make_task("mujoco/reach").contexts(split, count)


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(REACH, envs=3, workers=2) as pool:
        yield pool


def fresh_steps(pieces):
    return sum(len(p.actions) - p.fresh for p in pieces)


def test_two_workers_play_what_one_process_plays_in_the_same_order(pool):
    chosen = contexts(5)
    order = [chosen[i] for i in (3, 0, 4, 0, 2, 1, 3)]  # one start may be asked for more than once
    policy = gaussian(horizon=3, execute=2)
    here = WorkerPool(REACH, envs=1).play(policy, order, seed=0)
    there = pool.play(policy, order, seed=0)
    assert len(here) == len(there) == 7
    for one, other, context in zip(here, there, order, strict=True):
        assert one.context == other.context == context
        # copies act together, and a product of several rows rounds differently
        assert np.allclose(one.state, other.state, atol=1e-5)
        assert (one.end, one.decision_step, one.success) == (other.end, other.decision_step, other.success)


def test_tracks_come_along_from_workers_whole_and_in_pieces(pool):
    pool.play(gaussian(), contexts(1), seed=0)
    rounds = [pool.collect(gaussian(), 9, contexts(40), seed=seed) for seed in range(3)]
    assert any(0 < p.fresh < len(p.actions) for p in rounds[1]), "an episode was cut and went on"
    for pieces in [*rounds, pool.play(gaussian(), contexts(3), seed=0)]:
        batch = batch_pieces(pieces)
        assert batch.tracks.keys() == {"end_effector", "goal"}
        for name, columns in (("end_effector", slice(6, 9)), ("goal", slice(9, 12))):  # the arm's state ends in both
            assert torch.equal(batch.tracks[name].values, batch.state[..., columns])
            assert torch.equal(batch.tracks[name].valid, batch.made)


def test_fewer_episodes_than_workers(pool):
    assert [p.context for p in pool.play(gaussian(), contexts(1), seed=0)] == contexts(1)
    assert pool.play(gaussian(), [], seed=0) == []


def test_workers_share_the_steps_and_draw_differently(pool):
    pool.restore([])  # gives up what was in flight
    pieces = pool.collect(gaussian(), 48, contexts(40), seed=3)
    # three environments over two workers: two and one, so 32 and 16 steps
    assert 48 <= fresh_steps(pieces) < 48 + 3
    samples = [float(p.behaviour["sample"][0][0, 0]) for p in pieces]
    assert len(set(samples)) == len(samples), "two workers drew the same noise"
    pool.restore([])
    again = pool.collect(gaussian(), 48, contexts(40), seed=4)
    assert not set(samples) & {float(p.behaviour["sample"][0][0, 0]) for p in again}


def test_episodes_go_on_in_the_next_rollout(pool):
    pool.restore([])
    seen = {}
    for seed in range(4):
        for piece in pool.collect(gaussian(), 9, contexts(40), seed=seed):
            key = tuple(float(x) for x in piece.behaviour["sample"][0][0])
            assert piece.fresh == seen.get(key, 0), "a piece takes up where it was handed out"
            seen[key] = len(piece.actions)


def test_workers_act_with_the_policy_as_it_is_now(pool):
    policy = gaussian(log_std=-4.0)
    for value in (0.25, -0.5):
        with torch.no_grad():
            policy.network[-1].weight.zero_()
            policy.network[-1].bias.fill_(value)
        for piece in pool.play(policy, contexts(3), seed=0):
            assert [a.tolist() for a in piece.actions] == [[value] * 3] * len(piece.actions)
    assert not any(p.is_shared() for p in policy.parameters()), "a worker must not see weights change as it acts"


def test_seeds_as_large_as_the_stream_makes_them_are_legal(pool):
    largest = max(hash_seed(s, r, i) for s, r, i in product(range(20), range(4), range(20)))
    assert largest > 1 << 47
    pool.collect(gaussian(), 3, contexts(2), seed=largest)


def test_a_failure_in_a_worker_arrives_with_its_traceback_and_the_pool_goes_on(pool):
    broken = gaussian()
    with torch.no_grad():
        broken.network[-1].bias.fill_(torch.nan)
    with pytest.raises(WorkerError, match=r"(?s)a worker process failed:.*Traceback.*expected a finite action"):
        pool.play(broken, contexts(2), seed=0)
    order = contexts(3)
    assert [p.context for p in pool.play(gaussian(), order, seed=0)] == order, "an old answer was taken for a new one"


def killed(pool, number=0):
    os.kill(pool.processes[number], signal.SIGKILL)


def alike(some, others):
    """Whether two lists of pieces hold the same bits."""
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert (one.context, one.env, one.end, one.fresh) == (other.context, other.env, other.end, other.fresh)
        assert np.array_equal(one.state, other.state) and np.array_equal(one.actions, other.actions)
        assert one.reward == other.reward and one.decision_step == other.decision_step
        assert all(np.array_equal(one.behaviour[name], other.behaviour[name]) for name in one.behaviour)
    return True


@pytest.mark.filterwarnings("ignore:a worker process died:RuntimeWarning")
@pytest.mark.parametrize("when", ["between", "within"])
def test_a_worker_that_is_killed_is_started_again_and_nothing_is_lost(when):
    policy, order = gaussian(), contexts(4)
    with WorkerPool(replace(REACH, horizon=30), envs=3, workers=2) as plain:
        wanted = [plain.collect(policy, amount, order, seed=seed) for seed, amount in enumerate((40, 1_500, 40))]
        played = plain.play(policy, order, seed=5)
    with WorkerPool(replace(REACH, horizon=30), envs=3, workers=2) as pool:
        assert alike(pool.collect(policy, 40, order, seed=0), wanted[0])
        timer = threading.Timer(0.1 if when == "within" else 0, killed, (pool,))
        timer.start()
        if when == "between":
            timer.join()
        with pytest.warns(RuntimeWarning, match=r"a worker process died \(exit code -9\).*started again"):
            assert alike(pool.collect(policy, 1_500, order, seed=1), wanted[1])
        assert alike(pool.collect(policy, 40, order, seed=2), wanted[2])
        timer.join()
        killed(pool, 1)
        assert alike(pool.play(policy, order, seed=5), played), "whole episodes are played again"
        assert (pool.lost.fragments, pool.lost.steps) == (0, 0)


@pytest.mark.filterwarnings("ignore:a worker process died:RuntimeWarning")
def test_a_worker_that_dies_again_and_again_is_one_clear_error(monkeypatch):
    pool = WorkerPool(REACH, envs=2, workers=2)
    restart = ProcessLink.restart

    def stillborn(link):
        restart(link)
        link.process.kill()
        link.process.join()

    monkeypatch.setattr(ProcessLink, "restart", stillborn)
    killed(pool)
    with pytest.raises(WorkerError, match=r"a worker process died \(exit code -9\).*started again 2 times"):
        pool.collect(gaussian(), 4, contexts(2), seed=0)
    pool.close()


def test_closing_ends_workers_in_the_middle_of_an_order():
    pool = WorkerPool(REACH, envs=2, workers=2)
    pool.collect(gaussian(), 4, contexts(2), seed=0)
    running = pool.processes
    pool.order(gaussian(), 10**9, contexts(2), seed=0)
    with pytest.raises(WorkerError, match="wait for its answer first"):
        pool.order(gaussian(), 4, contexts(2), seed=0)
    pool.close()
    for pid in running:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(WorkerError, match="were closed"):
        pool.play(gaussian(), contexts(1), seed=0)
    pool.close()


def test_a_worker_survives_the_signals_that_its_parent_handles():
    with WorkerPool(REACH, envs=1, workers=1) as pool:
        pool.collect(gaussian(), 4, contexts(2), seed=0)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pool.processes[0], number)
        pool.collect(gaussian(), 4, contexts(2), seed=1)
        assert pool.lost.fragments == 0


HANGING = '''
import os, time
from pathlib import Path
from guerdon.envs.reach import Reach


class Hanging(Reach):
    """Hangs at the third step of every episode, as often as the file `times` says."""

    name, instruction = "hanging/reach", "wait"

    def __init__(self, horizon=50, seed=0):
        super().__init__(horizon, seed)
        self.taken = 0

    def reset(self, context):
        self.taken = 0
        return super().reset(context)

    def step(self, action):
        self.taken += 1
        times = Path("times")
        if self.taken == 3 and times.exists():
            left = int(times.read_text())
            if left > 1:
                times.write_text(str(left - 1))
            else:
                times.unlink()
            time.sleep(1000)
        return super().step(action)
'''


@pytest.mark.filterwarnings("ignore:.*took no step for:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*its worker failed twice:RuntimeWarning")
@pytest.mark.parametrize(("hangs", "lost"), [(1, 0), (2, 1)])
def test_a_simulator_that_hangs_is_started_again(monkeypatch, tmp_path, hangs, lost):
    (tmp_path / "hanging_envs.py").write_text(HANGING)
    monkeypatch.chdir(tmp_path)
    sizes = [DataSizes(name="hanging/reach", state_size=12, action_size=3)]
    order = list_contexts("hanging/reach", "train", 2)
    setting = TaskSetting(task="hanging_envs:Hanging", horizon=8)
    with WorkerPool(setting, envs=1, workers=1, sizes=sizes, patience=2) as pool:
        pool.collect(gaussian(), 2, order, seed=0)
        (tmp_path / "times").write_text(str(hangs))
        pieces = pool.collect(gaussian(), 9, order, seed=1)
        assert pool.lost.fragments == lost, "an episode in progress is given up when its worker fails twice"
        assert fresh_steps(pieces) == 9
        assert (pieces[0].fresh == 2) == (lost == 0)


# --- a policy that stays ---------------------------------------------------------------------------------------------


def test_a_policy_that_stays_decides_here_on_what_workers_observe():
    policy = gaussian(horizon=3, execute=2)
    policy.calls = 0
    act = policy.act

    def counted(observation, *more):
        policy.calls += 1
        return act(observation, *more)

    policy.act = counted
    order = contexts(4)
    with WorkerPool(REACH, envs=3, workers=2, policy_stays=True) as pool:
        there = pool.play(policy, order, seed=0)
        pieces = [piece for seed in range(3) for piece in pool.collect(policy, 9, order, seed=seed, version=seed)]
    assert policy.calls > 8
    with WorkerPool(REACH, envs=1) as here:
        for one, other in zip(here.play(gaussian_like(policy), order, seed=0), there, strict=True):
            assert one.context == other.context and one.end == other.end
            assert np.allclose(one.state, other.state, atol=1e-5)
    assert {int(v) for piece in pieces for v in piece.behaviour["policy_version"]} == {0, 1, 2}
    assert any(0 < piece.fresh < len(piece.actions) for piece in pieces), "episodes go on"


@pytest.mark.filterwarnings("ignore:a worker process died:RuntimeWarning")
def test_the_worker_of_a_policy_that_stays_is_started_again():
    policy, order = gaussian(), contexts(4)
    with WorkerPool(REACH, envs=2, workers=2, policy_stays=True) as plain:
        wanted = [plain.collect(policy, 9, order, seed=0), plain.collect(policy, 300, order, seed=1)]
    with WorkerPool(REACH, envs=2, workers=2, policy_stays=True) as pool:
        assert alike(pool.collect(policy, 9, order, seed=0), wanted[0])
        timer = threading.Timer(0.05, killed, (pool,))
        timer.start()
        assert alike(pool.collect(policy, 300, order, seed=1), wanted[1])
        timer.join()


@pytest.mark.filterwarnings("ignore:a worker process died:RuntimeWarning")
def test_a_worker_that_dies_at_every_step_ends_a_policy_that_stays(monkeypatch):
    receive, calls = ProcessLink.receive, [0]

    def dies(link):
        calls[0] += 1
        if calls[0] % 2 == 0:  # after the question, before the answer
            link.process.kill()
            link.process.join()
        return receive(link)

    with WorkerPool(REACH, envs=1, workers=1, policy_stays=True) as pool:
        monkeypatch.setattr(ProcessLink, "receive", dies)
        with pytest.raises(WorkerError, match="started again 2 times for the same order"):
            pool.collect(gaussian(), 50, contexts(2), seed=0)


@pytest.mark.filterwarnings("ignore:a worker process died:RuntimeWarning")
def test_a_worker_that_dies_while_it_repeats_episodes_is_started_again():
    policy, order = gaussian(), contexts(4)
    with WorkerPool(REACH, envs=2, workers=2) as plain:
        plain.collect(policy, 9, order, seed=0)
        pieces, prepared = plain.unfinished
        wanted = plain.collect(policy, 9, order, seed=1)
    with WorkerPool(REACH, envs=2, workers=2) as pool:
        killed(pool)
        pool.restore(pieces, prepared)
        assert alike(pool.collect(policy, 9, order, seed=1), wanted)


def gaussian_like(policy):
    other = gaussian(horizon=3, execute=2)
    other.load_state_dict(policy.state_dict())
    return other


# --- the same whatever the number of workers -------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [True, False])
def test_episodes_played_one_by_one_are_the_same_bits_whatever_plays_beside_them(deterministic):
    policy, order = gaussian(horizon=3, execute=2), contexts(7)
    found = []
    for envs, workers in ((1, 0), (5, 0), (3, 1), (4, 2)):
        with WorkerPool(REACH, envs=envs, workers=workers) as pool:
            pool.collect(policy, 11, contexts(2), seed=3)
            found.append(pool.play(policy, order, 4, deterministic, one_by_one=True))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert np.array_equal(one.state, two.state) and np.array_equal(one.actions, two.actions)
            assert one.success == two.success


def test_an_unknown_task_fails_here_and_not_in_a_worker():
    for workers in (0, 2):
        with pytest.raises(ValueError, match="unknown task 'mujoco/rech': did you mean mujoco/reach"):
            WorkerPool(TaskSetting(task="mujoco/rech"), envs=2, workers=workers)


def test_every_worker_needs_an_environment():
    with pytest.raises(ValueError, match="one environment per worker, got 2 for 3"):
        WorkerPool(REACH, envs=2, workers=3)
    with pytest.raises(ValueError, match="one environment per worker, got 0 for 0"):
        WorkerPool(REACH, envs=0)


def test_a_worker_starts_without_lightning():
    code = "import sys, guerdon.policies.rollouts.pool; print({'lightning', 'transformers'} & set(sys.modules) or '[]')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_playing_episodes_gives_one_batch_in_order():
    batch = play_episodes(REACH, gaussian(), contexts(3, "eval"), envs=2)
    assert batch.group.tolist() == [EVAL_OFFSET, EVAL_OFFSET + 1, EVAL_OFFSET + 2]
    assert batch.success_known.all()
    assert set(batch.instructions) == {make_task("mujoco/reach").instruction}


# --- several tasks --------------------------------------------------------------------------------------------------

ARMS = TaskSetting(task=["metaworld/push-v3", "metaworld/reach-v3", "metaworld/pick-place-v3"], horizon=4)


def test_workers_share_several_tasks_and_give_each_what_it_asked_for():
    pytest.importorskip("metaworld")
    train = [context for name in ARMS.tasks for context in make_task(name).contexts("train", 3)]
    policy = GaussianPolicy(39, 4, hidden=(8,)).eval()
    with WorkerPool(ARMS, envs=4, workers=2) as pool:  # tasks 0 and 1; tasks 2 and 0
        order = [train[i] for i in (8, 0, 3, 1, 6, 4, 2, 0)]
        there = pool.play(policy, order, seed=0)
        assert [p.context for p in there] == order
        assert [p.task for p in there] == [ARMS.tasks.index(c.task) for c in order]
        assert len(pool.seconds) == 2 and min(pool.seconds) > 0
        pieces = pool.collect(policy, 32, train, seed=0)
        steps = [sum(len(p.actions) for p in pieces if p.task == number) for number in range(3)]
        assert steps == [16, 8, 8], "four environments of three tasks: the first has two"
        assert {int(g) // GROUPS_APART for g in batch_pieces(pieces).group} == {0, 1, 2}
        with pytest.raises(ValueError, match="no environment plays mujoco/reach: they play metaworld/push-v3, meta"):
            pool.play(policy, contexts(1), seed=0)
    here = WorkerPool(ARMS, envs=3)
    for one, other in zip(here.play(policy, order, seed=0), there, strict=True):
        assert np.allclose(one.state, other.state, atol=1e-5) and one.instruction == other.instruction
    here.close()


def test_tasks_that_cannot_be_played_together_fail_here():
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"mujoco/reach has states of width 12.*metaworld/push-v3 has 39 and 4"):
            tasks = ["metaworld/push-v3", "metaworld/reach-v3", "mujoco/reach"]
            WorkerPool(TaskSetting(task=tasks), envs=3, workers=workers)


def test_every_task_needs_an_environment():
    with pytest.raises(ValueError, match=r"one environment per task, got 2 for 3.*set envs to 3 or a multiple"):
        WorkerPool(ARMS, envs=2)


@pytest.mark.parametrize("task", [[], ["mujoco/reach", "mujoco/reach"]])
def test_tasks_are_named_once(task):
    with pytest.raises(ValueError, match="at least one name, each once"):
        TaskSetting(task=task)
    with pytest.raises(ValueError, match="spares -1: expected a number of simulators"):
        TaskSetting(task="mujoco/reach", spares=-1)


# --- frames, spares, folders ----------------------------------------------------------------------------------------


@pytest.mark.pixels
def test_frames_and_spares_in_workers():
    setting = replace(REACH, frames=RolloutFrames(cameras=["top"], image_size=16), spares=1)
    policy, order, task = gaussian(horizon=3, execute=2), contexts(4), make_task("mujoco/reach")
    with WorkerPool(setting, envs=2, workers=2) as pool:
        pieces = [*pool.play(policy, order, seed=0), *pool.collect(policy, 8, order, seed=0)]
    for piece in pieces:
        task.reset(piece.context)
        shown = [task.render("top", (16, 16))]
        for number, action in enumerate(piece.actions, 1):
            task.step(action)
            if number in piece.frame_step:
                shown.append(task.render("top", (16, 16)))
        assert piece.frame_step == sorted({*range(0, len(piece.actions), 2), len(piece.actions)})
        assert np.array_equal(shown, piece.frames["top"])
    task.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_workers_work_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with WorkerPool(REACH, envs=1, workers=1) as pool:
        pool.play(gaussian(), contexts(1), seed=0)
        assert os.readlink(f"/proc/{pool.processes[0]}/cwd") == str(tmp_path.resolve())


CHATTY = '''
import sys, warnings
from guerdon.envs.reach import Reach

print("imported, with an advertisement")
print("and a complaint", file=sys.stderr)
warnings.warn("deprecated since before you were born", DeprecationWarning)


class Chatty(Reach):
    """A reach task of somebody's own."""

    name, instruction = "chatty/reach", "chat"

    def __init__(self, horizon=50, seed=0):
        warnings.warn("another")
        print("built")
        super().__init__(horizon, seed)
'''


def test_a_class_of_the_users_own_may_print_and_warn_in_workers(monkeypatch, tmp_path):
    (tmp_path / "chatty_envs.py").write_text(CHATTY)
    monkeypatch.chdir(tmp_path)
    setting = TaskSetting(task=["chatty_envs:Chatty", "mujoco/reach"], horizon=8)
    sizes = [DataSizes(name=name, state_size=12, action_size=3) for name in ("chatty/reach", "mujoco/reach")]
    order = [*list_contexts("chatty/reach", "train", 2), *contexts(1)]
    with WorkerPool(setting, envs=2, workers=2, sizes=sizes) as pool:
        pieces = pool.play(gaussian(), order, seed=0)
    assert [(p.context, p.task) for p in pieces] == list(zip(order, (0, 0, 1), strict=True))
    assert pieces[0].instruction == "chat"
