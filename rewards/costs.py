"""Declarative stage costs: constraints on the stages of a task, and what their violation costs a trajectory.

A constraint is data, not code: one of six operations over named points and flags of a track, with a threshold up to
which it costs nothing. It is evaluated here and nowhere else, so nothing that a language model proposes is ever run.
The reward of a trajectory is the product over its stages of exp(−cost of the stage) (GRAPE, arXiv:2411.19309, Eq. 8),
with thresholds as in the authors' released code:

    cost of a constraint = weight · max(0, aggregate over the stage's steps of its per-step cost − threshold)

| op | cost of a step |
|---|---|
| ``dist`` | ‖a − b‖ |
| ``dist_xy`` | the same in the plane |
| ``above`` | 1 where a is not above b: z_a ≤ z_b + margin |
| ``clearance`` | max(0, margin − ‖a − b‖) |
| ``flag`` | 1 where flag a is False |
| ``steps`` | 1 |
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Kind = Literal["path", "collision", "grasp"]
Op = Literal["dist", "dist_xy", "above", "clearance", "flag", "steps"]
Aggregate = Literal["sum", "mean", "last", "min", "max"]

PAIRED: tuple[Op, ...] = ("dist", "dist_xy", "above", "clearance")
"""Operations on two points."""

UNREACHED = 5.0
"""Default cost of a constraint whose stage was never reached."""

SMALLEST = sys.float_info.min
"""Smallest reward of a trajectory: the smallest positive float of full precision."""


def _whole(value: object) -> object:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError(f"expected a whole number, got {value!r}")
    return int(value)


def _number(value: object) -> object:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("expected a number that fits a float") from None


Number = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, Field(strict=True, min_length=1, max_length=100)]


class Constraint(BaseModel):
    """One constraint on a stage. Numbers are finite; unknown words and further fields are refused.

    Raises:
        pydantic.ValidationError: A `ValueError` that names the field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    stage: Annotated[int, BeforeValidator(_whole), Field(ge=0)]
    """Index of the stage it belongs to."""
    name: Text
    """Name of the constraint in reports."""
    kind: Kind
    """Group of the constraint; `rewards.grape.cost_files` re-weights groups. It changes no number here."""
    op: Op
    a: Text
    """Name of a point, or of a flag for ``flag``. ``steps`` reads neither."""
    b: Text | None = None
    """Name of the other point, for operations on two points; the others do not read it."""
    margin: Number = 0.0
    """Distance in metres, for ``above`` and ``clearance``."""
    aggregate: Aggregate = "sum"
    """Aggregate of the per-step costs of the stage."""
    threshold: Number = 0.0
    """Value of the aggregate up to which the constraint costs nothing; below 0 it always costs something."""
    weight: Annotated[Number, Field(ge=0)] = 1.0
    """Factor of what lies above the threshold, at least 0."""

    @model_validator(mode="after")
    def _two_points(self) -> "Constraint":
        if self.op in PAIRED and self.b is None:
            raise ValueError(f"{self.op} reads two points: name the second one in b")
        return self


@dataclass(frozen=True, kw_only=True)
class ConstraintCost:
    """Cost of one constraint for one trajectory."""

    constraint: Constraint
    per_step: Float64[np.ndarray, " K"]
    """Cost of each of the K steps of its stage."""
    aggregate: float | None
    """Aggregate of the per-step costs; None where the stage has no step."""
    excess: float
    """max(0, aggregate − threshold); 0 where the stage has no step, infinite where finite inputs overflow."""
    cost: float
    """weight · excess, or the cost of a stage that was never reached."""

    @property
    def reached(self) -> bool:
        """Whether the stage has a step."""
        return self.aggregate is not None


def external_reward(
    constraints: Sequence[Constraint | Mapping[str, Any]], track: Mapping[str, Any], unreached: float | int = UNREACHED
) -> float:
    """Compute the reward of one trajectory, exp(−Σ costs) in (0, 1]; 1 without constraints.

    Args:
        constraints: Constraints in any order; a dictionary is validated first.
        track: Name → numpy array, all of one length T: ``"stage"`` (T,) whole numbers, −1 where a step belongs to no
            stage; points (T, 3) in metres; flags (T,) bool. Arrays that no constraint names may be of any kind.
        unreached: Cost of a constraint whose stage has no step, at least 0: not weighted, once per constraint. Without
            it a trajectory that fails early would be rewarded for stages it never tried.

    Returns:
        The reward, at least the smallest positive float, also where costs overflow.

    Raises:
        ValueError: If the track does not hold a name, an array has another shape or kind, a value of an array that a
            constraint reads is not finite at any step, a stage is below −1, or a constraint is invalid; the message
            names it.
    """
    return reward_of(sum(row.cost for row in cost_table(constraints, track, unreached)))


