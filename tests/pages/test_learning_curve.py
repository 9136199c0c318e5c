"""The learning curve of a run on rollouts: logged, recorded, drawn, resumed; through a trainer and `guerdon fit`."""

import csv
import json
import math
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from guerdon.cli import main
from guerdon.critics.value import ValueCritic
from guerdon.evaluation.learning_curve import LearningRecord, SuccessPoint, read_learning_record
from guerdon.pages.learning_curve import LearningCurve, draw_learning_curve
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts.data import RolloutData
from guerdon.rewards.recorded import RecordedReward

pytestmark = pytest.mark.slow


def module():
    policy = GaussianPolicy(12, 3)
    return PolicyOptimizer(policy, RewardToGo(RecordedReward(), ValueCritic(12)), ClippedSurrogate(), passes=1)


def data(**more: Any):
    given: dict[str, Any] = {"steps": 60, "rollouts": 4, "envs": 2, "horizon": 20, "contexts": 4, "eval_contexts": 3}
    return RolloutData("mujoco/reach", **(given | more))


def train(folder, curve, epochs=1, resume=None, **more: Any):
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    keep = ModelCheckpoint(dirpath=folder / "kept", save_last=True)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", val_check_interval=2, log_every_n_steps=1, default_root_dir=folder,
        callbacks=[curve, keep], **(quiet | more),
    )  # fmt: skip
    learner = module()
    trainer.fit(learner, datamodule=data(), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("checked", [0, 2])
def test_a_run_records_every_rollout_and_validation_and_the_start_policy(tmp_path, checked):
    curve = LearningCurve()
    trainer = train(tmp_path, curve, num_sanity_val_steps=checked)
    record = read_learning_record(tmp_path)
    assert record is not None and record.tasks == ("mujoco/reach",)
    assert record.start is not None and (record.start.env_steps, record.start.episodes) == (0, 3)
    steps = [r["env_steps"] for r in record.rollouts]
    assert len(steps) == 4 and steps == sorted(set(steps)) and steps[0] >= 60
    assert [point.env_steps for point in record.validations] == [steps[1], steps[3]]
    assert all(point.episodes == 3 for point in record.validations)
    last = record.rollouts[-1]
    assert last["episode_length"] == 20 and last["episodes"] >= 2 and last["frames_per_second"] > 0
    assert last["episode_return"] == pytest.approx(last["env_return"], rel=1e-4)  # it learns from that reward
    assert math.isfinite(last["kl"])
    assert float(trainer.callback_metrics["env_steps"]) == steps[-1]
    assert float(trainer.callback_metrics["val_episodes"]) == 3
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_start_policy_is_the_one_before_the_first_update(tmp_path, monkeypatch):
    seen: list[float] = []
    play = RolloutData.val_dataloader

    def noted(self):
        seen.append(float(self.trainer.lightning_module.batches_seen))
        return play(self)

    monkeypatch.setattr(RolloutData, "val_dataloader", noted)
    train(tmp_path, LearningCurve(), num_sanity_val_steps=0)
    assert seen[0] == 0


def test_the_callback_changes_no_weight(tmp_path):
    ends: list[dict[str, torch.Tensor]] = []
    arms: dict[str, list[lightning.Callback]] = {"with": [LearningCurve()], "without": []}
    for name, callbacks in arms.items():
        torch.manual_seed(0)
        learner = module()
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        lightning.Trainer(
            max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, enable_checkpointing=False, callbacks=callbacks,
            default_root_dir=tmp_path / name, **quiet,
        ).fit(learner, datamodule=data())  # fmt: skip
        ends.append(learner.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # that is what resuming does
def test_a_resumed_run_continues_its_curve_and_keeps_the_start_policy(tmp_path):
    train(tmp_path, LearningCurve())
    first = read_learning_record(tmp_path)
    assert first is not None
    train(tmp_path, LearningCurve(), epochs=2, resume=tmp_path / "kept" / "last.ckpt")
    second = read_learning_record(tmp_path)
    assert second is not None and second.start == first.start
    assert second.to_json()["rollouts"][:4] == first.to_json()["rollouts"]
    assert len(second.rollouts) == 8 and second.validations[:2] == first.validations and len(second.validations) == 4
    assert second.rollouts[4]["env_steps"] > second.rollouts[3]["env_steps"]


def test_data_that_are_not_played_are_refused():
    class Logged(lightning.LightningDataModule):
        def train_dataloader(self):
            return []

    trainer: Any = lightning.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer._data_connector.attach_datamodule(module(), datamodule=Logged())
    with pytest.raises(TypeError, match="plays rollouts, such as RolloutData, got Logged"):
        LearningCurve().on_fit_start(trainer, module())


def test_pictures_of_little_and_of_much(tmp_path):
    point = SuccessPoint(env_steps=100, successes=3, episodes=4)
    full = LearningRecord(
        tasks=tuple("abcdef"),
        start=SuccessPoint(env_steps=0, successes=0, episodes=4),
        rollouts=[{"env_steps": 100.0, "episode_success": 0.5, "kl": 0.1, "episode_return": 2.0, "env_return": 1.0}],
        validations=[point],
    )
    empty = LearningRecord()
    no_start = LearningRecord(tasks=("a",), validations=[point])
    for name, record in (("full", full), ("empty", empty), ("no_start", no_start)):
        draw_learning_curve(tmp_path / f"{name}.png", record)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


CONFIG = """
model:
  class_path: guerdon.PolicyOptimizer
  init_args:
    policy: {class_path: guerdon.GaussianPolicy, init_args: {horizon: 1, execute: 1}}
    advantage:
      class_path: guerdon.RewardToGo
      init_args: {reward: guerdon.RecordedReward, critic: guerdon.ValueCritic}
    objective: guerdon.ClippedSurrogate
    passes: 1
data:
  class_path: guerdon.RolloutData
  init_args: {task: mujoco/reach, steps: 60, rollouts: 3, envs: 2, horizon: 20, contexts: 4, eval_contexts: 3}
trainer: {accelerator: cpu, max_epochs: 1, val_check_interval: 3, enable_progress_bar: false}
"""


def test_fit_on_rollouts_logs_every_rollout_and_inspect_shows_the_curve(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ppo.yaml").write_text(CONFIG)
    assert main(["fit", "--config", "ppo.yaml", "--out", "run"]) == 0
    with (tmp_path / "run/logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["env_steps"]]) == 3
    assert [row["start_episodes"] for row in rows if row["start_success"]] == ["3"]
    assert len(json.loads((tmp_path / "run/curves.json").read_text())["rollouts"]) == 3
    capsys.readouterr()
    assert main(["inspect", "run"]) == 0
    shown = capsys.readouterr().out
    assert "start policy" in shown and "of 3 held-out starts" in shown and "last validation" in shown


def test_a_callback_and_an_interval_of_the_configuration_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(CONFIG)
    own = {"class_path": "guerdon.pages.learning_curve.LearningCurve", "init_args": {"folder": "elsewhere"}}
    config["trainer"] |= {"callbacks": [own], "log_every_n_steps": 2}
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "ppo.yaml", "--out", "run"]) == 0
    assert (tmp_path / "elsewhere/curves.json").is_file() and not (tmp_path / "run/curves.json").exists()
    with (tmp_path / "run/logs/version_0/metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["env_steps"]]) == 1
