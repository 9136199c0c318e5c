"""Rollouts of the GRAPE loop: several whole episodes from each initial state, kept as files."""

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, cast

import torch

from ...core.batch import TrajectoryBatch
from ...core.files import read_json, write_json
from ...core.interfaces import Policy, RewardModel
from ...core.sizes import DataSizes
from ...envs.task import Context
from ...envs.vector import sizes_of
from ...preference.pairs import row_scores
from ..rollouts.data import RolloutData
from ..rollouts.decisions import hash_seed
from ..rollouts.groups import GroupDraws, play_groups
from ..rollouts.pieces import Piece, batch_pieces
from ..rollouts.pool import WorkerPool
from ..rollouts.ray_pool import make_pool
from ..rollouts.setting import check_tasks
from ..rollouts.stream import evaluating
from .rollout_files import join_batches, read_about, read_batch, write_batch

ROLLOUTS = "rollouts.json"
"""Last file of a stage of rollouts."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Tasks of a run: their sizes and initial states."""

    sizes: list[DataSizes]
    """Name and sizes of each task, in their order."""
    train: list[Context]
    """Initial states of the rollouts that are learned from."""
    held_out: list[Context]
    """Initial states of the evaluation."""


def tasks_of(data: RolloutData, split: str, episodes: int) -> Tasks:
    """Build each task once, and list its sizes and initial states.

    Args:
        data: Settings of the rollouts.
        split: Split of the initial states of the evaluation.
        episodes: Number of them for each task; 0 lists none.

    Raises:
        ValueError: If a task is unknown, or tasks cannot be played together.
    """
    sizes: list[DataSizes] = []
    train: list[Context] = []
    held_out: list[Context] = []
    for number in range(len(data.task_names)):
        with closing(data.setting.make(number)) as task:
            sizes.append(sizes_of(task))
            train += task.contexts("train", data.counts[0])
            held_out += task.contexts(split, episodes) if episodes else []
    check_tasks(sizes)
    shared = set(train) & set(held_out)
    if shared:
        raise ValueError(
            f"{len(shared)} of the {len(held_out)} initial states of the evaluation are learned from (split "
            f"{split!r}): the success rate would show what was memorised; set split of evaluation to eval"
        )
    return Tasks(sizes=sizes, train=train, held_out=held_out)


def open_pool(data: RolloutData, tasks: Tasks) -> WorkerPool:
    """Start the environments of a run.

    Args:
        data: Settings of the rollouts.
        tasks: Tasks that are played.
    """
    return make_pool(data.pool, data.setting, data.envs, data.workers, tasks.sizes, data.policy_stays)


def play_iteration(
    folder: Path, data: RolloutData, tasks: Tasks, policy: Policy, reward: RewardModel, about: dict[str, Any], seed: int
) -> None:
    """Play the groups of an iteration, and complete its stage of rollouts.

    Each of the rollouts of the data module is one file, ``part-0000.safetensors`` and so on, and ``rollouts.json`` is
    the last one. Parts that are there and were played by the same policy are kept.

    Args:
        folder: Folder of the stage.
        data: Settings of the rollouts, with groups.
        tasks: Tasks that are played.
        policy: Policy that acts.
        reward: Reward model that scores whole episodes, where groups are compared by their scores.
        about: What the rollouts are made from: hash of the policy (``policy``) and state of the draws (``draws``).
        seed: Random seed of the draws of initial states and of the policy's noise.

    Raises:
        ValueError: If the rollouts of every group are the same.
    """
    assert data.groups is not None
    for half in folder.glob(".part-*"):  # left by a process that was killed
        half.unlink(missing_ok=True)
    parts = [part_path(folder, number) for number in range(data.rollouts)]
    draws = GroupDraws(data.groups, tasks.train)
    draws.load_state_dict(about["draws"])
    missing = [path for path in parts if not _usable(path, about["policy"])]
    if missing:
        with closing(open_pool(data, tasks)) as pool, evaluating(policy), torch.no_grad():
            states = states_of_parts(data, tasks.train, seed)
            for number, path in enumerate(parts):
                if path not in missing:
                    draws.load_state_dict(read_about(path)["draws"])
                    continue
                draws.contexts = states[number]
                part = _play(pool, data, draws, policy, reward, hash_seed(seed, number))
                write_batch(part[0], path, {**part[1], "policy": about["policy"], "draws": draws.state_dict()})
    elif parts:
        draws.load_state_dict(read_about(parts[-1])["draws"])
    batch = read_parts(parts)
    same = require_different(batch)
    told = [read_about(path) for path in parts]
    known = batch.success_known
    write_json(
        folder / ROLLOUTS,
        {
            "policy": about["policy"],
            "parts": len(parts),
            "episodes": len(batch),
            "groups": len(group_rows(batch)),
            "groups_of_equal_episodes": same,
            "env_steps": sum(one["env_steps"] for one in told),
            "success": float(batch.success[known].mean()) if bool(known.any()) else None,
            "steps": float(batch.steps.float().mean()),
            "metrics": [one["metrics"] for one in told],
            "draws": draws.state_dict(),
        },
    )


