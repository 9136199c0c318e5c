"""A policy whose actions are tokens of an autoregressive model."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..backbones.decoder import Decoder
from ..backbones.perceptron import Inputs
from ..core.batch import Decision, Evaluation, Observation
from ..core.interfaces import Policy
from ..core.sizes import known_features, require_sizes
from .action_bins import ActionBins
from .distributions import BinnedActions


class TokenPolicy(Policy):
    """Autoregressive model that writes a chunk of H actions as H·A tokens, one for each dimension of each step.

    An action is the model's turn of a conversation (VLA-RL, arXiv 2505.18719, §3): the prompt asks for the instruction,
    perhaps with pictures, the state and frozen features follow as one projected embedding each, then the tokens of the
    action in the order (step, dimension). All dimensions share the same bins of the vocabulary (RT-2, OpenVLA); their
    rows of the input embedding and of the output head are copies that are trained, so that a pretrained model starts
    from its own logits, restricted to the bins.

    A unit of the log-probability is a token, H·A in all, each given the observation and the earlier tokens; those of
    steps that were not executed are masked. Samples, log-probabilities and entropies come from one distribution,
    softmax(logits/temperature) over the ``top_k`` likeliest bins. A recorded token that has left the top k since is
    evaluated as one more of them (see `guerdon.policies.distributions.BinnedActions`): the log-probability stays
    finite, and is too high, as the true one is −∞.

    Args:
        decoder: Autoregressive backbone.
        state_size: Width S of the state; 0 reads no state, None takes it from the data.
        action_size: Width A of an action; None takes it from the data.
        horizon: Number H of steps in a chunk.
        execute: Number of steps executed before the next decision, 1 … H.
        bins: Bins of an action dimension; None takes 256 from −1 to 1.
        temperature: Divisor of the logits wherever a probability is computed; 0 acts deterministically only.
        top_k: Number of likeliest bins that can be drawn; None allows all.
        feature_sizes: Width of every frozen feature that is read, by its name ``encoder/camera``; a width of None is
            taken from the data.

    Raises:
        ValueError: If an argument makes no sense, or the vocabulary has no room for the bins.
    """

    def __init__(
        self,
        decoder: Decoder,
        state_size: int | None = None,
        action_size: int | None = None,
        horizon: int = 1,
        execute: int = 1,
        bins: ActionBins | None = None,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        feature_sizes: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__()
        self.bins = ActionBins() if bins is None else bins
        if not 1 <= execute <= horizon:
            raise ValueError(f"expected 1 <= execute <= horizon, got execute={execute}, horizon={horizon}")
        if action_size is not None and action_size < 1:
            raise ValueError(f"action_size {action_size}: expected at least one action dimension")
        if not 0 <= temperature < math.inf or (top_k is not None and not 1 <= top_k <= self.bins.bins):
            raise ValueError(
                f"temperature {temperature}, top_k {top_k}: expected a temperature of at least 0, and between 1 and "
                f"{self.bins.bins} bins, or None"
            )
        self.decoder, self.state_size, self.action_size = decoder, state_size, action_size
        self.horizon, self.execute, self.temperature, self.top_k = horizon, execute, temperature, top_k
        features = known_features(feature_sizes)
        if state_size is None or action_size is None or features is None:
            return
        self.bins.require_dimensions(action_size)
        self.units = horizon * action_size
        """U, number of tokens of a chunk."""
        self._parts = [size for size in (state_size, *features.values()) if size]
        self.inputs = Inputs(state_size, features) if self._parts else None
        rows = decoder.reserve(self.bins.bins)
        self.bin_tokens = rows.tokens
        """Token number of each bin in the decoder's vocabulary."""
        self.bin_inputs, self.bin_outputs = nn.Parameter(rows.inputs.clone()), nn.Parameter(rows.outputs.clone())
        self.bin_bias = None if rows.bias is None else nn.Parameter(rows.bias.clone())
        self.projections = nn.ModuleList(nn.Linear(size, decoder.width) for size in self._parts)
        size = float(rows.inputs.square().mean().sqrt())
        for part in self.projections:
            assert isinstance(part, nn.Linear)
            nn.init.normal_(part.weight, std=size * part.in_features**-0.5)  # as large as the model's own embeddings
            nn.init.zeros_(part.bias)

    def requires_grad_(self, requires_grad: bool = True) -> "TokenPolicy":
        """Freeze or unfreeze the policy; published weights of its decoder stay frozen."""
        super().requires_grad_(requires_grad)
        self.decoder.requires_grad_(requires_grad)
        return self

    @property
    def hidden_size(self) -> int:
        """Width D of ``hidden``."""
        return self.decoder.width

    def hidden(self, observation: Observation) -> Float[Tensor, "M D"]:
        """Compute the state of the last layer that predicts the first token of the action, for a value head."""
        none = torch.zeros(len(observation.state), 0, dtype=torch.long, device=observation.state.device)
        return self.states(observation, none)[:, 0]

    def logits(self, hidden: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape bins"]:
        """Compute the logits of the bins, not divided by the temperature."""
        with self._own_precision():
            return nn.functional.linear(hidden, self.bin_outputs, self.bin_bias)

    @torch.no_grad()
    def act(
        self, observation: Observation, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> Decision:
        """Sample a chunk, or take the likeliest bin at every token; random numbers are drawn on the generator's device.

        ``extras["tokens"]`` (M, U) are the bins. Without a temperature there is no log-probability.

        Raises:
            ValueError: If a sample is asked for at temperature 0, or a logit is not finite; see also ``Decoder.read``.
        """
        if not deterministic:
            self._require_likelihood("sample")
        if not len(observation):
            return self._no_decision()
        tokens: list[Tensor] = []
        log_probs: list[Tensor] = []
        with self._own_precision():
            soft = self._soft(observation)
            prefix = self.decoder.read(observation, soft.shape[1] + self.units - 1)
            read = soft
            for _ in range(self.units):
                logits = self.logits(self.decoder.extend(prefix, read)[:, -1])
                _require_finite(logits)
                at = self._distribution(logits)
                tokens.append(at.mode() if deterministic else at.sample(generator))
                if self.temperature:
                    log_probs.append(at.log_prob(tokens[-1]))
                read = self.bin_inputs[tokens[-1]][:, None]
        bins = torch.stack(tokens, 1)
        log_prob = torch.stack(log_probs, 1) if log_probs else None
        if log_probs and self.decoder.dtype != torch.float32:  # see `evaluate`: only its own pass rounds like it
            log_prob = self._distribution(self.logits(self.states(observation, bins))).log_prob(bins)
        executed = torch.full((len(bins),), self.execute, device=bins.device)
        return Decision(chunk=self._chunk(bins), executed=executed, log_prob=log_prob, extras={"tokens": bins})

    def evaluate(self, observation: Observation, decision: Decision) -> Evaluation:
        """Compute the log-probability of every token of earlier chunks, in one pass over all tokens.

        The tokens are those that were recorded, or the nearest bins of the chunk where none were. ``hidden`` is the
        state of the last layer that predicts the first token. ``entropy`` is the sum over executed tokens of the
        entropy given the tokens before: an unbiased estimate of the entropy of the chunk.

        Raises:
            ValueError: If the temperature is 0, or the chunk or its tokens are another policy's.
        """
        self._require_likelihood("likelihood")
        bins, unit_mask = self.chosen(decision)
        hidden = self.states(observation, bins)
        at = self._distribution(self.logits(hidden))
        return Evaluation(
            log_prob=at.log_prob(bins),
            unit_mask=unit_mask,
            entropy=at.entropy().masked_fill(~unit_mask, 0.0).sum(1),
            hidden=hidden[:, 0],
        )

    def chosen(self, decision: Decision) -> tuple[Int[Tensor, "M U"], Bool[Tensor, "M U"]]:
        """Return the bins of earlier chunks and a mask of those whose steps were executed.

        The bins are those that were recorded, or the nearest ones of the chunk where none were.

        Raises:
            ValueError: If the chunk or its tokens are another policy's.
        """
        self._check(decision.chunk)
        executed = torch.arange(self.horizon, device=decision.executed.device)[None] < decision.executed[:, None]
        unit_mask = executed[..., None].expand(-1, -1, self.units // self.horizon).flatten(1)
        return self._recorded(decision, executed), unit_mask

    def imitation_loss(
        self, observation: Observation, chunk: Float[Tensor, "M H A"], chunk_mask: Bool[Tensor, "M H"]
    ) -> Float[Tensor, " M"]:
        """Compute the cross-entropy of the logged actions' bins in nats, summed over dimensions, mean over real steps.

        It is that of all bins at temperature 1, whatever is used for acting.

        Raises:
            ValueError: If the chunks are of another shape, or a logged action is NaN or outside of the bins.
        """
        self._check(chunk)
        bins = self.bins.nearest(chunk, chunk_mask)
        tokens = bins.flatten(1)
        log_prob = BinnedActions(self.logits(self.states(observation, tokens))).log_prob(tokens)
        step = log_prob.view(chunk.shape).sum(2).masked_fill(~chunk_mask, 0.0)
        return -step.sum(1) / chunk_mask.sum(1).clamp(min=1)

    def states(self, observation: Observation, bins: Int[Tensor, "M n"]) -> Float[Tensor, "M N D"]:
        """Compute the states that predict each of n tokens, given those before; the first alone if there are none.

        Args:
            observation: M observations.
            bins: Bins of the first n tokens of a chunk at each.
        """
        with self._own_precision():
            if not len(observation):
                return self.bin_inputs.new_zeros(0, max(bins.shape[1], 1), self.decoder.width)
            soft = self._soft(observation)
            prefix = self.decoder.read(observation, soft.shape[1] + self.units - 1)
            embeddings = torch.cat([soft, self.bin_inputs[bins[:, :-1]]], 1)
            return self.decoder.extend(prefix, embeddings)[:, soft.shape[1] :]

    def _soft(self, observation: Observation) -> Float[Tensor, "M n D"]:
        """Project the state and every feature to an embedding each."""
        if self.inputs is None:
            return self.bin_inputs.new_zeros(len(observation.state), 0, self.decoder.width)
        parts = self.inputs(observation).split(self._parts, 1)
        return torch.stack([project(part) for project, part in zip(self.projections, parts, strict=True)], 1)

    def _no_decision(self) -> Decision:
        """Return the decisions at no observation."""
        self._own_precision()
        bins = torch.zeros(0, self.units, dtype=torch.long, device=self.bin_inputs.device)
        return Decision(
            chunk=self._chunk(bins),
            executed=bins.new_zeros(0),
            log_prob=self.bin_inputs.new_zeros(0, self.units) if self.temperature else None,
            extras={"tokens": bins},
        )

    def _chunk(self, bins: Int[Tensor, "M U"]) -> Float[Tensor, "M H A"]:
        return self.bins.centres(bins.unflatten(1, (self.horizon, -1)))

    def _distribution(self, logits: Float[Tensor, "*units bins"]) -> BinnedActions:
        return BinnedActions(logits, self.temperature, self.top_k)

    def _own_precision(self) -> torch.autocast:
        if "projections" not in self._modules:
            require_sizes(self)
        # lower precision while learning than while acting would move every ratio of probabilities away from 1
        return torch.autocast(self.bin_inputs.device.type, enabled=False)

    def _recorded(self, decision: Decision, executed: Bool[Tensor, "M H"]) -> Int[Tensor, "M U"]:
        tokens = decision.extras.get("tokens")
        if tokens is None:
            return self.bins.nearest(decision.chunk, executed).flatten(1)
        shape = (len(decision.chunk), self.units)
        if tuple(tokens.shape) != shape or bool(((tokens < 0) | (tokens >= self.bins.bins)).any()):
            raise ValueError(
                f"expected recorded tokens of shape {shape} below {self.bins.bins}, got shape {tuple(tokens.shape)} up "
                f"to {int(tokens.max()) if tokens.numel() else 'nothing'}: they are another policy's; leave them out "
                "to take the nearest bins of the chunks"
            )
        return tokens

    def _require_likelihood(self, what: str) -> None:
        if not self.temperature:
            raise ValueError(
                f"temperature 0 has no {what}: expected a temperature above 0 to sample or learn from samples, or "
                "deterministic acting"
            )

    def _check(self, chunk: Tensor) -> None:
        if "projections" not in self._modules:
            require_sizes(self)
        if tuple(chunk.shape[1:]) != (self.horizon, self.action_size):
            got = tuple(chunk.shape[1:])
            raise ValueError(
                f"expected chunks of {self.horizon} steps, {self.action_size} dimensions each, got {got}: the chunks "
                "are another policy's, or another robot's"
            )


def _require_finite(logits: Float[Tensor, "M bins"]) -> None:
    """Refuse logits that are not finite; NaN has no likeliest bin, and no sample."""
    if not bool(logits.isfinite().all()):
        row = int((~logits.isfinite().all(1)).nonzero()[0])
        raise ValueError(
            f"expected finite logits, got NaN or infinity at observation {row} of {len(logits)}: the policy diverged, "
            "or its input holds numbers that are not finite"
        )


__all__ = ["TokenPolicy"]
