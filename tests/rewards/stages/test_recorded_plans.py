"""Recorded plans and stages: passed on as they are, or refused."""

import json

import numpy as np
import pytest
import torch

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.datasets.collate import collate
from guerdon.datasets.episodes import Column, Episode
from guerdon.datasets.formats.lerobot import LeRobotDataset
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.stages import stage_column
from guerdon.rewards.stages.recorded_plans import RecordedDecomposer
from guerdon.testing import reopen

PLANS = {
    "make tea": {"stages": [{"name": "boil water"}, {"name": "pour"}, {"name": "wait", "completion": "it is dark"}]},
    "sit": {"stages": [{"name": "sit down"}]},
}


def batch_of(stage, valid=None, end=End.CUT, name="stage", instruction="make tea"):
    values = torch.tensor([stage])
    steps = values.shape[1] - 1
    known = torch.ones_like(values, dtype=torch.bool) if valid is None else torch.tensor([valid])
    return TrajectoryBatch(
        state=torch.zeros(1, steps + 1, 1),
        actions=torch.zeros(1, steps, 1),
        mask=torch.ones(1, steps, dtype=torch.bool),
        instructions=(instruction,),
        end=torch.tensor([int(end)]),
        labels={name: Labelled(values=values, valid=known)},
    )


def test_plans_come_from_a_mapping_or_a_file(tmp_path):
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(PLANS))
    for decomposer in (RecordedDecomposer(PLANS), RecordedDecomposer(str(file))):
        plan, short = decomposer.plan(["make tea", "sit"])
        assert [stage.name for stage in plan.stages] == ["boil water", "pour", "wait"]
        assert plan.stages[2].completion == "it is dark"
        assert len(short.stages) == 1


def test_a_saved_decomposer_holds_the_plans_and_not_the_file(tmp_path):
    file = tmp_path / "plans.json"
    file.write_text(json.dumps(PLANS))
    decomposer = RecordedDecomposer(str(file), column="phase")
    file.unlink()
    opened = reopen(decomposer)
    assert opened.plan(["make tea"]) == decomposer.plan(["make tea"])
    assert opened.column == "phase"


def test_stages_are_passed_on():
    decomposer, batch = RecordedDecomposer(PLANS), batch_of([0, 0, 1, 7, 2], [True, True, True, False, True])
    plans = decomposer.plan(batch.instructions)
    found = decomposer.segment(batch, plans, causal=False)
    assert found.values.tolist() == [[0, 0, 1, 0, 2]]  # what is unknown is 0 and invalid
    assert found.valid.tolist() == [[True, True, True, False, True]]
    assert decomposer.completed(batch, plans, causal=False).values.tolist() == [[0, 0, 1, 0, 2]]


def test_success_completes_the_last_stage():
    decomposer, batch = RecordedDecomposer(PLANS), batch_of([0, 1, 2], end=End.SUCCESS)
    plans = decomposer.plan(batch.instructions)
    assert decomposer.completed(batch, plans, causal=False).values.tolist() == [[0, 1, 3]]
    assert decomposer.segment(batch, plans, causal=False).values.tolist() == [[0, 1, 2]]


def test_hindsight_is_not_used_online_unless_it_is_none():
    batch = batch_of([0, 1, 2])
    careful, trusting = RecordedDecomposer(PLANS), RecordedDecomposer(PLANS, causal_labels=True)
    plans = careful.plan(batch.instructions)
    with pytest.raises(ValueError, match=r"'stage' was made with the whole episode in view.*causal_labels=True"):
        careful.segment(batch, plans, causal=True)
    assert trusting.segment(batch, plans, causal=True).values.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ([0, 1, 3], r"episode 0 is 3 at observation 2: expected a whole number"),
        ([0, -1, 1], "is -1 at observation 1"),
        ([0.0, 0.5, 1.0], r"is 0\.5 at observation 1"),
        ([0.0, float("nan"), 1.0], "is nan at observation 1"),
        ([0, 2, 1], "is 1 at observation 2: a later stage came before it"),
    ],
)
def test_stages_that_do_not_fit_the_plan_are_refused(stage, said):
    decomposer, batch = RecordedDecomposer(PLANS), batch_of(stage)
    with pytest.raises(ValueError, match=said):
        decomposer.segment(batch, decomposer.plan(batch.instructions), causal=False)


def test_what_is_missing_is_named(tmp_path):
    decomposer, batch = RecordedDecomposer(PLANS), batch_of([0, 1], name="phase")
    plans = decomposer.plan(batch.instructions)
    with pytest.raises(ValueError, match="no label 'stage' is recorded here, only phase"):
        decomposer.segment(batch, plans, causal=False)
    with pytest.raises(ValueError, match="a plan for each of 1 rows, got 2"):
        decomposer.segment(batch, plans * 2, causal=False)
    with pytest.raises(ValueError, match="no plan is recorded for 'dance': there are plans for 'make tea', 'sit'"):
        decomposer.plan(["dance"])
    with pytest.raises(FileNotFoundError, match="no file of plans"):
        RecordedDecomposer(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", r"expected \{instruction"),
        ('{"sit": {"stages": []}}', "the plan for 'sit': stages: .*at least 1"),
        ('{"sit": {"stages": [{"name": "a"}]}, "sit": {"stages": [{"name": "b"}]}}', "'sit' twice"),
    ],
)
def test_a_file_that_holds_no_plans_is_refused(tmp_path, text, said):
    file = tmp_path / "plans.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        RecordedDecomposer(str(file))


def test_marked_runs_become_a_column():
    column = stage_column([(1, 3), (3, 4), (5, 6)], 8)
    # 0 and 4 lie outside; stage 0 holds at 1, 2, is complete at 3, where stage 1 begins; the last includes its end
    assert column.valid.tolist() == [False, True, True, True, False, True, True, False]
    assert column.values[column.valid].tolist() == [0, 0, 1, 2, 2]
    for wrong in ([(0, 0)], [(0, 3), (2, 4)], [(0, 8)], [(-1, 2)]):
        with pytest.raises(ValueError, match=r"stage \d goes from observation"):
            stage_column(wrong, 8)


def test_stages_survive_a_data_set(tmp_path):
    stage = stage_column([(0, 2), (2, 4), (4, 5)], 6)
    episode = Episode(
        index=0,
        state=np.zeros((6, 2), np.float32),
        actions=np.zeros((5, 1), np.float32),
        instruction="make tea",
        end=End.SUCCESS,
        success=1.0,
        labels={"stage": Column(values=stage.values, valid=stage.valid)},
    )
    with LeRobotWriter(tmp_path / "tea", fps=10) as writer:
        writer.add(episode)
    batch = collate([LeRobotDataset(tmp_path / "tea")[0]])
    decomposer = RecordedDecomposer(PLANS)
    plans = decomposer.plan(batch.instructions)
    assert decomposer.completed(batch, plans, causal=False).values.tolist() == [[0, 0, 1, 1, 2, 3]]
