from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings

from guerdon.core.batch import End, Labelled, Sampled, TrajectoryBatch
from guerdon.datasets.labels import (
    KINDS,
    LabelFactory,
    identity_map,
    reorder,
    reverse_map,
    rewind_map,
    with_instruction_of,
    with_progress_targets,
    with_success_targets,
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


def test_progress_of_a_success_is_linear_and_of_a_failure_unknown():
    batch = with_progress_targets(rows([4, 2, 3], [End.SUCCESS, End.FAILURE, End.TAKEOVER]))
    label = batch.labels["progress"]
    assert label.values[0].tolist() == [0, 0.25, 0.5, 0.75, 1]  # j / 4
    assert label.valid.tolist() == [[True] * 5, [False] * 5, [False] * 5]
    assumed = with_progress_targets(rows([4, 2, 3], [End.SUCCESS, End.FAILURE, End.TAKEOVER]), assume_success=True)
    assert assumed.labels["progress"].valid[1].any().item() is False  # a known failure is never guessed
    assert assumed.labels["progress"].values[2].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 0])


def test_a_window_counts_from_its_episodes_start_and_an_unmade_observation_has_no_target():
    batch = rows(
        [2, 4],
        [End.CUT, End.SUCCESS],
        offset=torch.tensor([3, 0]),
        length=torch.tensor([10, 4]),
        success=torch.tensor([1.0, 1.0]),
        last_observed=torch.tensor([True, False]),
    )
    label = with_progress_targets(batch).labels["progress"]
    assert label.values[0, :3].tolist() == pytest.approx([0.3, 0.4, 0.5])
    assert label.valid[0].tolist() == [True, True, True, False, False]
    assert label.valid[1].tolist() == [True, True, True, True, False]


def test_recorded_progress_wins_where_it_is_valid():
    stored = Labelled(values=torch.full((1, 4), 0.5), valid=torch.tensor([[False, True, False, False]]))
    batch = rows([3], [End.SUCCESS], labels={"progress": stored})
    assert with_progress_targets(batch).labels["progress"].values[0].tolist() == pytest.approx([0, 0.5, 2 / 3, 1])
    failed = with_progress_targets(rows([3], [End.FAILURE], labels={"progress": stored})).labels["progress"]
    assert failed.valid.tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("wrong", [Labelled(values=torch.full((1, 4), 3.0), valid=torch.ones(1, 4, dtype=torch.bool))])
def test_recorded_progress_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=r"recorded progress of episode 0 is 3.0 at observation 0"):
        with_progress_targets(rows([3], [End.SUCCESS], labels={"progress": wrong}))
    per_step = Labelled(values=torch.zeros(1, 3), valid=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="one number per observation"):
        with_progress_targets(rows([3], [End.SUCCESS], labels={"progress": per_step}))


def test_success_targets():
    batch = rows([3, 3, 3], [End.SUCCESS, End.FAILURE, End.TAKEOVER])
    label = with_success_targets(batch).labels["success"]
    assert label.values.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert label.valid.tolist() == [[True] * 4, [True] * 4, [False] * 4]
    assert with_success_targets(batch, tail=2).labels["success"].values[0].tolist() == [0, 0, 1, 1]
    unmade = rows([3], [End.SUCCESS], last_observed=torch.tensor([False]))
    label = with_success_targets(unmade).labels["success"]
    assert label.values[0].tolist() == [0, 0, 1, 0] and label.valid[0].tolist() == [True, True, True, False]
    flags = Labelled(values=torch.tensor([[0, 1, 0, 0]]), valid=torch.tensor([[True, True, True, False]]))
    label = with_success_targets(rows([3], [End.SUCCESS], labels={"success": flags})).labels["success"]
    assert label.values[0].tolist() == [0, 1, 0, 1]  # the last flag is unknown, so the outcome says it
    with pytest.raises(ValueError, match="tail is 0"):
        with_success_targets(batch, tail=0)


def test_maps_by_hand():
    assert rewind_map(torch.tensor([6, 6]), torch.tensor([3, 1]), 7).tolist() == [
        [0, 1, 2, 3, 2, 1, -1],  # forward to 3, back until six observations are full
        [0, 1, 0, -1, -1, -1, -1],  # forward to 1, back to the start
    ]
    assert reverse_map(torch.tensor([3]), 5).tolist() == [[2, 1, 0, -1, -1]]


def test_reorder_moves_everything_with_its_observation():
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
    new = reorder(batch, time_map)
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
    new = reorder(batch, reverse_map(torch.tensor([5]), 5)).frames["wrist"]
    # visits 4, 3, 2, 1, 0: at 4 the frame of 2 is held, it comes again at its own place, the first frame at the end
    assert new.step.tolist() == [[0, 2, 4]] and new.values.flatten().tolist() == [9, 9, 7]


def test_reorder_refuses_what_was_not_observed():
    batch = rows([3], [End.SUCCESS], last_observed=torch.tensor([False]))
    with pytest.raises(ValueError, match=r"visits observation 3: it made 0 … 2"):
        reorder(batch, torch.tensor([[3, 2, 1, 0]]))
    with pytest.raises(ValueError, match="gap"):
        reorder(batch, torch.tensor([[1, -1, 0, -1]]))


