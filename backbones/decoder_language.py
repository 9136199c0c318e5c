"""A pretrained language model as an autoregressive backbone, frozen or with LoRA."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..core.decisions import Observation
from .decoder import QUESTION, BinRows, Decoder, Prefix, free_tokens, read_behind, require_no_dropout
from .frozen_weights import freeze_or_train, save_trained_only
from .lora import LoRA
from .published import PublishedKind, open_published
from .revision import weights_revision
from .vlm_loading import freeze

_LANGUAGE_MODEL = PublishedKind(
    model=AutoModelForCausalLM,
    processor=AutoTokenizer,
    types=MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    name="language model",
    lacks="write text",
    expected="one that transformers opens with AutoModelForCausalLM, such as HuggingFaceTB/SmolLM2-135M-Instruct",
)


class LanguageDecoder(Decoder):
    """Text model that transformers opens for causal language modelling, whose turn of the conversation is the action.

    The prompt is a question about the instruction in the checkpoint's chat template, or the ``In: … Out:`` of OpenVLA
    where it has none. Observations enter as embeddings behind it. An instruction that occurs several times in a batch
    is read once.

    The published weights are frozen, run without dropout and stay out of saved files, which hold name, revision and a
    hash of them. With ``lora`` low-rank updates are trained, and only these are saved. Only safetensors are opened,
    no code that comes with a checkpoint is run, and nothing is downloaded unless asked.

    Args:
        name: A folder, or a repository on the Hugging Face hub.
        revision: Commit, branch or tag of that repository; saved as the commit.
        fingerprint: Hash of the weights that must be met (the attribute of an earlier load); None takes any.
        download: Fetch a repository that is not in the local cache yet. Not saved.
        dtype: Number type of the frozen weights; what is trained is float32 always. In bfloat16 passes of another
            length or batch round differently, so that a ratio of probabilities starts near 1, not at 1.
        lora: Low-rank updates, without dropout; None trains nothing of the model.
        prompt: Question, with ``{instruction}`` where the instruction goes.
        max_tokens: Length of the context in tokens; None takes the model's own limit.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it lacks a part.
        ValueError: If the checkpoint is no such model, holds other weights than ``fingerprint``, or an argument makes
            no sense.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        fingerprint: str | None = None,
        download: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        lora: LoRA | None = None,
        prompt: str = QUESTION,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if "{instruction}" not in prompt:
            raise ValueError(f"prompt {prompt!r}: expected {{instruction}} in it, where the instruction goes")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}: expected at least 1, or None for the model's own limit")
        self.name, self.prompt = name, prompt
        number = torch.float32 if dtype == "float32" else torch.bfloat16
        self.model, self.tokeniser, commit = open_published(name, revision, download, number, _LANGUAGE_MODEL)
        self.fingerprint = weights_revision(self.model)
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise ValueError(f"{name} holds weights {self.fingerprint}, expected {fingerprint}: these are others")
        self.init_args |= {"revision": commit, "fingerprint": self.fingerprint, "download": False}
        freeze(self.model)
        self.width = int(self.model.config.hidden_size)
        limit = int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)
        self.max_tokens = limit if max_tokens is None else min(limit, max_tokens)
        _require_one_width(self.model, self.width, name)
        require_linear_head(self.model, name)
        if lora is not None:
            lora.add_to(self.model.base_model)
        require_no_dropout(self.model)
        self.trained = frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)
        """Names of the weights of the low-rank updates."""
        save_trained_only(self)
        self._bins: frozenset[int] = frozenset()
        added = {*self.tokeniser.get_added_vocab(), *self.tokeniser.all_special_tokens}
        self._special = sorted(added, key=len)
        self._read: dict[str, list[int]] = {}
        self.eval()

    def requires_grad_(self, requires_grad: bool = True) -> "LanguageDecoder":
        """Let the low-rank updates require a gradient or not; the published weights never do."""
        freeze_or_train(self, requires_grad)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the frozen weights."""
        return self.model.dtype

    def reserve(self, bins: int) -> BinRows:
        """Reserve rows of the vocabulary for bins, see `guerdon.Decoder`."""
        return reserved_rows(self, self.model, self.tokeniser, bins, set(self._tokens_of("")))

    def hold(self, tokens: tuple[int, ...]) -> None:
        """Refuse instructions that use one of these tokens from now on, beside those held before."""
        self._bins |= frozenset(tokens)
        self._read.clear()

    def read(self, observation: Observation, room: int) -> Prefix:
        """Read the prompt of every distinct instruction."""
        distinct = list(dict.fromkeys(observation.instructions))
        tokens = [self._prompt_tokens(instruction, room) for instruction in distinct]
        embedding = self.model.get_input_embeddings()
        device = embedding.weight.device
        length = max(len(row) for row in tokens)
        padded = torch.tensor([[0] * (length - len(row)) + row for row in tokens], device=device)
        before = torch.tensor([length - len(row) for row in tokens], device=device)
        mask = torch.arange(length, device=device) >= before[:, None]
        cache = DynamicCache()
        if length > 1:
            positions = (torch.arange(length, device=device) - before[:, None]).clamp(min=0)
            self.model.base_model(
                input_ids=padded[:, :-1],
                attention_mask=mask[:, :-1].long(),
                position_ids=positions[:, :-1],
                past_key_values=cache,
                use_cache=True,
            )
        place = {instruction: number for number, instruction in enumerate(distinct)}
        rows = torch.tensor([place[instruction] for instruction in observation.instructions], device=device)
        if len(rows) != len(distinct) or len(distinct) > 1:
            cache.batch_select_indices(rows)
        return Prefix(
            cache=cache,
            pending=embedding(padded[:, -1:])[rows],
            positions=(length - 1 - before)[rows],
            mask=mask[rows, :-1] if bool(before.any()) else None,
        )

    def prompt_tokens(self, observation: Observation, room: int) -> list[list[int]]:
        """Return the token numbers of the prompts that ``read`` reads."""
        return [list(self._prompt_tokens(instruction, room)) for instruction in observation.instructions]

    def extend(self, prefix: Prefix, embeddings: Float[Tensor, "M n D"]) -> Float[Tensor, "M N D"]:
        """Read n embeddings behind every prompt."""
        return read_behind(self.model.base_model, prefix, embeddings)

    def _prompt_tokens(self, instruction: str, room: int) -> list[int]:
        if instruction not in self._read:
            require_no_own_tokens(instruction, self._special, self.name)
            tokens = self._tokens_of(instruction)
            require_no_bins(tokens, self._bins, self.tokeniser, instruction, self.name)
            self._read[instruction] = tokens
        tokens = self._read[instruction]
        require_room(len(tokens), room, self.max_tokens, instruction, self.name)
        return tokens

    def _tokens_of(self, instruction: str) -> list[int]:
        text = self.prompt.replace("{instruction}", instruction)
        if not self.tokeniser.chat_template:
            return list(self.tokeniser(f"In: {text}\nOut:", verbose=False)["input_ids"])
        turn = [{"role": "user", "content": text}]
        whole = str(self.tokeniser.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        return list(self.tokeniser(whole, add_special_tokens=False, verbose=False)["input_ids"])


def reserved_rows(decoder: Any, model: Any, tokeniser: Any, bins: int, taken: set[int]) -> BinRows:
    """Choose the rows of a published model that stand for bins, and hold their tokens.

    Args:
        decoder: Decoder with ``name`` and ``hold``.
        model: Model with an input embedding and an output head.
        tokeniser: Tokeniser of the model.
        bins: Number of bins.
        taken: Tokens of the prompt.

    Raises:
        ValueError: If the vocabulary has no room for them.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tokens = free_tokens(len(head.weight), tokeniser, taken, bins, decoder.name)
    decoder.hold(tuple(tokens))
    index = torch.tensor(tokens, device=embedding.weight.device)
    with torch.no_grad():
        return BinRows(
            tokens=tuple(tokens),
            inputs=embedding(index).float(),  # the module's own pass: some models scale their embeddings in it
            outputs=head.weight[index].float(),
            bias=None if head.bias is None else head.bias[index].float(),
        )


