"""Progress and learning curves of the demo."""

from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..core.files import replacing


class ProgressLine(lightning.Callback):
    """Progress of a training run in one line, with some of its metrics.

    Args:
        console: Console to print on.
        title: Name of the run.
        shown: Names of the metrics that are shown.
    """

    def __init__(self, console: Console, title: str, shown: tuple[str, ...]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[metrics]}"), console=console)
        self._title, self._shown = title, shown
        self._task: TaskID | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the line."""
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self._progress.start()
        self._task = self._progress.add_task(self._title, total=total, metrics="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the line by a batch."""
        assert self._task is not None
        known = trainer.callback_metrics
        metrics = " ".join(f"{k}={float(known[k]):.3f}" for k in self._shown if k in known)
        self._progress.update(self._task, advance=1, metrics=metrics)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Finish the line."""
        self._progress.stop()


class SuccessCurve(lightning.Callback):
    """Record of success on held-out initial states against environment steps.

    Args:
        points: Filled with (environment steps, success rate) at every validation.
    """

    def __init__(self, points: list[tuple[int, float]]) -> None:
        self._points = points

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Record a point."""
        data = cast(Any, trainer).datamodule
        self._points.append((data.env_steps, float(trainer.callback_metrics["val_success"])))


def draw_curves(path: Path, task: str, start: float, curves: dict[str, list[tuple[int, float]]]) -> None:
    """Draw success on held-out initial states against environment steps.

    Args:
        path: PNG file to write.
        task: Name of the task, for the title.
        start: Success rate of the cloned policy, in [0, 1].
        curves: Name of a reward → points (environment steps, success rate).
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(start, color="0.6", linestyle="--", label="cloned")
    for name, points in curves.items():
        if points:
            steps, success = np.array([(0, start), *points]).T
            axes.plot(steps, success, marker="o", label=name)
    axes.set(xlabel="environment steps", ylabel="success on held-out starts", ylim=(0, 1.03), title=task)
    axes.legend()
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=120, format="png")
