from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.datasets.collate import Window, collate
from guerdon.datasets.episodes import Column, Episode
from guerdon.datasets.labels import (
    KINDS,
    LabelFactory,
    with_progress_targets,
    with_remaining_targets,
    with_return_targets,
    with_stage_targets,
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


@pytest.mark.slow
@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("tail", [1, 2])
def test_every_window_says_the_same_of_an_observation_or_nothing(observed, tail):
    episode = Episode(
        index=0,
        state=np.zeros((7, 1), np.float32),
        actions=np.zeros((6, 1), np.float32),
        success=1.0,
        end=End.SUCCESS,
        last_observed=observed,
    )
    whole = with_success_targets(collate([episode]), tail).labels["success"]
    # the windows of one row each: the one that ends at the last observation made does not know that it is the last
    for offset in range(6):
        for steps in range(1, 7 - offset):
            window = collate([Window(episode=episode, offset=offset, steps=steps)])
            label = with_success_targets(window, tail).labels["success"]
            there = slice(offset, offset + steps + 1)
            both = label.valid[0] & whole.valid[0, there]
            assert torch.equal(label.values[0][both], whole.values[0, there][both]), (offset, steps)
            hidden = int((whole.valid[0, there] & ~label.valid[0]).sum())
            assert hidden == (offset + steps < 6 and offset <= 6 - tail <= offset + steps)


def same(one, other):
    for f in fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), f.name


@pytest.mark.slow
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


@pytest.mark.slow
def test_shares_are_met():
    batch = rows([5] * 3000, [End.SUCCESS] * 3000, instructions=["a", "b", "c"] * 1000)
    _, counts = LabelFactory(rewind=0.3, reverse=0.1, wrong_instruction=0.2).draw(batch, torch.Generator())
    # binomial standard deviation of 3,000 draws is below 0.0092 · 3,000
    assert [counts[k] / 3000 for k in KINDS[:4]] == pytest.approx([0.4, 0.3, 0.1, 0.2], abs=0.04)
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


def test_remaining_steps_are_known_of_successes_only():
    batch = rows([3, 3, 3], [End.SUCCESS, End.FAILURE, End.TAKEOVER])
    label = with_remaining_targets(batch).labels["remaining"]
    assert label.values.tolist() == [[3, 2, 1, 0], [0] * 4, [0] * 4] and label.valid.any(1).tolist() == [
        True,
        False,
        False,
    ]
    window = rows([2], [End.CUT], offset=torch.tensor([3]), length=torch.tensor([10]), success=torch.tensor([1.0]))
    assert with_remaining_targets(window).labels["remaining"].values.tolist() == [[7, 6, 5]]


def test_returns_to_go_by_hand():
    batch = rows([3, 3, 3], [End.SUCCESS, End.FAILURE, End.TAKEOVER])
    label = with_return_targets(batch, horizon=10).labels["return_to_go"]
    assert label.values[0].tolist() == pytest.approx([-0.3, -0.2, -0.1, 0])
    assert label.values[1].tolist() == [-1] * 4 and label.valid.any(1).tolist() == [True, True, False]
    mild = with_return_targets(batch, horizon=10, failure_cost=5).labels["return_to_go"]
    assert mild.values[1].tolist() == pytest.approx([-0.8, -0.7, -0.6, -0.5])  # −(steps left + 5) / 10
    with pytest.raises(ValueError, match="horizon 0"):
        with_return_targets(batch, horizon=0)
    factory = LabelFactory(0.0, 0.0, 0.0, progress="return_to_go", horizon=10)
    progress = factory.targets(batch).labels["progress"]
    assert progress.values[0].tolist() == pytest.approx([0.7, 0.8, 0.9, 1]) and progress.values[1].tolist() == [0] * 4
    assert progress.valid.any(1).tolist() == [True, True, False]


def test_a_factory_takes_unlabelled_demonstrations_for_successes_in_every_target():
    batch = rows([3, 3], [End.TAKEOVER, End.FAILURE])
    told = LabelFactory(progress="return_to_go", horizon=6, assume_success=True).targets(batch).labels["progress"]
    assert told.values[0].tolist() == pytest.approx([3 / 6, 4 / 6, 5 / 6, 1]) and bool(told.valid.all())  # 1 − left / 6
    assert told.values[1].tolist() == [0] * 4  # a failure costs the horizon: −1 all along
    plain = LabelFactory(progress="return_to_go", horizon=6).targets(batch).labels["progress"]
    assert plain.valid.tolist() == [[False] * 4, [True] * 4]


