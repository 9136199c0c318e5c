"""The proposer: what is kept and for how long, and that the policy behind it is left alone."""

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from guerdon.core.batch import Decision, Sampled, TrajectoryBatch
from guerdon.core.interfaces import Policy, Proposer
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.proposer import PolicyProposer


class Counting(GaussianPolicy):
    """Counts the chunks it samples and the calls they take."""

    def __init__(self, execute: int = 2):
        super().__init__(2, 3, horizon=4, execute=execute, hidden=(8,))
        self.chunks, self.calls = 0, 0

    def act(self, observation, deterministic=False, generator=None):
        assert not self.training, "sampled in training mode"
        assert not torch.is_grad_enabled()
        self.chunks, self.calls = self.chunks + len(observation), self.calls + 1
        return super().act(observation, deterministic, generator)


def trajectories(rows=3, steps=5, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return TrajectoryBatch(
        state=torch.randn(rows, steps + 1, 2, generator=generator),
        actions=torch.zeros(rows, steps, 3),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        **more,
    )


def every(batch):
    return torch.ones(len(batch), batch.mask.shape[1] + 1, dtype=torch.bool).nonzero(as_tuple=True)


def test_it_is_a_proposer_and_gives_the_steps_that_the_policy_carries_out():
    batch = trajectories()
    proposer = PolicyProposer(Counting(execute=2))
    assert isinstance(proposer, Proposer)
    assert proposer(batch, *every(batch), 5).shape == (5, 18, 2, 3)
    assert PolicyProposer(Counting(execute=2), steps=4)(batch, *every(batch), 1).shape == (1, 18, 4, 3)


def test_a_policy_that_does_not_say_what_it_carries_out_gives_whole_chunks():
    class Bare(Policy):
        horizon = 3

        def act(self, observation, deterministic=False, generator=None):
            chunk = torch.zeros(len(observation), 3, 3)
            return Decision(chunk=chunk, executed=torch.full((len(chunk),), 3))

    batch = trajectories()
    assert PolicyProposer(Bare())(batch, *every(batch), 2).shape == (2, 18, 3, 3)


def test_chunks_are_those_of_the_policy_at_the_observation():
    """Their mean over many samples is the policy's mean, observation by observation."""
    policy, batch = GaussianPolicy(2, 3, horizon=4, execute=4, hidden=(8,), log_std=-2.0), trajectories(2, 2)
    last: Any = policy.network[-1]
    nn.init.normal_(last.weight)
    rows, steps = every(batch)
    chunks = PolicyProposer(policy)(batch, rows, steps, 4000)
    mean = policy.act(batch.observe(rows, steps), deterministic=True).chunk
    assert mean.std() > 0.3, "all observations look alike: the test could not fail"
    # e^-2/√4000 = 0.0021 each, 72 figures: five deviations
    assert (chunks.mean(0) - mean).abs().max() < 0.011
    assert torch.allclose(chunks.std(0), torch.full_like(mean, 0.1353), atol=0.01)
    sure = PolicyProposer(policy, deterministic=True)(batch, rows, steps, 3)
    assert torch.equal(sure, mean.expand(3, -1, -1, -1))


def test_what_was_drawn_comes_back_in_any_order_window_or_batch():
    policy, batch = Counting(), trajectories()
    proposer = PolicyProposer(policy)
    rows, steps = every(batch)
    first = proposer(batch, rows, steps, 2)
    assert (proposer.hits, proposer.misses, policy.chunks, policy.calls) == (0, 18, 36, 1)
    order = torch.randperm(18)
    assert torch.equal(proposer(batch, rows[order], steps[order], 2), first[:, order])
    # row 1 from step 2 on, as a window in another batch
    window = TrajectoryBatch(state=batch.state[1:2, 2:], actions=batch.actions[1:2, 2:], mask=batch.mask[1:2, 2:])
    again = proposer(window, *every(window), 2)
    assert torch.equal(again, first[:, 6 + 2 : 6 + 6])
    assert (proposer.hits, proposer.misses, policy.chunks) == (22, 18, 36)


def test_more_chunks_are_added_and_fewer_are_the_first_ones():
    policy, batch = Counting(), trajectories()
    proposer = PolicyProposer(policy)
    rows, steps = every(batch)
    two = proposer(batch, rows[:4], steps[:4], 2)
    five = proposer(batch, rows[:6], steps[:6], 5)  # 3 more at four observations, 5 at two, in one call
    assert torch.equal(five[:2, :4], two)
    assert policy.chunks == 8 + 4 * 3 + 2 * 5 and policy.calls == 2
    assert torch.equal(proposer(batch, rows[:6], steps[:6], 1), five[:1])
    assert len(five[:, 0].flatten(1).unique(dim=0)) == 5


def test_equal_observations_share_chunks_and_are_drawn_once():
    policy, batch = Counting(), trajectories()
    proposer = PolicyProposer(policy)
    chunks = proposer(batch, torch.tensor([1, 1, 2]), torch.tensor([3, 3, 3]), 2)
    assert torch.equal(chunks[:, 0], chunks[:, 1]) and not torch.equal(chunks[:, 0], chunks[:, 2])
    assert policy.chunks == 4
    apart = PolicyProposer(policy, keep=0)(batch, torch.tensor([1, 1, 2]), torch.tensor([3, 3, 3]), 2)
    assert not torch.equal(apart[:, 0], apart[:, 1])


@pytest.mark.parametrize("what", ["state", "features", "frames", "instruction"])
def test_everything_that_is_observed_counts(what):
    """A difference of one number, pixel or letter is another observation."""

    def sampled(values):
        return Sampled(values=values, step=torch.arange(values.shape[1]).expand(len(values), -1))

    batch = trajectories(1, 1, instructions=("push",), features={"e/top": sampled(torch.zeros(1, 2, 4))})
    batch = replace(batch, frames={"top": sampled(torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8))})
    proposer = PolicyProposer(Counting())
    at = torch.tensor([0]), torch.tensor([0])
    before = proposer(batch, *at, 1)
    assert torch.equal(proposer(batch, *at, 1), before)
    state, features, frames = batch.state.clone(), torch.zeros(1, 2, 4), batch.frames["top"].values.clone()
    if what == "state":
        state[0, 0, 1] += 1e-4
    if what == "features":
        features[0, 0, 3] = 1e-4
    if what == "frames":
        frames[0, 0, 2, 3, 3] = 1
    other = replace(
        batch,
        state=state,
        features={"e/top": sampled(features)},
        frames={"top": sampled(frames)},
        instructions=("pull" if what == "instruction" else "push",),
    )
    assert not torch.equal(proposer(other, *at, 1), before)
    assert (proposer.hits, proposer.misses) == (1, 2)


