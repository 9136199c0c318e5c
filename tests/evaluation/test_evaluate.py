"""Figures on models whose figures are known by hand: perfect, clock, constant, blind to instructions."""

import io
import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.core.metrics import (
    average_precision,
    false_positive_rate,
    instruction_margin,
    paired_bootstrap,
    pairwise_accuracy,
    quality_ranking,
    robometer_tau_a,
    success_auroc,
)
from guerdon.evaluation.comparison import COMPARED
from guerdon.evaluation.controls import (
    InstructionMatrix,
    OtherTasks,
    describe_figures,
    judge,
    shuffle_map,
    with_constant,
)
from guerdon.evaluation.evaluate import CONTROLS, MODEL, Evaluation, Judged, Reading, evaluate
from guerdon.evaluation.metrics import Figures, Resampling, all_figures
from guerdon.evaluation.predictions import basis_of, quality_levels
from guerdon.evaluation.rules import RULES
from guerdon.evaluation.table import DETAILS, HEADLINES, print_evaluation

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
    return evaluate(judged, describe_figures(reward(batch)), **{"samples": 50, **settings_})


def figures_of(judged, **settings_) -> Evaluation:
    """With few resamples, where intervals do not matter."""
    return evaluate(judged, {}, **{"samples": 50, **settings_})


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
@settings(max_examples=20, deadline=None)
def test_figures_equal_the_core_metrics(rows):
    judged = [
        Judged(
            episode=i, task=0, instruction="", success=s,
            readings={MODEL: Reading(values=np.zeros(2), score=v, total=v)},
        )
        for i, (v, s) in enumerate(rows)
    ]  # fmt: skip
    found = evaluate(judged, {}, samples=20)
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


def test_episodes_that_nobody_called_successes_are_not_printed_as_such():
    for success, words in (([1, 0], "value order, successes"), ([None, None], "value order, unlabelled")):
        text = io.StringIO()
        print_evaluation(run(Scripted("perfect"), episodes(success)), Console(file=text, width=140))
        assert words in text.getvalue() and text.getvalue().count("value order, s") == (words[-3:] == "ses")


# --- figures beyond the headline ------------------------------------------------------------------------------------


def of(scores, success, tasks=None, qualities=None, **more):
    """Episodes with nothing but a score each."""
    rows = zip(scores, success, tasks or [0] * len(scores), qualities or [""] * len(scores), strict=True)
    return [
        Judged(
            episode=i, task=t, instruction=TASKS.get(t, f"task {t}"), success=float(y), quality=q,
            readings={MODEL: Reading(values=np.arange(3.0), score=float(s), total=float(s))}, **more,
        )
        for i, (s, y, t, q) in enumerate(rows)
    ]  # fmt: skip


def plain_figures(judged, threshold=None):
    return all_figures(judged, MODEL, basis_of(judged, threshold), Resampling(samples=5, seed=0, by_task=False))


def test_every_figure_has_a_rule_a_name_and_a_row():
    names = {f.name for f in fields(Figures)}
    assert set(RULES) == names == {*HEADLINES, *DETAILS}
    assert {key for key, _, _ in COMPARED.values()} <= names


def test_precision_and_rates_at_a_threshold_by_hand():
    # scores 0.9 s, 0.6 f, 0.5 s, 0.2 f: precision 1 at recall ½, 2/3 at recall 1
    found = figures_of(of([0.9, 0.6, 0.5, 0.2], [1, 0, 1, 0]))
    precision = found.figures[MODEL].success_auprc
    assert precision.value == pytest.approx((1 + 2 / 3) / 2) and precision.chance == 0.5
    assert (value(found, MODEL, "false_positive_rate"), value(found, MODEL, "true_positive_rate")) == (0.5, 1.0)
    assert found.threshold == 0.5 and "at least 0.5" in found.conventions["called a success"]
    strict = figures_of(of([0.9, 0.6, 0.5, 0.2], [1, 0, 1, 0]), threshold=0.7)
    assert (value(strict, MODEL, "false_positive_rate"), value(strict, MODEL, "true_positive_rate")) == (0.0, 0.5)


