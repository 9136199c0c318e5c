"""Turns of a token policy as preference pairs, and their training by TRL's ``DPOTrainer``."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput
from trl import DPOConfig, DPOTrainer

import datasets

from ...core.batch import Observation, PreferencePairs, TrajectoryBatch
from ..tokens import TokenPolicy


def turn_dataset(policy: TokenPolicy, pairs: PreferencePairs) -> datasets.Dataset:
    """Make a preference data set of the turns of a token policy at observations that both rows of a pair share.

    A prompt is what the policy's decoder reads at the observation, a completion the tokens of the executed steps of a
    chunk; both are token numbers, never text. Of a pair of trajectories from one initial state the first decisions
    share their observation, later ones only as long as both rows saw the same. Turns of equal tokens are left out, and
    so are ties (label 0.5) and pairs of weight 0. TRL knows no other labels and weights: a label below 0.5 turns a pair
    around, and every turn counts alike.

    The columns are ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``, the tokens in the decoder's vocabulary;
    ``pair``, the number of the pair; and ``chosen_row``, ``chosen_step``, ``rejected_row`` and ``rejected_step``, which
    name the decisions in the pairs' batch. A projected state and frozen features are embeddings, for which the tokens
    hold nothing: `TurnPreferenceTrainer` reads them from the batch.

    Args:
        policy: Policy that made the decisions.
        pairs: Preference pairs.

    Raises:
        ValueError: If no pair has a turn at a shared observation, or the decisions are another policy's.
    """
    batch, found = pairs.batch, _shared(pairs)
    turns = [torch.tensor(numbers, dtype=torch.long) for numbers in zip(*found, strict=True)] if found else []
    if not turns:
        raise ValueError(
            f"none of {len(pairs)} pairs has a turn at an observation that both rows share: expected decisions at the "
            "same state, frames and instruction, such as the first ones of rollouts of one initial state"
        )
    numbers, better, better_step, worse, worse_step = turns
    prompts = policy.decoder.prompt_tokens(
        batch.observe(better, better_step).to(policy.bin_inputs.device), policy.units
    )
    chosen, rejected = (_tokens(policy, batch, *side) for side in ((better, better_step), (worse, worse_step)))
    kept = [place for place in range(len(numbers)) if chosen[place] != rejected[place]]
    if not kept:
        raise ValueError("the turns of every pair are equal: there is nothing to prefer")
    columns: dict[str, list[Any]] = {
        "prompt_ids": prompts,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "pair": numbers.tolist(),
        "chosen_row": better.tolist(),
        "chosen_step": better_step.tolist(),
        "rejected_row": worse.tolist(),
        "rejected_step": worse_step.tolist(),
    }
    return datasets.Dataset.from_dict({name: [values[i] for i in kept] for name, values in columns.items()})


def _shared(pairs: PreferencePairs) -> list[tuple[int, int, int, int, int]]:
    """List (pair, chosen row, its step, rejected row, its step) of decisions at one observation."""
    batch = pairs.batch
    found: list[tuple[int, int, int, int, int]] = []
    columns = (pairs.chosen, pairs.rejected, pairs.label, pairs.weight)
    for number, (better, worse, label, weight) in enumerate(zip(*(part.tolist() for part in columns), strict=True)):
        if label == 0.5 or weight == 0:
            continue
        if label < 0.5:
            better, worse = worse, better
        decisions = [[step for step in batch.decision_step[row].tolist() if step >= 0] for row in (better, worse)]
        for first, second in zip(*decisions, strict=False):
            rows, steps = torch.tensor([better, worse]), torch.tensor([first, second])
            if not _same(batch.observe(rows, steps)):
                break  # from here on the trajectories have gone apart
            found.append((number, better, first, worse, second))
    return found


def _same(two: Observation) -> bool:
    parts = [two.state, *two.frames.values(), *two.features.values()]
    return two.instructions[0] == two.instructions[1] and all(torch.equal(part[0], part[1]) for part in parts)


def _bins(
    policy: TokenPolicy, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]
) -> tuple[Int[Tensor, "M U"], Bool[Tensor, "M U"]]:
    _, decision = batch.at(rows, steps, policy.horizon)
    return policy.chosen(decision.to(policy.bin_inputs.device))


def _tokens(
    policy: TokenPolicy, batch: TrajectoryBatch, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]
) -> list[list[int]]:
    bins, executed = _bins(policy, batch, rows, steps)
    return [
        [policy.bin_tokens[place] for place in chunk[real].tolist()] for chunk, real in zip(bins, executed, strict=True)
    ]


class _TurnConfig(PretrainedConfig):
    model_type = "guerdon_turns"


class _TurnStates(nn.Module):
    """The states of a token policy that predict each token of its turns, in the form of a model's backbone."""

    def __init__(self, policy: TokenPolicy, batch: TrajectoryBatch) -> None:
        super().__init__()
        self.policy, self.batch = policy, batch

    def forward(
        self,
        input_ids: Int[Tensor, "M n"],
        rows: Int[Tensor, " M"],
        steps: Int[Tensor, " M"],
        attention_mask: Tensor | None = None,
        use_cache: bool = False,
    ) -> BaseModelOutput:
        """Compute states (M, 1 + U, D): behind the prompt, which is the first column, and behind each token."""
        del attention_mask, use_cache  # turns are never padded, and nothing is generated
        device = input_ids.device
        observation = self.batch.observe(rows.cpu(), steps.cpu()).to(device)
        states = self.policy.states(observation, input_ids[:, 1:])
        unread = states.new_zeros(len(states), 1, states.shape[2])  # nothing is predicted behind the last token
        return BaseModelOutput(last_hidden_state=torch.cat([states, unread], 1))  # pyright: ignore[reportArgumentType]


