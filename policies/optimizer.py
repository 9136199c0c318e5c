"""Training of a policy with any advantage source and objective, on rollouts or on logged trajectories."""

import warnings
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import lightning
import torch
from torch import Tensor, nn

from ..backbones.perceptron import Inputs
from ..core.arguments import folds
from ..core.batch import Advantages, End, TrajectoryBatch
from ..core.interfaces import AdvantageSource, Component, Critic, Objective, Policy, RewardModel
from ..core.sizes import HasSizes, require_sizes, take_sizes
from .adam import PolicyAdam, Release
from .measures import batch_metrics, explained_variance, require_finite_advantages
from .minibatches import DecisionPoints, minibatch_count, shuffled
from .proposer import PolicyProposer
from .ranks import joined_ranks
from .updates import Updates


@runtime_checkable
class HasTaskNames(Protocol):
    """A data module that plays tasks by name."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks; ``batch.task`` counts them in this order."""
        ...


@runtime_checkable
class CutsEpisodes(Protocol):
    """A data module that knows whether its rows may be pieces of episodes, such as `guerdon.RolloutData`."""

    @property
    def cuts_episodes(self) -> bool:
        """Whether an episode may go on in the next batch."""
        ...


@runtime_checkable
class HasMetrics(Protocol):
    """A data module with metrics of its latest rollout, such as `guerdon.RolloutData`."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by name."""
        ...


