"""Rules that tell the stages of simulated tasks apart by distances between tracks of hand, object and goal."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...envs.instructions import KITCHEN, METAWORLD, REACH
from ...envs.libero_tasks.catalogue import TaskGoal, task_goals
from ...envs.libero_tasks.goals import is_pushed

HAND, OBJECT, GOAL = "end_effector", "object", "goal"
"""Names of the tracks that rules read."""


@dataclass(frozen=True, kw_only=True)
class TaskRule:
    """Stages of a task, and the distances in metres at which they count as complete."""

    near: float
    """Distance from hand to object, or to the goal without an object, below which the first stage is complete."""
    lift: float | None = None
    """Height of the object above its place when the hand came near, above which the second stage is complete."""
    goal: float | None = None
    """Distance from object to goal below which the last stage is complete."""
    moved: float | None = None
    """Distance of the object from its first place above which the last stage is complete, without a goal track."""
    object: bool = True
    """Whether there is an object; without one the hand has to reach the goal, in one stage."""
    part: int = 1
    """Number of the part of the task; the second reads the tracks ``object_2`` and ``goal_2``, and so on."""
    item: str = ""
    """Words for the object in the names of the stages of a task with several parts."""
    then: tuple["TaskRule", ...] = ()
    """Rules of the parts that follow, each with an object and stages of its own."""

    @property
    def parts(self) -> tuple["TaskRule", ...]:
        """Rules of all parts, this one first."""
        return (self, *self.then)

    def track(self, name: str) -> str:
        """Return the name of a part's own track: ``"object_2"`` for the object of the second part.

        Args:
            name: ``"object"`` or ``"goal"``.
        """
        return name if self.part == 1 else f"{name}_{self.part}"

    @property
    def tracks(self) -> tuple[str, ...]:
        """Names of the tracks that the rule reads, those of further parts left out."""
        if not self.object:
            return HAND, self.track(GOAL)
        own = (self.track(OBJECT), self.track(GOAL)) if self.goal is not None else (self.track(OBJECT),)
        return (HAND, *own)

    @property
    def needs_success(self) -> bool:
        """Whether only the success flag shows the end of the task, because no distance does."""
        return self.object and self.goal is None and self.moved is None


def _carry(near: float, goal: float | None) -> TaskRule:
    return TaskRule(near=near, lift=0.02, goal=goal)


def _move(near: float, goal: float | None) -> TaskRule:
    return TaskRule(near=near, goal=goal)


_METAWORLD: dict[str, TaskRule] = {
    "assembly-v3": _carry(0.06, None),
    "basketball-v3": _carry(0.045, 0.1),
    "bin-picking-v3": _carry(0.05, 0.05),
    "box-close-v3": _carry(0.08, 0.08),
    "button-press-topdown-v3": _move(0.06, 0.024),
    "button-press-topdown-wall-v3": _move(0.085, 0.024),
    "button-press-v3": _move(0.09, 0.02),
    "button-press-wall-v3": _move(0.065, 0.03),
    "coffee-button-v3": _move(0.1, 0.02),
    "coffee-pull-v3": _move(0.075, 0.07),
    "coffee-push-v3": _move(0.075, 0.07),
    "dial-turn-v3": _move(0.12, 0.07),
    "disassemble-v3": _carry(0.055, None),
    "door-close-v3": _move(0.195, 0.08),
    "door-lock-v3": _move(0.07, 0.047),
    "door-open-v3": _move(0.045, 0.089),
    "door-unlock-v3": _move(0.06, 0.047),
    "drawer-close-v3": _move(0.04, 0.065),
    "drawer-open-v3": _move(0.03, 0.03),
    "faucet-close-v3": _move(0.07, 0.07),
    "faucet-open-v3": _move(0.065, 0.05),
    "hammer-v3": _carry(0.06, None),
    "hand-insert-v3": _move(0.055, 0.05),
    "handle-press-side-v3": _move(0.03, 0.02),
    "handle-press-v3": _move(0.04, 0.02),
    "handle-pull-side-v3": _move(0.03, 0.08),
    "handle-pull-v3": _move(0.05, 0.071),
    "lever-pull-v3": _move(0.12, 0.027),
    "peg-insert-side-v3": _carry(0.04, 0.2),
    "peg-unplug-side-v3": _move(0.035, 0.07),
    "pick-out-of-hole-v3": _carry(0.04, 0.07),
    "pick-place-v3": _carry(0.06, 0.07),
    "pick-place-wall-v3": _carry(0.055, 0.07),
    "plate-slide-back-side-v3": _move(0.08, 0.07),
    "plate-slide-back-v3": _move(0.105, 0.07),
    "plate-slide-side-v3": _move(0.09, 0.07),
    "plate-slide-v3": _move(0.095, 0.07),
    "push-back-v3": _move(0.06, 0.07),
    "push-v3": _move(0.05, 0.05),
    "push-wall-v3": _move(0.05, 0.07),
    "reach-v3": TaskRule(near=0.058, object=False),
    "reach-wall-v3": TaskRule(near=0.092, object=False),
    "shelf-place-v3": _carry(0.06, 0.07),
    "soccer-v3": _move(0.065, 0.07),
    "stick-pull-v3": _carry(0.045, None),
    "stick-push-v3": _carry(0.07, None),
    "sweep-into-v3": _move(0.045, 0.071),
    "sweep-v3": _move(0.07, 0.05),
    "window-close-v3": _move(0.06, None),
    "window-open-v3": _move(0.055, 0.108),
}
# Kitchen: how far the touched point has moved at the simulator's tolerance of success; a knob's turns about itself
_KITCHEN: dict[str, TaskRule] = {
    "microwave": TaskRule(near=0.1, moved=0.221),
    "kettle": TaskRule(near=0.1, moved=0.109),
    "light_switch": TaskRule(near=0.1, moved=0.0318),
    "slide_cabinet": TaskRule(near=0.1, moved=0.0741),
    "hinge_cabinet": TaskRule(near=0.1, moved=0.36),
    "bottom_burner": TaskRule(near=0.1),
    "top_burner": TaskRule(near=0.1),
}


# LIBERO: largest distances of the scripted expert at its grasps, and at the first success, with a margin
_LIBERO_NEAR = {"wine_bottle": 0.16, "black_book": 0.13, "mug": 0.11}
_LIBERO_GOAL = {
    "contain_region": 0.078,
    "cabinet": 0.05,
    "top_side": 0.03,
    "plate_": 0.032,
    "rack": 0.025,
    "bowl": 0.065,
    "cook_region": 0.035,
    "table": 0.12,
}
_LIBERO_OTHERS = 0.09, 0.08
_WIDE = ("moka_pot", "frypan")  # their origin lies beside the burner they stand on
_LIBERO_JOINT = {"open": 0.0101, "close": 0.008, "turnon": 0.04, "turnoff": 0.04}


def _libero(goal: TaskGoal) -> TaskRule:
    """Build the rule of a task of LIBERO from the parts of its goal."""
    several = len(goal.parts) > 1
    parts = [_libero_part(part, number, several) for number, part in enumerate(goal.parts, 1)]
    return replace(parts[0], then=tuple(parts[1:]))


def _libero_part(part: Sequence[str], number: int, several: bool) -> TaskRule:
    """Build the rule of one predicate; distances are those of the scripted expert, and of LIBERO's own predicates."""
    verb, thing = part[0], part[1]
    item = thing.replace("_", " ") if several else ""
    if len(part) == 2:
        return TaskRule(near=0.08, goal=_LIBERO_JOINT[verb], part=number, item=item)
    near = next((distance for name, distance in _LIBERO_NEAR.items() if name in thing), _LIBERO_OTHERS[0])
    goal = next((distance for name, distance in _LIBERO_GOAL.items() if name in part[2]), _LIBERO_OTHERS[1])
    if "cook_region" in part[2] and any(name in thing for name in _WIDE):
        goal = 0.11
    return TaskRule(near=near, lift=None if is_pushed(thing, part[2]) else 0.02, goal=goal, part=number, item=item)


