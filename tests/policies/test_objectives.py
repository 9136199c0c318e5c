"""Objectives by hand: where the gradient stops, what a chunk's ratio is, and what imitation reduces to."""

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guerdon.core.batch import Advantages, Decision, Evaluation, Observation, TrajectoryBatch
from guerdon.core.interfaces import Minibatch, Policy
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import ClippedSurrogate, WeightedImitation
from guerdon.policies.weights import Exponential, Positive, TopShare


class Told(Policy):
    """Has exactly the log-probabilities it is told, as parameters."""

    horizon = 1

    def __init__(self, log_prob: list, unit_mask: list | None = None):
        super().__init__()
        self.log_prob = nn.Parameter(torch.tensor(log_prob))
        self.mask = torch.ones_like(self.log_prob, dtype=torch.bool) if unit_mask is None else torch.tensor(unit_mask)

    def evaluate(self, observation, decision):
        return Evaluation(log_prob=self.log_prob, unit_mask=self.mask, entropy=self.log_prob.sum(1))


def points(count):
    return Observation(state=torch.zeros(count, 1))


def taken(log_prob):
    old = torch.tensor(log_prob)
    return Decision(chunk=torch.zeros(len(old), 1, 1), executed=torch.ones(len(old)).long(), log_prob=old)


def surrogate(ratios, advantages, **options):
    """Loss and gradient with respect to the log-ratio of each decision."""
    policy = Told([[math.log(r)] for r in ratios])
    weight = torch.ones(len(ratios))
    parts = ClippedSurrogate(**options)(
        policy, points(len(ratios)), taken([[0.0]] * len(ratios)), torch.tensor(advantages), weight
    )
    parts["loss"].backward()
    return parts, policy.log_prob.grad[:, 0]


@pytest.mark.parametrize(
    "ratio, advantage, moves",
    [
        (1.3, 1.0, False),  # already more likely than allowed, and asked for more
        (1.3, -1.0, True),  # too likely, and bad: must come back
        (0.7, -1.0, False),  # already less likely than allowed, and asked for less
        (0.7, 1.0, True),  # too unlikely, and good: must come back
        (1.1, 1.0, True),
        (0.9, -1.0, True),
    ],
)
def test_the_gradient_stops_outside_the_clip_on_the_right_side_only(ratio, advantage, moves):
    parts, gradient = surrogate([ratio], [advantage])
    # inside: d(-ratio · A)/d log ratio = -ratio · A
    assert gradient.item() == pytest.approx(-ratio * advantage if moves else 0.0, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(
        -min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage), rel=1e-5
    )


@pytest.mark.parametrize("ratio, advantage, moves", [(0.82, -1.0, False), (0.85, -1.0, True), (0.82, 1.0, True)])
def test_the_reciprocal_lower_bound_lies_above_the_linear_one(ratio, advantage, moves):
    # 1/1.2 = 0.833; the linear bound is 0.8
    parts, gradient = surrogate([ratio], [advantage], clip_mode="reciprocal")
    assert gradient.item() == pytest.approx(-ratio * advantage if moves else 0.0, rel=1e-5)
    assert surrogate([ratio], [advantage])[1].item() == pytest.approx(-ratio * advantage, rel=1e-5)
    assert parts["loss"].item() == pytest.approx(-advantage * (ratio if moves else 1 / 1.2), rel=1e-5)


@pytest.mark.parametrize("ratio, advantage, moves", [(0.3, -1.0, False), (0.35, -1.0, True), (3.1, 1.0, False)])
def test_a_reciprocal_bound_allows_a_clip_above_one(ratio, advantage, moves):
    gradient = surrogate([ratio], [advantage], clip_low=2.0, clip_high=2.0, clip_mode="reciprocal")[1]
    assert gradient.item() == pytest.approx(-ratio * advantage if moves else 0.0, rel=1e-5)


@pytest.mark.parametrize("unit", ["token", "action", "chunk"])
def test_seven_tokens_of_an_action_do_not_multiply_its_loss(unit):
    """A log-probability that is broadcast over the tokens multiplies the loss by 7, as in RL4VLA's code."""
    policy = Told([[0.0] * 7, [0.0] * 7])
    decision = Decision(chunk=torch.zeros(2, 1, 7), executed=torch.ones(2).long(), log_prob=torch.zeros(2, 7))
    parts = ClippedSurrogate(unit=unit)(policy, points(2), decision, torch.tensor([3.0, 1.0]), torch.ones(2))
    assert parts["loss"].item() == pytest.approx(-2.0)