def test_stage_targets_by_hand_and_through_a_window():
    whole = Episode(
        index=0,
        state=np.zeros((7, 1), np.float32),
        actions=np.zeros((6, 1), np.float32),
        success=1.0,
        labels={"stage": Column.known(np.array([0, 0, 1, 1, 1, 1, 1]))},
    )
    batch = with_stage_targets(collate([whole]), [0.2, 0.8])
    # stage 0 takes observations 0, 1 and ends at 2; stage 1 goes on to the end: 0.2 + 0.8 · (j − 2) / 4
    wanted = [0, 0.1, 0.2, 0.4, 0.6, 0.8, 1]
    assert batch.labels["progress"].values[0].tolist() == pytest.approx(wanted)
    window = with_stage_targets(collate([Window(episode=whole, offset=1, steps=3)]), [0.2, 0.8])
    assert window.labels["progress"].values[0].tolist() == pytest.approx(wanted[1:5])
    failed = with_stage_targets(collate([replace(whole, success=0.0)]), [0.2, 0.8]).labels["progress"]
    assert failed.valid[0].tolist() == [True, True] + [False] * 5  # the stage it was in is unknown, the one before not
    with pytest.raises(ValueError, match="stage 1 came"):
        with_stage_targets(collate([whole]), [1.0])
    with pytest.raises(ValueError, match="1 in all"):
        with_stage_targets(collate([whole]), [0.5, 0.7])
    with pytest.raises(ValueError, match="missing here: stage, stage_fraction"):
        with_stage_targets(rows([3], [End.SUCCESS]), [1.0])
    # equal stages that take equal time are the linear target
    even = replace(whole, labels={"stage": Column.known(np.array([0, 0, 1, 1, 2, 2, 2]))})
    by_stage = LabelFactory(progress="stages", stages=3).targets(collate([even])).labels["progress"]
    assert by_stage.values[0].tolist() == pytest.approx([j / 6 for j in range(7)])


def test_a_partial_success_is_unknown_unless_asked_for():
    batch = rows([3], [End.TIME_LIMIT], success=torch.tensor([0.4]), success_known=torch.tensor([True]))
    plain = LabelFactory().targets(batch)
    assert not plain.labels["progress"].valid.any() and not plain.labels["success"].valid.any()
    used = LabelFactory(partial_success=True).targets(batch)
    assert used.labels["progress"].valid[0].tolist() == [False] * 3 + [True]
    assert used.labels["progress"].values[0, -1] == pytest.approx(0.4)
    assert used.labels["success"].valid.all() and used.labels["success"].values.sum() == 0


@given(batch=trajectory_batches(cameras=("wrist",), stored_labels=False))
def test_every_kind_keeps_labels_in_range_and_unknown_outcomes_unknown(batch):
    factory = LabelFactory(0.15, 0.15, 0.1, clip=0.15, stall=0.15, warp=0.15, cross_task=0.1, other_instructions=["x"])
    drawn, counts = factory.draw(batch, torch.Generator().manual_seed(1))
    assert sum(counts[kind] for kind in KINDS) == len(batch)
    kind = drawn.labels["negative"].values[:, 0]
    for name, top in (("progress", 1.0), ("success", 1.0), ("remaining", 6.0)):
        label = drawn.labels[name]
        assert not bool((label.valid & ~drawn.observed).any())
        assert bool(((label.values >= 0) & (label.values <= top)).all())
    for row in range(len(batch)):
        name = KINDS[kind[row]]
        if name in ("wrong_instruction", "cross_task"):
            assert float(drawn.labels["progress"].values[row].sum()) == 0
            assert (drawn.instructions[row] == batch.instructions[row]) == (name == "cross_task")
        elif not bool(batch.success_known[row]):
            assert not drawn.labels["progress"].valid[row].any() and not drawn.labels["success"].valid[row].any()


def test_a_factory_needs_what_its_target_needs():
    with pytest.raises(ValueError, match="how many there are"):
        LabelFactory(progress="stages")
    with pytest.raises(ValueError, match="give the horizon"):
        LabelFactory(progress="return_to_go")
    with pytest.raises(ValueError, match="at most 1 all"):
        LabelFactory(clip=0.9)
