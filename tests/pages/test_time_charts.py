"""Geometry of charts over time: where things lie, and what is left out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.pages.time_charts import (
    BOTTOM,
    HEIGHT,
    TOP,
    WIDTH,
    across,
    curve_chart,
    down,
    points,
    runs,
    state_chart,
    time_axes,
    value_chart,
)

SECONDS = np.arange(11) / 10
UNKNOWN = np.full(11, np.nan)


def coordinates(text):
    return [tuple(map(float, point.split(","))) for point in text.split()]


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_what_is_larger_lies_higher(values):
    placed = down(np.array(values))
    for a, ya in zip(values, placed, strict=True):
        for b, yb in zip(values, placed, strict=True):
            assert (a > b) <= (ya <= yb), "SVG counts from above"
    assert (placed >= TOP).all() and (placed <= HEIGHT - BOTTOM).all()


def test_places_by_hand():
    assert down(np.array([0.0, 0.5, 1.0, 2.0])).tolist() == [HEIGHT - BOTTOM, 68, TOP, TOP]
    assert across(np.array([1.0, 2.0, 5.0])).tolist() == [0, WIDTH / 4, WIDTH]
    assert across(np.array([3.0])).tolist() == [WIDTH / 2], "one moment lies in the middle"


def test_a_long_line_has_no_more_points_than_can_be_seen():
    x = np.linspace(0, WIDTH, 5000)
    drawn = points(x, np.linspace(0, 1, 5000))
    assert len(drawn) == 480 and drawn[0].startswith("0.0,") and drawn[-1].startswith(f"{WIDTH}.0,")


def test_runs_are_stretches_without_a_gap():
    assert runs(np.array([True, True, False, True])) == [slice(0, 2), slice(3, 4)]
    assert runs(np.zeros(3, bool)) == [] and runs(np.ones(2, bool)) == [slice(0, 2)]


def test_gaps_are_not_drawn_over():
    progress = np.linspace(0, 1, 11)
    progress[4:6] = np.nan
    chart = curve_chart(SECONDS, progress, UNKNOWN, np.full(11, 0.1))
    assert [len(line.points.split()) for line in chart.lines] == [4, 5] and chart.kinds == ["progress"]
    assert len(chart.bands) == 2


def test_a_band_lies_around_its_line():
    chart = curve_chart(SECONDS, np.full(11, 0.5), UNKNOWN, np.full(11, 0.2))
    (line,), (band,) = chart.lines, chart.bands
    heights = {y for _, y in coordinates(band)}
    assert len(coordinates(band)) == 22 and min(heights) < coordinates(line.points)[0][1] < max(heights)
    assert not curve_chart(SECONDS, UNKNOWN, np.full(11, 0.5), np.full(11, 0.2)).bands, "it is that of progress"


def test_nothing_known_is_no_line():
    chart = curve_chart(SECONDS, UNKNOWN, UNKNOWN, UNKNOWN)
    assert chart.lines == () and chart.bands == () and chart.kinds == []
    assert value_chart(SECONDS, UNKNOWN, (0.0, 1.0)) is None


def test_the_time_axis_counts_in_eighths():
    axes = time_axes(np.array([2.0, 10.0]), [(0.0, "0"), (1.0, "1")])
    assert [tick.label for tick in axes.times] == [f"{2.0 + i:.1f} s" for i in range(9)]
    assert [tick.at for tick in axes.times] == [120.0 * i for i in range(9)]
    assert [tick.anchor for tick in axes.times][::4] == ["start", "middle", "end"]
    assert [(tick.label, tick.at, tick.below) for tick in axes.levels] == [("0", 128.0, False), ("1", 8.0, True)]
    assert time_axes(SECONDS, []).times[1].label == "0.12 s", "a short axis needs another digit"


def test_values_are_drawn_between_the_limits_of_the_page():
    value = np.linspace(-1, 1, 11)
    chart = value_chart(SECONDS, value, (-1.0, 3.0), (2, 7))
    assert chart is not None
    drawn = coordinates(chart.lines[0].points)
    assert drawn[0][1] == HEIGHT - BOTTOM and drawn[-1][1] == pytest.approx(68), "1 is half of the way to 3"
    assert [(tick.label, tick.at) for tick in chart.axes.levels] == [("-1", 128.0), ("1", 68.0), ("3", 8.0)]
    constant = value_chart(SECONDS, np.ones(11), (1.0, 1.0))
    assert constant is not None and constant.axes.levels == () and constant.fall is None


def test_a_fall_is_marked_from_peak_to_trough():
    value = np.array([0.0, 0.5, 1.0, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.1])
    chart = value_chart(SECONDS, value, (0.0, 1.0), (2, 3))
    assert chart is not None and chart.fall is not None
    fall = chart.fall
    assert (fall.left, fall.width) == (pytest.approx(192), pytest.approx(96)) and fall.amount == pytest.approx(0.8)
    (peak_x, peak_y), (trough_x, trough_y) = fall.markers
    assert (peak_x, trough_x) == (pytest.approx(192), pytest.approx(288)) and peak_y < trough_y
    assert (fall.start, fall.stop) == (pytest.approx(0.2), pytest.approx(0.3))
    assert fall.anchor == "start" and fall.label_at > trough_x
    late = value_chart(SECONDS, value, (0.0, 1.0), (2, 10))
    assert late is not None and late.fall is not None
    assert late.fall.anchor == "end" and late.fall.label_at < late.fall.left, "the label stays on the page"


def test_states_that_vary_most_are_drawn():
    generator = np.random.default_rng(0)
    state = generator.normal(size=(11, 12)) * np.arange(12)
    chart = state_chart(SECONDS, state)
    assert len(chart.lines) == 8 and chart.dimensions == 12 and len({line.kind for line in chart.lines}) == 8
    rising = state_chart(SECONDS, np.stack([np.arange(11.0), np.ones(11)], 1))
    first, constant = (coordinates(line.points) for line in rising.lines)
    assert first[0][1] == HEIGHT - BOTTOM and first[-1][1] == TOP, "over its own range, upwards"
    assert {y for _, y in constant} == {68.0}
