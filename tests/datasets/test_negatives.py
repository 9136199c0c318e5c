import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, Sampled, TrajectoryBatch
from guerdon.core.edit import identity_map, reindex
from guerdon.datasets.labels import with_progress_targets, with_success_targets
from guerdon.datasets.negatives import (
    clip_map,
    reverse_map,
    rewind_map,
    stall_map,
    warp_map,
    with_instruction_of,
    with_texts,
    with_video_of,
)
from guerdon.testing import trajectory_batches


def rows(steps, end, width=None, instructions=None, **more):
    width = width or max(steps)
    mask = torch.arange(width)[None] < torch.tensor(steps)[:, None]
    index = torch.arange(width + 1).float()
    return TrajectoryBatch(
        state=index[None, :, None].repeat(len(steps), 1, 1),
        actions=100 + index[None, :-1, None].repeat(len(steps), 1, 1),
        mask=mask,
        end=torch.tensor([int(e) for e in end]),
        instructions=tuple(instructions or [f"task {i}" for i in range(len(steps))]),
        **more,
    )


def test_maps_by_hand():
    assert rewind_map(torch.tensor([6, 6]), torch.tensor([3, 1]), 7).tolist() == [
        [0, 1, 2, 3, 2, 1, -1],  # forward to 3, back until six observations are full
        [0, 1, 0, -1, -1, -1, -1],  # forward to 1, back to the start
    ]
    assert reverse_map(torch.tensor([3]), 5).tolist() == [[2, 1, 0, -1, -1]]


def test_reindex_moves_everything_with_its_observation():
    batch = rows(
        [4, 3],
        [End.SUCCESS, End.SUCCESS],
        frames={
            "wrist": Sampled(
                values=torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1, 1),
                step=torch.tensor([[0, 2, 3], [0, 1, -1]]),
            )
        },
        recorded={"reward": Labelled(values=torch.arange(8.0).view(2, 4), valid=torch.ones(2, 4, dtype=torch.bool))},
        weight=torch.tensor([[1.0, 2, 3, 4], [1, 1, 1, 0]]),
    )
    batch = with_progress_targets(batch)
    time_map = identity_map(batch)
    time_map[0] = torch.tensor([0, 1, 2, 1, 0])
    new = reindex(batch, time_map)
    assert new.state[0, :, 0].tolist() == [0, 1, 2, 1, 0]
    assert new.actions[0, :, 0].tolist() == [100, 101, 0, 0]
    assert new.weight[0].tolist() == [1, 2, 2, 1]  # the same stretch of the recording, in either direction
    assert new.labels["progress"].values[0].tolist() == [0, 0.25, 0.5, 0.25, 0]
    assert new.frames["wrist"].step[0].tolist() == [0, 2, 4]
    assert new.frames["wrist"].values[0].flatten().tolist() == [0, 1, 0]
    assert new.recorded["reward"].valid[0].tolist() == [True, True, False, False]
    assert new.decision_step[0].tolist() == [0, 1, -1, -1]
    assert int(new.end[0]) == End.CUT and not new.terminated[0] and not new.success_known[0]
    # the other row is as it was
    assert int(new.end[1]) == End.SUCCESS and new.success_known[1] and new.decision_step[1].tolist() == [0, 1, 2, -1]
    assert new.frames["wrist"].step[1].tolist() == [0, 1, -1] and new.recorded["reward"].values[1, :3].tolist() == [
        4,
        5,
        6,
    ]


def test_a_reversed_row_starts_with_the_frame_held_there():
    step = torch.tensor([[0, 2]])
    frames = {"wrist": Sampled(values=torch.tensor([7, 9], dtype=torch.uint8).view(1, 2, 1, 1, 1), step=step)}
    batch = rows([4], [End.SUCCESS], frames=frames)
    new = reindex(batch, reverse_map(torch.tensor([5]), 5)).frames["wrist"]
    # visits 4, 3, 2, 1, 0: at 4 the frame of 2 is held, it comes again at its own place, the first frame at the end
    assert new.step.tolist() == [[0, 2, 4]] and new.values.flatten().tolist() == [9, 9, 7]


def test_reindex_refuses_what_was_not_observed():
    batch = rows([3], [End.SUCCESS], last_observed=torch.tensor([False]))
    with pytest.raises(ValueError, match=r"visits observation 3: it made 0 … 2"):
        reindex(batch, torch.tensor([[3, 2, 1, 0]]))
    with pytest.raises(ValueError, match="gap"):
        reindex(batch, torch.tensor([[1, -1, 0, -1]]))


@given(batch=trajectory_batches(cameras=("wrist",)))
def test_reversing_twice_gives_the_observations_back(batch):
    if not bool((batch.steps > 0).all()):
        return
    count = batch.observed.sum(1)
    once = reindex(batch, reverse_map(count, batch.state.shape[1]))
    twice = reindex(once, reverse_map(once.observed.sum(1), batch.state.shape[1]))
    seen = batch.observed[..., None].expand_as(batch.state)
    assert torch.equal(twice.state[seen], batch.state[seen])


def test_a_stage_label_says_nothing_about_another_task():
    stage = Labelled(values=torch.ones(2, 4, dtype=torch.long), valid=torch.ones(2, 4, dtype=torch.bool))
    batch = with_instruction_of(rows([3, 3], [End.SUCCESS] * 2, labels={"stage": stage}), torch.tensor([1, -1]))
    assert batch.labels["stage"].valid.tolist() == [[False] * 4, [True] * 4]


