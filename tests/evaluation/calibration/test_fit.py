"""Calibration: maps by hand and by loop, judged on other families; abstention that reaches every consumer."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from guerdon.cli import main
from guerdon.commands.calibrate import unseen_warning
from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.hub import load_component
from guerdon.core.interfaces import RewardModel
from guerdon.core.metrics import expected_calibration_error, success_auroc
from guerdon.critics.value import ValueCritic
from guerdon.datasets.episodes import BadEpisodeError, Episode, EpisodeSummary
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.evaluation.calibration.data import CalibrationData, collect
from guerdon.evaluation.calibration.fit import calibrate, calibrate_on
from guerdon.evaluation.calibration.report import change_of_error, choose_limit, cross_validate
from guerdon.evaluation.dataset import evaluate_dataset
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.rewards.calibration import Calibrated
from guerdon.rewards.calibration_curves import Curve, fit_curve
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.shaping import FirstHit
from guerdon.scoring.dataset import score_dataset
from guerdon.scoring.scores import read_scores
from guerdon.testing import check_reward_model, trajectory_batches

METHODS = ("temperature", "platt", "isotonic")


class Told(RewardModel):
    """Success is state 0, progress state 1 and the spread of the step that leads to an observation state 2."""

    def __init__(self, scale: float = 1.0, spread: bool = True) -> None:
        super().__init__()
        self.scale, self.spread = scale, spread

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        seen, valid = batch.observed & (batch.steps > 0)[:, None], batch.mask & batch.observed[:, 1:]
        state = torch.where(seen[..., None], batch.state, 0.0)
        rewards = torch.where(valid, self.scale * state[..., 1].diff(dim=1), 0.0)
        return RewardEstimates(
            rewards=rewards,
            valid=valid,
            success=Labelled(values=state[..., 0], valid=seen),
            progress=Labelled(values=state[..., 1], valid=seen),
            std=torch.where(valid, state[:, 1:, 2], 0.0) if self.spread else None,
            terms={"progress": rewards},
        )


class Memory:
    """A data set in memory."""

    name, fps, state_size, action_size, cameras = "memory", 10.0, 3, 1, ()

    def __init__(self, episodes):
        self.episodes = episodes

    def __len__(self):
        return len(self.episodes)

    def summary(self, place):
        episode = self.episodes[place]
        if isinstance(episode, BadEpisodeError):
            return EpisodeSummary(index=episode.index, steps=0)
        return EpisodeSummary(index=episode.index, steps=episode.steps, split=episode.split)

    def __getitem__(self, place):
        if isinstance(self.episodes[place], BadEpisodeError):
            raise self.episodes[place]
        return self.episodes[place]


def episode(index, success, rng, steps=6, split="val", context=""):
    """A model that is too sure: its logit is three times what the outcome allows, and a bit too high."""
    truth = np.linspace(-3, 3 if success else -1, steps + 1) + rng.normal(0, 0.8, steps + 1)
    progress = np.linspace(0, 1 if success else 0.5, steps + 1) ** 2
    state = np.stack([expit(3 * truth + 1), progress, np.abs(rng.normal(0, 0.1, steps + 1))], 1)
    return Episode(
        index=index,
        state=state.astype(np.float32),
        actions=np.zeros((steps, 1), np.float32),
        end=End.CUT if success is None else End.SUCCESS if success else End.TIME_LIMIT,
        success=None if success is None else float(success),
        split=split,
        context=context,
    )


def dataset(count=24, seed=0, **more):
    rng = np.random.default_rng(seed)
    return Memory([episode(i, bool(i % 2), rng, 4 + i % 4, **more) for i in range(count)])


def data(probability, label, episode=None, **more):
    number = np.arange(len(label)) if episode is None else np.asarray(episode)
    return CalibrationData(
        probability=np.asarray(probability, float),
        label=np.asarray(label, float),
        episode=number,
        family=more.pop("family", number),
        **more,
    )


def drawn(count=4000, slope=1.0, bias=0.0, seed=0):
    """Probabilities, and outcomes that happen with σ(slope · logit + bias)."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, count)
    return expit(truth), (rng.random(count) < expit(slope * truth + bias)).astype(float)