def test_a_summed_reward_has_no_threshold_of_its_own():
    found = figures_of(of([9.0, -3.0], [1, 0]))
    assert math.isnan(found.threshold) and math.isnan(value(found, MODEL, "false_positive_rate"))
    assert any("give --threshold" in note for note in found.notes)
    assert value(figures_of(of([9.0, -3.0], [1, 0]), threshold=1), MODEL, "true_positive_rate") == 1.0


def test_order_on_failures_tells_a_clock_from_a_model_that_looks():
    batch = episodes([1, 0, 1, 0])
    batch.state[1, :, 0] = batch.state[1, :, 0].flip(0)  # a failure that goes back
    found = run(Scripted("blind"), batch)
    assert value(found, MODEL, "value_order_failures") == pytest.approx(0.0)  # −1 and 1
    clock = run(Scripted("clock"), batch)
    assert value(clock, MODEL, "value_order_failures") == pytest.approx(1.0)
    assert value(clock, "clock", "value_order_failures") == pytest.approx(1.0)
    nothing = run(Scripted("blind"), episodes([1, 1]))
    assert math.isnan(value(nothing, MODEL, "value_order_failures"))
    assert "no failure labelled: value order on failures undefined (n=0)" in nothing.notes


def test_progress_error_is_known_for_successes_or_where_it_is_recorded():
    found = run(Scripted("constant"), episodes([1, 0]))
    # the constant 0.3 against 0 ¼ ½ ¾ 1: (0.3 + 0.05 + 0.2 + 0.45 + 0.7) / 5; the control is their mean, ½: 1.5 / 5
    error = found.figures[MODEL].progress_error
    assert error.value == pytest.approx(0.34) and (error.n, error.n_undefined) == (1, 1)
    assert value(found, "constant", "progress_error") == pytest.approx(0.3)
    assert value(found, "clock", "progress_error") == pytest.approx(0.0)
    assert any("the clock has no progress error" in note for note in found.notes)
    told = Labelled(values=torch.full((2, 5), 0.3), valid=torch.tensor([[False] * 5, [False] * 3 + [True] * 2]))
    recorded = run(Scripted("constant"), replace(episodes([None, 0]), labels={"progress": told}))
    assert value(recorded, MODEL, "progress_error") == pytest.approx(0.0, abs=1e-6)
    assert value(recorded, "clock", "progress_error") == pytest.approx((0.45 + 0.7) / 2)
    assert recorded.figures[MODEL].progress_error.n == 1


def test_paired_accuracy_and_auroc_of_instructions_are_two_things():
    def one(episode, right, wrong):
        ends = {MODEL: right, "wrong_instruction": wrong}
        readings = {k: Reading(values=np.arange(3.0), score=v, total=v, final=v) for k, v in ends.items()}
        return Judged(episode=episode, task=episode, instruction="", success=1.0, readings=readings)

    # each video prefers its own instruction, but an easy video under the wrong one outranks a hard one under its own
    found = evaluate([one(0, 0.9, 0.8), one(1, 0.3, 0.2)], {})
    assert value(found, MODEL, "instruction_accuracy") == 1.0
    assert value(found, MODEL, "instruction_auroc") == 0.75  # of 0.9, 0.3 against 0.8, 0.2: 0.3 < 0.8 only
    assert found.figures[MODEL].instruction_auroc.chance == 0.5


def matrix_of(batch, episodes_=None):
    chosen = frozenset(range(len(batch))) if episodes_ is None else frozenset(episodes_)
    return InstructionMatrix(instructions=TASKS, episodes=chosen)


