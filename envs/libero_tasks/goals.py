"""Plans for LIBERO goals: ordered steps from parsed predicates, without the simulator."""

from collections.abc import Sequence
from typing import NamedTuple

Predicate = Sequence[str]
"""Parsed BDDL predicate in lower case, such as ``["on", "akita_black_bowl_1", "plate_1"]``."""

_PLACING = ("on", "in")
_JOINTS = ("open", "close", "turnon", "turnoff")
_DRAWERS = ("_top_region", "_middle_region", "_bottom_region")


class PlanStep(NamedTuple):
    """One step of a plan."""

    verb: str
    """``"reach"``, ``"grasp"``, ``"place"``, ``"push"``, ``"open"``, ``"close"`` or ``"turn"``."""
    object: str
    """Name of the object that is moved, or of the drawer, door or knob."""
    target: str
    """Name of the region or object where `object` goes; ``"on"`` or ``"off"`` for a knob; else empty."""


def known(goal: Sequence[Predicate]) -> bool:
    """Return whether every predicate of a goal is one that `plan_steps` knows.

    Args:
        goal: Predicates of the goal (`parsed_problem["goal_state"]`).
    """
    return len(goal) > 0 and all(
        len(predicate) == (3 if predicate[0] in _PLACING else 2 if predicate[0] in _JOINTS else -1)
        for predicate in goal
    )


def covers(goal: Sequence[Predicate]) -> bool:
    """Return whether the scripted expert can pursue a goal; it places from above only, and opens drawers only.

    Args:
        goal: Predicates of the goal (`parsed_problem["goal_state"]`).
    """
    return known(goal) and not any(
        (p[0] == "in" and ("microwave" in p[2] or "shelf" in p[2])) or (p[0] == "open" and not is_drawer(p[1]))
        for p in goal
    )


def plan_steps(goal: Sequence[Predicate], initial: Sequence[Predicate] = ()) -> list[PlanStep]:
    """Compute the ordered steps that reach a goal.

    Drawers are opened before something is put into them and closed after it; what carries another object is placed
    before that object; everything else follows the order of the goal.

    Args:
        goal: Predicates of the goal (`parsed_problem["goal_state"]`).
        initial: Predicates of the initial state (`parsed_problem["initial_state"]`), which list the open drawers.

    Raises:
        ValueError: If a predicate is unknown.
    """
    return [step for predicate in order(goal, initial) for step in steps_of(predicate)]


def order(goal: Sequence[Predicate], initial: Sequence[Predicate] = ()) -> list[tuple[str, ...]]:
    """Sort the predicates of a goal into a feasible order, with the drawers to open first.

    Args:
        goal: Predicates of the goal.
        initial: Predicates of the initial state.

    Raises:
        ValueError: If a predicate is unknown, or two objects are to be placed on each other.
    """
    if not known(goal):
        raise ValueError(
            f"expected a goal of {', '.join(_PLACING)} (object, target) and {', '.join(_JOINTS)} (object), "
            f"got {[list(p) for p in goal]}"
        )
    waiting = [tuple(predicate) for predicate in goal]
    opened = {p[1] for p in (*initial, *goal) if p[0] == "open"}
    closed_drawers = [p[2] for p in waiting if p[0] == "in" and is_drawer(p[2]) and p[2] not in opened]
    waiting = [("open", drawer) for drawer in dict.fromkeys(closed_drawers)] + waiting
    ordered: list[tuple[str, ...]] = []
    while waiting:
        ready = next((p for p in waiting if not any(_precedes(q, p) for q in waiting)), None)
        if ready is None:
            raise ValueError(f"expected an order of {waiting}, got predicates that wait for each other")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def steps_of(predicate: Predicate) -> list[PlanStep]:
    """Return the steps that make one predicate true.

    Args:
        predicate: One predicate that `known` accepts.
    """
    verb, thing = predicate[0], predicate[1]
    if verb in _PLACING:
        target = predicate[2]
        if is_pushed(thing, target):
            return [PlanStep("reach", thing, ""), PlanStep("push", thing, target)]
        return [PlanStep("reach", thing, ""), PlanStep("grasp", thing, ""), PlanStep("place", thing, target)]
    if verb in ("open", "close"):
        return [PlanStep("reach", thing, ""), PlanStep(verb, thing, "")]
    return [PlanStep("reach", thing, ""), PlanStep("turn", thing, verb.removeprefix("turn"))]


def is_drawer(region: str) -> bool:
    """Return whether a region is the inside of a drawer: cabinets have drawers, shelves have not.

    Args:
        region: Name of the region.
    """
    return "cabinet" in region and region.endswith(_DRAWERS)


def is_pushed(thing: str, target: str) -> bool:
    """Return whether an object is pushed along the table instead of lifted: plates to a region of the table.

    Args:
        thing: Name of the object.
        target: Name of the region or object.
    """
    return "plate" in thing.split("_") and "table_" in target and target.endswith("_region")


def _precedes(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Return whether one predicate must be reached before another."""
    if first == second:
        return False
    if first[0] == "open" and second[0] == "in":
        return second[2] == first[1]
    if first[0] == "in" and second[0] == "close":
        return first[2].startswith(second[1])
    if first[0] in _PLACING and second[0] in _PLACING:
        return second[2] == first[1]
    return False
