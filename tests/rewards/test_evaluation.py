"""Figures on models whose figures are known by hand: perfect, clock, constant, blind to instructions."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.core.metrics import pairwise_accuracy, success_auroc
from guerdon.rewards.controls import OtherTasks, describe_figures, judge, shuffle_map, with_constant
from guerdon.rewards.evaluation import CONTROLS, MODEL, Evaluation, Judged, Reading, evaluate
from guerdon.rewards.evaluation_table import print_evaluation

TASKS = {0: "open the drawer", 1: "close the drawer"}


class Scripted(RewardModel):
    """State 0 is how far the episode is, state 1 which task it shows."""

    def __init__(self, kind: str = "perfect", success: bool = True) -> None:
        super().__init__()
        self.kind, self.success = kind, success

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        progress = batch.state[..., 0].clone()
        if self.kind == "clock":
            progress = torch.arange(progress.shape[1]).expand_as(progress) / (progress.shape[1] - 1)
        elif self.kind == "constant":
            progress = torch.full_like(progress, 0.3)
        elif self.kind == "perfect":
            asked = torch.tensor([float(text == TASKS[1]) for text in batch.instructions])
            progress = torch.where(batch.state[..., 1] == asked[:, None], progress, 0.0)
        valid = batch.observed
        return RewardEstimates(
            rewards=progress.diff(dim=1) * batch.mask,
            valid=batch.mask & valid[:, 1:],
            progress=Labelled(values=progress, valid=valid),
            success=Labelled(values=(progress >= 1).float(), valid=valid) if self.success else None,
        )


def episodes(success, tasks=None, length=4):
    """Progress rises to 1 in a success and to ½ in a failure."""
    rows = len(success)
    top = torch.tensor([0.5 if s is None or s < 1 else 1.0 for s in success])
    task = torch.tensor(tasks if tasks is not None else [0] * rows)
    progress = top[:, None] * torch.linspace(0, 1, length + 1)
    ends = [End.CUT if s is None else End.SUCCESS if s >= 1 else End.FAILURE for s in success]
    return TrajectoryBatch(
        actions=torch.zeros(rows, length, 1),
        mask=torch.ones(rows, length, dtype=torch.bool),
        state=torch.stack([progress, task[:, None].expand_as(progress).float()], dim=-1),
        instructions=tuple(TASKS[int(t)] for t in task),
        task=task,
        end=torch.tensor([int(e) for e in ends]),
        success=torch.tensor([float(s or 0) for s in success]),
        success_known=torch.tensor([s is not None for s in success]),
    )


def run(reward, batch, **settings_) -> Evaluation:
    others = OtherTasks(instructions={int(t): TASKS[int(t)] for t in batch.task})
    judged = with_constant(judge(reward, batch, others))
    return evaluate(judged, describe_figures(reward(batch)), **settings_)


def value(evaluation, name, figure):
    return getattr(evaluation.figures[name], figure).value


def test_a_perfect_model():
    found = run(Scripted("perfect"), episodes([1, 0, 1, 0], tasks=[0, 0, 1, 1]))
    assert value(found, MODEL, "value_order_correlation") == pytest.approx(1.0)
    assert value(found, MODEL, "success_auroc") == 1.0
    assert value(found, MODEL, "pairwise_accuracy") == 1.0
    # success probability 1 exactly at the last observation of a success, as the labels have it
    assert value(found, MODEL, "calibration_error") == 0.0
    # under the other task's instruction every value is 0
    assert value(found, MODEL, "instruction_accuracy") == 1.0
    assert math.isnan(value(found, "wrong_instruction", "value_order_correlation"))
    assert value(found, "wrong_instruction", "success_auroc") == 0.5
    # played in reverse: values 1, ¾, ½, ¼, 0 fall all along, and both outcomes end at 0
    assert value(found, "reversed", "value_order_correlation") == pytest.approx(-1.0)
    assert value(found, "reversed", "success_auroc") == 0.5
    assert found.counts == {
        "episodes": 4, "bad": 0, "tasks": 2, "successes": 2, "failures": 2, "partial": 0, "unknown": 0,
    }  # fmt: skip


def test_a_clock_model_is_told_from_a_perfect_one_by_its_controls():
    found = run(Scripted("clock", success=False), episodes([1, 0, 1, 0]))
    for name in (MODEL, "clock", "reversed", "shuffled"):  # it never looks
        assert value(found, name, "value_order_correlation") == pytest.approx(1.0)
        assert value(found, name, "success_auroc") == 0.5
        assert value(found, name, "pairwise_accuracy") == 0.5
    # says 1 at every end, half of the episodes failed: |1 − ½|
    assert value(found, MODEL, "calibration_error") == pytest.approx(0.5)
    assert any("by construction" in note for note in found.notes)


def test_a_constant_model_has_no_order_and_that_is_counted():
    found = run(Scripted("constant"), episodes([1, 1, 0]))
    order = found.figures[MODEL].value_order_correlation
    assert math.isnan(order.value) and (order.n, order.n_undefined) == (0, 2)
    assert order.undefined_as_zero == 0.0
    assert value(found, MODEL, "success_auroc") == 0.5
    assert any("never change" in note and "n=2" in note for note in found.notes)


def test_the_constant_and_clock_controls_by_hand():
    found = run(Scripted("perfect"), episodes([1, 0], length=4))
    assert value(found, "constant", "success_auroc") == 0.5
    assert value(found, "constant", "calibration_error") == pytest.approx(0.0)
    # labels: 0 0 0 0 1 and 0 0 0 0 0 against 0 ¼ ½ ¾ 1 twice; bins by value: sums of (p − y) are
    # 0, 2·¼, 2·½, 2·¾, 2·1 − 1 over 10 observations: (0 + 0.5 + 1 + 1.5 + 1) / 10
    assert value(found, "clock", "calibration_error") == pytest.approx(0.4)


def test_a_model_blind_to_instructions_ties_on_every_episode():
    found = run(Scripted("blind"), episodes([1, 1, 0], tasks=[0, 1, 1]))
    figure = found.figures[MODEL].instruction_accuracy
    assert figure.value == 0.5 and figure.n == 2  # successes only
    assert value(found, "wrong_instruction", "value_order_correlation") == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("success", "note", "defined"),
    [
        ([1, 1, 1], "no failures labelled: success AUROC undefined (n=3)", True),
        ([0, 0], "no successes labelled: success AUROC undefined (n=2)", False),
        ([None, None], "no outcome labelled: success AUROC undefined (n=2)", True),
    ],
)
def test_one_class_only_is_undefined_and_explained(success, note, defined):
    found = run(Scripted("perfect"), episodes(success))
    assert math.isnan(value(found, MODEL, "success_auroc"))
    assert math.isnan(value(found, MODEL, "pairwise_accuracy"))
    assert note in found.notes
    assert math.isnan(value(found, MODEL, "value_order_correlation")) is not defined
    assert "one task only: there is no wrong instruction to try" in found.notes
    assert math.isnan(value(found, MODEL, "instruction_accuracy"))


def test_unknown_outcomes_leave_the_others_alone():
    known = run(Scripted("blind"), episodes([1, 0, 1]))
    mixed = run(Scripted("blind"), episodes([1, 0, 1, None]))
    for figure in ("value_order_correlation", "success_auroc", "pairwise_accuracy", "calibration_error"):
        assert value(mixed, MODEL, figure) == value(known, MODEL, figure)
    assert mixed.figures[MODEL].success_auroc.n_undefined == 1


def test_partial_success_is_graded_in_pairs_and_split_at_a_half_for_auroc():
    judged = [
        Judged(
            episode=i, task=0, instruction="", success=s,
            readings={MODEL: Reading(values=np.arange(3.0), score=v, total=v)},
        )
        for i, (s, v) in enumerate([(1.0, 0.9), (0.6, 0.95), (0.2, 0.1)])
    ]  # fmt: skip
    found = evaluate(judged, {})
    assert value(found, MODEL, "success_auroc") == 1.0  # 0.9 and 0.95 above 0.1
    assert value(found, MODEL, "pairwise_accuracy") == pytest.approx(2 / 3)  # 1 > 0.6 is ordered wrongly


def test_pairs_are_formed_inside_tasks_only():
    def one(episode, task, success, score):
        reading = Reading(values=np.arange(3.0), score=score, total=score)
        return Judged(episode=episode, task=task, instruction="", success=success, readings={MODEL: reading})

    # task 0: 0.2 (success) > 0.1 (failure); task 1: 0.9 > 0.8. Across tasks 0.2 (success) < 0.8 (failure)
    found = evaluate([one(0, 0, 1.0, 0.2), one(1, 0, 0.0, 0.1), one(2, 1, 1.0, 0.9), one(3, 1, 0.0, 0.8)], {})
    assert value(found, MODEL, "pairwise_accuracy") == 1.0
    assert value(found, MODEL, "success_auroc") == 0.75
    assert [t.figures.success_auroc.value for t in found.tasks] == [1.0, 1.0]


numbers = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([0.0, 1.0, math.nan])), min_size=2, max_size=12
)


@given(rows=numbers)
@settings(max_examples=40, deadline=None)
def test_figures_equal_the_core_metrics(rows):
    judged = [
        Judged(
            episode=i, task=0, instruction="", success=s,
            readings={MODEL: Reading(values=np.zeros(2), score=v, total=v)},
        )
        for i, (v, s) in enumerate(rows)
    ]  # fmt: skip
    found = evaluate(judged, {}, samples=50)
    score, success = np.array([v for v, _ in rows]), np.array([s for _, s in rows])
    expected = success_auroc(score, success)
    for figure, wanted in (("success_auroc", expected), ("pairwise_accuracy", pairwise_accuracy(score, success))):
        got = getattr(found.figures[MODEL], figure)
        assert got.value == pytest.approx(wanted, nan_ok=True)
        if not math.isnan(got.low):
            assert 0 <= got.low <= got.high <= 1
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["figures"][MODEL]["success_auroc"]["n"] <= len(rows)


def test_an_interval_by_a_literal_bootstrap():
    generator = np.random.default_rng(3)
    success = generator.integers(0, 2, 30).astype(float)
    score = success + generator.normal(size=30)
    judged = [
        Judged(
            episode=i, task=0, instruction="", success=s,
            readings={MODEL: Reading(values=np.zeros(2), score=v, total=v)},
        )
        for i, (v, s) in enumerate(zip(score, success, strict=True))
    ]  # fmt: skip
    figure = evaluate(judged, {}).figures[MODEL].success_auroc
    drawn = [success_auroc(score[i], success[i]) for i in np.random.default_rng(7).integers(30, size=(3000, 30))]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    assert figure.low == pytest.approx(low, abs=0.02) and figure.high == pytest.approx(high, abs=0.02)
    assert figure.low < figure.value < figure.high


def test_qualities_and_repeated_last_observations():
    batch = replace(episodes([1, 0]), last_observed=torch.tensor([False, True]))
    judged = with_constant(judge(Scripted("blind"), batch, OtherTasks(instructions=TASKS), ["expert", "aborted"]))
    found = evaluate(judged, {})
    # the repeated observation is no evidence: the success ends at its fourth observation, ¾
    assert {q.quality: q.final.value for q in found.qualities} == {"aborted": 0.5, "expert": 0.75}
    assert len(judged[0].readings[MODEL].values) == 4


def test_shuffling_visits_every_observation_once_and_is_fixed_by_the_seed():
    batch = replace(episodes([1, 0], length=9), last_observed=torch.tensor([True, False]))
    first, again, other = shuffle_map(batch, 0), shuffle_map(batch, 0), shuffle_map(batch, 1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert sorted(first[0].tolist()) == list(range(10))
    assert sorted(first[1, :9].tolist()) == list(range(9)) and first[1, 9] == -1


def test_a_model_that_calls_nonsense_valid_is_refused():
    batch = episodes([1, 0])
    batch.state[0, 2, 0] = math.nan
    with pytest.raises(ValueError, match="value of episode 0 is not a number"):
        judge(Scripted("blind"), batch, OtherTasks(instructions={0: "open"}))


def test_no_episode_is_an_error_that_names_the_first_bad_one():
    with pytest.raises(ValueError, match=r"got none \(1 could not be read, the first: truncated\)"):
        evaluate([], {}, bad=[{"episode": 3, "status": "video", "reason": "truncated"}])


def test_the_printed_table_holds_figures_controls_and_reasons():
    bad = [{"episode": 9, "status": "video", "reason": "ends after 12 of [30] frames"}]
    found = run(Scripted("perfect"), episodes([1, 0, 1, 0], tasks=[0, 0, 1, 1]), bad=bad, data="logs/[drawer]")
    text = io.StringIO()
    print_evaluation(found, Console(file=text, width=140))
    shown = text.getvalue()
    for wanted in ("this model", "clock t/T", "played in reverse", "wrong instruction", "1.00", "logs/[drawer]"):
        assert wanted in shown
    assert "episode 9 not used, video: ends after 12 of [30] frames" in shown
    assert all(name in found.figures for name in CONTROLS)
