"""Collection of simulated episodes of chosen quality, one by one or as a LeRobot data set."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..core.batch import End
from ..datasets.episodes import Episode
from ..datasets.formats.lerobot_writer import LeRobotWriter
from .naming import make_task
from .quality import MIXED, POLICY, QUALITIES, SOURCES, ActorMaker, Behaviour, behaviour
from .recording import Recording
from .render import NO_BACKEND, rendering_backend, require_backend
from .task import Context, ExpertTask, Task

_log = logging.getLogger(__name__)


def collect(
    task: Task,
    qualities: Mapping[str, float] = MIXED,
    episodes: int = 20,
    seed: int = 0,
    split: str = "train",
    frames: bool | None = None,
    image_size: tuple[int, int] = (96, 96),
    cameras: Sequence[str] | None = None,
    noise: float | int | None = None,
    stop_at_success: bool = True,
    frames_every: int = 1,
    actor: ActorMaker | None = None,
) -> Iterator[Episode]:
    """Act in a task and yield its episodes.

    Episode i starts from the i-th context of the split and depends on (task, task seed, seed, i) alone. Qualities are
    assigned in proportion to their weights, not drawn: after any number of episodes each has its share to within one.

    Each episode holds ``recorded["reward"]``, per-observation ``labels["success"]`` and ``labels["stage.<name>"]``
    (unknown at the first observation, which the simulator does not report on), and the task's tracks. It ends with
    `SUCCESS`, with `FAILURE` if the expert gave up or the simulator ended it, or with `TIME_LIMIT`. An episode whose
    simulation diverges is left out with a warning in the log; a camera that shows one colour is named there once.

    Args:
        task: Task to act in.
        qualities: Weight of each quality, 0 or more; see `guerdon.envs.quality`.
        episodes: Number of episodes.
        seed: Random seed of the behaviour; the initial states follow from the task and its own seed.
        split: Split whose contexts are used, ``"train"`` or ``"eval"``; LIBERO's tasks have ``"official"`` as well.
        frames: Whether to record frames; None records them if an OpenGL backend works.
        image_size: Size (H, W) of the frames, in pixels.
        cameras: Names of the task's cameras that are recorded; None takes its first.
        noise: Noise of noisy experts; None takes the task's own, see `guerdon.envs.quality.behaviour`.
        stop_at_success: End an episode with the first success. Otherwise episodes run on, and count as a success if
            there was one at any time.
        frames_every: Number of control steps from one frame to the next; the last observation always has one.
        actor: What acts in episodes of quality ``"policy"``. What it records is kept where all episodes are its own.

    Raises:
        ValueError: If a quality, camera or split is unknown, or a quality needs an expert and the task has none.
        RuntimeError: If frames are requested and no OpenGL backend works.
    """
    if frames_every < 1:
        raise ValueError(f"expected a frame every 1 or more control steps, got {frames_every}")
    shares = check_qualities(task, qualities, actor is not None)
    if frames and not can_draw(task):
        require_backend()
    views = _check_cameras(task, cameras) if frames or (frames is None and can_draw(task)) else ()
    contexts = task.contexts(split, episodes)
    blank: set[str] = set()
    for index, (context, quality) in enumerate(zip(contexts, _deal(shares, episodes), strict=True)):
        generator = np.random.default_rng([seed, index, 1])
        if quality == POLICY and actor is not None:
            acting = actor(task, context, generator)
        else:
            acting = behaviour(task, context, quality, generator, noise)
        recording = Recording(task, views, image_size, frames_every)
        try:
            end = _play(recording, context, acting, stop_at_success)
        except FloatingPointError as error:
            _log.warning("episode %d left out: %s", index, error)
            continue
        for camera in recording.blank_cameras() - blank:
            _log.warning(
                "%s: every picture of camera %r in episode %d is one colour: choose another camera, or correct the "
                "renderer (MUJOCO_GL chooses the backend)",
                *(task.name, camera, index),
            )
            blank.add(camera)
        # the columns of a data set are the same in all episodes
        yield recording.episode(index, context, quality, end, acting.records() if set(shares) == {POLICY} else {})


def can_draw(task: Task) -> bool:
    """Return whether a task can render here: it has a camera, and OpenGL works or it draws without.

    Args:
        task: Task; an attribute ``draws_without_opengl`` that is True says so.
    """
    return bool(task.cameras) and (getattr(task, "draws_without_opengl", False) or rendering_backend() is not None)


def check_qualities(task: Task, qualities: Mapping[str, float], policy: bool = False) -> dict[str, float]:
    """Check the weights of qualities for a task, and normalise the positive ones to a sum of 1.

    Args:
        task: Task.
        qualities: Weight of each quality.
        policy: Whether there is a policy for the quality ``"policy"``.

    Raises:
        ValueError: If a quality is unknown, a weight is negative or not finite, or the task has no expert.
    """
    _require_known(qualities, policy)
    for quality, weight in qualities.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"quality {quality!r}: expected a weight of at least 0, got {weight}")
    total = sum(qualities.values())
    if total == 0:
        raise ValueError("expected at least one quality with a positive weight")
    shares = {quality: weight / total for quality, weight in qualities.items() if weight > 0}
    wanted = ", ".join(quality for quality in shares if quality not in ("random", POLICY))
    if not isinstance(task, ExpertTask) and wanted:
        raise ValueError(
            f"{task.name} has no scripted expert, so it gives no {wanted} episodes: ask for quality 'random'"
        )
    return shares


def _require_known(given: Iterable[str], policy: bool, expected: str = "some of ") -> None:
    """Refuse qualities that are unknown, and that of a policy where there is none."""
    for quality in sorted(given):
        if quality == POLICY and not policy:
            raise ValueError(f"quality {POLICY!r} needs a policy that acts: name it with --policy (actor= in Python)")
        if quality not in SOURCES:
            names = ", ".join(SOURCES if policy else QUALITIES)
            raise ValueError(f"unknown quality {quality!r}: expected {expected}{names}")


def _deal(shares: Mapping[str, float], episodes: int) -> Iterator[str]:
    """Yield for each episode the quality that is furthest below its share."""
    dealt: Counter[str] = Counter()
    for count in range(1, episodes + 1):
        quality = max(shares, key=lambda name: shares[name] * count - dealt[name])
        dealt[quality] += 1
        yield quality


def _check_cameras(task: Task, cameras: Sequence[str] | None) -> tuple[str, ...]:
    chosen = task.cameras[:1] if cameras is None else tuple(cameras)
    unknown = sorted(set(chosen) - set(task.cameras))
    if unknown:
        raise ValueError(f"{task.name}: unknown camera {unknown[0]!r}; it has {', '.join(task.cameras)}")
    return chosen


def _play(recording: Recording, context: Context, actor: Behaviour, stop_at_success: bool) -> End:
    """Act until the episode is over, and record it."""
    end = _act(recording, context, actor, stop_at_success)
    recording.finish()
    return end


def _act(recording: Recording, context: Context, actor: Behaviour, stop_at_success: bool) -> End:
    state = recording.start(context)
    for _ in range(recording.task.horizon):
        action = actor(state)
        if action is None:
            return End.FAILURE
        step = recording.take(action)
        state = step.state
        if step.success and stop_at_success:
            return End.SUCCESS
        if step.terminated:
            return End.FAILURE
    return End.TIME_LIMIT


@dataclass
class CollectReport:
    """Summary of the data set that `collect_dataset` wrote."""

    folder: Path
    """Folder of the data set."""
    frames: bool
    """Whether frames were recorded."""
    steps: int = 0
    """Number of control steps of all episodes."""
    episodes: Counter[str] = field(default_factory=Counter[str])
    """Number of episodes by quality."""
    successes: Counter[str] = field(default_factory=Counter[str])
    """Number of successful episodes by quality."""
    left_out: list[int] = field(default_factory=list[int])
    """Numbers of the episodes whose simulation diverged."""

    def lines(self) -> list[str]:
        """Format the summary: one line per quality, and one for the whole."""
        rows = [
            f"{quality:<8} {self.episodes[quality]:>4} episodes, {self.successes[quality]:>4} successes"
            for quality in SOURCES
            if self.episodes[quality]
        ]
        what = "states, actions and pictures" if self.frames else "states and actions, no pictures"
        total = f"{self.episodes.total()} episodes, {self.steps} steps ({what}) in {self.folder}"
        if self.left_out:
            total += f"; left out, their simulation diverged: {', '.join(map(str, self.left_out))}"
        return [*rows, total]


def collect_dataset(
    env: str,
    out: str | Path,
    episodes: int = 20,
    seed: int = 0,
    quality: str | Mapping[str, float] = "mixed",
    frames: bool | None = None,
    image_size: int = 96,
    cameras: Sequence[str] | None = None,
    split: str = "train",
    horizon: int | None = None,
    noise: float | int | None = None,
    console: Console | None = None,
    frames_every: int = 1,
    actor: ActorMaker | None = None,
) -> CollectReport:
    """Collect episodes of one task into a LeRobot v3.0 data set; ``guerdon collect`` calls this.

    The data set appears under its name when it is complete; an error or Ctrl-C leaves nothing behind. The same
    arguments give the same states, actions and frames.

    Args:
        env: Name of the task; see `guerdon.make_task`.
        out: Folder to make; it must not exist, or be empty.
        episodes: Number of episodes, at least 1.
        seed: Random seed of the initial states and of the behaviour; two seeds share no episode.
        quality: One of ``"expert"``, ``"noisy"``, ``"aborted"``, ``"random"``, ``"mixed"`` (40, 30, 15 and 15 %; all
            random if there is no expert), or weights by quality.
        frames: Whether to record frames; None records them if an OpenGL backend works, and prints a message if not.
        image_size: Height and width of the frames, in pixels, at least 16.
        cameras: Names of the task's cameras that are recorded; None takes its first.
        split: Split whose contexts are used, ``"train"`` or ``"eval"``.
        horizon: Time limit in control steps; None takes the task's own.
        noise: Noise of noisy experts, in half ranges of the action; None takes the task's own.
        console: Console for progress and messages; None takes standard error.
        frames_every: Number of control steps from one frame to the next; the last observation always has one.
        actor: What acts in episodes of quality ``"policy"``, see `guerdon.policies.actor.actor_of`.

    Raises:
        FileExistsError: If the folder holds something.
        ValueError: If the task, a quality, a camera or the split is unknown, or a number is too small.
        ModuleNotFoundError: If the simulator is not installed.
        RuntimeError: If frames are requested and no OpenGL backend works.
    """
    if episodes < 1:
        raise ValueError(f"expected at least one episode, got {episodes}")
    if image_size < 16:
        raise ValueError(f"expected pictures of at least 16 pixels, got {image_size}")
    # before a simulator is built for seconds
    if isinstance(quality, str) and quality != "mixed":
        _require_known([quality], actor is not None, "mixed, ")
    console = Console(stderr=True) if console is None else console
    with closing(make_task(env, horizon, seed)) as task:
        if frames is None and not can_draw(task):
            console.print(
                f"recording states only: {NO_BACKEND}" if task.cameras else "recording states only: no camera"
            )
            frames = False
        qualities = _named_qualities(task, quality)
        stream = collect(
            task,
            qualities,
            episodes,
            seed,
            split,
            frames is not False,
            (image_size, image_size),
            cameras,
            noise,
            frames_every=frames_every,
            actor=actor,
        )
        recorded: set[int] = set()
        report = CollectReport(folder=Path(out), frames=frames is not False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with LeRobotWriter(out, task.fps, robot_type=env) as writer, Progress(*columns, console=console) as progress:
            bar = progress.add_task(f"collecting {env}", total=episodes)
            for episode in stream:
                writer.add(episode)
                report.steps += episode.steps
                report.episodes[episode.quality] += 1
                report.successes[episode.quality] += int(episode.success or 0)
                share = f"{report.successes.total()}/{report.episodes.total()}"
                progress.update(bar, completed=episode.index + 1, description=f"collecting {env}, success {share}")
                recorded.add(episode.index)
            progress.update(bar, completed=episodes)
    report.left_out = sorted(set(range(episodes)) - recorded)
    return report


def _named_qualities(task: Task, quality: str | Mapping[str, float]) -> Mapping[str, float]:
    if not isinstance(quality, str):
        return quality
    if quality == "mixed":
        return MIXED if isinstance(task, ExpertTask) else {"random": 1.0}
    return {quality: 1.0}
