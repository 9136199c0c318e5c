"""State values from the hidden state of a policy: a small head that shares the policy's network."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbones.perceptron import tanh_network
from ..core.batch import Observation
from ..core.interfaces import Component, Policy

Activation = Literal["tanh", "relu", "gelu"]
_LAYERS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


class ValueHead(Component):
    """State value V(s): a perceptron on the policy's hidden state, for ``RewardToGo(critic=ValueHead(…))``.

    It reads `Policy.hidden`, and in a minibatch ``Evaluation.hidden``, so that the policy is evaluated once for the
    objective and for the value. The policy is no part of the head: it is attached by `PolicyOptimizer`, and neither
    saved with the head nor counted among its parameters.

    LOOP's critic baseline (arXiv 2502.01600) stops the gradient of the value before the policy: letting it through
    destabilised training. RL4VLA (arXiv 2505.19789) lets it through, with
    ``ValueHead(hidden=[512, 128], activation="gelu", last_std=0.02, stop_gradient=False)``. VLA-RL (arXiv 2505.18719)
    has ``hidden=[1024, 512], activation="relu"`` on a separate copy of the backbone.

    Args:
        width: Width D of the hidden state; None takes that of the policy.
        hidden: Widths of the hidden layers.
        activation: Function between the layers: ``"tanh"``, ``"relu"`` or ``"gelu"``. Weights are orthogonal with
            tanh, and PyTorch's own with the others.
        last_std: Standard deviation of the last layer's weights, which then has no bias, above 0; None initialises it
            as the other layers are, with a bias.
        stop_gradient: Whether the gradient of the value's loss stops before the policy.

    Raises:
        ValueError: If an argument makes no sense.
    """

    scalar = True
    """Its value is one number that is regressed, so `guerdon.ValueLoss` applies."""

    _policy: Policy | None

    def __init__(
        self,
        width: int | None = None,
        hidden: Sequence[int] = (128,),
        activation: Activation = "tanh",
        last_std: float | None = None,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(f"activation {activation!r}: expected one of {', '.join(get_args(Activation))}")
        if (width is not None and width < 1) or any(size < 1 for size in hidden):
            raise ValueError(f"width {width}, hidden {list(hidden)}: expected widths of at least 1")
        if last_std is not None and not last_std > 0:
            raise ValueError(f"last_std {last_std}: expected a positive number, or None")
        self.width, self.hidden, self.activation = width, tuple(hidden), activation
        self.last_std, self.stop_gradient = last_std, stop_gradient
        self.__dict__["_policy"] = None  # no submodule: the policy would come twice in every checkpoint
        if width is not None:
            self.network = self._built(width)

    def _built(self, width: int) -> nn.Sequential:
        if self.activation == "tanh":
            network = tanh_network(width, self.hidden, 1, last_gain=1.0)
        else:
            layers: list[nn.Module] = []
            sizes = [width, *self.hidden]
            for before, size in pairwise(sizes):
                layers += [nn.Linear(before, size), _LAYERS[self.activation]()]
            network = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        if self.last_std is not None:
            last = nn.Linear([width, *self.hidden][-1], 1, bias=False)
            nn.init.normal_(last.weight, std=self.last_std)
            network[-1] = last
        return network

    def attach(self, policy: Policy) -> None:
        """Read the hidden state of a policy from now on, and build the network if its width was not known.

        Raises:
            ValueError: If the head was made for another width.
        """
        size = int(policy.hidden_size)
        if self.width is None:
            self.width = self.init_args["width"] = size
            self.network = self._built(size).to(next(policy.parameters(), torch.empty(0)).device)
        elif self.width != size:
            raise ValueError(
                f"the value head reads hidden states of width {self.width}, and those of {type(policy).__name__} are "
                f"{size} wide: leave width out to take it from the policy, or take the policy that the head was "
                "trained on"
            )
        self.__dict__["_policy"] = policy

    def forward(self, hidden: Float[Tensor, "M D"]) -> Float[Tensor, " M"]:
        """Compute the values of M hidden states, in float32; the gradient stops before them if it should.

        Raises:
            ValueError: If the head is not built, or the hidden states have another width.
        """
        if "network" not in self._modules:
            raise ValueError("the value head is not built yet: give width, or attach(policy) first")
        if hidden.shape[1] != self.width:
            raise ValueError(f"expected hidden states of width {self.width}, got {hidden.shape[1]}: another policy's")
        seen = hidden.detach() if self.stop_gradient else hidden
        with torch.autocast(seen.device.type, enabled=False):
            return self.network(seen.float()).squeeze(1)

    def value(self, observation: Observation) -> Float[Tensor, " M"]:
        """Compute the values of M observations through the policy that is attached.

        Raises:
            ValueError: If no policy is attached.
        """
        policy = self._policy
        if policy is None:
            raise ValueError(
                "the value head reads the hidden state of a policy, and none is attached: PolicyOptimizer attaches "
                "the one that it trains; elsewhere call attach(policy)"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            hidden = policy.hidden(observation)
        return self(hidden)


__all__ = ["Activation", "ValueHead"]
