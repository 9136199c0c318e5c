"""A window counts every rollout and keeps the last ones."""

import pytest

from guerdon.evaluation.watch.metrics import EpisodeRecord
from guerdon.evaluation.watch.probes import ProbeResult
from guerdon.evaluation.watch.rollouts import RolloutSummary
from guerdon.evaluation.watch.window import RolloutWindow


def summary(number, episodes=1):
    return RolloutSummary(
        episodes=[
            EpisodeRecord(name=f"{number}-{i}", learned=0.5, score=0.5, success=1.0, recorded=0.0, drawn="random")
            for i in range(episodes)
        ],
        beyond=number,
        observations=10,
        probes={"honest": ProbeResult(clips=2, paid=1.5, honest=1, claimed=1)},
    )


def test_the_oldest_rollout_leaves_a_full_window():
    window = RolloutWindow(window=2)
    for number in range(3):
        window.add(summary(number, number))
    assert [s.beyond for s in window.summaries] == [1, 2]
    assert [e.name for e in window.episodes] == ["1-0", "2-0", "2-1"]
    window.clear()
    assert window.summaries == () and window.episodes == []


def test_every_third_rollout_is_evaluated_and_all_are_counted():
    window = RolloutWindow(every=3)
    assert [number for number in (window.advance() for _ in range(8)) if window.evaluates(number)] == [0, 3, 6]
    assert window.rollouts == 8
    window.clear()
    assert window.rollouts == 8


def test_a_window_goes_on_from_its_state():
    window = RolloutWindow(window=3)
    for _ in range(4):
        window.add(summary(window.advance()))
    state = window.state_dict()
    assert state.keys() == {"rollouts", "seen"} and isinstance(state["seen"][0], dict)
    again = RolloutWindow(window=2)
    again.add(summary(9))
    again.load_state_dict({**state, "of something else": 1})
    assert again.summaries == window.summaries[-2:] and again.rollouts == 4
    assert again.advance() == 4


@pytest.mark.parametrize("options", [{"window": 0}, {"every": 0}, {"level": 1.0}, {"level": 0.0}])
def test_arguments_that_make_no_sense(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name} {value}"):
        RolloutWindow(**options)
