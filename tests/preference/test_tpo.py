"""The loss of trajectory-wise preference optimisation: by hand, by literal loops, and by what it reduces to."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.losses import trajectory_preference
from guerdon.preference.tpo import PairSide, TrajectoryPreference, log_cosh_half, window_count, windowed


def sides(lengths, width=None, seed=0, dtype=torch.float64) -> Any:
    """Random log-probabilities of pairs with these lengths; padding is NaN."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for side in zip(*lengths, strict=True):
        n = width or max(*side, 1)
        mask = torch.arange(n) < torch.tensor(side)[:, None]
        parts = [torch.randn(len(side), n, generator=generator, dtype=dtype) for _ in range(2)]
        parts = [torch.where(mask, part, math.nan) for part in parts]
        found.append(PairSide(log_prob=parts[0].requires_grad_(), reference=parts[1], mask=mask))
    return found


def rows(side, chosen) -> Any:
    return PairSide(log_prob=side.log_prob[chosen], reference=side.reference[chosen], mask=side.mask[chosen])


LENGTHS = [(5, 9), (8, 8), (12, 3), (1, 1)]


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_sum_and_mean_are_the_published_loss(reduce):
    chosen, rejected = sides(LENGTHS)
    found = TrajectoryPreference(beta=0.3, reduce=reduce)(chosen, rejected)["loss"]
    expected = trajectory_preference(
        *(chosen.log_prob, chosen.reference, rejected.log_prob, rejected.reference, chosen.mask, rejected.mask),
        beta=0.3,
        reduce=reduce,
    )
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)


def literal_windows(side, row, start_share, window):
    length = int(side.mask[row].sum())
    ratio = (side.log_prob[row] - side.reference[row])[:length].tolist()
    if length <= window:
        return sum(ratio)
    start = math.floor(start_share * (length - window) + Fraction(1, 2))
    return sum(ratio[start : start + window])


@pytest.mark.parametrize("reduce", ["window", "step"])
def test_windows_are_the_literal_loop(reduce):
    chosen, rejected = sides(LENGTHS, seed=3)
    found = TrajectoryPreference(beta=0.3, reduce=reduce, window=4)(chosen, rejected)["loss"]
    window, total = (4 if reduce == "window" else 1), 0.0
    for row, (one, other) in enumerate(LENGTHS):
        count = max(max(one, other) - window, 0) + 1
        losses = []
        for k in range(count):
            share = Fraction(k, max(count - 1, 1))
            gap = literal_windows(chosen, row, share, window) - literal_windows(rejected, row, share, window)
            losses.append(math.log1p(math.exp(-0.3 * gap)))
        total += sum(losses) / count
    assert float(found.detach()) == pytest.approx(total / len(LENGTHS), abs=1e-12)


@given(length=st.integers(1, 9), more=st.integers(0, 3), seed=st.integers(0, 99))
def test_a_window_of_the_whole_length_is_the_sum(length, more, seed):
    chosen, rejected = sides([(length, length), (max(length - 1, 1), length)], seed=seed)
    whole = TrajectoryPreference(reduce="window", window=length + more)(chosen, rejected)["loss"]
    summed = TrajectoryPreference(reduce="sum")(chosen, rejected)["loss"]
    assert float(whole.detach()) == pytest.approx(float(summed.detach()), abs=1e-12)


@given(one=st.integers(1, 12), other=st.integers(1, 12), window=st.integers(1, 6))
def test_every_decision_of_both_sides_is_in_a_window(one, other, window):
    counts = torch.tensor([one]), torch.tensor([other])
    for length in (one, other):
        seen = [
            float(
                windowed(F.one_hot(torch.tensor([at]), length).double(), torch.tensor([length]), counts, window).sum()
            )
            for at in range(length)
        ]
        # of the longer side every decision is seen; the shorter one is cut into at least as many windows
        assert min(seen) > 0 and int(window_count(counts, window)) >= length - window + 1


def test_the_step_wise_loss_has_the_sigmoid_inside_the_sum():
    chosen, rejected = sides([(3, 3)], seed=1)
    found = TrajectoryPreference(beta=0.5, reduce="step")(chosen, rejected)["loss"]
    gaps = 0.5 * (chosen.log_prob - chosen.reference - rejected.log_prob + rejected.reference)
    assert float(found.detach()) == pytest.approx(float(-F.logsigmoid(gaps).mean().detach()), abs=1e-12)
    whole = TrajectoryPreference(beta=0.5)(chosen, rejected)["loss"]
    assert float(whole.detach()) == pytest.approx(float(-F.logsigmoid(gaps.sum()).detach()), abs=1e-12)
    # its gradient weighs each step by its own error, that of the sum all steps alike
    (by_step,) = torch.autograd.grad(found, chosen.log_prob)
    (by_sum,) = torch.autograd.grad(whole, chosen.log_prob)
    assert by_step[0].tolist() == pytest.approx((-0.5 / 3 * torch.sigmoid(-gaps[0])).tolist(), abs=1e-12)
    assert by_sum[0].tolist() == pytest.approx([float(-0.5 * torch.sigmoid(-gaps.sum().detach()))] * 3, abs=1e-12)