def test_another_version_of_the_policy_is_asked_again():
    policy, batch = Counting(), trajectories()
    proposer = PolicyProposer(policy)
    before = proposer(batch, *every(batch), 1)
    version = proposer.version
    proposer.updated()
    assert proposer.version != version
    after = proposer(batch, *every(batch), 1)
    assert not torch.equal(before, after) and policy.chunks == 36
    proposer.version = 7
    assert not torch.equal(proposer(batch, *every(batch), 1), after) and policy.chunks == 54
    proposer(batch, *every(batch), 1)
    assert policy.chunks == 54


def test_what_is_older_than_allowed_is_drawn_again():
    policy, batch = Counting(), trajectories()
    proposer = PolicyProposer(policy, refresh_every=3)
    drawn = [proposer(batch, *every(batch), 1) for _ in range(7)]
    # drawn at calls 0, 3 and 6
    assert [torch.equal(a, b) for a, b in itertools.pairwise(drawn)] == [True, True, False, True, True, False]
    assert policy.chunks == 3 * 18
    late = PolicyProposer(policy, refresh_every=2)
    late(batch, torch.tensor([0]), torch.tensor([0]), 1)
    late(batch, torch.tensor([1]), torch.tensor([0]), 1)
    late(batch, torch.tensor([0, 1]), torch.tensor([0, 0]), 1)  # the first is two calls old, the second one
    assert (late.hits, late.misses) == (1, 3)


