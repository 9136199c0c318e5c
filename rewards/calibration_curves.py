"""Monotone maps that calibrate a model's probability, and the fit of each."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from torch import Tensor

Method = Literal["temperature", "platt", "isotonic"]
METHODS: tuple[Method, ...] = ("temperature", "platt", "isotonic")
_TEMPERATURES = (0.01, 100.0)
# what float32 rounds back to 0 and 1, and so still tells them from their neighbours
_LOWEST, _HIGHEST = 2.0**-151, 1 - 2.0**-26


def rescale_logit(
    probability: Shaped[Tensor, "..."], slope: float | Tensor, bias: float | Tensor
) -> Float64[Tensor, "..."]:
    """Compute σ(slope · logit(p) + bias), elementwise and in float64; slope 1 and bias 0 leave p as it is."""
    p = probability.double().clamp(_LOWEST, _HIGHEST)
    return torch.sigmoid(slope * (p.log() - (-p).log1p()) + bias)


def interpolate(
    probability: Shaped[Tensor, "..."], x: Float64[Tensor, " N"], y: Float64[Tensor, " N"]
) -> Float64[Tensor, "..."]:
    """Interpolate linearly through knots, in float64.

    Args:
        probability: Numbers to map.
        x: Places of the knots, ascending.
        y: Values at the knots; the first and the last one also hold outside.
    """
    p = probability.double()
    if len(x) == 1:
        return y.expand(p.shape)
    right = torch.searchsorted(x, p.contiguous()).clamp(1, len(x) - 1)
    share = ((p - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
    return torch.lerp(y[right - 1], y[right], share)


def _no_knots() -> Float64[np.ndarray, " N"]:
    return np.zeros(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A monotone map of probabilities: σ(slope · logit + bias), or linear interpolation between knots."""

    slope: float = 1.0
    """Factor of the logit."""
    bias: float = 0.0
    """Shift of the logit."""
    x: Float64[np.ndarray, " N"] = field(default_factory=_no_knots)
    """Places of the knots; empty for temperature and Platt scaling."""
    y: Float64[np.ndarray, " N"] = field(default_factory=_no_knots)
    """Values at the knots."""

    def __call__(self, probability: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Map probabilities."""
        p = torch.from_numpy(np.asarray(probability, np.float64))
        if len(self.x):
            return interpolate(p, torch.from_numpy(self.x), torch.from_numpy(self.y)).numpy()
        return rescale_logit(p, self.slope, self.bias).numpy()


def fit_curve(probability: Float[np.ndarray, " n"], label: Float[np.ndarray, " n"], method: Method) -> Curve:
    """Fit a monotone map from predicted probabilities to observed outcomes.

    * ``"temperature"`` divides the logit by the τ that minimises the negative log-likelihood (Guo et al. 2017,
      arXiv:1706.04599, §4.2). It can make a model less or more sure, but not move its base rate.
    * ``"platt"`` also shifts the logit: logistic regression on it, with Platt's (1999) smoothed targets
      (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2), which keep the slope finite where the classes can be separated.
    * ``"isotonic"`` is the monotone step function with the smallest squared error, interpolated between its knots
      (Zadrozny and Elkan 2002). It can take any monotone shape and needs more data.

    Where the probability does not rise with success, Platt's slope is held at 0, and every probability becomes the base
    rate.

    Args:
        probability: Predicted probabilities, in [0, 1].
        label: Observed outcomes, in [0, 1].
        method: Map to fit.

    Raises:
        ValueError: If the method is unknown, an entry is no number in [0, 1], or no label is above or below ½.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: expected one of {', '.join(METHODS)}")
    _check(probability, "probability")
    _check(label, "label")
    positives, negatives = int((label >= 0.5).sum()), int((label < 0.5).sum())
    if not positives or not negatives:
        raise ValueError(f"{positives} positive and {negatives} negative labels: a calibration needs both")
    if method == "isotonic":
        return fit_isotonic(probability, label)
    logit = _logit(probability)
    return Curve(slope=1 / _temperature(logit, label)) if method == "temperature" else _platt(logit, label)


def fit_isotonic(value: Float[np.ndarray, " n"], target: Float[np.ndarray, " n"]) -> Curve:
    """Fit an isotonic regression of targets in [0, 1] on values.

    Args:
        value: Numbers to map.
        target: Target of each, in [0, 1].
    """
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    fitted.fit(np.asarray(value, np.float64), np.asarray(target, np.float64))
    knots = cast(Any, fitted)
    x, y = np.asarray(knots.X_thresholds_, np.float64), np.asarray(knots.y_thresholds_, np.float64)
    return Curve(x=x, y=y)


def _check(values: np.ndarray, name: str) -> None:
    if not len(values) or not (np.isfinite(values) & (values >= 0) & (values <= 1)).all():
        span = f"{values.min()} to {values.max()}" if len(values) else "none"
        raise ValueError(f"{name}: expected numbers in [0, 1], got {span}")


def _logit(probability: np.ndarray) -> np.ndarray:
    p = np.clip(np.asarray(probability, np.float64), _LOWEST, _HIGHEST)
    return np.log(p) - np.log1p(-p)


def _temperature(logit: np.ndarray, label: np.ndarray) -> float:
    def loss(log_temperature: float) -> float:
        scaled = logit * math.exp(-log_temperature)
        return float((label * np.logaddexp(0, -scaled) + (1 - label) * np.logaddexp(0, scaled)).mean())

    low, high = (math.log(t) for t in _TEMPERATURES)
    # convex in 1/τ, hence with one valley in log τ
    found = cast(Any, minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-7}))
    return math.exp(float(found.x))


def _platt(logit: np.ndarray, label: np.ndarray) -> Curve:
    positive, negative = float(label.sum()), float((1 - label).sum())
    target = label * (positive + 1) / (positive + 2) + (1 - label) / (negative + 2)
    rate = math.log(target.sum() / (1 - target).sum())
    scale, middle = float(logit.std()), float(logit.mean())
    if logit.min() == logit.max():
        return Curve(slope=0.0, bias=rate)
    rows = ((logit - middle) / scale)[:, None]
    both, classes = np.concatenate([rows, rows]), np.repeat([1, 0], len(rows))
    # each entry counts as both outcomes, by its target; a penalty this small leaves the optimum where it is
    model = LogisticRegression(C=1e12, solver="newton-cholesky", tol=1e-10, max_iter=200)
    model.fit(both, classes, sample_weight=np.concatenate([target, 1 - target]))
    slope = float(cast(Any, model).coef_[0, 0]) / scale
    if slope <= 0:
        return Curve(slope=0.0, bias=rate)
    return Curve(slope=slope, bias=float(cast(Any, model).intercept_[0]) - slope * middle)


__all__ = ["METHODS", "Curve", "Method", "fit_curve", "fit_isotonic", "interpolate", "rescale_logit"]