def cost_table(
    constraints: Sequence[Constraint | Mapping[str, Any]], track: Mapping[str, Any], unreached: float | int = UNREACHED
) -> list[ConstraintCost]:
    """Compute the cost of every constraint, in the order given, for reports and for other weights.

    Args:
        constraints: See `external_reward`.
        track: See `external_reward`.
        unreached: See `external_reward`.

    Raises:
        ValueError: See `external_reward`.
    """
    if isinstance(unreached, bool) or not (math.isfinite(unreached) and unreached >= 0):
        raise ValueError(f"unreached is {unreached}: expected a finite cost of at least 0")
    reader = _Track(track)
    rows: list[ConstraintCost] = []
    for given in constraints:
        constraint = given if isinstance(given, Constraint) else Constraint.model_validate(given)
        with np.errstate(over="ignore"):  # an infinite cost gives the smallest reward, and is no error
            per_step = _per_step(constraint, reader)[reader.stage == constraint.stage]
            aggregate = _aggregate(constraint.aggregate, per_step) if len(per_step) else None
        excess = 0.0 if aggregate is None else max(0.0, aggregate - constraint.threshold)
        weighted = constraint.weight * excess if constraint.weight else 0.0  # 0 · ∞ would not be a number
        cost = float(unreached) if aggregate is None else weighted
        rows.append(
            ConstraintCost(constraint=constraint, per_step=per_step, aggregate=aggregate, excess=excess, cost=cost)
        )
    return rows


def reward_of(cost: float | int) -> float:
    """Compute the reward exp(−cost) in (0, 1], never below the smallest positive float.

    Args:
        cost: Total cost, at least 0.
    """
    return max(math.exp(-cost), SMALLEST)


def stage_costs(table: Sequence[ConstraintCost]) -> dict[int, float]:
    """Sum the costs of every stage that has a constraint: the exponents of the product over stages.

    Args:
        table: Costs of the constraints, as `cost_table` gives them.

    Returns:
        Index of the stage → cost.
    """
    total: dict[int, float] = {}
    for row in sorted(table, key=lambda row: row.constraint.stage):
        total[row.constraint.stage] = total.get(row.constraint.stage, 0.0) + row.cost
    return total


def _per_step(constraint: Constraint, track: "_Track") -> Float64[np.ndarray, " T"]:
    """Compute the cost of every step, as if all belonged to the stage."""
    if constraint.op == "steps":
        return np.ones(len(track.stage))
    if constraint.op == "flag":
        return (~track.flag(constraint.a)).astype(np.float64)
    assert constraint.b is not None  # validated
    a, b = track.point(constraint.a), track.point(constraint.b)
    if constraint.op == "above":
        return (a[:, 2] <= b[:, 2] + constraint.margin).astype(np.float64)
    away = a - b
    apart = np.hypot(away[:, 0], away[:, 1])  # hypot: squares would overflow long before the distance does
    if constraint.op == "dist_xy":
        return apart
    apart = np.hypot(apart, away[:, 2])
    return apart if constraint.op == "dist" else np.maximum(0.0, constraint.margin - apart)


def _aggregate(how: Aggregate, per_step: Float64[np.ndarray, " K"]) -> float:
    if how == "last":
        return float(per_step[-1])
    return float({"sum": np.sum, "mean": np.mean, "min": np.min, "max": np.max}[how](per_step))


class _Track:
    """Arrays of a track, each checked when it is first read."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays
        self._points: dict[str, Float64[np.ndarray, "T 3"]] = {}
        self.stage: Int[np.ndarray, " T"] = self._stages()

    def _find(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            held = ", ".join(sorted(self._arrays)) or "nothing"
            raise ValueError(f"the track holds no {name!r}; it holds {held}")
        return np.asarray(self._arrays[name])

    def _stages(self) -> Int[np.ndarray, " T"]:
        stage = self._find("stage")
        if stage.ndim != 1 or (stage.dtype.kind not in "iu" and stage.size):
            raise ValueError(f"'stage': expected whole numbers (T,), got {stage.dtype} {stage.shape}")
        if stage.size and int(stage.min()) < -1:
            step = int(stage.argmin())
            raise ValueError(f"'stage' is {int(stage[step])} at step {step}: expected -1 for none, or an index")
        for name in self._arrays:
            array = self._find(name)
            if array.ndim == 0 or len(array) != len(stage):
                got = array.shape[0] if array.ndim else "a single value"
                raise ValueError(f"{name!r}: expected {len(stage)} steps, as 'stage' has, got {got}")
        return stage.astype(np.int64)

    def point(self, name: str) -> Float64[np.ndarray, "T 3"]:
        if name not in self._points:
            points = self._find(name)
            if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "fiu":
                raise ValueError(f"{name!r}: expected points (T, 3), got {points.dtype} {points.shape}")
            points = points.astype(np.float64)
            wrong = ~np.isfinite(points).all(1)
            if wrong.any():
                step = int(wrong.argmax())
                raise ValueError(f"{name!r} is {points[step].tolist()} at step {step}: expected finite numbers")
            self._points[name] = points
        return self._points[name]

    def flag(self, name: str) -> Bool[np.ndarray, " T"]:
        flag = self._find(name)
        if flag.ndim != 1 or (flag.dtype != np.bool_ and flag.size):
            raise ValueError(f"{name!r}: expected a flag, bool (T,), got {flag.dtype} {flag.shape}")
        return flag.astype(np.bool_)


__all__ = ["Constraint", "ConstraintCost", "cost_table", "external_reward", "reward_of", "stage_costs"]
