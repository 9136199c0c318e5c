"""Curricula: the shapes of the three rules, mixing, windows, state."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.policies.loops.curriculum import Curriculum, task_probabilities


def counts_of(rates, attempts=98):
    """Counts whose posterior means are the rates: (s + 1)/(n + 2)."""
    return torch.tensor([rate * (attempts + 2) - 1 for rate in rates]), torch.full((len(rates),), float(attempts))


def test_the_three_rules_by_hand():
    # attempts of 98: s is (successes + 1)/100; the tails 0.01 and 0.99 stand for 0 and 1
    successes, attempts = counts_of([0.01, 0.25, 0.5, 0.75, 0.99])
    literal = task_probabilities(successes, attempts, "literal", uniform=0.0)
    weights = [math.exp((0.5 - s) / 0.2) for s in (0.01, 0.25, 0.5, 0.75, 0.99)]
    assert literal.tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-5)
    frontier = task_probabilities(successes, attempts, "frontier", uniform=0.0)
    weights = [math.exp(-abs(s - 0.5) / 0.2) for s in (0.01, 0.25, 0.5, 0.75, 0.99)]
    assert frontier.tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-5)
    variance = task_probabilities(successes, attempts, "variance", uniform=0.0)
    weights = [s * (1 - s) for s in (0.01, 0.25, 0.5, 0.75, 0.99)]
    assert variance.tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-5)


def test_the_printed_rule_prefers_what_fails_and_the_frontier_what_is_open():
    successes, attempts = torch.tensor([0, 5, 10, 15, 20]), torch.full((5,), 20)
    literal, frontier, variance = (
        task_probabilities(successes, attempts, m) for m in ("literal", "frontier", "variance")
    )
    assert (literal[1:] < literal[:-1]).all()
    for shape in (frontier, variance):
        assert int(shape.argmax()) == 2
        assert torch.allclose(shape, shape.flip(0), atol=1e-6)


def test_what_was_never_tried_counts_as_one_half():
    assert task_probabilities(torch.tensor([0, 0, 2]), torch.tensor([0, 2, 2]), "frontier").argmax() == 0
    even = task_probabilities(torch.zeros(4), torch.zeros(4), "literal")
    assert even.tolist() == pytest.approx([0.25] * 4)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12),
    st.sampled_from(["literal", "frontier", "variance"]),
    st.floats(0.05, 5.0),
    st.floats(0.0, 1.0),
)
def test_probabilities_add_up_and_the_uniform_share_is_a_floor(pairs, mode, temperature, uniform):
    won, lost = (torch.tensor(part) for part in zip(*pairs, strict=True))
    found = task_probabilities(won, won + lost, mode, temperature, uniform)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert float(found.min()) >= uniform / len(pairs) - 1e-6
    assert found.dtype == torch.float32
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(task_probabilities(won[order], (won + lost)[order], mode, temperature, uniform), found[order])


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"mode": "hardest"}, "mode 'hardest': expected literal, frontier, variance"),
        ({"temperature": 0}, "a temperature above 0"),
        ({"uniform": 1.5}, r"a share in \[0, 1\]"),
        ({"successes": torch.tensor([3.0])}, "task 0: expected 0 ≤ successes ≤ attempts, got 3 of 2"),
        ({"successes": torch.tensor([float("nan")])}, "task 0: expected 0 ≤ successes"),
        ({"successes": torch.zeros(0), "attempts": torch.zeros(0)}, "at least one task"),
    ],
)
def test_what_makes_no_sense_is_refused(more, match):
    with pytest.raises(ValueError, match=match):
        task_probabilities(
            **{"successes": torch.tensor([1.0]), "attempts": torch.tensor([2.0]), "mode": "frontier"} | more
        )
    with pytest.raises(ValueError, match="at least one attempt"):
        Curriculum(window=0)


def test_only_the_latest_attempts_count():
    curriculum = Curriculum(window=4)
    curriculum.add("a", [0, 0, 0, 1, 1, 1, 1])
    curriculum.add("b", [0.5])
    successes, attempts = curriculum.counts(["a", "b", "c"])
    assert (successes.tolist(), attempts.tolist()) == ([4, 0.5, 0], [4, 1, 0])
    other = Curriculum(window=4)
    other.load_state_dict(curriculum.state_dict())
    assert torch.equal(other.probabilities(["a", "b", "c"]), curriculum.probabilities(["a", "b", "c"]))
