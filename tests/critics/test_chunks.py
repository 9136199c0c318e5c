"""What critics of chunks share: ensembles, target networks, which steps count, and what a critic is shown."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch, terminated_from
from guerdon.critics.action import ActionCritic
from guerdon.critics.chunks import (
    REPLAN,
    aggregate,
    chunk_lengths,
    learnable_lengths,
    polyak,
    replans,
)
from guerdon.critics.expectile import ExpectileCritic
from guerdon.critics.logged import logged_chunks, shown_lengths, silent_rows
from guerdon.critics.networks import ChunkPerceptron
from guerdon.testing import pad_steps, reopen, trajectory_batches

quick = settings(max_examples=40, deadline=None)
numbers = st.floats(-100, 100, allow_nan=False, width=32)

# E: ensembles ---------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(numbers, min_size=2, max_size=2))
def test_of_two_members_the_smaller_is_the_mean_minus_one_deviation(values):
    # E1: with ddof = 0, and so the mean minus std(ddof = 1) / sqrt(2)
    members = torch.tensor(values, dtype=torch.float64)
    smallest = aggregate(members, "min")
    torch.testing.assert_close(aggregate(members, "lcb"), smallest)
    torch.testing.assert_close(members.mean() - members.std(correction=1) / math.sqrt(2), smallest)


@quick
@given(st.lists(numbers, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_bounds_of_the_smallest_member(values, random):
    # E2: mean - sqrt(K-1) std <= min <= mean - std / sqrt(K-1); order does not matter; more deviations, lower bound
    members = torch.tensor(values, dtype=torch.float64)
    count, mean, std = len(values), members.mean(), members.std(correction=0)
    smallest, slack = aggregate(members, "min"), 1e-9
    assert mean - math.sqrt(count - 1) * std - slack <= smallest <= mean - std / math.sqrt(count - 1) + slack
    random.shuffle(values)
    for how in ("min", "mean", "lcb"):
        torch.testing.assert_close(aggregate(torch.tensor(values, dtype=torch.float64), how), aggregate(members, how))
    bounds = [float(aggregate(members, "lcb", beta)) for beta in (0.0, 0.5, 1, 2.0)]
    assert bounds == sorted(bounds, reverse=True)


def test_equal_members_are_their_value_and_one_member_is_itself():
    for how in ("min", "mean", "lcb"):
        torch.testing.assert_close(aggregate(torch.full((5, 3), -0.1), how), torch.full((3,), -0.1))
        torch.testing.assert_close(aggregate(torch.tensor([[2.0, -3.0]]), how), torch.tensor([2.0, -3.0]))


@pytest.mark.parametrize(("members", "mean"), [(2, -0.5642), (3, -0.8463), (5, -1.1630), (10, -1.5388)])
def test_smallest_of_independent_members(members, mean):
    # E3, within 4 standard errors: the deviation of a minimum is below 0.83
    drawn = torch.randn(members, 200_000)
    assert float(aggregate(drawn, "min").mean()) == pytest.approx(mean, abs=4 * 0.83 / math.sqrt(200_000))


@pytest.mark.parametrize(("correlation", "mean"), [(0.0, -0.5642), (0.5, -0.3989), (0.9, -0.1784)])
def test_members_that_agree_are_hardly_pessimistic(correlation, mean):
    # E4: -0.5642 sqrt(1 - rho)
    shared, own = torch.randn(200_000), torch.randn(2, 200_000)
    members = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    assert float(aggregate(members, "min").mean()) == pytest.approx(mean, abs=4 / math.sqrt(200_000))


@pytest.mark.parametrize(("how", "mean"), [("mean", 0.729), ("min", 0.276)])
def test_the_best_of_four_noisy_candidates_is_over_estimated(how, mean):
    # E5, K = 2: 1.0294 / sqrt(2) for the mean; the smallest member takes away most, not all, of it
    found = aggregate(torch.randn(2, 4, 200_000), how).amax(0)
    assert float(found.mean()) == pytest.approx(mean, abs=0.006)


@pytest.mark.parametrize("members", [torch.zeros(0, 3), torch.zeros(2, 3)])
def test_unknown_reductions_and_empty_ensembles_are_refused(members):
    with pytest.raises((ValueError, TypeError), match=r"expected min, mean or lcb|Expected type"):
        aggregate(members, "min" if len(members) == 0 else "median")


def test_polyak_averages_follow_their_closed_form():
    # E6: after n steps towards a constant, target = phi + (phi0 - phi)(1 - w)^n
    torch.manual_seed(1)
    online, target = nn.Linear(3, 2), nn.Linear(3, 2)
    begin, rate = [p.detach().clone() for p in target.parameters()], 0.05
    for _ in range(30):
        polyak(target, online, rate)
    for now, start, goal in zip(target.parameters(), begin, online.parameters(), strict=True):
        torch.testing.assert_close(now, goal + (start - goal) * 0.95**30)
    polyak(target, online, 1)
    assert torch.equal(target.weight, online.weight)


# which steps count ----------------------------------------------------------------------------------------------------


@st.composite
def logs(draw):
    """Batches with re-plan flags, plans or neither, unknown rewards and any set of terminating ends."""
    batch = draw(trajectory_batches(state_size=1, action_size=2, stored_labels=False, max_steps=8))
    rows, steps = batch.mask.shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def flags(chance):
        return torch.rand(rows, steps, generator=generator) < chance

    more = {"terminated": terminated_from(batch.end, draw(st.sets(st.sampled_from(list(End)))))}
    kind = draw(st.sampled_from(["none", "column", "plans"]))
    if kind == "column":
        more["recorded"] = {REPLAN: Labelled(values=flags(0.4).float(), valid=flags(0.9))}
    if kind == "plans":
        decided = flags(0.5) & batch.mask
        step = torch.where(decided, torch.arange(steps), steps).sort(1).values
        step = torch.where(step == steps, -1, step)
        plan = torch.randn(rows, steps, draw(st.integers(1, 5)), 2, generator=generator)
        more |= {"decision_step": step, "behaviour": {"sample": plan}}
    return replace(batch, **more), flags(0.8)


def decided_anew(batch, row, step):
    if "sample" in batch.behaviour:
        return step in batch.decision_step[row].tolist()
    column = batch.recorded.get(REPLAN)
    return column is not None and bool(column.valid[row, step]) and float(column.values[row, step]) > 0


@quick
@given(logs(), st.integers(1, 9), st.booleans())
def test_lengths_agree_with_a_walk(log, horizon, across):
    batch, valid = log
    rows, steps = batch.mask.shape
    rewards = RewardEstimates(rewards=torch.zeros(rows, steps), valid=valid)
    chunk = chunk_lengths(batch, horizon, across)
    learnable = learnable_lengths(batch, rewards, horizon, across)
    for row in range(rows):
        last = int(batch.steps[row])
        for start in range(steps):
            n = 0
            while n < horizon and start + n < last and (across or not n or not decided_anew(batch, row, start + n)):
                n += 1
            assert int(chunk[row, start]) == n
            known = 0
            while known < n and bool(valid[row, start + known]):
                led_nowhere = start + known + 1 == last and not batch.last_observed[row] and not batch.terminated[row]
                if led_nowhere:
                    break
                known += 1
            assert int(learnable[row, start]) == known


@quick
@given(logs(), st.integers(1, 9), st.booleans(), st.sampled_from(["complete", "mask"]))
def test_what_is_shown_agrees_with_a_walk(log, horizon, across, tails):
    batch, valid = log
    rewards = RewardEstimates(rewards=torch.zeros(valid.shape), valid=valid)
    critic = ActionCritic(ChunkPerceptron(1, 2, horizon, 1, (4,)), across_replans=across, tails=tails)
    lengths = learnable_lengths(batch, rewards, horizon, across)
    rows, steps = (lengths > 0).nonzero(as_tuple=True)
    chunk, mask = critic.logged_input(batch, rows, steps, lengths)
    plan = batch.behaviour.get("sample")
    for at, (row, start) in enumerate(zip(rows.tolist(), steps.tolist(), strict=True)):
        n, last = int(lengths[row, start]), int(batch.steps[row])
        decisions = [t for t in range(last) if decided_anew(batch, row, t)]
        shown = n
        if tails == "complete" and bool(batch.terminated[row]) and start + n == last:
            shown = horizon
            if decisions and not across:
                gaps = [after - before for before, after in pairwise(decisions)]
                usual = horizon if plan is None else min(horizon, plan.shape[2])
                until = decisions[-1] + max(max(gaps) if gaps else usual, last - decisions[-1])
                shown = max(n, min(horizon, until - start))
        assert mask[at].tolist() == [k < shown for k in range(horizon)]
        for k in range(shown):
            wanted = batch.actions[row, min(start + k, last - 1)]
            if start + k >= last and plan is not None and decisions:
                wanted = plan[row, len(decisions) - 1, min(start + k - decisions[-1], plan.shape[2] - 1)]
            assert torch.equal(chunk[at, k], wanted)


def test_a_chunk_that_success_cut_short_is_shown_as_it_was_planned():
    # plans of 3 steps, each carried out whole but the last, which success cut after 1 step: from step 3 the critic is
    # shown all 3 steps of it, and from step 1, in the middle of the first plan, the two that were left
    plan = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])[..., None]
    batch = TrajectoryBatch(
        state=torch.zeros(1, 5, 1),
        actions=torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None],
        mask=torch.ones(1, 4, dtype=torch.bool),
        end=torch.tensor([int(End.SUCCESS)]),
        decision_step=torch.tensor([[0, 3]]),
        behaviour={"sample": plan},
    )
    lengths = chunk_lengths(batch, 5)
    assert lengths.tolist() == [[3, 2, 1, 1]]
    assert shown_lengths(batch, lengths, 5).tolist() == [[3, 2, 1, 3]]
    chunk, mask = logged_chunks(batch, torch.tensor([0]), torch.tensor([3]), torch.tensor([3]), 5)
    assert chunk[0, mask[0], 0].tolist() == [4.0, 5.0, 6.0]
    # a log without plans goes on with the last action
    bare = replace(batch, behaviour={})
    chunk, mask = logged_chunks(bare, torch.tensor([0]), torch.tensor([3]), torch.tensor([3]), 5)
    assert chunk[0, mask[0], 0].tolist() == [4.0, 4.0, 4.0]
    # a cut is no end: what comes next is unknown, not planned
    cut = replace(batch, terminated=torch.tensor([False]))
    assert shown_lengths(cut, lengths, 5).tolist() == lengths.tolist()


def test_replans_are_told_by_rollouts_and_by_a_column():
    batch, _ = rows_of([3, 2])
    assert replans(batch) is None and silent_rows(batch).tolist() == [True, True]
    decided = replace(batch, decision_step=torch.tensor([[0, 2], [0, -1]]), behaviour={"sample": torch.zeros(2, 2, 1)})
    assert replans(decided).tolist() == [[True, False, True], [True, False, False]]
    assert silent_rows(decided).tolist() == [False, False]
    values = torch.tensor([[1.0, 0.0, 1.0], [1.0, math.nan, 1.0]])
    column = Labelled(values=values, valid=torch.tensor([[True, True, False], [False, False, False]]))
    logged = replace(batch, recorded={REPLAN: column})
    assert replans(logged).tolist() == [[True, False, False], [False, False, False]]
    assert silent_rows(logged).tolist() == [False, True]
    # kept with the observations, or as a vector of one number: the same flags
    flags = torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    for values in (flags, flags[..., None]):
        per_observation = Labelled(values=values, valid=torch.ones(2, 4, dtype=torch.bool))
        found = replace(batch, recorded={REPLAN: per_observation})
        assert replans(found).tolist() == [[True, False, True], [True, False, False]]
        assert silent_rows(found).tolist() == [False, False]
    several = Labelled(values=torch.zeros(2, 3, 2), valid=torch.ones(2, 3, dtype=torch.bool))
    for ask in (replans, silent_rows):
        with pytest.raises(ValueError, match=r"expected one flag a step.*\(2, 3, 2\)"):
            ask(replace(batch, recorded={REPLAN: several}))


def rows_of(lengths, end=End.CUT):
    steps = max(lengths)
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    batch = TrajectoryBatch(
        state=torch.randn(len(lengths), steps + 1, 2),
        actions=torch.randn(len(lengths), steps, 1).masked_fill(~mask[..., None], math.nan),
        mask=mask,
        end=torch.full((len(lengths),), int(end)),
    )
    return batch, RewardEstimates(rewards=torch.where(mask, -1.0, 0.0), valid=mask)


# the critic around them -----------------------------------------------------------------------------------------------


def stepwise(batch):
    """The same rows, with a decision at every step: no chunk spans a re-plan."""
    flags = Labelled(values=torch.ones(batch.mask.shape), valid=batch.mask)
    return replace(batch, recorded={REPLAN: flags})


class Zero:
    version = 0

    def __call__(self, batch, rows, steps, n):
        return torch.zeros(n, len(rows), 2, 1)


def test_scales_and_the_moved_target_are_saved():
    batch, rewards = rows_of([3, 2])
    critic = ActionCritic(ChunkPerceptron(2, 1, 2, hidden=(8,)))
    critic.fit_scales(batch)
    torch.testing.assert_close(critic.target.state_scale.mean, batch.state[batch.made].mean(0))
    assert bool(critic.target.fitted)
    with torch.no_grad():
        for parameter in critic.network.parameters():
            parameter += 1.0
    critic.after_step()
    again = reopen(critic)
    for name, value in critic.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    mine, theirs = (dict(n.named_parameters()) for n in (again.network, again.target))
    assert all(not torch.equal(mine[name], theirs[name]) for name in mine)
    found = [c.targets(stepwise(batch), rewards, c.points(stepwise(batch), rewards), Zero()) for c in (critic, again)]
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_the_target_stays_in_evaluation_mode_and_gets_no_gradient():
    batch, rewards = rows_of([3, 2])
    critic = ActionCritic(ChunkPerceptron(2, 1, 2, hidden=(8,))).train()
    assert critic.network.training and not critic.target.training
    critic.loss(stepwise(batch), rewards, Zero())["loss"].backward()
    assert all(p.grad is not None for p in critic.network.parameters())
    assert all(p.grad is None and not p.requires_grad for p in critic.target.parameters())


def test_a_critic_that_was_frozen_learns_again_without_its_target():
    # an advantage source freezes its critic; the next iteration goes on training it
    critic = ExpectileCritic(ChunkPerceptron(2, 1, 2, hidden=(8,)))
    learns = [p.requires_grad for p in critic.parameters()]
    assert True in learns and False in learns
    assert not any(p.requires_grad for p in critic.requires_grad_(False).parameters())
    assert [p.requires_grad for p in critic.requires_grad_(True).parameters()] == learns


def test_padding_changes_neither_loss_nor_gradient():
    batch, rewards = rows_of([4, 2, 0])
    once = (torch.arange(4) == 0).float().repeat(3, 1)
    batch = replace(batch, recorded={REPLAN: Labelled(values=once, valid=batch.mask)})
    critic = ActionCritic(ChunkPerceptron(2, 1, 3, hidden=(8,)))
    found = []
    for extra in (0, 3):
        longer = pad_steps(batch, extra)
        padded = nn.functional.pad(rewards.rewards, (0, extra), value=math.nan)
        known = nn.functional.pad(rewards.valid, (0, extra))
        critic.zero_grad()
        loss = critic.loss(longer, RewardEstimates(rewards=padded, valid=known), Zero())["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in critic.network.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_small_micro_batches_give_the_same():
    batch, _ = rows_of([5, 3, 0, 1])
    network = ChunkPerceptron(2, 1, 2, hidden=(8,))
    large, small = (ActionCritic(network, micro_batch=size, value_samples=3)(batch, Zero()) for size in (4096, 2))
    for part in ("v", "q", "members"):
        torch.testing.assert_close(getattr(large, part), getattr(small, part))


def test_rows_without_a_step_are_legal_alone():
    batch, rewards = rows_of([2])
    empty = replace(batch, mask=torch.zeros(1, 2, dtype=torch.bool), decision_step=torch.full((1, 2), -1))
    critic = ActionCritic(ChunkPerceptron(2, 1, 2, hidden=(8,)))
    found = critic(empty, Zero())
    assert bool((found.q == 0).all()) and bool((found.v[:, 1:] == 0).all())
    assert float(critic.loss(empty, replace(rewards, valid=empty.mask), Zero())["loss"].detach()) == 0.0
