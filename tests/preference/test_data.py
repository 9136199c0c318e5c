"""Data of pairs: what is merged, left out and refused, features computed once, and runs that resume exactly."""

import warnings
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from guerdon.backbones.vision import VisionEncoder
from guerdon.core.batch import PreferencePairs
from guerdon.datasets.episodes import ArrayFrames, Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.preference.answers import Answer, write_answers
from guerdon.preference.data import PreferenceData, SegmentFrames
from guerdon.preference.fit import PreferenceTraining
from guerdon.preference.segments import Segment, SegmentPair, write_segment_pairs
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.state_action import StateActionReward

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")


def episode(index, task="lift"):
    steps = 10 + index % 3
    pixels = np.full((steps + 1, 3, 8, 8), 10 * (index % 20), np.uint8)
    draw = np.random.default_rng(index)
    return Episode(
        index=index,
        state=draw.normal(size=(steps + 1, 3)).astype(np.float32),
        actions=draw.normal(size=(steps, 2)).astype(np.float32),
        instruction=task,
        task=int(task != "lift"),
        frames={"front": ArrayFrames(values=pixels, step=np.arange(steps + 1), identity=str(index))},
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Twelve episodes, the last two of another task."""
    path = tmp_path_factory.mktemp("recorded") / "lift"
    with LeRobotWriter(path, fps=10) as writer:
        for index in range(12):
            writer.add(episode(index, "lift" if index < 10 else "push"))
    return path


def pair(name, first=(0, 0, 6), second=(1, 2, 8)):
    one, other = ({"episode": e, "start": start, "stop": stop} for e, start, stop in (first, second))
    return SegmentPair(id=name, first=Segment(**one), second=Segment(**other))


def asked(path, pairs, answers, **more):
    """Data module of pairs and (pair, choice[, rater]) answers."""
    folder = path.parent / str(len(list(path.parent.iterdir())))
    folder.mkdir()
    write_segment_pairs(pairs, folder / "pairs.jsonl")
    given = [Answer(pair=name, choice=choice, rater=rater) for name, choice, rater in answers]
    write_answers(given, folder / "answers.jsonl")
    settings: dict[str, Any] = {"val_fraction": 0.0} | more
    return PreferenceData(str(path), str(folder / "pairs.jsonl"), str(folder / "answers.jsonl"), **settings)


def batches(data) -> list[PreferencePairs]:
    data.setup("fit")
    loader: Any = data.train_dataloader()
    return list(loader)


def test_segments_of_unequal_length_come_with_their_labels_and_each_once(recorded):
    pairs = [pair("a"), pair("b", (0, 0, 6), (2, 0, 12)), pair("c", (3, 1, None), (1, 2, 8))]
    given = [("a", "first", ""), ("b", "second", ""), ("c", "tie", "")]
    (batch,) = batches(asked(recorded, pairs, given))
    assert len(batch.batch) == 4  # six sides, two of them twice
    rows = list(zip(batch.batch.episode.tolist(), batch.batch.offset.tolist(), batch.batch.steps.tolist(), strict=True))
    sides = zip(batch.chosen.tolist(), batch.rejected.tolist(), batch.label.tolist(), strict=True)
    found = {(rows[chosen], rows[rejected]): label for chosen, rejected, label in sides}
    assert found == {
        ((0, 0, 6), (1, 2, 6)): 1.0,
        ((0, 0, 6), (2, 0, 12)): 0.0,
        ((3, 1, 9), (1, 2, 6)): 0.5,
    }
    row = int((batch.batch.episode == 3).nonzero()[0, 0])
    np.testing.assert_array_equal(batch.batch.state[row, :9].numpy(), episode(3).state[1:10])


def test_raters_are_merged_and_skips_and_unanswered_pairs_are_counted(recorded, capsys):
    pairs = [pair("a"), pair("b", (2, 0, 6)), pair("c", (3, 0, 6)), pair("d", (4, 0, 6))]
    given = [("a", "first", "ada"), ("a", "first", "bob"), ("a", "second", "eve"), ("b", "skip", "ada")]
    given += [("c", "skip", "ada"), ("c", "tie", "bob")]
    (batch,) = batches(asked(recorded, pairs, given))
    assert sorted(batch.label.tolist()) == [0.5, pytest.approx(2 / 3)]
    assert (
        "2 of 4 pairs are labelled (1 ties), 1 skipped, 1 without an answer; 2 to train on" in capsys.readouterr().err
    )


def test_answers_that_contradict_another_of_the_same_rater_are_reported_and_left_out(recorded):
    mirrored = pair("mirrored", (1, 2, 8), (0, 0, 6))
    given = [("a", "first", "ada"), ("mirrored", "first", "ada"), ("b", "first", "ada")]
    data = asked(recorded, [pair("a"), mirrored, pair("b", (2, 0, 6))], given)
    with pytest.warns(UserWarning, match="2 answers contradict another one of the same rater"):
        (batch,) = batches(data)
    assert len(batch) == 1


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([pair("a", second=(10, 0, 6))], "pair 'a' compares two tasks, 'lift' and 'push'"),
        ([pair("a", second=(40, 0, 6))], "names episode 40, and .* has episodes 0 to 11"),
        ([pair("a", second=(1, 4, 99))], "steps 4 to 99 do not lie in episode 1, which has 11 steps"),
        ([pair("a", (1, 0, None), (1, 0, 11))], "both segments are the same steps of one episode"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused_by_name(recorded, pairs, message):
    with pytest.raises(ValueError, match=message):
        asked(recorded, pairs, [("a", "first", "")]).setup("fit")


def test_ties_alone_are_refused_and_one_side_alone_is_warned_of(recorded):
    pairs = [pair("a"), pair("b", (2, 0, 6))]
    with pytest.raises(ValueError, match="every label is a tie, so there is nothing to learn"):
        asked(recorded, pairs, [("a", "tie", ""), ("b", "tie", "")]).setup("fit")
    with pytest.raises(ValueError, match="there is no training pair with a label"):
        asked(recorded, pairs, [("a", "skip", "")]).setup("fit")
    with pytest.warns(UserWarning, match="all 2 decided training labels prefer the second segment"):
        asked(recorded, pairs, [("a", "second", ""), ("b", "second", "")]).setup("fit")


def test_answers_to_other_pairs_and_missing_files_are_refused(recorded):
    with pytest.raises(ValueError, match="answers pair 'z', which is not among"):
        asked(recorded, [pair("a")], [("z", "first", "")]).setup("fit")
    with pytest.raises(ValueError, match="expected a file of pairs and at least one file of answers"):
        PreferenceData(str(recorded))
    with pytest.raises(ValueError, match="holds pairs and labels: leave pairs"):
        PreferenceData("lift.npz", "pairs.jsonl")


def test_no_episode_is_in_training_and_validation(recorded):
    pairs = [pair(str(number), (2 * number, 0, 6), (2 * number + 1, 0, 6)) for number in range(5)]
    given = [(str(number), ("first", "second")[number % 2], "") for number in range(5)]
    data = asked(recorded, pairs, given, val_fraction=0.4)
    data.setup("fit")
    held: Any = data.val_dataloader()
    sides = [set(torch.cat([b.batch.episode for b in loader]).tolist()) for loader in (data.train_dataloader(), held)]
    assert sides[0].isdisjoint(sides[1]) and len(sides[1]) == 4


def arrays(path, count=12, seed=0):
    """File of pairs, of which the first segment is better where its first action is larger."""
    draw = np.random.default_rng(seed)
    made: dict[str, Any] = {f"obs_{k}": draw.normal(size=(count, 6, 3)).astype(np.float32) for k in (1, 2)}
    made |= {f"action_{k}": draw.normal(size=(count, 6, 2)).astype(np.float32) for k in (1, 2)}
    second = made["action_2"][..., 0].sum(1) > made["action_1"][..., 0].sum(1)
    np.savez(path, **made, label_human=second.astype(np.float32), label_script=1 - second.astype(np.float32))
    return str(path)


def test_a_file_of_arrays_is_read_as_it_is(tmp_path):
    path = arrays(tmp_path / "lift.npz")
    (batch,) = batches(PreferenceData(path, val_fraction=0.0))
    total = batch.batch.actions[..., 0].sum(1)
    assert torch.equal(batch.label == 1, total[batch.chosen] > total[batch.rejected])
    (scripted,) = batches(PreferenceData(path, val_fraction=0.0, label="script"))
    assert torch.equal(scripted.label.sort().values, (1 - batch.label).sort().values)


class Colour(VisionEncoder):
    """Mean colour, frozen; counts the frames it was shown."""

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.width, self.name, self.trainable = 3, "colour", False
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.frozen_reference = True

    @property
    def revision(self) -> str:
        return "1"

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.float() / 255

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        Colour.seen += len(pixels)
        return pixels.mean((2, 3))


def test_features_are_computed_once_for_all_pairs_and_epochs(tmp_path, recorded):
    path = tmp_path / "seen"
    with LeRobotWriter(path, fps=10) as writer:
        for index in range(3):
            writer.add(episode(index))
    pairs = [pair("a"), pair("b", (0, 0, 6), (2, 0, 6)), pair("c", (1, 2, 8), (2, 0, 6))]
    given = [("a", "first", ""), ("b", "second", ""), ("c", "tie", "")]
    frames = SegmentFrames(cameras=["front"], encoder=Colour(), cache=str(tmp_path / "cache"))
    Colour.seen = 0
    data = asked(path, pairs, given, frames=frames)
    for _ in range(2):
        (batch,) = batches(data)
    assert Colour.seen == 11 + 12 + 13
    features = batch.batch.features["colour/front"]
    assert features.values.shape[::2] == (3, 3)
    assert data.sizes.feature_sizes == {"colour/front": 3}


def fit(folder, module, data, epochs, **more):
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "default_root_dir": folder, "num_sanity_val_steps": 0}
    trainer = lightning.Trainer(max_epochs=epochs, enable_checkpointing=False, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*have no `val_dataloader`")
        trainer.fit(module, datamodule=data, **more)
    return trainer


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_interrupted(tmp_path, ensemble):
    path = arrays(tmp_path / "lift.npz", 20)

    def started():
        torch.manual_seed(0)
        reward = StateActionReward(hidden=(8,))
        return PreferenceTraining(EnsembleReward(reward, size=2) if ensemble else reward)

    def data():
        return PreferenceData(path, batch_size=4, val_fraction=0.2, seed=3)

    whole = started()
    fit(tmp_path, whole, data(), 4)
    first = started()
    half = fit(tmp_path, first, data(), 2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    second = started()
    fit(tmp_path, second, data(), 4, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    one, other = whole.reward.state_dict(), second.reward.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], first.reward.state_dict()[name]) for name in one)
