from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import End
from guerdon.core.sizes import HasSizes
from guerdon.datasets.episodes import BadEpisodeError, Column, Episode
from guerdon.datasets.filters import EpisodeFilter
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.formats.video import VideoFrames
from guerdon.datasets.joined import JoinedDatasets
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.datasets.opening import open_dataset
from guerdon.datasets.splits import SplitInfo, in_split, in_split_each


@pytest.fixture
def written(tmp_path, make_episode):
    """A data set of twelve episodes of two tasks, each initial state used twice."""

    def write(name="set", count=12, cameras=False, **changes):
        with LeRobotWriter(tmp_path / name, fps=10) as writer:
            for i in range(count):
                given = {"context": f"start {i // 2}"} | {k: v(i) for k, v in changes.items()}
                writer.add(make_episode(i, 5 + i % 4, camera=cameras, **given))
        return tmp_path / name

    return write


def same(one, other):
    assert one.instructions == other.instructions and one.labels.keys() == other.labels.keys()
    for name in ("state", "mask", "episode", "offset"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in one.labels:
        assert torch.equal(one.labels[name].values, other.labels[name].values)


def test_contexts_never_straddle_the_split_and_it_is_always_the_same(written):
    data = EpisodeData(str(written()), val_fraction=0.3)
    data.setup("fit")
    names = {s: {data._reader(p).context for p in data.places[s]} for s in ("train", "val")}
    assert names["train"] and names["val"] and not names["train"] & names["val"]
    assert len(data.places["val"]) == 4  # two of six contexts, two episodes each
    again = EpisodeData(str(written("again")), val_fraction=0.3)
    again.setup("fit")
    assert again.places == data.places


def test_a_recorded_split_decides(written):
    path = written(split=lambda i: ("train", "val", "test")[i % 3])
    data = EpisodeData(str(path))
    data.setup("fit")
    assert data.places == {"train": [0, 3, 6, 9], "val": [1, 4, 7, 10]}
    with pytest.raises(ValueError, match=r"no episode of the split 'training': the data set has test \(4\), train"):
        EpisodeData(str(path), train_split="training").setup("fit")


def test_the_data_know_their_sizes_before_and_after_they_are_set_up(written):
    one, other = str(written()), str(written("other"))
    data = EpisodeData([one, other])
    assert isinstance(data, HasSizes)
    found = data.sizes
    assert (found.state_size, found.action_size) == (open_dataset(one).state_size, open_dataset(one).action_size)
    assert one in found.name and other in found.name
    data.setup("fit")
    assert data.sizes == found
    with pytest.raises(FileNotFoundError, match="there is no data set at"):
        EpisodeData("nowhere").sizes


@pytest.mark.slow
def test_batches_follow_from_seed_and_epoch_whatever_the_workers(written):
    path = str(written())

    def epochs(seed, workers=0):
        data = EpisodeData(path, batch_size=4, window=4, repeats=2, seed=seed, num_workers=workers)
        data.setup("fit")
        loader: Any = data.train_dataloader()
        found = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            found.append(list(loader))
        return found, loader

    (one, loader), (two, _), (other, _) = epochs(0), epochs(0, 1), epochs(1)
    assert len(loader) == len(one[0]) == 5  # (12 − 2 held out) · 2 rows in batches of 4
    for a, b in zip(one[0] + one[1], two[0] + two[1], strict=True):
        same(a, b)
    assert not torch.equal(one[0][0].episode, one[1][0].episode) or not torch.equal(one[0][0].offset, one[1][0].offset)
    assert not torch.equal(one[0][0].state, other[0][0].state)
    rows = torch.cat([b.episode for b in one[0]])
    assert all(int((rows == e).sum()) == 2 for e in rows)  # every episode as often as asked
    assert all(b.mask.shape[1] == 4 for b in one[0])


def test_validation_reads_whole_episodes_the_same_way_every_time(written):
    data = EpisodeData(str(written()), window=3, val_fraction=0.5)
    data.setup("fit")
    loader: Any = data.val_dataloader()
    first, second = list(loader), list(loader)
    loader.sampler.set_epoch(5)
    third = next(iter(loader))
    same(first[0], second[0])
    same(first[0], third)
    assert bool((first[0].length == first[0].steps).logical_or(first[0].labels["negative"].values[:, 0] == 1).all())


def test_a_bad_episode_is_named_once_and_training_goes_on(written):
    path = written(count=6)
    import pyarrow.parquet as pq

    file = next((path / "data").rglob("*.parquet"))
    table = pq.read_table(file)
    column = table["observation.state"].to_numpy(zero_copy_only=False)
    place = np.flatnonzero(table["episode_index"].to_numpy() == 2)[0]
    column[place] = np.full(2, np.nan, np.float32)
    index = table.schema.get_field_index("observation.state")
    import pyarrow as pa

    changed = pa.array(list(column), type=table.schema.field(index).type)
    pq.write_table(table.set_column(index, table.schema.field(index), changed), file, row_group_size=6)
    data = EpisodeData(str(path), batch_size=2)
    with pytest.warns(UserWarning, match=r"1 of 6 episodes .* episode 2 \(not_finite\): state") as caught:
        data.setup("fit")
        data.setup("fit")
    assert len(caught) == 1 and [e.index for e in data.bad] == [2]
    assert all(2 not in b.episode.tolist() for b in data.train_dataloader())


def test_nothing_usable_is_an_error(written, monkeypatch):
    data = EpisodeData(str(written(count=2)))
    from guerdon.datasets.formats.lerobot import LeRobotDataset

    def refuse(self, place):
        raise BadEpisodeError(place, "shape", "broken")

    monkeypatch.setattr(LeRobotDataset, "__getitem__", refuse)
    with pytest.raises(ValueError, match=r"no episode of .* can be used: episode 0 \(shape\): broken; episode 1"):
        data.setup("fit")


def test_a_broken_video_is_replaced_when_it_shows(written):
    path = written(cameras=True, count=4)
    videos = sorted(path.rglob("*.mp4"))
    assert videos
    data = EpisodeData(str(path), cameras=["front"], batch_size=3, frame_count=3, val_fraction=0.0)
    data.setup("fit")
    reader = data._reader
    broken = reader(2)
    source = broken.frames["front"]
    gone = VideoFrames(path / "gone.mp4", source.step, fps=10, episode=2)
    reader._kept[2] = replace(broken, frames={"front": gone})
    with pytest.warns(UserWarning, match=r"left out from now on: episode 2: video .*gone.mp4") as caught:
        batches = list(data.train_dataloader())
    assert len(caught) == 1 and [len(b) for b in batches] == [3, 1]
    assert all(2 not in b.episode.tolist() for b in batches)
    assert all(b.frames["front"].step.shape[1] == 3 for b in batches)


class Frozen(ConvEncoder):
    def __init__(self) -> None:
        super().__init__(width=6, channels=(4,), size=8)
        self.trainable = False
        self.frames = 0

    def features(self, pixels):
        self.frames += len(pixels)
        return super().features(pixels)


def test_features_are_embedded_once_for_all_epochs(written, tmp_path):
    path, encoder = written(cameras=True, count=4), Frozen()
    settings = {"cameras": ["front"], "encoder": encoder, "cache": str(tmp_path / "cache"), "window": 3}
    data = EpisodeData(str(path), **settings)
    data.setup("fit")
    recorded = sum(6 + i % 4 for i in range(4))
    assert encoder.frames == recorded
    for _ in range(2):
        for batch in data.train_dataloader():
            assert not batch.frames and batch.features[f"{encoder.name}/front"].values.shape[-1] == 6
    EpisodeData(str(path), **settings).setup("fit")
    assert encoder.frames == recorded


def test_small_frames_are_kept(written, tmp_path):
    path = str(written(cameras=True, count=4))
    plain = EpisodeData(path, cameras=["front"], frame_size=16)
    kept = EpisodeData(path, cameras=["front"], frame_size=16, cache=str(tmp_path / "cache"))
    for one, other in zip(plain.train_dataloader(), kept.train_dataloader(), strict=True):
        assert torch.equal(one.frames["front"].values, other.frames["front"].values)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 4


def test_settings_that_make_no_sense_are_refused(written):
    with pytest.raises(ValueError, match="batch_size 0"):
        EpisodeData("somewhere", batch_size=0)
    with pytest.raises(ValueError, match="a frozen one, together with cameras and a cache folder"):
        EpisodeData("somewhere", encoder=ConvEncoder(width=4, channels=(4,), size=8))
    with pytest.raises(ValueError, match="frame_size to keep frames at"):
        EpisodeData("somewhere", cache="there")
    with pytest.raises(ValueError, match="has no camera 'wrist': it has none"):
        EpisodeData(str(written(count=2)), cameras=["wrist"]).setup("fit")
    with pytest.raises(ValueError, match="no episode to validate on"):
        EpisodeData(str(written("one", count=1))).setup("validate")


def test_several_data_sets_are_one(written):
    paths = [str(written("one", 3)), str(written("two", 2))]
    data = EpisodeData(paths, batch_size=5, val_fraction=0.0)
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 5 and len(set(batch.episode.tolist())) == 5


@pytest.mark.slow
def test_each_of_several_data_sets_is_split_as_it_would_be_alone(written):
    recorded = written("recorded", 6, split=lambda i: "train" if i < 4 else "val")
    plain = written("plain", 12, group=lambda i: i)
    judged = written("judged", 3, split=lambda i: "val")
    data = EpisodeData([str(p) for p in (recorded, plain, judged)])
    data.setup("fit")
    alone = EpisodeData(str(plain))
    alone.setup("fit")
    # 0 … 5 as recorded; 6 … 17 as alone, where nothing was recorded; 18 … 20 have nothing to train on
    assert data.places["train"] == [0, 1, 2, 3, *(6 + p for p in alone.places["train"])]
    assert data.places["val"] == [4, 5, *(6 + p for p in alone.places["val"]), 18, 19, 20] and alone.places["val"]
    infos = [
        SplitInfo(index=e.index, context=e.context, group=e.group)
        for e in map(open_dataset(plain).__getitem__, range(12))
    ]
    assert in_split(infos, "val", "plain") == alone.places["val"]  # what calibrate and evaluate take
    joint = JoinedDatasets([open_dataset(path) for path in (recorded, plain, judged)])
    sets: list[list[SplitInfo]] = [[], [], []]
    for place in range(len(joint)):
        which, named = joint.split_info(place, joint[place])
        sets[which].append(named)
    assert in_split_each(sets, "val", "all") == data.places["val"]  # … of several data sets too
    assert in_split_each(sets, "train", "all") == data.places["train"]
    with pytest.raises(ValueError, match=r"all has no usable episode of the split 'odd': it has train, val"):
        in_split_each(sets, "odd", "all")
    with pytest.raises(ValueError, match="no episode of the split 'train' in any data set: they have val"):
        EpisodeData([str(judged), str(written("other", 2, split=lambda i: "val"))]).setup("fit")


def test_windows_meet_the_end_of_an_episode(written):
    """Of 60 windows of 3 steps a fair share reaches the end: success would hardly ever be seen otherwise."""
    data = EpisodeData(
        str(written(count=2)), window=3, repeats=30, val_fraction=0.0, labels=LabelFactory(0.0, 0.0, 0.0)
    )
    ends = torch.cat([b.end for b in data.train_dataloader()])
    assert float((ends == End.SUCCESS).float().mean()) > 0.2
    assert len(ends) == 60


def test_a_broken_video_is_left_out_under_its_number_in_the_joined_set(tmp_path, make_episode):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        with LeRobotWriter(path, fps=10) as writer:
            for i in range(2):
                writer.add(make_episode(i, 6))
    for video in paths[1].rglob("*.mp4"):  # its second half is gone, and what it says of itself with it
        video.write_bytes(video.read_bytes()[:200])
    data = EpisodeData([str(p) for p in paths], cameras=["front"], val_fraction=0.0, batch_size=4)
    data.setup("fit")
    with pytest.warns(UserWarning, match="left out from now on"):
        (batch,) = list(data.train_dataloader())
    # a video knows the number 0 or 1 it has in its own set: leaving those out would leave out the good ones, for ever
    assert set(batch.episode.tolist()) <= {0, 1} and len(batch) == 4
    cached = EpisodeData([str(p) for p in paths], cameras=["front"], frame_size=16, cache=str(tmp_path / "kept"))
    with pytest.warns(UserWarning, match="2 of 4 episodes"):
        cached.setup("fit")
    assert [error.index for error in cached.bad] == [2**32, 2**32 + 1]


def test_a_recorded_target_that_is_no_share_is_named_before_training(tmp_path):
    with LeRobotWriter(tmp_path / "odd", fps=10) as writer:
        for index in range(3):
            progress = np.linspace(0, 1 if index else 100, 5).astype(np.float32)
            labels = {"progress": Column.known(progress)}
            state = np.zeros((5, 2), np.float32)
            writer.add(Episode(index=index, state=state, actions=np.zeros((4, 1), np.float32), labels=labels))
    data = EpisodeData(str(tmp_path / "odd"), val_fraction=0.0)
    with pytest.warns(UserWarning, match=r"episode 0 \(label\): recorded progress is 25.0"):
        data.setup("fit")
    assert len(data.places["train"]) == 2 and data.outcomes == {"labelled": 2}


def test_episodes_without_a_split_beside_others_are_not_dropped_in_silence(written):
    path = written(split=lambda i: ("train", "val", "")[i % 3])
    with pytest.warns(UserWarning, match="have no split, while others have one"):
        EpisodeData(str(path)).setup("fit")


@pytest.mark.slow
def test_which_ends_terminate_is_said_once_and_holds_everywhere(written):
    ends = (End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.TAKEOVER, End.CUT)
    path = str(written(count=10, end=lambda i: ends[i % 5], success=lambda i: float(i % 5 == 0)))

    def ended(**more):
        labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
        data = EpisodeData(path, batch_size=4, val_fraction=0.4, labels=labels, **more)
        data.setup("fit")
        sources = [data.train_dataloader(), data.val_dataloader(), data.state_batches()]
        sources += [data.episodes("train"), data.episodes("val")]
        found = [{End(int(e)) for batch in source for e in batch.end[batch.terminated]} for source in sources]
        assert found[0] | found[1] == found[3] | found[4]
        assert found[0] == found[2] == found[3] and found[1] == found[4]
        return found[0] | found[1]

    assert ended() == {End.SUCCESS, End.FAILURE}
    assert ended(terminating=["success", "failure", "time_limit", "takeover"]) == set(ends) - {End.CUT}
    assert ended(terminating=[]) == set()
    # a window that ends before its episode is cut, whatever ends the episode
    data = EpisodeData(path, window=2, val_fraction=0.4, terminating=["success"])
    data.setup("fit")
    for batch in data.train_dataloader():
        assert torch.equal(batch.terminated, batch.end == End.SUCCESS)


def test_ends_that_do_not_exist_are_refused():
    for wrong in (["timeout"], ["cut"], "success"):
        with pytest.raises(ValueError, match=r"terminating: .* is no end; .* success, failure, time_limit, takeover"):
            EpisodeData("nowhere", terminating=wrong)


def test_balanced_tasks_and_data_sets_have_equal_weight_in_an_epoch(written):
    many, few = (
        written(name, count, instruction=lambda i: f"task {i % 3}") for name, count in (("many", 12), ("few", 3))
    )
    plain = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
    data = EpisodeData([str(many), str(few)], val_fraction=0.0, batch_size=4, labels=plain, balance_tasks=True)
    data.setup("fit")
    steps: dict[tuple[bool, str], int] = {}
    for batch in data.train_dataloader():
        for number, task, length in zip(batch.episode.tolist(), batch.instructions, batch.steps.tolist(), strict=True):
            steps[number >= 12, task] = steps.get((number >= 12, task), 0) + length
    assert len(steps) == 6  # three tasks in each of two data sets
    assert max(steps.values()) - min(steps.values()) <= 8  # an episode has at most 8 steps
    assert sorted(data.places["train"]) == list(range(15))  # each episode is still listed once


def test_added_data_sets_are_trained_on_whole_whatever_the_split_and_the_filter(written):
    keep = EpisodeFilter(quality=["expert"])
    one = EpisodeData(str(written("one")), val_fraction=0.5, batch_size=3, window=4, seed=5, keep=keep)
    added = written("two", 4)
    two = one.with_added([str(added)], balance_tasks=True)
    assert (two.batch_size, two.window, two.seed, two.balance_tasks) == (3, 4, 5, True)
    with pytest.raises(ValueError, match="the filter keeps 0 of"):
        one.setup("fit")  # these episodes have no quality
    one.keep = two.keep = None
    one.setup("fit")
    two.setup("fit")
    own = one.places["train"]
    assert 0 < len(own) < 12 and two.places["val"] == one.places["val"]
    assert two.places["train"] == [*own, 12, 13, 14, 15] and two.folders == [*one.folders, str(added)]


def test_a_filter_of_the_own_data_leaves_added_data_sets_alone(written):
    kept = EpisodeData(str(written("one")), val_fraction=0.0, keep=EpisodeFilter(success=True))
    kept.setup("fit")
    two = kept.with_added([str(written("two", 4))], balance_tasks=False)
    two.setup("fit")
    assert two.places["train"] == [*kept.places["train"], 12, 13, 14, 15]
