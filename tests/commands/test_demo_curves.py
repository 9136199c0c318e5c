"""Progress lines and learning curves of the demo, with a real trainer."""

import io
from typing import Any

import lightning
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from guerdon.commands.demo_curves import ProgressLine, SuccessCurve, draw_curves


class Learner(lightning.LightningModule):
    """Logs a loss of 0.25, and a success that grows by 0.25 with every validation."""

    def __init__(self):
        super().__init__()
        self.weight, self.validations = torch.nn.Parameter(torch.zeros(())), 0
        self.automatic_optimization = False

    def training_step(self, batch, index):
        self.log("loss", 0.25, prog_bar=True)

    def validation_step(self, batch, index):
        self.validations += 1
        self.log("val_success", 0.25 * self.validations)

    def configure_optimizers(self):
        return None


class Steps(lightning.LightningDataModule):
    """Two batches an epoch; every training batch stands for 50 environment steps."""

    env_steps = 0

    def train_dataloader(self):
        data: Any = [0.0, 1.0]
        return DataLoader(data, batch_size=1)

    def val_dataloader(self):
        data: Any = [0.0]
        return DataLoader(data, batch_size=1)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.env_steps += 50 if self.trainer.training else 0
        return batch


@pytest.fixture
def fit():
    def run(callback):
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", num_sanity_val_steps=0, callbacks=[callback], **quiet,
            enable_progress_bar=False, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(Learner(), datamodule=Steps())

    return run


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")  # hints about loader workers
@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")
def test_a_progress_line_counts_batches_and_shows_the_metrics_that_are_known(fit):
    text = io.StringIO()
    fit(ProgressLine(Console(file=text, width=100, force_terminal=True), "reward model", ("loss", "reward_per_row")))
    shown = text.getvalue()
    assert "reward model" in shown and "6/6" in shown and "loss=0.250" in shown and "reward_per_row" not in shown


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")
def test_a_curve_has_a_point_for_every_validation(fit):
    points = []
    fit(SuccessCurve(points))
    assert points == [(100, 0.25), (200, 0.5), (300, 0.75)]


def test_curves_are_drawn_with_and_without_points(tmp_path):
    for name, curves in (("full", {"learned": [(100, 0.5), (200, 0.75)], "sparse": []}), ("empty", {})):
        draw_curves(tmp_path / f"{name}.png", "mujoco/reach", 0.25, curves)
    full, empty = ((tmp_path / f"{name}.png").read_bytes() for name in ("full", "empty"))
    assert full.startswith(b"\x89PNG") and empty.startswith(b"\x89PNG") and full != empty
    assert len(list(tmp_path.iterdir())) == 2
