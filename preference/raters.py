"""Simulated raters: Bradley–Terry with errors, myopia, ties and skips."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.batch import PreferencePairs
from .answers import Answer, Choice


@dataclass(frozen=True, kw_only=True)
class SimulatedRater:
    """Rater whose answers follow from true rewards (B-Pref: Lee et al. 2021, arXiv 2111.03026, section 3).

    A segment of T steps with rewards r_t has the return Σ r_t and the score Σ γ^(T−1−t) r_t. In this order: a pair is
    skipped if both returns are below ``skip``; it is a tie if the returns differ by less than ``tie``; otherwise the
    first is better with probability σ(β(score_1 − score_2)), and the answer is turned round with probability ε.

    An answer depends on the seed, the rater's and the pair's name only, not on the order of questions.

    Raises:
        ValueError: If a setting is out of range.
    """

    name: str = "simulated"
    """Name of the rater."""
    rationality: float | int = math.inf
    """Inverse temperature β, at least 0; infinite: always the higher score (equal scores toss a coin)."""
    error: float | int = 0.0
    """Probability ε that a choice is turned round, in [0, 1]."""
    discount: float | int = 1.0
    """Myopia γ, in [0, 1]: weight of a step relative to the next one; below 1 late steps count more."""
    tie: float | int = 0.0
    """Returns that differ by less than this are a tie, at least 0."""
    skip: float | int = -math.inf
    """A pair whose returns are both below this is skipped."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.rationality >= 0 or not 0 <= self.error <= 1 or not 0 <= self.discount <= 1 or not self.tie >= 0:
            raise ValueError(
                f"rationality {self.rationality}, error {self.error}, discount {self.discount}, tie {self.tie}: "
                "expected at least 0, a probability, a discount in [0, 1] and a threshold of at least 0"
            )

    def probability(self, first: Float[Tensor, " T"], second: Float[Tensor, " U"]) -> float:
        """Compute the probability that the rater calls the first segment better, if it is neither a tie nor a skip.

        It is (1 − ε) p + ε (1 − p) with p = σ(β(score_1 − score_2)).

        Args:
            first: True reward of each step of the first segment.
            second: True reward of each step of the second segment.
        """
        gap = self._score(first) - self._score(second)
        if math.isinf(self.rationality):
            p = 0.5 if gap == 0 else float(gap > 0)
        else:
            p = float(torch.sigmoid(torch.tensor(self.rationality * gap, dtype=torch.float64)))
        return (1 - self.error) * p + self.error * (1 - p)

    def answer(self, pair: str, first: Float[Tensor, " T"], second: Float[Tensor, " U"]) -> Answer:
        """Answer one pair.

        Args:
            pair: Name of the pair.
            first: True reward of each step of the first segment.
            second: True reward of each step of the second segment.

        Raises:
            ValueError: If a reward is not finite.
        """
        for name, rewards in (("first", first), ("second", second)):
            if not bool(rewards.isfinite().all()):
                raise ValueError(f"pair {pair!r}: rewards of the {name} segment: expected finite numbers in every step")
        one, two = float(first.detach().double().sum()), float(second.detach().double().sum())
        choice: Choice
        if max(one, two) < self.skip:
            choice = "skip"
        elif abs(one - two) < self.tie:
            choice = "tie"
        else:
            digest = hashlib.sha256(f"{self.seed}\0{self.name}\0{pair}".encode()).digest()
            draw = np.random.default_rng(int.from_bytes(digest)).random()
            choice = "first" if draw < self.probability(first, second) else "second"
        return Answer(pair=pair, choice=choice, rater=self.name)

    def _score(self, rewards: Float[Tensor, " T"]) -> float:
        values = rewards.detach().double()
        later = torch.arange(len(values) - 1, -1, -1, dtype=torch.float64, device=values.device)
        return float((float(self.discount) ** later * values).sum())


def answer_pairs(
    rater: SimulatedRater, pairs: PreferencePairs, rewards: Float[Tensor, "B T"], names: Sequence[str]
) -> list[Answer]:
    """Answer every pair of a batch: ``chosen`` is shown first, ``rejected`` second; their labels are not read.

    Args:
        rater: Rater.
        pairs: Pairs of rows.
        rewards: True reward of every step of the batch; what lies in padding does not count.
        names: Name of each pair.

    Raises:
        ValueError: If shapes or the number of names differ, or a real reward is not finite.
    """
    if len(names) != len(pairs) or rewards.shape != pairs.batch.mask.shape:
        raise ValueError(
            f"{len(names)} names, rewards {tuple(rewards.shape)}: expected {len(pairs)} names and rewards "
            f"{tuple(pairs.batch.mask.shape)}"
        )
    steps = pairs.batch.steps.tolist()
    rows = zip(names, pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    return [rater.answer(name, rewards[a, : steps[a]], rewards[b, : steps[b]]) for name, a, b in rows]


__all__ = ["SimulatedRater", "answer_pairs"]
