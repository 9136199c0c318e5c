"""Adam for a policy and what is trained with it: learning rates by part, and parts that are frozen."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import nn

from ..backbones.optimization import ClippedGradients


class PolicyAdam(ClippedGradients):
    """Adam with clipped gradients, with a learning rate each for a policy and for what is trained with it.

    A parameter that policy and advantage source share belongs to the policy.

    Args:
        learning_rate: Learning rate of the policy, above 0.
        critic_learning_rate: Learning rate of what is trained with it, above 0; None takes the policy's.
        max_grad_norm: Largest norm of the gradient, above 0; a longer gradient is scaled down to it.
        part_learning_rates: Learning rate of parts of the policy, above 0, by the first names of their parameters
            (``"head"`` is every ``head.…``, ``"log_std"`` the parameter itself); the longest name counts. None gives
            all parts ``learning_rate``.
        frozen_parts: Parts of the policy that do not learn, by the first names of their parameters, such as
            ``("backbone",)``. Their parameters get no gradient, and are the same bits after training; a weight that is
            tied to another part is frozen there too.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        learning_rate: float = 3e-4,
        critic_learning_rate: float | None = None,
        max_grad_norm: float = 0.5,
        part_learning_rates: Mapping[str, float] | None = None,
        frozen_parts: Sequence[str] = (),
    ) -> None:
        super().__init__(learning_rate=learning_rate, max_grad_norm=max_grad_norm)
        if critic_learning_rate is not None and not critic_learning_rate > 0:
            raise ValueError(f"critic_learning_rate {critic_learning_rate}: expected a positive number, or None")
        self.critic_learning_rate = learning_rate if critic_learning_rate is None else critic_learning_rate
        self.part_learning_rates = dict(part_learning_rates or {})
        for part, rate in self.part_learning_rates.items():
            if not rate > 0:
                raise ValueError(f"part_learning_rates: {part} has {rate}, expected a positive number")
        self.frozen_parts = (frozen_parts,) if isinstance(frozen_parts, str) else tuple(frozen_parts)

    def freeze(self, policy: nn.Module) -> list[nn.Parameter]:
        """Let the frozen parts of a policy get no gradient, and return those parameters that did until now.

        Raises:
            ValueError: If a part names no parameter of the policy.
        """
        parts = {part: False for part in self.frozen_parts}
        frozen: list[nn.Parameter] = []
        for name, parameter in policy.named_parameters(remove_duplicate=False):  # tied weights have two names
            part = part_of(name, parts)
            if part is not None:
                parts[part] = True
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    frozen.append(parameter)
        self._require_known("frozen_parts", [part for part, found in parts.items() if not found], policy)
        return frozen

    def _require_known(self, argument: str, unknown: Sequence[str], policy: nn.Module) -> None:
        if unknown:
            known = dict.fromkeys(name.partition(".")[0] for name, _ in policy.named_parameters())
            raise ValueError(
                f"{argument}: {unknown[0]!r} names no parameter of {type(policy).__name__} that another part "
                f"does not take; its parts are {', '.join(known)}"
            )

    def make(self, policy: nn.Module, advantage: nn.Module) -> torch.optim.Adam:
        """Build the optimizer of a policy and of those parameters of its advantage source that learn.

        Raises:
            ValueError: If a part of ``part_learning_rates`` names no parameter of the policy.
        """
        parts: dict[str | None, list[nn.Parameter]] = {None: [], **{part: [] for part in self.part_learning_rates}}
        for name, parameter in policy.named_parameters():
            parts[part_of(name, self.part_learning_rates)].append(parameter)
        unknown = [part for part in self.part_learning_rates if not parts[part]]
        self._require_known("part_learning_rates", unknown, policy)
        rates = {None: self.learning_rate, **self.part_learning_rates}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parts[part] if p.requires_grad], "lr": rate} for part, rate in rates.items()
        ]
        shared = {id(p) for p in policy.parameters()}
        learning = [p for p in advantage.parameters() if p.requires_grad and id(p) not in shared]
        groups.append({"params": learning, "lr": self.critic_learning_rate})
        if not any(group["params"] for group in groups):
            raise ValueError(
                f"no parameter of {type(policy).__name__} or of {type(advantage).__name__} learns: frozen_parts are "
                f"{', '.join(self.frozen_parts) or 'none'}, and the rest is frozen already; leave a part out of them"
            )
        # one kernel for all parameters: for small networks the loop over them costs more than the arithmetic
        return torch.optim.Adam([group for group in groups if group["params"]], eps=1e-5, fused=True)


class Release(lightning.Callback):
    """Callback that lets frozen parameters learn again when a fit ends, with an error too.

    Args:
        frozen: Parameters that were frozen for the fit; the list is emptied.
    """

    def __init__(self, frozen: list[nn.Parameter]) -> None:
        self._frozen = frozen

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Release them at the end of a fit."""
        if stage == "fit":
            self._release()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Release them after an error."""
        self._release()

    def _release(self) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen.clear()


def part_of(name: str, parts: Iterable[str]) -> str | None:
    """Return the longest of the parts that a parameter belongs to, by its name; None if it belongs to none.

    Args:
        name: Name of the parameter.
        parts: First names of parameters, such as ``"backbone"``.
    """
    return max((part for part in parts if name == part or name.startswith(f"{part}.")), key=len, default=None)


__all__ = ["PolicyAdam", "Release", "part_of"]
