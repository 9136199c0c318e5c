"""The success of a policy on logged data is played, not read from the log."""

from typing import Any
from unittest import mock

import lightning
import pytest
import torch
from torch import nn

from guerdon.core.batch import Decision
from guerdon.core.interfaces import Policy
from guerdon.core.sizes import DataSizes
from guerdon.policies.rollouts import setting as setting_module
from guerdon.policies.rollouts.played_success import PlayedSuccess

from .small_tasks import Corridor, building

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning"),
]


class Walk(Policy):
    horizon = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def act(self, observation, deterministic=False, generator=None):
        assert deterministic and not self.training
        torch.rand(1)  # whatever is drawn here must not change training
        return Decision(
            chunk=torch.zeros(len(observation), 1, 1), executed=torch.ones(len(observation), dtype=torch.long)
        )


class Learner(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.policy, self.drawn = Walk(), []

    def training_step(self, batch, index):
        assert self.policy.training
        self.drawn.append(float(torch.rand(())))
        return self.policy.weight * 1.0

    def validation_step(self, batch, index):
        self.log("data_success", 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Logged(lightning.LightningDataModule):
    def __init__(self, validated=True, state_size=2):
        super().__init__()
        self.validated = validated
        self.sizes = DataSizes(name="data/logs", state_size=state_size, action_size=1)

    def train_dataloader(self):
        data: Any = [0.0, 1.0]
        return torch.utils.data.DataLoader(data)

    def val_dataloader(self):
        return self.train_dataloader() if self.validated else []


def train(callbacks, epochs=2, validated=True, **more: Any):
    learner = Learner()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_model_summary=False, callbacks=callbacks, **quiet
    )
    torch.manual_seed(0)
    with mock.patch.object(setting_module, "make_task", lambda *_: Corridor()), building(lambda name: Corridor()):
        trainer.fit(learner, datamodule=Logged(validated, **more))
    return trainer, learner


@pytest.mark.parametrize("validated", [True, False])
def test_the_policy_is_played_on_held_out_starts(validated):
    trainer, _ = train([PlayedSuccess("test/corridor", episodes=6, envs=2)], validated=validated)
    # of the held-out starts none is number 3 or 5, which succeed
    assert float(trainer.callback_metrics["val_success"]) == 0
    assert float(trainer.callback_metrics["val_episodes"]) == 6
    assert ("data_success" in trainer.callback_metrics) is validated


def test_starts_of_the_training_split_succeed_where_they_should():
    trainer, _ = train([PlayedSuccess("test/corridor", episodes=6, envs=2, split="train")])
    assert float(trainer.callback_metrics["val_success"]) == pytest.approx(2 / 6)  # numbers 3 and 5


def test_training_draws_what_it_draws_without_it():
    _, with_it = train([PlayedSuccess("test/corridor", episodes=2, envs=2)])
    _, without = train([])
    assert with_it.drawn == without.drawn


def test_a_task_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match=r"test/corridor has states of 2 .* data/logs of 39 and 1: give PlayedSuccess"):
        train([PlayedSuccess("test/corridor", episodes=2, envs=2)], state_size=39)


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"envs": 0}])
def test_no_episode_is_refused(wrong):
    with pytest.raises(ValueError, match="expected at least 1 each"):
        PlayedSuccess("test/corridor", **wrong)
