"""Stages of the simulated tasks by rule: distances between the tracks of a hand, an object and a goal."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.batch import End, Labelled, TrajectoryBatch
from ...core.interfaces import TaskDecomposer, TaskPlan, TaskStage
from .segmentation import monotone_completed, online_completed
from .task_rules import GOAL, HAND, OBJECT, RULES, TaskRule, plain, task_of

METAWORLD_COLUMNS: dict[str, list[int]] = {HAND: [0, 1, 2], OBJECT: [4, 5, 6], GOAL: [36, 37, 38]}
"""Places in Meta-World's state of 39 numbers that hold the tracks, for data without tracks."""
_PUSHED = 0.02  # metres; an object that moved this far since the hand met it was reached, even if it rolls ahead
_ALMOST = 0.99  # a fraction never counts as a whole stage


_REACHING = TaskStage(
    name="reach", description="move the hand to the object", completion="the hand is at the object", keypoints=(OBJECT,)
)
_GRASPING = TaskStage(
    name="grasp",
    description="take hold of the object and lift it",
    completion="the object is off the place it lay on, with the hand at it",
    keypoints=(OBJECT,),
)


class RuleDecomposer(TaskDecomposer):
    """Rule-based decomposer of the tasks of Meta-World, Franka Kitchen and LIBERO, and of the small reach task.

    A task where an object is carried has the stages reach, grasp and place. One where an object is pushed, pulled,
    turned or slid has reach and move. One where only the hand moves has reach. A task of LIBERO whose goal has several
    parts has the stages of each, named after its object. A stage is complete where the distance
    that `RULES` names is small enough, or a later stage is complete; the last stage also where the success flag is set.
    There is no contact sensor: "grasp" means that the object is off its place with the hand at it, which a scoop
    achieves as well.

    Some tasks end in a state that no distance between the tracks distinguishes (`TaskRule.needs_success`). They are
    segmented only with success flags.

    Online, a stage is complete from the first observation at which its condition has held (``hold`` in a row). In
    hindsight the most likely assignment is taken, so a hand that merely passes the object does not end its stage.

    Args:
        use_success: Whether ``labels["success"]``, and a row's end in success, complete the last stage.
        hold: Number of known observations in a row at which a condition must hold online, at least 1.
        min_length: Number of observations a stage lasts at least in hindsight; see `monotone_completed`.
        state_columns: Track → its three places in the state, used where a batch has no such track.
            `METAWORLD_COLUMNS` for Meta-World.
        aliases: Other wordings of an instruction → the one in `guerdon.envs.instructions`.

    Raises:
        ValueError: If an argument is out of its range, or an alias stands for no known instruction.
    """

    def __init__(
        self,
        use_success: bool = True,
        hold: int = 1,
        min_length: int = 1,
        state_columns: Mapping[str, Sequence[int]] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if hold < 1 or min_length < 0:
            raise ValueError(f"hold {hold}, min_length {min_length}: expected at least 1 and at least 0")
        self.use_success, self.hold, self.min_length = use_success, hold, min_length
        self.state_columns = {name: list(places) for name, places in (state_columns or {}).items()}
        for name, places in self.state_columns.items():
            if name not in (HAND, OBJECT, GOAL) or len(places) != 3 or min(places) < 0:
                raise ValueError(
                    f"state_columns[{name!r}] is {places}: expected three places in the state for one of {HAND}, "
                    f"{OBJECT} and {GOAL}"
                )
        self.aliases = {plain(text): known for text, known in (aliases or {}).items()}
        for known in self.aliases.values():
            task_of(known)

    def plan(self, instructions: Sequence[str], first_frames: Sequence[Tensor] | None = None) -> list[TaskPlan]:
        """Return the stages of instructions; pictures are not used.

        Raises:
            ValueError: If an instruction is not one of a simulated task, naming the nearest.
        """
        return [_plan(text, RULES[self._task(text)]) for text in instructions]

    def segment(self, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool) -> Labelled:
        """Return the stage of every observation (B, T+1), int64: the first incomplete one, the last after all.

        Raises:
            ValueError: If a track is missing, or a plan is of another decomposer; see `completed`.
        """
        done = self.completed(batch, plans, causal)
        last = torch.tensor([len(plan.stages) - 1 for plan in plans], device=done.values.device)
        stage = torch.minimum(done.values.floor().long(), last[:, None])
        return Labelled(values=torch.where(done.valid, stage, 0), valid=done.valid)

    def completed(self, batch: TrajectoryBatch, plans: Sequence[TaskPlan], causal: bool) -> Labelled:
        """Count the complete stages at every observation (B, T+1), plus the completed fraction of the next one.

        The fraction is the share of the distance at the beginning of the stage that is covered, below 1; for a grasp it
        is 0. Invalid are observations with an unknown track, those that were not made, and windows that begin inside an
        episode, because they do not show which stages were done before.

        Raises:
            ValueError: If a track is missing or not finite, a task needs success flags that are not there, or a plan is
                of another decomposer.
        """
        if len(plans) != len(batch):
            raise ValueError(f"expected a plan for each of {len(batch)} rows, got {len(plans)}")
        values = torch.zeros(batch.observed.shape, dtype=torch.float32, device=batch.mask.device)
        known = torch.zeros_like(batch.observed)
        whole = batch.made & (batch.offset == 0)[:, None]
        tasks = [self._task(plan.instruction) for plan in plans]
        for task in dict.fromkeys(tasks):
            rows = torch.tensor([i for i, name in enumerate(tasks) if name == task], device=batch.mask.device)
            rule = RULES[task]
            for i in rows.tolist():
                if plans[i].stages != _plan(plans[i].instruction, rule).stages:
                    names = [stage.name for stage in plans[i].stages]
                    raise ValueError(f"the plan of row {i} ({names}) is not this decomposer's: take plans from plan()")
            some = batch[rows]
            values[rows], known[rows] = self._count(some, whole[rows], rule, task, causal)
        return Labelled(values=torch.where(known, values, 0.0), valid=known)

    def _count(
        self, batch: TrajectoryBatch, whole: Bool[Tensor, "B Tp1"], rule: TaskRule, task: str, causal: bool
    ) -> tuple[Float[Tensor, "B Tp1"], Bool[Tensor, "B Tp1"]]:
        """Count complete stages plus a fraction, and where that is known, for rows of one task."""
        points: dict[str, Tensor] = {}
        known = whole
        for name in dict.fromkeys(name for part in rule.parts for name in part.tracks):
            points[name], seen = self._track(batch, name, task)
            known = known & seen
        succeeded, success_known = self._succeeded(batch)
        if rule.needs_success:
            if not self.use_success or "success" not in batch.labels:
                raise ValueError(
                    f'{task}: no distance shows when it is done, so labels["success"] and use_success are needed'
                )
            first = torch.arange(known.shape[1], device=known.device) == 0  # by definition nothing is complete there
            known = known & (success_known | first)
        found = [_conditions(part, points, known) for part in rule.parts]
        # a complete later stage completes those before it in its part, success completes them all
        met = torch.cat([stages.flip(-1).cummax(-1).values.flip(-1) for stages, _ in found], -1)
        met = met | (succeeded & known)[..., None]
        left = torch.cat([distances for _, distances in found], -1)
        values = torch.zeros_like(left[..., 0])
        for row in range(len(batch)):
            done, valid = met[row].to(values.dtype), known[row]
            count = (
                online_completed(done, valid, hold=self.hold)
                if causal
                else monotone_completed(done, valid, self.min_length)
            )
            values[row] = count + _fraction(count, left[row], valid)
        return values, known

    def _track(self, batch: TrajectoryBatch, name: str, task: str) -> tuple[Float[Tensor, "B Tp1 3"], Tensor]:
        """Return a track, or the places in the state that hold it, and where it is known."""
        track = batch.tracks.get(name)
        if track is None and name in self.state_columns:
            places = self.state_columns[name]
            if max(places) >= batch.state.shape[2]:
                raise ValueError(
                    f"state_columns[{name!r}] is {places}, but the state has {batch.state.shape[2]} numbers"
                )
            track = Labelled(values=batch.state[..., places], valid=batch.made)
        if track is None:
            held = ", ".join(sorted(batch.tracks)) or "none"
            raise ValueError(
                f"{task} needs the track {name!r}, this batch holds {held}: record it, or give its places "
                "in the state as state_columns"
            )
        if track.values.shape != (*batch.observed.shape, 3):
            raise ValueError(
                f"track {name!r}: expected a point per observation {(*batch.observed.shape, 3)}, got "
                f"{tuple(track.values.shape)}"
            )
        valid = track.valid & batch.made
        wrong = valid & ~track.values.isfinite().all(-1)
        if bool(wrong.any()):
            row, t = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(
                f"track {name!r} of episode {int(batch.episode[row])} is {track.values[row, t].tolist()} at "
                f"observation {t}: mark it invalid, or repair the episode"
            )
        return torch.where(valid[..., None], track.values.float(), 0.0), valid

    def _succeeded(self, batch: TrajectoryBatch) -> tuple[Bool[Tensor, "B Tp1"], Bool[Tensor, "B Tp1"]]:
        """Find where the task is done, and where that is known."""
        succeeded = torch.zeros_like(batch.observed)
        if not self.use_success:
            return succeeded, succeeded
        place = torch.arange(succeeded.shape[1], device=succeeded.device)
        at_end = ((batch.end == End.SUCCESS)[:, None] & (place == batch.steps[:, None])) & batch.made
        flags = batch.labels.get("success")
        known = at_end
        if flags is not None and flags.valid.shape == succeeded.shape:
            known = at_end | (flags.valid & batch.made)
            succeeded = flags.valid & (torch.where(flags.valid, flags.values.float(), 0.0) >= 0.5)
        return succeeded | at_end, known

    def _task(self, instruction: str) -> str:
        return task_of(self.aliases.get(plain(instruction), instruction))


def _plan(instruction: str, rule: TaskRule) -> TaskPlan:
    if not rule.object:
        stage = replace(_REACHING, description=instruction, completion="the hand is at the goal", keypoints=(GOAL,))
        return TaskPlan(instruction=instruction, stages=(stage,))
    return TaskPlan(
        instruction=instruction, stages=tuple(stage for part in rule.parts for stage in _stages(instruction, part))
    )


def _stages(instruction: str, rule: TaskRule) -> tuple[TaskStage, ...]:
    """Return the stages of one part of a task; with an item in the rule they are named after it."""
    last = TaskStage(
        name="move" if rule.lift is None else "place",
        description=instruction,
        completion="the task is done" if rule.goal is None else "the object is at the goal",
        keypoints=(OBJECT,) if rule.goal is None else (OBJECT, GOAL),
    )
    stages = (_REACHING, last) if rule.lift is None else (_REACHING, _GRASPING, last)
    if not rule.item:
        return stages
    return tuple(
        TaskStage(
            name=f"{stage.name} {rule.item}",
            description=stage.description.replace("the object", f"the {rule.item}"),
            completion=stage.completion.replace("the object", f"the {rule.item}"),
            keypoints=tuple(rule.track(point) for point in stage.keypoints),
        )
        for stage in stages
    )


def _conditions(
    rule: TaskRule, points: Mapping[str, Tensor], known: Bool[Tensor, "B Tp1"]
) -> tuple[Bool[Tensor, "B Tp1 S"], Float[Tensor, "B Tp1 S"]]:
    """Find where each stage's condition holds, and its remaining distance (infinite where it has none)."""
    hand = points[HAND]
    if not rule.object:
        distance = (hand - points[rule.track(GOAL)]).norm(dim=-1)
        return (known & (distance < rule.near))[..., None], (distance - rule.near).clamp(min=0)[..., None]
    item = points[rule.track(OBJECT)]
    distance = (hand - item).norm(dim=-1)
    at = known & (distance < rule.near)
    reached = at.int().cummax(1).values.bool()
    lay = item.gather(1, at.int().argmax(1)[:, None, None].expand(-1, -1, 3))  # its place when the hand first came near
    pushed = known & reached & ((item - lay).norm(dim=-1) > _PUSHED)
    met, left = [at | pushed], [(distance - rule.near).clamp(min=0)]
    if rule.lift is not None:
        met.append(at & (item[..., 2] - lay[..., 2] > rule.lift))
        left.append(torch.full_like(distance, torch.inf))
    rest = torch.full_like(distance, torch.inf)
    if rule.goal is not None:
        rest = ((item - points[rule.track(GOAL)]).norm(dim=-1) - rule.goal).clamp(min=0)
    elif rule.moved is not None:
        start = item.gather(1, known.int().argmax(1)[:, None, None].expand(-1, -1, 3))  # its first known place
        rest = (rule.moved - (item - start).norm(dim=-1)).clamp(min=0)
    met.append(known & (rest <= 0))
    left.append(rest)
    return torch.stack(met, -1), torch.stack(left, -1)


def _fraction(
    count: Int[Tensor, " Tp1"], left: Float[Tensor, "Tp1 S"], known: Bool[Tensor, " Tp1"]
) -> Float[Tensor, " Tp1"]:
    """Compute the covered share of the distance at the first known observation of the stage."""
    stage = count.clamp(max=left.shape[1] - 1)
    now = left.gather(1, stage[:, None])[:, 0]
    start = torch.zeros_like(now)
    for k in range(left.shape[1]):
        inside = known & (stage == k)
        if bool(inside.any()):
            start = torch.where(stage == k, now[int(inside.int().argmax())], start)
    usable = known & (count < left.shape[1]) & now.isfinite() & start.isfinite() & (start > 0)
    share = 1 - torch.where(usable, now, 1.0) / torch.where(usable, start, 1.0)
    return torch.where(usable, share, 0.0).clamp(0, _ALMOST)


__all__ = ["METAWORLD_COLUMNS", "RULES", "RuleDecomposer", "TaskRule", "task_of"]