def _require_one_width(model: Any, width: int, name: str) -> None:
    embedding, head = model.get_input_embeddings().weight.shape[1], model.get_output_embeddings().weight.shape[1]
    if not embedding == head == width:
        raise ValueError(
            f"{name} has states of width {width}, input embeddings of width {embedding} and an output head of width "
            f"{head}: expected one width for all, as rows of both are embeddings and logits of bins; take another "
            "model, such as HuggingFaceTB/SmolLM2-135M-Instruct (OPT-350M projects its embeddings)"
        )


@torch.no_grad()
def require_linear_head(model: Any, name: str) -> None:
    """Make sure that logits are a linear map of the last state, so that rows of the head give the model's own logits.

    Raises:
        ValueError: If they are capped or scaled, as Gemma 2 and Granite do.
    """
    tokens = torch.arange(1, 9, device=model.get_input_embeddings().weight.device)[None]  # 0 may be padding
    logits = model(input_ids=tokens, use_cache=False).logits.float()
    states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    if not torch.allclose(model.get_output_embeddings()(states).float(), logits, atol=1e-2, rtol=1e-2):
        raise ValueError(
            f"{name} caps or scales the logits of its head: rows of the head are not the logits of bins; take a model "
            "whose logits are a linear map of the last state, such as Llama, Qwen or SmolLM2"
        )


def require_no_own_tokens(instruction: str, special: list[str], name: str) -> None:
    """Refuse an instruction with a token that ends a turn or the like.

    Raises:
        ValueError: If it holds one.
    """
    if held := [token for token in special if token and token in instruction]:
        raise ValueError(f"instruction {instruction!r} holds {held[-1]!r}, a token of {name} with a meaning of its own")


def require_no_bins(tokens: list[int], bins: frozenset[int], tokeniser: Any, instruction: str, name: str) -> None:
    """Refuse an instruction that uses a token that stands for a bin.

    Raises:
        ValueError: If it does.
    """
    if held := [token for token in tokens if token in bins]:
        raise ValueError(
            f"instruction {instruction!r} uses token {held[0]} ({tokeniser.decode([held[0]])!r}), which stands for an "
            f"action bin of {name}: word it differently, or take fewer bins"
        )


def require_room(length: int, room: int, context: int, instruction: str, name: str) -> None:
    """Refuse a prompt behind which the context has no room for the action.

    Raises:
        ValueError: If it is too long.
    """
    if length + room > context:
        short = instruction if len(instruction) <= 60 else f"{instruction[:57]}..."
        raise ValueError(
            f"instruction {short!r}: its prompt of {length} tokens, with {room} behind it for state and actions, is "
            f"longer than the context of {context} tokens of {name}: shorten the instruction or the chunk"
        )


__all__ = ["LanguageDecoder"]
