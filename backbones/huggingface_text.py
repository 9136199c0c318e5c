"""Any Hugging Face text encoder, frozen and mean-pooled; apart from the others because transformers imports slowly."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from .language import InstructionCache, TextEncoder
from .revision import weights_revision


class HuggingFaceText(TextEncoder):
    """A transformers text model, frozen, averaged over an instruction's tokens; saved as name and revision.

    Of an encoder-decoder the encoder is used.

    Args:
        name: A folder, or a repository on the Hugging Face hub.
        revision: Hash of the weights that must be met (the ``revision`` attribute of an earlier load); None takes any.
        download: Fetch a repository that is not in the local cache yet. Not saved: whoever opens a saved encoder is not
            made to download.
        max_tokens: Length of the longest instruction in tokens; a longer one is cut, with a warning.
    """

    frozen_reference = True

    def __init__(self, name: str, revision: str | None = None, download: bool = False, max_tokens: int = 256) -> None:
        super().__init__()
        try:
            self.tokeniser: Any = AutoTokenizer.from_pretrained(name, local_files_only=not download)
            model: Any = AutoModel.from_pretrained(name, local_files_only=not download, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"cannot open the text encoder {name!r}: {error}; expected a folder with a model and a tokeniser, or a "
                "repository in the local cache (nothing is downloaded unless download=True)"
            ) from error
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        if self.tokeniser.pad_token is None:
            self.tokeniser.pad_token = self.tokeniser.eos_token
        self.tokeniser.padding_side = "right"
        self.model = cast(nn.Module, model).eval().requires_grad_(False)
        self._revision = weights_revision(self.model)
        if revision is not None and revision != self._revision:
            raise ValueError(f"{name} has revision {self._revision}, expected {revision}: these are other weights")
        self.init_args |= {"revision": self._revision, "download": False}
        self.trainable = False
        stem = Path(name).name if Path(name).exists() else name.replace("/", "--")
        self.name = f"huggingface-{stem}"
        self.width = int(model.config.hidden_size)
        self.max_tokens = min(max_tokens, int(self.tokeniser.model_max_length))
        self._cache = InstructionCache()

    @property
    def revision(self) -> str:
        """Hash of the weights as they were loaded, 16 hexadecimal digits."""
        return self._revision

    def forward(self, instructions: Sequence[str]) -> Float[Tensor, "M D"]:
        """Encode M instructions; one met before is looked up."""
        device = next(self.parameters()).device
        if not instructions:
            return torch.zeros(0, self.width, device=device)
        return torch.stack(self._cache.lookup(instructions, self._encode)).to(device)

    def _encode(self, texts: list[str]) -> Tensor:
        device = next(self.parameters()).device
        for text in texts:
            tokens = len(self.tokeniser(text, verbose=False)["input_ids"])
            if tokens > self.max_tokens:
                warnings.warn(
                    f"{self.name} reads {self.max_tokens} of {tokens} tokens; the end of this instruction is "
                    f"ignored: {text!r}",
                    stacklevel=2,
                )
        batch = self.tokeniser(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        mask = cast(Tensor, batch["attention_mask"]).to(device)
        hidden = self.model(input_ids=batch["input_ids"].to(device), attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
