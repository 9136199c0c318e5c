"""Curricula: probabilities of initial states from the successes of earlier attempts at them."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Mode = Literal["literal", "frontier", "variance"]


def task_probabilities(
    successes: Shaped[Tensor, " N"],
    attempts: Shaped[Tensor, " N"],
    mode: str,
    temperature: float | int = 0.2,
    uniform: float | int = 0.1,
) -> Float[Tensor, " N"]:
    """Compute the probability of each task or initial state from its estimated success rate s.

    s = (successes + 1)/(attempts + 2), the mean of a Beta(1, 1) posterior, so that 1/2 is assumed of what was never
    tried. ``"literal"`` is the rule as printed for VLA-RL (arXiv 2505.18719), p ∝ exp((1/2 − s)/temperature), which
    prefers what fails always. ``"frontier"`` is what its text describes, p ∝ exp(−abs(s − 1/2)/temperature).
    ``"variance"``: p ∝ s(1 − s). The result is (1 − uniform)·p + uniform/N.

    Args:
        successes: Number of successful attempts of each, 0 or more.
        attempts: Number of attempts of each, at least that of the successes.
        mode: ``"literal"``, ``"frontier"`` or ``"variance"``.
        temperature: Temperature of the first two modes, above 0; a lower one is more selective.
        uniform: Share of the probability that is spread evenly, in [0, 1].

    Returns:
        Probabilities (N,), which add up to 1; in the dtype of ``successes`` if that is floating, else float32.

    Raises:
        ValueError: If there is no task, the mode is unknown, or a number is out of range.
    """
    if len(successes) == 0 or successes.shape != attempts.shape:
        raise ValueError(
            f"expected a number of successes and of attempts for at least one task, got {tuple(successes.shape)} and "
            f"{tuple(attempts.shape)}"
        )
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r}: expected {', '.join(get_args(Mode))}")
    if not 0 < temperature < float("inf") or not 0 <= uniform <= 1:
        raise ValueError(
            f"temperature {temperature}, uniform {uniform}: expected a temperature above 0 and a share in [0, 1]"
        )
    kind = successes.dtype if successes.is_floating_point() else torch.float32
    won, tried = successes.double(), attempts.double()
    if not bool(((won >= 0) & (won <= tried) & tried.isfinite()).all()):
        wrong = int((~((won >= 0) & (won <= tried) & tried.isfinite())).nonzero()[0, 0])
        raise ValueError(
            f"task {wrong}: expected 0 ≤ successes ≤ attempts, got {float(won[wrong]):g} of {float(tried[wrong]):g}"
        )
    rate = success_rates(won, tried)
    if mode == "variance":
        weight = rate * (1 - rate)
        share = weight / weight.sum()
    else:
        apart = rate - 0.5
        share = ((-apart if mode == "literal" else -apart.abs()) / temperature).softmax(0)
    return ((1 - uniform) * share + uniform / len(share)).to(kind)


def success_rates(successes: Float[Tensor, " N"], attempts: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Estimate success rates as (successes + 1)/(attempts + 2), the mean of a Beta(1, 1) posterior.

    Args:
        successes: Number of successful attempts of each task or initial state.
        attempts: Number of attempts of each.
    """
    return (successes + 1) / (attempts + 2)


class Curriculum:
    """Curriculum over initial states: how often each is played, from the latest attempts at it.

    Args:
        mode: ``"frontier"``, ``"literal"`` or ``"variance"``; see `task_probabilities`.
        temperature: Temperature of the first two, above 0.
        uniform: Share of the probability that is spread evenly, in [0, 1].
        window: Number of latest attempts at an initial state that count: the policy changes.

    Raises:
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self, mode: Mode = "frontier", temperature: float = 0.2, uniform: float = 0.1, window: int = 20
    ) -> None:
        if window < 1:
            raise ValueError(f"window {window}: expected at least one attempt")
        self.mode, self.temperature, self.uniform, self.window = mode, temperature, uniform, window
        task_probabilities(torch.zeros(1), torch.zeros(1), mode, temperature, uniform)  # checks them
        self._outcomes: dict[str, list[float]] = {}

    def add(self, name: str, outcomes: Sequence[float | int]) -> None:
        """Add the outcomes of attempts at an initial state.

        Args:
            name: Name of the initial state.
            outcomes: Outcome of each attempt, from 0 (failure) to 1 (success).
        """
        self._outcomes[name] = [*self._outcomes.get(name, []), *map(float, outcomes)][-self.window :]

    def probabilities(self, names: Sequence[str]) -> Tensor:
        """Compute the probability of each of several initial states.

        Args:
            names: Names of the initial states.
        """
        successes, attempts = self.counts(names)
        return task_probabilities(successes, attempts, self.mode, self.temperature, self.uniform)

    def counts(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Count the successes and the attempts that are remembered of each initial state.

        Args:
            names: Names of the initial states.
        """
        held = [self._outcomes.get(name, []) for name in names]
        successes = torch.tensor([sum(outcomes) for outcomes in held], dtype=torch.float64)
        return successes, torch.tensor([len(outcomes) for outcomes in held], dtype=torch.float64)

    def state_dict(self) -> dict[str, list[float]]:
        """Return the remembered outcomes."""
        return {name: list(outcomes) for name, outcomes in self._outcomes.items()}

    def load_state_dict(self, state_dict: dict[str, list[float]]) -> None:
        """Restore remembered outcomes."""
        self._outcomes = {name: list(outcomes) for name, outcomes in state_dict.items()}


__all__ = ["Curriculum", "Mode", "success_rates", "task_probabilities"]
