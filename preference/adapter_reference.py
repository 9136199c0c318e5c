"""Reference without low-rank updates; apart from the other references as peft imports slowly."""

from jaxtyping import Float
from torch import Tensor

from ..backbones.lora import adapter_layers, without_adapters
from ..core.batch import Decision, Observation
from ..core.interfaces import Policy
from .references import LogProb, Reference


class AdapterReference(Reference):
    """Reference that is the trained policy without its low-rank updates (LoRA).

    It needs no second copy of a large model. It is the policy before any update: the initial one of all iterations,
    unless the updates are merged between them. Everything that learns must be a low-rank update; else the reference
    would move with the policy.
    """

    def attach(self, policy: Policy) -> None:
        """Check that only low-rank updates learn.

        Raises:
            ValueError: If the policy has none, or something else learns too.
        """
        layers = adapter_layers(policy)
        if not layers:
            raise ValueError(
                f"{type(policy).__name__} has no low-rank updates to leave out: set lora of its backbone, or use "
                "FrozenReference or RecordedReference"
            )
        adapted = {id(p) for layer in layers for p in layer.parameters()}
        others = [name for name, p in policy.named_parameters() if p.requires_grad and id(p) not in adapted]
        if others:
            raise ValueError(
                f"{others[0]!r} learns and is no low-rank update, so it would move the reference too: freeze it with "
                "frozen_parts of PolicyAdam, or use FrozenReference or RecordedReference"
            )

    def log_prob(
        self, policy: Policy, observation: Observation, decision: Decision, log_prob: LogProb
    ) -> Float[Tensor, " M"]:
        """Compute the log-probability of M decisions under the policy without its updates."""
        with without_adapters(policy):
            return log_prob(policy, observation, decision)


__all__ = ["AdapterReference"]
