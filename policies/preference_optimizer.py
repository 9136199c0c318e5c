"""Training of a policy on preference pairs of trajectories, against a reference."""

import sys
import warnings
from functools import partial
from typing import Any, cast

import lightning
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core.arguments import folds
from ..core.batch import Advantages, PreferencePairs, TrajectoryBatch
from ..core.interfaces import Component, Minibatch, Policy
from ..core.sizes import HasSizes, require_sizes, take_sizes
from ..preference.references import FrozenReference, LogProb, Reference
from ..preference.surrogate import HasSurrogate, decision_log_prob, masked_sum
from ..preference.tpo import PairSide, TrajectoryPreference
from .adam import PolicyAdam, Release
from .measures import batch_metrics
from .minibatches import DecisionPoints, minibatch_count, shuffled
from .ranks import joined_ranks
from .updates import Updates

PATIENCE = 100
"""Number of updates in a row with a falling chosen trajectory after which a warning is printed."""


class PreferenceOptimizer(lightning.LightningModule):
    """Train a policy on pairs of trajectories: one pass, or several, over the pairs of a batch in minibatches.

    This is the only way to a policy beside `PolicyOptimizer`: pairs and a reference cannot be expressed as advantages.
    The two rows of a pair must be of one group, that is of one task and one initial state. The log-probabilities of the
    reference are computed once for each row of a batch, before the policy learns from it. Logged trajectories, of which
    no policy recorded a sample, are cut into chunks that do not overlap.

    The policy learns in evaluation mode, without dropout, so that the log-ratios start at 0. Where a policy has no
    density (a flow), its surrogate takes the place of log π; see `guerdon.preference.surrogate`.

    Sizes that a component lacks are taken from the data module, if it has ``sizes``.

    Args:
        policy: Policy that is trained.
        objective: Loss; None takes TPO as published.
        reference: Reference; None takes a frozen copy of the policy as it is before the first update.
        passes: Number of times that every pair of a batch is used.
        minibatch_pairs: Number of pairs in a minibatch.
        optimizer: Learning rates, frozen parts and the clipping of gradients; None takes `PolicyAdam` with a learning
            rate of 1e-4.
        micro_batch: Largest number of decisions that are evaluated at a time, for policies that are large; the gradient
            is that of the whole minibatch. None evaluates all at once.
        seed: Random seed of the order of pairs, and of a surrogate's draws.

    Raises:
        ValueError: If a number makes no sense.
    """

    @folds(optimizer=PolicyAdam)
    def __init__(
        self,
        policy: Policy,
        objective: TrajectoryPreference | None = None,
        reference: Reference | None = None,
        passes: int = 1,
        minibatch_pairs: int = 16,
        optimizer: PolicyAdam | None = None,
        micro_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if passes < 1 or minibatch_pairs < 1 or (micro_batch is not None and micro_batch < 1):
            raise ValueError(
                f"passes {passes}, minibatch_pairs {minibatch_pairs}, micro_batch {micro_batch}: expected at least one "
                "pass, one pair and one decision"
            )
        self.automatic_optimization = False
        self.policy = policy
        self.objective = TrajectoryPreference() if objective is None else objective
        self.reference = FrozenReference() if reference is None else reference
        self.passes, self.minibatch_pairs, self.micro_batch, self.seed = passes, minibatch_pairs, micro_batch, seed
        self.optimizer = PolicyAdam(learning_rate=1e-4) if optimizer is None else optimizer
        self._frozen: list[nn.Parameter] = []
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))
        self._falling, self._warned = 0, False

    batches_seen: Tensor

    @property
    def component(self) -> Component:
        """Component that is shared after training: the policy."""
        return self.policy

    def setup(self, stage: str) -> None:
        """Build what takes its sizes from the data, and the reference, before a checkpoint is loaded.

        Raises:
            ValueError: If a size is unknown, or the policy does not allow the reference.
        """
        data = cast(Any, self.trainer).datamodule
        if isinstance(data, HasSizes):
            take_sizes(self, data.sizes)
        require_sizes(self)
        if stage == "fit":
            if not self._frozen:
                self._frozen += self.optimizer.freeze(self.policy)
            if self.micro_batch is not None and isinstance(self.policy, HasSurrogate):
                raise ValueError("micro_batch splits log-probabilities, and this policy has a surrogate: leave it out")
        self.reference.attach(self.policy)

    def configure_callbacks(self) -> list[lightning.Callback]:
        """Let frozen parts learn again when training ends, however it ends."""
        return [Release(self._frozen)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build Adam for the policy."""
        return self.optimizer.make(self.policy, nn.Module())

    def on_fit_start(self) -> None:
        """Let the policy learn in evaluation mode, as it acted."""
        self.policy.eval()
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")

    def training_step(self, batch: PreferencePairs, batch_index: int) -> None:
        """Train on the pairs of a batch.

        Raises:
            ValueError: If a pair is of two groups.
        """
        self._log("pairs", torch.tensor(float(len(batch))))
        seed = (self.seed * 1_000_003 + int(self.batches_seen)) % 2**63
        pairs = _PairPoints(self.policy, batch, seed, self.micro_batch, learns=True)
        each = minibatch_count(self, len(batch), self.minibatch_pairs)
        if not each:
            self._log("updates", torch.zeros(()))
            return
        reference = pairs.reference(self.reference)
        updates, when = Updates(self, self.optimizer), f"after {int(self.batches_seen)} batches"
        metrics: list[dict[str, Tensor]] = []
        for index, host in shuffled(len(batch), each, self.passes, seed, self.device):
            minibatch, sides = pairs.minibatch(index, host, reference)
            terms = self.objective(*sides, batch.label[index], batch.weight[index])
            updates.step(terms["loss"], when, None if self.micro_batch is None else minibatch.propagate)
            metrics.append({name: value.detach() for name, value in terms.items()})
            self._watch(metrics[-1])
        self.batches_seen += 1
        self._log("updates", torch.tensor(float(len(metrics))))
        with joined_ranks(self.trainer.world_size > 1):
            averages = batch_metrics(metrics)
        for name, value in averages.items():
            self._log(name, value)
        self._warn_of_saturation(metrics[-each:])

    def validation_step(self, batch: PreferencePairs, batch_index: int) -> None:
        """Log loss, accuracy and margin of the implicit reward on held-out pairs."""
        if not len(batch):
            return
        pairs = _PairPoints(self.policy, batch, self.seed, self.micro_batch, learns=False)
        every = torch.arange(len(batch))
        _, sides = pairs.minibatch(every.to(self.device), every, pairs.reference(self.reference))
        terms = self.objective(*sides, batch.label, batch.weight)
        for name in ("preference_loss", "accuracy", "margin"):
            shown = name.removeprefix("preference_")
            self.log(f"val_preference_{shown}", terms[name], batch_size=len(batch), sync_dist=True)

    def _watch(self, terms: dict[str, Tensor]) -> None:
        """Warn once where the chosen trajectories have become less likely for a long time."""
        self._falling = self._falling + 1 if float(terms["chosen_reward"]) < 0 else 0
        if self._falling == PATIENCE:
            self._tell(
                f"the chosen trajectories are less likely than under the reference for {PATIENCE} updates in a row: "
                "accuracy and margin do not show it; set proximal or sft_coef of the objective, lower the learning "
                "rate, or make fewer passes"
            )

    def _warn_of_saturation(self, last: list[dict[str, Tensor]]) -> None:
        share = float(torch.stack([terms["saturated"] for terms in last]).nanmean())
        if share > 0.9 and not self._warned:
            self._warned = True
            self._tell(
                f"{share:.0%} of the pairs have almost no gradient left: the loss is saturated; lower beta, take "
                "reduce mean or window, or make fewer passes with fresh rollouts"
            )

    def _tell(self, text: str) -> None:
        if self.trainer.is_global_zero:
            print(f"guerdon: warning: {text}", file=sys.stderr)

    def _log(self, name: str, value: Tensor) -> None:
        self.log(name, value, on_step=True, on_epoch=False, batch_size=1)


class _PairPoints:
    """Decisions of the rows of pairs, taken out of their batch once."""

    def __init__(
        self, policy: Policy, pairs: PreferencePairs, seed: int, micro_batch: int | None, learns: bool
    ) -> None:
        require_one_group(pairs)
        rows, place = torch.unique(torch.cat([pairs.chosen, pairs.rejected]), return_inverse=True)
        batch = pairs.batch[rows]
        self._policy, self._micro_batch = policy, micro_batch
        self._places = place[: len(pairs)], place[len(pairs) :]
        self._points = DecisionPoints(policy, batch, _compared(batch, policy.horizon), learns, micro_batch)
        self._shape, self._blocks = tuple(batch.decision_step.shape), self._row_blocks(len(batch))
        self._log_prob: LogProb = partial(decision_log_prob, seed=seed)

    def _row_blocks(self, rows: int) -> list[Tensor]:
        counts = torch.bincount(self._points.rows, minlength=rows).tolist()
        return list(torch.arange(len(self._points.rows)).split(counts)) if counts else []

    @torch.no_grad()
    def reference(self, reference: Reference) -> Float[Tensor, "R N"]:
        """Compute the log-probability of every decision of every row under the reference."""
        count = len(self._points.rows)
        size = self._micro_batch or max(count, 1)
        found: list[Tensor] = []
        for start in range(0, count, size):
            host = torch.arange(start, min(start + size, count))
            part = self._points.minibatch(host.to(self._points.rows.device), host)
            found.append(reference.log_prob(self._policy, part.observation, part.decision, self._log_prob))
        if not found:
            return torch.zeros(self._shape, device=self._points.rows.device)
        return self._placed(torch.cat(found), self._points.rows, self._points.decisions)

    def minibatch(
        self, index: Int[Tensor, " p"], host: Int[Tensor, " p"], reference: Float[Tensor, "R N"]
    ) -> tuple[Minibatch, tuple[PairSide, PairSide]]:
        """Take pairs, and evaluate the decisions of both sides once."""
        better, worse = (place[index] for place in self._places)
        used = torch.unique(torch.cat([better, worse]))
        numbers = torch.cat([self._blocks[row] for row in used.tolist()])
        minibatch = self._points.minibatch(numbers.to(index.device), numbers)
        if isinstance(self._policy, HasSurrogate):
            log_prob = self._log_prob(self._policy, minibatch.observation, minibatch.decision)
        else:
            evaluation = minibatch.evaluation
            log_prob = masked_sum(evaluation.log_prob, evaluation.unit_mask)
        dense = self._placed(log_prob, minibatch.rows, minibatch.decisions)
        mask = torch.zeros(self._shape, dtype=torch.bool, device=dense.device)
        mask[minibatch.rows, minibatch.decisions] = True
        sides = [_side(dense[rows], reference[rows], mask[rows]) for rows in (better, worse)]
        return minibatch, (sides[0], sides[1])

    def _placed(self, values: Tensor, rows: Tensor, decisions: Tensor) -> Tensor:
        return values.new_zeros(self._shape).index_put((rows, decisions), values)


def _side(log_prob: Tensor, reference: Tensor, mask: Tensor) -> PairSide:
    """Move the decisions that are compared to the front of their row."""
    order = torch.argsort((~mask).int(), dim=1, stable=True)
    return PairSide(
        log_prob=log_prob.gather(1, order), reference=reference.gather(1, order), mask=mask.gather(1, order)
    )


def _compared(batch: TrajectoryBatch, horizon: int) -> Advantages:
    """Choose the decisions whose log-probabilities are compared: all of a policy, and chunks of logged actions."""
    counted = batch.decision_mask & (batch.weight.gather(1, batch.decision_step.clamp(min=0)) > 0)
    if "sample" not in batch.behaviour:
        counted = counted & (batch.decision_step % horizon == 0)
    nothing = torch.zeros_like(batch.decision_step, dtype=torch.float32)
    return Advantages(advantages=nothing, returns=nothing, valid=counted)


def require_one_group(pairs: PreferencePairs) -> None:
    """Require that the two rows of each pair are of one task and one group.

    Raises:
        ValueError: If a pair is of two tasks or groups; the message names it.
    """
    tasks = pairs.batch.task[pairs.chosen], pairs.batch.task[pairs.rejected]
    groups = pairs.batch.group[pairs.chosen], pairs.batch.group[pairs.rejected]
    apart = ((groups[0] != groups[1]) | (tasks[0] != tasks[1])).nonzero()
    if len(apart):
        at = int(apart[0, 0])
        sides = [
            f"row {int(rows[at])} of group {int(group[at])}" + (f", task {int(task[at])}," if across else "")
            for rows, group, task in zip((pairs.chosen, pairs.rejected), groups, tasks, strict=True)
            for across in [bool(tasks[0][at] != tasks[1][at])]
        ]
        raise ValueError(
            f"pair {at} compares {sides[0]} with {sides[1].rstrip(',')}: a pair is of one task and one initial state"
        )


__all__ = ["PreferenceOptimizer", "require_one_group"]
