"""Returns rolled out again: sums by hand, the same as playing by hand, and logs that repeat or are refused."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from guerdon.core.batch import Decision
from guerdon.core.interfaces import Policy
from guerdon.envs.collect import collect
from guerdon.envs.experts import scripted_expert
from guerdon.envs.vector import VectorEnv, make_task
from guerdon.evaluation.critics.reroll import context_of, replay, reroll, step_cost
from guerdon.policies.deterministic import Deterministic


class Scripted(Policy):
    """The reach expert, or nobody: chunks of `horizon` steps, all but the first of them 0 for the idle."""

    def __init__(self, idle: bool = False, horizon: int = 1, noise: float = 0.0) -> None:
        super().__init__()
        self.idle, self.horizon, self.noise = idle, horizon, noise
        self.asked = 0

    def act(self, observation, deterministic=False, generator=None):
        expert = scripted_expert("mujoco/reach")
        self.asked += len(observation)
        chunk = torch.zeros(len(observation), self.horizon, 3)
        if not self.idle:
            best = np.stack([expert(state) for state in observation.state.numpy()])
            chunk = torch.from_numpy(best).float()[:, None].repeat(1, self.horizon, 1)
        if not deterministic:
            chunk = chunk + self.noise * torch.randn(chunk.shape, generator=generator)
        return Decision(chunk=chunk, executed=torch.full((len(chunk),), self.horizon))


@pytest.fixture
def envs():
    built = VectorEnv([make_task("mujoco/reach") for _ in range(3)])
    yield built
    built.close()


def starts(envs, count):
    saved = []
    for context in envs.contexts("train", count):
        envs.tasks[0].reset(context)
        saved.append(envs.tasks[0].save())
    return saved


def test_a_success_and_the_three_tails_by_hand(envs):
    saved = starts(envs, 4)
    won = reroll(envs, Scripted(), saved, rollouts=1, gamma=0.9)
    assert won.success.all()
    for count, total in zip(won.steps[:, 0], won.returns[:, 0], strict=True):
        # −1 on all steps but the last: −(1 − γ^(n−1)) / (1 − γ).
        assert total == pytest.approx(-(1 - 0.9 ** (count - 1)) / 0.1)
    lost = {
        tail: reroll(envs, Scripted(idle=True), saved[:1], steps=3, gamma=0.5, tail=tail, reward=step_cost(8, scale=2))
        for tail in ("zero", "failure", "never")
    }
    # Three steps of −1/2: −(1 + 0.5 + 0.25)/2 = −0.875; the last one −8/2: −0.75 − 0.25·4 = −1.75;
    # and for ever: −0.875 − 0.125 · 0.5 / 0.5 = −1, which is −0.5 / (1 − γ).
    assert {tail: float(found.returns[0, 0]) for tail, found in lost.items()} == {
        "zero": pytest.approx(-0.875),
        "failure": pytest.approx(-1.75),
        "never": pytest.approx(-1.0),
    }
    assert not lost["zero"].success.any() and lost["zero"].steps.tolist() == [[3]]


def test_it_is_what_playing_by_hand_gives(envs):
    saved = starts(envs, 3)
    generator = np.random.default_rng(0)
    chunks = generator.uniform(-1, 1, (3, 4, 3))
    lengths = np.array([0, 2, 4])
    parts = [chunk[:length] for chunk, length in zip(chunks, lengths, strict=True)]
    still = Deterministic(Scripted(horizon=2, noise=0.5))
    found = reroll(envs, still, saved, parts, rollouts=2, gamma=0.97)
    task: Any = make_task("mujoco/reach")
    expert = scripted_expert("mujoco/reach")
    for row in range(3):
        state, total, queue = task.restore(saved[row]), 0.0, list(chunks[row, : lengths[row]])
        for step in range(task.horizon):
            if not queue:
                queue = [expert(state)] * 2
            came = task.step(queue.pop(0))
            state = came.state
            if came.success:
                break
            total -= 0.97**step
        assert found.returns[row].tolist() == [pytest.approx(total)] * 2  # both rollouts: the policy has no noise
        assert found.steps[row].tolist() == [step + 1] * 2
    assert found.mean == pytest.approx(found.returns.mean(1))
    task.close()


def test_noise_follows_the_generator_and_differs_between_rollouts(envs):
    saved = starts(envs, 2)

    def play(seed):
        policy = Scripted(noise=0.5)
        return reroll(envs, policy, saved, rollouts=6, generator=torch.Generator().manual_seed(seed)).steps

    first = play(1)
    assert np.array_equal(first, play(1)) and not np.array_equal(first, play(2))
    assert len(set(first[0].tolist())) > 1


def test_limits_may_differ_between_states_and_every_rollout_is_played_once(envs):
    saved = starts(envs, 5)
    found = reroll(envs, Scripted(idle=True), saved, rollouts=2, steps=[1, 2, 3, 4, 50], tail="zero", gamma=1)
    assert found.steps.tolist() == [[1, 1], [2, 2], [3, 3], [4, 4], [50, 50]]
    assert found.returns.tolist() == (-found.steps).tolist()


def test_a_reward_of_ones_own(envs):
    saved = starts(envs, 1)
    found = reroll(envs, Scripted(), saved, reward=lambda success, terminated: float(success), gamma=0.9)
    assert found.returns[0, 0] == pytest.approx(0.9 ** (found.steps[0, 0] - 1))


def test_bad_arguments(envs):
    saved, policy = starts(envs, 2), Scripted()
    with pytest.raises(ValueError, match=r"first_chunks: expected a chunk of \(n, 3\) actions for each of 2 states"):
        reroll(envs, policy, saved, np.zeros((2, 4, 7)))
    with pytest.raises(ValueError, match=r"for each of 2 states, got 1 chunks"):
        reroll(envs, policy, saved, [np.zeros((4, 3))])
    with pytest.raises(ValueError, match="NaN or infinite"):
        reroll(envs, policy, saved, np.full((2, 4, 3), np.nan))
    with pytest.raises(ValueError, match="limits of 1 … 50, the task's time limit, got 51"):
        reroll(envs, policy, saved, steps=51)
    with pytest.raises(ValueError, match=r"never .with a discount below 1."):
        reroll(envs, policy, saved, gamma=1)
    with pytest.raises(ValueError, match="one for each of 2 states, got 3"):
        reroll(envs, policy, saved, steps=[1, 2, 3])
    with pytest.raises(ValueError, match="at least one rollout"):
        reroll(envs, policy, saved, rollouts=0)
    assert reroll(envs, policy, []).returns.shape == (0, 1)
    assert reroll(envs, policy, [], []).returns.shape == (0, 1)


def test_an_array_of_chunks_is_a_chunk_for_each_state(envs):
    saved, chunks = starts(envs, 2), np.random.default_rng(1).uniform(-1, 1, (2, 4, 3))
    one, other = (reroll(envs, Scripted(), saved, given) for given in (chunks, list(chunks)))
    assert np.array_equal(one.returns, other.returns)


def test_a_policy_that_executes_more_than_it_planned_is_refused(envs):
    class Endless(Scripted):
        def act(self, observation, deterministic=False, generator=None):
            decision = super().act(observation, deterministic, generator)
            return Decision(chunk=decision.chunk, executed=decision.executed + 1)

    with pytest.raises(ValueError, match="decisions that execute 1 … 1 steps, got 2: correct what Endless returns"):
        reroll(envs, Endless(), starts(envs, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mujoco/reach", "metaworld/drawer-open-v3"])
def test_a_logged_episode_is_replayed_and_goes_on_from_any_of_its_steps(name):
    task = make_task(name, seed=4)
    episodes = list(collect(task, {"noisy": 1.0, "random": 1.0}, episodes=2, seed=4, frames=False))
    fresh: Any = make_task(name, seed=4)
    for episode in episodes:
        wanted = [episode.steps - 3, 0, 5]
        saved = replay(fresh, episode, wanted)
        for step, state in zip(wanted, saved, strict=True):
            assert np.array_equal(state.state, episode.state[step])
            fresh.restore(state)
            for k in range(step, min(step + 3, episode.steps)):
                assert np.array_equal(fresh.step(episode.actions[k]).state, episode.state[k + 1])
    task.close()
    fresh.close()


def test_logs_that_do_not_repeat_are_refused():
    task = make_task("mujoco/reach")
    (episode,) = collect(task, {"random": 1.0}, episodes=1, frames=False)
    state, actions = episode.state.copy(), episode.actions.copy()
    state[7, 0] += 0.01
    with pytest.raises(ValueError, match=r"does not repeat: at step 7 a state differs by 0\.01"):
        replay(task, replace(episode, state=state), [20])
    assert len(replay(task, replace(episode, state=state), [6])) == 1  # nobody went that far
    actions[3] = -actions[3]
    with pytest.raises(ValueError, match="does not repeat: at step 4"):
        replay(task, replace(episode, actions=actions), [20])
    with pytest.raises(ValueError, match="only episodes of `guerdon collect` can be replayed"):
        replay(task, replace(episode, context="lab 3"), [0])
    with pytest.raises(ValueError, match="from mujoco/reach with seed 9, this is mujoco/reach with seed 0"):
        replay(task, replace(episode, context="mujoco/reach#9.0"), [0])
    with pytest.raises(ValueError, match=r"observations 0 … 50, requested was 51"):
        replay(task, episode, [51])
    with pytest.raises(ValueError, match="states and actions of 11 and 3"):
        replay(task, replace(episode, state=state[:, 1:]), [0])
    task.close()


def test_the_start_of_a_collected_episode_is_read_back():
    with closing(make_task("mujoco/reach", seed=3)) as task:
        for split in ("train", "eval"):
            made = collect(task, {"random": 1.0}, 2, split=split, frames=False)
            found = [context_of(episode) for episode in made]
            assert found == [("mujoco/reach", 3, context) for context in task.contexts(split, 2)]
            for context in ("", "mujoco/reach", "mujoco/reach#a.1", "#0.1", "mujoco/reach#0"):
                with pytest.raises(ValueError, match="does not record which simulated start it is from"):
                    context_of(replace(next(collect(task, {"random": 1.0}, 1, frames=False)), context=context))
