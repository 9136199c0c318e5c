"""The printed tables."""

import io
import re

import pytest
from rich.console import Console

from guerdon.evaluation.controls import OtherTasks, predict_episodes, with_constant
from guerdon.evaluation.evaluate import CONTROLS, METRICS, MODEL, Provenance, evaluate
from guerdon.evaluation.extraction import describe_conventions
from guerdon.evaluation.metric import Metric, Title, mean_sample
from guerdon.evaluation.table import print_evaluation

from .scripted import FEW, TASKS, Scripted, episodes, matrix_of, run, scored, value

pytestmark = pytest.mark.slow


def printed(evaluation, width=140):
    text = io.StringIO()
    print_evaluation(evaluation, Console(file=text, width=width))
    return text.getvalue()


def test_metrics_controls_and_reasons_are_printed():
    bad = [{"episode": 9, "status": "video", "reason": "ends after 12 of [30] frames"}]
    shown = Provenance(bad=bad, data="logs/[drawer]")
    found = run(Scripted("perfect"), episodes([1, 0, 1, 0], tasks=[0, 0, 1, 1]), provenance=shown)
    text = printed(found)
    for wanted in ("this model", "clock t/T", "played in reverse", "wrong instruction", "1.00", "logs/[drawer]"):
        assert wanted in text
    assert "episode 9 not used, video: ends after 12 of [30] frames" in text
    assert all(name in found.metrics for name in CONTROLS)
    assert all(f"note: {note}" in text for note in found.notes)


def test_every_metric_has_a_row_with_its_value():
    found = run(Scripted("perfect"), episodes([1, 0, 1, 0], tasks=[0, 0, 1, 1]))
    lines = printed(found).splitlines()
    for metric in METRICS:
        rows = [line for line in lines if line.startswith(metric.title.text)]
        if metric.section == "comparison":
            assert not rows
            continue
        number = value(found, MODEL, metric.key)
        assert len(rows) == 1 and ("–" if number != number else f"{number:.2f}") in rows[0]


def test_episodes_that_nobody_called_successes_are_not_printed_as_such():
    for success, words in (([1, 0], "value order, successes"), ([None, None], "value order, unlabelled")):
        text = printed(run(Scripted("perfect"), episodes(success)))
        assert words in text and text.count("value order, s") == (words[-3:] == "ses")


def test_tables_fit_into_a_hundred_columns():
    batch = episodes([1, 0, 1, 0, None] * 3, tasks=[0, 0, 1, 1, 1] * 3)
    matrix, others = matrix_of(batch, [0, 2, 5, 7]), OtherTasks(instructions=TASKS)
    names = ["expert", "random", "noisy", "aborted", ""] * 3
    rows, other = (
        with_constant(predict_episodes(Scripted(kind), batch, others, names, matrix=matrix))
        for kind in ("perfect", "blind")
    )
    found = evaluate(rows, describe_conventions(Scripted("perfect")(batch)), against=other, instructions=TASKS)
    lines = printed(found, width=100).splitlines()
    assert max(map(len, lines)) <= 100
    for metric in METRICS:
        if metric.section == "headline":
            row = next(line for line in lines if line.startswith(metric.title.text))
            assert f"{value(found, MODEL, metric.key):.2f}" in row or "–" in row
    assert any(line.startswith("AUPRC (chance 0.50)") for line in lines)
    assert any("false positives at 0.5" in line for line in lines)
    assert any("1 open the drawer" in line and "1.00" in line for line in lines)
    assert any("this is better" in line for line in lines)


def test_a_metric_of_ones_own_is_printed():
    own = Metric(
        key="length", title=Title(text="mean length", short="length"), direction="higher", section="headline",
        task_tables="all",
        rule=lambda rows, name, context: mean_sample(rows, [float(len(e.predictions[name].values)) for e in rows]),
    )  # fmt: skip
    rows = scored([0.9, 0.1, 0.8, 0.3, 0.2, 0.1], [1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 1])
    text = printed(evaluate(rows, settings=FEW, against=rows, metrics=[*METRICS, own]))
    # the headline, the comparison, and a column of the table by task
    assert len(re.findall(r"^mean length +3\.00", text, re.M)) == 2
    assert re.search(r"right > wrong +length *$", text, re.M)