def test_bounds_may_differ_above_and_below():
    # 1.3 lies inside [0.9, 1.4], 0.85 lies below it: -(1.3 · 1 + 0.9 · -1)/2
    parts, gradient = surrogate([1.3, 0.85], [1.0, -1.0], clip_low=0.1, clip_high=0.4)
    assert parts["loss"].item() == pytest.approx(-(1.3 - 0.9) / 2, rel=1e-5)
    assert gradient.tolist() == pytest.approx([-1.3 / 2, 0.0], rel=1e-5)
    assert parts["clipped"].item() == 0.5


@given(st.integers(1, 4), st.data())
def test_the_ratio_of_a_chunk_is_the_product_over_the_actions_carried_out(horizon, data):
    execute = data.draw(st.integers(1, horizon))
    policy = GaussianPolicy(2, 2, horizon=horizon, execute=execute, hidden=(4,))
    observation = Observation(state=torch.randn(3, 2))
    decision: Any = policy.act(observation)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.05 * torch.randn_like(p)
    now = policy.evaluate(observation, decision).log_prob
    per_action = (now - decision.log_prob).view(3, horizon, 2).sum(2)[:, :execute].exp()
    advantage = torch.tensor([1.0, -2.0, 0.5])
    wide = ClippedSurrogate(clip_low=0.999999, clip_high=1e9)
    parts = wide(policy, observation, decision, advantage, torch.ones(3))
    assert torch.allclose(parts["loss"], -(per_action.prod(1) * advantage).mean(), rtol=1e-4, atol=1e-5)


def test_units_that_were_not_carried_out_count_for_nothing():
    policy = Told([[0.1, 5.0], [0.0, -9.0]], [[True, False], [True, False]])
    parts = ClippedSurrogate()(policy, points(2), taken([[0.0, 0.0]] * 2), torch.ones(2), torch.ones(2))
    parts["loss"].backward()
    assert parts["loss"].item() == pytest.approx(-(math.exp(0.1) + 1) / 2, rel=1e-5)
    assert not policy.log_prob.grad[:, 1].any()


def test_figures_by_hand():
    parts, _ = surrogate([1.5, 1.0], [1.0, 1.0])
    # Schulman's estimator: mean of ratio - 1 - log ratio
    assert parts["kl"].item() == pytest.approx((0.5 - math.log(1.5)) / 2, rel=1e-5)
    assert parts["clipped"].item() == 0.5
    assert parts["ratio_error"].item() == pytest.approx(0.5, rel=1e-5)
    assert parts["surrogate"].item() == parts["loss"].item()


def test_entropy_is_rewarded_with_its_weight():
    parts, _ = surrogate([1.1], [1.0], entropy_weight=0.5)
    assert parts["entropy"].item() == pytest.approx(math.log(1.1), rel=1e-5)
    assert parts["loss"].item() == pytest.approx(-1.1 - 0.5 * math.log(1.1), rel=1e-5)


def test_a_weight_scales_its_decision():
    policy = Told([[0.0], [0.0]])
    parts = ClippedSurrogate()(
        policy, points(2), taken([[0.0]] * 2), torch.tensor([3.0, 5.0]), torch.tensor([1.0, 0.0])
    )
    assert parts["loss"].item() == pytest.approx(-1.5)


def test_logs_without_log_probabilities_are_refused():
    logged = Decision(chunk=torch.zeros(1, 1, 1), executed=torch.ones(1).long())
    with pytest.raises(ValueError, match="these logs have none: use rollouts of a policy, or an imitation objective"):
        ClippedSurrogate()(Told([[0.0]]), points(1), logged, torch.ones(1), torch.ones(1))


# --- imitation ------------------------------------------------------------------------------------------------------


