"""Notes: why a metric is undefined, and what could be mistaken for a fault."""

import math
from dataclasses import replace

import pytest
import torch

from guerdon.core.batch import Labelled
from guerdon.evaluation.evaluate import MODEL, EvaluationSettings, evaluate

from .scripted import FEW, Scripted, episodes, run, scored, value


def notes(rows, **settings_):
    return evaluate(rows, settings=EvaluationSettings(samples=20, **settings_)).notes


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
    why = note.partition(":")[0]
    assert note in found.notes and f"{why}: success AUPRC undefined as well" in found.notes
    assert f"{why}: pairwise accuracy and ties in pairs undefined" in found.notes
    assert math.isnan(value(found, MODEL, "value_order_correlation")) is not defined
    assert "one task only: there is no wrong instruction to try" in found.notes
    assert math.isnan(value(found, MODEL, "instruction_accuracy"))


def test_pairs_may_be_defined_where_auroc_is_not():
    found = evaluate(scored([0.9, 0.8], [1.0, 0.6]), settings=FEW)
    assert math.isnan(value(found, MODEL, "success_auroc")) and value(found, MODEL, "pairwise_accuracy") == 1.0
    assert not any("pairwise" in note for note in found.notes)


def test_pairs_across_tasks_are_none():
    found = notes(scored([0.9, 0.1], [1, 0], [0, 1]))
    assert "no task has episodes of different outcome: pairwise accuracy and ties in pairs undefined" in found


def test_a_model_without_scores_is_named_as_the_reason():
    found = notes(scored([math.nan, 0.1], [1, 0]))
    assert "the model scores no success, or no failure: success AUROC undefined (n=2)" in found
    assert "no labelled success has a score: true positives undefined" in found


def test_values_that_never_change_have_no_order():
    found = run(Scripted("constant"), episodes([1, 1, 0]))
    assert any("never change" in note and "n=2" in note for note in found.notes)
    nothing = run(Scripted("blind"), episodes([1, 1]))
    assert "no failure labelled: value order on failures undefined (n=0)" in nothing.notes


def test_episodes_without_order_are_counted():
    batch = episodes([1, 1, 1])
    batch.state[0, :, 0] = 0.2
    assert "value order: 1 of 3 episodes have no order" in run(Scripted("blind"), batch).notes


def test_scores_that_are_no_probabilities_need_a_threshold():
    rows = scored([9.0, -3.0], [1, 0])
    assert any("give --threshold" in note for note in notes(rows))
    assert not any("give --threshold" in note for note in notes(rows, threshold=1))
    assert "no failure labelled: false positives undefined" in notes(scored([0.9], [1]))


@pytest.mark.slow
def test_progress_that_stands_in_for_labels_is_named():
    found = run(Scripted("constant"), episodes([1, 0]))
    assert any("the clock has no progress error" in note for note in found.notes)
    assert "the model gives no progress: progress error undefined" in notes(scored([0.9, 0.1], [1, 0]))
    unknown = run(Scripted("constant"), episodes([0, 0]))
    assert "no progress is known: progress error undefined" in unknown.notes
    stored = Labelled(values=torch.full((2, 5), 0.3), valid=torch.ones(2, 5, dtype=torch.bool))
    recorded = run(Scripted("constant"), replace(episodes([1, 0]), labels={"progress": stored}))
    assert not any("progress" in note for note in recorded.notes)


def test_instructions_without_a_score_are_explained():
    found = run(Scripted("blind"), episodes([0, 0], tasks=[0, 1]))
    assert "no success labelled: right against wrong instruction undefined" in found.notes
    assert "no episode was run with all of them: instruction margin undefined (see --confusion)" in found.notes


def test_qualities_without_an_order_are_named():
    rows = scored([0.1, 0.9, 0.5], [1, 1, 1], qualities=["poor", "fine", ""])
    found = notes(rows)
    assert any("without a place in the order (fine, poor)" in note for note in found)
    assert any("quality ranking undefined" in note for note in found)
    assert not any("quality" in note or "qualities" in note for note in notes(rows, quality_order=["poor", "fine"]))
    assert "no quality is recorded: quality ranking undefined" in notes(scored([0.1, 0.9], [1, 0]))


def test_short_episodes_and_partial_successes():
    found = notes(scored([0.1, 0.9], [0.4, 1]))
    assert "half of the episodes have 3 values or fewer: by chance the order of one varies by ±0.71" in found
    assert "1 partial successes: success AUROC counts ½ and more as success" in found
    assert not any("half of the episodes" in n for n in run(Scripted("blind"), episodes([1, 0], length=9)).notes)


def test_the_clock_is_always_explained():
    assert any("by construction" in note for note in notes(scored([0.1, 0.9], [0, 1])))
