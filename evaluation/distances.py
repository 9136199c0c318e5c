"""Distances between reward functions that do not care about scale or potential shaping.

Two rewards that differ by a positive factor and a potential rank all policies alike. Both distances first remove this
freedom (canonical form). They then compare the rest by the Pearson distance √((1 − ρ)/2): 0 for equivalent rewards, √½
for unrelated ones, 1 for opposite ones. They work on tables; score every transition between sampled states to make one
of a learned reward. Episodes are assumed not to end, as in the papers.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_Table = Float[Tensor, "S A Next"]


def epic_canonical(
    reward: _Table, gamma: float | int, state_weight: Float[Tensor, " W"], action_weight: Float[Tensor, " C"]
) -> _Table:
    """Compute R + γ E[R(s′,A,S′)] − E[R(s,A,S′)] − γ E[R(S,A,S′)].

    See Gleave et al. (2021, arXiv:2006.13900), definition 4.1. S and S′ are drawn independently from ``state_weight``
    and A from ``action_weight``, so the reward is evaluated on transitions that may never happen; `dard_canonical`
    avoids that.

    Args:
        reward: Rewards (S, A, S′).
        gamma: Discount factor per step, in [0, 1].
        state_weight: Probability of each state; sums to 1.
        action_weight: Probability of each action; sums to 1.

    Returns:
        Canonical rewards (S, A, S′) in float64.

    Raises:
        ValueError: If shapes disagree, a number is not finite, or weights are no distribution.
    """
    table, states, actions = _checked(reward, gamma, state_weight, action_weight)
    leaving = torch.einsum("sat,a,t->s", table, actions, states)
    return table + gamma * leaving[None, None, :] - leaving[:, None, None] - gamma * (leaving @ states)


def dard_canonical(
    reward: _Table, gamma: float | int, transition: _Table, action_weight: Float[Tensor, " C"]
) -> _Table:
    """Compute R + E[γ R(s′,A,S″) − R(s,A,S′) − γ R(S′,A,S″)].

    See Wulfe et al. (2022, arXiv:2201.10081), definition 2. S′ follows s and S″ follows s′ under ``transition``, so the
    reward is evaluated close to transitions that can happen.

    Args:
        reward: Rewards (S, A, S′).
        gamma: Discount factor per step, in [0, 1].
        transition: Probability (S, A, S′) of s′ after a in s.
        action_weight: Probability of each action; sums to 1.

    Returns:
        Canonical rewards (S, A, S′) in float64.

    Raises:
        ValueError: If shapes disagree, a number is not finite, or weights are no distribution.
    """
    uniform = torch.full((len(reward),), 1.0 / max(1, len(reward)), dtype=torch.float64)
    table, _, actions = _checked(reward, gamma, uniform, action_weight)
    chance = transition.double()
    total = chance.sum(-1)
    if chance.shape != table.shape or bool((chance < 0).any()) or not torch.allclose(total, torch.ones_like(total)):
        raise ValueError(f"transition: expected probabilities of shape {tuple(table.shape)} that sum to 1 over s′")
    following = torch.einsum("sat,a->st", chance, actions)  # where one step leads when A is drawn
    leaving = torch.einsum("sat,a,sat->s", table, actions, chance)
    # E over S′ after s, A, and S″ after s′: one A for the reward, states drawn apart
    beyond = torch.einsum("xay,a,sx,tay->st", table, actions, following, chance)
    return table + (gamma * leaving[None, :] - leaving[:, None] - gamma * beyond)[:, None, :]


def pearson_distance(x: Tensor, y: Tensor, weight: Tensor | None = None) -> float:
    """Compute √((1 − ρ)/2) of two arrays, with ρ their weighted Pearson correlation.

    Args:
        x: Numbers.
        y: Numbers of the same shape.
        weight: Weight of each entry, at least 0; None weighs all alike.

    Returns:
        A number in [0, 1]; NaN where one array is constant.

    Raises:
        ValueError: If shapes disagree, or the weights are negative or all 0.
    """
    if x.shape != y.shape or (weight is not None and weight.shape != x.shape):
        raise ValueError(f"expected arrays of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    share = torch.ones_like(x, dtype=torch.float64) if weight is None else weight.double()
    if bool((share < 0).any()) or not float(share.sum()) > 0:
        raise ValueError("weight: expected numbers of at least 0 that are not all 0")
    share = share / share.sum()
    left, right = (values.double() - (share * values.double()).sum() for values in (x, y))
    spread = [float((share * part * part).sum()) for part in (left, right)]
    size = [float((share * values.double().square()).sum()) for values in (x, y)]
    # a canonical form that should vanish leaves rounding errors, which correlate with nothing
    if any(s <= 1e-24 * max(z, 1e-300) for s, z in zip(spread, size, strict=True)):
        return math.nan
    correlation = float((share * left * right).sum()) / math.sqrt(spread[0] * spread[1])
    return math.sqrt(max(0.0, 1.0 - correlation) / 2)


def epic_distance(
    first: _Table,
    second: _Table,
    gamma: float | int,
    state_weight: Float[Tensor, " W"],
    action_weight: Float[Tensor, " C"],
) -> float:
    """Compute the Equivalent-Policy Invariant Comparison (EPIC) distance of two rewards; see `epic_canonical`.

    Transitions are weighted by the probability of drawing s, a and s′ independently.

    Args:
        first: Rewards (S, A, S′).
        second: Other rewards (S, A, S′).
        gamma: Discount factor per step, in [0, 1].
        state_weight: Probability of each state; sums to 1.
        action_weight: Probability of each action; sums to 1.

    Returns:
        A number in [0, 1]; NaN where a reward is equivalent to 0.

    Raises:
        ValueError: If shapes disagree, a number is not finite, or weights are no distribution.
    """
    weight = torch.einsum("s,a,t->sat", state_weight.double(), action_weight.double(), state_weight.double())
    forms = [epic_canonical(reward, gamma, state_weight, action_weight) for reward in (first, second)]
    return _distance(forms, (first, second), weight)


def dard_distance(
    first: _Table,
    second: _Table,
    gamma: float | int,
    transition: _Table,
    action_weight: Float[Tensor, " C"],
    state_weight: Float[Tensor, " W"] | None = None,
) -> float:
    """Compute the Dynamics-Aware Reward Distance (DARD) of two rewards; see `dard_canonical`.

    Transitions are weighted by the probability that they happen.

    Args:
        first: Rewards (S, A, S′).
        second: Other rewards (S, A, S′).
        gamma: Discount factor per step, in [0, 1].
        transition: Probability (S, A, S′) of s′ after a in s.
        action_weight: Probability of each action; sums to 1.
        state_weight: Probability of each state that a transition leaves; None weighs all states alike.

    Returns:
        A number in [0, 1]; NaN where a reward is equivalent to 0.

    Raises:
        ValueError: If shapes disagree, a number is not finite, or weights are no distribution.
    """
    states = torch.full((len(first),), 1.0 / len(first)) if state_weight is None else state_weight
    weight = torch.einsum("s,a,sat->sat", states.double(), action_weight.double(), transition.double())
    forms = [dard_canonical(reward, gamma, transition, action_weight) for reward in (first, second)]
    return _distance(forms, (first, second), weight)


def _distance(forms: list[Tensor], rewards: tuple[Tensor, Tensor], weight: Tensor) -> float:
    for form, reward in zip(forms, rewards, strict=True):
        if float(form.abs().max()) <= 1e-10 * float(reward.double().abs().max()):
            return math.nan
    return pearson_distance(forms[0], forms[1], weight)


def _checked(reward: Tensor, gamma: float | int, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if reward.ndim != 3 or reward.shape[0] != reward.shape[2] or 0 in reward.shape:
        raise ValueError(f"reward: expected a table (S, A, S), got {tuple(reward.shape)}")
    if not bool(reward.isfinite().all()):
        raise ValueError("reward: expected finite numbers in every place of the table")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}: expected 0 … 1")
    for name, part, size in (("state_weight", states, len(reward)), ("action_weight", actions, reward.shape[1])):
        if part.shape != (size,) or bool((part < 0).any()) or abs(float(part.sum()) - 1) > 1e-6:
            raise ValueError(f"{name}: expected {size} probabilities that sum to 1, got {tuple(part.shape)}")
    return reward.double(), states.double(), actions.double()
