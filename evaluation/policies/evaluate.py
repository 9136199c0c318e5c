"""Evaluation of policies on held-out starts: the same starts and outcomes every time, in parts that can be resumed."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...core.files import write_json
from ...policies.rollouts.pool import WorkerPool
from .outcomes import Outcome, OutcomeFolder, outcome_of
from .playing import PART, TaskFacts, acting, play_part, read_task
from .results import PolicyEvaluation
from .setting import OpenedPolicy, PlaySetting, machine, versions
from .videos import Filming, check_filming, film

RESULTS = "evaluation.json"
"""File of the results in the output folder."""


def evaluate_policy(
    model: OpenedPolicy,
    tasks: str | Sequence[str],
    episodes: int = 50,
    setting: PlaySetting | None = None,
    *,
    against: OpenedPolicy | None = None,
    workers: int = 0,
    out: str | Path | None = None,
    videos: int = 0,
    version: str = "",
    console: Console | None = None,
) -> PolicyEvaluation:
    """Play a policy from the first starts of a split of one or more tasks, and estimate its success rates.

    The same arguments give the same outcomes start by start on one machine, whatever the number of workers is and
    whatever was played before. Each decision is one forward pass of one observation, and the noise of every episode
    follows from (seed, place of the start).

    Args:
        model: Policy to evaluate.
        tasks: Name of the task, or of several.
        episodes: Number of starts of each task.
        setting: Split, seeds, time limit and kind of actions; None takes the defaults.
        against: Other policy that is played on the same starts.
        workers: Number of processes; 0 plays in this one. Policies act on the CPU in processes.
        out: Folder to keep outcomes in as they come; the same call goes on from there. None keeps none.
        videos: Number of starts of each task that are played again for videos in ``out``.
        version: Version of guerdon, which is kept with the outcomes.
        console: Console for progress; None takes standard error.

    Raises:
        ValueError: If a number makes no sense, a task is unknown or not the policy's, or the folder holds outcomes of
            something else.
        OSError: If the folder cannot be written.
    """
    setting = setting or PlaySetting()
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks {list(names)}: expected at least one, each once")
    if episodes < 1 or workers < 0 or not 0 <= videos <= episodes:
        raise ValueError(
            f"expected at least 1 episode, 0 or more workers and at most as many videos as episodes, got {episodes} "
            f"episodes, {workers} workers, {videos} videos"
        )
    if videos and out is None:
        raise ValueError("videos are written to a folder: name it with out")
    policies = {"model": model} if against is None else {"model": model, "against": against}
    console = Console(stderr=True) if console is None else console
    with console.status(f"checking {', '.join(names)}"):
        facts = [read_task(name, episodes, setting, list(policies.values())) for name in names]
    filming = Filming(folder=Path(out), count=videos) if out is not None and videos else None
    if filming is not None:
        check_filming(facts)
    found = versions(names, version)
    folder = None
    if out is not None:
        identity = {"setting": setting.to_json() | {"part": PART}, "versions": found}
        identity |= {"device": {role: opened.device.type for role, opened in policies.items()}}
        identity |= {role: opened.key for role, opened in policies.items()}
        folder = OutcomeFolder(Path(out), identity, machine(model.device))
    outcomes: list[Outcome] = []
    films: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with acting([opened.policy for opened in policies.values()]):
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("evaluating", total=episodes * len(names) * len(policies))

            def advance(task: str, parts: Sequence[Outcome]) -> None:
                outcomes.extend(parts)
                own = [outcome.success for outcome in outcomes if outcome.task == task and outcome.policy == "model"]
                progress.update(bar, advance=len(parts), description=f"{task}, success {sum(own)}/{len(own)}")

            for task in facts:
                play_task(task, setting, policies, workers, folder, advance)
        if filming is not None:
            with console.status("recording videos"):
                films = [str(path) for task in facts for path in film(task, setting, policies, outcomes, filming)]
    evaluation = PolicyEvaluation.of(
        outcomes,
        model.identity,
        None if against is None else against.identity,
        setting.to_json() | {"episodes": episodes},
        found,
        machine(),
        films,
    )
    if out is not None:
        write_json(Path(out) / RESULTS, evaluation.to_json())
    return evaluation


def play_task(
    task: TaskFacts,
    setting: PlaySetting,
    policies: dict[str, OpenedPolicy],
    workers: int,
    folder: OutcomeFolder | None,
    advance: Callable[[str, Sequence[Outcome]], None],
) -> None:
    """Play the starts of one task with every policy, part by part; parts that the folder holds are read.

    Args:
        task: Task and its starts.
        setting: Setting of the evaluation.
        policies: Policies by role.
        workers: Number of processes.
        folder: Folder of outcomes, if they are kept.
        advance: Function that receives the outcomes of each part.
    """
    pool: WorkerPool | None = None
    try:
        for number in range(-(-len(task.contexts) // PART)):
            first = number * PART
            count = min(PART, len(task.contexts) - first)
            for role, opened in policies.items():
                outcomes = None if folder is None else folder.read(role, task.env, number, count)
                if outcomes is None:
                    if pool is None:  # built only where there is something to play
                        pool = WorkerPool(setting.of(task.env), max(1, workers), workers, [task.sizes])
                    pieces = play_part(pool, opened.policy, task.contexts, number, setting)
                    seeds = (setting.task_seed, setting.seed)
                    outcomes = [outcome_of(p, role, task.env, first + k, seeds) for k, p in enumerate(pieces)]
                    if folder is not None:
                        folder.write(role, task.env, number, outcomes)
                advance(task.env, outcomes)
    finally:
        if pool is not None:
            pool.close()


__all__ = ["RESULTS", "evaluate_policy", "play_task"]
