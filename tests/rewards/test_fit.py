import warnings
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.core.hub import load_component
from guerdon.core.sizes import DataSizes
from guerdon.datasets.episodes import ArrayFrames, Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.fit import RewardTraining, check_outcomes
from guerdon.rewards.milestones.reward import MilestoneReward
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedReward
from guerdon.rewards.success import SuccessReward
from guerdon.testing import tiny_clip


def reach(index, rng, camera=False):
    steps = 12 + index % 5
    start, goal = rng.uniform(-1, 1, (2, 2))
    good = index % 3 != 2
    t = np.linspace(0, 1 if good else 0.4, steps + 1)[:, None]
    state = np.concatenate([start + (goal - start) * t, np.broadcast_to(goal, (steps + 1, 2))], 1).astype(np.float32)
    pixels = np.zeros((steps + 1, 3, 16, 16), np.uint8)
    pixels[:] = (t * 255).astype(np.uint8)[..., None, None]
    return Episode(
        index=index,
        state=state,
        actions=np.diff(state[:, :2], axis=0),
        instruction=("reach up", "push down")[index % 2],
        task=index % 2,
        end=End.SUCCESS if good else End.TIME_LIMIT,
        success=float(good),
        frames={"front": ArrayFrames(values=pixels, step=np.arange(steps + 1))} if camera else {},
    )


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "reach"
    with LeRobotWriter(path, fps=10) as writer:
        for i in range(72):
            writer.add(reach(i, rng, camera=True))
    return str(path)


def trainer(tmp_path, **more):
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return lightning.Trainer(**(settings | more))


def run(trainer, module, data, **more):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*number of training batches")
        warnings.filterwarnings("ignore", ".*in eval mode")  # a frozen encoder stays so
        trainer.fit(module, datamodule=data, **more)
    return trainer


@pytest.mark.slow
def test_training_lowers_the_validation_loss_and_orders_time(data_path, tmp_path):
    model = ProgressReward(state_size=4, bins=15, observer=ObservationEncoder(width=32, layers=0))
    module = RewardTraining(model, learning_rate=3e-3, schedule="cosine", warmup_steps=5)
    # without text a wrong instruction could not be told
    data = EpisodeData(
        data_path, batch_size=12, repeats=4, val_fraction=0.3, labels=LabelFactory(wrong_instruction=0.0)
    )
    first = run(trainer(tmp_path, max_epochs=1), module, data).callback_metrics
    before = float(first["val_loss"])
    assert model.normalised and float(model.observer.state_count) > 100
    last = run(trainer(tmp_path, max_epochs=6), module, data).callback_metrics
    assert float(last["val_loss"]) < before - 0.3
    assert float(last["val_value_order"]) > 0.9
    assert {"train_progress_loss", "train_success_positives", "val_progress_error"} <= set(last)


@pytest.mark.slow
def test_frames_and_text_train_and_the_model_is_shared(data_path, tmp_path):
    encoder = ConvEncoder(width=8, channels=(4, 8), size=8)
    model = ProgressReward(
        observer=ObservationEncoder(
            cameras=["front"], encoder=encoder, text=HashedText(8, 32), width=16, layers=1, heads=2
        )
    )
    data = EpisodeData(data_path, cameras=["front"], frame_count=4, batch_size=8, val_fraction=0.2)
    before = [p.detach().clone() for p in encoder.parameters()]
    run(trainer(tmp_path, max_steps=3), RewardTraining(model), data)
    assert any(not torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    model.save_pretrained(tmp_path / "model")
    batch = next(iter(data.val_dataloader()))
    model.eval()
    with torch.no_grad():
        again = ProgressReward.from_pretrained(tmp_path / "model")(batch)
        assert torch.allclose(model(batch).rewards, again.rewards, atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_goes_on_where_it_was(data_path, tmp_path):
    def fresh():
        torch.manual_seed(3)
        model = ProgressReward(state_size=4, observer=ObservationEncoder(width=16, layers=1, heads=2))
        return RewardTraining(model, warmup_steps=3), EpisodeData(data_path, batch_size=8, val_fraction=0.2)

    whole, data = fresh()
    run(trainer(tmp_path, max_epochs=2), whole, data)
    half, data = fresh()
    run(trainer(tmp_path, max_epochs=1), half, data).save_checkpoint(tmp_path / "half.ckpt")
    resumed, data = fresh()
    run(trainer(tmp_path, max_epochs=2), resumed, data, ckpt_path=tmp_path / "half.ckpt")
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name


@pytest.mark.slow
def test_what_cannot_be_trained_is_refused(data_path, tmp_path):
    data = EpisodeData(data_path)
    with pytest.raises(ValueError, match="RecordedReward has nothing to train"):
        run(trainer(tmp_path, max_steps=1), RewardTraining(RecordedReward()), data)
    with pytest.raises(ValueError, match="precision bf16-true would cut"):
        run(trainer(tmp_path, max_steps=1, precision="bf16-true"), RewardTraining(SuccessReward(state_size=4)), data)
    with pytest.raises(ValueError, match="learning_rate 0"):
        RewardTraining(SuccessReward(state_size=4), learning_rate=0.0)


class SizedData(lightning.LightningDataModule):
    """A few labelled rows, and how wide their states and actions are."""

    def __init__(self, states=4, actions=2):
        super().__init__()
        self.sizes = DataSizes(name="data/sized", state_size=states, action_size=actions)

    def val_dataloader(self):
        return self.train_dataloader()

    def train_dataloader(self):
        batch = TrajectoryBatch(
            state=torch.randn(3, 6, self.sizes.state_size),
            actions=torch.randn(3, 5, self.sizes.action_size),
            mask=torch.ones(3, 5, dtype=torch.bool),
            labels={"progress": Labelled(values=torch.rand(3, 6), valid=torch.ones(3, 6, dtype=torch.bool))},
        )
        rows: Any = [batch]
        return DataLoader(rows, batch_size=None)


@pytest.mark.parametrize("wrapped", [False, True])
def test_sizes_that_a_model_lacks_come_from_the_data(tmp_path, wrapped):
    member = ProgressReward(observer=ObservationEncoder(width=8, layers=1, heads=2))
    module = RewardTraining(EnsembleReward(member, size=2) if wrapped else member)
    run(trainer(tmp_path, max_steps=1), module, SizedData())
    assert member.state_size == 4 and module.reward.normalised
    module.reward.save_pretrained(tmp_path / "model")
    loaded: Any = load_component(tmp_path / "model")
    assert loaded.inputs.state_size == 4


def test_actions_that_a_model_reads_are_as_wide_as_those_of_the_data(tmp_path):
    model = MilestoneReward()
    run(trainer(tmp_path, max_steps=1), RewardTraining(model), SizedData(actions=3))
    assert (model.state_size, model.action_size) == (4, 3)


def test_another_size_than_that_of_the_data_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"ProgressReward has state_size 7, and the states of data/sized are 4 wide"):
        run(trainer(tmp_path, max_steps=1), RewardTraining(ProgressReward(state_size=7)), SizedData())


def test_a_model_that_lacks_a_size_nobody_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"SuccessReward is not built yet, SuccessReward\.state_size"):
        loader = SizedData().train_dataloader()
        trainer(tmp_path, max_steps=1).fit(RewardTraining(SuccessReward()), loader, loader)


