"""Learning curve of a policy on rollouts: a callback that logs it, and its picture."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ..core.batch import TrajectoryBatch
from ..core.files import replacing
from ..evaluation.learning_curve import LearningRecord, SuccessPoint, count_successes, ended_totals
from ..evaluation.watch.rollouts import gather

PICTURE = "curves.png"
"""Name of the picture of a learning curve, in the run directory."""
_PANELS = {
    "episode_return": "return (reward of training)",
    "env_return": "return (environment)",
    "episode_length": "episode length (control steps)",
    "kl": "KL divergence of the update",
    "explained_variance": "explained variance",
    "frames_per_second": "environment steps per second",
}
"""Metrics of rollouts that are drawn where they are known, with the label of their axis."""


@runtime_checkable
class PlaysRollouts(Protocol):
    """A data module that plays rollouts and counts their steps, such as `guerdon.RolloutData`."""

    env_steps: int
    """Number of environment steps on this process."""

    def val_dataloader(self) -> Any:
        """Make the stream of episodes from held-out starts."""
        ...


class LearningCurve(lightning.Callback):
    """Log, record and draw the learning curve of a policy that is trained on rollouts.

    At every rollout it logs ``env_steps``, ``frames_per_second`` (environment steps per second of acting and learning,
    validation excluded), and the means over the episodes that ended in the rollout: ``episode_length``,
    ``episode_success`` (also where the outcome is hidden from training; with groups that of all episodes that were
    played, rejected ones too) and ``env_return`` (where it is not hidden).
    `guerdon.PolicyOptimizer` logs ``episode_return``, of the reward it learns from. At every validation it logs
    ``val_episodes``. The start policy is played once on the held-out starts, before the first update, and logged as
    ``start_success``.

    At every validation and at the end the numbers are written to ``curves.json``, and drawn in ``curves.png`` against
    environment steps. A resumed run continues its curve.

    Args:
        folder: Folder of both files; None takes the run directory.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.record = LearningRecord()
        """Numbers so far."""
        self._played: list[TrajectoryBatch] = []
        self._since, self._steps, self._paused = 0.0, 0, 0.0

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Check that rollouts are trained on, and note the tasks.

        Raises:
            TypeError: If the data module plays no rollouts.
        """
        data = cast(Any, trainer).datamodule
        if not isinstance(data, PlaysRollouts):
            raise TypeError(
                f"LearningCurve needs a data module that plays rollouts, such as RolloutData, got "
                f"{type(data).__name__}: leave the callback out where a policy learns from logged episodes"
            )
        self.record.tasks = tuple(getattr(data, "task_names", ()))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Play the start policy on the held-out starts, unless the run was resumed or the sanity check played it."""
        data = self._data(trainer)
        if self.record.start is None and not data.env_steps:
            with isolate_rng(), torch.no_grad():
                self._start(trainer, list(data.val_dataloader()))
        self._since, self._steps = time.perf_counter(), data.env_steps

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log and record the metrics of a rollout."""
        data, now = self._data(trainer), time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        mine = ended_totals(cast(TrajectoryBatch, batch), getattr(data, "outcomes", None))
        mine |= {"env_steps": float(data.env_steps), "new_steps": float(data.env_steps - self._steps)}
        parts = gather(trainer, mine)
        total = {name: sum(part[name] for part in parts) for name in mine}
        self._since, self._steps = now, data.env_steps
        metrics = {
            "env_steps": total["env_steps"],
            "frames_per_second": total["new_steps"] / seconds,
            "episodes": total["episodes"],
            "episode_length": _ratio(total["length"], total["episodes"]),
            "episode_success": _ratio(total["successes"], total["outcomes"]),
            "env_return": _ratio(total["env_return"], total["rewarded"]),
        }
        played = getattr(data, "metrics", {}).get("group_success")
        if played is not None:  # training sees accepted groups alone, which are neither solved nor hopeless
            metrics["episode_success"] = float(played)
        for name, value in metrics.items():
            if not math.isnan(value):
                shown = name == "episode_success"
                pl_module.log(name, value, on_step=True, on_epoch=False, batch_size=1, prog_bar=shown)
        self.record.rollouts.append(metrics | _of_module(trainer, total["episodes"] > 0))

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the clock of training."""
        self._paused, self._played = time.perf_counter(), []

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what was played."""
        self._played.append(cast(TrajectoryBatch, batch))

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log and record the success on held-out starts; before the first update it is that of the start policy."""
        if trainer.sanity_checking:
            complete = len(self._played) == sum(int(n) for n in cast(Any, trainer).num_val_batches)
            if complete and self.record.start is None and not self._data(trainer).env_steps:
                self._start(trainer, self._played)
            return
        steps = sum(gather(trainer, int(getattr(cast(Any, trainer).datamodule, "env_steps", 0))))
        point = count_successes(self._played, steps)
        if point.episodes:
            pl_module.log("val_episodes", float(point.episodes), batch_size=1)
            self.record.validations.append(point)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the curve so far, and start the clock again."""
        self._played = []
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._write(trainer)
        self._since += time.perf_counter() - self._paused

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the whole curve."""
        self._write(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Write the curve up to an interruption."""
        if self.record.rollouts:
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers so far."""
        return self.record.to_json()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the curve of a checkpoint."""
        self.record = LearningRecord.from_json(state_dict)

    def _start(self, trainer: lightning.Trainer, played: Sequence[TrajectoryBatch]) -> None:
        point = count_successes(played, 0)
        if point.episodes:
            self.record.start = point
            for logger in trainer.loggers:
                logger.log_metrics({"start_success": point.rate, "start_episodes": point.episodes}, step=0)

    def _write(self, trainer: lightning.Trainer) -> None:
        if trainer.is_global_zero:
            folder = Path(self.folder or trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.record.write(folder)
            draw_learning_curve(folder / PICTURE, self.record)

    @staticmethod
    def _data(trainer: lightning.Trainer) -> PlaysRollouts:
        return cast(PlaysRollouts, cast(Any, trainer).datamodule)


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan


def _of_module(trainer: lightning.Trainer, ended: bool) -> dict[str, float]:
    """Return the module's own metrics of a rollout; those of its last update are stale where it trained on nothing."""
    known = trainer.callback_metrics
    names = [*(["episode_return"] if ended else [])]
    if float(known.get("decisions", torch.ones(()))) > 0:
        names += ["kl", "explained_variance"]
    return {name: float(known[name]) for name in names if name in known}


def draw_learning_curve(path: Path, record: LearningRecord) -> None:
    """Draw a learning curve against environment steps: success with Wilson bands, and every metric that is known.

    Args:
        path: PNG file to write.
        record: Numbers of the curve.
    """
    panels = {name: text for name, text in _PANELS.items() if record.column(name).shape[1]}
    count = 1 + len(panels)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    grid: list[Axes] = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    _draw_success(grid[0], record)
    for axes, (name, text) in zip(grid[1:], panels.items(), strict=False):
        steps, values = record.column(name).numpy()
        axes.plot(steps, values, marker="." if len(steps) < 30 else "", linewidth=1.2)
        axes.set(ylabel=text)
    for axes in grid[:count]:
        axes.set(xlabel="environment steps")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
    for axes in grid[count:]:
        axes.remove()
    figure.suptitle(", ".join(record.tasks[:4]) + (f" and {len(record.tasks) - 4} more" if record.tasks[4:] else ""))
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=110, format="png")


def _draw_success(axes: Axes, record: LearningRecord) -> None:
    steps, success = record.column("episode_success").numpy()
    if len(steps):
        axes.plot(steps, success, color="0.75", linewidth=1, label="training episodes")
    if record.start is not None:
        axes.axhline(record.start.rate, color="0.4", linestyle="--", label="start policy")
        axes.axhspan(*record.start.interval, color="0.4", alpha=0.12, linewidth=0)
    shown: list[SuccessPoint] = [*([record.start] if record.start else []), *record.validations]
    if record.validations:
        x = [point.env_steps for point in shown]
        low, high = zip(*(point.interval for point in shown), strict=True)
        (line,) = axes.plot(x, [point.rate for point in shown], marker="o", markersize=3, label="held-out starts")
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(ylabel="success (95 % Wilson)", ylim=(-0.03, 1.03))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


__all__ = ["PICTURE", "LearningCurve", "PlaysRollouts", "draw_learning_curve"]
