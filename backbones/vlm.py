"""Any Hugging Face vision-language model, frozen or with LoRA; apart from the others as transformers imports slowly."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import GenerationConfig

from ..core.arguments import folds
from .chat import Chat, Prompt, Reply
from .frozen_weights import freeze_or_train, save_trained_only
from .lora import LoRA, lora_of
from .plain_prompts import PlainPromptReader
from .revision import weights_revision
from .vlm_answers import Reading, answers_after, answers_along, read_prompts
from .vlm_loading import PLAIN, freeze, open_vlm
from .vlm_prompts import PromptReader

V = TypeVar("V", bound="VLM")

_LEAK = 0.05  # of the change a later picture makes at its own place; what a causal model leaks is rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStates:
    """States of the last layer at every token of M prompts, padded at the end."""

    hidden: Float[Tensor, "M L D"]
    tokens: Int[Tensor, "M L"]
    """Token numbers, padding included."""
    mask: Bool[Tensor, "M L"]


class VLM(Chat):
    """A model that reads texts and pictures in turn: any that transformers opens for image-text-to-text.

    Prompts are put into the checkpoint's chat template. BLIP-2, which has none, reads them as they are, with its
    pictures' tokens where the pictures stand.

    The published weights are frozen, run without dropout and stay out of saved files, which hold name, revision and a
    hash of them. With ``lora`` low-rank updates of the language model are trained, and only these are saved.

    Only safetensors are opened, and no code that comes with a checkpoint is run. Nothing is downloaded unless asked.

    Args:
        name: A folder, or a repository on the Hugging Face hub.
        revision: Commit, branch or tag of that repository; saved as the commit.
        fingerprint: Hash of the weights that must be met (the attribute of an earlier load); None takes any.
        download: Fetch a repository that is not in the local cache yet. Not saved: whoever opens a saved model is not
            made to download.
        dtype: Number type of the frozen weights; what is trained is float32 always.
        lora: Low-rank updates of the language model; None trains nothing. Their arguments may also be given here one by
            one with ``lora_`` in front, such as ``lora_rank=16``.
        image_options: Settings of the checkpoint's image processor to change, such as ``{"size": {"shortest_edge":
            3136, "longest_edge": 50176}}``. Cutting pictures into tiles is off unless asked for here.
        max_tokens: Length of the longest prompt in tokens; None takes the model's own limit.
        gradient_checkpointing: Keep only the inputs of the language model's layers for the backward pass: less memory,
            about a third more time.
        batch_size: Number of prompts answered in one pass, at least 1.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it lacks a part.
        ValueError: If the checkpoint reads no pictures, has no chat template and is no BLIP-2, holds other weights than
            ``fingerprint``, or an argument makes no sense.
    """

    @folds(lora=lora_of)
    def __init__(
        self,
        name: str,
        revision: str | None = None,
        fingerprint: str | None = None,
        download: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        lora: LoRA | None = None,
        image_options: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        gradient_checkpointing: bool = False,
        batch_size: int = 8,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}: expected at least 1, or None for the model's own limit")
        self.batch_size = batch_size
        self.name, self._dtype = name, torch.float32 if dtype == "float32" else torch.bfloat16
        self.model, self.processor, commit = open_vlm(name, revision, download, self._dtype)
        self.fingerprint = weights_revision(self.model)
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise ValueError(f"{name} holds weights {self.fingerprint}, expected {fingerprint}: these are others")
        self.init_args |= {"revision": commit, "fingerprint": self.fingerprint, "download": False}
        freeze(self.model)
        language = self.model.config.get_text_config()
        self.width = int(language.hidden_size)
        """D of the hidden states."""
        self.max_tokens = int(getattr(language, "max_position_embeddings", None) or 1 << 30)
        self.max_tokens = min(self.max_tokens, self.max_tokens if max_tokens is None else max_tokens)
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            decoder = self._decoder()
            # the second name is that of transformers before 5.20
            enable = getattr(decoder, "activation_checkpointing_enable", None) or decoder.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        if lora is not None:
            lora.add_to(self._decoder())
        self.trained = frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)
        """Names of the weights of the low-rank updates."""
        save_trained_only(self)
        image_token = getattr(self.model.config, "image_token_id", None)
        self._plain = self.model.config.model_type == PLAIN
        reader = PlainPromptReader if self._plain else PromptReader
        self.reader = reader(name, self.processor, image_token, image_options, self.max_tokens)
        self._causal = False
        self.updated = lora is not None
        """Whether the low-rank updates count at present; not inside ``without_lora``."""
        self.eval()

    def train(self: V, mode: bool = True) -> V:
        """Switch mode; the frozen model stays in evaluation mode, where nothing in it needs the other."""
        super().train(mode)
        self.model.train(mode and self.gradient_checkpointing)  # transformers checkpoints in training mode only
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] == "lora_dropout":
                module.train(mode)
        return self

    def requires_grad_(self: V, requires_grad: bool = True) -> V:
        """Let the low-rank updates require a gradient or not; the published weights never do."""
        freeze_or_train(self, requires_grad)
        return self

    @property
    def device(self) -> torch.device:
        """Device of the model's weights."""
        return next(self.model.parameters()).device

    def _decoder(self) -> Any:
        return self.model.get_decoder()

    def _writer(self) -> Any:
        """Return the part that goes on writing once the pictures are read."""
        return self.model.language_model if self._plain else self.model

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text."""
        return len(self.reader.tokens(text))

    def shorten(self, text: str, max_tokens: int) -> str:
        """Cut a text after ``max_tokens`` tokens; a cut raises a warning."""
        return self.reader.shorten(text, max_tokens)

    @contextmanager
    def without_lora(self) -> Generator[None]:
        """Inside the block the model is the published one: a reference for what was trained, without a second copy."""
        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        learned = {name: p.requires_grad for name, p in self.model.named_parameters() if name in self.trained}
        before, self.updated = self.updated, False
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(before)
            for name in learned:  # peft makes every update trainable again, also one that was frozen
                self.model.get_parameter(name).requires_grad_(learned[name])
            self.updated = before

    def hidden_states(self, prompts: Sequence[Prompt]) -> TokenStates:
        """Read M prompts, each with a picture at least, in one pass; gradients reach the low-rank updates.

        Raises:
            TypeError: If a picture is not uint8.
            ValueError: If a picture has another shape or cannot be read, a text holds one of the model's own tokens, or
                a prompt is too long.
        """
        inputs = self._inputs(prompts)
        base = self.model.base_model
        if self._plain:
            # one row of logits at least is asked for, or the model makes those of every token
            settings: dict[str, Any] = {"use_cache": False, "output_hidden_states": True, "logits_to_keep": 1}
            hidden = self.model(**inputs, **settings).language_model_outputs.hidden_states[-1]
        elif base is self.model:
            hidden = self.model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[-1]
        else:  # without the logits of a large vocabulary, which nobody asked for
            hidden = base(**inputs, use_cache=False).last_hidden_state
        return TokenStates(hidden=hidden, tokens=inputs["input_ids"], mask=inputs["attention_mask"].bool())

    def begin_answers(self, prompts: Sequence[Prompt]) -> tuple[Reading, Int[Tensor, "M L"]]:
        """Read M prompts up to the begin of the model's turn, keeping keys and values; gradients reach the updates.

        Returns:
            The keys and values, and the tokens of the prompts, padded before.

        Raises:
            TypeError: If a picture is not uint8.
            ValueError: As `hidden_states`.
        """
        inputs = self.answer_inputs(prompts)
        return read_prompts(self.model, inputs), inputs["input_ids"]

    def answer_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Make the inputs of the model for M prompts up to the begin of its turn, padded before; nothing is computed.

        Raises:
            TypeError: If a picture is not uint8.
            ValueError: As `hidden_states`.
        """
        return self._inputs(prompts, answering=True)

    def states_after(self, prompts: Sequence[Prompt], text: str) -> Float[Tensor, "N D"]:
        """Compute float32 states at the end of every part that equals ``text``, prompt by prompt, in order.

        Each such part must stand behind the prompt's first picture, and no other text there may end like it.

        Raises:
            ValueError: If the model's tokens do not show where these parts end; see also `hidden_states`.
        """
        states = self.hidden_states(prompts)
        last = self.reader.tokens(text)[-1]
        after_picture = (states.tokens == self.reader.image_token).cumsum(1) > 0
        found = (states.tokens == last) & after_picture & states.mask
        wanted = [sum(isinstance(part, str) and part == text for part in prompt) for prompt in prompts]
        if found.sum(1).tolist() != wanted:
            raise ValueError(
                f"{self.name}: expected to find the end of {text!r} {wanted} times, found {found.sum(1).tolist()}: "
                "choose a text whose last character stands nowhere else between the pictures"
            )
        return states.hidden[found].float()

    @contextmanager
    def _asked(self) -> Generator[None]:
        """Without gradients, and in evaluation mode: in training a checkpointed model keeps nothing of what it read."""
        training = self.training
        try:
            with torch.no_grad():
                self.eval()
                yield
        finally:
            self.train(training)

    def reply(self, prompts: Sequence[Prompt], max_new_tokens: int = 512) -> list[Reply]:
        """Generate the most likely answer to each prompt, token by token; see `guerdon.Chat`.

        Decoding is greedy and without a repetition penalty, whatever the checkpoint asks for. The ``problem`` of an
        answer that was cut after ``max_new_tokens`` reports the cut.

        Raises:
            TypeError: If a picture is not uint8.
            ValueError: As `hidden_states`.
        """
        writer = self._writer()
        published = writer.generation_config
        ends = published.eos_token_id
        ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        replies: list[Reply] = []
        with self._asked():
            # the checkpoint's own settings (sampling, penalties) would otherwise fill in what is not set here
            writer.generation_config = GenerationConfig(
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=published.eos_token_id,
                bos_token_id=published.bos_token_id,
                pad_token_id=self.processor.tokenizer.pad_token_id,
            )
            try:
                for inputs in self._batches(prompts):
                    made = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
                    for tokens in made.tolist():
                        text = str(self.processor.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
                        cut = len(tokens) == max_new_tokens and not ends & set(tokens)
                        replies.append(Reply(text=text, problem=f"cut after {max_new_tokens} tokens" if cut else ""))
            finally:
                writer.generation_config = published
        return replies

    def answer_log_probs(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float[Tensor, "M K"]:
        """Compute the log-probability that the answer to each prompt begins with each text; see `guerdon.Chat`.

        A prompt is read once for all answers.

        Raises:
            TypeError: If a picture is not uint8.
            ValueError: As `hidden_states`, or if an answer is empty.
        """
        tokens = [self.reader.answer_tokens(answer) for answer in answers]
        with self._asked():
            read = (read_prompts(self.model, inputs) for inputs in self._batches(prompts))
            found = [answers_after(self._writer(), reading, tokens) for reading in read]
        return torch.cat(found) if found else torch.zeros(0, len(tokens))

    def answer_log_probs_along(
        self, parts: Sequence[Prompt], question: str, answers: Sequence[str]
    ) -> Float[Tensor, "N K"]:
        """Compute the log-probability of each answer after each prefix of a growing prompt, reading every part once.

        Row n is what `answer_log_probs` gives for ``[*parts[0], …, *parts[n], question]``. That reads 1 + … + N parts;
        here the keys and values of the first n parts stay, and only question and answers are read again.

        Args:
            parts: N pieces that each end with a picture.
            question: Text behind every prefix.
            answers: K texts.

        Raises:
            TypeError: If a picture is not uint8.
            ValueError: As `answer_log_probs`, or if a part does not end with a picture, or the tokens do not show where
                a picture ends.
        """
        if self._plain:
            raise ValueError(
                f"{self.name} reads its first token behind the pictures in front, so no prefix of a prompt is a prompt "
                "of its own: use answer_log_probs"
            )
        if not all(part and isinstance(part[-1], Tensor) for part in parts):
            raise ValueError("a part of a growing prompt must end with a picture")
        tokens = [self.reader.answer_tokens(answer) for answer in answers]
        if not parts:
            return torch.zeros(0, len(tokens))
        asked, behind = self._after_picture(parts[-1][-1], question)
        inputs = self._inputs([[p for part in parts for p in part]])
        shown = (inputs["input_ids"][0] == self.reader.image_token).int()
        ends = (shown.diff(append=shown.new_zeros(1)) < 0).nonzero().flatten() + 1 + behind
        last = [sum(isinstance(p, Tensor) for part in parts[: n + 1] for p in part) for n in range(len(parts))]
        if len(ends) != last[-1]:
            raise ValueError(
                f"{self.name}: expected the tokens of {last[-1]} pictures one after another, found {len(ends)} runs: "
                "this model's pictures cannot be told apart; use answer_log_probs"
            )
        ends = ends[torch.tensor(last, device=ends.device) - 1]
        longest = int(ends[-1]) + asked.shape[1] + max(len(answer) for answer in tokens)
        if longest > self.max_tokens:
            raise ValueError(
                f"{len(parts)} parts with the question and an answer are {longest} tokens, more than the "
                f"{self.max_tokens} that {self.name} reads: show fewer frames at a time (max_frames) or smaller ones"
            )
        with self._asked():
            return answers_along(self.model, inputs, ends.tolist(), asked[0].tolist(), tokens)

    def _after_picture(self, picture: str | Tensor, question: str) -> tuple[Int[Tensor, "1 n"], int]:
        """Tokens of a question behind a picture and of the begin of an answer; how many tokens end the picture."""
        lone, asked = (self._inputs([[picture, text]], answering=True)["input_ids"][0] for text in ("", question))
        last = int((lone == self.reader.image_token).nonzero()[-1])
        behind = len(lone) - last - 1 - len(self.reader.tokens(self.reader.closing))
        if behind < 0 or not torch.equal(lone[: last + 1 + behind], asked[: last + 1 + behind]):
            raise ValueError(f"{self.name}: cannot tell where a picture ends and {question!r} begins")
        return asked[None, last + 1 + behind :], behind

    def _batches(self, prompts: Sequence[Prompt]) -> Generator[dict[str, Tensor]]:
        for start in range(0, len(prompts), self.batch_size):
            yield self._inputs(prompts[start : start + self.batch_size], answering=True)

    def check_causal(self) -> None:
        """Make sure, once, that no state depends on later pictures.

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

    def _inputs(self, prompts: Sequence[Prompt], answering: bool = False) -> dict[str, Tensor]:
        tensors = self.reader.read(prompts, answering)
        return {k: v.to(self.device, self._dtype if v.is_floating_point() else None) for k, v in tensors.items()}
