"""The metrics of a learned reward against outcomes, worked by hand."""

import math
from dataclasses import replace

import pytest
import torch

from guerdon.core.batch import TrajectoryBatch
from guerdon.evaluation.watch.metrics import EpisodeRecord, best_and_last, compare, score_kind, score_track

from .watched_runs import Abstaining, Told, rollout


def record(score, success=math.nan, learned=0.0, recorded=math.nan, drawn=""):
    return EpisodeRecord(name="a", learned=learned, score=score, success=float(success), recorded=recorded, drawn=drawn)


def test_rates_worked_by_hand():
    scores, success = [0.9, 0.6, 0.1, 0.2, 0.8, 0.3], [1, 0, 0, 0, 1, 1]
    found = compare([record(s, o, learned=s) for s, o in zip(scores, success, strict=True)], 0.5)
    # failures score 0.6, 0.1, 0.2: one of three is claimed; successes 0.9, 0.8, 0.3: one of three is missed
    assert (found["episodes"], found["outcome_known"], found["failures"], found["successes"]) == (6, 6, 3, 3)
    assert found["false_positive_rate"] == found["false_negative_rate"] == pytest.approx(1 / 3)
    # 1 of 3, z = 1.96: centre (0.3333 + 0.6402) / 2.2805 = 0.4269, half 1.96·sqrt(0.0741 + 0.1067)/2.2805 = 0.3655
    assert found["false_positive_rate_low"] == pytest.approx(0.0615, abs=1e-3)
    assert found["false_positive_rate_high"] == pytest.approx(0.7923, abs=1e-3)
    # pairs of a success and a failure: 0.9 and 0.8 beat all three, 0.3 beats 0.1 and 0.2 only: 8 of 9
    assert found["auroc"] == pytest.approx(8 / 9)
    # of 15 pairs 9 differ in outcome, 8 − 1 = 7 net; no scores tie: 7 / sqrt(15 · 9)
    assert found["tau"] == pytest.approx(7 / math.sqrt(135))
    assert math.isnan(found["tau_recorded"])
    claims_all = compare([record(s, o) for s, o in zip(scores, success, strict=True)], 0.1)
    assert (claims_all["false_positive_rate"], claims_all["false_negative_rate"]) == (1, 0), "0.1 reaches 0.1"


def test_the_level_widens_the_interval():
    records = [record(0.9, 0), record(0.1, 0)]
    narrow, wide = (compare(records, 0.5, level) for level in (0.5, 0.99))
    assert wide["false_positive_rate_low"] < narrow["false_positive_rate_low"] < 0.5
    assert wide["false_positive_rate_high"] > narrow["false_positive_rate_high"] > 0.5


def test_an_abstention_and_an_unknown_outcome_are_counted_and_enter_no_rate():
    found = compare([record(math.nan, 0), record(0.9), record(0.9, 0), record(0.1, 0)], 0.5)
    assert (found["episodes"], found["outcome_known"], found["reward_unknown"], found["failures"]) == (4, 3, 1, 2)
    assert found["false_positive_rate"] == 0.5
    assert not record(math.nan).claimed(0.0)


def test_metrics_of_no_episode_are_undefined():
    found = compare([], 0.5)
    counts = {"episodes", "outcome_known", "reward_unknown", "failures", "successes"}
    assert {name for name, value in found.items() if not math.isnan(value)} == counts
    assert all(found[name] == 0 for name in counts)


def test_doubtful_episodes_are_no_sample():
    asked = record(0.9, 0, drawn="doubtful")
    assert compare([asked], 0.5)["failures"] == 0
    assert compare([replace(asked, drawn="random")], 0.5)["false_positive_rate"] == 1


def test_the_learned_return_is_compared_with_the_recorded_one():
    found = compare([record(0.0, learned=x, recorded=y) for x, y in ((0.1, 1.0), (0.9, 2.0), (0.5, 3.0))], 0.5)
    assert found["tau_recorded"] == pytest.approx(1 / 3)  # 1 < 2, 1 < 3 agree, 2 < 3 does not


def test_scores_of_every_observation():
    batch = rollout([0.8, -0.4])
    estimates = Abstaining()(batch)
    assert score_kind(estimates) == "success"
    track, valid = score_track(estimates, batch, "success")
    assert track[0].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert valid.tolist() == [[True] * 5, [False] * 5] and not track[1].any()
    without = replace(estimates, success=None)
    assert score_kind(without) == "return"
    track, valid = score_track(without, batch, "return")
    assert track[0].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8]) and valid[0].all() and not valid[1].any()
    assert score_kind(replace(without, progress=estimates.success)) == "progress"
    with pytest.raises(ValueError, match="estimates no progress: choose another score, 'success' for this one"):
        score_track(estimates, batch, "progress")


def test_padding_has_no_score():
    whole = rollout([0.8])
    real = torch.tensor([[True, True, False, False]])
    batch = TrajectoryBatch(state=whole.state, actions=whole.actions, mask=real)
    batch.state[:, 3:] = torch.nan
    for kind in ("success", "return"):
        track, valid = score_track(Told()(batch), batch, kind)
        assert valid.tolist() == [[True] * 3 + [False] * 2], kind
        assert best_and_last(track, valid)[0].item() == pytest.approx(0.4), kind


def test_best_and_last_of_the_known_scores():
    track = torch.tensor([[0.1, 0.9, 0.4, 0.7], [0.5, 0.6, 0.7, 0.8]])
    valid = torch.tensor([[True, True, True, False], [False] * 4])
    best, last = best_and_last(track, valid)
    assert (best[0].item(), last[0].item()) == (pytest.approx(0.9), pytest.approx(0.4))
    assert best[1].isnan() and last[1].isnan()
