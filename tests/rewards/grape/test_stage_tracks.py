"""Costs of the rows of a batch: the track of a step is the observation it leads to, and what is unknown is said."""

from dataclasses import replace

import pytest
import torch

from guerdon.core.batch import Labelled, TrajectoryBatch
from guerdon.core.interfaces import TaskDecomposer, TaskPlan, TaskStage
from guerdon.rewards.costs import cost_table
from guerdon.rewards.grape.cost_files import load_costs
from guerdon.rewards.grape.stage_tracks import RowCosts, StageCosts

NEAR = {"stage": 0, "name": "near", "kind": "path", "op": "dist", "a": "hand", "b": "thing"}
HELD = {"stage": 1, "name": "held", "kind": "grasp", "op": "flag", "a": "closed", "weight": 0.5}
TWO = load_costs({"task": "two", "stages": ["reach", "hold"], "constraints": [NEAR, HELD]})
ONE = load_costs({"task": "one", "instructions": ["touch it"], "stages": ["all"], "constraints": [NEAR]})
WANTED = torch.ones(2, dtype=torch.bool)


def rows(**more):
    """Two rows of three steps; the hand is at the thing from observation 2 on and holds it at the last one."""
    known = torch.ones(2, 4, dtype=torch.bool)
    hand = torch.zeros(2, 4, 3)
    hand[:, :, 0] = torch.tensor([9.0, 1.0, 0.0, 0.0])
    return TrajectoryBatch(
        state=torch.zeros(2, 4, 0),
        actions=torch.zeros(2, 3, 0),
        mask=torch.ones(2, 3, dtype=torch.bool),
        instructions=("do it", "touch it"),
        labels={"stage": Labelled(values=torch.tensor([[0, 0, 1, 1]] * 2), valid=known)},
        tracks={
            "hand": Labelled(values=hand, valid=known),
            "thing": Labelled(values=torch.zeros(2, 4, 3), valid=known),
            "closed": Labelled(values=torch.tensor([[True, True, False, True]] * 2), valid=known),
        },
        **more,
    )


def without(batch, kind, name):
    return replace(batch, **{kind: {k: v for k, v in getattr(batch, kind).items() if k != name}})


def test_the_first_observation_costs_nothing_and_constraints_are_numbered_through_the_files():
    costs = StageCosts([TWO, ONE])
    two, one = costs.measure(rows(), None, WANTED)
    # row 0, steps at observations 1, 2, 3: 1 m in stage 0; open once in stage 1, of two steps
    assert (two.problem, two.file, two.first, two.excess, two.missed) == ("", TWO, 0, [1.0, 1.0], 0)
    # row 1: one stage for all steps, 1 + 0 + 0 m
    assert (one.file, one.first, one.excess) == (ONE, 2, [1.0])
    assert costs.width == 3 and costs.weights.tolist() == [1.0, 0.5, 1.0]


def test_a_row_costs_what_its_track_costs():
    batch = rows()
    track = {name: column.values[0, 1:].numpy() for name, column in batch.tracks.items()}
    table = cost_table(TWO.constraints, track | {"stage": batch.labels["stage"].values[0, 1:].numpy()})
    found = StageCosts([TWO]).measure(batch, None, WANTED)[0]
    assert [row.cost for row in found.table] == [row.cost for row in table]


def test_a_stage_never_reached_is_counted():
    early = replace(rows().labels["stage"], values=torch.zeros(2, 4, dtype=torch.long))
    found = StageCosts([TWO]).measure(replace(rows(), labels={"stage": early}), None, WANTED)[0]
    assert (found.missed, found.excess) == (1, [1.0, 0.0])


def test_an_observation_that_was_not_made_is_left_out():
    batch = rows(last_observed=torch.tensor([False, True]))
    assert StageCosts([TWO]).measure(batch, None, WANTED)[0].excess == [1.0, 1.0]  # observation 3 held it


def test_what_is_unknown_is_said_row_by_row():
    batch = rows()
    stage, hand = batch.labels["stage"], batch.tracks["hand"]
    gap = torch.ones(2, 4, dtype=torch.bool)
    gap[0, 2] = False
    costs = StageCosts([TWO, ONE])

    def problems(changed, wanted=WANTED):
        return [row.problem for row in costs.measure(changed, None, wanted)]

    assert problems(batch) == ["", ""]
    assert problems(batch, ~WANTED) == ["it is no whole, finished episode"] * 2
    assert problems(without(batch, "labels", "stage")) == ['no stages: neither labels["stage"] nor a decomposer', ""]
    unsure = replace(batch, labels={"stage": replace(stage, valid=gap)})
    assert problems(unsure)[0] == "the stage of some steps is unknown"
    cut = replace(batch, tracks={**batch.tracks, "hand": replace(hand, valid=gap)})
    assert problems(cut) == ["track 'hand' is unknown at some steps", ""]
    lost = without(batch, "tracks", "thing")
    assert problems(lost)[1] == "no track 'thing'; recorded are closed, hand"
    assert [r.problem for r in StageCosts([ONE]).measure(batch, None, WANTED)] == [
        "no costs for the instruction 'do it'",
        "",
    ]


def test_bad_stages_and_several_files_for_one_instruction_are_named():
    stage = rows().labels["stage"]
    far = replace(rows(), labels={"stage": replace(stage, values=stage.values + 1)})
    with pytest.raises(ValueError, match="two: stage 2 came, and the costs are for 2 stages: reach, hold"):
        StageCosts([TWO]).measure(far, None, WANTED)
    with pytest.raises(ValueError, match="several costs are for 'do it': two, two"):
        StageCosts([TWO, TWO]).find("do it")
    assert StageCosts([TWO, ONE]).find("touch it") == 1 and StageCosts([ONE]).find("do it") is None


class Halves(TaskDecomposer):
    """Two stages of equal length."""

    def __init__(self, second: str = "hold") -> None:
        super().__init__()
        self.second = second

    def plan(self, instructions, first_frames=None):
        stages = (TaskStage(name="reach"), TaskStage(name=self.second))
        return [TaskPlan(instruction=text, stages=() if text == "touch it" else stages) for text in instructions]

    def segment(self, batch, plans, causal):
        values = torch.tensor([[0, 0, 1, 1]]).expand(len(batch), -1)
        return Labelled(values=values, valid=torch.ones(len(batch), 4, dtype=torch.bool))


def test_a_decomposer_names_the_stages_and_another_plan_is_no_answer():
    batch, costs = without(rows(), "labels", "stage"), StageCosts([TWO])
    first, second = costs.measure(batch, Halves(), WANTED)
    assert (first.excess, second.problem) == ([1.0, 1.0], "the decomposer gave no plan")
    with pytest.warns(UserWarning, match=r"no plan of the batch fits the costs: .*reach, hold.*reach, drop"):
        refused = costs.measure(batch, Halves("drop"), WANTED)[0]
    assert "reach, drop" in refused.problem and refused.table == ()
    costs.measure(batch, Halves("drop"), WANTED)  # warned of once: warnings are errors here


def test_a_row_without_a_table_costs_nothing():
    empty = RowCosts(problem="unknown")
    assert (empty.excess, empty.missed, empty.file) == ([], 0, None)
