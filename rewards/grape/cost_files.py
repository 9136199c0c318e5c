"""Files of stage costs, one per task, and objectives that re-weight them."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.interfaces import TaskPlan
from ..costs import PAIRED, Constraint, Kind, Number
from ..stages.plans import Name as StageName
from ..stages.plans import unique_keys

LIBRARY = Path(__file__).parents[2] / "configs" / "costs"
"""Folder of the files of the simulated tasks, as ``<suite>/<task>.json``."""

MAX_STAGES, MAX_CONSTRAINTS, MAX_NUMBER = 12, 48, 1e6
"""Largest number of stages, of constraints, and largest magnitude of any number in a file."""

_NAME = r"[A-Za-z][A-Za-z0-9_\- ]{0,38}[A-Za-z0-9]|[A-Za-z]"
_TRACK = r"[A-Za-z][A-Za-z0-9_\-./ ]{0,38}[A-Za-z0-9_]|[A-Za-z]"
Name = Annotated[str, Field(strict=True, pattern=rf"^(?:{_TRACK})$")]
"""Name of a point, a flag or a number: at most 40 letters, digits, spaces, ``_``, ``-``, ``.`` and ``/``, which begins
with a letter and ends with a letter, a digit or ``_``."""


class FlagRule(BaseModel):
    """Flag computed from a recorded number: True where it is below, or above, a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    track: Name
    """Name of the recorded number, such as the opening of the gripper."""
    below: Number | None = None
    """Value below which the flag is True."""
    above: Number | None = None
    """Value above which the flag is True."""

    @model_validator(mode="after")
    def _one_bound(self) -> "FlagRule":
        if (self.below is None) == (self.above is None):
            raise ValueError("expected one bound: either below or above")
        return self