def logged(advantages, weight=None, valid=None, task=None):
    """A row for each task, with a decision at every step."""
    advantages = torch.tensor(advantages)
    rows, steps = advantages.shape
    mask = torch.ones(rows, steps, dtype=torch.bool)
    batch = TrajectoryBatch(
        state=torch.randn(rows, steps + 1, 1, generator=torch.Generator().manual_seed(0)),
        actions=torch.randn(rows, steps, 1, generator=torch.Generator().manual_seed(1)),
        mask=mask,
        weight=mask.float() if weight is None else torch.tensor(weight),
        task=torch.arange(rows) if task is None else torch.tensor(task),
    )
    valid = mask if valid is None else torch.tensor(valid)
    return batch, Advantages(advantages=advantages, returns=advantages, valid=valid)


def imitated(objective, weight, executed=(2, 1, 2)):
    policy = GaussianPolicy(1, 1, horizon=2, execute=1, hidden=())
    observation = Observation(state=torch.tensor([[1.0], [2.0], [3.0]]))
    chunk = torch.tensor([[[1.0], [2.0]], [[3.0], [99.0]], [[5.0], [6.0]]])
    decision = Decision(chunk=chunk, executed=torch.tensor(executed))
    real = torch.arange(2) < torch.tensor(executed)[:, None]
    errors = policy.imitation_loss(observation, chunk, real).detach()
    return objective(policy, observation, decision, torch.zeros(3), torch.tensor(weight)), errors


def test_without_a_weighting_it_is_behaviour_cloning():
    batch, advantages = logged([[5.0, -3.0, 0.0]])
    objective = WeightedImitation()
    assert objective.weights(batch, advantages).tolist() == [[1, 1, 1]]
    parts, errors = imitated(objective, [1.0, 1.0, 1.0])
    assert parts["loss"].item() == pytest.approx(errors.mean().item(), rel=1e-6)
    assert parts["effective_share"].item() == pytest.approx(1.0)


def test_chunks_count_as_much_as_they_weigh():
    parts, errors = imitated(WeightedImitation(), [math.e, 0.0, 1 / math.e])
    factors = torch.tensor([math.e, 0.0, 1 / math.e])
    assert parts["loss"].item() == pytest.approx(((factors * errors).sum() / 3).item(), rel=1e-5)
    # effective sample size (Σw)²/Σw² over 3: (e + 1/e)²/(e² + 1/e²)/3
    share = (math.e + 1 / math.e) ** 2 / (math.e**2 + math.e**-2) / 3
    assert parts["effective_share"].item() == pytest.approx(share, rel=1e-5)
    nothing, _ = imitated(WeightedImitation(), [0.0, 0.0, 0.0])
    assert nothing["loss"].item() == 0 and nothing["effective_share"].item() == 0


def test_weights_are_exponentials_of_the_advantages_times_those_of_the_steps():
    batch, advantages = logged([[2.0, 0.0, -2.0]], weight=[[1.0, 0.5, 1.0]])
    weights = WeightedImitation(Exponential(beta=2.0)).weights(batch, advantages)
    assert weights.tolist()[0] == pytest.approx([math.e, 0.5, 1 / math.e])
    mean = (math.e + 0.5 + 1 / math.e) / 3
    even = WeightedImitation(Exponential(beta=2.0), renormalise=True).weights(batch, advantages)
    assert even.tolist()[0] == pytest.approx([math.e / mean, 0.5 / mean, 1 / math.e / mean])


def test_what_is_unknown_counts_nothing_and_moves_no_statistic():
    known, unknown = [[1.0, -1.0, 3.0]], [[1.0, -1.0, 3.0, math.nan, 1e9]]
    first = WeightedImitation(Exponential(clip=10.0)).weights(*logged(known))
    second = WeightedImitation(Exponential(clip=10.0)).weights(*logged(unknown, valid=[[True] * 3 + [False] * 2]))
    assert second.tolist()[0] == [*first.tolist()[0], 0.0, 0.0]
    nothing = WeightedImitation(Exponential()).weights(*logged(known, valid=[[False] * 3]))
    assert nothing.tolist() == [[0, 0, 0]]


def test_an_advantage_that_counts_as_known_must_be_a_number():
    batch, advantages = logged([[0.0, 1.0], [math.nan, 1.0]])
    with pytest.raises(ValueError, match="decision 0 of episode 1 is nan and counts as known"):
        WeightedImitation(Exponential(beta=1.0)).weights(batch, advantages)


