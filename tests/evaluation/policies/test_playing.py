"""Checks before anything is played, and parts whose noise is their own."""

import numpy as np
import pytest
import torch

from guerdon.core.batch import Decision
from guerdon.core.interfaces import Policy
from guerdon.envs.vector import make_task
from guerdon.evaluation.policies.playing import PART, acting, part_seed, play_part, read_task
from guerdon.evaluation.policies.setting import OpenedPolicy, PlaySetting
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.frames import RolloutFrames
from guerdon.policies.rollouts.pool import WorkerPool

from ...policies.rollouts.test_frames import Mean

SHORT = PlaySetting(horizon=3)


class Wide(Policy):
    """Acts in five dimensions, and has no sizes to ask for."""

    horizon = 1

    def act(self, observation, deterministic=False, generator=None):
        return Decision(chunk=torch.zeros(1, 1, 5), executed=torch.ones(1, dtype=torch.long))


class Blind(Policy):
    """Needs a picture."""

    horizon = 1

    def act(self, observation, deterministic=False, generator=None):
        return Decision(chunk=observation.frames["front"].float()[:, 0, :1, :3], executed=torch.ones(1).long())


class Stateless(Policy):
    """Reads no state, and says so."""

    horizon, state_size = 1, 0

    def __init__(self, action_size=3):
        super().__init__()
        self.action_size = action_size

    def act(self, observation, deterministic=False, generator=None):
        chunk = torch.zeros(len(observation), 1, self.action_size)
        return Decision(chunk=chunk, executed=torch.ones(len(observation), dtype=torch.long))


def opened(policy):
    return OpenedPolicy(policy=policy, identity={"path": "runs/it"})


def test_facts_of_a_task():
    facts = read_task("mujoco/reach", 3, PlaySetting(split="eval", task_seed=2), [opened(GaussianPolicy(12, 3))])
    assert facts.contexts == make_task("mujoco/reach", None, 2).contexts("eval", 3)
    assert (facts.sizes.state_size, facts.sizes.action_size, facts.env) == (12, 3, "mujoco/reach")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (GaussianPolicy(39, 4), "mujoco/reach has states of width 12 and actions of width 3, the policy runs/it is made"
         " for widths 39 and 4"),
        (Stateless(4), "for widths 0 and 4"),
        (Wide(), "mujoco/reach has actions of width 3, the policy runs/it gives actions of width 5"),
        (Blind(), "runs/it cannot act in mujoco/reach: 'front'"),
        (GaussianPolicy(), "cannot act in mujoco/reach"),
    ],
)  # fmt: skip
def test_a_policy_of_another_task_is_refused_before_anything_is_played(policy, says):
    with pytest.raises(ValueError, match=says):
        read_task("mujoco/reach", 3, SHORT, [opened(GaussianPolicy(12, 3)), opened(policy)])


def test_a_policy_that_reads_no_state_fits_any():
    assert read_task("mujoco/reach", 1, SHORT, [opened(Stateless())]).contexts


@pytest.mark.parametrize("encoder", [None, "front"])
def test_a_policy_without_the_features_that_it_reads_is_told_so(encoder):
    policy = GaussianPolicy(12, 3, hidden=(4,), feature_sizes={"mean/top": 3})
    frames = None if encoder is None else RolloutFrames(cameras=[encoder], encoder=Mean())
    says = "reads features, mean/top, which a frozen encoder makes of frames: .*--encoder DIR"
    if encoder:
        says = "reads the features mean/top, the encoder gives mean/front: take the encoder and the cameras"
    with pytest.raises(ValueError, match=says):
        read_task("mujoco/reach", 2, PlaySetting(frames=frames), [opened(policy)])


def test_policies_act_in_evaluation_mode_and_get_their_own_back():
    policy = GaussianPolicy(12, 3).train()
    policy.network.eval()
    torch.set_num_threads(2)
    try:
        with acting([policy]):
            assert not any(part.training for part in policy.modules())
            assert torch.get_num_threads() == 1
        assert policy.training and not policy.network.training and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_parts_have_noise_of_their_own():
    assert len({part_seed(seed, number) for seed in range(4) for number in range(4)}) == 16
    policy, setting = GaussianPolicy(12, 3, log_std=0.0).eval(), PlaySetting(horizon=2, sampled=True)
    starts = make_task("mujoco/reach").contexts("eval", PART + 2)
    with WorkerPool(setting.of("mujoco/reach"), 1) as pool:
        second = play_part(pool, policy, starts, 1, setting)
        first = play_part(pool, policy, starts, 0, setting)
        again = play_part(pool, policy, starts[: PART + 1], 1, setting)
    assert [piece.context for piece in first + second] == starts
    assert (second[0].actions[0] == again[0].actions[0]).all()
    noise = np.stack([piece.behaviour["sample"][0] for piece in first + second])
    assert len(np.unique(noise)) == noise.size
