"""Videos of evaluated episodes: the first starts are played again, and rendered at every observation."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...datasets.formats.video import write_video
from ...envs.render import NO_BACKEND
from ...policies.rollouts.frames import Eye, RolloutFrames
from ...policies.rollouts.pieces import Piece
from ...policies.rollouts.pool import WorkerPool
from .outcomes import Outcome, slug
from .playing import PART, TaskFacts, play_part
from .setting import OpenedPolicy, PlaySetting

SIZE = 192
"""Height and width of the pictures in pixels, where the policy sees none; up to 16 episodes of them lie in memory."""


@dataclass(frozen=True, kw_only=True)
class Filming:
    """Selection of episodes that are filmed, and the folder of their videos."""

    folder: Path
    """Output folder of the evaluation; videos lie in its folder ``videos``."""
    count: int
    """Number of starts of each task, from the first."""


def check_filming(tasks: Sequence[TaskFacts]) -> None:
    """Check that pictures of every task can be rendered here.

    Raises:
        ValueError: If a task has no camera, or OpenGL does not work.
    """
    for task in tasks:
        if not task.cameras:
            raise ValueError(f"{task.env} has no camera, so there are no videos of it: leave --video out")
        if not task.draws:
            raise ValueError(f"videos of {task.env} need OpenGL: {NO_BACKEND}; or leave --video out")


def film(
    task: TaskFacts,
    setting: PlaySetting,
    policies: Mapping[str, OpenedPolicy],
    outcomes: Sequence[Outcome],
    filming: Filming,
) -> list[Path]:
    """Play the first starts again and write an mp4 file of each.

    The episodes are those that were evaluated, because nothing but the start, the seed and the policy decides on them.
    The camera is the first that the policy sees, else the task's first.

    Args:
        task: Task and its starts.
        setting: Setting of the evaluation.
        policies: Policies by role.
        outcomes: Outcomes of the evaluation.
        filming: Selection of episodes that are filmed.

    Returns:
        Files, in the order of the policies and starts.

    Raises:
        RuntimeError: If an episode comes out otherwise than when it was evaluated: the simulator or the policy is not
            deterministic.
    """
    known = {(o.policy, o.place): o for o in outcomes if o.task == task.env}
    seen = setting.frames
    frames = RolloutFrames(cameras=task.cameras[:1], image_size=SIZE) if seen is None else seen
    encoded = frames.encoder is not None  # no frame is left of such an episode: its actions are rendered again
    filmed = setting if encoded else replace(setting, frames=replace(frames, frames_every=1))
    folder = filming.folder / "videos" / slug(task.env)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with WorkerPool(filmed.of(task.env), 1, 0, [task.sizes]) as pool:
        for role, opened in policies.items():
            for number in range(-(-filming.count // PART)):
                first = number * PART
                starts = task.contexts[: min(filming.count, first + PART)]
                pieces = play_part(pool, opened.policy, starts, number, filmed)
                for place, piece in enumerate(pieces, first):
                    outcome = known[role, place]
                    if (any(piece.success), len(piece.actions)) != (outcome.success, outcome.steps):
                        raise RuntimeError(
                            f"{task.env}, start {place}: filmed with success {any(piece.success)} after "
                            f"{len(piece.actions)} steps, evaluated with {outcome.success} after {outcome.steps}: the "
                            "simulator or the policy is not deterministic, or this is another machine"
                        )
                    ending = "success" if outcome.success else "failure"
                    path = folder / f"{role}-{place:03d}-{ending}.mp4"
                    shown = _rendered(filmed, task, piece) if encoded else piece.frames[frames.cameras[0]]
                    write_video(path, shown, task.fps)
                    written.append(path)
    return written


def _rendered(setting: PlaySetting, facts: TaskFacts, piece: Piece) -> list[np.ndarray]:
    """Take the actions of an episode again, and return the frame (3, H, W) of every observation."""
    assert setting.frames is not None
    frames = replace(setting.frames, encoder=None)
    camera = frames.cameras[0]
    with closing(setting.of(facts.env).make(0)) as task:
        eye = Eye(frames, [task])
        task.reset(piece.context)
        shown = [eye.render(task)[camera]]
        for action in piece.actions:
            task.step(action)
            shown.append(eye.render(task)[camera])
    return shown


__all__ = ["Filming", "check_filming", "film"]
