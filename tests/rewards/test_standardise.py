"""Moments of vectors that come in parts."""

import torch

from guerdon.rewards.standardise import fit_moments


def test_moments_of_parts_are_those_of_the_whole():
    torch.manual_seed(0)
    values = torch.randn(100, 3) * torch.tensor([1.0, 20.0, 0.1]) + torch.tensor([0.0, -5.0, 2.0])
    count, mean, std = fit_moments((values[:7], values[7:7], values[7:60], values[60:]), 3)
    assert count == 100 and mean.dtype == std.dtype == torch.float64
    torch.testing.assert_close(mean, values.double().mean(0))
    torch.testing.assert_close(std, values.double().std(0, unbiased=False))


def test_a_large_offset_costs_no_digits():
    values = torch.tensor([[1e6 - 1], [1e6 + 1]]).repeat(500, 1)
    _, mean, std = fit_moments(values.split(10), 1)
    assert mean.tolist() == [1e6] and torch.allclose(std, torch.ones(1).double(), rtol=1e-6, atol=0.0)


def test_a_constant_number_and_no_data_have_a_deviation_of_1():
    count, mean, std = fit_moments([torch.tensor([[3.0, 1.0], [3.0, 2.0]])], 2)
    assert count == 2 and mean.tolist() == [3.0, 1.5] and std.tolist() == [1.0, 0.5]
    assert fit_moments([], 2)[0] == 0
    assert fit_moments([], 2)[2].tolist() == [1.0, 1.0]
