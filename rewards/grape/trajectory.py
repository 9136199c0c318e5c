"""GRAPE's trajectory score: log-likelihood under the policy, stage costs and success."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor, nn

from ...core.batch import End, PreferencePairs, Record, RewardEstimates, TrajectoryBatch
from ...core.interfaces import RewardModel, TaskDecomposer
from ...core.losses import bradley_terry
from .cost_files import TaskCosts, load_costs
from .stage_tracks import RowCosts, StageCosts

TERMS = ("self", "external", "success")
"""Names of the terms of the score."""
WEIGHTS: dict[str, tuple[float, float, float]] = {"paper": (0.01, 0.01, 2.0), "repository": (0.01, 1.0, 5.0)}
"""Weights (self, external, success) of the paper's appendix A, and of the released code."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreInputs(Record):
    """Inputs of the score of every row, before they are weighed."""

    self_log_prob: Float64[Tensor, " B"]
    """Sum or mean of the log-probabilities of the acting policy; 0 where unknown."""
    excess: Float64[Tensor, "B J"]
    """max(0, aggregate − threshold) of each constraint of each cost file; 0 for the files of other tasks."""
    missed: Float64[Tensor, " B"]
    """Number of constraints whose stage was never reached."""
    success: Float64[Tensor, " B"]
    """Success of the episode in [0, 1]; 0 where unknown."""
    known: Bool[Tensor, "B 3"]
    """Whether the terms self, external, success are known."""
    finished: Bool[Tensor, " B"]
    """Whether the row is a whole, finished episode."""


