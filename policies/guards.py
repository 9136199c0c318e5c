"""Guard against the collapse of a policy in training: smaller steps in time, and a return to the best weights."""

import math
import warnings
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from torch import Tensor

from ..core.batch import TrajectoryBatch
from ..core.intervals import wilson_interval
from .optimizer import PolicyOptimizer

FILE = "best_of_guard.pt"


class CollapseGuard(lightning.Callback):
    """Callback that backs the learning rate off, keeps the best weights, and stops a run whose policy collapsed.

    *Back-off.* If the approximate KL divergence of a batch (metric ``kl``, the mean over its minibatches) exceeds
    ``max_kl``, or the effective sample size of its ratios (``ratio_ess``) falls below ``min_ess``, for ``batches``
    batches in a row, all learning rates are multiplied by ``factor``, down to ``min_learning_rate``.

    *Collapse.* After each validation with the highest ``val_success`` so far, weights that are trained, buffers and the
    state of the optimizer are kept. If ``val_success`` is lower than the best by more than ``drop``, and below the
    lower bound of the best's Wilson interval, for ``patience`` validations in a row, or if a gradient becomes NaN or
    infinite, the best is restored and the run stops with a warning. What is saved afterwards is the best policy. A
    gradient that is no number before the first validation is an error as without the guard.

    What the guard keeps goes into checkpoints, so that a resumed run is guarded as an uninterrupted one.

    Args:
        max_kl: Approximate KL divergence of a batch above which steps are too large, above 0; None looks away.
        min_ess: Effective sample size of the ratios over their number below which steps are too large, in [0, 1].
        batches: Number of batches in a row after which the learning rate is lowered.
        factor: Factor of a learning rate that is lowered, in (0, 1).
        min_learning_rate: Learning rate below which none is lowered, 0 or more.
        drop: Loss of success against the best that counts as a collapse, in [0, 1).
        patience: Number of validations in a row that must have lost so much.
        folder: Folder of the file that keeps the best; None keeps it in memory and in the checkpoints.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        max_kl: float | None = 0.1,
        min_ess: float = 0.5,
        batches: int = 2,
        factor: float = 0.5,
        min_learning_rate: float = 1e-6,
        drop: float = 0.2,
        patience: int = 2,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        if (max_kl is not None and max_kl <= 0) or not 0 <= min_ess <= 1 or not 0 < factor < 1 or not 0 <= drop < 1:
            raise ValueError(
                f"max_kl {max_kl}, min_ess {min_ess}, factor {factor}, drop {drop}: expected max_kl above 0, min_ess "
                "in [0, 1], factor in (0, 1) and drop in [0, 1)"
            )
        if min(batches, patience) < 1 or min_learning_rate < 0:
            raise ValueError(
                f"batches {batches}, patience {patience}, min_learning_rate {min_learning_rate}: expected at least one "
                "batch and one validation, and no negative learning rate"
            )
        self.max_kl, self.min_ess, self.batches = max_kl, min_ess, batches
        self.factor, self.min_learning_rate = factor, min_learning_rate
        self.drop, self.patience = drop, patience
        self.folder = None if folder is None else Path(folder)
        self.best_success = math.nan
        """Highest success rate of a validation; NaN before the first."""
        self.collapsed = False
        """Whether the guard stopped a run."""
        self._lower = math.nan  # of the best's Wilson interval
        self._kept: dict[str, Any] | None = None
        self._far = self._lost = self._episodes = 0
        self._played = False

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Ask to be told of a gradient that is no number."""
        if isinstance(pl_module, PolicyOptimizer):
            pl_module.rescue = lambda error: self._rescued(trainer, pl_module, str(error))

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the module as it was."""
        if isinstance(pl_module, PolicyOptimizer):
            pl_module.rescue = None

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self.on_fit_end(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lower the learning rates if the policy moved too far, batch after batch."""
        logged = trainer.callback_metrics
        # a batch without an update leaves the metrics of the one before
        idle = any(float(logged[name]) == 0 for name in ("decisions", "updates") if name in logged)
        if not idle:
            self._watch(trainer)
        rate = max((float(g["lr"]) for o in trainer.optimizers for g in o.param_groups), default=math.nan)
        pl_module.log("learning_rate", rate, on_step=True, on_epoch=False, batch_size=1)

    def _watch(self, trainer: lightning.Trainer) -> None:
        """Count batches in a row that moved the policy too far, and lower the learning rates after too many."""
        kl, share = (trainer.callback_metrics.get(name) for name in ("kl", "ratio_ess"))
        far = kl is not None and self.max_kl is not None and not float(kl) <= self.max_kl
        far = far or (share is not None and not float(share) >= self.min_ess)
        self._far = self._far + 1 if far else 0
        if self._far >= self.batches:
            self._far = 0
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    lowered = max(self.factor * float(group["lr"]), self.min_learning_rate)
                    group["lr"] = min(float(group["lr"]), lowered)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to count episodes."""
        self._episodes, self._played = 0, False

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the episodes with a known outcome that the policy played; logged ones are another policy's."""
        if isinstance(batch, TrajectoryBatch) and "sample" in batch.behaviour:
            self._episodes, self._played = self._episodes + int(batch.success_known.sum()), True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the weights if they are the best so far; restore the best and stop if success collapsed.

        Raises:
            ValueError: If a validation plays no episode, so that there is no ``val_success``.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        counted = torch.tensor([float(self._episodes), float(self._played)], device=pl_module.device)
        counts = cast(Tensor, trainer.strategy.reduce(counted, reduce_op="sum")).tolist()
        episodes, played = round(counts[0]), counts[1] > 0
        if not played:
            if not {"val_success", "val_episodes"} <= trainer.callback_metrics.keys():
                raise ValueError(
                    "CollapseGuard found no val_success and val_episodes: the validation plays no episode of the "
                    "policy. Add the callback guerdon.PlayedSuccess, or validate on rollouts (RolloutData with "
                    "eval_contexts above 0)"
                )
            episodes = round(float(trainer.callback_metrics["val_episodes"]))
        if not episodes:
            return
        success = float(trainer.callback_metrics["val_success"])
        if not success < self.best_success:  # NaN at first; of equal ones the later
            self.best_success, self._lost = success, 0
            self._lower = wilson_interval(round(success * episodes), episodes)[0]
            self._keep(trainer, pl_module)
            return
        lost = self.best_success - success > self.drop and success < self._lower
        self._lost = self._lost + 1 if lost else 0
        if self._lost >= self.patience:
            self._rescued(
                trainer,
                pl_module,
                f"val_success fell to {success:.3f} of {episodes} episodes, {self._lost} validations in a row below "
                f"{min(self.best_success - self.drop, self._lower):.3f}",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what the guard keeps; the best itself only where it is not in a file."""
        state = {"best_success": self.best_success, "lower": self._lower, "far": self._far, "lost": self._lost}
        return state | {"kept": self._kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what an interrupted run kept."""
        self.best_success, self._lower = float(state_dict["best_success"]), float(state_dict["lower"])
        self._far, self._lost = int(state_dict["far"]), int(state_dict["lost"])
        self._kept = state_dict["kept"]
        if self.folder is not None and (self.folder / FILE).is_file() and not math.isnan(self.best_success):
            self._compare_file(self.folder / FILE)

    def _compare_file(self, path: Path) -> None:
        """Take up a better best, which the run kept after its checkpoint; leave out one that is another run's."""
        kept = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        success = float(kept.get("best_success", self.best_success))  # earlier versions kept the weights alone
        if success >= self.best_success:
            self.best_success, self._lower = success, float(kept.get("lower", self._lower))
            return
        warnings.warn(
            f"{path} holds weights with val_success {success:.3f}, the checkpoint one of {self.best_success:.3f}: the "
            "file is another run's, and the guard begins anew; give each run a folder of its own",
            stacklevel=2,
        )
        self.best_success = self._lower = math.nan
        self._lost = 0

    def _keep(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        best: dict[str, Any] = {"weights": _trained(module)}
        best |= {"optimizers": [_on_host(o.state_dict()) for o in trainer.optimizers]}
        if self.folder is None:
            self._kept = best
            return
        best |= {"best_success": self.best_success, "lower": self._lower}
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = self.folder / f".{FILE}"
            torch.save(best, fresh)
            fresh.replace(self.folder / FILE)
        trainer.strategy.barrier()

    def _rescued(self, trainer: lightning.Trainer, module: lightning.LightningModule, reason: str) -> bool:
        """Restore the best and stop the run; return False if nothing was kept."""
        best = self._kept
        if self.folder is not None and (self.folder / FILE).is_file() and not math.isnan(self.best_success):
            best = cast(dict[str, Any], torch.load(self.folder / FILE, map_location="cpu", weights_only=True))
        if best is None:
            return False
        found = module.load_state_dict(best["weights"], strict=False)
        if found.unexpected_keys:
            raise ValueError(f"the guard kept {found.unexpected_keys[0]}, which the module lacks: it is another one's")
        for optimizer, state in zip(trainer.optimizers, best["optimizers"], strict=True):
            optimizer.load_state_dict(_on_host(state))
        self.collapsed = trainer.should_stop = True
        self._lost = self._far = 0
        warnings.warn(
            f"the policy collapsed: {reason}. The best weights were restored (val_success {self.best_success:.3f}) and "
            "the run stops. Go on from them with a smaller learning_rate, fewer passes or a target_kl",
            stacklevel=2,
        )
        return True


def _trained(module: lightning.LightningModule) -> dict[str, Tensor]:
    """Copy the parameters that learn, and the buffers, to the host."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {k: v.detach().cpu().clone() for k, v in module.state_dict().items() if k not in frozen}


def _on_host(value: Any) -> Any:
    """Copy every tensor of a nested state to the host."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {k: _on_host(v) for k, v in cast(dict[Any, Any], value).items()}
    if isinstance(value, list):
        return [_on_host(v) for v in cast(list[Any], value)]
    return value


__all__ = ["CollapseGuard"]
