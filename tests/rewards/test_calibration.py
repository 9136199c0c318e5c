"""A calibrated model: what is mapped, and abstention that reaches every consumer."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.critics.value import ValueCritic
from guerdon.evaluation.calibration.fit import calibrate
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.rewards.calibration import Calibrated
from guerdon.rewards.calibration_curves import Curve
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.shaping import FirstHit
from guerdon.testing import check_reward_model, trajectory_batches

from ..evaluation.calibration.state_models import Broken, Told, dataset, held

METHODS = ("temperature", "platt", "isotonic")


def test_success_and_progress_are_mapped_and_rewards_are_not():
    batch = held([0.2, 0.5, 0.8], [0.0, 0.5, 1.0])
    halve = Curve(x=np.array([0.0, 1.0]), y=np.array([0.0, 0.5]))
    model = Calibrated.from_curves(Told(), "platt", Curve(slope=2.0), halve)
    scored, plain = model(batch), Told()(batch)
    # odds 1/4, 1 and 4 squared: 1/17, 1/2, 16/17
    assert scored.success.values[0].tolist() == pytest.approx([1 / 17, 0.5, 16 / 17])
    assert scored.progress.values[0].tolist() == [0.0, 0.25, 0.5]
    assert torch.equal(scored.rewards, plain.rewards) and scored.valid.all()
    paid = FirstHit(model, success_weight=1.0)(batch).rewards[0]
    assert paid.tolist() == pytest.approx([0.25 + 0.5 - 1 / 17, 0.25 + 16 / 17 - 0.5])
    same = Calibrated.from_curves(Told(), "temperature", Curve())(batch)
    assert torch.equal(same.success.values, plain.success.values)


def test_abstention_by_spread_and_by_confidence():
    batch = held([0.1, 0.2, 0.6, 0.9], spread=[0.1, 0.3, 0.2])
    by_spread = Calibrated.from_curves(Told(), "temperature", Curve(), spread_limit=0.25)(batch)
    # step 1 leads to observation 2
    assert by_spread.valid.tolist() == [[True, False, True]]
    for column in (by_spread.success, by_spread.progress):
        assert column.valid.tolist() == [[True, True, False, True]] and column.values[0, 2] == 0
    assert by_spread.rewards[0, 1] == by_spread.std[0, 1] == by_spread.terms["progress"][0, 1] == 0
    # 0.6 is 0.4 from certainty; both steps at observation 2 lose their basis
    unsure = Calibrated.from_curves(Told(spread=False), "temperature", Curve(), doubt_limit=0.3)(batch)
    assert unsure.valid.tolist() == [[True, False, False]]
    assert unsure.success.valid.tolist() == unsure.progress.valid.tolist() == [[True, True, False, True]]
    both = Calibrated.from_curves(Told(), "temperature", Curve(), spread_limit=0.15, doubt_limit=0.3)(batch)
    assert both.valid.tolist() == [[True, False, False]]
    assert both.success.valid.tolist() == [[True, True, False, False]]
    never = Calibrated.from_curves(Told(), "temperature", Curve())(batch)
    assert never.valid.all() and never.success.valid.all()


def test_returns_are_cut_where_the_model_abstains():
    limited = Calibrated.from_curves(Told(), "temperature", Curve(), spread_limit=0.25)
    critic = ValueCritic(state_size=3)
    source, without = (RewardToGo(reward, critic, normalise=False) for reward in (limited, Told()))
    batch = held([0.1, 0.2, 0.6, 0.9], [0.0, 0.2, 0.5, 0.6], spread=[0.1, 0.3, 0.2])
    estimates = source.estimate(batch)
    found = source(batch, estimates)
    assert found.valid.tolist() == [[True, False, True]] and found.advantages[0, 1] == 0
    wild = replace(estimates, rewards=torch.where(estimates.valid, estimates.rewards, 1e6))
    again = source(batch, wild)
    assert torch.equal(found.advantages, again.advantages) and torch.equal(found.returns, again.returns)
    everything = without(batch, without.estimate(batch))
    assert everything.valid.all() and not torch.equal(everything.returns, found.returns)


@pytest.mark.slow
@settings(max_examples=8)
@given(
    batch=trajectory_batches(state_size=2, max_steps=4, stored_labels=False),
    method=st.sampled_from(METHODS),
    limited=st.booleans(),
)
def test_every_promise_is_kept(batch, method, limited):
    torch.manual_seed(0)
    inner = ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=0)).eval()
    knots = Curve(x=np.array([0.2, 0.5, 0.7]), y=np.array([0.1, 0.2, 0.9]))
    curve = knots if method == "isotonic" else Curve(slope=0.7, bias=0.0 if method == "temperature" else -1.0)
    with torch.no_grad():
        scored = inner(batch)
    limit = float(scored.std[scored.valid].median()) + 1e-3 if limited and bool(scored.valid.any()) else math.inf
    check_reward_model(Calibrated.from_curves(inner, method, curve, knots, spread_limit=limit), batch)


def test_saved_with_the_model_as_one_component(tmp_path):
    member = ProgressReward(state_size=3, observer=ObservationEncoder(width=8, layers=0))
    model, report = calibrate(EnsembleReward(member, size=2).eval(), dataset(), abstain=0.2, progress=True)
    assert report.by == "spread" and report.method == "isotonic" and report.knots == len(model.success_x) > 0
    model.save_pretrained(tmp_path / "model")
    loaded = Calibrated.from_pretrained(tmp_path / "model")
    assert float(loaded.spread_limit) == report.abstention.limit
    batch = held([0.1, 0.4, 0.9])
    one, other = model(batch), loaded(batch)
    for part in ("rewards", "valid", "std"):
        assert torch.equal(getattr(one, part), getattr(other, part))
    assert torch.equal(one.success.values, other.success.values)
    assert torch.equal(one.progress.values, other.progress.values)


def test_nothing_unfitted_passes_for_calibrated():
    batch = held([0.1, 0.9])
    for model in (Calibrated(Told(), "platt"), Calibrated(Told(), "isotonic", knots=2)):
        with pytest.raises(RuntimeError, match="no map yet"):
            model(batch)
    wrong: list[tuple[Any, int]] = [("isotonic", 0), ("platt", 2)]
    for method, knots in wrong:
        with pytest.raises(ValueError, match="knots with method"):
            Calibrated(Told(), method, knots)
    with pytest.raises(ValueError, match="estimates no success"):
        Calibrated.from_curves(Broken("absent"), "platt", Curve())(batch)
    with pytest.raises(ValueError, match="gives no spread"):
        Calibrated.from_curves(Told(spread=False), "platt", Curve(), spread_limit=0.1)(batch)
