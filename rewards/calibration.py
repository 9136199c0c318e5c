"""A reward model with calibrated success probabilities that abstains where its doubt is large."""

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

from ..core.batch import Labelled, RewardEstimates, TrajectoryBatch
from ..core.interfaces import RewardModel
from .calibration_curves import METHODS, Curve, Method, interpolate, rescale_logit
from .combine import Around


class Calibrated(Around):
    """Wrapper of a reward model that maps its success probability and abstains where its doubt is large.

    Rewards stay those of the wrapped model, so that their scale does not change. To reward calibrated progress or
    success, wrap the result: ``FirstHit(Calibrated(…))``.

    Where the model abstains, rewards, progress and success are invalid, and are left out of scores, returns and losses.
    There are two limits, both infinite by default:

    * on the spread: a step whose ``std`` is above the limit has no reward, and the observation it leads to has no
      estimate. No step leads to observation 0, so that one always keeps its estimate;
    * on the confidence: an observation whose min(p, 1 − p) is above the limit has no estimate, and the steps before and
      after it have no reward.

    Args:
        reward: Reward model to wrap; it is not trained here.
        method: Map of success; see `guerdon.rewards.calibration_curves.fit_curve`.
        knots: Number of knots of the isotonic map of success; 0 for the other methods.
        progress_knots: Number of knots of the isotonic map of progress; 0 leaves progress as it is.

    Raises:
        ValueError: If the method is unknown, or knots do not fit it.
    """

    slope: Tensor
    bias: Tensor
    success_x: Tensor
    success_y: Tensor
    progress_x: Tensor
    progress_y: Tensor
    spread_limit: Tensor
    doubt_limit: Tensor

    def __init__(
        self, reward: RewardModel, method: Method = "isotonic", knots: int = 0, progress_knots: int = 0
    ) -> None:
        super().__init__(reward=reward)
        if method not in METHODS:
            raise ValueError(f"method is {method!r}: expected one of {', '.join(METHODS)}")
        if progress_knots < 0 or (knots < 1 if method == "isotonic" else knots != 0):
            raise ValueError(
                f"{knots} and {progress_knots} knots with method {method}: isotonic maps have at least one, the others "
                "none; calibrate() makes a model that fits"
            )
        self.method: Method = method
        # NaN until fitted, so that an unfitted model is not taken for a calibrated one
        for name, size in (("slope", ()), ("bias", ()), ("success_x", (knots,)), ("success_y", (knots,))):
            self.register_buffer(name, torch.full(size, torch.nan, dtype=torch.float64))
        for name in ("progress_x", "progress_y"):
            self.register_buffer(name, torch.full((progress_knots,), torch.nan, dtype=torch.float64))
        for name in ("spread_limit", "doubt_limit"):
            self.register_buffer(name, torch.full((), torch.inf, dtype=torch.float64))

    @classmethod
    def from_curves(
        cls,
        reward: RewardModel,
        method: Method,
        success: Curve,
        progress: Curve | None = None,
        spread_limit: float = math.inf,
        doubt_limit: float = math.inf,
    ) -> "Calibrated":
        """Wrap a model with fitted maps and limits.

        Args:
            reward: Reward model to wrap.
            method: Method that ``success`` was fitted with.
            success: Map of the success probability.
            progress: Isotonic map of progress; None leaves progress as it is.
            spread_limit: Largest ``std`` that the model does not abstain on.
            doubt_limit: Largest min(p, 1 − p) that the model does not abstain on.
        """
        made = cls(reward, method, len(success.x), 0 if progress is None else len(progress.x))
        values: dict[str, np.ndarray | float] = {"slope": success.slope, "bias": success.bias}
        values |= {"success_x": success.x, "success_y": success.y}
        values |= {"spread_limit": spread_limit, "doubt_limit": doubt_limit}
        values |= {} if progress is None else {"progress_x": progress.x, "progress_y": progress.y}
        with torch.no_grad():
            for name, value in values.items():
                made.get_buffer(name).copy_(torch.as_tensor(value, dtype=torch.float64))
        device = next((p.device for p in reward.parameters()), torch.device("cpu"))
        return made.to(device).train(reward.training)

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Estimate with the wrapped model, map success and progress, and mark as invalid what is in doubt.

        Raises:
            RuntimeError: If nothing was fitted.
            ValueError: If the model gives no success, or no spread where there is a limit on it.
        """
        isotonic = self.method == "isotonic"
        if bool(self.success_x.isnan().any() if isotonic else self.slope.isnan()):
            raise RuntimeError("Calibrated has no map yet: make it with guerdon.calibrate")
        inner = self.reward(batch)
        if inner.success is None:
            raise ValueError(f"{type(self.reward).__name__} estimates no success: there is nothing to calibrate")
        probability = torch.where(inner.success.valid, inner.success.values, 0.5)
        chance = (
            interpolate(probability, self.success_x, self.success_y)
            if isotonic
            else rescale_logit(probability, self.slope, self.bias)
        )
        steps, observations = self._unsure(inner, torch.minimum(chance, 1 - chance), inner.success.valid)
        progress = inner.progress
        if progress is not None and len(self.progress_x):
            mapped = interpolate(torch.where(progress.valid, progress.values, 0.0), self.progress_x, self.progress_y)
            progress = Labelled(values=mapped.to(progress.values.dtype), valid=progress.valid)
        valid = inner.valid & ~steps
        return RewardEstimates(
            rewards=torch.where(valid, inner.rewards, 0.0),
            valid=valid,
            progress=None if progress is None else _without(progress, observations),
            success=_without(replace(inner.success, values=chance.to(inner.success.values.dtype)), observations),
            std=None if inner.std is None else torch.where(valid, inner.std, 0.0),
            terms={name: torch.where(valid, term, 0.0) for name, term in inner.terms.items()},
        )

    def _unsure(
        self, inner: RewardEstimates, doubt: Tensor, known: Tensor
    ) -> tuple[Bool[Tensor, "B T"], Bool[Tensor, "B Tp1"]]:
        """Find the steps and observations to abstain on."""
        observations = torch.zeros_like(known)
        steps = torch.zeros_like(inner.valid)
        if bool(self.doubt_limit.isfinite()):
            observations = known & (doubt > self.doubt_limit)
            steps = observations[:, 1:] | observations[:, :-1]
        if bool(self.spread_limit.isfinite()):
            if inner.std is None:
                raise ValueError(f"{type(self.reward).__name__} gives no spread, but there is a limit on it")
            wide = inner.valid & (inner.std.double() > self.spread_limit)
            steps, observations = steps | wide, observations | pad(wide, (1, 0))
        return steps, observations


def _without(column: Labelled, unsure: Bool[Tensor, "B Tp1"]) -> Labelled:
    valid = column.valid & ~unsure
    return Labelled(values=torch.where(valid, column.values, 0.0), valid=valid)


__all__ = ["Calibrated"]
