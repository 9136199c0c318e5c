"""Settings from which a process builds its environments."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from ...core.sizes import DataSizes
from ...envs.task import Task
from ...envs.vector import check_same_sizes, make_task, sizes_of
from .frames import RolloutFrames
from .runner import Runner


@dataclass(frozen=True, kw_only=True)
class TaskSetting:
    """Settings from which a worker builds its environments."""

    task: str | Sequence[str]
    """Name of the task, see `guerdon.make_task`, or names of several tasks with the same state and action sizes."""
    horizon: int | None = None
    """Time limit in control steps; None takes that of each task."""
    end_on_success: bool = True
    """Whether the first success ends an episode."""
    task_seed: int = 0
    """Seed that fixes the contexts."""
    frames: RolloutFrames | None = None
    """Cameras that are rendered; None renders nothing."""
    spares: int = 0
    """Number of further simulators in each process, which reset in the background while the others play."""

    def __post_init__(self) -> None:
        """Check that there is a task, each named once, and the number of spares.

        Raises:
            ValueError: If not.
        """
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"task {list(self.tasks)}: expected at least one name, each once")
        if self.spares < 0:
            raise ValueError(f"spares {self.spares}: expected a number of simulators, 0 or more")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in their order."""
        return (self.task,) if isinstance(self.task, str) else tuple(self.task)

    def make(self, number: int) -> Task:
        """Build one simulator of a task.

        Args:
            number: Number of the task in the order of ``tasks``.
        """
        return make_task(self.tasks[number], self.horizon, self.task_seed)

    def runner(self, envs: int, first: int = 0) -> Runner:
        """Build the environments of one process.

        Args:
            envs: Number of its environments.
            first: Number of the first among those of all processes.
        """
        return Runner(
            self.task,
            envs,
            horizon=self.horizon,
            end_on_success=self.end_on_success,
            task_seed=self.task_seed,
            frames=self.frames,
            spares=self.spares,
            first=first,
        )

    def sizes(self) -> list[DataSizes]:
        """Build each task once, and return its name and sizes.

        Raises:
            ValueError: If a task is unknown, or tasks cannot be played together.
        """
        found: list[DataSizes] = []
        for number in range(len(self.tasks)):
            with closing(self.make(number)) as task:
                found.append(sizes_of(task))
        check_tasks(found)
        return found


def check_tasks(sizes: Sequence[DataSizes]) -> None:
    """Check that tasks can be played in one run.

    Args:
        sizes: Name and sizes of each task, in their order.

    Raises:
        ValueError: If sizes differ, or two tasks call themselves the same, so that their contexts cannot be told apart.
    """
    names = [one.name for one in sizes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two of the tasks call themselves {twice[0]!r}: give each class a name of its own")
    check_same_sizes(sizes)


__all__ = ["TaskSetting", "check_tasks"]
