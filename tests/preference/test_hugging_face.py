"""Data sets of Hugging Face: exact round trips through memory and disk, bad columns and rows."""

from typing import cast

import pytest
import torch

import datasets
from guerdon.core.batch import PreferencePairs, TrajectoryBatch
from guerdon.preference.answers import Answer
from guerdon.preference.hugging_face import (
    answers_from_dataset,
    answers_to_dataset,
    pairs_from_dataset,
    pairs_to_dataset,
    preference_pairs_from_dataset,
    preference_pairs_to_dataset,
)
from guerdon.preference.segments import Segment, SegmentPair

ANSWERS = [
    Answer(pair="p1", choice="first", rater="ä", confidence=0.1, seconds=1 / 3, answered="2026-01-02T03:04:05Z"),
    Answer(pair="p1", choice="skip"),
    Answer(pair="p2", choice="tie", confidence=1.0),
]
PAIRS = [
    SegmentPair(id="p1", first=Segment(episode=0, start=3, stop=9), second=Segment(episode=2**40), reason="why"),
    SegmentPair(id="p2", first=Segment(episode=1), second=Segment(episode=1, stop=4)),
]


def through_disk(dataset: datasets.Dataset, folder) -> datasets.Dataset:
    dataset.save_to_disk(str(folder / "set"))
    return cast(datasets.Dataset, datasets.load_from_disk(str(folder / "set")))


def trajectories() -> PreferencePairs:
    mask = torch.tensor([[True] * 3, [True, True, False], [True, False, False]])
    batch = TrajectoryBatch(
        state=torch.randn(3, 4, 2), actions=torch.randn(3, 3, 1), mask=mask, instructions=("a", "a", "b")
    )
    rows = {"chosen": torch.tensor([0, 2]), "rejected": torch.tensor([1, 0])}
    return PreferencePairs(batch=batch, **rows, label=torch.tensor([1.0, 0.3]), weight=torch.tensor([1.0, 0.1]))


def test_answers_and_pairs_come_back(tmp_path):
    assert answers_from_dataset(answers_to_dataset(ANSWERS)) == ANSWERS
    assert pairs_from_dataset(pairs_to_dataset(PAIRS)) == PAIRS
    assert answers_from_dataset(through_disk(answers_to_dataset(ANSWERS), tmp_path / "answers")) == ANSWERS
    assert pairs_from_dataset(through_disk(pairs_to_dataset(PAIRS), tmp_path / "pairs")) == PAIRS
    assert answers_from_dataset(answers_to_dataset([])) == []
    assert pairs_from_dataset(pairs_to_dataset([])) == []


def test_columns_have_types_even_without_values():
    kinds = {name: feature.dtype for name, feature in answers_to_dataset(ANSWERS[1:2]).features.items()}
    assert kinds == {
        "pair": "string",
        "choice": "string",
        "rater": "string",
        "confidence": "float64",
        "seconds": "float64",
        "answered": "string",
    }
    assert answers_to_dataset([]).features == answers_to_dataset(ANSWERS).features
    assert pairs_to_dataset(PAIRS).features["first"]["stop"].dtype == "int64"


def test_trajectories_come_back(tmp_path):
    pairs = trajectories()
    again = preference_pairs_from_dataset(through_disk(preference_pairs_to_dataset(pairs), tmp_path))
    assert torch.equal(again.label, pairs.label)
    assert torch.equal(again.weight, pairs.weight)
    for ours, theirs in ((pairs.chosen, again.chosen), (pairs.rejected, again.rejected)):
        for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
            steps = int(pairs.batch.steps[a])
            assert int(again.batch.steps[b]) == steps
            assert torch.equal(again.batch.state[b, : steps + 1], pairs.batch.state[a, : steps + 1])
            assert torch.equal(again.batch.actions[b, :steps], pairs.batch.actions[a, :steps])
            assert again.batch.instructions[b] == pairs.batch.instructions[a]


def test_other_columns_are_refused():
    for dataset, read, message in (
        (answers_to_dataset(ANSWERS).remove_columns("rater"), answers_from_dataset, "missing columns: rater"),
        (answers_to_dataset(ANSWERS).add_column("x", [1, 2, 3]), answers_from_dataset, "unknown columns: x"),
        (pairs_to_dataset(PAIRS), answers_from_dataset, "missing columns: pair"),
        (answers_to_dataset(ANSWERS), preference_pairs_from_dataset, "missing columns: chosen_state"),
    ):
        with pytest.raises(ValueError, match=message):
            read(dataset)


def test_bad_rows_are_named():
    wrong = answers_to_dataset(ANSWERS).map(
        lambda row, n: {"choice": "left" if n == 1 else row["choice"]}, with_indices=True
    )
    with pytest.raises(ValueError, match="row 1: choice"):
        answers_from_dataset(wrong)
    same = pairs_to_dataset(PAIRS).map(lambda row: {"second": row["first"]})
    with pytest.raises(ValueError, match=r"row 0: .*both segments"):
        pairs_from_dataset(same)
    short = preference_pairs_to_dataset(trajectories()).map(
        lambda row: {"rejected_actions": row["rejected_actions"][:1]}
    )
    with pytest.raises(ValueError, match="row 0: rejected has 3 observations and 1 actions"):
        preference_pairs_from_dataset(short)
    with pytest.raises(ValueError, match="no row"):
        preference_pairs_from_dataset(preference_pairs_to_dataset(trajectories()).select([]))
