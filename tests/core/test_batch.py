"""Batch types: derived fields, selection, moving, decision points; values encode row and step, so mix-ups show."""

import json
import pickle
import re
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import (
    Advantages,
    Decision,
    End,
    Evaluation,
    Labelled,
    Observation,
    PreferencePairs,
    RewardEstimates,
    Sampled,
    TrajectoryBatch,
    ValueEstimates,
    terminated_from,
)
from guerdon.testing import trajectory_batches


def code(rows, steps):
    """100 · row + step, so that every entry says where it belongs."""
    return 100.0 * torch.arange(rows)[:, None] + torch.arange(steps)[None]


def coded(lengths, decision_step=None, chunk=2, **more):
    """Rows of given lengths whose state, action, frame, feature, label and sample say row and step."""
    rows, steps = len(lengths), max(lengths)
    length = torch.tensor(lengths)
    behaviour = {}
    if decision_step is not None:
        decision_step = torch.tensor(decision_step)
        at = 100.0 * torch.arange(rows)[:, None] + decision_step
        behaviour = {
            # step k of the chunk decided at step d of row b holds 100b + d + k/10
            "sample": (at[..., None] + torch.arange(chunk) / 10)[..., None],
            "log_prob": -at[..., None].expand(-1, -1, chunk),
            "tokens": at.long(),
        }
        more |= {"decision_step": decision_step}
    frame_step = torch.arange(0, steps + 1, 2).expand(rows, -1)
    frame_step = torch.where(frame_step <= length[:, None], frame_step, -1)
    pixel = (10 * torch.arange(rows)[:, None] + frame_step.clamp(min=0)).to(torch.uint8)
    return TrajectoryBatch(
        state=code(rows, steps + 1)[..., None],
        actions=code(rows, steps)[..., None] + 0.5,
        mask=torch.arange(steps) < length[:, None],
        frames={"top": Sampled(values=pixel[..., None, None, None].expand(-1, -1, 3, 2, 2), step=frame_step)},
        features={"clip/top": Sampled(values=code(rows, steps + 1)[..., None], step=every(length, steps))},
        instructions=tuple(f"task of row {i}" for i in range(rows)),
        labels={"progress": Labelled(values=code(rows, steps + 1), valid=torch.ones(rows, steps + 1).bool())},
        recorded={"reward": Labelled(values=code(rows, steps), valid=torch.ones(rows, steps).bool())},
        behaviour=behaviour,
        **more,
    )


def every(length, steps):
    index = torch.arange(steps + 1).expand(len(length), -1)
    return torch.where(index <= length[:, None], index, -1)


