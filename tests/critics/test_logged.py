"""Logged chunks: their lengths, what is shown of them, re-plans, and the rules that a critic reads them by."""

import math
import warnings
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch, terminated_from
from guerdon.critics.logged import (
    REPLAN,
    LoggedChunks,
    chunk_lengths,
    learnable_lengths,
    logged_chunks,
    replans,
    shown_lengths,
    silent_rows,
)
from guerdon.testing import reopen, trajectory_batches

from .small_parts import rows_of


@st.composite
def logs(draw):
    """Batches with re-plan flags, plans or neither, unknown rewards and any set of terminating ends."""
    batch = draw(trajectory_batches(state_size=1, action_size=2, stored_labels=False, max_steps=8))
    rows, steps = batch.mask.shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def flags(chance):
        return torch.rand(rows, steps, generator=generator) < chance

    more: dict[str, Any] = {"terminated": terminated_from(batch.end, draw(st.sets(st.sampled_from(list(End)))))}
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


@given(logs(), st.integers(1, 9), st.booleans(), st.sampled_from(["complete", "mask"]))
def test_what_is_shown_agrees_with_a_walk(log, horizon, across, tails):
    batch, valid = log
    rewards = RewardEstimates(rewards=torch.zeros(valid.shape), valid=valid)
    logged = LoggedChunks(across_replans=across, tails=tails)
    lengths = logged.learnable(batch, rewards, horizon)
    assert torch.equal(lengths, learnable_lengths(batch, rewards, horizon, across))
    rows, steps = (lengths > 0).nonzero(as_tuple=True)
    chunk, mask = logged.shown(batch, rows, steps, lengths, horizon)
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


def test_the_rules_are_saved_and_weigh_the_steps_of_each_source():
    batch, _ = rows_of([2, 1, 1])
    batch = replace(batch, source=torch.tensor([0, 1, 2]), weight=torch.tensor([[2.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    rules = LoggedChunks(source_weights={"1": 3.0, "2": 0.0}, across_replans=True, tails="mask")
    assert rules.weights(batch).tolist() == [[2.0, 1.0], [3.0, 0.0], [0.0, 0.0]]
    assert batch.weight.tolist() == [[2.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    again = reopen(rules)
    assert (again.source_weights, again.across_replans, again.tails) == ({1: 3.0, 2: 0.0}, True, "mask")


def test_chunks_that_may_span_replans_are_warned_of_once():
    batch, _ = rows_of([3, 2])
    rules = LoggedChunks()
    with pytest.warns(UserWarning, match=r"logged chunks of 2 steps may span re-plans: not all of these trajectories"):
        rules.warn_of_replans(batch, 2)
    once = (torch.arange(3) == 0).float().repeat(2, 1)
    flagged = replace(batch, recorded={REPLAN: Labelled(values=once, valid=batch.mask)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rules.warn_of_replans(batch, 2)
        LoggedChunks().warn_of_replans(batch, 1)  # a chunk of one step spans nothing
        LoggedChunks().warn_of_replans(flagged, 2)
        LoggedChunks(across_replans=True).warn_of_replans(flagged, 2)  # decided once, at the beginning
    every = replace(batch, recorded={REPLAN: Labelled(values=torch.ones(2, 3), valid=batch.mask)})
    with pytest.warns(UserWarning, match="span re-plans of the policy that acted"):
        LoggedChunks(across_replans=True).warn_of_replans(every, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tails": "repeat"},
        {"source_weights": {"demo": 1.0}},
        {"source_weights": {"1": -1.0}},
        {"source_weights": {"1": math.inf}},
        {"source_weights": {"²": 1.0}},
    ],
)
def test_rules_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=r"expected|Expected type"):
        LoggedChunks(**wrong)
