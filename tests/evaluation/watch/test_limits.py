"""Metrics beyond their limits raise alarms, and no others."""

import math

import pytest

from guerdon.evaluation.watch.limits import AlarmLimits, describe_alarm

QUIET = {"failures": 20.0, "false_positive_rate": 0.1, "false_positive_rate_low": 0.05, "drift": 0.1}
PROBED = {"probe_clips": 10.0, "probe_blank_low": 0.1, "probe_frozen_low": 0.1, "probe_frozen_claimed": 0.3}


@pytest.mark.parametrize(
    "limits, metrics, alarms",
    [
        ({}, {}, ()),
        ({}, {"failures": 20, "false_positive_rate_low": 0.21}, ("false_positives",)),
        ({}, {"failures": 20, "false_positive_rate_low": 0.2}, ()),
        ({}, {"failures": 19, "false_positive_rate_low": 0.9}, ()),
        ({"min_failures": 3}, {"failures": 3, "false_positive_rate_low": 0.9}, ("false_positives",)),
        ({"max_false_positive_rate": None}, {"failures": 20, "false_positive_rate_low": 0.9}, ()),
        ({"max_false_positive_rate": 0}, {"failures": 20, "false_positive_rate_low": 0.01}, ("false_positives",)),
        ({}, {"failures": 20, "false_positive_rate_low": math.nan}, ()),
        ({}, {"drift": 0.51}, ("drift",)),
        ({}, {"drift": 0.5}, ()),
        ({}, {"drift": math.nan}, ()),
        ({"max_drift": None}, {"drift": 1.0}, ()),
        ({}, {"probe_frozen_low": 0.6}, ("probe_frozen",)),
        ({}, {"probe_frozen_low": math.nan}, ()),
        ({"max_probe": 0.05}, {}, ("probe_blank", "probe_frozen")),
        ({"max_probe": 0.05}, {"probe_clips": 9}, ()),
        ({"max_probe": None}, {"probe_frozen_low": 0.6}, ()),
        ({}, {"failures": 30, "false_positive_rate_low": 0.3, "drift": 0.9}, ("false_positives", "drift")),
    ],
)
def test_alarms(limits, metrics, alarms):
    given = QUIET | PROBED | {name: float(value) for name, value in metrics.items()}
    assert AlarmLimits(**limits).alarms(given) == alarms


def test_a_blank_clip_raises_no_alarm_without_images():
    limits = AlarmLimits(max_probe=0.05)
    assert limits.alarms(PROBED, images=False) == ("probe_frozen",)


def test_metrics_that_are_missing_raise_no_alarm():
    assert AlarmLimits(min_failures=1).alarms({}) == ()
    assert AlarmLimits(min_failures=1).alarms({"failures": 30.0, "probe_clips": 30.0}) == ()


def test_training_stops_where_it_should():
    stop, warn = AlarmLimits(on_alarm="stop"), AlarmLimits()
    assert stop.stops(["drift"]) and not stop.stops([]) and not warn.stops(["drift"])
    assert stop.stops(["false_positives"]) and not stop.stops(["false_positives"], retrained=True)
    assert stop.stops(["false_positives", "drift"], retrained=True)


def test_alarms_are_described():
    metrics = QUIET | PROBED | {"false_positive_rate": 0.6, "false_positive_rate_low": 0.31, "failures": 10.0}
    described = [describe_alarm(alarm, metrics) for alarm in ("false_positives", "drift", "probe_frozen")]
    assert described == [
        "the reward takes 60% of 10 failures for successes (at least 31%)",
        "10% of the observations lie beyond what 99 % of the training data hold",
        "probe_frozen: 30% still succeed",
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_false_positive_rate": -0.1}, r"max_false_positive_rate is -0.1: expected a share in \[0, 1\], or None"),
        ({"max_drift": 1.5}, r"max_drift is 1.5: expected a share in \[0, 1\], or None"),
        ({"max_probe": 2}, r"max_probe is 2: expected a share in \[0, 1\], or None"),
        ({"min_failures": 0}, "min_failures 0: expected at least 1"),
        ({"on_alarm": "panic"}, None),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AlarmLimits(**options)