# --- the maps --------------------------------------------------------------------------------------------------------


def test_curves_by_hand():
    # logit of 0.8 is log 4; at temperature 2 it is log 2, so p = 2/3; shifted by log 3, p = 4 · 3 / (1 + 12)
    assert Curve(slope=0.5)(np.array([0.8]))[0] == pytest.approx(2 / 3)
    assert Curve(bias=math.log(3))(np.array([0.8]))[0] == pytest.approx(12 / 13)
    knots = Curve(x=np.array([0.2, 0.4, 0.8]), y=np.array([0.0, 0.5, 0.6]))
    assert knots(np.array([0.1, 0.2, 0.3, 0.6, 0.9])).tolist() == pytest.approx([0.0, 0.0, 0.25, 0.55, 0.6])
    assert Curve(x=np.array([0.3]), y=np.array([0.7]))(np.array([0.0, 1.0])).tolist() == [0.7, 0.7]
    # pool adjacent violators: 1 at 0.2 and 0 at 0.5 share ½, then 1
    fitted = fit_curve(np.array([0.1, 0.2, 0.5, 0.9]), np.array([0.0, 1.0, 0.0, 1.0]), "isotonic")
    assert fitted(np.array([0.1, 0.2, 0.5, 0.9])).tolist() == pytest.approx([0.0, 0.5, 0.5, 1.0])
    # two values only, so Platt goes through the smoothed frequencies: (3 + 1 of 4 happened at 0.8, 1 of 4 at 0.2);
    # targets are 5/6 and 1/6: (3 · 5/6 + 1/6) / 4 = 2/3, and 1/3 by symmetry
    platt = fit_curve(np.array([0.8] * 4 + [0.2] * 4), np.array([1.0, 1, 1, 0, 1, 0, 0, 0]), "platt")
    assert platt(np.array([0.8, 0.2])).tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-6)
    # without bias the same data want logit / τ = log 3, and logit is log 4
    scaled = fit_curve(np.array([0.8] * 4 + [0.2] * 4), np.array([1.0, 1, 1, 0, 1, 0, 0, 0]), "temperature")
    assert 1 / scaled.slope == pytest.approx(math.log(4) / math.log(3), rel=1e-4) and scaled.bias == 0


def test_temperature_against_a_search_and_isotonic_against_a_loop():
    probability, label = drawn(300, slope=0.4)

    def loss(temperature):
        p = expit(logit(probability) / temperature)
        return -np.mean(label * np.log(p) + (1 - label) * np.log(1 - p))

    found = 1 / fit_curve(probability, label, "temperature").slope
    assert all(loss(found) <= loss(found * factor) for factor in (0.98, 1.02, 0.5, 2.0))
    order = np.argsort(probability)
    blocks: list[list[float]] = []
    for happened in label[order]:  # pool adjacent violators, one by one
        blocks.append([happened])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    expected = np.concatenate([[np.mean(block)] * len(block) for block in blocks])
    assert np.allclose(fit_curve(probability, label, "isotonic")(probability[order]), expected)


def test_a_known_distortion_is_found():
    probability, label = drawn(40_000, slope=0.5, bias=-1.0)
    platt = fit_curve(probability, label, "platt")
    assert platt.slope == pytest.approx(0.5, abs=0.03) and platt.bias == pytest.approx(-1.0, abs=0.05)
    probability, label = drawn(40_000, slope=0.5)
    assert 1 / fit_curve(probability, label, "temperature").slope == pytest.approx(2.0, abs=0.1)


@settings(max_examples=30, deadline=None)
@given(p=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9))
def test_temperature_one_is_the_identity(p):
    values = np.array(p, np.float32)
    assert np.array_equal(Curve()(values).astype(np.float32), values)


