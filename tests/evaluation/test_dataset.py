"""A model evaluated on a data set: splits, bad episodes, broken videos, several tasks, models from disk."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from guerdon.backbones.model_inputs import ModelInputs
from guerdon.cli import main
from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.hub import save_component
from guerdon.core.interfaces import RewardModel
from guerdon.core.opening import open_reward_model
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Episode, EpisodeSummary, FrameSource
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.joined import JoinedDatasets
from guerdon.datasets.opening import open_dataset
from guerdon.evaluation.calibration.data import collect
from guerdon.evaluation.dataset import OpenedModel, evaluate_dataset
from guerdon.evaluation.evaluate import MODEL
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward

pytestmark = pytest.mark.slow

TASKS = ("open the drawer", "close the drawer", "push the block")


class Seen(RewardModel):
    """Progress is state 0, or the brightness of the frame held; 0 when asked for a task the state does not show."""

    def __init__(self, camera: str = "") -> None:
        super().__init__()
        self.camera = camera
        self.asked = 0

    @property
    def inputs(self) -> ModelInputs:
        return ModelInputs(cameras=(self.camera,) if self.camera else (), frames_every=2 if self.camera else 1)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        self.asked += len(batch)
        progress = batch.state[..., 0]
        if self.camera:
            frames = batch.frames[self.camera]
            held = torch.searchsorted(
                torch.where(frames.step < 0, 10**6, frames.step), torch.arange(progress.shape[1]).repeat(len(batch), 1),
                right=True,
            ) - 1  # fmt: skip
            progress = frames.values[..., 0, 0, 0].float().gather(1, held) / 255
        asked = torch.tensor([float(TASKS.index(text)) for text in batch.instructions])
        progress = torch.where(batch.state[..., 1] == asked[:, None], progress, 0.0)
        return RewardEstimates(
            rewards=progress.diff(dim=1) * batch.mask,
            valid=batch.mask,
            progress=Labelled(values=progress, valid=batch.observed),
        )


class Broken(FrameSource):
    """A video that ends early."""

    step = np.arange(5)

    @property
    def identity(self):
        return "broken"

    def read(self, indices, size=None):
        raise BadEpisodeError(3, "video", "ends after 2 of 5 frames")


class Memory:
    """A data set in memory; a place may hold an error instead of an episode."""

    name, fps, state_size, action_size = "memory", 10.0, 2, 1

    def __init__(self, episodes, cameras=()):
        self.episodes, self.cameras = episodes, cameras

    def __len__(self):
        return len(self.episodes)

    def summary(self, place):
        episode = self.episodes[place]
        if isinstance(episode, BadEpisodeError):
            return EpisodeSummary(index=episode.index, steps=0)
        return EpisodeSummary(index=episode.index, steps=episode.steps, split=episode.split)

    def __getitem__(self, place):
        if isinstance(self.episodes[place], BadEpisodeError):
            raise self.episodes[place]
        return self.episodes[place]


def episode(index, task=0, success: float | None = 1.0, steps=4, split="", frames=None):
    top = 1.0 if success is None or success >= 1 else 0.4
    progress = np.linspace(0, top, steps + 1)
    pictures = np.broadcast_to((progress * 255).astype(np.uint8)[:, None, None, None], (steps + 1, 3, 8, 8)).copy()
    return Episode(
        index=index,
        state=np.stack([progress, np.full(steps + 1, task)], 1).astype(np.float32),
        actions=np.zeros((steps, 1), np.float32),
        instruction=TASKS[task],
        task=task,
        success=success,
        end=End.CUT if success is None else End.SUCCESS if success >= 1 else End.FAILURE,
        split=split,
        context=f"c{index}",
        quality="expert" if success else "aborted",
        frames={} if frames is None else {"front": frames or ArrayFrames(values=pictures, step=np.arange(steps + 1))},
    )


def test_every_episode_is_asked_four_times_and_bad_ones_are_named():
    bad = BadEpisodeError(7, "not_finite", "state[0] at step 2 is nan")
    episodes = [episode(i, i % 2, float(i < 4), steps=3 + i) for i in range(6)]
    reward = Seen()
    found = evaluate_dataset(reward, Memory([*episodes, bad]), batch_size=4)
    # 6 episodes × (as it was, reversed, shuffled, wrong instruction), and one row to say what the model gives
    assert reward.asked == 6 * 4 + 1
    assert found.bad == ({"episode": 7, "status": "not_finite", "reason": "state[0] at step 2 is nan"},)
    assert (found.counts["episodes"], found.counts["bad"], found.counts["tasks"]) == (6, 1, 2)
    model = found.metrics[MODEL]
    assert model.success_auroc.value == 1.0
    assert model.instruction_accuracy.value == 1.0
    assert model.value_order_correlation.value == pytest.approx(1.0)
    assert found.metrics["reversed"].value_order_correlation.value == pytest.approx(-1.0)
    assert math.isnan(found.metrics["wrong_instruction"].value_order_correlation.value)
    # final progress 1 against success, 0.4 against failure: (4 · 0 + 2 · 0.4) / 6
    assert model.calibration_error.value == pytest.approx(0.8 / 6, abs=1e-6)
    assert {q.quality: q.final.value for q in found.qualities} == pytest.approx({"aborted": 0.4, "expert": 1.0})
    assert len(found.tasks) == 2


def test_a_video_that_breaks_while_decoding_leaves_the_others_alone():
    episodes = [episode(i, success=float(i < 2), frames=False) for i in range(3)] + [episode(3, frames=Broken())]
    found = evaluate_dataset(Seen("front"), Memory(episodes, ("front",)))
    assert found.counts["episodes"] == 3
    assert found.bad == ({"episode": 3, "status": "video", "reason": "ends after 2 of 5 frames"},)
    # every second frame is evaluated (0, 2, 4), and only those count for order
    assert found.metrics[MODEL].value_order_correlation.value == pytest.approx(1.0)
    assert found.metrics[MODEL].success_auroc.value == 1.0


def test_splits_by_name_or_by_the_rule_of_training():
    named = Memory([episode(i, success=float(i % 2), split="val" if i < 2 else "train") for i in range(6)])
    assert evaluate_dataset(Seen(), named, split="val").counts["episodes"] == 2
    with pytest.raises(ValueError, match="no usable episode of the split 'test': it has train, val"):
        evaluate_dataset(Seen(), named, split="test")
    nameless = Memory([episode(i, success=float(i % 2)) for i in range(20)])
    counts = [evaluate_dataset(Seen(), nameless, split=s).counts["episodes"] for s in ("train", "val")]
    assert counts == [18, 2]
    with pytest.raises(ValueError, match="no split is recorded: expected train or val"):
        evaluate_dataset(Seen(), nameless, split="test")


def test_wrong_instructions_come_from_the_whole_data_set_not_the_split():
    episodes = [episode(0, 0, split="val"), episode(1, 1, split="train"), episode(2, 2, split="train")]
    found = evaluate_dataset(Seen(), Memory(episodes), split="val")
    assert found.metrics[MODEL].instruction_accuracy.n == 1


def test_unlabelled_data_are_evaluated_on_all_episodes_and_say_so():
    found = evaluate_dataset(Seen(), Memory([episode(i, i % 2, success=None) for i in range(4)]))
    assert found.metrics[MODEL].value_order_correlation.n == 4
    assert found.conventions["value order over"] == "all episodes: no outcome is labelled"
    assert "no outcome labelled: success AUROC undefined (n=4)" in found.notes


def test_nothing_usable_is_an_error_with_the_first_reason():
    with pytest.raises(ValueError, match="the first: cut short"):
        evaluate_dataset(Seen(), Memory([BadEpisodeError(0, "video", "cut short")]))


def test_the_same_seed_gives_the_same_metrics():
    data = Memory([episode(i, i % 3, float(i % 2), steps=5 + i) for i in range(9)])
    first, again = (evaluate_dataset(Seen(), data).to_json() for _ in range(2))
    assert first == again
    assert evaluate_dataset(Seen(), data, seed=1).to_json()["figures"] != first["figures"]


def test_a_progress_bar_is_shown_only_where_it_is_wanted(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if standard error were a terminal
    data = Memory([episode(i, i % 3, float(i % 2)) for i in range(4)])
    evaluate_dataset(Seen(), data)
    assert capsys.readouterr() == ("", "")
    evaluate_dataset(Seen(), data, progress_bar=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "evaluating" in shown.err


def several(count=6, tasks=2):
    return [episode(i, i % tasks, float(i < count - 2), steps=3 + i) for i in range(count)]


def test_every_instruction_is_asked_of_a_bounded_number_of_episodes():
    data = Memory([episode(i, i % 3, float(i < 9), steps=4) for i in range(12)])
    reward = Seen()
    found = evaluate_dataset(reward, data, confusion=2)
    # as it was, reversed, shuffled, wrong; the matrix asks 2 episodes of 3 tasks the one instruction they were not told
    assert reward.asked == 12 * 4 + 1 + 6 * 1
    assert found.confusion is not None and found.confusion.instructions == TASKS
    assert found.confusion.counts == ((2, 2, 2),) * 3
    for row, cells in enumerate(found.confusion.cells):
        assert cells == pytest.approx([float(row == column) for column in range(3)])
    assert found.metrics[MODEL].instruction_margin.value == 1.0
    assert found.conventions["instruction matrix of"] == "6 episodes, up to 2 of each of 3 tasks"
    without = evaluate_dataset(Seen(), data, confusion=0)
    assert without.confusion is None and math.isnan(without.metrics[MODEL].instruction_margin.value)
    assert any("instruction margin undefined (see --confusion)" in note for note in without.notes)
    with pytest.raises(ValueError, match="at least 0 episodes of each task"):
        evaluate_dataset(Seen(), data, confusion=-1)


def test_the_matrix_holds_a_row_for_a_task_without_video():
    episodes = [episode(0, 0, split="val"), episode(1, 1, split="train"), episode(2, 2, 0.0, split="val")]
    found = evaluate_dataset(Seen(), Memory(episodes), split="val")
    assert found.confusion is not None and len(found.confusion.tasks) == 3
    assert found.confusion.counts == ((1, 0, 0),) * 3
    assert found.confusion.missing == tuple(f"no video of {text!r} was evaluated" for text in TASKS[1:])


def test_the_same_task_of_two_data_sets_is_one_task():
    def parts(index):
        return Memory([episode(10 * index + i, i % 2, float(i < 3), steps=3 + i) for i in range(4)])

    found = evaluate_dataset(Seen(), JoinedDatasets([parts(0), parts(1)]))
    assert found.counts["tasks"] == 2 and [t.episodes for t in found.tasks] == [4, 4]
    assert found.confusion is not None and found.confusion.instructions == TASKS[:2]
    assert found.metrics[MODEL].instruction_accuracy.value == 1.0


def test_the_val_of_several_data_sets_is_the_val_of_each():
    """What training held out: splitting the joint set anew would use episodes that were trained on."""

    def part(start):
        return Memory([episode(start + i, i % 2) for i in range(12)])

    def evaluated(dataset):
        return evaluate_dataset(Seen(), dataset, split="val", confusion=0).counts["episodes"]

    parts = [part(0), part(20), part(40)]
    assert evaluated(JoinedDatasets(parts)) == sum(evaluated(p) for p in parts) == 3

    def seen(dataset):
        return set(np.unique(collect(Sure(), dataset, "val").episode).tolist())

    alone = [{(which << 32) + index for index in seen(p)} for which, p in enumerate(parts)]
    assert seen(JoinedDatasets(parts)) == set.union(*alone)


class Sure(Seen):
    """Also says that it is a success where progress is complete."""

    def forward(self, batch):
        told = super().forward(batch)
        return replace(told, success=told.progress)


class Timid(Seen):
    """Sees half of it, and nothing in long episodes."""

    def forward(self, batch):
        told = super().forward(batch)
        valid = batch.observed & (batch.steps < 8)[:, None]
        return RewardEstimates(
            rewards=told.rewards / 2,
            valid=told.valid & valid[:, 1:],
            progress=Labelled(values=told.progress.values / 2, valid=valid),
        )


def test_another_model_is_evaluated_on_the_same_episodes():
    found = evaluate_dataset(Seen(), Memory(several()), against=OpenedModel(reward=Timid(), identity={"path": "timid"}))
    assert found.comparison is not None and found.comparison.episodes == 6
    assert found.comparison.model == {"path": "timid"}
    # successes end at 1 and failures at 0.4 (at ½ and 0.2 for the timid one, which abstains on the longest, a failure):
    # on the five that both score, errors (4 · 0 + 0.4) / 5 and (4 · 0.5 + 0.2) / 5
    error = found.comparison.differences["calibration_error"]
    assert error.n == 5 and (error.first, error.second) == pytest.approx((0.08, 0.44), abs=1e-6)
    assert found.comparison.differences["value_order_correlation"].difference == pytest.approx(0.0)
    alone = evaluate_dataset(Seen(), Memory(several()))
    assert alone.comparison is None and alone.metrics[MODEL].success_auroc == found.metrics[MODEL].success_auroc


def test_a_model_is_named_by_its_class_or_by_where_it_came_from():
    data = Memory(several())
    assert evaluate_dataset(Seen(), data).model["class_path"].endswith("Seen")
    found = evaluate_dataset(OpenedModel(reward=Seen(), identity={"hash": "abc"}), data, against=Timid())
    assert found.model == {"hash": "abc"} and found.data == "memory" and found.version
    assert found.comparison is not None and found.comparison.model["class_path"].endswith("Timid")


def test_model_and_data_may_be_folders(tmp_path):
    with LeRobotWriter(tmp_path / "data", 10.0, robot_type="arm") as writer:
        for each in several():
            writer.add(each)
    for name in ("first", "second"):
        save_component(
            ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=1, heads=2)), tmp_path / name
        )
    found = evaluate_dataset(str(tmp_path / "first"), tmp_path / "data", against=tmp_path / "second")
    assert found.data == str(tmp_path / "data") and found.counts["episodes"] == 6
    reward, identity = open_reward_model(tmp_path / "first", "cpu")
    assert found.model == identity and found.comparison is not None
    assert found.comparison.model["path"] == str(tmp_path / "second")
    opened = evaluate_dataset(reward, open_dataset(tmp_path / "data"))
    assert opened.to_json()["figures"] == found.to_json()["figures"]
    with pytest.raises(FileNotFoundError):
        evaluate_dataset(tmp_path / "third", tmp_path / "data")


def test_the_command_compares_and_the_report_draws_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, part in (("one", several()[0::2]), ("two", several()[1::2])):
        with LeRobotWriter(tmp_path / name, 10.0, robot_type="arm") as writer:
            for each in part:
                writer.add(each)
    for name in ("first", "second"):
        save_component(
            ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=1, heads=2)), tmp_path / name
        )
    both = ["--data", "one", "--also", "two", "--batch-size", "4"]
    more = ["--against", "second", "--threshold", "0.4", "--quality-order", "aborted,expert", "--confusion", "1"]
    assert main(["evaluate", "--model", "first", *both, *more, "--json", "figures.json"]) == 0
    shown = capsys.readouterr().out
    assert "against second" in shown and "false positives at 0.4" in shown and max(map(len, shown.splitlines())) <= 100
    told = json.loads((tmp_path / "figures.json").read_text())
    assert told["counts"]["tasks"] == 2 and told["threshold"] == 0.4
    assert told["comparison"]["model"]["path"] == "second" and told["comparison"]["episodes"] == 6
    assert main(["score", "--model", "first", "--data", "one", "--out", "scores"]) == 0
    assert main(["report", "--scores", "scores", "--out", "page.html", "--evaluation", "figures.json"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "reliability diagram" in page and "Instructions and videos" in page and "Against second" in page
    assert main(["evaluate", "--model", "second", *both, "--json", "other.json"]) == 0
    capsys.readouterr()
    assert main(["report", "--scores", "scores", "--out", "page.html", "--evaluation", "other.json"]) == 2
    assert "is about model" in capsys.readouterr().err
    assert main(["evaluate", "--model", "first", *both, "--quality-order", "best"]) == 2
    assert "none of the qualities best occurs" in capsys.readouterr().err
