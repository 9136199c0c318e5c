"""The section of the report about metrics."""

import json
import math
import re
from html import unescape

import numpy as np
import pytest

from guerdon.evaluation.evaluate import METRICS, EvaluationSettings, evaluate
from guerdon.evaluation.metric import Metric, Title, mean_sample
from guerdon.evaluation.predictions import CONTROLS, MODEL, EpisodePredictions, Prediction
from guerdon.pages.evaluation_section import evaluation_section, read_evaluation
from guerdon.pages.report import build, render

from .evaluations import FULL, evaluation_of
from .scored import NASTY, Reader, scored


def page_of(evaluation):
    return render(build([scored(0, 0.5)], {}, {}, evaluation=evaluation))


def test_metrics_are_drawn_with_their_intervals():
    page = Reader(page_of(evaluation_of(**FULL)))
    for wanted in (
        "On 5 episodes of 2 tasks of <b>held</b>",
        "success AUROC0.93 0.81 … 0.99 0.50 0.93 4 (1 undefined)",
        NASTY,
        "this is better",
        "+0.13 +0.02 … +0.20",
    ):
        assert "".join(wanted.split()) in "".join(page.shown.split())
    assert page.shown.count("videos of 'close' have no score under 'open'") == 1


def evaluated(**more):
    """An evaluation of four episodes of two tasks, with a value for every metric that can have one."""
    rows = [
        EpisodePredictions(
            episode=i,
            task=i % 2,
            instruction=f"task {i % 2}",
            success=float(i < 4),
            quality="expert" if i < 4 else "random",
            under_instruction={0: 0.2 + 0.1 * i, 1: 0.9},
            predictions={
                name: Prediction(
                    values=np.arange(3.0), score=0.9 - i / 10, total=0.9 - i / 10, final=0.9 - i / 10,
                    progress=np.array([0.5]), target=np.array([0.4]),
                )
                for name in (MODEL, *CONTROLS)
            },
        )
        for i in range(8)
    ]  # fmt: skip
    found = evaluate(rows, settings=EvaluationSettings(samples=20), against=rows, **more)
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


@pytest.mark.slow
def test_every_metric_appears_with_its_value():
    found = evaluated()
    own, compared = page_of(found).split("<h2>Against")
    for metric in METRICS:
        rows = [row for row in _rows(own) if row[0].startswith(metric.title.text)]
        if metric.section == "comparison":
            assert not rows
            continue
        values = [found["figures"][name][metric.key]["value"] for name in (MODEL, *CONTROLS)]
        shown = ["–" if value is None else f"{value:.2f}" for value in values]
        assert len(rows) == 1 and shown[0] != "–" and rows[0][1].split()[0] == shown[0]
        assert rows[0][2:7] == shown[1:]
    titles = [row[0] for row in _rows(compared)]
    assert titles[: len(found["comparison"]["differences"])] == [m.title.text for m in METRICS if m.compared]


def _rows(text):
    """Cells of each row of each table, as text."""
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.S)
    return [
        [" ".join(unescape(re.sub(r"<[^>]*>", " ", c)).split()) for c in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)]
        for row in rows
        if "<td" in row
    ]


@pytest.mark.slow
def test_tasks_have_a_column_for_each_metric_that_wants_one():
    section = evaluation_section(evaluated())
    assert section.task_columns == tuple(m.title.text for m in METRICS if m.task_tables != "none")
    assert [name for name, _ in section.tasks] == ["task 0 (4)", "task 1 (4)"]
    assert all(len(values) == len(section.task_columns) for _, values in section.tasks)


@pytest.mark.slow
def test_a_metric_of_ones_own_is_shown_under_its_key():
    own = Metric(
        key="length", title=Title(text="mean length"), direction="higher",
        rule=lambda rows, name, context: mean_sample(rows, [float(len(e.predictions[name].values)) for e in rows]),
    )  # fmt: skip
    found = evaluated(metrics=[*METRICS, own])
    assert next(row for row in _rows(page_of(found)) if row[0] == "length")[1].startswith("3.00")


@pytest.mark.slow
def test_titles_name_threshold_chance_and_missing_labels():
    found = evaluated()
    titles = [row.title for row in (*evaluation_section(found).headlines, *evaluation_section(found).details)]
    assert "false positives at 0.5" in titles and "AUPRC (chance 0.50)" in titles
    assert "value order, successes" in titles
    found["counts"] |= {"unknown": found["counts"]["episodes"]}
    assert evaluation_section(found).headlines[0].title == "value order, unlabelled"


def test_the_reliability_diagram_by_hand():
    text = page_of(evaluation_of(**FULL))
    # a plot of 300 units from (34, 310): 0.1 predicted and never so, 0.9 and so half of the time; an empty bin has none
    assert 'points="64.0,310.0 304.0,160.0"' in text
    assert text.count('class="reliable"') == text.count('class="bar"') == 2
    assert "predicted 0.90, observed 0.50, 2 times" in text


def test_an_empty_cell_is_a_dash_and_no_zero():
    cells = re.findall(r'<td class="(cell[^"]*)"[^>]*>([^<]*)</td>', page_of(evaluation_of(**FULL)))
    assert cells == [("cell own", "0.90"), ("cell soft", "–"), ("cell", "0.20"), ("cell own", "0.70")]


def test_the_deepest_colour_is_the_highest_score():
    matrix = evaluation_section(evaluation_of(**FULL)).matrix
    assert matrix is not None
    shades = {cell.value: cell.shade for _, cells in matrix.rows for cell in cells if not math.isnan(cell.value)}
    assert shades == {0.9: pytest.approx(70), 0.7: pytest.approx(50), 0.2: pytest.approx(0)}


def test_an_older_file_is_drawn_as_far_as_it_goes():
    text = page_of(evaluation_of())
    assert "success AUROC" in text and "reliability" not in text and "Instructions and videos" not in text
    assert "By task" not in text and "Against" not in text


def test_files_that_hold_no_metrics(tmp_path):
    for text, says in (("{", "is no JSON"), ("[1]", "holds no metrics"), ('{"figures": {}}', "holds no metrics")):
        (tmp_path / "figures.json").write_text(text)
        with pytest.raises(ValueError, match=says):
            read_evaluation(tmp_path / "figures.json")
    (tmp_path / "figures.json").write_text('{"kind": "critic"}')
    with pytest.raises(ValueError, match="metrics of a critic"):
        read_evaluation(tmp_path / "figures.json")
    with pytest.raises(FileNotFoundError, match="guerdon evaluate --json"):
        read_evaluation(tmp_path / "nothing.json")
    (tmp_path / "figures.json").write_text(json.dumps(evaluation_of()))
    assert read_evaluation(tmp_path / "figures.json")["split"] == ""
