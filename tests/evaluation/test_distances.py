import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.evaluation.distances import dard_canonical, dard_distance, epic_canonical, epic_distance, pearson_distance


def world(seed, states=4, actions=3):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    reward, other = 2 * drawn(states, actions, states) - 1, 2 * drawn(states, actions, states) - 1
    transition = drawn(states, actions, states) + 0.05
    weight, choice, phi = drawn(states) + 0.05, drawn(actions) + 0.05, drawn(states)
    return (
        reward,
        other,
        transition / transition.sum(-1, keepdim=True),
        weight / weight.sum(),
        choice / choice.sum(),
        phi,
    )


def shaped(reward, phi, gamma, factor=1.0):
    return factor * reward + gamma * phi[None, None, :] - phi[:, None, None]


@given(seed=st.integers(0, 10_000), gamma=st.floats(0.0, 1.0))
def test_canonical_forms_against_literal_loops(seed, gamma):
    reward, _, transition, weight, choice, _ = world(seed, 3, 2)
    states, actions = range(3), range(2)
    epic, dard = epic_canonical(reward, gamma, weight, choice), dard_canonical(reward, gamma, transition, choice)
    for s in states:
        for a in actions:
            for t in states:
                one = float(reward[s, a, t])
                two = one
                for b in actions:
                    for y in states:
                        w = float(choice[b] * weight[y])
                        one += w * float(gamma * reward[t, b, y] - reward[s, b, y])
                        one -= gamma * w * sum(float(weight[x] * reward[x, b, y]) for x in states)
                        two += float(choice[b] * (gamma * transition[t, b, y] * reward[t, b, y]))
                        two -= float(choice[b] * transition[s, b, y] * reward[s, b, y])
                        for x in states:
                            reach = sum(float(choice[c] * transition[s, c, x]) for c in actions)
                            two -= gamma * reach * float(choice[b] * transition[t, b, y] * reward[x, b, y])
                assert float(epic[s, a, t]) == pytest.approx(one, abs=1e-9)
                assert float(dard[s, a, t]) == pytest.approx(two, abs=1e-9)


@given(seed=st.integers(0, 10_000), gamma=st.floats(0.0, 1.0), factor=st.floats(0.1, 10.0))
def test_scale_and_shaping_do_not_count_and_the_opposite_is_farthest(seed, gamma, factor):
    reward, other, transition, weight, choice, phi = world(seed)
    for distance, model in ((epic_distance, weight), (dard_distance, transition)):
        args = (gamma, model, choice)
        same = distance(reward, shaped(reward, 3 * phi, gamma, factor), *args)
        assert same == pytest.approx(0.0, abs=1e-6)
        assert distance(reward, shaped(-reward, phi, gamma), *args) == pytest.approx(1.0, abs=1e-6)
        assert distance(reward, other, *args) == pytest.approx(distance(other, reward, *args))
        assert 0.05 < distance(reward, other, *args) < 0.99, "unrelated rewards are neither the same nor opposite"
        assert distance(reward, shaped(reward, 3 * phi + 1, 0.3 if gamma > 0.7 else 0.99), *args) > 1e-3


def test_with_gamma_zero_and_one_action_by_hand():
    # two states, γ = 0: the canonical form takes the mean over s′ out of each row
    reward = torch.tensor([[[1.0, 3.0]], [[0.0, 4.0]]])
    half, sure = torch.tensor([0.5, 0.5]), torch.tensor([1.0])
    assert epic_canonical(reward, 0.0, half, sure)[:, 0].tolist() == [[-1, 1], [-2, 2]]
    stay = torch.eye(2)[:, None]
    assert dard_canonical(reward, 0.0, stay, sure)[:, 0].tolist() == [[0, 2], [-4, 0]]
    other = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    # forms (−1, 1, −2, 2) and (−½, ½, ½, −½): ρ = (1 − 2)/√(10 · 1) = −1/√10
    assert epic_distance(reward, other, 0.0, half, sure) == pytest.approx(math.sqrt((1 + 1 / math.sqrt(10)) / 2))


def test_the_pearson_distance_reduces_to_known_values():
    x = torch.tensor([1.0, 2.0, 4.0])
    assert pearson_distance(x, 3 * x + 1) == pytest.approx(0, abs=1e-7)
    assert pearson_distance(x, -x) == 1
    assert pearson_distance(torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, 1, -1, -1])) == pytest.approx(0.5**0.5)
    weighted = pearson_distance(x, torch.tensor([1.0, 2.0, -9.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert weighted == pytest.approx(0, abs=1e-7)


def test_a_reward_that_is_only_shaping_has_no_distance():
    reward, _, transition, weight, choice, phi = world(1)
    nothing = shaped(torch.zeros_like(reward), phi, 0.9)
    assert math.isnan(epic_distance(reward, nothing, 0.9, weight, choice))
    assert math.isnan(dard_distance(nothing, reward, 0.9, transition, choice))
    assert math.isnan(epic_distance(reward, torch.zeros_like(reward), 0.9, weight, choice))
    assert math.isnan(pearson_distance(torch.ones(3), torch.arange(3.0)))


def test_clear_errors():
    reward, _, transition, weight, choice, _ = world(2)
    with pytest.raises(ValueError, match=r"expected a table \(S, A, S\)"):
        epic_canonical(reward[:, :, :2], 0.9, weight, choice)
    with pytest.raises(ValueError, match="finite"):
        epic_canonical(reward / 0, 0.9, weight, choice)
    with pytest.raises(ValueError, match="gamma"):
        epic_canonical(reward, 1.1, weight, choice)
    with pytest.raises(ValueError, match="state_weight: expected 4 probabilities"):
        epic_canonical(reward, 0.9, 2 * weight, choice)
    with pytest.raises(ValueError, match="action_weight: expected 3 probabilities"):
        epic_canonical(reward, 0.9, weight, choice[:2])
    with pytest.raises(ValueError, match="transition"):
        dard_canonical(reward, 0.9, 2 * transition, choice)
    with pytest.raises(ValueError, match="one shape"):
        pearson_distance(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="not all 0"):
        pearson_distance(torch.ones(2), torch.ones(2), torch.zeros(2))