def test_the_instruction_matrix_and_its_margin():
    batch = episodes([1, 1, 1, 0], tasks=[0, 0, 1, 1])
    others = OtherTasks(instructions=TASKS)
    judged = with_constant(judge(Scripted("perfect"), batch, others, matrix=matrix_of(batch, [0, 1, 2])))
    assert [j.under for j in judged] == [{0: 1.0, 1: 0.0}, {0: 1.0, 1: 0.0}, {1: 1.0, 0: 0.0}, {}]
    found = evaluate(judged, {}, instructions=TASKS)
    assert found.confusion is not None and found.confusion.cells == ((1.0, 0.0), (0.0, 1.0))
    assert found.confusion.counts == ((2, 1), (2, 1)) and found.confusion.missing == ()
    margin = found.figures[MODEL].instruction_margin
    assert margin.value == instruction_margin(found.confusion.cells) == 1.0 and (margin.n, margin.tasks) == (3, 2)
    assert value(found, "clock", "instruction_margin") == value(found, "constant", "instruction_margin") == 0.5
    blind = with_constant(judge(Scripted("blind"), batch, others, matrix=matrix_of(batch)))
    assert value(evaluate(blind, {}), MODEL, "instruction_margin") == 0.5


def test_missing_cells_are_named_and_never_zero():
    judged = [
        replace(j, under=u) for j, u in zip(of([0.5, 0.5], [1, 1], [0, 1]), [{0: 0.2, 1: math.nan}, {}], strict=True)
    ]
    found = evaluate(judged, {}, instructions=TASKS)
    assert found.confusion is not None and math.isnan(found.confusion.cells[1][0])
    assert found.confusion.missing == (
        "videos of 'open the drawer' have no score under 'close the drawer'",
        "no video of 'close the drawer' was judged",
    )
    assert found.to_json()["confusion"]["cells"] == [[0.2, None], [None, None]]
    assert math.isnan(value(found, MODEL, "instruction_margin"))


ranked = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["random", "noisy", "expert"]), st.integers(0, 1)),
    min_size=1,
    max_size=9,
)


@given(rows=ranked)
@settings(max_examples=20, deadline=None)
def test_quality_rankings_equal_the_core_metrics(rows):
    scores, names, tasks = ([row[i] for row in rows] for i in range(3))
    found = plain_figures(of(scores, [1] * len(rows), tasks, names))
    level = [{"random": 0, "noisy": 2, "expert": 3}[name] for name in names]
    for key, metric in (("quality_ranking", quality_ranking), ("robometer_tau_a", robometer_tau_a)):
        assert getattr(found, key).value == pytest.approx(metric(scores, level, tasks), nan_ok=True)


@given(rows=numbers, threshold=st.sampled_from([0.25, 0.4, 1.0]))
@settings(max_examples=20, deadline=None)
def test_precision_and_false_positives_equal_the_core_metrics(rows, threshold):
    score, success = [v for v, _ in rows], [s for _, s in rows]
    found = plain_figures(of(score, success), threshold)
    assert found.success_auprc.value == pytest.approx(average_precision(score, success), nan_ok=True)
    wanted = false_positive_rate(score, success, threshold)
    assert found.false_positive_rate.value == pytest.approx(wanted, nan_ok=True)


def test_orders_of_qualities():
    assert quality_levels({"expert", "random"}) == {"random": 0, "expert": 3}
    assert quality_levels({"better", "worse", "odd"}) == {"worse": 0, "better": 2}
    assert quality_levels({"1", "2.5"}) == {"1": 1, "2.5": 2.5}
    assert quality_levels({"poor", "fine"}, ["poor", "fair", "fine"]) == {"poor": 0, "fine": 2}
    assert quality_levels(set()) == {}
    with pytest.raises(ValueError, match="none of the qualities good occurs: expected some of fine, poor"):
        quality_levels({"poor", "fine"}, ["good"])
    with pytest.raises(ValueError, match="each quality once"):
        quality_levels({"poor"}, ["poor", "poor"])
    judged = of([0.1, 0.9, 0.5], [1, 1, 1], qualities=["poor", "fine", ""])
    found = figures_of(judged)
    assert any("without a place in the order (fine, poor)" in note for note in found.notes)
    assert any("quality ranking undefined" in note for note in found.notes)
    ordered = figures_of(judged, quality_order=["poor", "fine"])
    assert value(ordered, MODEL, "quality_ranking") == 1.0


