"""A claim reads the score it is told to, of the observation it is told to."""

from typing import Any

import pytest

from guerdon.evaluation.watch.claim import SuccessClaim

from .watched_runs import Abstaining, rollout


def there_and_back():
    """A success probability of 0.9 at the third observation, and 0 at all others; and an unknown one."""
    batch = rollout([0.0, -0.5])
    batch.state[0, 2, 0] = 0.9
    return batch


@pytest.mark.parametrize(
    "options, score",
    [({}, 0.9), ({"judged": "last"}, 0.0), ({"score": "success"}, 0.9), ({"score": "return", "judged": "last"}, 0.0)],
)
def test_scores_of_episodes(options, score):
    batch = there_and_back()
    known, unknown = SuccessClaim(**options).scores(Abstaining()(batch), batch)
    assert known.item() == pytest.approx(score) and unknown.isnan()


def test_a_score_that_is_not_predicted_is_an_error():
    batch = there_and_back()
    with pytest.raises(ValueError, match="estimates no progress: choose another score, 'success' for this one"):
        SuccessClaim(score="progress").scores(Abstaining()(batch), batch)


def test_arguments_that_make_no_sense():
    refused: list[dict[str, Any]] = [{"score": "speed"}, {"judged": "first"}]
    for options in refused:  # a type checker at run time may see it first
        with pytest.raises((ValueError, TypeError)):
            SuccessClaim(**options)
