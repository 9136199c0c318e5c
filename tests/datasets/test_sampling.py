"""Rows drawn from seed, epoch and number alone: keys, windows, and the episode that takes the place of a broken one."""

import numpy as np
import pytest
import torch

from guerdon.datasets.episodes import BadEpisodeError, EpisodeSummary
from guerdon.datasets.reader import EpisodeReader
from guerdon.datasets.sampling import EpochSampler, RowBatches, RowKeys, task_balanced


class Stored:
    """Episodes in memory; an error in the place of one is raised when it is asked for."""

    def __init__(self, *episodes):
        self.episodes, self.cameras = list(episodes), ("front",)
        self.name, self.fps, self.state_size, self.action_size = "stored", 10.0, 2, 1

    def __len__(self):
        return len(self.episodes)

    def summary(self, place):
        return EpisodeSummary(index=place, steps=5)

    def __getitem__(self, place):
        if isinstance(self.episodes[place], BadEpisodeError):
            raise self.episodes[place]
        return self.episodes[place]


def batches(dataset, places=None, window=None, labels=lambda batch, generator: batch, seed=(0, 0), cameras=()):
    chosen = range(len(dataset)) if places is None else places
    return RowBatches(EpisodeReader(dataset, cameras), list(chosen), window, None, 1, labels, seed)


def test_a_key_is_its_own_row():
    keys = RowKeys(4)
    assert len(keys) == 4 and keys[(3, 2)] == (3, 2)


def test_keys_carry_the_epoch_where_rows_are_shuffled():
    sampler = EpochSampler(RowKeys(6), num_replicas=1, rank=0, shuffle=True, seed=0)
    first = list(sampler)
    sampler.set_epoch(3)
    second = list(sampler)
    assert {epoch for epoch, _ in first} == {0} and {epoch for epoch, _ in second} == {3}
    assert sorted(row for _, row in second) == list(range(6)) and [r for _, r in first] != [r for _, r in second]
    ordered = EpochSampler(RowKeys(6), num_replicas=1, rank=0, shuffle=False)
    ordered.set_epoch(3)
    assert list(ordered) == [(0, row) for row in range(6)]  # validation draws the same every time


def test_processes_share_the_rows_of_an_epoch():
    parts = [list(EpochSampler(RowKeys(6), num_replicas=2, rank=rank, shuffle=True, seed=1)) for rank in (0, 1)]
    assert sorted(row for part in parts for _, row in part) == list(range(6))


def test_rows_go_round_the_episodes(make_episode):
    made = batches(Stored(*(make_episode(i) for i in range(3))), places=[2, 0])
    assert made([(0, 0), (0, 1), (0, 2), (5, 3)]).episode.tolist() == [2, 0, 2, 0]


@pytest.mark.slow
def test_a_window_follows_from_seed_epoch_and_row(make_episode):
    dataset = Stored(make_episode(0, 40, camera=False))
    made = batches(dataset, window=4)
    again, other = batches(dataset, window=4), batches(dataset, window=4, seed=(1, 0))

    def offsets(source, epoch):
        return [int(source([(epoch, row)]).offset) for row in range(20)]

    assert offsets(made, 2) == offsets(again, 2) != offsets(made, 3) and offsets(made, 2) != offsets(other, 2)
    alone = [int(made([(2, row)]).offset) for row in (4, 7)]
    assert made([(2, 4), (2, 7)]).offset.tolist() == alone  # whatever shares its batch
    drawn = np.array([offsets(made, epoch) for epoch in range(20)])
    assert drawn.min() == 0 and drawn.max() == 36 and (drawn == 36).mean() > 1 / 37  # ends are met often enough
    assert made([(0, 0)]).steps.tolist() == [4] and batches(dataset, window=99)([(0, 0)]).steps.tolist() == [40]


def test_labels_draw_from_a_generator_of_the_keys_alone(make_episode):
    def draw(batch, generator):
        drawn.append(float(torch.rand((), generator=generator)))
        return batch

    drawn = []
    made = batches(Stored(make_episode(0), make_episode(1)), labels=draw)
    for keys in ([(0, 0)], [(0, 0)], [(0, 1)], [(1, 0)]):
        made(keys)
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3


def test_an_episode_that_breaks_is_replaced_and_named_once(make_episode, monkeypatch):
    made = batches(Stored(make_episode(0), make_episode(1), make_episode(2)), cameras=["front"])
    read = made.reader.batch

    def broken(windows, *rest):
        if any(window.episode.index == 1 for window in windows):
            raise BadEpisodeError(1, "video", "cannot be decoded")
        return read(windows, *rest)

    monkeypatch.setattr(made.reader, "batch", broken)
    with pytest.warns(UserWarning, match=r"left out from now on: episode 1: cannot be decoded \(video\)"):
        assert made([(0, 0), (0, 1), (0, 2)]).episode.tolist() == [0, 2, 2]
    assert made([(1, 1)]).episode.tolist() == [2]  # without another warning
    unreadable = batches(Stored(make_episode(0), BadEpisodeError(1, "data", "gone")))
    assert unreadable([(0, 1)]).episode.tolist() == [0]


def test_without_any_episode_left_there_is_an_error(make_episode):
    made = batches(Stored(BadEpisodeError(0, "data", "gone"), BadEpisodeError(1, "data", "gone")))
    with pytest.raises(RuntimeError, match="no episode is left to train on"):
        made([(0, 0)])


def test_balanced_tasks_have_the_same_number_of_steps_to_within_half_an_episode():
    tasks, steps = [0, 1, 0, 2, 2, 2], [10, 3, 14, 5, 6, 7]
    rows = task_balanced(tasks, steps)
    assert set(rows) == set(range(6))  # none is left out
    totals = {task: sum(steps[place] for place in rows if tasks[place] == task) for task in (0, 1, 2)}
    assert totals[0] == 24  # the largest task, each of its episodes once
    for task in (1, 2):
        longest = max(step for step, of in zip(steps, tasks, strict=True) if of == task)
        assert abs(totals[task] - 24) <= longest / 2
    assert [place for place in rows if tasks[place] == 2][:3] == [3, 4, 5]  # in turn
    assert task_balanced([], []) == []
