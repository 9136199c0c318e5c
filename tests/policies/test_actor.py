"""A policy that acts in collected episodes: its decisions, its noise and what is recorded of them."""

from typing import Any

import numpy as np
import pytest
import torch

from guerdon.core.batch import Decision, End, Observation
from guerdon.core.interfaces import Policy
from guerdon.datasets.collate import collate
from guerdon.datasets.opening import open_dataset
from guerdon.envs.collect import collect, collect_dataset
from guerdon.envs.quality import POLICY, QUALITIES, SOURCES
from guerdon.envs.vector import make_task
from guerdon.policies.actor import PolicyActor, actor_of, observe
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.frames import RolloutFrames
from guerdon.policies.rollouts.pool import TaskSetting, play_episodes

from .rollouts.small_tasks import Slow, contexts
from .rollouts.test_frames import Mean

ALONE = {POLICY: 1.0}


class Counting(Policy):
    """Chunks of four steps of which it executes some; step k of decision n is 0.1 n + 0.01 k in every dimension."""

    horizon = 4

    def __init__(self, execute=3):
        super().__init__()
        self.execute, self.seen = execute, []

    def act(self, observation, deterministic=False, generator=None):
        self.seen.append((observation, deterministic))
        chunk = 0.1 * len(self.seen) + 0.01 * torch.arange(4.0)[None, :, None].expand(1, 4, 3)
        return Decision(chunk=chunk.contiguous(), executed=torch.tensor([self.execute]))


def gaussian(**more):
    torch.manual_seed(0)
    return GaussianPolicy(12, 3, horizon=4, execute=3, hidden=(8,), **more).eval()


def test_a_chunk_is_executed_before_the_next_decision():
    task, policy = make_task("mujoco/reach"), Counting()
    state = task.reset(task.contexts("train", 1)[0])
    actor = PolicyActor(policy, task, torch.Generator())
    acted = [actor(state)[0] for _ in range(7)]
    assert acted == pytest.approx([0.1, 0.11, 0.12, 0.2, 0.21, 0.22, 0.3])
    observation, deterministic = policy.seen[0]
    assert torch.equal(observation.state[0], torch.from_numpy(state)) and not deterministic
    assert observation.instructions == (task.instruction,)
    assert actor.records() == {}, "there is no log-probability to record"


@pytest.mark.parametrize("execute", [0, 5])
def test_a_decision_that_cannot_be_executed_is_refused(execute):
    actor = PolicyActor(Counting(execute), make_task("mujoco/reach"), torch.Generator())
    with pytest.raises(ValueError, match=f"executes 1 … 4 steps of its chunk, got {execute}"):
        actor(np.zeros(12))


def test_episodes_hold_everything_that_collected_ones_do():
    task = make_task("mujoco/reach", 8)
    policy = next(collect(task, ALONE, 1, frames=False, actor=actor_of(gaussian(), deterministic=True)))
    random = next(collect(task, {"random": 1.0}, 1, frames=False))
    for name in ("labels", "tracks", "recorded"):
        assert getattr(policy, name).keys() == getattr(random, name).keys()
    assert (policy.quality, policy.source, policy.split) == ("policy", SOURCES.index("policy"), "train")
    assert (policy.group, policy.context, policy.fps) == (random.group, random.context, random.fps)
    assert (policy.state[0] == random.state[0]).all() and policy.end == End.TIME_LIMIT


def test_numbers_of_sources_are_fixed():
    assert SOURCES[: len(QUALITIES)] == QUALITIES == ("expert", "noisy", "aborted", "random")
    assert SOURCES[4:] == ("policy",)


def test_deterministic_episodes_are_those_that_rollouts_play():
    policy, task = gaussian(), make_task("mujoco/reach", 10)
    found = list(collect(task, ALONE, 3, frames=False, actor=actor_of(policy, deterministic=True)))
    setting = TaskSetting(task="mujoco/reach", horizon=10)
    played = play_episodes(setting, policy, task.contexts("train", 3), envs=1, one_by_one=True)
    for row, episode in enumerate(found):
        assert torch.equal(played.actions[row, : episode.steps], torch.from_numpy(episode.actions))