def test_new_maps_by_hand():
    count = torch.tensor([5, 3])
    assert clip_map(count, torch.tensor([2, 1]), 6).tolist() == [[0, 1, 2, -1, -1, -1], [0, 1, -1, -1, -1, -1]]
    assert stall_map(count, torch.tensor([2, 1]), 6).tolist() == [[0, 1, 2, 2, 2, -1], [0, 1, 1, -1, -1, -1]]
    # 4 · (j / 4)²: 0, 1/4, 1, 9/4, 4; and 2 · (j / 2)^½: 0, 1.41, 2
    assert warp_map(count, torch.tensor([2.0, 0.5]), 6).tolist() == [[0, 0, 1, 2, 4, -1], [0, 1, 2, -1, -1, -1]]


@given(count=st.integers(3, 40), power=st.floats(0.5, 2), extra=st.integers(0, 3))
def test_a_warp_keeps_both_ends_and_never_turns_back(count, power, extra):
    visited = warp_map(torch.tensor([count]), torch.tensor([power]), count + extra)[0]
    seen = visited[:count]
    assert (
        seen[0] == 0 and seen[-1] == count - 1 and bool((seen.diff() >= 0).all()) and bool((visited[count:] < 0).all())
    )
    literal = [round((count - 1) * (j / (count - 1)) ** power) for j in range(count)]
    assert (seen - torch.tensor(literal)).abs().max() <= 1  # ties may round apart
    assert warp_map(torch.tensor([count]), torch.tensor([1.0]), count)[0].tolist() == list(range(count))


def wrist(pixels, step):
    values = torch.tensor(pixels, dtype=torch.uint8).view(1, -1, 1, 1, 1)
    return {"wrist": Sampled(values=values, step=torch.tensor([step]))}


def test_standing_still_repeats_the_frame_and_stops_progress():
    frames = {
        "wrist": Sampled(
            values=torch.tensor([7, 8, 9], dtype=torch.uint8).view(1, 3, 1, 1, 1), step=torch.tensor([[0, 2, 4]])
        )
    }
    batch = with_progress_targets(rows([4], [End.SUCCESS], frames=frames))
    for last, progress in ((2, [0, 0.25, 0.5, 0.5, 0.5]), (3, [0, 0.25, 0.5, 0.75, 0.75])):
        new = reindex(batch, stall_map(torch.tensor([5]), torch.tensor([last]), 5))
        assert new.labels["progress"].values.tolist() == [progress]
        # at 4 the camera shows what it showed at 2, also where time stopped between two of its frames
        assert new.frames["wrist"].step.tolist() == [[0, 2, 4]]
        assert new.frames["wrist"].values.flatten().tolist() == [7, 8, 8]
    new = reindex(batch, stall_map(torch.tensor([5]), torch.tensor([2]), 5))
    assert new.actions.flatten().tolist() == [100, 101, 0, 0] and new.decision_step.tolist() == [[0, 1, -1, -1]]


def test_a_frame_that_time_jumps_over_is_seen_as_soon_as_it_would_have_been():
    frames = {
        "wrist": Sampled(
            values=torch.tensor([7, 8, 9], dtype=torch.uint8).view(1, 3, 1, 1, 1), step=torch.tensor([[0, 3, 4]])
        )
    }
    batch = rows([4], [End.SUCCESS], frames=frames)
    new = reindex(batch, torch.tensor([[0, 2, 4, -1, -1]])).frames["wrist"]
    # at 2 still the first frame; at 4 its own, the one of 3 was never the newest
    assert new.step.tolist() == [[0, 2]] and new.values.flatten().tolist() == [7, 9]
    jumped = reindex(rows([5], [End.SUCCESS], frames=frames), torch.tensor([[0, 2, 5, -1, -1, -1]])).frames["wrist"]
    assert jumped.step.tolist() == [[0, 2]] and jumped.values.flatten().tolist() == [
        7,
        9,
    ]  # 4 was passed on the way to 5
    back = reindex(rows([5], [End.SUCCESS], frames=frames), torch.tensor([[5, 2, 0, -1, -1, -1]])).frames["wrist"]
    assert back.step.tolist() == [[0, 2]] and back.values.flatten().tolist() == [9, 7]  # at 2 nothing new is shown


def test_another_tasks_video_keeps_the_instruction_and_achieves_nothing():
    batch = rows([4, 2], [End.SUCCESS, End.FAILURE], task=torch.tensor([5, 6]))
    batch = with_success_targets(with_progress_targets(batch))
    new = with_video_of(batch, torch.tensor([1, -1]))
    assert new.instructions == ("task 0", "task 1") and new.task.tolist() == [5, 6]
    assert new.mask.sum(1).tolist() == [2, 2] and new.episode.tolist() == [int(batch.episode[1])] * 2
    assert new.labels["success"].valid[0].tolist() == [True, True, True, False, False]
    assert float(new.labels["progress"].values[0].abs().sum()) == 0 and bool(new.labels["progress"].valid[0, :3].all())
    assert new.end.tolist() == [End.CUT, End.FAILURE] and new.success_known.tolist() == [False, True]


def test_an_instruction_of_no_task():
    batch = with_success_targets(rows([2, 2], [End.SUCCESS] * 2))
    new = with_texts(batch, ["fly away", None])
    assert new.instructions == ("fly away", "task 1") and new.task.tolist() == [-1, int(batch.task[1])]
    assert new.labels["success"].values.tolist() == [[0, 0, 0], [0, 0, 1]]