RULES: dict[str, TaskRule] = {
    **{name: _libero(goal) for name, goal in task_goals().items()},
    **{f"metaworld/{name}": rule for name, rule in _METAWORLD.items()},
    **{f"kitchen/{name}": rule for name, rule in _KITCHEN.items()},
    "mujoco/reach": TaskRule(near=0.05, object=False),
}
"""Rule of each task, by the task's full name."""


def plain(text: str) -> str:
    """Return an instruction without what does not matter: capitals, outer blanks, a full stop.

    Args:
        text: Instruction.
    """
    return " ".join(text.split()).rstrip(".").casefold()


_TASKS = {
    **{plain(goal.instruction): name for name, goal in reversed(list(task_goals().items()))},
    **{text: f"metaworld/{name}" for name, text in METAWORLD.items()},
    **{text: f"kitchen/{name}" for name, text in KITCHEN.items()},
    REACH: "mujoco/reach",
}


def task_of(instruction: str) -> str:
    """Find the full name of the simulated task of an instruction; capitals and outer blanks do not matter.

    Args:
        instruction: Instruction of `guerdon.envs.instructions`.

    Raises:
        ValueError: If it is none of them, naming the most similar ones.
    """
    text = plain(instruction)
    if text not in _TASKS:
        near = difflib.get_close_matches(text, _TASKS, 3, 0.0)
        raise ValueError(
            f"no rule for the instruction {instruction!r}: expected one of the {len(_TASKS)} in "
            f"guerdon.envs, such as {', '.join(map(repr, near))}; give other wordings as aliases"
        )
    return _TASKS[text]
