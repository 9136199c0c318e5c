"""Training of a critic on logged trajectories: the LightningModule that ``guerdon fit`` runs."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

import lightning
import torch
from jaxtyping import Bool, Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ..backbones.optimization import ScheduledAdamW
from ..core.arguments import folds
from ..core.batch import End, RewardEstimates, TrajectoryBatch
from ..core.edit import concat
from ..core.interfaces import Component, Critic, Proposer, RewardModel
from ..core.sizes import HasSizes, require_sizes, take_sizes
from .monte_carlo import returns_to_go


@runtime_checkable
class TakesScale(Protocol):
    """A reward with parameters that are computed from data, once."""

    fitted: Tensor
    """Whether they are known."""

    def fit(self, batches: Iterable[TrajectoryBatch]) -> object:
        """Compute them from the training data."""
        ...


class CriticTraining(lightning.LightningModule):
    """Train a critic with AdamW on steps drawn from logged trajectories, and log all its metrics.

    Rewards are computed once for every batch of episodes (or windows). Then come ``updates_per_batch`` updates, each on
    its own draw of ``transitions`` steps. Steps are drawn evenly from the real ones with a positive weight and a known
    reward; the others are context. The target network follows each update. An update in which nothing could be learned
    (every gradient is 0) is left out.

    Sizes that a component lacks are taken from the data module, if it has ``sizes``. Scales that the reward or the
    critic takes from data are computed once, at the start, from the training episodes. What was fitted before, a saved
    critic that goes on learning or a run that is resumed, stays as it is.

    In validation ``val_td_error`` and the other metrics are those of held-out episodes, ``val_value`` is the mean V,
    and ``val_explained_variance`` is 1 − Var(G − V)/Var(G) over the steps whose discounted return G of the log is
    known. It evaluates values of the behaviour policy; a critic of another policy (ALOE) may be right and explain
    little.

    Args:
        critic: Critic that is trained, and shared at the end.
        reward: Reward model that the critic learns from; frozen, in evaluation mode.
        proposer: Source of the current policy's chunks, for critics that need it
            (`guerdon.PolicyProposer`); its policy does not learn here.
        transitions: Number of steps in an update.
        updates_per_batch: Number of updates on each batch of trajectories.
        optimizer: Settings of AdamW, its schedule and the clipping of gradients; None takes the defaults of
            `ScheduledAdamW`.
        seed: Random seed of the draws.

    Raises:
        ValueError: If an argument makes no sense.
    """

    updates: Tensor

    @folds(optimizer=ScheduledAdamW)
    def __init__(
        self,
        critic: Critic,
        reward: RewardModel,
        proposer: Component | Proposer | None = None,  # a configuration can only name a component
        transitions: int = 256,
        updates_per_batch: int = 1,
        optimizer: ScheduledAdamW | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(transitions, updates_per_batch) < 1:
            raise ValueError(
                f"transitions {transitions}, updates_per_batch {updates_per_batch}: expected positive numbers"
            )
        theirs, ours = getattr(reward, "gamma", None), getattr(critic, "gamma", None)
        if theirs is not None and ours is not None and theirs != ours:
            raise ValueError(
                f"{type(reward).__name__} has gamma {theirs}, {type(critic).__name__} discounts with {ours}: "
                "give both the same"
            )
        if proposer is not None and not isinstance(proposer, Proposer):
            raise ValueError(
                f"{type(proposer).__name__} proposes no chunks: expected a PolicyProposer, or another Proposer"
            )
        self.automatic_optimization = False
        if not any(p.requires_grad for p in critic.parameters()):
            critic.requires_grad_(True)  # it was frozen for use, by an advantage source for instance
        self.critic, self.reward = critic, reward.requires_grad_(False)
        self.proposer = proposer
        self._frozen: list[nn.Parameter] = []
        self.transitions, self.updates_per_batch, self.seed = transitions, updates_per_batch, seed
        self.optimizer = ScheduledAdamW() if optimizer is None else optimizer
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._sums = torch.zeros(5, dtype=torch.float64)

    @property
    def component(self) -> Component:
        """Component that is shared after training: the critic."""
        return self.critic

    @property
    def companions(self) -> dict[str, Component]:
        """Components that are saved with it: the reward that its values are sums of, with its fitted parameters."""
        return {"reward": self.reward}

    def train(self, mode: bool = True) -> "CriticTraining":
        """Set the mode of the critic; reward model and proposer stay in evaluation mode."""
        super().train(mode)
        self.reward.eval()
        if isinstance(self.proposer, nn.Module):
            self.proposer.eval()
        return self

    def setup(self, stage: str) -> None:
        """Build what takes its sizes from the data, and refuse what cannot work before anything is loaded.

        Raises:
            ValueError: If the precision is half, a size is unknown or not that of the data, or nothing can be trained.
        """
        if str(self.trainer.precision) in ("bf16-true", "16-true", "16-mixed"):
            raise ValueError(
                f"precision {self.trainer.precision} would cut states and rewards to half precision, or scale the "
                "gradients that are clipped: use bf16-mixed or 32-true"
            )
        data = cast(Any, self.trainer).datamodule
        if isinstance(data, HasSizes):
            take_sizes(self, data.sizes)
            self.reward.requires_grad_(False)
        require_sizes(self)
        if stage == "fit" and not any(p.requires_grad for p in self.critic.parameters()):
            raise ValueError(f"{type(self.critic).__name__} has nothing to train: use it as it is")
        steps, horizon = getattr(self.proposer, "steps", None), getattr(self.critic, "horizon", None)
        if stage == "fit" and steps is not None and horizon is not None and steps != horizon:
            warnings.warn(
                f"the policy proposes chunks of {steps} steps, the critic's horizon is {horizon}: it then values "
                "another policy, which plans anew after another number of steps, or chunks of a length that is rare in "
                f"logs. Give the network horizon {steps}",
                stacklevel=2,
            )
        if isinstance(self.proposer, nn.Module):
            # only during this training: the policy may be trained by others before and after
            self._frozen = [p for p in self.proposer.parameters() if p.requires_grad]
            for parameter in self._frozen:
                parameter.requires_grad_(False)

    def teardown(self, stage: str) -> None:
        """Unfreeze the parameters of the proposer's policy that were not frozen before."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def on_fit_start(self) -> None:
        """Compute the scales of reward and critic from the training episodes where they are not fitted yet."""
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
        self.train()  # a critic that was opened from a folder comes in evaluation mode
        data = cast(Any, self.trainer).datamodule
        if not hasattr(data, "state_batches"):
            return
        learned = self._fitted() and any(name.rpartition(".")[2] == "fitted" for name, _ in self.critic.named_buffers())
        for module in self.reward.modules():
            if isinstance(module, RewardModel) and isinstance(module, TakesScale) and not bool(module.fitted):
                module.fit(data.state_batches())
                if self.trainer.is_global_zero:  # to go on with the critic, the same numbers are needed
                    print(f"taken from the training episodes: {module}")
                if learned:
                    warnings.warn(
                        f"{type(self.critic).__name__} was trained before, and {type(module).__name__} took new "
                        "numbers from these data: its values are in another unit now. Name the reward that was saved "
                        "with its run: guerdon.pretrained_reward with path RUN/reward",
                        stacklevel=2,
                    )
        _check_ends(data.state_batches())
        reads = getattr(self.critic, "reads", None)
        if not self._fitted() and not getattr(reads, "feature_sizes", None):
            self._fit_critic(_joined(data.state_batches()))

    def _fitted(self) -> bool:
        named = self.critic.named_buffers()
        return all(bool(buffer) for name, buffer in named if name.rpartition(".")[2] == "fitted")

    def _fit_critic(self, batch: TrajectoryBatch) -> None:
        """Compute the critic's scales; all processes take those of the first one."""
        fit = getattr(self.critic, "fit_scales", None)
        if fit is None:
            return
        fit(batch.to(self.device))
        if self.trainer.world_size > 1:
            for buffer in self.critic.buffers():
                buffer.copy_(self.trainer.strategy.broadcast(buffer))

    @torch.no_grad()
    def score(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the rewards of a batch.

        Raises:
            ValueError: If rows are not logged trajectories, or the reward needs a future that was cut off.
            FloatingPointError: If a known reward is not finite.
        """
        negative = batch.labels.get("negative")
        if negative is not None and bool((negative.values[:, 0] != 0).any()):
            raise ValueError(
                "a critic learns from what happened, and this batch holds negatives (reordered steps, wrong "
                "instructions): set rewind, reverse and wrong_instruction of the data's labels to 0"
            )
        if not self.reward.causal and bool((batch.offset + batch.steps < batch.length).any()):
            raise ValueError(
                f"{type(self.reward).__name__} is not causal: it can score whole episodes only, and these are windows; "
                "leave window out of the data's arguments"
            )
        rewards = self.reward(batch)
        broken = rewards.valid & batch.mask & ~rewards.rewards.isfinite()
        if bool(broken.any()):
            row, step = (int(i) for i in broken.nonzero()[0])
            raise FloatingPointError(
                f"{type(self.reward).__name__} gave {float(rewards.rewards[row, step])} as a known reward (episode "
                f"{int(batch.episode[row])}, step {int(batch.offset[row]) + step}; {int(broken.sum())} in all): mark "
                "it invalid, or repair the episode"
            )
        return rewards

    def training_step(self, batch: TrajectoryBatch, batch_index: int) -> None:
        """Compute the rewards of the batch, then make updates on draws of its steps."""
        if not self._fitted():
            self._fit_critic(batch)
        rewards = self.score(batch)
        known = rewards.valid & batch.mask
        chosen = known & (batch.weight > 0)
        metrics: list[dict[str, Tensor]] = []
        for index in range(self.updates_per_batch):
            drawn = self._draw(chosen, batch_index * self.updates_per_batch + index)
            parts = self.critic.loss(
                replace(batch, weight=torch.where(drawn, batch.weight, 0.0)), rewards, self.proposer
            )
            if self._step(parts["loss"]):
                metrics.append({name: value.detach() for name, value in parts.items()})
        for name in dict.fromkeys(name for found in metrics for name in found):
            mean = torch.stack([found[name].float() for found in metrics if name in found]).mean()
            self.log(f"train_{name}", mean, on_step=True, on_epoch=False, batch_size=1)
            if name == "loss":
                self.log("loss", mean, prog_bar=True, logger=False, batch_size=1)
        unknown = (batch.mask & ~known).float().sum() / batch.mask.float().sum().clamp(min=1)
        self.log("reward_unknown", unknown, on_step=True, on_epoch=False, batch_size=1)
        self.log("updates_left_out", float(self.updates_per_batch - len(metrics)), on_step=True, batch_size=1)

    def _draw(self, chosen: Bool[Tensor, "B T"], number: int) -> Bool[Tensor, "B T"]:
        """Draw ``transitions`` of the chosen steps, anew in every update; all of them if there are fewer."""
        rows, steps = chosen.nonzero(as_tuple=True)
        if len(rows) <= self.transitions:
            return chosen
        place = (self.seed, int(self.current_epoch), number, self.trainer.global_rank)
        seed = 0
        for part in place:
            seed = (seed * 1_000_003 + part) % 2**62
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        taken = order[: self.transitions].to(rows.device)
        drawn = torch.zeros_like(chosen)
        drawn[rows[taken], steps[taken]] = True
        return drawn

    def _step(self, loss: Tensor) -> bool:
        """Make one update; return False, and make none, where no parameter would learn anything."""
        norm = self.optimizer.backward(self, loss, f"in update {int(self.updates) + 1}")
        if not float(norm):  # momentum and weight decay would move the critic all the same
            return False
        cast(LightningOptimizer, self.optimizers()).step()
        schedule = self.lr_schedulers()
        if schedule is not None:
            cast(Any, schedule).step()
        self.critic.after_step()
        self.updates += 1
        return True

    def on_train_epoch_end(self) -> None:
        """Refuse to go on if there was nothing to learn from.

        Raises:
            ValueError: If no update was made in a whole epoch.
        """
        if not int(self.updates):
            raise ValueError(
                f"no step of the training data can be learned from: {type(self.reward).__name__} knows no reward, "
                "every step has weight 0, or the critic knows no continuation (rows cut before their last observation "
                "was made, or returns of rows that never end: see cuts, and terminating of the data)"
            )

    def on_validation_epoch_start(self) -> None:
        """Reset the sums of the explained variance."""
        self._sums = torch.zeros(5, dtype=torch.float64)

    def validation_step(self, batch: TrajectoryBatch, batch_index: int) -> None:
        """Log the loss and its metrics over all steps, and the mean value."""
        rewards = self.score(batch)
        parts = self.critic.loss(batch, rewards, self.proposer)
        if len(parts) > 1:  # else there was nothing to learn from, which is no loss of 0
            steps = int(batch.mask.sum())
            self.log("val_loss", parts["loss"], prog_bar=True, batch_size=steps, sync_dist=True)
            metrics = {f"val_{name}": value.float() for name, value in parts.items() if name != "loss"}
            self.log_dict(metrics, batch_size=steps, sync_dist=True)
        v = self.critic(batch, self.proposer).v
        made = batch.made.to(v.device)
        if bool(made.any()):
            self.log("val_value", v[made].mean(), batch_size=int(made.sum()), sync_dist=True)
        gamma = getattr(self.critic, "gamma", None)
        if gamma is not None:
            returns, known = returns_to_go(batch, rewards, gamma)
            target = returns[known].double().cpu()
            error = target - v[:, :-1][known.to(v.device)].double().cpu()
            moments = [target.sum(), target.square().sum(), error.sum(), error.square().sum()]
            self._sums += torch.stack([torch.tensor(float(len(target)), dtype=torch.float64), *moments])

    def on_validation_epoch_end(self) -> None:
        """Log the explained variance, if returns are known and differ."""
        sums = self._sums.to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        if self.trainer.world_size > 1:
            sums = cast(Tensor, self.trainer.strategy.reduce(sums, reduce_op="sum"))
        explained = explained_variance(sums)
        if explained is not None:
            self.log("val_explained_variance", explained, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build AdamW, and its schedule by update."""
        return self.optimizer.configure(self.critic.parameters(), self._total_updates)

    def _total_updates(self) -> int:
        """Count the updates of the whole run. Lightning counts batches in epochs, but updates in ``max_steps``."""
        most, batches = self.trainer.max_steps, self.trainer.estimated_stepping_batches
        updates = int(batches) * self.updates_per_batch if math.isfinite(batches) else most
        return updates if most < 0 else min(updates, most)


def explained_variance(sums: Float[Tensor, " 5"]) -> Tensor | None:
    """Compute 1 − Var(e)/Var(g).

    Args:
        sums: Count, Σ g, Σ g², Σ e and Σ e².

    Returns:
        Explained variance; None if g does not vary.
    """
    count, target, target_squared, error, error_squared = sums
    if count < 2:
        return None
    variance = target_squared / count - (target / count).square()
    if float(variance) <= 1e-12 * float(target_squared / count):
        return None
    return (1 - (error_squared / count - (error / count).square()) / variance).float()


def _check_ends(batches: Iterable[TrajectoryBatch]) -> None:
    """Warn if no episode terminates, or a successful one does not end in its success."""
    rows = ended = unended = 0
    for batch in batches:
        rows, ended = rows + len(batch), ended + int(batch.terminated.sum())
        unended += int(((batch.end == End.CUT) & batch.success_known & (batch.success >= 1)).sum())
    if rows and not ended:
        warnings.warn(
            f"none of {rows} training episodes ends for good: values are then bootstrapped from one another alone, and "
            "step costs drive them to the sum of endless costs. Record how episodes end (`end` of an episode), or name "
            "more ends in `terminating` of the data",
            stacklevel=3,
        )
    if unended:
        warnings.warn(
            f"{unended} of {rows} training episodes are successes that do not end in one (`end` is CUT): a critic "
            "treats them as pieces of longer episodes, and nothing is paid for the success. Record their `end` as "
            "SUCCESS",
            stacklevel=3,
        )


def _joined(batches: Iterable[TrajectoryBatch]) -> TrajectoryBatch:
    """States and actions of several batches as one: what scales are taken from.

    Raises:
        ValueError: If there is none.
    """
    pieces = list(batches)
    if not pieces:
        raise ValueError("there is no training episode to take the critic's scales from")
    return concat(
        [
            TrajectoryBatch(
                state=piece.state, actions=piece.actions, mask=piece.mask, last_observed=piece.last_observed
            )
            for piece in pieces
        ]
    )


__all__ = ["CriticTraining", "TakesScale", "explained_variance"]
