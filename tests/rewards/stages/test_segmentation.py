"""Segmentation in one direction: against every path there is, by hand, and as properties."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.rewards.stages.segmentation import (
    CERTAIN,
    StagePath,
    monotone_completed,
    monotone_stages,
    online_completed,
    online_stages,
)


@st.composite
def answers(draw, longest=12, most=4, levels=(0.0, 0.1, 0.3, 0.5, 0.6, 0.9, 1.0)):
    count, stages = draw(st.integers(1, longest)), draw(st.integers(1, most))
    row = st.lists(st.sampled_from(levels), min_size=stages, max_size=stages)
    done = torch.tensor(draw(st.lists(row, min_size=count, max_size=count)))
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    return done, valid


def likelihood(path, done, valid):
    """The formula of the module, term by term."""
    total = 0.0
    for t, complete in enumerate(path):
        if not valid[t]:
            continue
        for i in range(done.shape[1]):
            p = done[t, i].double().clamp(CERTAIN, 1 - CERTAIN)
            total += float((p if i < complete else 1 - p).log())
    return total


def allowed(path, stages, min_length):
    """Starts at 0, never falls; every stage but the plan's last lasts ``min_length`` where it is left."""
    if path[0] != 0 or any(b < a for a, b in itertools.pairwise(path)):
        return False
    return all(path.count(k) >= min_length or path[-1] <= k for k in range(stages - 1))


def best_path(done, valid, min_length):
    """The most likely of all paths, the later transitions at equal likelihood."""
    count, stages = done.shape
    paths = [p for p in itertools.product(range(stages + 1), repeat=count) if allowed(p, stages, min_length)]
    scored = [(likelihood(p, done, valid), p) for p in paths]
    top = max(score for score, _ in scored)
    equal = [p for score, p in scored if score >= top - 1e-9]
    lowest = min(equal, key=sum)
    assert all(a <= b for other in equal for a, b in zip(lowest, other, strict=True))  # the latest is latest everywhere
    return list(lowest)


@pytest.mark.slow
@pytest.mark.parametrize("min_length", [0, 1, 2, 3])
@given(given_answers=answers(longest=6, most=3))
def test_the_path_is_the_most_likely_of_all(min_length, given_answers):
    done, valid = given_answers
    assert monotone_completed(done, valid, min_length).tolist() == best_path(done, valid, min_length)


def known(done):
    return torch.ones(len(done), dtype=torch.bool)


def test_by_hand():
    # stage 0: logits at t = 1 … 4 are log(.9/.1) = 2.197, log(.2/.8) = −1.386, 2.197, 2.197
    #   complete from t = 1: 2.197 − 1.386 + 2.197 + 2.197 = 5.205; from t = 3: 4.394; from t = 1 it is
    # stage 1: −2.197 throughout until t = 4: 2.197; complete from t = 4
    done = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.2, 0.1], [0.9, 0.1], [0.9, 0.9]])
    assert monotone_completed(done, known(done)).tolist() == [0, 1, 1, 1, 2]
    assert monotone_stages(done, known(done)).tolist() == [0, 1, 1, 1, 1]  # the last stage stays the last
    # online, with two in a row, the first run of two for stage 0 ends at t = 4; stage 1 has one answer only
    assert online_completed(done, known(done), hold=2).tolist() == [0, 0, 0, 0, 1]
    assert online_completed(done, known(done)).tolist() == [0, 1, 1, 1, 2]


def test_min_length_delays_a_stage():
    done = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [0.9, 0.9, 0.9], [0.9, 0.9, 0.9]])
    assert monotone_stages(done, known(done), 1).tolist() == [0, 1, 2, 2, 2]
    # two observations in stage 0 and in stage 1 each, as far as they are left
    assert monotone_stages(done, known(done), 2).tolist() == [0, 0, 1, 1, 2]
    # three in each: leaving stage 1 would need six observations
    assert monotone_stages(done, known(done), 3).tolist() == [0, 0, 0, 1, 1]


def test_a_failure_ends_in_the_stage_it_reached():
    done = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.9, 0.2, 0.1], [0.9, 0.3, 0.1]])
    assert monotone_completed(done, known(done)).tolist() == [0, 1, 1, 1]
    nothing = torch.full((4, 3), 0.2)
    assert monotone_completed(nothing, known(nothing)).tolist() == [0, 0, 0, 0]


def test_several_stages_between_two_observations():
    done = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.9, 0.1], [0.9, 0.9, 0.9]])
    assert monotone_completed(done, known(done), 0).tolist() == [0, 2, 3]
    assert online_completed(done, known(done)).tolist() == [0, 2, 3]
    assert monotone_completed(done, known(done), 1).tolist() == [0, 1, 3]  # the last stage may be over at once


@given(cuts=st.lists(st.integers(1, 12), min_size=1, max_size=4).map(sorted), sure=st.floats(0.51, 1.0))
def test_answers_that_agree_are_followed(cuts, sure):
    """Reduction: where the answers are those of one path, the segmentation is the argmax, online or not."""
    t = torch.arange(13)
    done = torch.stack([torch.where(t >= cut, sure, 1 - sure) for cut in cuts], 1)
    truth = (t[:, None] >= torch.tensor(cuts)).sum(1)
    assert torch.equal(monotone_completed(done, known(done), 0), truth)
    assert torch.equal(online_completed(done, known(done)), truth)


