"""Geometry of the dots of final scores and of the reliability diagram."""

import math

import pytest

from guerdon.pages.score_charts import outcome_chart, reliability_chart
from guerdon.pages.time_charts import WIDTH


def test_dots_lie_further_right_the_larger_the_score():
    chart = outcome_chart({"success": [0.9, 0.5], "failure": [0.1, math.nan], "unknown": []}, unit=True)
    assert chart is not None
    assert [(row.name, len(row.dots)) for row in chart.rows] == [("success", 2), ("failure", 1)]
    dots = [dot for row in chart.rows for dot in row.dots]
    places = {score: x for score, (x, _) in zip([0.9, 0.5, 0.1], dots, strict=True)}
    assert places[0.1] < places[0.5] < places[0.9]
    assert [(tick.label, tick.at) for tick in chart.ticks] == [("0", 90.0), ("0.5", 521.0), ("1", WIDTH - 8)]
    assert places[0.5] == 521.0
    assert chart.rows[0].y < chart.rows[1].y < chart.height


def test_the_axis_covers_all_scores():
    beyond = outcome_chart({"success": [1.5]}, unit=True)
    assert beyond is not None and [tick.label for tick in beyond.ticks] == ["0", "0.75", "1.5"]
    own = outcome_chart({"success": [-3.0, -1.0]}, unit=False)
    assert own is not None and [tick.label for tick in own.ticks] == ["-3", "-2", "-1"]
    one = outcome_chart({"success": [7.0]}, unit=False)
    assert one is not None and one.rows[0].dots[0][0] == 90.0


def test_nothing_scored_is_no_chart():
    assert outcome_chart({"success": [], "failure": [math.nan]}, unit=True) is None


def test_dots_of_one_row_are_spread_and_stay_in_it():
    chart = outcome_chart({"success": [0.5] * 30}, unit=True)
    assert chart is not None
    heights = [y for _, y in chart.rows[0].dots]
    assert len(set(heights)) > 20 and all(abs(y - chart.rows[0].y) <= 4 for y in heights)


def test_a_reliability_diagram_by_hand():
    chart = reliability_chart([0.1, None, 0.9], [0.0, None, 0.5], [8, 0, 2])
    assert chart.points == "64.0,310.0 304.0,160.0", "more frequent is higher"
    few, many = chart.bins[1], chart.bins[0]
    assert (many.count, many.bar_height) == (8, 46) and few.bar_height == pytest.approx(46 * math.log(3) / math.log(9))
    assert many.bar_top + many.bar_height == few.bar_top + few.bar_height == chart.foot, "bars stand on one line"
    assert (many.bar_left, few.bar_left, few.bar_width) == (35, 235, 98), "the first and the last third"
    assert chart.levels[0] == (34, 310, "0") and chart.levels[-1] == (334, 10, "1")


def test_a_probability_of_one_is_in_the_last_bin():
    chart = reliability_chart([None, 1.0], [None, 1.0], [0, 3])
    assert chart.bins[0].bar_left == 34 + 150 + 1 and chart.bins[0].y == chart.top


def test_no_prediction_is_an_empty_diagram():
    chart = reliability_chart([None], [None], [0])
    assert chart.bins == () and chart.points == ""