# --- tasks, then episodes -------------------------------------------------------------------------------------------


def test_every_task_counts_the_same_in_the_mean_of_tasks():
    # task 0 holds four episodes ordered rightly, task 1 two ordered wrongly: pooled pairs (4 + 0) / 5, by task ½
    found = figures_of(of([0.9, 0.8, 0.2, 0.1, 0.3, 0.6], [1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]))
    pairs = found.figures[MODEL].pairwise_accuracy
    assert pairs.value == pytest.approx(0.8) and pairs.macro == 0.5 and pairs.tasks == 2
    assert [t.figures.pairwise_accuracy.value for t in found.tasks] == [1.0, 0.0]
    # a task of one outcome has no AUROC and is not in the mean
    lone = figures_of(of([0.9, 0.1, 0.5], [1, 0, 1], [0, 0, 1])).figures[MODEL].success_auroc
    assert lone.macro == 1.0 and lone.tasks == 1
    single = figures_of(of([0.9, 0.1, 0.5], [1, 0, 1])).figures[MODEL].success_auroc
    assert (single.macro, single.macro_low, single.macro_high) == (single.value, single.low, single.high)


def test_the_interval_over_tasks_is_wider_than_over_episodes_of_the_same_tasks():
    generator = np.random.default_rng(0)
    tasks = np.repeat(np.arange(8), 30)
    success = generator.integers(0, 2, 240)
    skill = np.linspace(-1, 3, 8)[tasks]  # how well a task is judged differs by much
    judged = of(success * skill + generator.normal(size=240), success, tasks.tolist())
    basis = basis_of(judged)
    wide, narrow = (
        all_figures(judged, MODEL, basis, Resampling(samples=400, seed=0, by_task=by_task)).success_auroc
        for by_task in (True, False)
    )
    assert wide.macro == narrow.macro and wide.macro_low < narrow.macro_low < narrow.macro < narrow.macro_high
    assert wide.macro_high - wide.macro_low > 2 * (narrow.macro_high - narrow.macro_low)
    found = evaluate(judged, {}, samples=400).figures[MODEL].success_auroc
    assert (found.macro_low, found.macro_high) == (wide.macro_low, wide.macro_high), "eight tasks are several"


# --- one model against another --------------------------------------------------------------------------------------


def noisy(noise, seed=0, count=60):
    generator = np.random.default_rng(seed)
    success = np.random.default_rng(1).integers(0, 2, count)
    return of(0.5 + 0.2 * (success - 0.5) + noise * generator.normal(size=count), success)


def test_a_better_model_is_called_better_and_the_same_one_is_not():
    good, poor = noisy(0.05), noisy(0.5)
    found = evaluate(good, {}, against=poor, against_model={"path": "poor"}).comparison
    assert found is not None and found.model == {"path": "poor"} and (found.episodes, found.left_out) == (60, 0)
    auroc = found.differences["success_auroc"]
    assert auroc.first > auroc.second and auroc.difference == pytest.approx(auroc.first - auroc.second)
    assert 0 < auroc.low < auroc.difference < auroc.high and auroc.better == "first" and auroc.n == 60
    turned = evaluate(poor, {}, against=good).comparison
    assert turned is not None and turned.differences["success_auroc"].better == "second"
    assert turned.differences["success_auroc"].high == pytest.approx(-auroc.low)
    same = evaluate(good, {}, against=good).comparison
    assert same is not None
    assert all(d.better == "" and (math.isnan(d.difference) or d.low == d.high == 0) for d in same.differences.values())
    assert math.isnan(found.differences["instruction_auroc"].difference)


def test_less_is_better_where_it_is_an_error():
    sure, unsure = of([1.0, 0.0] * 20, [1, 0] * 20), of([0.6, 0.4] * 20, [1, 0] * 20)
    found = evaluate(sure, {}, against=unsure).comparison
    assert found is not None
    error = found.differences["calibration_error"]
    assert error.difference == pytest.approx(-0.4) and error.better == "first"