class GrapeScore(RewardModel):
    """Trajectory score R = λ₁ R_self + λ₂ R_ext + λ₃ I_success (Zhang et al. 2024, arXiv:2411.19309, Eq. 9 to 11).

    R_self is the sum of the log-probabilities of the decisions under the policy that took them, R_ext =
    exp(−Σ stage costs), and I_success the success of the episode. The score is the reward of the last step. Each
    weighted term is in ``terms`` on the last step, and a term of weight 0 is left out. The whole row is invalid where a
    term of another weight is unknown (no recorded log-probability, no costs for the instruction, a missing track or
    stage, an unknown outcome), and in pieces of episodes; `why` gives the reason. Every other step of a valid row has a
    known reward of 0.

    Weights and the scale of every constraint can be trained from preferences. Both are multiplied by exp of a parameter
    that starts at 0, so that they stay positive and nothing changes before training. A weight of 0 stays 0. The cost of
    a stage that was never reached is not trained.

    Args:
        costs: Costs of each task: a name of the library, the path of a ``.json`` file, or its contents, which are saved
            with the model. A row takes the costs that list its instruction, or those that list none. Costs with a
            single stage cover whole episodes and need no stages.
        weights: λ₁, λ₂, λ₃, at least 0: ``"paper"`` (0.01, 0.01, 2), ``"repository"`` (0.01, 1, 5) or three numbers.
        self_reduce: Reduction over the decisions: ``"sum"`` as published, which is lower for longer episodes of a token
            policy, or ``"mean"``, which is not.
        log_prob_floor: Smallest log-probability of a decision, at most 0; the released code has ln 0.05, about −3.0.
            None sets no floor.
        unreached: Cost of a constraint whose stage was never reached, at least 0.
        decomposer: Source of the stages; None takes ``batch.labels["stage"]``, indices in the order of the file's.
        compare: Rows that `loss` compares: those of one initial state (``"group"``) or of one task and instruction.
        prior: Strength with which training keeps weights and scales near their start, at least 0.
        open_ends: Also score whole episodes whose end was not recorded, such as logged ones without a label. Leave it
            off for rollouts, where it would score pieces that were cut.

    Raises:
        ValueError: If an argument is out of its range, or the external term has a weight and there are no costs.
    """

    causal = False

    def __init__(
        self,
        costs: Sequence[str | Mapping[str, Any]] = (),
        weights: str | Sequence[float | int] = "repository",
        self_reduce: Literal["sum", "mean"] = "sum",
        log_prob_floor: float | int | None = None,
        unreached: float | int = 5.0,
        decomposer: TaskDecomposer | None = None,
        compare: Literal["group", "task"] = "group",
        prior: float = 0.001,
        open_ends: bool = False,
    ) -> None:
        super().__init__()
        if self_reduce not in ("sum", "mean") or compare not in ("group", "task"):
            raise ValueError(
                f'self_reduce {self_reduce!r}, compare {compare!r}: expected "sum" or "mean", "group" or "task"'
            )
        if not (math.isfinite(unreached) and unreached >= 0 and math.isfinite(prior) and prior >= 0):
            raise ValueError(f"unreached {unreached}, prior {prior}: expected finite numbers of at least 0")
        if log_prob_floor is not None and not (math.isfinite(log_prob_floor) and log_prob_floor <= 0):
            raise ValueError(
                f"log_prob_floor is {log_prob_floor}: expected None or a log-probability, at most 0; ln 0.05 is -3.0"
            )
        self.weights = _three(weights)
        self.files: list[TaskCosts] = [load_costs(source) for source in costs]
        self.init_args["costs"] = [file.model_dump(mode="json") for file in self.files]  # no path is saved
        if self.weights[1] and not self.files:
            raise ValueError("the external term has a weight and there are no costs: name some, or set its weight to 0")
        self.self_reduce, self.log_prob_floor = self_reduce, log_prob_floor
        self.unreached, self.compare, self.prior, self.open_ends = float(unreached), compare, prior, open_ends
        self.decomposer = None if decomposer is None else decomposer.requires_grad_(False)
        self._stage_costs = StageCosts(self.files)
        self._warned = False
        self.log_weights = nn.Parameter(torch.zeros(3))
        self.log_scales = nn.Parameter(torch.zeros(self._stage_costs.width))

    @property
    def term_weights(self) -> Float64[Tensor, "3"]:
        """Present weights λ₁, λ₂, λ₃."""
        start = torch.tensor(self.weights, dtype=torch.float64, device=self.log_weights.device)
        return start * self.log_weights.double().exp()

    @property
    def constraint_weights(self) -> Float64[Tensor, " J"]:
        """Present weight of every constraint, file by file."""
        start = self._stage_costs.weights.to(self.log_scales.device)
        return start * self.log_scales.double().exp()

    @torch.no_grad()
    def read(self, batch: TrajectoryBatch) -> ScoreInputs:
        """Compute the inputs of the score of every row; none of them depends on trained parameters.

        Raises:
            ValueError: If a track has the wrong shape or a known value that is not finite, or stages do not fit the
                costs; the message names it.
        """
        return self._read(batch)[0]

    def why(self, batch: TrajectoryBatch) -> list[str]:
        """Explain why each row cannot be scored; an empty text where it can.

        Raises:
            ValueError: See `read`.
        """
        inputs, external = self._read(batch)
        problems: list[str] = []
        for row in range(len(batch)):
            reasons = {
                "self": "the acting policy recorded no finite log-probability for every decision",
                "external": external[row].problem,
                "success": "it is not known whether it succeeded",
            }
            missing = [
                reasons[name]
                for place, name in enumerate(TERMS)
                if self.weights[place] and not bool(inputs.known[row, place])
            ]
            whole = [] if bool(inputs.finished[row]) else ["it is no whole, finished episode (see open_ends)"]
            problems.append("; ".join([*whole, *missing]))
        return problems

    def terms_of(self, inputs: ScoreInputs) -> dict[str, Float64[Tensor, " B"]]:
        """Compute the three terms, not weighted, with gradients; unknown entries hold a number without a meaning.

        Args:
            inputs: Inputs of the score, as `read` gives them.
        """
        cost = inputs.excess @ self.constraint_weights + self.unreached * inputs.missed
        # past this the reward stays the smallest positive float, and has no gradient
        cost = cost.clamp(max=-math.log(torch.finfo(torch.float64).tiny))
        return {"self": inputs.self_log_prob, "external": (-cost).exp(), "success": inputs.success}

    @torch.no_grad()
    def raw_terms(self, batch: TrajectoryBatch) -> dict[str, Float64[Tensor, " B"]]:
        """Compute the three terms of every row, not weighted and NaN where unknown, for reports and metrics."""
        inputs = self.read(batch)
        known = inputs.known & inputs.finished[:, None]
        return {
            name: torch.where(known[:, place], term, torch.nan)
            for place, (name, term) in enumerate(self.terms_of(inputs).items())
        }

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Compute the score of every row, as the reward of its last step."""
        inputs = self.read(batch)
        terms, dtype = self.terms_of(inputs), batch.weight.dtype
        scored = self._scorable(inputs, TERMS)
        valid = batch.mask & scored[:, None]
        index = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        last = valid & (index == batch.steps[:, None] - 1)
        placed: dict[str, Tensor] = {}
        for place, name in enumerate(TERMS):
            if self.weights[place]:
                value = (self.term_weights[place] * terms[name]).to(dtype)
                if name == "external":  # what is positive in double precision may be 0 in the batch's
                    value = value.clamp(min=torch.finfo(dtype).tiny)
                placed[name] = torch.where(last, value[:, None], 0.0)
        total = torch.stack(list(placed.values())).sum(0) if placed else torch.zeros_like(batch.weight)
        return RewardEstimates(rewards=torch.where(last, total, 0.0), valid=valid, terms=placed)

    def loss(self, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """Compute a Bradley–Terry loss of successes over failures without the success term, which is the label itself.

        Rows of one group, or of one task and instruction, are compared where one is known to have succeeded and the
        other to have failed. A warning is given once where no group holds both.
        """
        success = batch.success_known & (batch.success >= 1)
        failure = batch.success_known & (batch.success <= 0)
        text = {t: i for i, t in enumerate(dict.fromkeys(batch.instructions))}
        same_text = torch.tensor([text[t] for t in batch.instructions], device=batch.task.device)
        same = (batch.task[:, None] == batch.task) & (same_text[:, None] == same_text)
        pairs = same & success[:, None] & failure
        if self.compare == "group":
            grouped = pairs & (batch.group[:, None] == batch.group)
            if not self._warned and bool(pairs.any()) and not bool(grouped.any()):
                self._warned = True
                warnings.warn(
                    "nothing is compared: no group of the batch holds both a success and a failure; give rows of one "
                    'task and initial state the same batch.group, or compare all rows of a task with compare="task"',
                    stacklevel=2,
                )
            pairs = grouped
        chosen, rejected = pairs.nonzero(as_tuple=True)
        ones = torch.ones(len(chosen), device=batch.task.device)
        compared = PreferencePairs(batch=batch, chosen=chosen, rejected=rejected, label=ones, weight=ones)
        return self.preference_loss(compared, terms=("self", "external"))

    def preference_loss(self, pairs: PreferencePairs, terms: Sequence[str] = TERMS) -> dict[str, Tensor]:
        """Compute the loss of any preferences between rows; pairs with a row that cannot be scored are left out.

        Args:
            pairs: Pairs of rows of a batch, with the preferred one named.
            terms: Terms of the score that are compared.

        Returns:
            ``loss``; ``preference_loss`` without the prior; ``preference_accuracy`` over pairs that are no tie, 0.5
            where there is none; ``pairs``, the number that was used.
        """
        return self._loss(self.read(pairs.batch), pairs, terms)

    def fit(
        self, pairs: PreferencePairs, terms: Sequence[str] = TERMS, steps: int = 300, learning_rate: float = 0.05
    ) -> dict[str, float]:
        """Train weights and scales on preferences with Adam, all pairs at once; the batch is read only once.

        Args:
            pairs: Pairs of rows of a batch, with the preferred one named.
            terms: Terms of the score that are compared.
            steps: Number of updates.
            learning_rate: Learning rate of the logarithms of weights and scales.

        Returns:
            Loss and accuracy ``before`` and ``after``, and the number of ``pairs`` used.

        Raises:
            ValueError: If no pair can be used, or the score is frozen.
        """
        if not (self.log_weights.requires_grad and self.log_scales.requires_grad):
            raise ValueError("this score is frozen: fit it before it goes into GroupScore")
        inputs = self.read(pairs.batch)
        before = self._loss(inputs, pairs, terms)
        if not float(before["pairs"]):
            problem = next((p for p in self.why(pairs.batch) if p), "the pairs are empty or have no weight")
            raise ValueError(f"no pair to learn from; of the rows: {problem}")
        optimizer = torch.optim.Adam([self.log_weights, self.log_scales], lr=learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            self._loss(inputs, pairs, terms)["loss"].backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            after = self._loss(inputs, pairs, terms)
        metrics = {"pairs": float(before["pairs"])}
        for name in ("preference_loss", "preference_accuracy"):
            metrics |= {f"{name}_before": float(before[name].detach()), f"{name}_after": float(after[name])}
        return metrics

    def _loss(self, inputs: ScoreInputs, pairs: PreferencePairs, terms: Sequence[str]) -> dict[str, Tensor]:
        unknown = sorted(set(terms) - set(TERMS))
        if unknown:
            raise ValueError(f"unknown term {unknown[0]!r}: expected some of {', '.join(TERMS)}")
        values, scored = self.terms_of(inputs), self._scorable(inputs, terms)
        parts = [
            self.term_weights[place] * torch.where(scored, values[name], 0.0)
            for place, name in enumerate(TERMS)
            if name in terms and self.weights[place]
        ]
        score = torch.stack(parts).sum(0) if parts else torch.zeros_like(inputs.success)
        used = scored[pairs.chosen] & scored[pairs.rejected]
        weight = torch.where(used, pairs.weight.double(), 0.0)
        chosen, rejected = score[pairs.chosen], score[pairs.rejected]
        preference = bradley_terry(chosen, rejected, label=pairs.label.double(), weight=weight)
        held = self.log_weights.double().square().sum() + self.log_scales.double().square().sum()
        right = torch.where(chosen == rejected, 0.5, (chosen > rejected).double())
        right = torch.where(pairs.label >= 0.5, right, 1 - right)
        counted = (weight > 0) & (pairs.label != 0.5)
        accuracy = right[counted].mean() if bool(counted.any()) else right.new_full((), 0.5)
        return {
            "loss": (preference + self.prior * held).float(),
            "preference_loss": preference.detach().float(),
            "preference_accuracy": accuracy.detach().float(),
            "pairs": (weight > 0).sum().float(),
        }

    def _scorable(self, inputs: ScoreInputs, terms: Sequence[str]) -> Bool[Tensor, " B"]:
        needed = [place for place, name in enumerate(TERMS) if name in terms and self.weights[place]]
        return inputs.finished & inputs.known[:, needed].all(1)

    def _read(self, batch: TrajectoryBatch) -> tuple[ScoreInputs, list[RowCosts]]:
        device = batch.mask.device
        log_prob, log_prob_known = self._self(batch)
        finished = batch.whole
        if not self.open_ends:
            finished = finished & (batch.end != End.CUT)
        rows = [RowCosts(problem="the external term has no weight")] * len(batch)
        if self.files and (self.weights[1] or self.log_scales.numel()):
            rows = self._stage_costs.measure(batch, self.decomposer, finished)
        excess = torch.zeros(len(batch), self._stage_costs.width, dtype=torch.float64)
        for place, row in enumerate(rows):
            if not row.problem:
                excess[place, row.first : row.first + len(row.table)] = torch.tensor(row.excess, dtype=torch.float64)
        known = torch.stack(
            [log_prob_known, torch.tensor([not r.problem for r in rows], device=device), batch.success_known], 1
        )
        inputs = ScoreInputs(
            self_log_prob=log_prob,
            excess=excess.clamp(max=1e30).to(device),  # an infinite one would have no gradient at all
            missed=torch.tensor([float(r.missed) for r in rows], dtype=torch.float64, device=device),
            success=torch.where(batch.success_known, batch.success, 0.0).double(),
            known=known,
            finished=finished,
        )
        return inputs, rows

    def _self(self, batch: TrajectoryBatch) -> tuple[Float64[Tensor, " B"], Bool[Tensor, " B"]]:
        """Reduce the log-probabilities of each row's decisions, and find where all of them are known."""
        log_prob, decided = batch.behaviour.get("log_prob"), batch.decision_mask
        if log_prob is None:
            return torch.zeros_like(batch.steps, dtype=torch.float64), torch.zeros_like(batch.success_known)
        units = log_prob.double().flatten(2) if log_prob.ndim > 2 else log_prob.double()[..., None]
        counted = carried_units(batch, units.shape[2])
        each = torch.where(decided[..., None] & counted, units, 0.0).sum(2)
        if self.log_prob_floor is not None:
            each = each.clamp(min=self.log_prob_floor)  # NaN stays NaN
        known = ((each.isfinite() & counted.any(2)) | ~decided).all(1) & decided.any(1)
        total = torch.where(decided & known[:, None], each, 0.0).sum(1)
        return (total if self.self_reduce == "sum" else total / decided.sum(1).clamp(min=1)), known


