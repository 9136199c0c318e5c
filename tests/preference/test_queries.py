"""Selection of queries: values by hand, no answered pair, spread, determinism."""

import math
from typing import Any, cast

import pytest
import torch

from guerdon.preference.queries import disagreement, preference_probabilities, random_queries, select_queries

# Members agree on even (0), agree on sure (1), differ in size (2), contradict each other (3).
PROBABILITY = torch.tensor([[0.5, 0.9, 0.6, 1.0], [0.5, 0.9, 0.8, 0.0]])


def entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def test_probabilities_by_hand():
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert preference_probabilities(first, second).tolist() == [[pytest.approx(1 / (1 + math.exp(-2))), 0.5]]
    assert float(preference_probabilities(first, second, 2)[0, 0]) == pytest.approx(1 / (1 + math.exp(-1)))
    with pytest.raises(ValueError, match="positive temperature"):
        preference_probabilities(first, second, 0)


def test_disagreement_by_hand():
    assert disagreement(PROBABILITY).tolist() == pytest.approx([0, 0, 0.01, 0.25], abs=1e-6)
    assert disagreement(PROBABILITY, "entropy").tolist() == pytest.approx(
        [math.log(2), entropy(0.9), entropy(0.7), math.log(2)], abs=1e-6
    )
    middle = entropy(0.7) - (entropy(0.6) + entropy(0.8)) / 2
    assert disagreement(PROBABILITY, "bald").tolist() == pytest.approx([0, 0, middle, math.log(2)], abs=1e-6)


@pytest.mark.parametrize("wrong", [torch.zeros(0, 3), torch.tensor([[1.1]]), torch.tensor([[math.nan]])])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        disagreement(wrong)


def test_the_most_disputed_unanswered_pairs_are_taken():
    assert select_queries(PROBABILITY, 2).tolist() == [3, 2]
    answered = torch.tensor([False, False, False, True])
    assert select_queries(PROBABILITY, 1, answered=answered).tolist() == [2]
    assert select_queries(PROBABILITY, 1, answered=answered, measure="entropy").tolist() == [0]
    assert sorted(select_queries(PROBABILITY, 9, answered=answered).tolist()) == [0, 1, 2]
    assert select_queries(PROBABILITY, 2, answered=torch.ones(4, dtype=torch.bool)).tolist() == []


def test_candidates_are_spread_out():
    p = torch.stack([torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])])
    place = torch.tensor([[0.0], [0.1], [5.0], [9.0], [100.0]])  # 4 is far, but nobody disputes it
    assert select_queries(p, 2).tolist() == [0, 1]
    # four candidates 0 … 3: first the most disputed, then the furthest
    assert select_queries(p, 2, features=place, pool=2).tolist() == [0, 3]
    assert select_queries(p, 2, features=place, pool=1).tolist() == [0, 1]
    # 0 at 0, 3 at 9, then 2 (distance 4 from 9 and 5 from 0) before 1 (distance 0.1)
    answered = torch.tensor([False, False, False, False, True])
    assert select_queries(p, 4, features=place, answered=answered).tolist() == [0, 3, 2, 1]


def test_alike_features_still_give_different_pairs():
    chosen = select_queries(torch.rand(3, 20), 8, features=torch.zeros(20, 2))
    assert len(set(chosen.tolist())) == 8


def test_the_seed_orders_equally_good_pairs():
    even = torch.full((2, 50), 0.5)
    one, same, other = (select_queries(even, 10, seed=seed).tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert random_queries(50, 10, seed=1).tolist() == random_queries(50, 10, seed=1).tolist() != one[::-1]


def test_random_queries_are_even_and_never_answered():
    answered = torch.tensor([True, False, False, False])
    first = [int(random_queries(4, 1, answered, seed)[0]) for seed in range(600)]
    assert 0 not in first
    assert all(150 < first.count(pair) < 250 for pair in (1, 2, 3))  # 200 ± 12
    assert sorted(random_queries(4, 9, answered).tolist()) == [1, 2, 3]


def test_numbers_that_do_not_fit_are_refused():
    for settings, message in (
        ({"count": 0}, "at least 1"),
        ({"count": 1, "pool": 0}, "at least 1"),
        ({"count": 1, "features": torch.full((4, 2), math.nan)}, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            select_queries(PROBABILITY, **cast(Any, settings))
    with pytest.raises(ValueError, match="at least 1"):
        random_queries(4, 0)
