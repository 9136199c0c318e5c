"""Simulated episodes of chosen quality, one by one or as a LeRobot data set."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..core.batch import End
from ..datasets.episodes import ArrayFrames, Column, Episode
from ..datasets.formats.lerobot_writer import LeRobotWriter
from .experts import has_expert
from .quality import MIXED, NOISE, QUALITIES, Behaviour, behaviour
from .render import NO_BACKEND, rendering_backend, require_backend
from .task import Context, Step, Task
from .vector import make_task

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
    noise: float = NOISE,
    stop_at_success: bool = True,
) -> Iterator[Episode]:
    """Act in a task and yield what happened.

    Episode i starts from the i-th context of the split and depends on (task, task seed, seed, i) alone. Qualities are
    dealt in proportion to their weights, not drawn: after any number of episodes each has its share to within one.

    Each episode holds ``recorded["reward"]``, per-observation ``labels["success"]`` and ``labels["stage.<name>"]``
    (unknown at the first observation, before the simulator was asked), and the task's tracks. It ends with `SUCCESS`,
    with `FAILURE` where somebody gave up or the simulator ended it, or with `TIME_LIMIT`. An episode whose simulation
    diverges is left out with a warning in the log.

    Args:
        task: where to act.
        qualities: weight of each quality; see `guerdon.envs.quality`.
        episodes: how many.
        seed: of the behaviour; the initial states belong to the task and its own seed.
        split: whose contexts, ``"train"`` or ``"eval"``.
        frames: whether to record pictures; None means wherever an OpenGL backend works.
        image_size: (H, W) of the pictures.
        cameras: which of the task's cameras; None means its first.
        noise: of noisy experts; see `guerdon.envs.quality.behaviour`.
        stop_at_success: end with the first success. Otherwise episodes run on, and count as a success where there
            was one at any time.

    Raises:
        ValueError: unknown qualities, cameras or split, or an expert asked for where there is none.
        RuntimeError: frames asked for where nothing renders.
    """
    shares = check_qualities(task.name, qualities)
    if frames:
        require_backend()
    views = _check_cameras(task, cameras) if frames or (frames is None and rendering_backend()) else ()
    contexts = task.contexts(split, episodes)
    for index, (context, quality) in enumerate(zip(contexts, _deal(shares, episodes), strict=True)):
        generator = np.random.default_rng([seed, index, 1])
        actor = behaviour(task, context, quality, generator, noise)
        recording = _Recording(task, views, image_size)
        try:
            end = recording.play(context, actor, stop_at_success)
        except FloatingPointError as error:
            _log.warning("episode %d left out: %s", index, error)
            continue
        yield recording.episode(index, context, quality, end)


def check_qualities(name: str, qualities: Mapping[str, float]) -> dict[str, float]:
    """Positive weights of known qualities that the named task can give, summing to 1.

    Raises:
        ValueError: an unknown quality, a weight that is no weight, or an expert asked for where there is none.
    """
    unknown = sorted(set(qualities) - set(QUALITIES))
    if unknown:
        raise ValueError(f"unknown quality {unknown[0]!r}: expected some of {', '.join(QUALITIES)}")
    for quality, weight in qualities.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise ValueError(f"quality {quality!r}: expected a weight of at least 0, got {weight}")
    total = sum(qualities.values())
    if total == 0:
        raise ValueError("expected at least one quality with a positive weight")
    shares = {quality: weight / total for quality, weight in qualities.items() if weight > 0}
    if not has_expert(name) and set(shares) != {"random"}:
        wanted = ", ".join(quality for quality in shares if quality != "random")
        raise ValueError(f"{name} has no scripted expert, so it gives no {wanted} episodes: ask for quality 'random'")
    return shares


def _deal(shares: Mapping[str, float], episodes: int) -> Iterator[str]:
    """Give each episode in turn the quality that lags most behind its share."""
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


class _Recording:
    """One episode while it is played."""

    def __init__(self, task: Task, cameras: Sequence[str], image_size: tuple[int, int]) -> None:
        self._task, self._size = task, image_size
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._steps: list[Step] = []
        self._tracks: list[Mapping[str, np.ndarray]] = []
        self._pictures: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}

    def play(self, context: Context, actor: Behaviour, stop_at_success: bool) -> End:
        task = self._task
        self._observe(task.reset(context))
        for _ in range(task.horizon):
            action = actor(self._states[-1])
            if action is None:
                return End.FAILURE
            action = np.clip(action, task.action_low, task.action_high).astype(np.float32)
            step = task.step(action)
            self._actions.append(action)
            self._steps.append(step)
            self._observe(step.state)
            if step.success and stop_at_success:
                return End.SUCCESS
            if step.terminated:
                return End.FAILURE
        return End.TIME_LIMIT

    def _observe(self, state: np.ndarray) -> None:
        self._states.append(state)
        self._tracks.append(self._task.tracks())
        for camera, pictures in self._pictures.items():
            pictures.append(self._task.render(camera, self._size))

    def episode(self, index: int, context: Context, quality: str, end: End) -> Episode:
        task = self._task
        solved = [step.success for step in self._steps]
        labels = {"success": _after_first(np.array(solved, np.float32))}
        for name in task.stage_names:
            labels[f"stage.{name}"] = _after_first(np.array([step.stages[name] for step in self._steps], np.float32))
        tracks: dict[str, Column] = {}
        for name in self._tracks[0]:
            points = np.stack([track[name] for track in self._tracks])
            tracks[name] = Column.known(points[:, 0] if points.shape[1] == 1 else points)
        return Episode(
            index=index,
            state=np.stack(self._states),
            actions=np.stack(self._actions),
            instruction=task.instruction,
            fps=task.fps,
            end=end,
            success=float(any(solved)),
            frames={camera: _frames(pictures) for camera, pictures in self._pictures.items()},
            labels=labels,
            tracks=tracks,
            recorded={"reward": Column.known(np.array([step.reward for step in self._steps], np.float32))},
            group=context.index,
            source=QUALITIES.index(quality),
            quality=quality,
            context=f"{task.name}#{task.seed}.{context.index}",
            split=context.split,
        )


def _after_first(values: np.ndarray) -> Column:
    """Values (T,) known after each step as a column (T+1,) that is unknown at the first observation."""
    return Column(values=np.concatenate([[np.float32(0)], values]), valid=np.arange(len(values) + 1) > 0)


def _frames(pictures: Sequence[np.ndarray]) -> ArrayFrames:
    values = np.stack(pictures)
    identity = hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
    return ArrayFrames(values=values, step=np.arange(len(values)), identity=identity)


@dataclass
class CollectReport:
    """What `collect_dataset` wrote."""

    folder: Path
    frames: bool
    """Whether pictures were recorded."""
    steps: int = 0
    """Control steps of all episodes."""
    episodes: Counter[str] = field(default_factory=Counter[str])
    """Quality → how many episodes."""
    successes: Counter[str] = field(default_factory=Counter[str])
    """Quality → how many of them succeeded."""
    left_out: list[int] = field(default_factory=list[int])
    """Numbers of the episodes whose simulation diverged."""

    def lines(self) -> list[str]:
        """One line per quality and one for the whole, ready to print."""
        rows = [
            f"{quality:<8} {self.episodes[quality]:>4} episodes, {self.successes[quality]:>4} successes"
            for quality in QUALITIES
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
    noise: float = NOISE,
    console: Console | None = None,
) -> CollectReport:
    """Collect episodes of one task into a LeRobot v3.0 data set: ``guerdon collect``.

    The data set appears under its name when it is complete; an error or Ctrl-C leaves nothing behind. The same
    arguments give the same states, actions and pictures.

    Args:
        env: name of the task; see `guerdon.envs.vector.make_task`.
        out: folder to make; it must not exist, or be empty.
        episodes: how many.
        seed: of the initial states and of the behaviour, so that two seeds share no episode.
        quality: one of ``"expert"``, ``"noisy"``, ``"aborted"``, ``"random"``, ``"mixed"`` (40, 30, 15 and 15 %; all
            random where there is no expert), or weights of one's own.
        frames: whether to record pictures; None means wherever an OpenGL backend works, and it is said where none does.
        image_size: height and width of the pictures.
        cameras: which of the task's cameras; None means its first.
        split: whose contexts, ``"train"`` or ``"eval"``.
        horizon: time limit in control steps; None means the task's own.
        noise: of noisy experts, in half ranges of the action.
        console: where progress and messages go; None means standard error.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: an unknown task, quality, camera or split, or fewer than one episode.
        ModuleNotFoundError: the simulator is not installed.
        RuntimeError: frames asked for where nothing renders.
    """
    if episodes < 1:
        raise ValueError(f"expected at least one episode, got {episodes}")
    if image_size < 16:
        raise ValueError(f"expected pictures of at least 16 pixels, got {image_size}")
    console = Console(stderr=True) if console is None else console
    qualities = _named_qualities(env, quality)
    if frames is None and rendering_backend() is None:
        console.print(f"recording states only: {NO_BACKEND}")
        frames = False
    with closing(make_task(env, horizon, seed)) as task:
        stream = collect(
            task, qualities, episodes, seed, split, frames is not False, (image_size, image_size), cameras, noise
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


def _named_qualities(env: str, quality: str | Mapping[str, float]) -> Mapping[str, float]:
    if not isinstance(quality, str):
        return quality
    if quality == "mixed":
        return MIXED if has_expert(env) else {"random": 1.0}
    if quality not in QUALITIES:
        raise ValueError(f"unknown quality {quality!r}: expected mixed, {', '.join(QUALITIES)}")
    return {quality: 1.0}
