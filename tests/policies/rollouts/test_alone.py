"""Decisions at one observation at a time: nothing that is played beside an episode moves it."""

import numpy as np
import pytest
import torch

from guerdon.core.batch import Decision, Observation
from guerdon.core.interfaces import Policy
from guerdon.envs.vector import make_task
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.alone import decide_alone, episode_generator
from guerdon.policies.rollouts.decisions import ActingAlone, Asked
from guerdon.policies.rollouts.pool import TaskSetting, WorkerPool, play_episodes

from .small_tasks import Noisy, contexts, corridor, generator

REACH = TaskSetting(task="mujoco/reach", horizon=8)


class Careless(Policy):
    """Draws its noise from torch's global generator, whatever generator it is given."""

    horizon = 1

    def act(self, observation, deterministic=False, generator=None):
        return Decision(
            chunk=torch.randn(len(observation), 1, 1), executed=torch.ones(len(observation), dtype=torch.long)
        )


def actions(pieces):
    return [np.stack(piece.actions).tobytes() for piece in pieces]


def test_the_seed_and_the_place_make_the_noise_of_an_episode():
    draws = {
        (seed, place): torch.rand(4, generator=episode_generator(seed, place)).tolist()
        for seed in (0, 1, -1)
        for place in (0, 1, 1000)
    }
    assert len({tuple(drawn) for drawn in draws.values()}) == len(draws)
    assert torch.rand(4, generator=episode_generator(1, 1000)).tolist() == draws[1, 1000]


def test_decisions_come_in_their_order_with_all_that_belongs_to_them():
    policy = GaussianPolicy(2, 1, horizon=3, execute=2, hidden=(8,))
    seen = Observation(state=torch.arange(3.0)[:, None].expand(3, 2))
    joined = ActingAlone(policy, 0, deterministic=False)(Asked(observation=seen, places=(0, 1, 2), steps=(0, 0, 0)))
    assert joined.chunk.shape == (3, 3, 1) and joined.executed.tolist() == [2, 2, 2]
    for k in range(3):
        one = decide_alone(policy, seen[[k]], episode_generator(0, k), deterministic=False)
        assert np.array_equal(joined.chunk[k], one.chunk[0])
        assert one.log_prob is not None
        assert np.array_equal(joined.behaviour["log_prob"][k], one.log_prob[0])


@pytest.mark.parametrize("policy", [Noisy(), Careless()])
def test_an_episode_is_the_same_whatever_is_played_beside_it(policy):
    chosen = contexts(0, 3, 4, 5, 9)
    alone = actions(corridor(envs=1).play(policy, chosen, generator(), one_by_one=True))
    assert actions(corridor(envs=3).play(policy, chosen, generator(), one_by_one=True)) == alone
    half = corridor(envs=2).play(policy, chosen[3:], generator(), one_by_one=True, places=[3, 4])
    assert actions(half) == alone[3:]
    assert actions(corridor(envs=3).play(policy, chosen, generator(1), one_by_one=True)) != alone
    other = corridor(envs=1)
    other.play(policy, chosen[:2], generator(), one_by_one=True)
    assert actions(other.play(policy, chosen, generator(), one_by_one=True)) == alone, "nothing is left of an order"


def test_the_same_start_twice_has_noise_of_its_own():
    first, second = corridor(envs=2).play(Noisy(), contexts(9, 9), generator(), one_by_one=True)
    assert actions([first]) != actions([second])


def test_the_global_generator_is_left_as_it_was():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    corridor(envs=2).play(Careless(), contexts(0, 1), generator(), one_by_one=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("deterministic", [True, False])
def test_workers_play_the_same_episodes_bit_by_bit(deterministic):
    policy = GaussianPolicy(12, 3, hidden=(32, 32), horizon=2, execute=2).eval()
    chosen = make_task("mujoco/reach").contexts("eval", 5)
    found = []
    for workers, envs in ((0, 1), (0, 3), (2, 3)):
        with WorkerPool(REACH, envs, workers) as pool:
            pool.play(policy, chosen[3:], 4, deterministic, one_by_one=True)  # what was played before does not matter
            found.append(actions(pool.play(policy, chosen, 5, deterministic, one_by_one=True)))
    assert found[0] == found[1] == found[2]
    batch = play_episodes(REACH, policy, chosen, envs=2, seed=5, deterministic=deterministic, one_by_one=True)
    first = batch.actions[0, : int(batch.steps[0])].numpy()
    assert first.tobytes() == found[0][0]