class TaskCosts(BaseModel):
    """Stage costs of one task, as in a JSON file.

    Raises:
        pydantic.ValidationError: A `ValueError` that names what is wrong: unknown words and fields, a stage that is not
            listed, names that occur twice, ``b`` where the operation reads none, numbers beyond a million.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: Annotated[str, Field(strict=True, min_length=1, max_length=100)]
    """Name of the task, such as ``metaworld/push-v3``."""
    instructions: tuple[Annotated[str, Field(strict=True, min_length=1)], ...] = ()
    """Instructions the costs apply to, word by word; empty for all."""
    stages: Annotated[tuple[StageName, ...], Field(min_length=1, max_length=MAX_STAGES)]
    """Names of the stages in their order; a constraint refers to one by its index."""
    constraints: Annotated[tuple[Constraint, ...], Field(max_length=MAX_CONSTRAINTS)]
    """Constraints of the stages."""
    points: dict[Name, tuple[Number, Number, Number]] = {}
    """Fixed points, in metres, such as an obstacle that is not tracked."""
    flags: dict[Name, FlagRule] = {}
    """Flags computed from recorded numbers."""

    @model_validator(mode="after")
    def _consistent(self) -> "TaskCosts":
        lowered = [name.casefold() for name in self.stages]
        if len(set(lowered)) < len(lowered):
            raise ValueError(f"stages: expected distinct names, got {', '.join(self.stages)}")
        made = [*self.points, *self.flags]
        if "stage" in made or len(set(made)) < len(made):
            raise ValueError(f"points and flags: expected distinct names other than 'stage', got {', '.join(made)}")
        seen: set[tuple[int, str]] = set()
        if "stage" in self.read_points | self.read_flags | self.read_numbers:
            raise ValueError("'stage' holds the stages: give the point, flag or number that is read another name")
        for constraint in self.constraints:
            self._check(constraint)
            if (constraint.stage, constraint.name) in seen:
                raise ValueError(f"stage {constraint.stage} has two constraints named {constraint.name!r}")
            seen.add((constraint.stage, constraint.name))
        return self

    def _check(self, constraint: Constraint) -> None:
        what = f"constraint {constraint.name!r}"
        if not re.fullmatch(_NAME, constraint.name):
            raise ValueError(
                f"{what}: expected plain names of letters, digits, spaces, _ and -, got {constraint.name!r}"
            )
        for name in (constraint.a, constraint.b):
            if name is not None:
                check_name(name, what)
        if constraint.stage >= len(self.stages):
            raise ValueError(f"{what} is for stage {constraint.stage}: the stages are 0 … {len(self.stages) - 1}")
        if constraint.op not in PAIRED and constraint.b is not None:
            raise ValueError(f"{what}: {constraint.op} reads no second point, got b = {constraint.b!r}")
        for field in ("margin", "threshold", "weight"):
            if abs(getattr(constraint, field)) > MAX_NUMBER:
                raise ValueError(f"{what}: expected a {field} of at most {MAX_NUMBER:g}")

    @property
    def read_points(self) -> frozenset[str]:
        """Recorded points that the constraints read."""
        paired = [c for c in self.constraints if c.op in PAIRED]
        return frozenset(n for c in paired for n in (c.a, c.b) if n is not None and n not in self.points)

    @property
    def read_flags(self) -> frozenset[str]:
        """Recorded flags that the constraints read; flags computed from numbers are not among them."""
        return frozenset(c.a for c in self.constraints if c.op == "flag" and c.a not in self.flags)

    @property
    def read_numbers(self) -> frozenset[str]:
        """Recorded numbers that flags are computed from."""
        used = {c.a for c in self.constraints if c.op == "flag"}
        return frozenset(rule.track for name, rule in self.flags.items() if name in used)

    def complete(self, track: Mapping[str, Any]) -> dict[str, Any]:
        """Add the fixed points and the computed flags to a track.

        Args:
            track: Arrays as in `guerdon.external_reward`, and the numbers (T,) behind the flags.

        Raises:
            ValueError: If the track already holds such a name, lacks a number, or holds one that is not finite.
        """
        made: dict[str, Any] = {}
        length = len(np.asarray(track["stage"]))
        for name, point in self.points.items():
            made[name] = np.tile(np.array(point, np.float64), (length, 1))
        used = {c.a for c in self.constraints if c.op == "flag"}
        for name, rule in self.flags.items():
            if name in used:
                made[name] = _flag(name, rule, track)
        for name in made:
            if name in track:
                raise ValueError(f"{self.task}: {name!r} is in the cost file and recorded too: rename one of them")
        return {**track, **made}

    def check_plan(self, plan: TaskPlan) -> None:
        """Refuse a plan with other stages, under which an index would mean another stage.

        Args:
            plan: Plan of a decomposer.

        Raises:
            ValueError: If the stages differ, naming both.
        """
        names = tuple(stage.name for stage in plan.stages)
        if names != self.stages:
            raise ValueError(
                f"the costs of {self.task} are for the stages {', '.join(self.stages)}, and the plan of "
                f"{plan.instruction!r} has {', '.join(names) or 'none'}: use costs and a decomposer that agree"
            )


def _flag(name: str, rule: FlagRule, track: Mapping[str, Any]) -> np.ndarray:
    if rule.track not in track:
        raise ValueError(f"flag {name!r} is computed from {rule.track!r}, which the track does not hold")
    values = np.asarray(track[rule.track])
    if values.ndim != 1 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError(f"{rule.track!r}: expected finite numbers (T,), got {values.dtype} {values.shape}")
    return values < rule.below if rule.below is not None else values > rule.above


def check_name(name: str, what: str) -> None:
    """Refuse a name that no cost file may hold.

    Args:
        name: Name of a point, a flag or a number.
        what: Place of the name, for the error.

    Raises:
        ValueError: If the name is not allowed; the message names it.
    """
    if not re.fullmatch(_TRACK, name):
        raise ValueError(
            f"{what}: expected plain names of up to 40 letters, digits, spaces, _, -, . and /, beginning with a letter "
            f"and ending with a letter, a digit or _, got {name!r}"
        )


def library() -> list[str]:
    """List the tasks whose costs come with guerdon, such as ``metaworld/push-v3``."""
    return sorted(path.relative_to(LIBRARY).with_suffix("").as_posix() for path in LIBRARY.rglob("*.json"))


def load_costs(source: str | Path | Mapping[str, Any]) -> TaskCosts:
    """Open the costs of a task.

    Args:
        source: Name of a task in the library, path of a ``.json`` file, or the contents of such a file.

    Raises:
        ValueError: If the library has no such task, or the file is invalid or holds a key twice.
        FileNotFoundError: If there is no such file.
    """
    if isinstance(source, Mapping):
        return TaskCosts.model_validate(dict(source))
    path = Path(source)
    if path.suffix != ".json":
        if str(source) not in library():
            raise ValueError(f"no costs for {str(source)!r}: expected a .json file, or one of {', '.join(library())}")
        path = LIBRARY / f"{source}.json"
    try:
        return TaskCosts.model_validate(json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def grape_repo() -> list[Constraint]:
    """Return the costs of GRAPE's released code for putting a carrot on a plate in three stages: grasp, move, place.

    Sums over the steps of a stage, weight 0.01 each, and the thresholds of its ``maniskill2_evaluator.py``. A track
    needs the points ``end_effector``, ``object`` and ``target`` and the flag ``grasped``. In that code a stage that was
    never reached costs nothing, as in `external_reward` with ``unreached=0``.
    """

    def one(stage: int, kind: Kind, op: str, a: str, b: str | None, threshold: float) -> Constraint:
        values = {"stage": stage, "name": f"{kind} {stage}", "kind": kind, "op": op, "a": a, "b": b}
        return Constraint.model_validate({**values, "threshold": threshold, "weight": 0.01})

    return [
        one(0, "collision", "above", "end_effector", "object", 20.0),
        one(0, "grasp", "flag", "grasped", None, 40.0),
        one(0, "path", "dist", "end_effector", "object", 2.0),
        one(1, "collision", "dist_xy", "object", "target", 0.0),
        one(1, "grasp", "flag", "grasped", None, 5.0),
        one(2, "collision", "above", "end_effector", "object", 0.0),
        one(2, "path", "dist", "object", "target", 2.0),
    ]


def task_completion(constraints: Sequence[Constraint]) -> list[Constraint]:
    """Keep the constraints of doing the task, path and grasp without the time taken; collisions get weight 0.

    Weights are set to 0 rather than constraints removed, so that a stage never reached costs the same as before.

    Args:
        constraints: Constraints of a task.
    """
    return [
        c.model_copy(update={"weight": 0.0}) if c.kind == "collision" or c.op == "steps" else c for c in constraints
    ]


def safety(constraints: Sequence[Constraint], factor: float | int = 1.0) -> list[Constraint]:
    """Put collisions first: set their threshold to 0 (GRAPE §3.6) and multiply their weight.

    Args:
        constraints: Constraints of a task.
        factor: Factor of the weight, at least 0. A large one outweighs the task itself: with 10 the best of eight
            rollouts succeeded less often than with 1, and violated no less (benchmarks/grape_ranking.py).

    Raises:
        ValueError: If the factor is negative or not finite, or no constraint is of a collision.
    """
    if not any(c.kind == "collision" for c in constraints):
        raise ValueError(
            'safety has nothing to change: expected at least one constraint of kind "collision", got '
            f"{_kinds(constraints)}; add one on what must not be touched"
        )
    return [_stricter(c, factor) if c.kind == "collision" else c for c in constraints]


def efficiency(constraints: Sequence[Constraint], factor: float | int = 1.0) -> list[Constraint]:
    """Put short executions first: make every step of a stage cost something, and multiply its weight.

    GRAPE lowers the threshold of the path for this (§3.6). Its example counts the centimetres left. Here the steps are
    counted, because a distance held for long is not distinguished from one covered fast. Costs that count no steps,
    such as those of `grape_repo`, have the thresholds of their path constraints lowered to 0 instead.

    Args:
        constraints: Constraints of a task.
        factor: Factor of the weight, at least 0.

    Raises:
        ValueError: If the factor is negative or not finite, or there is neither a count of steps nor a path.
    """
    timed = any(c.op == "steps" for c in constraints)
    chosen = [c.op == "steps" if timed else c.kind == "path" for c in constraints]
    if not any(chosen):
        raise ValueError(
            'efficiency has nothing to change: expected at least one constraint with op "steps" or of kind "path", got '
            f"{_kinds(constraints)}; add a count of steps"
        )
    return [_stricter(c, factor) if taken else c for c, taken in zip(constraints, chosen, strict=True)]


def with_thresholds(
    constraints: Sequence[Constraint], factor: float | int, kind: Kind | None = None
) -> list[Constraint]:
    """Multiply the thresholds of one kind, or of all.

    Args:
        constraints: Constraints of a task.
        factor: Factor of the thresholds, at least 0; below 1 is stricter.
        kind: Kind of the constraints to change; None changes all.

    Raises:
        ValueError: If the factor is negative or not finite.
    """
    if not (np.isfinite(factor) and factor >= 0):
        raise ValueError(f"factor is {factor}: expected a finite number of at least 0")
    return [
        c.model_copy(update={"threshold": c.threshold * factor}) if kind in (None, c.kind) else c for c in constraints
    ]


def _kinds(constraints: Sequence[Constraint]) -> str:
    return ", ".join(sorted({c.kind for c in constraints})) or "none"


def _stricter(constraint: Constraint, factor: float | int) -> Constraint:
    if not (np.isfinite(factor) and factor >= 0):
        raise ValueError(f"factor is {factor}: expected a finite number of at least 0")
    threshold = min(constraint.threshold, 0.0)
    return constraint.model_copy(update={"threshold": threshold, "weight": constraint.weight * factor})


__all__ = [
    "FlagRule",
    "TaskCosts",
    "check_name",
    "efficiency",
    "grape_repo",
    "library",
    "load_costs",
    "safety",
    "task_completion",
    "with_thresholds",
]
