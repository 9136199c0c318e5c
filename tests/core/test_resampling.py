"""Bootstrap draws by hash: Poisson frequencies, and functions of the key alone."""

import math

import torch

from guerdon.core.resampling import bootstrap_weights, hashed_keys


def test_weights_have_the_frequencies_of_a_poisson_variable_of_mean_1():
    weights = bootstrap_weights(torch.arange(40_000), member=2, seed=5)
    for count in range(5):
        expected = math.exp(-1) / math.factorial(count)
        error = 5 * math.sqrt(expected * (1 - expected) / 40_000)
        assert abs(float((weights == count).float().mean()) - expected) < error


def test_a_weight_depends_on_seed_member_and_key_alone():
    keys = torch.tensor([7, 3, 7, -2])
    drawn = bootstrap_weights(keys, 1, seed=4)
    assert drawn[0] == drawn[2]
    assert torch.equal(bootstrap_weights(keys.flip(0), 1, seed=4), drawn.flip(0))
    many = torch.arange(200)
    assert not torch.equal(bootstrap_weights(many, 1), bootstrap_weights(many, 2))
    assert not torch.equal(bootstrap_weights(many, 1), bootstrap_weights(many, 1, seed=1))


def test_keys_differ_where_any_part_or_the_order_of_parts_differs():
    one, other = (part.flatten() for part in torch.meshgrid(torch.arange(50), torch.arange(50), indexing="ij"))
    keys = hashed_keys(one, other)
    assert keys.dtype == torch.long and len(keys.unique()) == 2500
    assert torch.equal(keys, hashed_keys(one, other))
    swapped = hashed_keys(other, one)
    assert torch.equal(swapped == keys, one == other)
