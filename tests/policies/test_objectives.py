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
from guerdon.core.interfaces import Policy
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