def test_isotonic_leaves_what_is_calibrated_nearly_alone():
    probability, label = drawn(20_000)
    mapped = fit_curve(probability, label, "isotonic")(probability)
    assert np.abs(mapped - probability).mean() < 0.02
    distorted = fit_curve(probability**3, label, "isotonic")(probability**3)
    assert np.abs(distorted - probability).mean() < 0.02 < np.abs(probability**3 - probability).mean()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(4, 60),
    method=st.sampled_from(METHODS),
)
def test_no_map_turns_an_order_around(seed, count, method):
    rng = np.random.default_rng(seed)
    probability = rng.permutation(np.linspace(0.001, 0.999, count))
    label = (rng.random(count) < probability).astype(float)
    label[:2] = (0.0, 1.0)
    curve = fit_curve(probability, label, method)
    mapped = curve(probability)
    assert ((mapped >= 0) & (mapped <= 1)).all()
    assert (np.diff(mapped[np.argsort(probability)]) >= 0).all()
    if method != "isotonic" and curve.slope > 0.05:
        assert success_auroc(mapped, label) == pytest.approx(success_auroc(probability, label), abs=1e-12)
    # no map of its family can be worse than leaving things as they are, on what it was fitted on
    if method == "isotonic":
        assert np.mean((mapped - label) ** 2) <= np.mean((probability - label) ** 2) + 1e-12


def test_what_falls_with_success_becomes_the_base_rate():
    probability, label = drawn(400, slope=-1.0)
    curve = fit_curve(probability, label, "platt")
    assert curve.slope == 0 and curve(np.array([0.1, 0.9])).tolist() == pytest.approx([label.mean()] * 2, abs=0.01)
    constant = fit_curve(np.full(10, 0.3), np.array([1.0] * 5 + [0.0] * 5), "platt")
    assert constant(np.array([0.3])).tolist() == pytest.approx([0.5])


def test_saturated_and_separable_probabilities_stay_finite():
    probability = np.array([0.0, 0.0, 1e-30, 1.0, 1.0, 1.0])
    label = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    for method in METHODS:
        mapped = fit_curve(probability, label, method)(probability)
        assert np.isfinite(mapped).all() and (mapped[3:] > mapped[:3]).all()
    # every positive at (3 + 1) / (3 + 2) and every negative at 1 / (3 + 2): Platt's targets
    assert fit_curve(np.array([0.1, 0.9]).repeat(3), label, "platt")(np.array([0.1, 0.9])).tolist() == pytest.approx(
        [0.2, 0.8], abs=1e-6
    )


# --- cross-validation and the report ---------------------------------------------------------------------------------


def test_what_is_judged_was_fitted_on_other_families():
    """Outcomes are coin flips that each family repeats: a map that had seen the family would know them."""
    rng = np.random.default_rng(0)
    family = np.arange(40).repeat(5)
    probability, label = rng.random(40).repeat(5), (np.arange(40) % 2).astype(float).repeat(5)
    coins = data(probability, label, episode=np.arange(200), family=family)
    flattering = fit_curve(probability, label, "isotonic")(probability)
    crossed = cross_validate(coins, "isotonic", False, 0.0, "confidence", 0)
    assert crossed.folds == 5 and not np.isnan(crossed.probability).any()
    assert expected_calibration_error(flattering, label) < 1e-9
    assert expected_calibration_error(crossed.probability, label) > 0.05
    assert np.mean((crossed.probability - label) ** 2) > np.mean((flattering - label) ** 2) + 0.02


def test_too_few_families_are_not_judged_at_all():
    few = data([0.1, 0.9, 0.2, 0.8], [0, 1, 0, 1], episode=[0, 1, 2, 3], family=np.zeros(4, int))
    with pytest.warns(UserWarning, match="calibrated on 2 successes and 2 failures: fewer than 5"):
        _, report = calibrate_on(Told(), few, "temperature")
    assert report.folds == 0 and math.isnan(report.after.calibration_error.value)
    assert not math.isnan(report.before.calibration_error.value) and math.isnan(report.change.value)
    assert any("could not be evaluated" in note for note in report.notes) and len(report.notes) == 2
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["after"]["calibration_error"]["value"] is None