@pytest.mark.parametrize("reduce", ["sum", "mean", "window", "step"])
def test_at_the_reference_it_is_ln_2_and_pulls_the_pair_apart(reduce):
    chosen, rejected = sides(LENGTHS)
    same: Any = [
        PairSide(log_prob=s.reference.clone().requires_grad_(), reference=s.reference, mask=s.mask)
        for s in sides(LENGTHS)
    ]
    del chosen, rejected
    terms = TrajectoryPreference(reduce=reduce)(*same)
    assert float(terms["loss"].detach()) == pytest.approx(math.log(2), abs=1e-12)
    assert float(terms["accuracy"]) == 0.5 and float(terms["chosen_falls"]) == 0
    up, down = torch.autograd.grad(terms["loss"], [side.log_prob for side in same])
    assert bool((up[same[0].mask] <= 0).all()) and bool((down[same[1].mask] >= 0).all())
    assert float(up.sum()) < 0 < float(down.sum())
    assert bool((up[~same[0].mask] == 0).all()) and bool((down[~same[1].mask] == 0).all())


def test_ties_pull_together_and_weights_count():
    chosen, rejected = sides([(4, 4), (4, 4)])
    loss = TrajectoryPreference(beta=1.0)
    tie = loss(chosen, rejected, label=torch.tensor([0.5, 0.5]).double())["loss"]
    gap = (chosen.log_ratio() - rejected.log_ratio()).sum(1)
    expected = (0.5 * F.softplus(-gap) + 0.5 * F.softplus(gap)).mean()
    assert float(tie.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    first = loss(chosen, rejected, weight=torch.tensor([2.0, 0.0]).double())["loss"]
    assert float(first.detach()) == pytest.approx(float(F.softplus(-gap[0]).detach()), abs=1e-12)
    turned = loss(chosen, rejected, label=torch.zeros(2).double())
    assert float(turned["loss"].detach()) == pytest.approx(float(F.softplus(gap).mean().detach()), abs=1e-12)
    assert float(turned["accuracy"]) == pytest.approx(float((gap < 0).double().mean()))


@pytest.mark.parametrize("reduce", ["sum", "mean", "window", "step"])
def test_a_pair_of_weight_0_may_hold_anything(reduce):
    chosen, rejected = sides([(4, 6), (3, 5)])
    loss = TrajectoryPreference(reduce=reduce, window=2, sft_coef=0.5, proximal=0.5)
    with torch.no_grad():
        chosen.log_prob[0] = math.nan
        rejected.log_prob[0] = math.inf
    found = loss(chosen, rejected, weight=torch.tensor([0.0, 1.0]).double())["loss"]
    alone: Any = [
        PairSide(log_prob=s.log_prob[1:], reference=s.reference[1:], mask=s.mask[1:]) for s in (chosen, rejected)
    ]
    assert float(found.detach()) == pytest.approx(float(loss(*alone)["loss"].detach()), abs=1e-12)


def test_a_pair_with_an_empty_side_has_no_weight():
    chosen, rejected = sides([(4, 0), (3, 5)])
    both = TrajectoryPreference()(chosen, rejected)["loss"]
    alone: Any = [
        PairSide(log_prob=s.log_prob[1:], reference=s.reference[1:], mask=s.mask[1:]) for s in (chosen, rejected)
    ]
    assert float(both.detach()) == pytest.approx(float(TrajectoryPreference()(*alone)["loss"].detach()), abs=1e-12)
    none: Any = [
        PairSide(log_prob=s.log_prob[:1], reference=s.reference[:1], mask=s.mask[:1]) for s in (chosen, rejected)
    ]
    assert float(TrajectoryPreference()(*none)["loss"].detach()) == 0


def one(r, beta=1.0) -> Any:
    """A pair of one decision each with these implicit rewards."""
    return [
        PairSide(log_prob=x[None, None] / beta, reference=torch.zeros(1, 1).to(x), mask=torch.ones(1, 1).bool())
        for x in r
    ]


def test_minus_log_sigmoid_is_a_linear_push_and_an_even_anchor():
    x = torch.linspace(-40, 40, 401, dtype=torch.float64)
    assert torch.allclose(-F.logsigmoid(x), -x / 2 + math.log(2) + log_cosh_half(x), atol=1e-13)
    assert torch.allclose(log_cosh_half(x[180:221]), torch.log(torch.cosh(x[180:221] / 2)), atol=1e-13)
    assert torch.allclose(log_cosh_half(x), log_cosh_half(-x)) and float(log_cosh_half(torch.zeros(1))) == 0


@pytest.mark.parametrize("anchor", ["quadratic", "cosh"])
def test_anchors_by_hand(anchor):
    r = torch.tensor([0.7, -1.3], dtype=torch.float64, requires_grad=True)
    loss = TrajectoryPreference(beta=0.5, proximal=0.4, anchor=anchor)(*one(r, 0.5))["loss"]
    values = r.detach()
    extra = (values.square() / 2).sum() if anchor == "quadratic" else torch.log(torch.cosh(values / 2)).sum()
    expected = float(F.softplus(values[1] - values[0])) + 0.4 * float(extra)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    (found,) = torch.autograd.grad(loss, r)
    slope = values if anchor == "quadratic" else torch.tanh(values / 2) / 2
    push = torch.sigmoid(values[1] - values[0])
    assert found.tolist() == pytest.approx(
        (0.4 * slope + push * torch.tensor([-1.0, 1.0]).double()).tolist(), abs=1e-12
    )


def surrogate(theta, action):
    """The implicit reward of a Dirac flow at theta with w = t²: −(a − θ)²/(2s²) against θ = 0; β = 0.5, s² = 0.04."""
    return 0.5 * (action.square() - (action - theta).square()) / (2 * 0.04)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {100: (0.120, 0.209, 0.060), 1000: (0.884, -2.67, -3.78)}),
        (
            {"proximal": 1.0, "anchor": "cosh"},
            {100: (0.111, 0.199, 0.062), 1000: (0.402, -0.005, -0.507)},
        ),
        (
            {"proximal": 0.1},
            {100: (0.116, 0.205, 0.065), 1000: (0.472, -0.212, -0.802), 20000: (0.473, -0.213, -0.803)},
        ),
    ],
    ids=["without an anchor", "cosh", "quadratic"],
)
def test_without_an_anchor_the_chosen_falls(settings, expected):
    """Chosen 0.2 and rejected 0.1 lie on one side: the margin grows without bound, and past 0.4 the chosen falls."""
    objective = TrajectoryPreference(beta=1.0, **settings)
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    actions = torch.tensor([0.2, 0.1], dtype=torch.float64)
    for step in range(1, 1001):
        loss = objective(*one(surrogate(theta, actions)))["loss"]
        (slope,) = torch.autograd.grad(loss, theta)
        theta = (theta - 0.002 * slope).detach().requires_grad_()
        if step in expected:
            terms = objective(*one(surrogate(theta.detach(), actions)))
            found = (float(theta.detach()), float(terms["chosen_reward"]), float(terms["rejected_reward"]))
            assert found == pytest.approx(expected[step], abs=6e-3, rel=3e-3), step
            assert float(terms["chosen_falls"]) == (expected[step][1] < 0)


