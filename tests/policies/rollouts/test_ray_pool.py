"""Rollouts on Ray actors: the same as in processes, and an actor that dies costs nothing but time."""

import os
from typing import Any

import numpy as np
import pytest

from guerdon.core.sizes import DataSizes
from guerdon.envs.task import list_contexts
from guerdon.envs.vector import make_task
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.pool import TaskSetting, WorkerError, WorkerPool
from guerdon.policies.rollouts.ray_pool import RayPool, make_pool

from .test_pool import HANGING

ray: Any = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,  # it starts Ray
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own sockets and log files
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
]

REACH = TaskSetting(task="mujoco/reach", horizon=8)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def gaussian():
    return GaussianPolicy(12, 3, hidden=(8,), horizon=3, execute=2).eval()


def contexts(count=4):
    return make_task("mujoco/reach").contexts("train", count)


def alike(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert (one.context, one.end, one.fresh) == (other.context, other.end, other.fresh)
        assert np.array_equal(one.state, other.state) and np.array_equal(one.actions, other.actions)
    return True


def test_actors_give_what_processes_give():
    policy = gaussian()
    with WorkerPool(REACH, 3, 2) as here, RayPool(REACH, 3, 2) as there:
        for seed in range(3):
            assert alike(there.collect(policy, 11, contexts(), seed), here.collect(policy, 11, contexts(), seed))
        one, other = (pool.play(policy, contexts(), 5, one_by_one=True) for pool in (here, there))
        assert alike(one, other)


@pytest.mark.filterwarnings("ignore:a Ray actor died:RuntimeWarning")
def test_an_actor_that_dies_is_made_again_and_its_episodes_go_on():
    policy = gaussian()
    with WorkerPool(REACH, 2, 2) as here:
        wanted = [here.collect(policy, 9, contexts(), seed) for seed in range(2)]
    with RayPool(REACH, 2, 2) as pool:
        assert alike(pool.collect(policy, 9, contexts(), 0), wanted[0])
        link: Any = pool._workers[0].link
        ray.kill(link.actor)
        with pytest.warns(RuntimeWarning, match="a Ray actor died.*it is started again"):
            assert alike(pool.collect(policy, 9, contexts(), 1), wanted[1])
        assert pool.lost.fragments == 0


def test_a_failure_in_an_actor_arrives_with_its_traceback_and_the_pool_goes_on():
    broken: Any = gaussian()
    broken.network[-1].bias.data.fill_(float("nan"))
    with RayPool(REACH, 1, 1) as pool:
        with pytest.raises(WorkerError, match=r"(?s)a Ray actor failed:.*expected a finite action"):
            pool.play(broken, contexts(1), 0)
        assert len(pool.play(gaussian(), contexts(2), 0)) == 2


def test_pools_are_made_by_name():
    with make_pool("processes", REACH, 1, 0) as pool:
        assert type(pool) is WorkerPool
    with make_pool("ray", REACH, 2, 1) as pool:
        assert isinstance(pool, RayPool) and not pool.processes
    with pytest.raises(ValueError, match="pool 'slurm': expected processes, ray, or the address of a cluster"):
        make_pool("slurm", REACH, 1, 0)
    with pytest.raises(ValueError, match="workers 0: expected at least one Ray actor"):
        RayPool(REACH, 1, 0)


@pytest.mark.filterwarnings("ignore:a Ray actor took no step:RuntimeWarning")
def test_an_actor_that_hangs_is_made_again(monkeypatch, tmp_path):
    (tmp_path / "hanging_envs.py").write_text(HANGING)
    sizes = [DataSizes(name="hanging/reach", state_size=12, action_size=3)]
    order = list_contexts("hanging/reach", "train", 2)
    monkeypatch.chdir(tmp_path)
    times = tmp_path / "times"
    setting = TaskSetting(task="hanging_envs:Hanging", horizon=8)
    with RayPool(setting, 1, 1, sizes, patience=3) as pool:
        pool.collect(gaussian(), 2, order, 0)
        times.write_text("1")
        pieces = pool.collect(gaussian(), 9, order, 1)
    assert not times.exists()
    assert sum(len(p.actions) - p.fresh for p in pieces) >= 9 and pool.lost.fragments == 0
