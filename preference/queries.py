"""Selection of the pairs to ask about next: disagreement of an ensemble, spread out by k-centre."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import pairwise_distances
from torch import Tensor

Measure = Literal["variance", "entropy", "bald"]
"""Value of asking about a pair; see `disagreement`."""


def preference_probabilities(
    first: Float[Tensor, "K P"], second: Float[Tensor, "K P"], temperature: float | int = 1.0
) -> Float[Tensor, "K P"]:
    """Compute the Bradley–Terry probability that the first segment is better: σ((s_1 − s_2) / temperature).

    Args:
        first: Score of the first segment of each pair by each of K ensemble members.
        second: Score of the second segment.
        temperature: Divisor of the difference, above 0.

    Raises:
        ValueError: If shapes differ or the temperature is not positive.
    """
    if first.shape != second.shape or not temperature > 0:
        raise ValueError(
            f"first {tuple(first.shape)}, second {tuple(second.shape)}, temperature {temperature}: expected one shape "
            "(members, pairs) and a positive temperature"
        )
    return torch.sigmoid((first - second) / temperature)


def disagreement(probability: Float[Tensor, "K P"], measure: Measure = "variance") -> Float[Tensor, " P"]:
    """Compute how much an answer to each pair would tell.

    With p_k the probability of member k, p̄ their mean and h(p) = −p log p − (1 − p) log(1 − p):

    * ``"variance"``: mean of (p_k − p̄)² (Christiano et al. 2017, arXiv 1706.03741, section 2.2.4), at most ¼;
    * ``"entropy"``: h(p̄), high where the ensemble is unsure, whether or not its members agree on that, at most log 2;
    * ``"bald"``: h(p̄) − mean of h(p_k), the mutual information of answer and member (Houlsby et al. 2011, arXiv
      1112.5745), from 0 to log 2: a pair that all members call even has none.

    Args:
        probability: Probability of each of K members that the first segment is better, in [0, 1].
        measure: What is computed.

    Raises:
        ValueError: If there is no member, or a probability is outside [0, 1] or NaN.
    """
    if not len(probability) or not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ValueError(
            f"probability {tuple(probability.shape)}: expected (members, pairs) with at least one member and "
            "every entry in [0, 1]"
        )
    p = probability.detach().double()
    if measure == "variance":
        return p.var(0, correction=0).to(probability.dtype)
    total = _entropy(p.mean(0))
    return (total if measure == "entropy" else (total - _entropy(p).mean(0)).clamp(min=0)).to(probability.dtype)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) + torch.special.entr(1 - p)


def select_queries(
    probability: Float[Tensor, "K P"],
    count: int,
    features: Float[Tensor, "P D"] | None = None,
    answered: Bool[Tensor, " P"] | None = None,
    measure: Measure = "variance",
    pool: int = 10,
    seed: int = 0,
) -> Int[Tensor, " N"]:
    """Select pairs to ask about: the most disputed ones, and among these a spread-out batch (greedy k-centre).

    The ``pool`` · ``count`` unanswered pairs of the highest `disagreement` are candidates. The most disputed one is
    taken first, then again and again the candidate that is furthest (Euclidean) from the closest one taken (Sener &
    Savarese 2018, arXiv 1708.00489, algorithm 1; hybrid sampling of B-Pref, arXiv 2111.03026).

    Args:
        probability: Probability of each of K ensemble members that the first segment of a pair is better.
        count: Number of pairs to select, at least 1.
        features: Features of each pair, such as those of both segments side by side; None takes the most disputed.
        answered: True where a pair has an answer and is not asked again.
        measure: Measure of disagreement.
        pool: Candidates per selected pair, at least 1; 1 takes the most disputed pairs.
        seed: Random seed of the order of pairs that are equally good.

    Returns:
        Different unanswered pairs in the order of selection: ``count`` of them, or all that are left.

    Raises:
        ValueError: If shapes disagree, a number is out of range or a feature is not finite.
    """
    pairs = probability.shape[1]
    if count < 1 or pool < 1:
        raise ValueError(f"count {count}, pool {pool}: expected at least 1 each")
    if features is not None and (len(features) != pairs or not bool(features.isfinite().all())):
        raise ValueError(f"features {tuple(features.shape)}: expected finite numbers ({pairs}, D)")
    open_pairs = _shuffled(pairs, answered, seed)
    value = disagreement(probability, measure).cpu()[open_pairs]
    ranked = open_pairs[torch.argsort(value, descending=True, stable=True)]
    if features is None:
        return ranked[:count]
    candidates = ranked[: pool * count]
    return candidates[_k_centre(features.detach().cpu().double().numpy()[candidates.numpy()], count)]


def random_queries(
    pairs: int, count: int, answered: Bool[Tensor, " P"] | None = None, seed: int = 0
) -> Int[Tensor, " N"]:
    """Select pairs at random without replacement: the control of `select_queries`.

    Args:
        pairs: Number of pairs P.
        count: Number of pairs to select, at least 1.
        answered: True where a pair has an answer and is not asked again.
        seed: Random seed.

    Returns:
        Different unanswered pairs: ``count`` of them, or all that are left.

    Raises:
        ValueError: If shapes disagree or the count is below 1.
    """
    if count < 1:
        raise ValueError(f"count {count}: expected at least 1")
    return _shuffled(pairs, answered, seed)[:count]


def _shuffled(pairs: int, answered: Tensor | None, seed: int) -> Int[Tensor, " N"]:
    """Order the unanswered pairs at random."""
    if answered is not None and tuple(answered.shape) != (pairs,):
        raise ValueError(f"answered {tuple(answered.shape)}: expected ({pairs},), one for each pair")
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    return order if answered is None else order[~answered.cpu()[order]]


def _k_centre(points: Float[np.ndarray, "C D"], count: int) -> Int[Tensor, " N"]:
    """Take the first point, then the one furthest from those taken; at equal distances the earlier one."""
    taken: list[int] = []
    nearest = np.full(len(points), np.inf)
    for _ in range(min(count, len(points))):
        left = np.where(np.isin(np.arange(len(points)), taken), -1.0, nearest)
        taken.append(int(left.argmax()))
        nearest = np.minimum(nearest, pairwise_distances(points, points[taken[-1:]])[:, 0])
    return torch.tensor(taken, dtype=torch.long)


__all__ = ["Measure", "disagreement", "preference_probabilities", "random_queries", "select_queries"]