def carried_units(batch: TrajectoryBatch, units: int) -> Bool[Tensor, "B N U"]:
    """Find the units of recorded log-probabilities that are real and belong to steps that were executed.

    Units that ``behaviour["unit_mask"]`` marks as padding never count. Chunks of H steps with one unit per step (H of
    them) or per action dimension (H · A) are cut where the next decision came or the row ended. Any other units belong
    to the decision as a whole: tokens in another number than H · A, and denoising steps (a recorded chain).

    Args:
        batch: Trajectories with the recorded behaviour.
        units: U, number of units per decision.

    Raises:
        ValueError: If the unit mask is not bool, or has another number of units.
    """
    sample, mask = batch.behaviour.get("sample"), batch.behaviour.get("unit_mask")
    step = batch.decision_step
    carried = torch.ones((*step.shape, units), dtype=torch.bool, device=step.device)
    if mask is not None:
        real = mask.flatten(2) if mask.ndim > 2 else mask[..., None]
        if real.dtype != torch.bool or real.shape != carried.shape:
            raise ValueError(
                f'behaviour["unit_mask"]: expected bool and a unit for each of the {units} of log_prob, got '
                f"{mask.dtype} {tuple(mask.shape)}"
            )
        carried = real
    if sample is None or sample.ndim != 4 or "chain" in batch.behaviour:
        return carried
    horizon, size = sample.shape[2:]
    a_step = units == horizon and "tokens" not in batch.behaviour  # as many tokens as steps is a coincidence
    if not a_step and units != horizon * size:
        return carried
    later = torch.nn.functional.pad(step[:, 1:], (0, 1), value=-1)
    later = torch.where(later >= 0, later, batch.steps[:, None])
    place = torch.arange(units, device=step.device) // (max(1, units // max(1, horizon)))
    return carried & (place < (later - step)[..., None])


def _three(weights: str | Sequence[float | int]) -> tuple[float, float, float]:
    if isinstance(weights, str):
        if weights not in WEIGHTS:
            raise ValueError(f"weights {weights!r}: expected {', '.join(WEIGHTS)} or three numbers")
        return WEIGHTS[weights]
    if len(weights) != 3 or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(
            f"weights {list(weights)}: expected three finite numbers of at least 0 (self, external, success)"
        )
    return float(weights[0]), float(weights[1]), float(weights[2])


__all__ = ["TERMS", "WEIGHTS", "GrapeScore", "ScoreInputs", "carried_units"]