@settings(max_examples=50, deadline=None)
@given(batch=trajectory_batches(cameras=("wrist",)))
def test_reversing_twice_gives_the_observations_back(batch):
    if not bool((batch.steps > 0).all()):
        return
    count = batch.observed.sum(1)
    once = reorder(batch, reverse_map(count, batch.state.shape[1]))
    twice = reorder(once, reverse_map(once.observed.sum(1), batch.state.shape[1]))
    seen = batch.observed[..., None].expand_as(batch.state)
    assert torch.equal(twice.state[seen], batch.state[seen])


def same(one, other):
    for f in fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), f.name


@settings(max_examples=50, deadline=None)
@given(batch=trajectory_batches(cameras=("wrist",), stored_labels=False))
def test_drawing_is_deterministic_changes_no_input_and_every_label_is_in_range(batch):
    before = batch.map(torch.clone)
    factory = LabelFactory(rewind=0.3, reverse=0.3, wrong_instruction=0.3)
    one, counts = factory.draw(batch, torch.Generator().manual_seed(3))
    two, _ = factory.draw(batch, torch.Generator().manual_seed(3))
    same(batch, before)
    same(one, two)
    assert sum(counts[kind] for kind in KINDS) == len(batch)
    for name in ("progress", "success"):
        label = one.labels[name]
        assert not bool((label.valid & ~one.observed).any())
        assert bool(((label.values >= 0) & (label.values <= 1)).all())


def test_wrong_instruction_needs_a_second_task_and_says_so():
    factory = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=1.0)
    one_task = rows([3, 3], [End.SUCCESS, End.SUCCESS], instructions=["open it", "open it"])
    batch, counts = factory.draw(one_task, torch.Generator())
    assert counts["impossible"] == 2 and counts["wrong_instruction"] == 0
    assert batch.labels["progress"].values[0, -1] == 1
    two = rows([3, 3, 3], [End.SUCCESS, End.FAILURE, End.TAKEOVER], instructions=["open", "close", "close"])
    batch, counts = factory.draw(two, torch.Generator())
    assert counts["wrong_instruction"] == 3 and batch.instructions == ("close", "open", "open")
    for name in ("progress", "success"):  # known for the unlabelled and the failed row too: nothing was achieved
        assert bool(batch.labels[name].valid.all()) and float(batch.labels[name].values.abs().sum()) == 0
    assert batch.end.tolist() == [0, 0, 0] and two.instructions == ("open", "close", "close")


def test_paraphrases_of_one_task_are_no_wrong_instruction():
    batch = rows([3, 3], [End.SUCCESS] * 2, instructions=["open it", "pull it open"], task=torch.tensor([4, 4]))
    _, counts = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=1.0).draw(batch, torch.Generator())
    assert counts["impossible"] == 2


def test_a_stage_label_says_nothing_about_another_task():
    stage = Labelled(values=torch.ones(2, 4, dtype=torch.long), valid=torch.ones(2, 4, dtype=torch.bool))
    batch = with_instruction_of(rows([3, 3], [End.SUCCESS] * 2, labels={"stage": stage}), torch.tensor([1, -1]))
    assert batch.labels["stage"].valid.tolist() == [[False] * 4, [True] * 4]


def test_shares_are_met():
    batch = rows([5] * 3000, [End.SUCCESS] * 3000, instructions=["a", "b", "c"] * 1000)
    _, counts = LabelFactory(rewind=0.3, reverse=0.1, wrong_instruction=0.2).draw(batch, torch.Generator())
    # binomial standard deviation of 3,000 draws is below 0.0092 · 3,000
    assert [counts[k] / 3000 for k in KINDS] == pytest.approx([0.4, 0.3, 0.1, 0.2], abs=0.04)
    with pytest.raises(ValueError, match="at most 1"):
        LabelFactory(rewind=0.9, reverse=0.9)


def test_a_rewound_row_peaks_inside_and_comes_back():
    batch = rows([9] * 200, [End.SUCCESS] * 200)
    drawn, counts = LabelFactory(rewind=1.0, reverse=0.0, wrong_instruction=0.0).draw(batch, torch.Generator())
    assert counts["rewind"] == 200
    progress, valid = drawn.labels["progress"].values, drawn.labels["progress"].valid
    last = progress.gather(1, valid.sum(1, keepdim=True) - 1)[:, 0]
    assert bool((progress.amax(1) > last).all()) and bool((progress.amax(1) < 1).all())
    assert set((progress.amax(1) * 9).round().int().tolist()) == set(range(1, 9))  # every point 1 … 8 is drawn


def test_a_short_row_stays_as_it_is():
    batch = rows([1], [End.SUCCESS])
    drawn, counts = LabelFactory(rewind=1.0, reverse=0.0, wrong_instruction=0.0).draw(batch, torch.Generator())
    assert counts["impossible"] == 1 and torch.equal(drawn.state, batch.state)
    assert replace(drawn).labels["negative"].values.tolist() == [[0, 0]]
