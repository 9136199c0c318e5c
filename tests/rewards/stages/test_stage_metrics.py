import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.rewards.stages.stage_metrics import stage_accuracy, stage_iou

ALL = torch.ones(6, dtype=torch.bool)
TRUE = torch.tensor([0, 0, 0, 1, 1, 2])


def test_by_hand():
    """Stage 0: 2 of 3 found, nothing too much, 2/3; stage 1: 2 common, 3 in all, 2/3; stage 2: 1/1."""
    predicted = torch.tensor([0, 0, 1, 1, 1, 2])
    assert stage_accuracy(predicted, TRUE, ALL, ALL) == pytest.approx(5 / 6)
    assert stage_iou(predicted, TRUE, ALL, ALL) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_a_stage_missed_or_made_up_counts_nothing():
    predicted = torch.tensor([0, 0, 0, 1, 1, 1])  # stage 2 is missed: 1, 2/3, 0
    assert stage_iou(predicted, TRUE, ALL, ALL) == pytest.approx((1 + 2 / 3 + 0) / 3)
    predicted = torch.tensor([0, 0, 0, 1, 1, 3])  # … and 3 made up
    assert stage_iou(predicted, TRUE, ALL, ALL) == pytest.approx((1 + 1 + 0 + 0) / 4)


def test_no_prediction_is_a_wrong_one():
    known = torch.tensor([True, True, True, False, False, False])
    assert stage_accuracy(TRUE, TRUE, ALL, known) == 0.5
    assert stage_iou(TRUE, TRUE, ALL, known) == pytest.approx(1 / 3)


def test_only_where_the_right_stage_is_known():
    valid = torch.tensor([True, False, False, True, False, False])
    predicted = torch.tensor([0, 9, 9, 1, 9, 9])
    assert stage_accuracy(predicted, TRUE, valid, ALL) == 1.0 == stage_iou(predicted, TRUE, valid, ALL)
    assert math.isnan(stage_accuracy(TRUE, TRUE, ~ALL, ALL)) and math.isnan(stage_iou(TRUE, TRUE, ~ALL, ALL))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_properties(pairs):
    predicted, true = (torch.tensor(column) for column in zip(*pairs, strict=True))
    ones = torch.ones(len(pairs), dtype=torch.bool)
    accuracy, overlap = (f(predicted, true, ones, ones) for f in (stage_accuracy, stage_iou))
    assert 0 <= accuracy <= 1 and 0 <= overlap <= 1
    assert (accuracy == 1) == (overlap == 1) == bool((predicted == true).all())
    assert overlap == pytest.approx(stage_iou(true, predicted, ones, ones))
    literal = []
    for stage in range(4):
        union = [p == stage or t == stage for p, t in pairs]
        if any(union):
            literal.append(sum(p == stage == t for p, t in pairs) / sum(union))
    assert overlap == pytest.approx(sum(literal) / len(literal))
