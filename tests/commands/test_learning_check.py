"""A run that changes no weight ends with an error that says why, and saves nothing; through the real command."""

from typing import Any

import lightning
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from guerdon.cli import main
from guerdon.commands.learning_check import LearningCheck, NothingLearnedError, trained_component
from guerdon.core.hub import load_component
from guerdon.rewards.step_cost import StepCost

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]


@pytest.mark.parametrize("own", ["reach", "push"])
def test_costs_of_another_task_save_no_model(here, tmp_path, error_line, own):
    """The score learns from pairs of a success and a failure; without costs for an instruction there is none."""
    arguments = ["fit", "--config", "grape_score", "--data.init_args.path", str(here / "train"), "--out", "run"]
    arguments += ["--trainer.max_epochs", "2", "--data.init_args.val_fraction", "0"]
    if own == "reach":
        assert main([*arguments, "--model.init_args.reward.init_args.costs", '["mujoco/reach"]']) == 0
        assert (tmp_path / "run/model").is_dir()
        return
    assert main(arguments) == 2
    line = error_line()
    assert "GrapeScore learned nothing" in line and "pairs: 0" in line and "no costs for the instruction" in line
    assert list(tmp_path.iterdir()) == []


class Learner(lightning.LightningModule):
    """Its component's weight gets this gradient, and so does a weight beside it."""

    def __init__(self, mine, other):
        super().__init__()
        self.reward = torch.nn.Module()
        self.reward.weight = torch.nn.Parameter(torch.zeros(()))
        self.beside = torch.nn.Parameter(torch.zeros(()))
        self.mine, self.other = mine, other

    def training_step(self, batch, index):
        return self.mine[index] * self.reward.weight + self.other[index] * self.beside

    def train_dataloader(self):
        data: Any = [0.0, 1.0]
        return DataLoader(data, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Later(Learner):
    """It learns in its first epoch only."""

    def training_step(self, batch, index):
        return super().training_step(batch, index) * float(self.current_epoch == 0)


class Stopping(lightning.Callback):
    """Asks for a stop in the first batch, as a guard does that restored older weights."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = True


def train(monkeypatch, mine, other=(0.0, 0.0), kind=Learner, others=(), ckpt_path=None, keep=None, **more: Any):
    check, learner = LearningCheck(), kind(mine, other)
    monkeypatch.setattr("guerdon.commands.learning_check.trained_component", lambda module: module.reward)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"max_epochs": 2, "enable_model_summary": False} | more
    trainer = lightning.Trainer(accelerator="cpu", callbacks=[*others, check], **quiet)
    trainer.fit(learner, ckpt_path=ckpt_path)
    if keep is not None:
        trainer.save_checkpoint(keep)
    return check


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")
class TestLearningCheck:
    """With a trainer."""

    def test_an_epoch_without_any_change_is_refused(self, monkeypatch):
        with pytest.raises(NothingLearnedError, match=r"an epoch of 2 batches changed no weight.*nothing was saved"):
            train(monkeypatch, (0.0, 0.0))

    def test_a_later_epoch_without_a_change_is_warned_about_once(self, monkeypatch, capsys):
        train(monkeypatch, (1.0, 0.0), kind=Later, max_epochs=4)
        said = capsys.readouterr().err
        assert said.count("an epoch of 2 batches changed no weight") == 1 and "learned before is kept" in said

    @pytest.mark.filterwarnings("ignore:.*Be aware that when using `ckpt_path`:UserWarning")
    def test_a_resumed_run_has_learned_before(self, monkeypatch, capsys, tmp_path):
        train(monkeypatch, (1.0, 0.0), max_epochs=1, keep=tmp_path / "one.ckpt")
        capsys.readouterr()
        train(monkeypatch, (0.0, 0.0), max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
        assert "changed no weight" in capsys.readouterr().err

    def test_a_run_that_was_asked_to_stop_is_kept(self, monkeypatch, capsys):
        train(monkeypatch, (0.0, 0.0), others=[Stopping()])
        assert "changed no weight" in capsys.readouterr().err

    @pytest.mark.parametrize("mine", [(1.0, 0.0), (0.0, 1.0), (1.0, -1.0)])
    def test_one_change_is_enough_even_if_it_is_undone(self, monkeypatch, mine):
        assert not train(monkeypatch, mine).component_unchanged

    def test_a_component_that_stayed_as_it_was_is_told_from_one_that_learned(self, monkeypatch):
        assert train(monkeypatch, (0.0, 0.0), (1.0, 1.0)).component_unchanged

    def test_a_trial_run_may_change_nothing(self, monkeypatch):
        train(monkeypatch, (0.0, 0.0), fast_dev_run=1)


def test_the_component_of_a_module():
    class Trains(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.reward = StepCost()

    module = Trains()
    assert trained_component(module) is module.reward
    with pytest.raises(ValueError, match="has no component to save"):
        trained_component(torch.nn.Linear(1, 1))


def test_a_policy_that_was_frozen_throughout_is_saved_with_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {
            "class_path": "guerdon.PolicyOptimizer",
            "init_args": {
                "policy": {"class_path": "guerdon.GaussianPolicy", "init_args": {"horizon": 1, "execute": 1}},
                "advantage": {
                    "class_path": "guerdon.RewardToGo",
                    "init_args": {"reward": "guerdon.RecordedReward", "critic": "guerdon.ValueCritic"},
                },
                "objective": "guerdon.ClippedSurrogate",
                "passes": 1,
                "freeze_policy_batches": 9,
            },
        },
        "data": {
            "class_path": "guerdon.RolloutData",
            "init_args": {"task": "mujoco/reach", "steps": 60, "rollouts": 1, "envs": 2, "horizon": 20}
            | {"contexts": 4, "eval_contexts": 0},
        },
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "ppo.yaml", "--out", "run"]) == 0
    assert "no weight of GaussianPolicy was changed" in capsys.readouterr().err
    assert load_component(tmp_path / "run/model") is not None
