"""Cutting, padding, joining and re-indexing keep every field of every clock."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import CLOCKS, End, Labelled, Sampled, TrajectoryBatch
from guerdon.core.edit import Edit, concat, identity_map, pad, reindex, truncate, without_outcome
from guerdon.core.record import Clock
from guerdon.datasets.negatives import reverse_map
from guerdon.testing import trajectory_batches

BATCHES = trajectory_batches(cameras=("front", "wrist"), tracks=True, chunks=True)


def real_values(batch: TrajectoryBatch) -> list[dict]:
    """List what each row holds without padding, as plain values."""
    found = []
    for row in range(len(batch)):
        steps = int(batch.steps[row])
        held = {
            name: getattr(batch, name)[row].item()
            for name, clock in CLOCKS.items()
            if clock is Clock.ROW and name != "instructions"
        }
        held["instruction"] = batch.instructions[row]
        held["state"] = batch.state[row, : steps + 1].tolist()
        held["actions"] = batch.actions[row, :steps].tolist()
        held["weight"] = batch.weight[row, :steps].tolist()
        for kind in ("labels", "tracks", "recorded"):
            for name, column in getattr(batch, kind).items():
                length = steps + column.valid.shape[1] - batch.mask.shape[1]
                valid = column.valid[row, :length]
                values = torch.where(valid.view(-1, *(1,) * (column.values.ndim - 2)), column.values[row, :length], 0)
                held[f"{kind}/{name}"] = (valid.tolist(), values.tolist())
        for kind in ("frames", "features"):
            for name, sampled in getattr(batch, kind).items():
                shown = sampled.mask[row]
                held[f"{kind}/{name}"] = (sampled.step[row, shown].tolist(), sampled.values[row, shown].tolist())
        decided = batch.decision_mask[row]
        held["decisions"] = batch.decision_step[row, decided].tolist()
        for name, value in batch.behaviour.items():
            held[f"behaviour/{name}"] = value[row, decided].tolist()
        found.append(held)
    return found


def grasp_batch() -> TrajectoryBatch:
    """A legal track per step (K = T), which used to be taken for one per observation."""
    return TrajectoryBatch(
        state=torch.zeros(1, 6, 2),
        actions=torch.zeros(1, 5, 1),
        mask=torch.ones(1, 5, dtype=torch.bool),
        end=torch.tensor([End.SUCCESS]),
        tracks={"grasped": Labelled(values=torch.ones(1, 5), valid=torch.ones(1, 5, dtype=torch.bool))},
    )


def test_every_field_declares_its_clock():
    assert set(CLOCKS) == {f.name for f in fields(TrajectoryBatch)}
    assert all(isinstance(clock, Clock) for clock in CLOCKS.values())


# concat


@given(batch=BATCHES)
def test_cutting_into_rows_and_joining_gives_the_batch_again(batch):
    rows = [truncate(batch[row], int(batch.steps[row])) for row in range(len(batch))]
    assert all(row.mask.shape[1] == int(row.steps[0]) for row in rows)
    assert real_values(concat(rows)) == real_values(batch)


@given(one=BATCHES, other=BATCHES)
def test_joined_rows_are_those_of_both(one, other):
    if one.state.shape[2] != other.state.shape[2] or one.actions.shape[2] != other.actions.shape[2]:
        with pytest.raises(ValueError, match="expected one size in a batch"):
            concat([one, other])
        return
    joined = concat([one, other])
    unknown = {f"labels/{name}" for name in joined.labels}
    for held, whole in zip(real_values(joined), [*real_values(one), *real_values(other)], strict=True):
        for name, value in held.items():
            if name in whole:
                assert value == whole[name]
            else:  # a label that only the other batch has
                assert name in unknown and not any(value[0])


def test_a_column_or_camera_that_some_rows_lack_is_unknown_there():
    plain = grasp_batch()
    seen = replace(
        plain,
        frames={"front": Sampled(values=torch.ones(1, 2, 3, 4, 4, dtype=torch.uint8), step=torch.tensor([[0, 3]]))},
        recorded={"reward": Labelled(values=torch.ones(1, 5), valid=torch.ones(1, 5, dtype=torch.bool))},
    )
    joined = concat([plain, seen])
    assert joined.frames["front"].step.tolist() == [[-1, -1], [0, 3]]
    assert joined.recorded["reward"].valid.tolist() == [[False] * 5, [True] * 5]


def test_behaviour_cannot_be_unknown():
    plain = grasp_batch()
    acted = replace(plain, behaviour={"log_prob": torch.zeros(1, 5, 1)})
    with pytest.raises(
        ValueError, match=r"behaviour\['log_prob'\]: expected it in all rows or in none, got it in 1 of 2"
    ):
        concat([plain, acted])


def test_one_column_with_two_clocks_is_refused():
    plain = grasp_batch()
    other = replace(
        plain, tracks={"grasped": Labelled(values=torch.ones(1, 6), valid=torch.ones(1, 6, dtype=torch.bool))}
    )
    with pytest.raises(ValueError, match=r"tracks\['grasped'\]: expected a value per step or per observation"):
        concat([plain, other])


def test_nothing_to_join_is_refused():
    with pytest.raises(ValueError, match="expected at least one row"):
        concat([])


# truncate


@given(batch=BATCHES, steps=st.integers(0, 7))
def test_truncating_keeps_the_first_steps_of_every_clock(batch, steps):
    short = truncate(batch, steps)
    assert short.mask.shape[1] == min(steps, batch.mask.shape[1])
    for row, (held, whole) in enumerate(zip(real_values(short), real_values(batch), strict=True)):
        kept = min(steps, int(batch.steps[row]))
        assert held["state"] == whole["state"][: kept + 1]
        assert held["actions"] == whole["actions"][:kept]
        for name in held:
            if name.startswith(("labels/", "tracks/", "recorded/")):
                length = kept + len(whole[name][0]) - int(batch.steps[row])
                assert held[name] == (whole[name][0][:length], whole[name][1][:length])
            if name.startswith(("frames/", "features/")):
                shown = [i for i, step in enumerate(whole[name][0]) if step <= kept]
                assert held[name] == tuple([part[i] for i in shown] for part in whole[name])
            if name.startswith("behaviour/"):
                decided = [i for i, step in enumerate(whole["decisions"]) if step < kept]
                assert held[name] == [whole[name][i] for i in decided]
        cut = kept < int(batch.steps[row])
        assert (held["end"] == End.CUT and not held["terminated"] and held["last_observed"]) or not cut
        if not cut:
            assert held == whole


def test_truncating_a_track_per_step_by_hand():
    short = truncate(grasp_batch(), 3)
    assert short.tracks["grasped"].values.shape == (1, 3)
    assert short.state.shape == (1, 4, 2)
    assert short.end.tolist() == [End.CUT] and short.success.tolist() == [1.0] and short.length.tolist() == [5]


def test_stacking_leaves_a_track_per_step_on_its_clock():
    assert concat([grasp_batch()]).tracks["grasped"].values.shape == (1, 5)
    assert concat([grasp_batch(), truncate(grasp_batch(), 3)]).tracks["grasped"].valid.tolist() == [
        [True] * 5,
        [True] * 3 + [False] * 2,
    ]


def test_rows_may_keep_different_numbers_of_steps():
    two = concat([grasp_batch(), grasp_batch()])
    short = truncate(two, torch.tensor([2, 4]))
    assert short.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert short.tracks["grasped"].valid.tolist() == short.mask.tolist()


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        truncate(grasp_batch(), -1)


# pad


@given(batch=BATCHES, extra=st.integers(0, 3))
def test_padding_adds_nothing_real(batch, extra):
    longer = pad(batch, batch.mask.shape[1] + extra, samples=extra, decisions=extra)
    assert longer.mask.shape[1] == batch.mask.shape[1] + extra
    assert longer.decision_step.shape[1] == batch.decision_step.shape[1] + extra
    assert real_values(longer) == real_values(batch)
    assert real_values(truncate(longer, batch.mask.shape[1])) == real_values(batch)


def test_padding_to_fewer_steps_is_refused():
    with pytest.raises(ValueError, match=r"expected at least 5 steps.*got 3.*truncate"):
        pad(grasp_batch(), 3)


# reindex


@given(batch=BATCHES)
def test_the_identity_changes_nothing(batch):
    assert reindex(batch, identity_map(batch)) is batch


@given(batch=trajectory_batches(cameras=("front",), tracks=True, chunks=True, min_length=1))
def test_reversing_twice_gives_observations_and_tracks_back(batch):
    width = batch.state.shape[1]
    once = reindex(batch, reverse_map(batch.observed.sum(1), width))
    twice = reindex(once, reverse_map(once.observed.sum(1), width))
    for row in range(len(batch)):
        made = int(batch.observed[row].sum())
        assert torch.equal(twice.state[row, :made], batch.state[row, :made])
        there, back = batch.tracks["object"], twice.tracks["object"]
        assert torch.equal(back.valid[row, :made], there.valid[row, :made])
        if made > 2:  # with two observations the map is its own inverse and no action leads backwards
            assert not bool(once.tracks["grasped"].valid[row].any())


# the rest


def test_without_outcome_leaves_out_what_tells_the_end():
    batch = replace(
        grasp_batch(), labels={"success": Labelled(values=torch.ones(1, 6), valid=torch.ones(1, 6, dtype=torch.bool))}
    )
    bare = without_outcome(batch)
    assert bare.end.tolist() == [End.CUT] and not bare.success_known.any() and not bare.labels
    assert bare.tracks["grasped"].values.shape == (1, 5)


def test_an_edit_reaches_every_field_that_has_time():
    same = Edit(step=lambda v: v, observation=lambda v: v, sample=lambda s: s, decision=lambda v, fill: v)
    assert set(same.fields(grasp_batch())) == {name for name, clock in CLOCKS.items() if clock is not Clock.ROW}


def test_steps_that_are_not_one_for_each_row_are_refused():
    batch = TrajectoryBatch(state=torch.zeros(2, 4, 1), actions=torch.zeros(2, 3, 1), mask=torch.ones(2, 3).bool())
    with pytest.raises(ValueError, match=r"steps: expected one number, or one for each of 2 rows, got \(3,\)"):
        truncate(batch, torch.tensor([1, 2, 3]))