def test_weights_know_the_task_of_a_decision():
    batch, advantages = logged([[1.0, 2.0, 3.0, 4.0], [101.0, 102.0, 103.0, 104.0]])
    weights = WeightedImitation(TopShare(share=0.5)).weights(batch, advantages)
    assert weights.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    same = logged([[1.0, 2.0, 3.0, 4.0], [101.0, 102.0, 103.0, 104.0]], task=[5, 5])
    assert WeightedImitation(TopShare(share=0.5)).weights(*same).tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]


def few(share):
    """Advantages of which the positive ones are that share of a hundred."""
    return logged([[1.0] * round(100 * share) + [-1.0] * round(100 - 100 * share)])


def test_it_is_said_once_when_few_decisions_stand_for_all():
    objective = WeightedImitation(Positive())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for share in (0.1, 0.1, 0.25, 0.1, 0.1):  # never three in a row
            objective.weights(*few(share))
    with pytest.warns(UserWarning, match=r"last 3 batches rest on less than 20% .* now 12.0%.*Weigh more evenly"):
        objective.weights(*few(0.12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            objective.weights(*few(0.05))
        even = WeightedImitation(TopShare(share=0.3))
        for _ in range(5):
            even.weights(*logged([torch.arange(100.0).tolist()]))


# --- units, averages and clips of the published recipes --------------------------------------------------------------


def on_rows(log_ratio, mask, rows, advantage, steps=2, **options):
    """Loss, metrics and gradient of decisions (M, U) that belong to the given rows."""
    policy = Told(log_ratio, mask)
    old = torch.zeros(len(rows), len(log_ratio[0]))
    decision = Decision(
        chunk=torch.zeros(len(rows), steps, 1), executed=torch.ones(len(rows), dtype=torch.long), log_prob=old
    )
    minibatch = Minibatch(
        policy=policy,
        rows=torch.tensor(rows),
        decisions=torch.arange(len(rows)),
        steps=torch.arange(len(rows)),
        observation=points(len(rows)),
        decision=decision,
    )
    objective = ClippedSurrogate(**options)
    parts = objective.on_minibatch(minibatch, torch.tensor(advantage), torch.ones(len(rows)))
    parts["loss"].backward()
    return parts, policy.log_prob.grad


def literal(log_ratio, mask, rows, advantage, steps, unit, average):
    """The same loss by loops, without a clip that acts."""
    by_row: dict[int, list[tuple[float, float]]] = {}
    for m, row in enumerate(rows):
        each = [(x if real else None) for x, real in zip(log_ratio[m], mask[m], strict=True)]
        width = len(each) // steps
        actions = [[x for x in each[h * width : (h + 1) * width] if x is not None] for h in range(steps)]
        if unit == "token":
            sums = [x for x in each if x is not None]
        elif unit == "action":
            sums = [sum(a) for a in actions if a]
        else:
            sums = [sum(x for x in each if x is not None)]
        by_row.setdefault(row, []).extend((s, advantage[m]) for s in sums)
    if unit == "trajectory":
        by_row = {row: [(sum(s for s, _ in found), found[0][1])] for row, found in by_row.items()}
    losses = {row: [-math.exp(s) * a for s, a in found] for row, found in by_row.items()}
    means = [sum(x) / len(x) for x in losses.values() if x]
    if average == "step":
        every = [x for found in losses.values() for x in found]
        return sum(every) / len(every)
    return sum(means) / (len(means) if average == "trajectory" else average)


@given(st.data())
def test_units_and_averages_by_a_literal_loop(data):
    count, steps, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    unit = data.draw(st.sampled_from(["token", "action", "chunk", "trajectory"]))
    average = data.draw(st.sampled_from(["step", "trajectory", 3.0]))
    small = st.floats(-0.25, 0.25, width=32)
    log_ratio = [[data.draw(small) for _ in range(steps * width)] for _ in range(count)]
    # executed steps come first, whole actions at a time
    mask = [
        [h < data.draw(st.just(e)) for h in range(steps) for _ in range(width)]
        for e in data.draw(st.lists(st.integers(1, steps), min_size=count, max_size=count))
    ]
    rows = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    gains = {row: data.draw(small) for row in range(3)}
    advantage = [gains[row] for row in rows]
    parts, _ = on_rows(
        log_ratio, mask, rows, advantage, steps, unit=unit, average=average, clip_low=0.99, clip_high=99.0
    )
    expected = literal(log_ratio, mask, rows, advantage, steps, unit, average)
    assert float(parts["loss"].detach()) == pytest.approx(expected, abs=1e-5)


def test_the_clip_is_of_the_unit():
    """Two tokens whose ratios are both outside, on opposite sides: their product is 1, and inside."""
    log_ratio, mask = [[math.log(1.5), -math.log(1.5)]], [[True, True]]
    _, chunk = on_rows(log_ratio, mask, [0], [1.0])
    _, token = on_rows(log_ratio, mask, [0], [1.0], unit="token")
    assert chunk[0].tolist() == pytest.approx([-1.0, -1.0])
    assert token[0].tolist() == pytest.approx([0.0, -0.5 / 1.5])
    _, action = on_rows(log_ratio, mask, [0], [1.0], unit="action", steps=1)
    assert action is not None and chunk is not None and torch.allclose(action, chunk)


def test_the_ratio_of_a_long_trajectory_leaves_the_clip_where_those_of_its_steps_do_not():
    generator = torch.Generator().manual_seed(0)
    log_ratio = (0.02 * torch.randn(40 * 100, 1, generator=generator)).tolist()
    rows, mask = [i // 100 for i in range(4000)], [[True]] * 4000
    advantage = [1.0 if row % 2 else -1.0 for row in rows]
    by_step, _ = on_rows(log_ratio, mask, rows, advantage, steps=1, unit="action")
    whole, _ = on_rows(log_ratio, mask, rows, advantage, steps=1, unit="trajectory")
    assert float(by_step["clipped"]) == 0
    assert 0.1 < float(whole["clipped"]) < 0.6  # 31 % in expectation: a sum of 100 has a deviation of 0.2
    assert float(by_step["kl"]) == pytest.approx(float(whole["kl"]), rel=0.05)  # of decisions in both


@pytest.mark.parametrize(
    "average, ratio",
    [("step", 0.1), ("trajectory", 1.0), (2, 1.0)],
)
def test_how_much_a_rollout_of_10_weighs_against_one_of_100(average, ratio):
    rows = [0] * 10 + [1] * 100
    _, grad = on_rows([[0.0]] * 110, [[True]] * 110, rows, [1.0] * 110, steps=1, average=average)
    short, long = float(grad[:10].sum()), float(grad[10:].sum())
    assert short / long == pytest.approx(ratio)
    if average != "step":
        assert short == pytest.approx(-0.5)


def test_a_trajectory_has_one_advantage():
    with pytest.raises(ValueError, match=r"advantages that differ by 2.*GroupScore"):
        on_rows([[0.0]] * 2, [[True]] * 2, [0, 0], [1.0, -1.0], steps=1, unit="trajectory")


def test_units_that_are_no_action_dimensions_are_refused():
    with pytest.raises(ValueError, match="3 units for chunks of 2 steps"):
        on_rows([[0.0] * 3], [[True] * 3], [0], [1.0], steps=2, unit="action")


def test_records_of_another_kind_of_policy_are_refused():
    policy = Told([[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"recorded log-probabilities \(1, 2\), got \(1, 1\)"):
        ClippedSurrogate()(policy, points(1), taken([[0.0]]), torch.ones(1), torch.ones(1))


def test_recipes_that_need_whole_rows_say_so():
    assert not ClippedSurrogate().whole_rows and not ClippedSurrogate(unit="token").whole_rows
    assert ClippedSurrogate(average=32).whole_rows and ClippedSurrogate(average="trajectory").whole_rows
    assert ClippedSurrogate(unit="trajectory").whole_rows


@pytest.mark.parametrize("bad", [{"average": -1.0}, {"average": 0}, {"clip_low": -0.1}, {"dual_clip": 0.5}])
def test_recipes_that_do_not_exist_are_refused_at_once(bad):
    with pytest.raises(ValueError, match="expected"):
        ClippedSurrogate(**bad)


def test_the_dual_clip_and_the_reciprocal_bound_reach_the_loss():
    _, bounded = surrogate([8.0], [-1.0], dual_clip=3)
    _, free = surrogate([8.0], [-1.0])
    assert float(bounded) == 0 and float(free) == pytest.approx(8.0)
    parts, grad = surrogate([0.78, 0.82], [-1.0, -1.0], clip_low=0.25, clip_mode="reciprocal")
    assert grad.tolist() == pytest.approx([0.0, 0.41])
    assert float(parts["clipped_negative"]) == 0.5
