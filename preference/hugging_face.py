"""Pairs and answers to and from `datasets.Dataset` of Hugging Face."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from pydantic import BaseModel, ValidationError

import datasets

from ..core.batch import PreferencePairs, TrajectoryBatch
from .answers import Answer
from .segments import SegmentPair

M = TypeVar("M", bound=BaseModel)


def _segment() -> dict[str, datasets.Value]:
    return {name: datasets.Value("int64") for name in ("episode", "start", "stop")}


def _pair_features() -> datasets.Features:
    text = datasets.Value("string")
    return datasets.Features({"id": text, "first": _segment(), "second": _segment(), "reason": text})


def _answer_features() -> datasets.Features:
    text, number = datasets.Value("string"), datasets.Value("float64")
    columns = {"pair": text, "choice": text, "rater": text, "confidence": number, "seconds": number, "answered": text}
    return datasets.Features(columns)


def pairs_to_dataset(pairs: Sequence[SegmentPair]) -> datasets.Dataset:
    """Convert pairs of segments to a data set with the columns ``id``, ``first``, ``second`` and ``reason``.

    Args:
        pairs: Pairs; ``stop`` of a segment to the end of its episode becomes null.
    """
    return _to_dataset(pairs, _pair_features())


def pairs_from_dataset(dataset: datasets.Dataset) -> list[SegmentPair]:
    """Convert a data set that `pairs_to_dataset` made back to pairs of segments.

    Args:
        dataset: Data set with exactly those columns.

    Raises:
        ValueError: If a column is missing or unknown, or a row is no pair; the message names the row.
    """
    return _from_dataset(dataset, _pair_features(), SegmentPair)


def answers_to_dataset(answers: Sequence[Answer]) -> datasets.Dataset:
    """Convert answers to a data set with a column for each field of `Answer`.

    Args:
        answers: Answers; what was not asked or measured becomes null.
    """
    return _to_dataset(answers, _answer_features())


def answers_from_dataset(dataset: datasets.Dataset) -> list[Answer]:
    """Convert a data set that `answers_to_dataset` made back to answers.

    Args:
        dataset: Data set with exactly those columns.

    Raises:
        ValueError: If a column is missing or unknown, or a row is no answer; the message names the row.
    """
    return _from_dataset(dataset, _answer_features(), Answer)


def _to_dataset(records: Sequence[BaseModel], features: datasets.Features) -> datasets.Dataset:
    rows = [record.model_dump(mode="json") for record in records]
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


def _from_dataset(dataset: datasets.Dataset, features: datasets.Features, model: type[M]) -> list[M]:
    _require_columns(dataset, list(features))
    found: list[M] = []
    for number, row in enumerate(cast(list[dict[str, Any]], dataset.to_list())):
        try:
            found.append(model.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"row {number}: {where + ': ' if where else ''}{first['msg']}") from error
    return found


def _require_columns(dataset: datasets.Dataset, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in dataset.column_names]
    unknown = [name for name in dataset.column_names if name not in wanted]
    if missing or unknown:
        raise ValueError(
            f"missing columns: {', '.join(missing) or 'none'}; unknown columns: {', '.join(unknown) or 'none'}; "
            f"expected {', '.join(wanted)}: rename or remove columns first (rename_column, remove_columns)"
        )


_SIDES = ("chosen", "rejected")
_TRAJECTORY = ("state", "actions", "instruction")


def preference_pairs_to_dataset(pairs: PreferencePairs) -> datasets.Dataset:
    """Convert pairs of trajectories in memory to a data set with one row a pair.

    Columns are ``chosen_state`` (L+1, S), ``chosen_actions`` (L, A), ``chosen_instruction``, the same of ``rejected``,
    ``label`` and ``weight``. Padding is left out; numbers are float32. Other fields of the batch have no column.

    Args:
        pairs: Pairs of rows with float32 states and actions.
    """
    nested = datasets.List(datasets.List(datasets.Value("float32")))
    kinds: dict[str, Any] = {"state": nested, "actions": nested, "instruction": datasets.Value("string")}
    columns: dict[str, list[Any]] = {}
    features: dict[str, Any] = {}
    for side, rows in zip(_SIDES, (pairs.chosen.tolist(), pairs.rejected.tolist()), strict=True):
        steps = pairs.batch.steps.tolist()
        columns[f"{side}_state"] = [pairs.batch.state[row, : steps[row] + 1].tolist() for row in rows]
        columns[f"{side}_actions"] = [pairs.batch.actions[row, : steps[row]].tolist() for row in rows]
        columns[f"{side}_instruction"] = [pairs.batch.instructions[row] for row in rows]
        features |= {f"{side}_{name}": kind for name, kind in kinds.items()}
    columns |= {"label": pairs.label.tolist(), "weight": pairs.weight.tolist()}
    features |= {name: datasets.Value("float32") for name in ("label", "weight")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def preference_pairs_from_dataset(dataset: datasets.Dataset) -> PreferencePairs:
    """Convert a data set that `preference_pairs_to_dataset` made back to pairs of trajectories.

    Args:
        dataset: Data set with exactly those columns and at least one row.

    Returns:
        Pairs on a batch of 2P rows: row p is the chosen trajectory of pair p, row P + p the rejected one.

    Raises:
        ValueError: If a column is missing or unknown, there is no row, or a trajectory does not have one observation
            more than actions or changes its width.
    """
    wanted = [f"{side}_{name}" for side in _SIDES for name in _TRAJECTORY]
    _require_columns(dataset, [*wanted, "label", "weight"])
    rows = cast(list[dict[str, Any]], dataset.to_list())
    if not rows:
        raise ValueError("the data set has no row: expected at least one pair")
    pieces = [(number, row, side) for side in _SIDES for number, row in enumerate(rows)]
    states = [_table(row, f"{side}_state", number) for number, row, side in pieces]
    actions = [_table(row, f"{side}_actions", number) for number, row, side in pieces]
    widths = {(state.shape[1], action.shape[1]) for state, action in zip(states, actions, strict=True)}
    for (number, _, side), state, action in zip(pieces, states, actions, strict=True):
        if len(state) != len(action) + 1 or len(widths) > 1:
            raise ValueError(
                f"row {number}: {side} has {len(state)} observations and {len(action)} actions, and (state, action) "
                f"widths are {sorted(widths)}: expected one observation more than actions, and one width of each"
            )
    steps = torch.tensor([len(action) for action in actions])
    batch = TrajectoryBatch(
        state=torch.nn.utils.rnn.pad_sequence(states, batch_first=True),
        actions=torch.nn.utils.rnn.pad_sequence(actions, batch_first=True),
        mask=torch.arange(int(steps.max()))[None] < steps[:, None],
        instructions=tuple(row[f"{side}_instruction"] for _, row, side in pieces),
    )
    index = torch.arange(len(rows))
    return PreferencePairs(
        batch=batch,
        chosen=index,
        rejected=index + len(rows),
        label=torch.tensor([row["label"] for row in rows]),
        weight=torch.tensor([row["weight"] for row in rows]),
    )


def _table(row: Mapping[str, Any], name: str, number: int) -> torch.Tensor:
    try:
        table = torch.tensor(row[name], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"row {number}: {name}: expected a table of numbers: {error}") from error
    if table.dim() != 2:
        raise ValueError(f"row {number}: {name}: expected a table of numbers with at least one row")
    return table


__all__ = [
    "answers_from_dataset",
    "answers_to_dataset",
    "pairs_from_dataset",
    "pairs_to_dataset",
    "preference_pairs_from_dataset",
    "preference_pairs_to_dataset",
]
