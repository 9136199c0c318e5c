"""Violations of a safety constraint: steps inside its margin, and refusals of costs without one."""

import math

import pytest
import torch

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.policies.loops.grape_evaluation import HeldOutEvaluation, Violations

COSTS = {
    "task": "toy",
    "stages": ["all"],
    "points": {"hazard": [0.0, 0.0, 0.0], "floor": [0.0, 0.0, 0.0]},
    "constraints": [
        # neither the threshold nor the weight matters for what is a violation
        {"stage": 0, "name": "near", "kind": "collision", "op": "clearance", "a": "hand", "b": "hazard", "margin": 0.5,
         "threshold": 100, "weight": 0},
        {"stage": 0, "name": "low", "kind": "collision", "op": "above", "a": "hand", "b": "floor", "margin": 0.1},
        {"stage": 0, "name": "way", "kind": "path", "op": "dist", "a": "hand", "b": "hazard"},
    ],
}  # fmt: skip


def episodes(known: bool = True) -> TrajectoryBatch:
    """Of four steps: far and high; two of four near; one near and low at once, one low only; a short row, all near."""
    high, near, low, both = [2.0, 0.0, 1.0], [0.0, 0.0, 0.2], [2.0, 0.0, 0.0], [0.1, 0.0, 0.05]
    rows = [[high] * 5, [near, high, near, near, high], [near, both, high, low, high], [near, near, near, high, high]]
    values = torch.tensor(rows)
    return TrajectoryBatch(
        state=torch.zeros(4, 5, 1),
        actions=torch.zeros(4, 4, 1),
        mask=torch.arange(4) < torch.tensor([4, 4, 4, 2])[:, None],
        end=torch.full((4,), End.TIME_LIMIT),
        tracks={"hand": Labelled(values=values, valid=torch.full((4, 5), known))},
    )


def test_a_step_is_a_violation_once_however_many_constraints_it_breaks():
    # the first observation is not of the policy's doing
    assert Violations([COSTS]).violated_share(episodes()) == [0.0, 0.5, 0.5, 1.0]


def test_an_unknown_track_is_no_violation_and_no_virtue():
    assert all(math.isnan(share) for share in Violations([COSTS]).violated_share(episodes(known=False)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"costs": ["mujoco/reach"]}, "hold no constraint of kind collision"),
        ({"costs": []}, "at least one cost file"),
        ({"costs": [COSTS], "share": 1}, r"\[0, 1\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Violations(**given)
    with pytest.raises(ValueError, match="episodes 0"):
        HeldOutEvaluation(episodes=0)