class PolicyOptimizer(lightning.LightningModule):
    """Score each batch of trajectories once, then train a policy on its decisions in several passes of minibatches.

    Estimates and advantages are computed once per batch, so that groups stay whole and targets stay fixed. PPO makes
    many passes over rollouts; offline weighting and behaviour cloning make one pass over logged data. The objective
    also weighs the decisions once per batch. An advantage source may ask the policy, as it is when a batch begins, for
    chunks through a `PolicyProposer`.

    Sizes that a component lacks are taken from the data module, if it has ``sizes``.

    Args:
        policy: Policy that is trained.
        advantage: Advantage source: all that the optimizer knows of rewards and values.
        objective: Objective that is minimised.
        passes: Number of times that every decision of a batch is used.
        minibatch_size: Number of decisions in a minibatch.
        optimizer: Learning rates and the clipping of gradients; None takes the defaults of `PolicyAdam`.
        target_kl: Approximate KL divergence; the passes over a batch stop once that of a minibatch exceeds 1.5 times
            this. None never stops.
        freeze_policy_batches: Number of first batches on which only what is trained with the policy learns, so that a
            cloned policy is not moved by an untrained critic.
        seed: Random seed of the minibatch order.
        minibatch_episodes: Number of rows in a minibatch, with all their decisions, in place of ``minibatch_size``
            decisions in any order. Objectives that average by trajectory need it.
        micro_batch: Largest number of decisions of a minibatch whose log-probabilities are computed at a time, for
            policies that are large. The gradient is that of the whole minibatch, and every decision is evaluated twice.
            None evaluates all at once. For objectives on log-probabilities, in one process.

    Raises:
        ValueError: If an argument makes no sense.
    """

    @folds(optimizer=PolicyAdam)
    def __init__(
        self,
        policy: Policy,
        advantage: AdvantageSource,
        objective: Objective,
        passes: int = 10,
        minibatch_size: int = 256,
        optimizer: PolicyAdam | None = None,
        target_kl: float | None = None,
        freeze_policy_batches: int = 0,
        seed: int = 0,
        minibatch_episodes: int | None = None,
        micro_batch: int | None = None,
    ) -> None:
        super().__init__()
        sizes = (passes, minibatch_size, minibatch_episodes, micro_batch)
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(
                f"passes {passes}, minibatch_size {minibatch_size}, minibatch_episodes {minibatch_episodes}, "
                f"micro_batch {micro_batch}: expected at least one pass and one decision or episode"
            )
        self.automatic_optimization = False
        self.policy, self.advantage, self.objective = policy, advantage, objective
        self.passes, self.minibatch_size, self.seed = passes, minibatch_size, seed
        self.minibatch_episodes, self.micro_batch = minibatch_episodes, micro_batch
        self._frozen: list[nn.Parameter] = []
        self.optimizer = PolicyAdam() if optimizer is None else optimizer
        self.target_kl, self.freeze_policy_batches = target_kl, freeze_policy_batches
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))
        # not a module of this one: the policy would come twice in every checkpoint
        self.rescue = None
        self.__dict__["_proposer"] = PolicyProposer(policy, seed=seed)

    _proposer: PolicyProposer
    batches_seen: Tensor
    rescue: Callable[[FloatingPointError], bool] | None
    """Called if a gradient is no number; returns whether the run was saved from it. None raises the error."""

    @property
    def component(self) -> Component:
        """Component that is shared after training: the policy."""
        return self.policy

    def setup(self, stage: str) -> None:
        """Build what takes its sizes from the data, and compare the sizes of the rest with it.

        Raises:
            ValueError: If a size is unknown, or not that of the data, or the advantage source needs whole episodes and
                the data module cuts them.
        """
        data = cast(Any, self.trainer).datamodule
        if isinstance(data, HasSizes):
            take_sizes(self, data.sizes)
        require_sizes(self)
        self.advantage.attach(self.policy)
        if stage == "fit":
            self.objective.attach(self.policy)
        if stage == "fit" and self.objective.whole_rows and self.minibatch_episodes is None:
            raise ValueError(
                f"{type(self.objective).__name__} averages over the decisions of each trajectory, and minibatches of "
                "minibatch_size decisions cut trajectories: set minibatch_episodes, such as "
                "--model.init_args.minibatch_episodes 32"
            )
        if stage == "fit" and self.micro_batch is not None and cast(Any, self.trainer).world_size > 1:
            raise ValueError(
                "micro_batch works in one process, and this run has several: leave it out and set a smaller "
                "minibatch_size, or minibatch_episodes"
            )
        if stage == "fit" and self.micro_batch is not None and not self.objective.ratios:
            raise ValueError(
                f"micro_batch splits log-probabilities, which {type(self.objective).__name__} does not use: leave it "
                "out, and set a smaller minibatch_size"
            )
        if stage == "fit" and not self._frozen:
            self._frozen += self.optimizer.freeze(self.policy)
        if stage == "fit" and self.advantage.whole_episodes and isinstance(data, CutsEpisodes) and data.cuts_episodes:
            raise ValueError(
                f"{type(self.advantage).__name__} compares whole episodes, and rollouts of a number of steps cut them: "
                "an episode that spans two rollouts would never be trained on from its start; set groups of the data "
                "module, such as --data.init_args.groups.size 8"
            )

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Let frozen parts learn again when training ends, however it ends."""
        return [Release(self._frozen)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build Adam, with a learning rate each for the policy and for what is trained with it."""
        return self.optimizer.make(self.policy, self.advantage)

    def on_fit_start(self) -> None:
        """Silence the warning of a reward model in evaluation mode, and drop the chunks that the proposer kept."""
        self._proposer.updated()
        if self.objective.ratios:
            self.policy.eval()
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")

    def training_step(self, batch: TrajectoryBatch, batch_index: int) -> None:
        """Compute rewards and advantages of the batch, then train on its decisions."""
        self._fit_inputs(batch)
        rewards = self.advantage.estimate(batch)
        # the number of batches that the policy learned from: the same after an interruption as without one
        self._proposer.version = max(0, int(self.batches_seen) - self.freeze_policy_batches)
        with joined_ranks(self.trainer.world_size > 1):
            advantages = self.advantage(batch, rewards, self._proposer)
            require_finite_advantages(batch, advantages)
        known = rewards.valid & batch.mask
        self._log("reward_per_row", rewards.rewards.masked_fill(~known, 0.0).sum(1).mean())
        self._log("reward_unknown", (batch.mask & ~known).float().sum() / batch.mask.float().sum().clamp(min=1))
        ended = (batch.end != int(End.CUT)) & (batch.offset == 0) & ("sample" in batch.behaviour)
        if bool(ended.any()):  # rows of played episodes start at their first observation
            self._log("episode_return", rewards.rewards.masked_fill(~known, 0.0).sum(1)[ended].mean())
        data = cast(Any, self.trainer).datamodule
        for name, value in data.metrics.items() if isinstance(data, HasMetrics) else ():
            self._log(name, torch.tensor(value))
        try:
            self._train_on(batch, advantages)
        except FloatingPointError as error:
            if self.rescue is None or not self.rescue(error):
                raise
            return
        self.batches_seen += 1

    def _train_on(self, batch: TrajectoryBatch, advantages: Advantages) -> None:
        learns = int(self.batches_seen) >= self.freeze_policy_batches
        points = DecisionPoints(self.policy, batch, advantages, learns, self.micro_batch)
        count = len(points.rows)
        self._log("decisions", torch.tensor(float(count)))
        blocks = None if self.minibatch_episodes is None else points.blocks()
        count, size = (count, self.minibatch_size) if blocks is None else (len(blocks), self.minibatch_episodes or 1)
        each = minibatch_count(self, count, size)
        if not each:
            self._log("updates", torch.zeros(()))
            return
        advantage = points.of(advantages.advantages)
        with joined_ranks(self.trainer.world_size > 1):
            weight = points.of(self.objective.weights(batch, advantages))
        idle = () if learns else self.policy.parameters()
        updates, when = Updates(self, self.optimizer, idle), f"after {int(self.batches_seen)} batches"
        metrics: list[dict[str, Tensor]] = []
        further: list[dict[str, Tensor]] = []
        seed = (self.seed * 1_000_003 + int(self.batches_seen)) % 2**63
        for index, host in shuffled(count, each, self.passes, seed, self.device, blocks):
            minibatch = points.minibatch(index, host)
            terms = self.advantage.on_minibatch(batch, advantages, minibatch)
            objective: dict[str, Tensor] = {}
            if learns:
                objective = self.objective.on_minibatch(minibatch, advantage[index], weight[index])
            losses = [part["loss"] for part in (objective, terms) if "loss" in part]
            if losses:
                loss = losses[0] if len(losses) == 1 else losses[0] + losses[1]
                updates.step(loss, when, None if self.micro_batch is None else minibatch.propagate)
            metrics.append({k: v.detach() for k, v in objective.items()})
            further.append({f"critic_{k}" if k == "loss" else k: v.detach() for k, v in terms.items()})
            if self.target_kl is not None and self._beyond(objective.get("kl")):
                break
        self._log("updates", torch.tensor(float(len(metrics))))
        for name, value in batch_metrics(further).items():  # each rank's own: their names may differ
            self._log(name, value)
        with joined_ranks(self.trainer.world_size > 1):
            for name, value in {**batch_metrics(metrics), "explained_variance": explained_variance(advantages)}.items():
                self._log(name, value)

    def _beyond(self, kl: Tensor | None) -> bool:
        if kl is None or self.target_kl is None:
            return False
        if self.trainer.world_size > 1:
            kl = cast(Tensor, self.trainer.strategy.reduce(kl, reduce_op="mean"))
        return float(kl) > 1.5 * self.target_kl

    def validation_step(self, batch: TrajectoryBatch, batch_index: int) -> None:
        """Log the success rate where outcomes are known, and the imitation loss where another policy acted.

        ``val_success`` is that of episodes which the policy played, ``data_success`` that of logged ones.
        """
        known = batch.success_known
        if bool(known.any()):
            success, played = batch.success[known].mean(), "sample" in batch.behaviour
            name = "val_success" if played else "data_success"
            self.log(name, success, batch_size=int(known.sum()), prog_bar=played, sync_dist=True)
            if played:
                self._log_success_by_task(batch)
        if "sample" not in batch.behaviour and bool(batch.mask.any()):
            rows, steps = batch.mask.nonzero(as_tuple=True)
            observation, decision = batch.at(rows, steps, self.policy.horizon)
            carried = torch.arange(self.policy.horizon, device=self.device)[None] < decision.executed[:, None]
            error = self.policy.imitation_loss(observation, decision.chunk, carried).mean()
            self.log("val_imitation", error, batch_size=len(rows), prog_bar=True, sync_dist=True)

    def _log_success_by_task(self, batch: TrajectoryBatch) -> None:
        """Log the success rate of each task, if the data module has several and names them."""
        data = cast(Any, self.trainer).datamodule
        if not isinstance(data, HasTaskNames) or len(data.task_names) < 2:
            return
        for number, name in enumerate(data.task_names):
            of = batch.success_known & (batch.task == number)
            if bool(of.any()):
                rate = batch.success[of].mean()
                self.log(f"val_success/{name}", rate, batch_size=int(of.sum()), sync_dist=True)

    def _fit_inputs(self, batch: TrajectoryBatch) -> None:
        """Compute input scales that are not fitted yet from the first batch.

        Scales of a policy that has acted stay, and so do those of a reward model or a critic that no longer learns:
        they are as they were trained.
        """
        acted = "sample" in batch.behaviour
        modules = [*self.advantage.modules(), *(() if acted else self.policy.modules())]
        frozen = {id(m) for part in modules if _learned(part) for m in part.modules()}
        if acted:  # an advantage source may hold the policy, for a value head on it
            frozen |= {id(m) for m in self.policy.modules()}
        unset = [m for m in modules if isinstance(m, Inputs) and not bool(m.fitted) and id(m) not in frozen]
        if unset:
            rows, steps = batch.mask.nonzero(as_tuple=True)
            observation = batch.observe(rows, steps)
            for inputs in unset:
                inputs.fit(observation)
                if self.trainer.world_size > 1:  # every rank saw other data; all must scale alike
                    for value in (inputs.mean, inputs.std):
                        value.copy_(self.trainer.strategy.broadcast(value))

    def _log(self, name: str, value: Tensor) -> None:
        self.log(name, value, on_step=True, on_epoch=False, batch_size=1)


def _learned(part: nn.Module) -> bool:
    """Tell whether a part was trained before and is only used now."""
    frozen = isinstance(part, Critic) and not any(p.requires_grad for p in part.parameters())
    return isinstance(part, RewardModel) or frozen