def tensors(value, path=""):
    """Every tensor in a record, with its path."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from tensors(inner, f"{path}[{name!r}]")
    elif hasattr(value, "__dataclass_fields__"):
        for f in fields(value):
            yield from tensors(getattr(value, f.name), f"{path}.{f.name}")


def bare(rows=2, steps=3, **more: Any):
    given: dict[str, Any] = {"state": torch.zeros(rows, steps + 1, 1), "actions": torch.zeros(rows, steps, 1)}
    given["mask"] = torch.ones(rows, steps).bool()
    return TrajectoryBatch(**(given | more))


# --- derived fields -------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_derived():
    batch = bare(2, 3, mask=torch.tensor([[True, True, True], [True, False, False]]), instructions=("open", "open"))
    assert batch.task.tolist() == [0, 0]
    assert batch.end.tolist() == [End.CUT, End.CUT]
    assert batch.terminated.tolist() == [False, False]
    assert batch.last_observed.tolist() == [True, True]
    assert batch.success_known.tolist() == [False, False]
    assert batch.episode.tolist() == batch.group.tolist() == [0, 1]
    assert batch.offset.tolist() == batch.source.tolist() == [0, 0]
    assert batch.length.tolist() == batch.steps.tolist() == [3, 1]
    assert batch.weight.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.decision_step.tolist() == [[0, 1, 2], [0, -1, -1]]


def test_tasks_follow_distinct_instructions():
    assert bare(3, 1, instructions=("open", "close", "open")).task.tolist() == [0, 1, 0]


def test_outcome_is_derived_from_the_end_and_only_where_it_says_one():
    batch = bare(5, 1, end=torch.tensor([End.CUT, End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.TAKEOVER]))
    assert batch.success.tolist() == [0, 1, 0, 0, 0]
    assert batch.success_known.tolist() == [False, True, True, True, False]
    assert batch.terminated.tolist() == [False, True, True, False, False]


def test_a_given_success_is_known():
    batch = bare(2, 1, success=torch.tensor([0.25, 1.0]))
    assert batch.success_known.tolist() == [True, True]


def test_termination_follows_an_explicit_set():
    ends = torch.tensor([e.value for e in End])
    assert terminated_from(ends).tolist() == [False, True, True, False, False]
    assert terminated_from(ends, {End.TIME_LIMIT, End.TAKEOVER}).tolist() == [False, False, False, True, True]
    assert terminated_from(ends, ()).tolist() == [False] * 5


# --- bad input ------------------------------------------------------------------------------------------------------

WRONG = {
    "state of T observations": (lambda: bare(state=torch.zeros(2, 3, 1)), ValueError, "state"),
    "whole-number state": (lambda: bare(state=torch.zeros(2, 4, 1).long()), TypeError, "state"),
    "mask of another width": (lambda: bare(mask=torch.ones(2, 4).bool()), ValueError, "mask"),
    "a gap in the mask": (lambda: bare(mask=torch.tensor([[True, False, True]] * 2)), ValueError, "gap"),
    "too few instructions": (lambda: bare(instructions=("open",)), ValueError, "instructions"),
    "an end too many": (lambda: bare(end=torch.zeros(3).long()), ValueError, "end"),
    "float frames": (
        lambda: bare(frames={"top": Sampled(values=torch.zeros(2, 1, 3, 2, 2), step=torch.zeros(2, 1).long())}),
        TypeError,
        "frames",
    ),
    "frames without channels": (
        lambda: bare(frames={"top": Sampled(values=torch.zeros(2, 1, 2, 2).byte(), step=torch.zeros(2, 1).long())}),
        ValueError,
        "frames",
    ),
    "a later camera's frames": (  # jaxtyping looks at the first entry of a mapping only
        lambda: bare(
            frames={
                "top": Sampled(values=torch.zeros(2, 1, 3, 2, 2).byte(), step=torch.zeros(2, 1).long()),
                "side": Sampled(values=torch.zeros(2, 1, 3, 2, 2), step=torch.zeros(2, 1).long()),
            }
        ),
        TypeError,
        "frames\\['side'\\]",
    ),
    "a label per something else": (
        lambda: bare(labels={"progress": Labelled(values=torch.zeros(2, 5), valid=torch.ones(2, 5).bool())}),
        ValueError,
        "labels\\['progress'\\].*got \\(2, 5\\)",
    ),
    "behaviour per step, decisions fewer": (
        lambda: bare(decision_step=torch.tensor([[0, 2], [0, 2]]), behaviour={"log_prob": torch.zeros(2, 3)}),
        ValueError,
        "behaviour",
    ),
    "descending decisions": (lambda: bare(decision_step=torch.tensor([[1, 0]] * 2)), ValueError, "decision_step"),
    "a decision twice": (lambda: bare(decision_step=torch.tensor([[1, 1]] * 2)), ValueError, "decision_step"),
    "padding before a decision": (lambda: bare(decision_step=torch.tensor([[-1, 0]] * 2)), ValueError, "decision_step"),
    "a decision after the end": (
        lambda: bare(
            mask=torch.tensor([[True, True, True], [True, False, False]]), decision_step=torch.tensor([[0, 1]] * 2)
        ),
        ValueError,
        "below 1 in row 1",
    ),
    "success above 1": (lambda: bare(success=torch.tensor([0.0, 1.5])), ValueError, "row 1, got 1.5"),
    "a success that is no number": (lambda: bare(success=torch.tensor([0.0, torch.nan])), ValueError, "got nan"),
    "samples without steps": (
        lambda: Sampled(values=torch.zeros(2, 3), step=torch.zeros(2, 2).long()),
        ValueError,
        "Sampled.values",
    ),
    "samples that descend": (
        lambda: Sampled(values=torch.zeros(1, 2), step=torch.tensor([[3, 1]])),
        ValueError,
        r"\[3, 1\] in row 0",
    ),
    "padding first": (
        lambda: Sampled(values=torch.zeros(1, 2), step=torch.tensor([[-1, 1]])),
        ValueError,
        "ascending",
    ),
    "labels without validity": (
        lambda: Labelled(values=torch.zeros(2, 3), valid=torch.ones(2, 2).bool()),
        ValueError,
        "Labelled.values",
    ),
    "fewer texts than observations": (
        lambda: Observation(state=torch.zeros(2, 1), instructions=("open",)),
        ValueError,
        "instructions",
    ),
    "features of other decision points": (
        lambda: Observation(state=torch.zeros(2, 1), features={"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}),
        ValueError,
        "features\\['b'\\]",
    ),
    "executed of other decision points": (
        lambda: Decision(chunk=torch.zeros(2, 1, 1), executed=torch.ones(3).long()),
        ValueError,
        "executed",
    ),
    "extras of other decision points": (
        lambda: Decision(
            chunk=torch.zeros(2, 1, 1),
            executed=torch.ones(2).long(),
            extras={"tokens": torch.zeros(2), "chain": torch.zeros(3)},
        ),
        ValueError,
        "extras\\['chain'\\]",
    ),
    "progress per step": (
        lambda: RewardEstimates(
            rewards=torch.zeros(2, 3),
            valid=torch.ones(2, 3).bool(),
            progress=Labelled(values=torch.zeros(2, 3), valid=torch.ones(2, 3).bool()),
        ),
        ValueError,
        "progress",
    ),
    "a later term of another shape": (
        lambda: RewardEstimates(
            rewards=torch.zeros(2, 3),
            valid=torch.ones(2, 3).bool(),
            terms={"self": torch.zeros(2, 3), "cost": torch.zeros(2, 2)},
        ),
        ValueError,
        "cost",
    ),
    "advantages with a gradient": (
        lambda: Advantages(
            advantages=torch.zeros(2, 3, requires_grad=True),
            returns=torch.zeros(2, 3),
            valid=torch.ones(2, 3).bool(),
        ),
        ValueError,
        "gradient",
    ),
    "values with a gradient": (
        lambda: Advantages(
            advantages=torch.zeros(2, 3),
            returns=torch.zeros(2, 3),
            valid=torch.ones(2, 3).bool(),
            values=torch.zeros(2, 4, requires_grad=True),
        ),
        ValueError,
        "gradient",
    ),
    "one value too few": (
        lambda: Advantages(
            advantages=torch.zeros(2, 3),
            returns=torch.zeros(2, 3),
            valid=torch.ones(2, 3).bool(),
            values=torch.zeros(2, 3),
        ),
        ValueError,
        "values",
    ),
    "a pair with a row that is not there": (
        lambda: PreferencePairs(
            batch=bare(),
            chosen=torch.tensor([0]),
            rejected=torch.tensor([2]),
            label=torch.ones(1),
            weight=torch.ones(1),
        ),
        ValueError,
        r"rejected: expected rows 0 … 1 of the batch, got 2",
    ),
}


PLAIN = """
import json, runpy, sys
caught = {}
for name, (make, *_) in runpy.run_path(sys.argv[1])["WRONG"].items():
    try:
        make()
    except Exception as error:
        caught[name] = [type(error).__name__, str(error)]