def test_swapping_chosen_and_rejected_mirrors_the_rewards():
    chosen, rejected = sides(LENGTHS)
    one_way, other_way = (TrajectoryPreference()(*pair) for pair in ((chosen, rejected), (rejected, chosen)))
    assert float(one_way["margin"]) == pytest.approx(-float(other_way["margin"]))
    assert float(one_way["accuracy"]) == pytest.approx(1 - float(other_way["accuracy"]))


def test_the_sft_anchor_is_the_likelihood_of_the_chosen():
    chosen, rejected = sides([(2, 3), (4, 1)])
    plain = TrajectoryPreference()(chosen, rejected)["loss"]
    anchored = TrajectoryPreference(sft_coef=0.3)(chosen, rejected)["loss"]
    mean = sum(float(-chosen.log_prob[row][chosen.mask[row]].mean().detach()) for row in range(2)) / 2
    assert float((anchored - plain).detach()) == pytest.approx(0.3 * mean, abs=1e-12)


def test_the_sft_anchor_follows_the_label():
    chosen, rejected = sides([(2, 3), (4, 1)])
    means = [
        torch.stack([side.log_prob[row][side.mask[row]].mean() for row in range(2)]).detach()
        for side in (chosen, rejected)
    ]
    label = torch.tensor([0.0, 0.5]).double()
    plain, anchored = (TrajectoryPreference(sft_coef=c)(chosen, rejected, label)["loss"] for c in (0.0, 0.3))
    expected = -(means[1][0] + (means[0][1] + means[1][1]) / 2) / 2
    assert float((anchored - plain).detach()) == pytest.approx(0.3 * float(expected), abs=1e-12)


def test_saturated_pairs_are_counted():
    r = torch.tensor([6.0, 0.0], dtype=torch.float64)
    assert float(TrajectoryPreference(beta=1.0)(*one(r))["saturated"]) == 1
    assert float(TrajectoryPreference(beta=1.0)(*one(r / 2))["saturated"]) == 0


def test_what_makes_no_sense_is_refused():
    wrongs: list[dict[str, Any]] = [{"beta": 0.0}, {"window": 0}, {"sft_coef": -1.0}, {"proximal": math.inf}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrajectoryPreference(**wrong)
