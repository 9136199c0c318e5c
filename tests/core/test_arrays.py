"""Numbers in any form, as numpy arrays."""

import math

import numpy as np
import pytest
import torch

from guerdon.core.arrays import as_array, paired


def test_tensors_arrays_and_sequences_become_arrays():
    for values in ([0.5, 2.0], (0.5, 2.0), np.array([0.5, 2.0]), torch.tensor([0.5, 2.0])):
        assert as_array(values).tolist() == [0.5, 2.0]
    assert as_array(["a", "b"]).tolist() == ["a", "b"], "labels too"
    assert as_array(torch.tensor([1.0], requires_grad=True)).tolist() == [1.0]


def test_half_precision_becomes_a_type_that_numpy_can_sort():
    for kind in (torch.bfloat16, torch.float16):
        assert as_array(torch.tensor([0.5], dtype=kind)).dtype == np.float32
    assert as_array(torch.tensor([0.5])).dtype == np.float32 and as_array(torch.tensor([1])).dtype == np.int64


def test_pairs_with_a_gap_are_left_out():
    left, right = paired([1.0, math.nan, 3.0, 4.0], torch.tensor([[5.0, 6.0], [math.nan, 8.0]]))
    assert left.tolist() == [1.0, 4.0] and right.tolist() == [5.0, 8.0]
    assert paired([], [])[0].size == 0
    with pytest.raises(ValueError, match="as many of both, got 1 and 2"):
        paired([1.0], [1.0, 2.0])
