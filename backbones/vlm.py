"""Any Hugging Face vision-language model, frozen or with LoRA; apart from the others as transformers imports slowly."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..core.interfaces import Component
from .revision import weights_revision

V = TypeVar("V", bound="VLM")
Prompt = Sequence[str | Tensor]
"""Texts and pictures in the order they are read; a picture is uint8 (3, H, W), RGB."""

_LEAK = 0.05  # of the change a later picture makes at its own place; what a causal model leaks is rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStates:
    """What the last layer holds at every token of M prompts, padded at the end."""

    hidden: Float[Tensor, "M L D"]
    tokens: Int[Tensor, "M L"]
    """Token numbers, padding included."""
    mask: Bool[Tensor, "M L"]


class VLM(Component):
    """A model that reads texts and pictures in turn: any that transformers opens for image-text-to-text.

    The published weights are frozen, run without dropout and stay out of saved files, which hold name, revision and a
    hash of them. With ``lora_rank`` low-rank updates of the language model are trained (Hu et al. 2021,
    arXiv:2106.09685, Eq. 3: W + (α/r) B A with B = 0 at the start), and only these are saved.

    Only safetensors are opened, and no code that comes with a checkpoint is run. Nothing is downloaded unless asked.

    Args:
        name: A folder, or a repository on the Hugging Face hub.
        revision: Commit, branch or tag of that repository; saved as the commit.
        fingerprint: Hash of the weights that must be met (the attribute of an earlier load); None takes any.
        download: Fetch a repository that is not in the local cache yet. Not saved: whoever opens a saved model is not
            made to download.
        dtype: Of the frozen weights; what is trained is float32 always.
        lora_rank: r; 0 trains nothing.
        lora_alpha: α; None takes 2 r.
        lora_dropout: Probability with which an input of a low-rank update is left out in training.
        lora_targets: ``"all-linear"``, every linear layer of the language model; or last parts of their names, such as
            ``["q_proj", "v_proj"]``.
        image_options: Settings of the checkpoint's image processor to change, such as ``{"size": {"shortest_edge":
            3136, "longest_edge": 50176}}``. Cutting pictures into tiles is off unless asked for here.
        max_tokens: Longest prompt; None takes what the model was made for.
        gradient_checkpointing: Keep only the inputs of the language model's layers for the backward pass: less memory,
            about a third more time.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it lacks a part.
        ValueError: If the checkpoint reads no pictures, has no chat template, holds other weights than
            ``fingerprint``, or an argument makes no sense.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        fingerprint: str | None = None,
        download: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        lora_rank: int = 0,
        lora_alpha: int | None = None,
        lora_dropout: float | int = 0.0,
        lora_targets: str | list[str] = "all-linear",
        image_options: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if lora_rank < 0 or not 0 <= lora_dropout < 1 or (lora_alpha is not None and lora_alpha <= 0):
            raise ValueError(
                f"lora_rank {lora_rank}, lora_alpha {lora_alpha}, lora_dropout {lora_dropout}: expected a rank of at "
                "least 0, a positive alpha and a dropout in [0, 1)"
            )
        self.name, self._dtype = name, torch.float32 if dtype == "float32" else torch.bfloat16
        self.model, self.processor, commit = _open(name, revision, download, self._dtype)
        self.fingerprint = weights_revision(self.model)
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise ValueError(f"{name} holds weights {self.fingerprint}, expected {fingerprint}: these are others")
        self.init_args |= {"revision": commit, "fingerprint": self.fingerprint, "download": False}
        _freeze(self.model)
        language = self.model.config.get_text_config()
        self.width = int(language.hidden_size)
        """D of the hidden states."""
        self.max_tokens = int(getattr(language, "max_position_embeddings", None) or 1 << 30)
        self.max_tokens = min(self.max_tokens, max_tokens or self.max_tokens)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            decoder = self._decoder()
            # the second name is that of transformers before 5.20
            enable = getattr(decoder, "activation_checkpointing_enable", None) or decoder.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        if lora_rank:
            alpha = 2 * lora_rank if lora_alpha is None else lora_alpha
            config = LoraConfig(r=lora_rank, lora_alpha=alpha, lora_dropout=lora_dropout)
            _add_lora(self._decoder(), config, lora_targets)
        self.trained = frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)
        """Names of the weights of the low-rank updates."""
        self.register_state_dict_post_hook(_leave_out_frozen)
        self.register_load_state_dict_post_hook(_expect_no_frozen)
        self._prepare_reading(image_options)
        self._causal = False
        self.eval()

    def _prepare_reading(self, image_options: dict[str, Any] | None) -> None:
        tokeniser = self.processor.tokenizer
        if tokeniser.pad_token is None:
            tokeniser.pad_token = tokeniser.eos_token
        pictures = self.processor.image_processor
        self._image_options: dict[str, Any] = {}
        if getattr(pictures, "do_image_splitting", False):
            side = dict(pictures.max_image_size)["longest_edge"]  # else every frame is scaled up to be cut
            self._image_options = {"do_image_splitting": False, "size": {"longest_edge": side}}
        self._image_options |= image_options or {}
        self._image_token = int(getattr(self.model.config, "image_token_id", None) or self.processor.image_token_id)
        self._opening, self._picture = _layout(self.processor)
        starts = tokeniser.bos_token is not None and self._opening.startswith(tokeniser.bos_token)
        self._add_special_tokens = not starts  # a template that writes the first token itself must not get a second
        added = cast(Mapping[str, int], tokeniser.get_added_vocab())
        self._reserved = sorted({*added, *tokeniser.all_special_tokens, self.processor.image_token}, key=len)

    def train(self: V, mode: bool = True) -> V:
        """Switch mode; the frozen model stays in evaluation mode, where nothing in it needs the other."""
        super().train(mode)
        self.model.train(mode and self.gradient_checkpointing)  # transformers checkpoints in training mode only
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] == "lora_dropout":
                module.train(mode)
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def _decoder(self) -> Any:
        return self.model.get_decoder()

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def shorten(self, text: str, max_tokens: int) -> str:
        """The text, cut after so many tokens; a cut is told in a warning."""
        tokeniser = self.processor.tokenizer
        tokens = tokeniser(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(tokens) <= max_tokens:
            return text
        warnings.warn(
            f"{max_tokens} of {len(tokens)} tokens are read; the end of this instruction is ignored: {text!r}",
            stacklevel=2,
        )
        return str(tokeniser.decode(tokens[:max_tokens], skip_special_tokens=True))

    def hidden_states(self, prompts: Sequence[Prompt]) -> TokenStates:
        """Read M prompts, each with a picture at least, in one pass; gradients reach the low-rank updates.

        Raises:
            TypeError: If a picture is not uint8.
            ValueError: If a picture has another shape or cannot be read, a text holds one of the model's own tokens, or
                a prompt is too long.
        """
        inputs = self._inputs(prompts)
        base = self.model.base_model
        if base is self.model:
            hidden = self.model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[-1]
        else:  # without the logits of a large vocabulary, which nobody asked for
            hidden = base(**inputs, use_cache=False).last_hidden_state
        return TokenStates(hidden=hidden, tokens=inputs["input_ids"], mask=inputs["attention_mask"].bool())

    def states_after(self, prompts: Sequence[Prompt], text: str) -> Float[Tensor, "N D"]:
        """Float32 states at the end of every part that equals ``text``, prompt by prompt, in order.

        Each such part must stand behind the prompt's first picture, and no other text there may end like it.

        Raises:
            ValueError: If the model's tokens do not show where these parts end; see also `hidden_states`.
        """
        states = self.hidden_states(prompts)
        last = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"][-1]
        after_picture = (states.tokens == self._image_token).cumsum(1) > 0
        found = (states.tokens == last) & after_picture & states.mask
        wanted = [sum(isinstance(part, str) and part == text for part in prompt) for prompt in prompts]
        if found.sum(1).tolist() != wanted:
            raise ValueError(
                f"{self.name}: expected to find the end of {text!r} {wanted} times, found {found.sum(1).tolist()}: "
                "choose a text whose last sign stands nowhere else between the pictures"
            )
        return states.hidden[found].float()

    def check_causal(self) -> None:
        """Make sure, once, that what is read at one place says nothing about later pictures.

        Two prompts that differ in the last picture only are read. Models with attention to the whole prompt (PaliGemma
        is one) fail, and so do those that put all pictures first.

        Raises:
            ValueError: If an earlier state changes with the last picture, or a later one does not.
        """
        if self._causal:
            return
        mark, side = ":", 64
        stripes = torch.arange(side, dtype=torch.uint8).div(8, rounding_mode="floor").remainder(2) * 255
        first, other = stripes.expand(3, side, side), (255 - stripes).expand(3, side, side).transpose(1, 2)
        noise = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        training, places = self.training, {True: 0.0, False: 0.0}
        self.eval()
        with torch.no_grad():
            seen = [self.states_after([["Look", first, mark, last, mark]], mark) for last in (other, noise)]
        self.train(training)
        for early in places:
            one, two = (states[0 if early else 1] for states in seen)
            places[early] = float((one - two).abs().max() / one.abs().max().clamp(min=1e-12))
        if places[False] <= 1e-6:
            raise ValueError(f"{self.name}: another picture changes nothing after it: this model does not see pictures")
        if places[True] > _LEAK * places[False]:
            raise ValueError(
                f"{self.name} is not causal: the last picture changes what is read before it (by {places[True]:.2g}, "
                f"behind it by {places[False]:.2g}), so an estimate would look into the future; take a model with "
                "causal attention, such as Qwen2.5-VL or SmolVLM"
            )
        self._causal = True

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        pictures = [[part for part in prompt if isinstance(part, Tensor)] for prompt in prompts]
        for picture in (p for row in pictures for p in row):
            if picture.dtype != torch.uint8:
                raise TypeError(f"a picture is {picture.dtype}: expected uint8 RGB in 0…255, channels first")
            if picture.ndim != 3 or picture.shape[0] != 3 or 0 in picture.shape:
                raise ValueError(f"a picture has shape {tuple(picture.shape)}: expected (3, H, W), RGB, channels first")
        if not all(pictures):
            raise ValueError("a prompt has no picture: expected one at least")
        try:
            read: Any = self.processor(
                text=[self._text(prompt) for prompt in prompts],
                images=pictures,
                return_tensors="pt",
                text_kwargs={
                    "padding": True,
                    "padding_side": "right",
                    "add_special_tokens": self._add_special_tokens,
                    "verbose": False,
                },
                images_kwargs=self._image_options,
            )
        except (ValueError, RuntimeError, TypeError) as error:
            sizes = sorted({tuple(p.shape[1:]) for row in pictures for p in row})
            raise ValueError(f"{self.name} cannot read pictures of height and width {sizes}: {error}") from error
        length = int(read["attention_mask"].sum(1).max())
        if length > self.max_tokens:
            most = max(len(row) for row in pictures)
            raise ValueError(
                f"a prompt of {length} tokens with up to {most} pictures is longer than the {self.max_tokens} that "
                f"{self.name} reads: show fewer frames at a time (max_frames), smaller ones (frame_size), or make the "
                "image processor give fewer tokens (image_options)"
            )
        tensors = {k: v for k, v in read.items() if isinstance(v, Tensor)}
        return {k: v.to(self.device, self._dtype if v.is_floating_point() else None) for k, v in tensors.items()}

    def _text(self, prompt: Prompt) -> str:
        for part in prompt:
            held = [token for token in self._reserved if token in part] if isinstance(part, str) else []
            if held:
                raise ValueError(f"{part!r} holds {held[-1]!r}, a token of {self.name} with a meaning of its own")
        return self._opening + "".join(part if isinstance(part, str) else self._picture for part in prompt)


def _open(name: str, revision: str | None, download: bool, dtype: torch.dtype) -> tuple[Any, Any, str | None]:
    """Model, processor, and the commit of a repository."""
    folder = Path(name).is_dir()
    if folder and revision is not None:
        raise ValueError(f"{name} is a folder, which has no revision {revision}: leave it out")
    if not folder and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"there is no folder {name}: {_WHERE}")
    where: dict[str, Any] = {"local_files_only": folder or not download, "trust_remote_code": False}
    where |= {} if revision is None else {"revision": revision}
    try:
        config: Any = AutoConfig.from_pretrained(name, **where)
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise ValueError(
                f"{name} is a {config.model_type} model, which does not read pictures and write text: expected one "
                "that transformers opens with AutoModelForImageTextToText, such as Qwen/Qwen2.5-VL-3B-Instruct"
            )
        processor: Any = AutoProcessor.from_pretrained(name, **where)
        opened: Any = AutoModelForImageTextToText.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **where
        )
    except OSError as error:
        told = " ".join(str(error).split())
        raise FileNotFoundError(f"cannot open the vision-language model {name!r}: {told}; {_WHERE}") from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ValueError(f"{name} holds no processor of pictures and texts: copy the whole checkpoint")
    if not getattr(processor, "image_token", None):
        raise ValueError(f"{name} has no token that stands for a picture in a text: take another model")
    if not processor.chat_template:
        raise ValueError(f"{name} has no chat template: take a checkpoint that was tuned on instructions")
    model, report = opened
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{name} lacks {len(missing)} weights, first {missing[0]!r}: the copy did not finish?")
    return model, processor, None if folder else getattr(model.config, "_commit_hash", None) or revision


