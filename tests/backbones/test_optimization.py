"""Optimizers as objects: clipped gradient steps, AdamW's groups, the warm-up and the schedule."""

from typing import Any

import lightning
import pytest
import torch
from torch import nn

from guerdon.backbones.optimization import ClippedGradients, ScheduledAdamW


class Line(lightning.LightningModule):
    """One weight, pulled up with a given slope; each step is clipped by hand."""

    def __init__(self, slope, settings):
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.zeros(3, 4))
        self.idle = nn.Parameter(torch.zeros(2))
        self.slope, self.settings, self.norms = slope, settings, []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def training_step(self, batch, index):
        self.norms.append(float(self.settings.backward(self, self.slope * self.weight[0, 0], f"in step {index}")))
        optimizer: Any = self.optimizers()
        optimizer.step()

    def train_dataloader(self):
        data: Any = [0.0, 0.0]
        return torch.utils.data.DataLoader(data, num_workers=0)


def run(module):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=1, enable_model_summary=False, **quiet)
    trainer.fit(module)
    return module


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
def test_a_long_gradient_is_scaled_down_to_the_norm_and_a_short_one_is_left_alone():
    for slope, step in ((8.0, 0.5), (0.25, 0.25)):
        module = run(Line(slope, ClippedGradients(learning_rate=1.0, max_grad_norm=0.5)))
        assert module.norms == [slope, slope]
        assert float(module.weight[0, 0].detach()) == pytest.approx(-2 * step, rel=1e-4)
        assert int(module.weight.count_nonzero()) == 1 and not module.idle.any()


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*number of training batches")
@pytest.mark.parametrize("slope", [torch.nan, torch.inf])
def test_a_gradient_that_is_no_number_names_the_step(slope):
    with pytest.raises(FloatingPointError, match=r"the gradient became (nan|inf) in step 0: lower the learning rate"):
        run(Line(slope, ScheduledAdamW()))


def test_biases_and_norms_are_not_decayed_and_frozen_weights_are_left_out():
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    network[2].requires_grad_(False)
    made = ScheduledAdamW(learning_rate=0.1, weight_decay=0.5, betas=(0.8, 0.9)).make(network.parameters())
    decayed, other = made.param_groups
    assert [p.shape for p in decayed["params"]] == [(3, 2)] and decayed["weight_decay"] == 0.5
    assert [p.shape for p in other["params"]] == [(3,)] * 3 and other["weight_decay"] == 0.0
    assert all(group["lr"] == 0.1 and group["betas"] == (0.8, 0.9) for group in (decayed, other))


def test_the_warm_up_rises_evenly_and_stays():
    settings = ScheduledAdamW(warmup_steps=4)
    assert [settings.factor(update, 0) for update in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert settings.scheduled and not ScheduledAdamW(warmup_steps=0).scheduled


def test_the_cosine_falls_from_the_end_of_the_warm_up_to_the_last_update():
    settings = ScheduledAdamW(warmup_steps=2, schedule="cosine")
    found = [settings.factor(update, 10) for update in range(12)]
    assert found[2] == 1.0 and found[6] == pytest.approx(0.5) and found[10] == pytest.approx(0.0)
    assert found[3:11] == sorted(found[3:11], reverse=True) and found[11] == pytest.approx(0.0)
    assert ScheduledAdamW(warmup_steps=0, schedule="cosine").scheduled


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"max_grad_norm": 0.0},
        {"weight_decay": -0.1},
        {"warmup_steps": -1},
        {"schedule": "linear"},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=r"expected|Expected type"):
        ScheduledAdamW(**wrong)
