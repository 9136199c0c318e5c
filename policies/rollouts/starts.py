"""Probabilities of the initial states of rollouts that are cut after a number of steps, by a curriculum."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...core.batch import End
from ...envs.task import Context
from ..loops.curriculum import Curriculum, success_rates
from .groups import context_name
from .pieces import Piece


class CurriculumStarts:
    """Draws of initial states by a curriculum (VLA-RL, arXiv 2505.18719), and what is remembered between rollouts.

    Each environment holds one task, so the share of each task in the steps is fixed, and probabilities are those of the
    initial states of one task among each other. Every finished episode is an attempt at its initial state.

    Args:
        curriculum: Probabilities from the latest attempts; it remembers them.
        contexts: Initial states of all tasks.
    """

    def __init__(self, curriculum: Curriculum, contexts: Sequence[Context]) -> None:
        self.curriculum, self.contexts = curriculum, list(contexts)
        self._names = [context_name(context) for context in self.contexts]
        self._of: dict[str, list[int]] = {}
        for place, context in enumerate(self.contexts):
            self._of.setdefault(context.task, []).append(place)

    def weights(self) -> list[float]:
        """Compute the probability of each initial state among those of its task."""
        found = [0.0] * len(self.contexts)
        for places in self._of.values():
            chances = self.curriculum.probabilities([self._names[place] for place in places]).tolist()
            for place, chance in zip(places, chances, strict=True):
                found[place] = chance
        return found

    def add(self, pieces: Sequence[Piece]) -> None:
        """Remember the outcomes of the episodes that ended.

        Args:
            pieces: Pieces of a rollout; those that go on are left out.
        """
        for piece in pieces:
            if piece.end != End.CUT:
                self.curriculum.add(context_name(piece.context), [float(any(piece.success))])

    def metrics(self) -> dict[str, float]:
        """Compute metrics by name.

        Returns:
            ``curriculum_success``: mean estimated success rate of the initial states. ``curriculum_drawn_success``: the
            same, weighted by the probabilities. ``curriculum_tried``: share of the initial states with an attempt.
            ``curriculum_spread``: effective number of initial states, 1/Σp², over their number, in (0, 1]. Of several
            tasks also ``curriculum_success/TASK`` of each.
        """
        successes, attempts = self.curriculum.counts(self._names)
        rate = success_rates(successes, attempts)
        weight = torch.tensor(self.weights(), dtype=torch.float64) / len(self._of)
        found = {
            "curriculum_success": float(rate.mean()),
            "curriculum_drawn_success": float((weight * rate).sum()),
            "curriculum_tried": float((attempts > 0).double().mean()),
            "curriculum_spread": float(1 / weight.square().sum() / len(weight)),
        }
        if len(self._of) > 1:
            found |= {f"curriculum_success/{task}": float(rate[places].mean()) for task, places in self._of.items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered outcomes."""
        return self.curriculum.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore remembered outcomes."""
        self.curriculum.load_state_dict(dict(state_dict))


__all__ = ["CurriculumStarts"]