def test_a_mean_of_episodes_is_compared_by_the_paired_bootstrap():
    generator = np.random.default_rng(0)

    def orders(noise):
        return [
            Judged(
                episode=i, task=0, instruction="", success=1.0,
                readings={MODEL: Reading(values=np.arange(8) + noise * generator.normal(size=8), score=1.0, total=1.0)},
            )
            for i in range(25)
        ]  # fmt: skip

    first, second = orders(1.0), orders(4.0)
    both = evaluate(first, {}, against=second).comparison
    assert both is not None
    single = [[j.readings[MODEL].order for j in judged] for judged in (first, second)]
    found = both.differences["value_order_correlation"]
    assert (found.difference, found.low, found.high) == pytest.approx(
        paired_bootstrap(*single, np.arange(25)), abs=1e-6
    )


def test_only_shared_episodes_are_compared():
    first, second = of([0.9, 0.1, 0.8], [1, 0, 1]), of([0.2, 0.7], [1, 0])
    found = evaluate(first, {}, against=[*second, replace(second[0], episode=9)]).comparison
    assert found is not None and (found.episodes, found.left_out) == (2, 2)
    assert found.differences["success_auroc"].difference == 1.0


# --- files and print ------------------------------------------------------------------------------------------------

FIRST_KEYS = {
    "model", "data", "split", "version", "counts", "bad", "conventions", "figures", "tasks", "qualities", "notes",
}  # fmt: skip


def test_json_keeps_its_keys_and_holds_the_reliability_curve():
    found = json.loads(json.dumps(run(Scripted("perfect"), episodes([1, 0, 1])).to_json(), allow_nan=False))
    assert FIRST_KEYS <= set(found)
    first = {
        "value_order_correlation",
        "success_auroc",
        "pairwise_accuracy",
        "calibration_error",
        "instruction_accuracy",
    }
    assert first <= set(found["figures"][MODEL])
    assert {"value", "low", "high", "n", "n_undefined", "undefined_as_zero"} <= set(
        found["figures"][MODEL]["success_auroc"]
    )
    curve = found["reliability"]
    # 15 observations: 13 said 0 and were so, 2 said 1 and were so
    assert curve["count"][0] == 13 and curve["count"][-1] == 2 and sum(curve["count"]) == 15
    assert (curve["probability"][0], curve["happened"][-1], curve["probability"][5]) == (0.0, 1.0, None)
    error = sum(
        c * abs(p - h) for p, h, c in zip(curve["probability"], curve["happened"], curve["count"], strict=True) if c
    )
    assert error / 15 == pytest.approx(found["figures"][MODEL]["calibration_error"]["value"])


def test_tables_fit_into_a_hundred_columns():
    batch = episodes([1, 0, 1, 0, None] * 3, tasks=[0, 0, 1, 1, 1] * 3)
    matrix, others = matrix_of(batch, [0, 2, 5, 7]), OtherTasks(instructions=TASKS)
    names = ["expert", "random", "noisy", "aborted", ""] * 3
    judged, other = (
        with_constant(judge(Scripted(kind), batch, others, names, matrix=matrix)) for kind in ("perfect", "blind")
    )
    found = evaluate(judged, describe_figures(Scripted("perfect")(batch)), against=other, instructions=TASKS)
    text = io.StringIO()
    print_evaluation(found, Console(file=text, width=100))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    for key, name in HEADLINES.items():
        row = next(line for line in lines if line.startswith(name))
        assert f"{value(found, MODEL, key):.2f}" in row or "–" in row
    assert any(line.startswith("AUPRC (chance 0.50)") for line in lines)
    assert any("false positives at 0.5" in line for line in lines)
    assert any("1 open the drawer" in line and "1.00" in line for line in lines)
    assert any("this is better" in line for line in lines)
