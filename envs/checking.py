"""Conformance check of tasks: everything that the protocol promises, in one report."""

from collections.abc import Callable
from typing import Any

from .naming import make_task
from .promises import MEMBERS, Promises, TaskReport
from .task import Task, missing_members

__all__ = ["TaskReport", "check_task"]

MakeTask = Callable[..., Any]
"""Class of a task, or a function that makes one; it takes ``seed=``, with defaults for everything else."""


def check_task(task: Task | MakeTask | str, steps: int = 15, frames: bool | None = None) -> TaskReport:
    """Check everything that the `Task` protocol promises, and what a task offers beyond it.

    Contexts are disjoint and reproducible, and fix the episode bit for bit, in any order and in a fresh copy; shapes,
    types and finite numbers; names of stages and tracks; clipping, and what must be refused; saving and restoring; the
    expert; pictures; the time limit. Every promise that does not hold is reported, not only the first.

    Args:
        task: Class of the task, a function that makes it, its name, or a task; with a task, what needs a fresh copy is
            not checked.
        steps: Number of control steps of the episodes that are compared, at least 4.
        frames: Whether pictures are checked; None checks them where they can be drawn.

    Returns:
        What was checked, with notes; it can be printed.

    Raises:
        AssertionError: If a promise does not hold; the message lists all of them, each with what was expected.
        ValueError: If there are too few steps.
    """
    if steps < 4:
        raise ValueError(f"expected at least 4 steps, got {steps}")
    make = _maker(task)
    first = make(0) if make is not None else task
    missing = missing_members(first)
    if missing:
        raise AssertionError(
            f"{type(first).__name__} is no task: it lacks {', '.join(missing)}; guerdon.Task describes every member"
        )
    subject: Any = first
    problems: list[str] = []
    report = TaskReport(task=str(subject.name))
    try:
        _run(Promises(subject, make, steps, frames, report), problems)
    finally:
        if make is not None:
            subject.close()
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise AssertionError(f"{report.task} breaks {len(problems)} promises of guerdon.Task:\n{listed}")
    return report


def _maker(task: Task | MakeTask | str) -> Callable[[int], Any] | None:
    """Return a function from a seed to a fresh copy, or None for a task."""
    if isinstance(task, str):
        return lambda seed: make_task(task, seed=seed)
    if isinstance(task, type) or (callable(task) and not isinstance(task, Task)):
        made: Any = task
        return lambda seed: made(seed=seed)
    return None


def _run(check: Promises, problems: list[str]) -> None:
    """Run all checks; an error inside one is a problem, and the others still run."""
    for what, method in check.all().items():
        found: list[str] = []
        try:
            found.extend(method())
        except Exception as error:
            found.append(f"{what}: it raised {type(error).__name__}: {error}")
        problems += found
        if not found and what not in check.skipped:
            check.report.checked.append(what)
        if found and what == MEMBERS:
            return  # nothing else makes sense
