"""Simulated raters: answers by hand, frequencies, and draws that do not depend on the order of questions."""

import math

import pytest
import torch

from guerdon.core.batch import PreferencePairs, TrajectoryBatch
from guerdon.preference.answers import Answer
from guerdon.preference.raters import SimulatedRater, answer_pairs

LOW, HIGH = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])


def choices(rater: SimulatedRater, first=LOW, second=HIGH, count: int = 2000) -> list[str]:
    return [rater.answer(f"p{n}", first, second).choice for n in range(count)]


def test_a_perfect_rater_takes_the_higher_return():
    rater = SimulatedRater(name="a")
    assert rater.answer("p", LOW, HIGH) == Answer(pair="p", choice="second", rater="a")
    assert rater.answer("p", HIGH, LOW).choice == "first"
    assert rater.probability(LOW, HIGH) == 0.0
    assert rater.probability(LOW, LOW) == 0.5


def test_probabilities_by_hand():
    assert SimulatedRater(rationality=1).probability(HIGH, LOW) == pytest.approx(1 / (1 + math.exp(-2)))
    assert SimulatedRater(rationality=0).probability(HIGH, LOW) == 0.5
    p = 1 / (1 + math.exp(-1))
    assert SimulatedRater(rationality=0.5, error=0.1).probability(HIGH, LOW) == pytest.approx(0.9 * p + 0.1 * (1 - p))
    assert SimulatedRater(error=0.25).probability(HIGH, LOW) == 0.75
    # γ = ½: scores ¼·4 + ½·0 + 1·0 = 1 and ¼·0 + ½·0 + 1·2 = 2, although the returns are 4 and 2
    early, late = torch.tensor([4.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    myopic = SimulatedRater(rationality=1, discount=0.5)
    assert myopic.probability(early, late) == pytest.approx(1 / (1 + math.exp(1)))
    assert SimulatedRater(discount=0.5).answer("p", early, late).choice == "second"
    assert SimulatedRater().answer("p", early, late).choice == "first"
    assert SimulatedRater(discount=0).probability(early, torch.tensor([9.0, 0.1])) == 0.0


@pytest.mark.parametrize(
    "settings", [{"rationality": 0.7}, {"error": 0.2}, {"rationality": 0.7, "error": 0.2, "discount": 0.9}]
)
def test_frequencies_are_the_probabilities(settings):
    rater = SimulatedRater(**settings)
    found = choices(rater)
    p = rater.probability(LOW, HIGH)
    assert set(found) == {"first", "second"}
    assert found.count("first") / len(found) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / len(found)))


def test_close_returns_are_a_tie_and_poor_pairs_are_skipped():
    rater = SimulatedRater(tie=2.5, skip=2, error=0.5)
    assert set(choices(rater, LOW, HIGH, 50)) == {"tie"}  # returns 1 and 3
    assert set(choices(rater, LOW, LOW, 50)) == {"skip"}  # both below 2: skipped before it is a tie
    assert set(choices(SimulatedRater(tie=2, skip=3), LOW, HIGH, 50)) == {"second"}  # neither threshold is undercut
    assert set(choices(SimulatedRater(), LOW, LOW, 50)) == {"first", "second"}


def test_answers_depend_on_seed_rater_and_pair_only():
    rater = SimulatedRater(name="a", rationality=0.1)
    names = [f"p{n}" for n in range(200)]
    forward = {name: rater.answer(name, LOW, HIGH).choice for name in names}
    backward = {name: rater.answer(name, LOW, HIGH).choice for name in reversed(names)}
    assert forward == backward
    for other in (SimulatedRater(name="b", rationality=0.1), SimulatedRater(name="a", rationality=0.1, seed=1)):
        different = sum(other.answer(name, LOW, HIGH).choice != forward[name] for name in names)
        assert 60 < different < 140  # independent draws of about ½ differ in 100 ± 7


def test_pairs_of_a_batch_are_answered_without_their_padding():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    batch = TrajectoryBatch(state=torch.zeros(2, 4, 1), actions=torch.zeros(2, 3, 1), mask=mask)
    pairs = PreferencePairs(
        batch=batch,
        chosen=torch.tensor([0, 1]),
        rejected=torch.tensor([1, 0]),
        label=torch.zeros(2),
        weight=torch.ones(2),
    )
    rewards = torch.tensor([[1.0, 1.0, 1.0], [2.0, math.nan, 99.0]])
    answers = answer_pairs(SimulatedRater(name="a"), pairs, rewards, ["p", "q"])
    assert answers == [Answer(pair="p", choice="first", rater="a"), Answer(pair="q", choice="second", rater="a")]
    with pytest.raises(ValueError, match="expected 2 names"):
        answer_pairs(SimulatedRater(), pairs, rewards, ["p"])
    with pytest.raises(ValueError, match="'p': rewards of the first segment"):
        answer_pairs(SimulatedRater(), pairs, torch.full((2, 3), math.nan), ["p", "q"])


@pytest.mark.parametrize(
    "settings", [{"rationality": -1}, {"error": 1.5}, {"discount": 2}, {"tie": -1}, {"error": math.nan}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="expected at least 0"):
        SimulatedRater(**settings)
