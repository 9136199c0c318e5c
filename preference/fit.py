"""Training of a reward model from people's judgements: the LightningModule that ``guerdon fit`` runs."""

import warnings
from collections.abc import Iterator
from typing import Any, Protocol, cast, runtime_checkable

import lightning
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ..backbones.model_inputs import inputs_of
from ..backbones.optimization import ScheduledAdamW
from ..backbones.training_setup import check_frames, fit_normaliser, prepare_model
from ..core.batch import PreferencePairs, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from .objectives import BradleyTerry, FlagLoss, Mean
from .scores import row_scores


@runtime_checkable
class HasMembers(Protocol):
    """Ensemble of reward models that learn by themselves, each from its own draw of the judgements."""

    def estimate_members(self, batch: TrajectoryBatch) -> list[RewardEstimates]:
        """Estimate with every member by itself."""
        ...

    def weigh_members(self, keys: Int[Tensor, " P"]) -> Float[Tensor, "K P"]:
        """Draw how often each member counts each judgement."""
        ...


class PreferenceTraining(lightning.LightningModule):
    """Training of any reward model from pairs (`BradleyTerry`) or from flags (`FlagLoss`) with AdamW.

    The score of a trajectory is the sum or the mean of its rewards over the steps that the model can score, so every
    reward model whose ``forward`` carries gradients can be trained, and is then used as any other. Judgements about a
    trajectory that the model cannot score are left out and counted. A comparison says nothing of the reward's offset,
    and the scale of the rewards is how decided the answers are, not a unit: see the penalty of the objective.

    The members of an ensemble (`guerdon.EnsembleReward`) each minimise their own loss, on their own bootstrap draw of
    the judgements. Frames are encoded once for all members, and cached features are read once.

    At the start the normaliser is fitted on the training data, once; a resumed run keeps it. Sizes that the model lacks
    come from the data. In validation ``val_preference_accuracy`` is the share of held-out pairs, without ties, whose
    order is right (equal scores are half right), beside ``val_log_likelihood`` (nats per pair, ties included),
    ``val_tie_share``, ``val_pairs`` and ``val_pairs_left_out``.

    Args:
        reward: Reward model to train, which is saved at the end.
        objective: Objective: `BradleyTerry` for pairs, `FlagLoss` for flags; None takes `BradleyTerry` as it is.
        optimizer: Settings of AdamW, its schedule and the clipping of gradients; None takes a learning rate of 0.001,
            a weight decay of 0.0001 and 10 updates of warm-up.
    """

    def __init__(
        self,
        reward: RewardModel,
        objective: BradleyTerry | FlagLoss | None = None,
        optimizer: ScheduledAdamW | None = None,
    ) -> None:
        super().__init__()
        self.reward = reward
        self.objective = BradleyTerry() if objective is None else objective
        default = ScheduledAdamW(learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=1e-4, warmup_steps=10)
        self.optimizer = default if optimizer is None else optimizer
        self._sums: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        """Build a model whose sizes come from the data, and refuse what cannot work before anything is loaded.

        Raises:
            ValueError: If the precision is half, the model was made for data of other sizes or still lacks one, or
                nothing of it can be trained.
        """
        if str(self.trainer.precision) == "16-mixed":
            raise ValueError("precision 16-mixed would scale the gradients that are clipped: use bf16-mixed or 32-true")
        prepare_model(self, self.reward, stage)

    def on_fit_start(self) -> None:
        """Check that cached features are those of the model, and fit its normaliser."""
        data = cast(Any, self.trainer).datamodule
        check_frames(inputs_of(self.reward), data)
        fit_normaliser(self, self.reward, self._trajectories(data))
        self.train()  # a model that was opened from a folder comes in evaluation mode
        warnings.filterwarnings("ignore", message="`training_step` returned `None`")

    def _trajectories(self, data: object) -> Iterator[TrajectoryBatch]:
        if hasattr(data, "state_batches"):  # without decoding a frame
            yield from cast(Any, data).state_batches()
            return
        self.trainer.fit_loop.setup_data()
        for batch in cast(Any, self.trainer.train_dataloader):
            yield self.objective.rows(batch)

    def losses(self, data: PreferencePairs | TrajectoryBatch) -> dict[str, Tensor]:
        """Compute the loss under the key ``"loss"``, and its metrics; of an ensemble, means over its members.

        Args:
            data: Pairs or flagged trajectories, as the objective takes them.

        Raises:
            ValueError: If the data hold other judgements, or the rewards carry no gradient.
        """
        objective = cast(Any, self.objective)  # its data are checked by rows
        rows = objective.rows(data)
        if isinstance(self.reward, HasMembers):
            estimates = self.reward.estimate_members(rows)
            times = self.reward.weigh_members(objective.keys(data))
            judged = [objective.reweighed(data, times[member]) for member in range(len(estimates))]
        else:
            estimates, judged = [self.reward(rows)], [data]
        for estimate in estimates:
            if torch.is_grad_enabled() and not estimate.rewards.requires_grad and bool(estimate.valid.any()):
                raise ValueError(
                    f"the rewards of {type(self.reward).__name__} carry no gradient, so it cannot learn from "
                    "preferences: its forward runs without gradients or does not read its trainable parameters; take a "
                    "model that learns, such as StateActionReward, PreferenceTransformer or ProgressReward"
                )
        parts = [objective.loss(of, estimate) for of, estimate in zip(judged, estimates, strict=True)]
        return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}

    def training_step(self, batch: PreferencePairs | TrajectoryBatch, batch_idx: int) -> Tensor | None:
        """Compute the loss of a batch.

        Where there is nothing to learn from, return None, which skips the update; of several processes, a zero whose
        gradient is 0, as the others wait for it.
        """
        parts = self.losses(batch)
        self.log_dict({f"train_{name}": value.detach() for name, value in parts.items()}, batch_size=len(batch))
        self.log("loss", parts["loss"].detach(), prog_bar=True, logger=False, batch_size=len(batch))
        learned = parts["loss"].requires_grad and bool(parts[self.objective.counted] > 0)
        if learned:
            return parts["loss"]
        return None if self.trainer.world_size == 1 else self._zero()

    def _zero(self) -> Tensor:
        """Return a loss of 0 whose gradient is 0 for every trainable parameter, whatever its value."""
        parts = [parameter.flatten()[:0].sum() for parameter in self.parameters() if parameter.requires_grad]
        return torch.stack(parts).sum()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | int | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients to the norm of the optimizer's settings.

        Raises:
            FloatingPointError: If the gradient is NaN or infinite.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.optimizer.clipped(parameters, f"in update {self.trainer.global_step}")

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last validation."""
        self._sums = {}

    def validation_step(self, batch: PreferencePairs | TrajectoryBatch, batch_idx: int) -> None:
        """Add up the metrics of held-out judgements; an ensemble is evaluated by the reward that it pays."""
        objective = cast(Any, self.objective)
        scores, scored = row_scores(self.reward(objective.rows(batch)), self.objective.reduce)
        for name, mean in cast(dict[str, Mean], objective.means(batch, scores, scored)).items():
            self._add(name, torch.stack([mean.total.detach().float(), mean.weight.float()]))
        for name, count in cast(dict[str, Tensor], objective.counts(batch, scored)).items():
            self._add(name, count)

    def _add(self, name: str, part: Tensor) -> None:
        self._sums[name] = self._sums[name] + part if name in self._sums else part

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all held-out judgements, of all processes; a mean over nothing is left out."""
        for name, part in self._sums.items():
            every = cast(Tensor, self.all_gather(part)).reshape(-1, *part.shape).sum(0)
            if every.ndim == 0:
                self.log(f"val_{name}", every)
            elif float(every[1]) > 0:
                self.log(f"val_{name}", every[0] / every[1], prog_bar=name.endswith(("accuracy", "loss")))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW without decay on biases and norms, and a schedule by update."""
        return self.optimizer.configure(self.reward.parameters(), lambda: int(self.trainer.estimated_stepping_batches))


__all__ = ["HasMembers", "PreferenceTraining"]