def test_an_episode_follows_from_the_seed_and_its_number():
    task, policy = make_task("mujoco/reach", 6), gaussian()

    def states(episodes, seed):
        made = collect(task, ALONE, episodes, seed, frames=False, actor=actor_of(policy))
        return [episode.state.tobytes() for episode in made]

    assert states(4, 0)[:2] == states(2, 0)
    assert not set(states(2, 0)) & set(states(2, 1))
    assert len(set(states(4, 0))) == 4


def test_what_was_drawn_is_recorded_with_its_log_probability(tmp_path):
    policy = gaussian(log_std=0.3)
    collect_dataset(
        "mujoco/reach", tmp_path / "logs", 3, quality=POLICY, frames=False, horizon=8, actor=actor_of(policy)
    )
    dataset = open_dataset(tmp_path / "logs")
    batch = collate([dataset[i] for i in range(3)])
    known = batch.recorded["log_prob"].valid
    assert torch.equal(known, batch.recorded["sample"].valid)
    rows, steps = known.nonzero(as_tuple=True)
    assert set(steps.tolist()) == {0, 3, 6}
    chunk = batch.recorded["sample"].values[rows, steps]
    assert chunk.shape == (len(rows), 4, 3)
    decision = Decision(chunk=chunk, executed=torch.full((len(rows),), 3))
    evaluation = policy.evaluate(Observation(state=batch.state[rows, steps]), decision)
    assert torch.allclose(evaluation.log_prob, batch.recorded["log_prob"].values[rows, steps], atol=1e-4)
    # the action is the sample, clipped
    assert torch.equal(batch.actions[rows, steps], decision.chunk[:, 0].clamp(-1, 1))
    assert (decision.chunk.abs() > 1).any()


def test_a_policy_may_share_a_data_set_with_experts(tmp_path):
    shares = {"expert": 0.5, POLICY: 0.5}
    report = collect_dataset(
        "mujoco/reach", tmp_path / "logs", 4, quality=shares, frames=False, horizon=8, actor=actor_of(gaussian())
    )
    assert dict(report.episodes) == {"expert": 2, "policy": 2}
    assert [line.split()[0] for line in report.lines()] == ["expert", "policy", "4"]


def test_the_policy_sees_the_pictures_it_asks_for():
    task, policy = make_task("mujoco/reach", 7), Counting()
    task.render = lambda camera=None, size=(96, 96): np.full((3, *size), 9, np.uint8)
    frames = RolloutFrames(cameras=task.cameras[:1], image_size=16)
    next(collect(task, ALONE, 1, frames=False, actor=actor_of(policy, frames=frames)))
    assert [tuple(seen.frames[task.cameras[0]].shape) for seen, _ in policy.seen] == [(1, 3, 16, 16)] * 3


def test_without_a_policy_its_quality_is_refused():
    with pytest.raises(ValueError, match="quality 'policy' needs a policy that acts"):
        next(collect(make_task("mujoco/reach"), ALONE, 1, frames=False))
    with pytest.raises(
        ValueError, match="unknown quality 'clumsy': expected some of expert, noisy, aborted, random, p"
    ):
        next(collect(make_task("mujoco/reach"), {"clumsy": 1.0}, 1, frames=False, actor=actor_of(Counting())))


def test_features_come_in_place_of_the_frames_as_in_rollouts():
    task: Any = Slow()
    state = task.reset(contexts(3)[0])
    seen = observe(task, state, RolloutFrames(cameras=["eye"], image_size=(4, 6), encoder=Mean()))
    assert seen.frames == {} and seen.instructions == (task.instruction,)
    assert torch.equal(seen.features["mean/eye"], torch.full((1, 3), 31 / 255).half().float())
    assert torch.equal(seen.state[0], torch.from_numpy(state))
    assert observe(task, state, RolloutFrames(cameras=["eye"], image_size=(4, 6))).features == {}