def test_intervals_hold_the_figure_and_equal_maps_have_no_change():
    probability, label = drawn(2000, slope=0.3, bias=-1.0)
    sample = data(probability, label, family=np.arange(2000) // 10)
    model, report = calibrate_on(Told(), sample, "platt")
    before, after = report.before.calibration_error, report.after.calibration_error
    assert before.value == pytest.approx(expected_calibration_error(probability, label))
    assert before.low < before.value < before.high and after.high < before.low and report.change.high < 0
    assert report.change.value == pytest.approx(after.value - before.value)
    assert change_of_error(sample, probability, probability, 0).high == 0
    assert report.temperature == pytest.approx(1 / 0.3, rel=0.2) and report.bias == pytest.approx(-1, abs=0.2)
    assert float(model.slope) == pytest.approx(1 / report.temperature)
    count = sum(bin.count for bin in report.before.reliability)
    excess = sum(b.count * abs(b.frequency - b.probability) for b in report.before.reliability if b.count)
    assert count == 2000 and excess / count == pytest.approx(before.value)
    assert report.before.brier.value == pytest.approx(np.mean((probability - label) ** 2))
    assert report.base_brier == pytest.approx(label.mean() * (1 - label.mean()))


def test_doubt_that_knows_where_the_model_is_wrong_lowers_the_risk():
    rng = np.random.default_rng(0)
    probability, label = drawn(3000)
    spread = rng.random(3000)
    random = spread > 0.7
    probability = np.where(random, rng.random(3000), probability)
    sample = data(probability, label, family=np.arange(3000) // 10, spread=spread)
    _, report = calibrate_on(Told(), sample, "isotonic", abstain=0.3)
    risks = [point.brier for point in report.risk_coverage]
    assert report.by == "spread" and report.risk_coverage[0].coverage == 1.0
    assert risks[0] > risks[-1] + 0.01 and risks[0] == pytest.approx(report.after.brier.value)
    found = report.abstention
    assert found.coverage == pytest.approx(0.7, abs=0.01) and found.limit == pytest.approx(0.7, abs=0.03)
    assert found.kept.brier.high < found.everything.brier.value == pytest.approx(report.after.brier.value)


@settings(max_examples=40, deadline=None)
@given(doubt=st.lists(st.floats(0, 1), min_size=1, max_size=40), share=st.floats(0, 0.99))
def test_a_limit_abstains_on_at_most_the_share(doubt, share):
    values = np.array(doubt)
    limit = choose_limit(values, share)
    assert (values > limit).mean() <= share + 1e-9
    if len(np.unique(values)) == len(values) and share:
        assert (values > limit).sum() == math.floor(share * len(values) + 1e-9)


def test_a_limit_by_hand():
    assert choose_limit(np.arange(1.0, 11.0), 0.2) == 8 and choose_limit(np.arange(1.0, 11.0), 0.0) == math.inf
    assert choose_limit(np.ones(10), 0.5) == 1, "ties stay together, on the side of what is kept"
    with pytest.raises(ValueError, match=r"abstain is 1\.0"):
        choose_limit(np.ones(3), 1.0)


# --- the component ---------------------------------------------------------------------------------------------------


def held(success, progress=None, spread=None):
    steps = len(success) - 1
    columns = [success, progress or np.linspace(0, 1, steps + 1).tolist(), [0.0, *(spread or [0.0] * steps)]]
    return TrajectoryBatch(
        state=torch.tensor(columns).T[None],
        actions=torch.zeros(1, steps, 1),
        mask=torch.ones(1, steps, dtype=torch.bool),
        end=torch.tensor([int(End.SUCCESS)]),
    )


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


@settings(max_examples=8, deadline=None)
@given(
    batch=trajectory_batches(state_size=2, max_steps=4, stored_labels=False),
    method=st.sampled_from(METHODS),
    limited=st.booleans(),
)
def test_every_promise_is_kept(batch, method, limited):
    torch.manual_seed(0)
    inner = ProgressReward(state_size=2, width=8, layers=0).eval()
    knots = Curve(x=np.array([0.2, 0.5, 0.7]), y=np.array([0.1, 0.2, 0.9]))
    curve = knots if method == "isotonic" else Curve(slope=0.7, bias=0.0 if method == "temperature" else -1.0)
    with torch.no_grad():
        scored = inner(batch)
    limit = float(scored.std[scored.valid].median()) + 1e-3 if limited and bool(scored.valid.any()) else math.inf
    check_reward_model(Calibrated.from_curves(inner, method, curve, knots, spread_limit=limit), batch)


def test_saved_with_the_model_as_one_component(tmp_path):
    member = ProgressReward(state_size=3, width=8, layers=0)
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


# --- on data sets ----------------------------------------------------------------------------------------------------


def test_calibrating_a_data_set_lowers_the_error_evaluation_finds_on_another(tmp_path):
    fitted_on, other = dataset(40, seed=0), dataset(40, seed=1)
    _, before = calibrate(Told(), fitted_on)
    for method in ("platt", "isotonic"):
        model, report = calibrate(Told(), fitted_on, method=method)
        assert report.change.value < 0 and report.counts["successes"] == report.counts["failures"] == 20
        raw, now = (evaluate_dataset(m, other).metrics["model"] for m in (Told(), model))
        assert now.calibration_error.value < 0.5 * raw.calibration_error.value
        if method == "platt":
            assert now.success_auroc.value == pytest.approx(raw.success_auroc.value)
    on_itself = evaluate_dataset(Told(), fitted_on).metrics["model"].calibration_error.value
    assert before.before.calibration_error.value == pytest.approx(on_itself, abs=1e-6), "the same observations"


def test_progress_is_calibrated_on_its_labels():
    model, report = calibrate(Told(), dataset(40), progress=True)
    # the model says t², the label is t
    assert report.after.progress_error.value < 0.02 < report.before.progress_error.value
    mapped = model(held([0.1] * 5, (np.linspace(0, 1, 5) ** 2).tolist())).progress.values[0]
    assert torch.allclose(mapped, torch.linspace(0, 1, 5), atol=0.06)


def test_scores_are_null_where_the_model_abstains(tmp_path):
    rng = np.random.default_rng(0)
    episodes = [episode(i, bool(i % 2), rng) for i in range(2)]
    for one in episodes:
        one.state[:, 2] = [0.0, 0.1, 0.5, 0.5, 0.1, 0.1, 0.1]
    model = Calibrated.from_curves(Told(), "temperature", Curve(), spread_limit=0.2)
    report = score_dataset(model, Memory(episodes), tmp_path / "scores", device="cpu", progress_bar=False)
    table = read_scores(report.path).table
    first = table.filter([index == 0 for index in table["episode_index"].to_pylist()])
    # steps 1 and 2 lead to observations 2 and 3; of observation 3 the next step is known, of 2 nothing is
    assert first["valid"].to_pylist() == [True, True, False, True, True, True, True]
    assert [value is None for value in first["success"].to_pylist()] == [False, False, True, True, False, False, False]
    assert [value is None for value in first["reward"].to_pylist()] == [False, True, True, False, False, False, True]


def test_splits_and_bad_episodes():
    rng = np.random.default_rng(0)
    val = [episode(i, bool(i % 2), rng, context=f"c{i // 2}") for i in range(12)]
    train = [episode(100 + i, True, rng, split="train") for i in range(3)]
    broken = BadEpisodeError(50, "video", "ends early")
    seen = collect(Told(), Memory([*val, *train, broken]), "val", bad=(bad := {}))
    assert set(seen.episode) == set(range(12)) and bad == {50: broken}
    assert len(np.unique(seen.family)) == 6, "two of a context belong together"
    # a step's spread stands at the observation it leads to, and nothing leads to the first
    first = seen.spread[seen.episode == 0]
    assert first[0] == 0 and np.allclose(first[1:], val[0].state[1:, 2])
    assert len(np.unique(collect(Told(), Memory([*val, *train])).episode)) == 15
    with pytest.raises(ValueError, match="no usable episode of the split 'test': it has train, val"):
        collect(Told(), Memory([*val, *train]), "test")
    unsplit = Memory([replace(e, split="", context="") for e in val])
    assert 0 < len(np.unique(collect(Told(), unsplit, "val").episode)) < 12
    with pytest.raises(ValueError, match="no split is recorded"):
        collect(Told(), unsplit, "test")


def test_an_unknown_last_observation_and_abstentions_inside_are_left_out():
    rng = np.random.default_rng(0)
    episodes = [replace(episode(i, bool(i % 2), rng), last_observed=False) for i in range(2)]
    seen = collect(Told(), Memory(episodes))
    assert len(seen.label) == 2 * 6 and seen.label.sum() == 1
    limited = Calibrated.from_curves(Told(), "temperature", Curve(), spread_limit=0.05)
    assert len(collect(limited, Memory(episodes)).label) < 12, "a model that abstains already can be calibrated again"


# --- bad input -------------------------------------------------------------------------------------------------------


class Broken(Told):
    """Claims to know what is no number, or has no success."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        found = super().forward(batch)
        if self.what == "absent":
            return replace(found, success=None)
        if self.what == "std":
            return replace(found, std=torch.full_like(found.rewards, torch.inf))
        column = getattr(found, self.what)
        return replace(found, **{self.what: replace(column, values=torch.full_like(column.values, torch.nan))})


def test_one_outcome_no_label_and_no_number_are_refused():
    rng = np.random.default_rng(0)
    for outcome, message in (
        (True, "the split 'val' has 6 labelled successes and 0 failures"),
        (False, "the split 'val' has 0 labelled successes and 6 failures"),
        (None, "no observation of the split 'val' has both a known success label and an estimate"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(Told(), Memory([episode(i, outcome, rng) for i in range(6)]))
    with pytest.raises(ValueError, match="Broken estimates no success"):
        calibrate(Broken("absent"), dataset())
    for what, message in (
        ("success", "gave nan as success of episode"),
        ("progress", "gave nan as progress of episode"),
        ("std", "a spread that is no number"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(Broken(what), dataset())
    with pytest.raises(ValueError, match="gives no spread to abstain on"):
        calibrate(Told(spread=False), dataset(), abstain=0.1, by="spread")
    assert calibrate(Told(spread=False), dataset(), abstain=0.1)[1].by == "confidence"
    with pytest.raises(ValueError, match=r"abstain is -0\.1"):
        calibrate(Told(), dataset(), abstain=-0.1)
    with pytest.raises(ValueError, match="at least one episode at once"):
        calibrate(Told(), dataset(), batch_size=0)


def test_curves_refuse_what_they_cannot_be_fitted_on():
    for probability, label, message in (
        ([0.1, 0.2], [1.0, 1.0], "2 positive and 0 negative"),
        ([0.1, math.nan], [1.0, 0.0], "probability: expected numbers"),
        ([0.1, 0.2], [1.0, 2.0], "label: expected numbers"),
        ([], [], "probability: expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_curve(np.array(probability, float), np.array(label, float), "platt")


def test_nothing_unfitted_passes_for_calibrated():
    batch = held([0.1, 0.9])
    for model in (Calibrated(Told(), "platt"), Calibrated(Told(), "isotonic", knots=2)):
        with pytest.raises(RuntimeError, match="no map yet"):
            model(batch)
    for method, knots in (("isotonic", 0), ("platt", 2)):
        with pytest.raises(ValueError, match="knots with method"):
            Calibrated(Told(), method, knots)
    with pytest.raises(ValueError, match="estimates no success"):
        Calibrated.from_curves(Broken("absent"), "platt", Curve())(batch)
    with pytest.raises(ValueError, match="gives no spread"):
        Calibrated.from_curves(Told(spread=False), "platt", Curve(), spread_limit=0.1)(batch)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and data on disk: 12 episodes with both outcomes in val, successes only in wins."""
    folder = tmp_path_factory.mktemp("calibrate")
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder / "data", fps=10) as writer:
        for i in range(15):
            writer.add(episode(i, bool(i % 2) or i > 11, rng, split="val" if i < 12 else "wins"))
    torch.manual_seed(0)
    EnsembleReward(ProgressReward(state_size=3, width=8, layers=0), size=2).save_pretrained(folder / "model")
    return folder


def call(place, out, *more):
    common = ["calibrate", "--model", str(place / "model"), "--data", str(place / "data"), "--out", str(out)]
    return main([*common, "--device", "cpu", *more])


def test_the_command_leaves_a_model_that_the_others_accept(place, tmp_path, capsys):
    figures, out = tmp_path / "figures.json", tmp_path / "calibrated"
    assert call(place, out, "--abstain", "0.2", "--progress", "--json", str(figures)) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(out) and "calibration error" in printed and "coverage, by spread" in printed
    said = json.loads(figures.read_text())
    assert said["counts"] == {
        "episodes": 12, "successes": 6, "failures": 6, "families": 12, "observations": 84, "positives": 6,
        "negatives": 78, "bad": 0,
    }  # fmt: skip
    assert said["folds"] == 5 and said["abstention"]["by"] == "spread" and said["model"]["hash"]
    assert isinstance(load_component(out), Calibrated)
    data = ["--data", str(place / "data"), "--device", "cpu"]
    assert main(["evaluate", "--model", str(out), *data, "--split", "val"]) == 0
    assert main(["score", "--model", str(out), *data, "--out", str(tmp_path / "scores")]) == 0
    assert main(["report", "--scores", str(tmp_path / "scores"), "--out", str(tmp_path / "page.html")]) == 0
    rewards = read_scores(tmp_path / "scores").table["reward"].to_pylist()
    assert 0.1 < np.mean([value is None for value in rewards]) < 0.5, "the last of each, and what is abstained on"


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_the_command_takes_every_method_and_warns_of_few(method, place, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(place, tmp_path / "out", "--method", method, "--split", "", "--by", "confidence") == 0
    assert "temperature" in capsys.readouterr().out
    assert load_component(tmp_path / "out").method == method


def test_the_command_refuses_and_writes_nothing(place, tmp_path, capsys):
    def error(*more, out=tmp_path / "out"):
        assert call(place, out, *more) == 2
        return capsys.readouterr().err

    assert "3 labelled successes and 0 failures" in error("--split", "wins")
    assert "abstain is 1.5" in error("--abstain", "1.5")
    assert "no usable episode of the split 'none': it has val, wins" in error("--split", "none")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "mine.txt").write_text("keep")
    assert "exists already" in error(out=tmp_path / "held")
    assert "is a folder" in error("--json", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["held"] and len(list((tmp_path / "held").iterdir())) == 1
    assert "exists already" in error(out=place / "model"), "the model it was made from is not replaced"


def test_isotonic_agrees_with_scikit_learn_between_its_knots():
    probability, label = drawn(200)
    reference = IsotonicRegression(out_of_bounds="clip").fit(probability, label)
    grid = np.linspace(0, 1, 301)
    assert np.allclose(fit_curve(probability, label, "isotonic")(grid), reference.predict(grid))


def test_a_model_that_held_out_something_else_is_named(tmp_path):
    def told(text, split="val"):
        (tmp_path / "config.yaml").write_text(text)
        return unseen_warning(tmp_path / "model", split)

    (tmp_path / "model").mkdir()
    assert unseen_warning(tmp_path / "model", "val") is None  # no run beside it
    assert "trained with val_fraction 0.0" in (told("data: {init_args: {val_fraction: 0.0}}") or "")
    assert told("data: {init_args: {val_fraction: 0.0}}", split="held_out") is None
    assert told("data: {init_args: {val_fraction: 0.1}}") is None and told("data: {init_args: {}}") is None
    assert unseen_warning(tmp_path, "val") is None  # the run directory itself