def test_the_least_recently_used_observations_are_dropped():
    batch = trajectories(1, 3)
    proposer = PolicyProposer(Counting(), keep=2)

    def ask(step):
        hits = proposer.hits
        proposer(batch, torch.tensor([0]), torch.tensor([step]), 1)
        return proposer.hits > hits

    assert [ask(s) for s in (0, 1, 0, 2, 0, 1)] == [False, False, True, False, True, False]
    # more at once than are kept: all are answered
    assert proposer(batch, *every(batch), 2).shape == (2, 4, 2, 3)


def test_without_keeping_every_call_draws_anew():
    policy, batch = Counting(), trajectories()
    proposer = PolicyProposer(policy, keep=0)
    first, second = (proposer(batch, *every(batch), 2) for _ in range(2))
    assert not torch.equal(first, second)
    assert (proposer.hits, proposer.misses, policy.chunks) == (0, 36, 72)


@pytest.mark.parametrize("keep", [0, 100])
def test_small_parts_give_the_same_number_of_chunks(keep):
    policy, batch = Counting(), trajectories()
    chunks = PolicyProposer(policy, keep=keep, micro_batch=5)(batch, *every(batch), 2)
    assert chunks.shape == (2, 18, 2, 3) and policy.calls == 8
    assert len(chunks.flatten(0, 1).flatten(1).unique(dim=0)) == 36


def test_the_policy_and_the_global_generator_are_left_alone():
    policy, batch = Counting(), trajectories()
    policy.train()
    policy.network[0].eval()  # a frozen part, say
    modes = [m.training for m in policy.modules()]
    weights = copy.deepcopy(policy.state_dict())
    state = torch.get_rng_state()
    proposer = PolicyProposer(policy)
    chunks = proposer(batch, *every(batch), 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in policy.modules()] == modes
    assert all(p.requires_grad for p in policy.parameters()) and not chunks.requires_grad
    assert all(torch.equal(v, weights[k]) for k, v in policy.state_dict().items())


def test_noise_follows_from_seed_and_version_alone():
    policy, batch = Counting(), trajectories()
    first = PolicyProposer(policy, seed=3)
    first(batch, *every(batch), 2)  # what an uninterrupted run drew before
    first.version = 5
    resumed = PolicyProposer(policy, seed=3)
    resumed.version = 5
    assert torch.equal(first(batch, *every(batch), 2), resumed(batch, *every(batch), 2))
    other = PolicyProposer(policy, seed=4)
    other.version = 5
    assert not torch.equal(other(batch, *every(batch), 2), resumed(batch, *every(batch), 2))


def test_saved_and_opened_again_it_proposes_the_same(tmp_path):
    proposer, batch = PolicyProposer(GaussianPolicy(2, 3, horizon=4), steps=3, refresh_every=9, seed=1), trajectories()
    proposer.save_pretrained(tmp_path)
    again = PolicyProposer.from_pretrained(tmp_path)
    assert again.init_args["refresh_every"] == 9
    assert torch.equal(again(batch, *every(batch), 2), proposer(batch, *every(batch), 2))


def test_nothing_asked_gives_nothing():
    batch, none = trajectories(), torch.zeros(0, dtype=torch.long)
    assert PolicyProposer(Counting())(batch, none, none, 2).shape == (2, 0, 2, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "expected 1 … 4, the horizon"),
        ({"steps": 5}, "expected 1 … 4, the horizon"),
        ({"keep": -1}, "0 observations or more"),
        ({"refresh_every": 0}, "at least one call"),
        ({"micro_batch": 0}, "at least one call and one chunk"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PolicyProposer(Counting(), **options)


def test_no_chunk_and_no_observation_are_refused():
    batch = trajectories()
    with pytest.raises(ValueError, match="at least one chunk"):
        PolicyProposer(Counting())(batch, *every(batch), 0)
    with pytest.raises(ValueError, match="is not real"):
        PolicyProposer(Counting())(batch, torch.tensor([0]), torch.tensor([6]), 1)