class _BinHead:
    """Output head over the bins, at the temperature of the policy."""

    def __init__(self, policy: TokenPolicy) -> None:
        self._policy = policy

    @property
    def weight(self) -> Float[Tensor, "bins D"]:
        return self._policy.bin_outputs / self._policy.temperature

    @property
    def bias(self) -> Float[Tensor, " bins"] | None:
        bias = self._policy.bin_bias
        return None if bias is None else bias / self._policy.temperature


class TurnModel(PreTrainedModel):
    """Token policy in the form of a causal language model whose tokens are bins, for TRL's ``DPOTrainer``.

    A sequence is the prompt, one column of any number, and the bins of a chunk. Prompts, states and features are read
    from the batch by the policy itself, so log-probabilities are those of `TokenPolicy.evaluate`.

    Args:
        policy: Policy that is trained; it is no copy.
        batch: Trajectories that the turns come from.
    """

    config_class = _TurnConfig
    base_model_prefix = "turns"

    def __init__(self, policy: TokenPolicy, batch: TrajectoryBatch) -> None:
        super().__init__(_TurnConfig())
        self.generation_config = GenerationConfig()
        self.turns = _TurnStates(policy, batch)
        self.post_init()

    def init_weights(self) -> None:
        """Leave the weights of the policy as they are."""

    def get_output_embeddings(self) -> Any:
        """Return the output head over the bins."""
        return _BinHead(self.turns.policy)

    def forward(
        self, input_ids: Int[Tensor, "M n"], rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]
    ) -> Float[Tensor, "M n bins"]:
        """Compute the logits of every bin behind every column."""
        head = _BinHead(self.turns.policy)
        states = self.turns(input_ids, rows, steps).last_hidden_state
        return nn.functional.linear(states, head.weight, head.bias)


@dataclass(frozen=True)
class TurnCollator:
    """Collator of the rows of `turn_dataset` into the inputs of a `TurnModel`: chosen turns, then rejected ones."""

    policy: TokenPolicy
    """Policy that made the decisions."""
    batch: TrajectoryBatch
    """Trajectories that the turns come from."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate P rows into 2·P sequences."""
        sides = ("chosen", "rejected")
        rows = torch.tensor([int(example[f"{side}_row"]) for side in sides for example in examples])
        steps = torch.tensor([int(example[f"{side}_step"]) for side in sides for example in examples])
        bins, executed = (part.cpu() for part in _bins(self.policy, self.batch, rows, steps))
        prompt = torch.zeros(len(rows), 1, dtype=torch.long)
        tokens = torch.cat([prompt, bins], 1)
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "completion_mask": torch.cat([prompt, executed.long()], 1),
            "rows": rows,
            "steps": steps,
        }


class TurnPreferenceTrainer(DPOTrainer):
    """TRL's ``DPOTrainer`` for the turns of a `TokenPolicy`, with the log-probabilities of `TokenPolicy.evaluate`.

    The data set is `turn_dataset` of the pairs. The reference is a frozen copy of the policy as it is now. The policy
    is trained in place; save it with ``policy.save_pretrained``.

    Args:
        policy: Policy that is trained, with a temperature above 0 and without ``top_k``.
        pairs: Preference pairs of its rollouts.
        settings: Settings of TRL's trainer, such as ``beta`` and ``learning_rate``.

    Raises:
        ValueError: If the policy has no log-probability that TRL computes, or there is no turn; see `turn_dataset`.
    """

    def __init__(self, policy: TokenPolicy, pairs: PreferencePairs, settings: DPOConfig) -> None:
        if not policy.temperature or policy.top_k is not None:
            raise ValueError(
                f"temperature {policy.temperature}, top_k {policy.top_k}: TRL takes log-probabilities over all bins; "
                "expected a temperature above 0 and no top_k, or take guerdon.PreferenceOptimizer"
            )
        own = copy.copy(settings)
        own.remove_unused_columns = False  # the collator reads the rows and steps of the turns
        own.gradient_checkpointing = own.activation_checkpointing = False  # it keeps no keys and values
        reference = copy.deepcopy(policy).requires_grad_(False)
        super().__init__(
            model=TurnModel(policy, pairs.batch),
            ref_model=TurnModel(reference, pairs.batch),
            args=own,
            data_collator=TurnCollator(policy, pairs.batch),
            train_dataset=turn_dataset(policy, pairs),
            processing_class=_no_text(),
        )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Take turns as they are: they are token numbers already."""
        return dataset


def _no_text() -> PreTrainedTokenizerFast:
    """Make the tokeniser that the trainer wants to know the padding of; turns are never texts."""
    pairs = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=pairs, pad_token="<pad>", eos_token="<pad>")


__all__ = ["TurnCollator", "TurnModel", "TurnPreferenceTrainer", "turn_dataset"]
