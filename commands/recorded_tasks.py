"""Tasks that the models of a run were trained on, and the check of a configuration that plays others."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import lightning

from ..core.files import read_json, write_json
from ..datasets.module import EpisodeData
from ..datasets.opening import open_dataset
from ..policies.rollouts.data import RolloutData
from .key_hints import leaves

TASKS = "tasks.json"
"""Name of the file with the tasks of a run, in its run directory."""


class OtherTaskError(ValueError):
    """Error of a configuration that plays a task which its models were not trained on."""


def tasks_of(data: lightning.LightningDataModule | None) -> list[str]:
    """Return the names of the tasks that a data module plays or was collected from; empty where none is known.

    A task that is played has two where its simulator calls itself otherwise than the configuration does
    (``my.sim:Line``); the second is known once the tasks were built.
    """
    if isinstance(data, RolloutData):
        contexts = getattr(data, "train_contexts", [])
        return list(dict.fromkeys([*data.task_names, *(context.task for context in contexts)]))
    if not isinstance(data, EpisodeData):
        return []
    sets = [open_dataset(path) for path in data.paths]
    contexts = [dataset.summary(place).context for dataset in sets for place in range(len(dataset))]
    return sorted({name for name, sign, _ in (context.rpartition("#") for context in contexts) if sign})


def names_of_simulators(data: RolloutData) -> list[str]:
    """Build each task once, and return the names that they give themselves."""
    found: list[str] = []
    for number in range(len(data.task_names)):
        with closing(data.setting.make(number)) as task:
            found.append(task.name)
    return found


def record_tasks(run: Path, data: lightning.LightningDataModule | None) -> None:
    """Write the names of the tasks of a run into its directory, where any is known."""
    tasks = tasks_of(data)
    if tasks:
        write_json(run / TASKS, {"tasks": tasks})


def check_tasks_of_models(
    model: Mapping[str, Any], played: Sequence[str], named: bool, own_names: Callable[[], Sequence[str]] | None = None
) -> None:
    """Compare the tasks that saved models were trained on with those that are played.

    Args:
        model: Section ``model`` of the configuration.
        played: Names of the tasks that are played.
        named: Whether the command line names the task, so that another one is meant; it is only warned about then.
        own_names: Function that returns the names which the simulators give themselves, by which collected episodes
            are known; it is called only where the names differ.

    Raises:
        OtherTaskError: If a model was trained on none of the tasks, and the task is the configuration's.
    """
    for key, path in leaves(model, "model"):
        file = Path(path).parent / TASKS
        if key.rpartition(".")[2] != "path" or not path or not file.is_file():
            continue
        known = [str(name) for name in read_json(file, "the tasks of a run").get("tasks", [])]
        if not known or set(known) & set(played) or (own_names is not None and set(known) & set(own_names())):
            continue
        what = f"{path} (--{key}) was trained on {', '.join(known)}, and {', '.join(played)} is played"
        if not named:
            raise OtherTaskError(
                f"{what}: give --data.init_args.task {known[0]}, or --data.init_args.task {played[0]} if that is meant"
            )
        print(f"guerdon: warning: {what}", file=sys.stderr)


__all__ = ["TASKS", "OtherTaskError", "check_tasks_of_models", "names_of_simulators", "record_tasks", "tasks_of"]