_WHERE = (
    "expected a folder with config, safetensors and processor (if it was moved, change 'name' where it is written: in "
    "the YAML, or in component.json), or a repository in the local cache (nothing is downloaded unless download=True)"
)


def _freeze(model: Any) -> None:
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - to pyright modules hold tensors only


def _add_lora(decoder: Any, config: LoraConfig, targets: str | list[str]) -> None:
    linear = [n for n, m in decoder.named_modules() if isinstance(m, nn.Linear) and not n.endswith("lm_head")]
    kinds = {n.rpartition(".")[2] for n in linear}
    wanted = kinds if targets == "all-linear" else {targets} if isinstance(targets, str) else set(targets)
    if not wanted or not wanted <= kinds:
        raise ValueError(f"lora_targets {targets!r}: expected 'all-linear' or some of {sorted(kinds)}")
    config.target_modules = [n for n in linear if n.rpartition(".")[2] in wanted]
    inject_adapter_in_model(config, decoder)
    for parameter in decoder.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates vanish in bfloat16


def _layout(processor: Any) -> tuple[str, str]:
    """What stands before the first part of a prompt, and what stands for a picture, according to the chat template."""
    first, last = "FIRSTPART", "LASTPART"
    text, picture = [{"type": "text", "text": first}], [{"type": "image"}]

    def render(content: list[dict[str, str]]) -> str:
        return str(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))

    opening, _, rest = render([*text, *picture, {"type": "text", "text": last}]).partition(first)
    between, found, _ = rest.partition(last)
    if found and processor.image_token in between:
        return opening, between
    # some templates move pictures to the front, where order is lost: their token alone is put in its place
    return render(text).partition(first)[0], str(processor.image_token)


def _leave_out_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    kept = {f"{prefix}model.{name}" for name in cast(VLM, module).trained}
    for key in [k for k in state if k.startswith(f"{prefix}model.") and k not in kept]:
        del state[key]


def _expect_no_frozen(module: nn.Module, wrong: Any) -> None:
    vlm = cast(VLM, module)
    frozen = {f"model.{n}" for n in vlm.model.state_dict()} - {f"model.{n}" for n in vlm.trained}

    def ours(key: str) -> bool:
        parts = key.split(".")
        return any(".".join(parts[i:]) in frozen for i in range(len(parts)))

    wrong.missing_keys[:] = [key for key in wrong.missing_keys if not ours(key)]