@given(given_answers=answers(), min_length=st.integers(0, 4), hold=st.integers(1, 3))
def test_paths_start_at_0_and_never_fall(given_answers, min_length, hold):
    done, valid = given_answers
    stages = done.shape[1]
    for path in (monotone_completed(done, valid, min_length), online_completed(done, valid, hold=hold)):
        assert path[0] == 0
        assert bool((path.diff() >= 0).all())
        assert int(path.max()) <= stages
    lengths = torch.bincount(monotone_stages(done, valid, min_length), minlength=stages)
    entered = int((lengths > 0).nonzero().max())
    assert bool((lengths[:entered] >= min_length).all())  # all that were entered but the one it ends in
    assert torch.equal(monotone_stages(done, valid), monotone_completed(done, valid).clamp(max=stages - 1))
    assert torch.equal(online_stages(done, valid), online_completed(done, valid).clamp(max=stages - 1))


@given(given_answers=answers(), hold=st.integers(1, 3), data=st.data())
def test_the_online_path_of_a_prefix_is_the_prefix_of_the_path(given_answers, hold, data):
    done, valid = given_answers
    cut = data.draw(st.integers(1, len(done)))
    whole = online_completed(done, valid, hold=hold)
    assert torch.equal(online_completed(done[:cut], valid[:cut], hold=hold), whole[:cut])


@given(given_answers=answers(), hold=st.integers(1, 3), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.8]))
def test_the_online_path_is_the_literal_loop(given_answers, hold, threshold):
    done, valid = given_answers
    count, stages = done.shape
    run, complete, path = [0] * stages, 0, []
    for t in range(count):
        if valid[t]:
            run = [run[i] + 1 if done[t, i] > threshold else 0 for i in range(stages)]
            while t > 0 and complete < stages and run[complete] >= hold:
                complete += 1
        path.append(complete)
    assert online_completed(done, valid, threshold, hold).tolist() == path


@given(given_answers=answers(), rubbish=st.sampled_from([0.0, 1.0, float("nan"), 7.0]))
def test_unknown_observations_are_no_evidence(given_answers, rubbish):
    done, valid = given_answers
    other = torch.where(valid[:, None], done, rubbish)
    assert torch.equal(monotone_completed(done, valid), monotone_completed(other, valid))
    assert torch.equal(online_completed(done, valid, hold=2), online_completed(other, valid, hold=2))


def test_without_evidence_nothing_is_complete():
    done, nothing = torch.ones(5, 2), torch.zeros(5, dtype=torch.bool)
    assert monotone_completed(done, nothing).tolist() == [0] * 5
    assert online_completed(done, nothing).tolist() == [0] * 5


def test_an_unknown_observation_neither_breaks_a_run_nor_ends_a_stage():
    done = torch.tensor([[0.0], [0.9], [0.0], [0.9], [0.9]])
    valid = torch.tensor([True, True, False, True, True])
    assert online_completed(done, valid, hold=2).tolist() == [0, 0, 0, 1, 1]
    assert monotone_completed(done, valid & (torch.arange(5) != 1)).tolist() == [0, 0, 0, 1, 1]


def test_one_certain_answer_does_not_outweigh_the_others():
    # log odds of 1 − 1e-6: 13.8; six answers of 0.05 weigh 6 · 2.94 = 17.7 against it
    done = torch.tensor([[0.0], [1.0], *[[0.05]] * 6])
    assert monotone_completed(done, known(done)).tolist() == [0] * 8
    assert monotone_completed(done[:4], known(done)[:4]).tolist() == [0, 1, 1, 1]  # 2 · 2.94 does not


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.5, float("inf")])
def test_what_is_no_probability_is_refused(wrong):
    done = torch.tensor([[0.5], [wrong]])
    for segment in (monotone_completed, online_completed):
        with pytest.raises(ValueError, match=r"done\[1, 0\] is .*: expected a probability"):
            segment(done, known(done))


def test_arguments_out_of_range_are_refused():
    done = torch.full((3, 1), 0.5)
    with pytest.raises(ValueError, match="min_length is -1"):
        monotone_completed(done, known(done), -1)
    with pytest.raises(ValueError, match=r"threshold 1\.0"):
        online_completed(done, known(done), threshold=1.0)
    with pytest.raises(ValueError, match="hold 0"):
        online_completed(done, known(done), hold=0)
    with pytest.raises(ValueError, match="no stage"):
        monotone_completed(torch.zeros(3, 0), torch.ones(3, dtype=torch.bool))


def test_a_path_looks_at_the_whole_episode_or_at_the_past():
    done = torch.tensor([[0.1], [0.9], [0.2], [0.9], [0.9]])
    path = StagePath(min_length=0, threshold=0.85, hold=2)
    assert torch.equal(path.completed(done, known(done), causal=False), monotone_completed(done, known(done), 0))
    assert torch.equal(path.completed(done, known(done), causal=True), online_completed(done, known(done), 0.85, 2))
    refused: list[dict[str, Any]] = [{"min_length": -1}, {"threshold": 1.0}, {"hold": 0}]
    for wrong in refused:
        with pytest.raises(ValueError, match=r"expected at least 0, 0 <= threshold < 1 and at least 1"):
            StagePath(**wrong)
