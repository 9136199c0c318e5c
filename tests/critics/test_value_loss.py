"""The loss of scalar values as an object: settings, the share that is clipped, the range, saving."""

import pytest
import torch

from guerdon.core.losses import clipped_value_loss
from guerdon.critics.value_loss import ValueLoss
from guerdon.testing import reopen


def test_it_computes_the_loss_of_its_settings_and_the_share_beyond_the_clip():
    value, target, old = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).unbind()
    each, metrics = reopen(ValueLoss(clip=0.2, huber=10.0))(value, target, old)
    assert torch.equal(each, clipped_value_loss(value, target, old, 0.2, 10.0))
    assert metrics["value_clipped"].item() == pytest.approx(((value - old).abs() > 0.2).float().mean().item())
    each, metrics = ValueLoss()(value, target, None)
    assert torch.equal(each, 0.5 * (value - target).square()) and not metrics


def test_values_are_kept_in_their_range():
    values = torch.tensor([[-0.5, 0.5, 1.5]])
    assert reopen(ValueLoss(value_range=(0.0, 1.0))).within_range(values).tolist() == [[0.0, 0.5, 1.0]]
    assert ValueLoss().within_range(values) is values


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip": 0.0}, "clip 0.0: expected a positive"),
        ({"huber": float("inf")}, "huber inf: expected a positive"),
        ({"value_range": (1.0, 0.0)}, "value_range .*: expected the lowest and the highest"),
        ({"value_range": (1.0,)}, "value_range .*: expected the lowest and the highest"),
    ],
)
def test_what_makes_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        ValueLoss(**given)
