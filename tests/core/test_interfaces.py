"""Components remember their arguments, survive copying, pickling and saving; an unwritten method says what to write."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from guerdon.core.batch import Decision, Observation, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import (
    AdvantageSource,
    Component,
    Critic,
    Objective,
    Policy,
    Proposer,
    RewardModel,
    TaskDecomposer,
)
from guerdon.critics.value import ValueCritic
from guerdon.policies.advantages.reward_to_go import RewardToGo, Uniform
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.rewards.recorded import RecordedReward
from guerdon.rewards.state_action import StateActionReward
from guerdon.testing import reopen


class Greedy(Component):
    """Changes a list it was given."""

    def __init__(self, sizes, name="x", options=None):
        super().__init__()
        sizes.append(99)
        self.total = sum(sizes)


class Defaults(Component):
    """Every argument has a default, so that a bare call of __new__ succeeds."""

    def __init__(self, size=1, scale=0.5):
        super().__init__()
        self.layer = nn.Linear(size, size)


class Bare(Component):
    """Has no constructor of its own."""


class Named(Component):
    """Takes open keywords, which guerdon itself never does."""

    def __init__(self, size, **more):
        super().__init__()


def test_arguments_are_remembered_by_name_with_defaults():
    policy = GaussianPolicy(3, action_size=2, hidden=(4,))
    assert policy.init_args["state_size"] == 3
    assert policy.init_args["hidden"] == [4]
    assert policy.init_args["log_std_range"] == [-4.0, 0.5]
    assert list(policy.init_args) == list(inspect.signature(GaussianPolicy).parameters)


def test_what_a_constructor_does_to_its_argument_does_not_reach_the_record():
    sizes = [1, 2]
    assert Greedy(sizes).init_args == {"sizes": [1, 2], "name": "x", "options": None}
    assert sizes == [1, 2, 99]


def test_a_class_without_a_constructor_has_no_arguments():
    assert Bare().init_args == {}
    assert isinstance(reopen(Uniform()), Uniform)


def test_open_keywords_are_remembered_by_name():
    assert Named(1, depth=2).init_args == {"size": 1, "depth": 2}


def test_a_wrong_call_fails_in_the_constructor():
    with pytest.raises(TypeError, match="wings"):
        GaussianPolicy(3, 2, wings=2)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["copied", "pickled"])
def test_copies_keep_arguments_weights_and_shared_parts(again):
    critic = ValueCritic(3, hidden=(4,))
    source = RewardToGo(RecordedReward("r"), critic, gamma=0.5)
    other = again(source)
    assert other.critic is not critic
    assert other.init_args["critic"] is other.critic, "the record points at the original's part"
    assert (other.init_args["gamma"], other.reward.key, other.gamma) == (0.5, "r", 0.5)
    for one, two in zip(source.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.data_ptr() != two.data_ptr()
    assert isinstance(reopen(other), RewardToGo)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["copied", "pickled"])
def test_copies_do_not_fall_back_to_defaults(again):
    assert again(Defaults(7, scale=2.0)).init_args == {"size": 7, "scale": 2.0}


def test_parts_in_the_record_are_not_registered_twice():
    source = RewardToGo(RecordedReward(), ValueCritic(3, hidden=(4,)))
    assert not any(name.startswith("init_args") for name in source.state_dict())
    assert len(list(source.parameters())) == len(list(source.critic.parameters()))


def test_from_pretrained_checks_the_class(tmp_path):
    GaussianPolicy(3, 2, hidden=(4,)).save_pretrained(tmp_path / "policy")
    assert isinstance(GaussianPolicy.from_pretrained(tmp_path / "policy"), GaussianPolicy)
    assert isinstance(Policy.from_pretrained(tmp_path / "policy"), GaussianPolicy)
    with pytest.raises(TypeError, match="holds a GaussianPolicy, expected a ValueCritic"):
        ValueCritic.from_pretrained(tmp_path / "policy")


OBSERVATION = Observation(state=torch.zeros(1, 1))
DECISION = Decision(chunk=torch.zeros(1, 1, 1), executed=torch.ones(1).long())
BATCH = TrajectoryBatch(
    state=torch.zeros(1, 2, 1), actions=torch.zeros(1, 1, 1), mask=torch.ones(1, 1, dtype=torch.bool)
)
REWARDS = RewardEstimates(rewards=torch.zeros(1, 1), valid=BATCH.mask)
UNWRITTEN = {
    "forward(batch)": lambda: RewardModel()(BATCH),
    "loss(batch)": lambda: RewardModel().loss(BATCH),
    "forward(batch) ": lambda: Critic()(BATCH),
    "loss(batch, rewards)": lambda: Critic().loss(BATCH, REWARDS),
    "plan(": lambda: TaskDecomposer().plan(["open"]),
    "segment(": lambda: TaskDecomposer().segment(BATCH, [], causal=True),
    "estimate(batch)": lambda: AdvantageSource().estimate(BATCH),
    "forward(batch, rewards)": lambda: AdvantageSource()(BATCH, REWARDS),
    "act(observation)": lambda: Policy().act(OBSERVATION),
    "evaluate(": lambda: Policy().evaluate(OBSERVATION, DECISION),
    "imitation_loss(": lambda: Policy().imitation_loss(OBSERVATION, DECISION.chunk, torch.ones(1, 1).bool()),
    "forward(…)": lambda: Objective()(Policy(), OBSERVATION, DECISION, torch.ones(1), torch.ones(1)),
}


@pytest.mark.parametrize("missing", UNWRITTEN)
def test_an_unwritten_method_says_what_to_write(missing):
    with pytest.raises(NotImplementedError) as caught:
        UNWRITTEN[missing]()
    assert missing.strip() in str(caught.value)


def test_what_has_nothing_to_learn_has_no_loss():
    advantages = Uniform()(BATCH, REWARDS)
    assert AdvantageSource().loss(BATCH, advantages, torch.zeros(1).long(), torch.zeros(1).long()) == {}
    Critic().after_step()


def test_a_function_with_a_version_is_a_proposer():
    def propose(batch, rows, steps, n):
        return torch.zeros(n, len(rows), 1, 1)

    assert not isinstance(propose, Proposer)
    propose.version = 0
    assert isinstance(propose, Proposer)


def test_a_reward_without_a_loss_points_to_training_from_preferences():
    with pytest.raises(NotImplementedError, match=r"StateActionReward has no loss\(batch\).*PreferenceTraining"):
        StateActionReward(1, 1).loss(BATCH)
