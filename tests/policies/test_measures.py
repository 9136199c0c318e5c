"""Metrics of a batch: by hand, at extremes, and where they reduce to something known."""

import math

import pytest
import torch

from guerdon.core.batch import Advantages
from guerdon.policies.measures import batch_metrics, explained_variance, ratio_metrics


def metrics(ratios, advantages, low=0.2, high=0.3):
    found = ratio_metrics(torch.tensor(ratios).log(), torch.tensor(advantages), low, high)
    return {name: float(value) for name, value in found.items()}


def test_metrics_of_ratios_by_hand():
    found = metrics([1.5, 1.5, 0.7, 0.7, 1.0], [1.0, -1.0, 1.0, -1.0, 0.0])
    assert found["clipped"] == pytest.approx(4 / 5)
    # of two positive advantages one is above the clip (the other is below it and has its gradient); likewise below
    assert (found["clipped_positive"], found["clipped_negative"]) == (0.5, 0.5)
    assert found["log_ratio"] == pytest.approx((2 * math.log(1.5) + 2 * math.log(0.7)) / 5, rel=1e-5)
    assert found["kl"] == pytest.approx((2 * (0.5 - math.log(1.5)) + 2 * (-0.3 - math.log(0.7))) / 5, rel=1e-4)
    # (Σρ)²/(5 Σρ²) with Σρ = 5.4, Σρ² = 2·2.25 + 2·0.49 + 1
    assert found["ratio_ess"] == pytest.approx(5.4**2 / (5 * 6.48), rel=1e-5)
    assert found["ratio_error"] == pytest.approx(0.5, rel=1e-5)


def test_a_sign_that_does_not_occur_has_no_clipped_share():
    found = metrics([2.0, 0.5], [1.0, 1.0])
    assert (found["clipped_positive"], found["clipped_negative"]) == (0.5, 0.0)


def test_one_policy_has_no_distance_from_itself():
    found = metrics([1.0] * 4, [1.0, -1.0, 1.0, -1.0])
    assert found["ratio_ess"] == 1.0
    assert all(found[name] == 0 for name in found if name != "ratio_ess")


def test_huge_ratios_leave_the_sample_size_finite():
    log_ratio = torch.tensor([80.0, 0.0, 0.0, 0.0])  # its square is no float32
    assert float(ratio_metrics(log_ratio, torch.ones(4), 0.2, 0.2)["ratio_ess"]) == pytest.approx(0.25)


def test_minibatches_are_averaged_and_the_ratio_error_is_the_first():
    parts = [{"kl": torch.tensor(1.0), "ratio_error": torch.tensor(0.25)}]
    parts += [{"kl": torch.tensor(3.0), "ratio_error": torch.tensor(2.0)}, {"ratio_error": torch.tensor(1.0)}]
    found = {name: float(value) for name, value in batch_metrics(parts).items()}
    assert found == {"kl": 2.0, "ratio_error": 0.25, "ratio_error_max": 2.0}
    assert batch_metrics([{}]) == batch_metrics([]) == {}


def test_explained_variance_by_hand_and_where_it_is_not_known():
    returns, valid = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[True, True, True, False]])

    def explained(values, returns=returns):
        return float(explained_variance(Advantages(advantages=returns, returns=returns, valid=valid, values=values)))

    assert explained(torch.tensor([[0.0, 2.0, 4.0, 0.0, 0.0]])) == pytest.approx(0.0, abs=1e-6)
    assert explained(torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0]])) == 1.0
    assert explained(torch.tensor([[11.0, 12.0, 13.0, 0.0, 0.0]])) == 1.0, "a constant error is no variance"
    assert math.isnan(explained(None)) and math.isnan(explained(torch.zeros(1, 5), torch.ones(1, 4)))


def test_metrics_of_several_devices_are_moved_to_the_accelerator():
    """A tensor without data stands for one on an accelerator."""
    host, far = torch.tensor(1.0), torch.tensor(1.0, device="meta")
    found = batch_metrics([{"loss": host, "kl": far}, {"kl": host}])
    assert {value.device.type for value in found.values()} == {"meta"}