def states_of_parts(data: RolloutData, contexts: Sequence[Context], seed: int) -> list[list[Context]]:
    """Deal the initial states to the parts of an iteration, so that as few as possible are played twice.

    Each task has the same share of every part, as far as it goes. Without resampling a part gets as many initial states
    as it plays; with it, all are dealt out. A curriculum draws from all of them for every part.

    Args:
        data: Settings of the rollouts, with groups.
        contexts: Initial states of all tasks.
        seed: Random seed of the order.
    """
    assert data.groups is not None
    if data.groups.curriculum is not None or data.groups.skip_solved:
        return [list(contexts)] * data.rollouts
    generator = torch.Generator().manual_seed(hash_seed(seed, -1))
    by_task: dict[str, list[Context]] = {}
    for context in contexts:
        by_task.setdefault(context.task, []).append(context)
    mixed = [[own[i] for i in torch.randperm(len(own), generator=generator).tolist()] for own in by_task.values()]
    order = [context for turn in zip_longest(*mixed) for context in turn if context is not None]
    size = data.groups.contexts
    if data.groups.rejection == "resample":
        size = max(size, len(order) // data.rollouts)
    wanted = size * data.rollouts
    order = (order * -(-wanted // len(order)))[:wanted]
    return [order[begin : begin + size] for begin in range(0, wanted, size)]


def _usable(path: Path, policy: str) -> bool:
    return path.is_file() and read_about(path)["policy"] == policy


def _play(
    pool: WorkerPool, data: RolloutData, draws: GroupDraws, policy: Policy, reward: RewardModel, seed: int
) -> tuple[TrajectoryBatch, dict[str, Any]]:
    """Play the groups of one part."""
    generator = torch.Generator().manual_seed(hash_seed(seed, 0))

    def play(contexts: list[Context], numbers: list[int], wave: int) -> list[Piece]:
        # rows are grouped by their initial state, not by its draw: two draws of one make one group
        return pool.play(policy, contexts, hash_seed(seed, 1 + wave), False)

    def score(pieces: list[Piece]) -> list[float]:
        batch = batch_pieces(pieces, hide_outcome=data.hide_outcome).to(device_of(reward))
        return row_scores(batch, reward(batch)).scores.tolist()

    found = play_groups(draws, play, score, generator)
    batch = batch_pieces(found.pieces, hide_outcome=data.hide_outcome)
    return batch, {"env_steps": found.env_steps, "metrics": found.metrics}


def device_of(reward: RewardModel) -> torch.device:
    """Return the device of a reward model, whose batches must be there; the CPU where it holds no tensor.

    Args:
        reward: Reward model.
    """
    held = next(chain(reward.parameters(), reward.buffers()), None)
    return torch.device("cpu") if held is None else held.device


def part_paths(folder: Path) -> list[Path]:
    """Return the files of the rollouts of a complete stage, in the order in which they were played.

    Args:
        folder: Folder of the stage.

    Raises:
        FileNotFoundError: If the stage is not complete.
    """
    told = cast(dict[str, Any], read_json(folder / ROLLOUTS, "the rollouts of an iteration"))
    return [part_path(folder, number) for number in range(int(told["parts"]))]


def part_path(folder: Path, number: int) -> Path:
    """Return the file of a part of the rollouts.

    Args:
        folder: Folder of the stage.
        number: Number of the part.
    """
    return folder / f"part-{number:04}.safetensors"


def read_parts(paths: Sequence[Path], rows: Collection[int] | None = None, frames: bool = False) -> TrajectoryBatch:
    """Read rollouts as one batch, in the order in which they were played.

    Args:
        paths: Files of the parts.
        rows: Rows of all parts together that are kept, in ascending order; None keeps all.
        frames: Whether frames and features are read too.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If a part is damaged.
    """
    found: list[TrajectoryBatch] = []
    first = 0
    for path in paths:
        part = read_batch(path, frames)
        kept = [row for row in range(len(part)) if rows is None or first + row in rows]
        first += len(part)
        if kept:
            found.append(part[kept])
    return join_batches(found)


def group_rows(batch: TrajectoryBatch) -> dict[tuple[int, int], list[int]]:
    """Return the rows of each group, by its task and initial state.

    Args:
        batch: Trajectories.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(batch.task.tolist(), batch.group.tolist(), strict=True)):
        found.setdefault(key, []).append(row)
    return found


def require_different(batch: TrajectoryBatch) -> int:
    """Require that the episodes of a group differ, as they do where the policy samples.

    Args:
        batch: Whole episodes.

    Returns:
        Number of groups whose episodes are all the same.

    Raises:
        ValueError: If those of every group are.
    """
    groups = [rows for rows in group_rows(batch).values() if len(rows) > 1]
    same = sum(_equal(batch, rows) for rows in groups)
    if not groups:
        raise ValueError("no group has two episodes, so there is nothing to compare: set groups.size of rollouts to 5")
    if same == len(groups):
        raise ValueError(
            f"the {len(batch)} rollouts of {same} initial states are the same in each group, so there is nothing to "
            "prefer: the policy must sample with a standard deviation (log_std) or a temperature above 0, and must "
            "not be wrapped in Deterministic; start another run with such a policy"
        )
    return same


def _equal(batch: TrajectoryBatch, rows: Sequence[int]) -> bool:
    first = batch.actions[rows[0]]
    return all(
        bool(batch.steps[row] == batch.steps[rows[0]]) and torch.equal(batch.actions[row], first) for row in rows[1:]
    )


__all__ = [
    "ROLLOUTS",
    "Tasks",
    "device_of",
    "group_rows",
    "open_pool",
    "part_path",
    "part_paths",
    "play_iteration",
    "read_parts",
    "require_different",
    "tasks_of",
]
