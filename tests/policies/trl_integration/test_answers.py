"""Answers of a language model, scored against estimates of reward models and plans of decomposers."""

import json
import pickle
from typing import Any

import pytest
import torch

from guerdon.core.batch import Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel, TaskDecomposer, TaskPlan, TaskStage
from guerdon.policies.trl_integration.answers import TRLPlanAnswer, TRLProgressAnswer, TRLSuccessAnswer


class Estimates(RewardModel):
    """Progress t/4 and success 0, 0, 0, 0, 0.8 at observations; the second one of each row is unknown."""

    def __init__(self, progress: bool = True) -> None:
        super().__init__()
        self.progress = progress

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        assert not self.training
        shape = (len(batch), batch.mask.shape[1] + 1)
        valid = (torch.arange(shape[1]) != 1).expand(shape)
        done = torch.tensor([0.0, 0, 0, 0, 0.8]).expand(shape)
        labels = Labelled(values=torch.linspace(0, 1, shape[1]).expand(shape), valid=valid)
        return RewardEstimates(
            rewards=torch.zeros(batch.mask.shape),
            valid=batch.mask,
            progress=labels if self.progress else None,
            success=Labelled(values=done, valid=valid) if self.progress else None,
        )


def logged() -> TrajectoryBatch:
    mask = torch.ones(2, 4, dtype=torch.bool)
    return TrajectoryBatch(state=torch.zeros(2, 5, 1), actions=torch.zeros(2, 4, 1), mask=mask)


def called(function: Any, texts: list[str], **columns: Any) -> list[float | None]:
    return function(prompts=["?"] * len(texts), completions=texts, completion_ids=None, **columns)


def test_progress_answers_are_scored_by_their_distance_from_the_estimate():
    function = pickle.loads(pickle.dumps(TRLProgressAnswer(Estimates().train(), logged())))
    texts = ["0.5", "Progress: 0.75", "25 %", "1", "0.50.", "half", "1.5", "120%", "-0.5", "0.5 0.5"]
    rewards = called(function, texts, episode=[1] * 10, step=[2] * 10)
    assert rewards == [1.0, 0.75, 0.75, 0.5, 1.0, None, None, None, None, None]
    assert called(function, ["0.5", "0.5"], episode=[0, 0], step=[1, 4]) == [None, 0.5]  # the first is unknown


def test_success_answers_are_scored_by_the_probability_that_they_are_right():
    function = pickle.loads(pickle.dumps(TRLSuccessAnswer(Estimates(), logged())))
    texts = ["yes", "No.", "TRUE", "false", "maybe"]
    rewards = called(function, texts, episode=[0] * 5, step=[4] * 5)
    assert rewards == [*(pytest.approx(p) for p in (0.8, 0.2, 0.8, 0.2)), None]
    assert called(function, ["yes", "no"], episode=[0, 0], step=[0, 1]) == [0.0, None]


@pytest.mark.parametrize("kind", [TRLProgressAnswer, TRLSuccessAnswer])
def test_a_reward_without_such_estimates_and_an_unknown_observation_are_refused(kind):
    with pytest.raises(ValueError, match=r"Estimates estimates no (progress|success)"):
        kind(Estimates(progress=False), logged())
    with pytest.raises(ValueError, match="episode 9, step 0: no such observation"):
        called(kind(Estimates(), logged()), ["what?"], episode=[9], step=[0])


class Teacher(TaskDecomposer):
    """Plans for one instruction; it fails where it has none, or crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def plan(self, instructions: Any, first_frames: Any = None) -> list[TaskPlan]:
        self.asked += instructions
        if instructions[0] == "crash":
            raise RuntimeError("endpoint is down")
        if instructions[0] != "open it":
            raise ValueError("no rule for this instruction")
        stages = tuple(TaskStage(name=name) for name in ("reach", "grasp", "pull"))
        return [TaskPlan(instruction="open it", stages=stages)]


def plan(*names: str) -> str:
    return json.dumps({"stages": [{"name": name} for name in names]})


def test_plans_are_scored_by_the_stages_they_share_in_order():
    function = TRLPlanAnswer(Teacher())
    texts = [plan("reach", "Grasp", "pull"), plan("reach", "pull"), plan("pull", "reach"), plan("wait"), "First reach."]
    rewards = called(function, texts, instruction=["open it"] * 5)
    assert rewards == [1.0, pytest.approx(0.8), pytest.approx(0.4), 0.0, None]
    assert function.decomposer.asked == ["open it"]  # once
    assert pickle.loads(pickle.dumps(function)).scores([]) == []


def test_a_teacher_without_a_plan_abstains_and_one_that_crashes_raises():
    function = TRLPlanAnswer(Teacher())
    assert called(function, [plan("reach")], instruction=["close it"]) == [None]
    with pytest.raises(RuntimeError, match="endpoint is down"):
        called(function, [plan("reach")], instruction=["crash"])
    with pytest.raises(ValueError, match="no column 'instruction'"):
        called(function, [plan("reach")])
    assert called(TRLPlanAnswer(Teacher(), max_stages=1), [plan("a", "b")], instruction=["open it"]) == [None]