print(json.dumps(caught))
"""


@pytest.fixture(scope="module")
def caught_in_plain_use():
    """What each wrong part raises where nobody checks shapes at run time, as outside of tests."""
    ran = subprocess.run([sys.executable, "-c", PLAIN, __file__], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_wrong_parts_are_refused_by_name(name, caught_in_plain_use):
    make, error, message = WRONG[name]
    with pytest.raises((ValueError, TypeError)):
        make()
    assert name in caught_in_plain_use, "accepted"
    kind, text = caught_in_plain_use[name]
    assert kind == error.__name__, text
    assert re.search(message, text), text


# --- selecting, mapping, moving -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows, expected",
    [
        (1, [1]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        ([-1], [2]),
        ([], []),
        (torch.tensor([1, 1]), [1, 1]),
        (torch.tensor(1), [1]),
        (torch.tensor([True, False, True]), [0, 2]),
    ],
    ids=str,
)
def test_selecting_rows_keeps_every_part_together(rows, expected):
    batch = coded([3, 1, 2], decision_step=[[0, 2], [0, -1], [0, 1]])
    chosen = batch[rows]
    assert len(chosen) == len(expected)
    assert chosen.instructions == tuple(f"task of row {i}" for i in expected)
    whole: dict[str, torch.Tensor] = dict(tensors(batch))
    for path, part in tensors(chosen):
        assert torch.equal(part, whole[path][torch.tensor(expected).long()]), path


@pytest.mark.parametrize("row", [3, -4])
def test_a_row_outside_is_an_index_error(row):
    batch = coded([3, 1, 2])
    values = ValueEstimates(v=torch.zeros(3, 4))
    for record in (batch, values):
        with pytest.raises(IndexError, match=f"row {row} .* with 3 rows"):
            record[row]


def test_ensemble_members_keep_their_leading_dimension():
    members = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
    chosen = ValueEstimates(v=code(3, 5), q=code(3, 4), members=members)[[2, 0]]
    assert chosen.members is not None and torch.equal(chosen.members, members[:, [2, 0]])
    assert chosen.v[:, 0].tolist() == chosen.q[:, 0].tolist() == [200, 0]
    assert ValueEstimates(v=code(3, 5))[-1].v[0, 0] == 200


def test_pairs_are_selected_while_their_batch_stays_whole():
    pairs = PreferencePairs(
        batch=coded([2, 2, 2]),
        chosen=torch.tensor([0, 1]),
        rejected=torch.tensor([2, 0]),
        label=torch.tensor([1.0, 0.5]),
        weight=torch.ones(2),
    )
    assert len(pairs) == 2
    assert (len(pairs[1]), len(pairs[1].batch), pairs[1].label.item()) == (1, 3, 0.5)
    assert pairs[[1, 0]].chosen.tolist() == [1, 0]


def test_map_reaches_every_tensor():
    batch = coded([3, 1], decision_step=[[0, 2], [0, -1]])
    seen = []
    mapped = batch.map(lambda t: seen.append(t.data_ptr()) or t.clone())
    assert sorted(seen) == sorted(t.data_ptr() for _, t in tensors(batch))
    for (path, one), (_, other) in zip(tensors(batch), tensors(mapped), strict=True):
        assert torch.equal(one, other), path


def test_frames_stay_on_the_host_and_everything_else_moves():
    batch = coded([3, 1], decision_step=[[0, 2], [0, -1]])
    observation, _ = batch.at(torch.tensor([0]), torch.tensor([0]))
    pairs = PreferencePairs(
        batch=batch,
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        label=torch.ones(1),
        weight=torch.ones(1),
    )
    for record in (batch, observation, pairs):
        parts = dict(tensors(record.to("meta", non_blocking=True)))
        assert {p for p, t in parts.items() if t.device.type == "cpu"} == {p for p in parts if "frames" in p}
    assert batch.to("meta").frames["top"] is batch.frames["top"]


def test_records_survive_pickling():
    batch = coded([3, 1], decision_step=[[0, 2], [0, -1]])
    again = pickle.loads(pickle.dumps(batch))
    for (path, one), (_, other) in zip(tensors(batch), tensors(again), strict=True):
        assert torch.equal(one, other), path
    assert again.instructions == batch.instructions


def test_length_of_a_record_is_its_rows():
    assert len(Evaluation(log_prob=torch.zeros(4, 2), unit_mask=torch.ones(4, 2).bool())) == 4
    assert len(coded([2, 1])) == 2


# --- observations and decision points ------------------------------------------------------------------------------


@given(trajectory_batches(cameras=("top", "wrist"), state_size=2), st.data())
def test_held_frames_are_the_newest_that_are_not_from_the_future(batch, data):
    row = data.draw(st.integers(0, len(batch) - 1))
    step = data.draw(st.integers(0, int(batch.steps[row])))
    seen = batch.observe(torch.tensor([row]), torch.tensor([step]))
    for camera, sampled in batch.frames.items():
        best = max((i for i, s in enumerate(sampled.step[row].tolist()) if 0 <= s <= step), key=lambda i: i)
        assert torch.equal(seen.frames[camera][0], sampled.values[row, best])
        assert all(not step >= s > sampled.step[row, best] for s in sampled.step[row].tolist())
    assert torch.equal(seen.state[0], batch.state[row, step])
    assert seen.instructions == (batch.instructions[row],)


def test_observing_takes_every_part_from_the_same_row_and_step():
    batch = coded([4, 2])
    seen = batch.observe(torch.tensor([1, 0, 0]), torch.tensor([2, 4, 3]))
    assert seen.state[:, 0].tolist() == [102, 4, 3]
    assert seen.features["clip/top"][:, 0].tolist() == [102, 4, 3]
    # frames stand at observations 0, 2, 4: at 3 the one of 2 is held
    assert seen.frames["top"][:, 0, 0, 0].tolist() == [12, 4, 2]
    assert seen.instructions == ("task of row 1", "task of row 0", "task of row 0")


def test_frames_of_one_observation_are_held_in_the_order_recorded():
    sampled = Sampled(values=torch.tensor([[1, 2, 3, 0]]), step=torch.tensor([[0, 0, 2, -1]]))
    held = sampled.held(torch.zeros(3).long(), torch.tensor([0, 1, 5]))
    assert held.tolist() == [1, 1, 2]
    assert sampled.mask.tolist() == [[True, True, True, False]]


def test_nothing_is_invented_before_the_first_frame():
    batch = replace(
        coded([3]), frames={"top": Sampled(values=torch.zeros(1, 1, 3, 2, 2).byte(), step=torch.ones(1, 1).long())}
    )
    with pytest.raises(ValueError, match="no frame at or before observation 0 of row 0"):
        batch.observe(torch.tensor([0]), torch.tensor([0]))
    assert batch.observe(torch.tensor([0]), torch.tensor([1])).frames["top"].shape == (1, 3, 2, 2)


@pytest.mark.parametrize("row, step", [(0, 5), (1, 3), (1, -1)])
def test_observations_that_are_not_real_are_refused(row, step):
    with pytest.raises(ValueError, match=f"observation {step} of row {row} is not real"):
        coded([4, 2]).observe(torch.tensor([row]), torch.tensor([step]))


def test_recorded_decisions_come_with_their_sample_and_what_was_carried_out():
    # row 0 decides at 0, 2, 3 of 5 steps: carried out 2, 1, then 2 of what is left; row 1 decides at 0 of 1 step
    batch = coded([5, 1], decision_step=[[0, 2, 3], [0, -1, -1]], chunk=2)
    observation, decision = batch.at(torch.tensor([0, 1, 0, 0]), torch.tensor([3, 0, 2, 0]), horizon=7)
    assert observation.state[:, 0].tolist() == [3, 100, 2, 0]
    assert torch.allclose(decision.chunk[..., 0], torch.tensor([[3, 3.1], [100, 100.1], [2, 2.1], [0, 0.1]]))
    assert decision.executed.tolist() == [2, 1, 1, 2]
    assert decision.log_prob[:, 0].tolist() == [-3, -100, -2, 0]
    assert decision.extras["tokens"].tolist() == [3, 100, 2, 0]


def test_logged_actions_become_chunks_whose_last_action_repeats():
    batch = coded([4, 2])
    _, decision = batch.at(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1]), horizon=3)
    assert decision.chunk[..., 0].tolist() == [[2.5, 3.5, 3.5], [100.5, 101.5, 101.5], [101.5, 101.5, 101.5]]
    assert decision.executed.tolist() == [2, 2, 1]
    assert decision.log_prob is None
    single = batch.at(torch.tensor([1]), torch.tensor([1]))[1]
    assert (single.chunk.tolist(), single.executed.tolist()) == ([[[101.5]]], [1])


@pytest.mark.parametrize("row, step", [(1, 2), (0, 4), (0, -1)])
def test_steps_that_are_not_real_are_refused(row, step):
    with pytest.raises(ValueError, match=f"step {step} of row {row} is not real: expected 0 … "):
        coded([4, 2]).at(torch.tensor([row]), torch.tensor([step]))


def test_a_step_without_a_decision_is_refused():
    batch = coded([5, 1], decision_step=[[0, 2, 3], [0, -1, -1]])
    with pytest.raises(ValueError, match="did not decide at step 1 of row 0"):
        batch.at(torch.tensor([0, 0]), torch.tensor([0, 1]))


def test_no_decision_point_is_legal():
    none = torch.zeros(0).long()
    for batch in (coded([3]), coded([3], decision_step=[[0, 2]])):
        observation, decision = batch.at(none, none, horizon=2)
        assert (len(observation), len(decision)) == (0, 0)


@given(trajectory_batches(state_size=1, action_size=1), st.integers(1, 4))
def test_chunks_of_every_real_step_against_a_loop(batch, horizon):
    rows, steps = batch.mask.nonzero(as_tuple=True)
    _, decision = batch.at(rows, steps, horizon)
    for i, (row, step) in enumerate(zip(rows.tolist(), steps.tolist(), strict=True)):
        last = int(batch.steps[row]) - 1
        expected = [batch.actions[row, min(step + k, last)] for k in range(horizon)]
        assert torch.equal(decision.chunk[i], torch.stack(expected))
        assert int(decision.executed[i]) == min(horizon, last + 1 - step)


def test_observed_leaves_a_repeated_last_observation_out():
    batch = bare(
        3,
        3,
        mask=torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]]).bool(),
        last_observed=torch.tensor([True, True, False]),
    )
    assert batch.observed.int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.decision_mask.int().tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]


@given(trajectory_batches())
def test_every_random_batch_agrees_with_itself(batch):
    assert torch.equal(batch.steps, batch.mask.sum(1))
    assert torch.equal(batch.decision_mask.sum(1), batch.steps)
    again = batch[torch.arange(len(batch))]
    for (path, one), (_, other) in zip(tensors(batch), tensors(again), strict=True):
        assert torch.equal(torch.nan_to_num(one.double()), torch.nan_to_num(other.double())), path