@pytest.mark.slow
def test_a_model_for_another_robot_is_refused(data_path, tmp_path):
    with pytest.raises(ValueError, match=r"ProgressReward has state_size 7, and the states of .* are 4 wide"):
        run(trainer(tmp_path, max_steps=1), RewardTraining(ProgressReward(state_size=7)), EpisodeData(data_path))


@pytest.mark.slow
def test_bf16_mixed_works(data_path, tmp_path):
    module = RewardTraining(SuccessReward(state_size=4, observer=ObservationEncoder(layers=0, width=16)))
    data = EpisodeData(data_path, batch_size=8)
    found = run(trainer(tmp_path, max_steps=2, precision="bf16-mixed"), module, data).callback_metrics
    assert np.isfinite(float(found["val_loss"])) if "val_loss" in found else True
    assert np.isfinite(float(found["train_loss"]))


@pytest.mark.slow
def test_a_frozen_clip_encoder_is_embedded_once_and_travels_by_name(data_path, tmp_path):
    from guerdon.backbones.openai_clip import ClipEncoder, ClipText  # openai-clip takes seconds to import
    from guerdon.scoring.dataset import score_dataset
    from guerdon.scoring.scores import read_scores

    checkpoint = str(tiny_clip(tmp_path / "clip.pt"))
    encoder, text = ClipEncoder(checkpoint), ClipText(checkpoint)
    model = ProgressReward(
        observer=ObservationEncoder(cameras=["front"], encoder=encoder, text=text, width=16, layers=1, heads=2)
    )
    cache = str(tmp_path / "cache")
    data = EpisodeData(data_path, cameras=["front"], encoder=encoder, cache=cache, batch_size=16, val_fraction=0.2)
    run(trainer(tmp_path, max_steps=2), RewardTraining(model), data)
    assert not next(iter(data.train_dataloader())).frames
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 100_000  # no CLIP weights inside
    embedded = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npy")}
    quiet = {"device": "cpu", "progress_bar": False}
    with_cache = score_dataset(str(tmp_path / "model"), data_path, tmp_path / "a", cache=cache, **quiet)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npy")} == embedded
    without = score_dataset(str(tmp_path / "model"), data_path, tmp_path / "b", **quiet)
    one, other = (read_scores(r.path).episodes[0].progress for r in (with_cache, without))
    assert np.allclose(one, other, atol=5e-3)  # half precision in the cache


def test_failures_alone_are_refused_and_successes_alone_are_told():
    with pytest.raises(ValueError, match=r"no training episode is a success \(7 failure, 2 partial\)"):
        check_outcomes({"failure": 7, "partial": 2}, LabelFactory())
    with pytest.raises(ValueError, match="set assume_success"):
        check_outcomes({"unknown": 3}, LabelFactory())
    with pytest.warns(UserWarning, match="all 4 training episodes are successes"):
        check_outcomes({"success": 4}, LabelFactory())
    for outcomes, labels in (
        ({"success": 4, "failure": 1}, LabelFactory()),
        ({"unknown": 3}, LabelFactory(assume_success=True)),
        ({"failure": 3, "labelled": 1}, LabelFactory()),
        ({"failure": 3}, LabelFactory(progress="return_to_go", horizon=9)),
        ({"failure": 7, "partial": 2}, LabelFactory(partial_success=True)),  # a target at the end of each partial one
    ):
        check_outcomes(outcomes, labels)


def test_training_on_failures_alone_stops_before_the_first_update(tmp_path):
    with LeRobotWriter(tmp_path / "failed", fps=10) as writer:
        for index in range(3):
            state = np.zeros((5, 2), np.float32)
            writer.add(Episode(index=index, state=state, actions=np.zeros((4, 1), np.float32), success=0.0))
    module = RewardTraining(ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=0)))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(ValueError, match=r"no training episode is a success \(3 failure\)"):
        trainer.fit(module, datamodule=EpisodeData(str(tmp_path / "failed"), val_fraction=0.0))
