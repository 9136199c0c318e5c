"""OpenAI's CLIP through the openai-clip package: frozen image and text towers of one checkpoint, loaded once."""

import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.files import sha256_file
from .language import InstructionCache, TextEncoder
from .revision import DIGITS
from .vision import VisionEncoder, resize

with warnings.catch_warnings():
    # openai-clip imports pkg_resources, whose deprecation is none of the user's business; setuptools<81 keeps it there.
    warnings.simplefilter("ignore")
    import clip
    from clip.clip import _MODELS as PUBLISHED  # pyright: ignore[reportPrivateUsage]
    from clip.model import CLIP, build_model

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class ClipCheckpoint:
    """A loaded checkpoint, in float32."""

    model: CLIP
    stem: str
    """Its name without slashes."""
    revision: str
    """First digits of the file's SHA-256."""


# Both towers of one file share one load; it is freed with the last encoder that uses it.
_loaded: WeakValueDictionary[str, ClipCheckpoint] = WeakValueDictionary()


def load_checkpoint(
    name: str, revision: str | None = None, download: bool = False, shared: bool = True
) -> ClipCheckpoint:
    """Open a CLIP checkpoint in float32, without ever touching the network unless asked.

    The weights pass through half precision, as in ``clip.load``, so features equal that function's.

    Args:
        name: A published name (``"ViT-B/32"``), or the path of a TorchScript archive, a state dict or a safetensors
            file.
        revision: First 16 digits of the file's SHA-256 that must be met; None takes any.
        download: Fetch a published checkpoint that is not in ``~/.cache/clip`` yet.
        shared: Whether to return the same modules as before if this content is loaded already.

    Raises:
        FileNotFoundError: If there is no such file, or it would have to be downloaded.
        ValueError: If the file is damaged, no CLIP checkpoint, or another revision than asked for.
    """
    path = _published_file(name, download) if name in PUBLISHED else Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no CLIP checkpoint {name!r}: expected a file, or one of the published names {', '.join(PUBLISHED)}"
        )
    sha256 = sha256_file(path)
    if name in PUBLISHED and sha256 != PUBLISHED[name].split("/")[-2]:
        raise ValueError(f"{path} is not the published {name} (its SHA-256 differs): remove it and fetch it again")
    found = sha256[:DIGITS]
    if revision is not None and revision != found:
        raise ValueError(f"{path} has revision {found}, expected {revision}: this is another checkpoint")
    checkpoint = _loaded.get(found) if shared else None
    if checkpoint is None:
        stem = (name if name in PUBLISHED else path.stem).replace("/", "-")
        checkpoint = ClipCheckpoint(_open(path), stem, found)
        if shared:
            _loaded[found] = checkpoint
    return checkpoint


def _published_file(name: str, download: bool) -> Path:
    path = Path("~/.cache/clip").expanduser() / PUBLISHED[name].rpartition("/")[2]
    if not path.is_file():
        if not download:
            raise FileNotFoundError(
                f"CLIP {name} is not in {path.parent} and nothing is downloaded unasked: construct it once with "
                f"download=True, put {path.name} there, or give the path of a local checkpoint"
            )
        clip.load(name, device="cpu", jit=False)
    return path


def _open(path: Path) -> CLIP:
    try:
        if _is_archive(path):
            with warnings.catch_warnings():
                # torch announces TorchScript's end at every load; OpenAI's archives have no other form.
                warnings.filterwarnings("ignore", "`torch.jit", category=FutureWarning)
                warnings.filterwarnings("ignore", "`torch.jit", category=DeprecationWarning)
                model, _ = clip.load(str(path), device="cpu", jit=False)
        else:
            # clip.load would do, but it does not insist on tensors only: a pickle can run code
            opened = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            model = build_model(dict(cast(dict[str, Tensor], opened)))  # a copy: build_model removes entries
    except Exception as error:  # the readers raise anything, from KeyError to RuntimeError and UnpicklingError
        raise ValueError(
            f"{path} cannot be opened as a CLIP checkpoint ({type(error).__name__}: {error}): expected OpenAI's "
            "TorchScript archive, or a state dict of tensors with its names (visual.conv1.weight, …)"
        ) from error
    return cast(CLIP, model.float().eval().requires_grad_(False))


def _is_archive(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:  # a state dict is a zip file too, but without code
        return any("/code/" in entry for entry in archive.namelist())


class ClipEncoder(VisionEncoder):
    """Image tower of CLIP (Radford et al. 2021, arXiv:2103.00020), frozen unless asked otherwise.

    Frozen, it is saved as name and revision, without weights, and shares them with every other encoder of the same
    checkpoint. Features are the projected image embeddings, not normalised, as ``encode_image`` gives.

    Args:
        name: A published name (``"ViT-B/32"``) or the path of a local checkpoint, see `load_checkpoint`.
        revision: First 16 digits of the checkpoint's SHA-256 that must be met; None takes any.
        download: Fetch a published checkpoint that is not in ``~/.cache/clip`` yet. Not saved: whoever opens a saved
            encoder is not made to download.
        trainable: Train the tower: a copy of its own, saved with its weights.
    """

    def __init__(
        self, name: str = "ViT-B/32", revision: str | None = None, download: bool = False, trainable: bool = False
    ) -> None:
        super().__init__()
        checkpoint = load_checkpoint(name, revision, download, shared=not trainable)
        self.init_args |= {"revision": checkpoint.revision, "download": False}
        self.trainable = trainable
        self.frozen_reference = not trainable
        self.name = f"clip-{checkpoint.stem}"
        # held while frozen, so that a text tower made later finds the load; a trained copy keeps its own half only
        self.checkpoint = None if trainable else checkpoint
        self.visual = cast(nn.Module, checkpoint.model.visual).requires_grad_(trainable)
        self.size = int(cast(Any, checkpoint.model.visual).input_resolution)
        self.width = int(cast(Tensor, checkpoint.model.text_projection).shape[1])
        self.register_buffer("mean", 255 * torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def revision(self) -> str:
        """First 16 digits of the checkpoint's SHA-256 while frozen; the weights' hash once trainable."""
        return self.checkpoint.revision if self.checkpoint is not None else super().revision

    def preprocess(self, frames: UInt8[Tensor, "M 3 H W"]) -> Float[Tensor, "M 3 h w"]:
        """Bicubic resize of the shorter side, centre crop, CLIP's mean and deviation: openai-clip's own transform."""
        height, width = frames.shape[2:]
        short = min(height, width)
        # torchvision's rule: the longer side is rounded down, the crop's corner is rounded to even
        height, width = int(self.size * height / short), int(self.size * width / short)
        resized = resize(frames, height, width, "bicubic")
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return (resized[:, :, top : top + self.size, left : left + self.size] - self.mean) / self.std

    def features(self, pixels: Float[Tensor, "M 3 h w"]) -> Float[Tensor, "M D"]:
        """Projected image embeddings."""
        return self.visual(pixels)


class _TextTower(nn.Module):
    """The text half of a CLIP model, sharing its parameters: ``CLIP.encode_text`` without the vision half."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        source = cast(Any, model)
        self.token_embedding = cast(nn.Module, source.token_embedding)
        self.positional_embedding = cast(nn.Parameter, source.positional_embedding)
        self.transformer = cast(nn.Module, source.transformer)
        self.ln_final = cast(nn.Module, source.ln_final)
        self.text_projection = cast(nn.Parameter, source.text_projection)

    def forward(self, tokens: Int[Tensor, "M K"]) -> Float[Tensor, "M D"]:
        x = self.token_embedding(tokens) + self.positional_embedding
        x = self.ln_final(self.transformer(x.transpose(0, 1)).transpose(0, 1))
        # the end-of-text token has the highest number of all
        return x[torch.arange(len(x), device=x.device), tokens.argmax(-1)] @ self.text_projection


class ClipText(TextEncoder):
    """Text tower of CLIP, frozen; each instruction is encoded once and remembered.

    It shares the load with a `ClipEncoder` of the same checkpoint and is saved as name and revision. Features are the
    projected text embeddings, not normalised, as ``encode_text`` gives.

    Args:
        name: A published name (``"ViT-B/32"``) or the path of a local checkpoint, see `load_checkpoint`.
        revision: First 16 digits of the checkpoint's SHA-256 that must be met; None takes any.
        download: Fetch a published checkpoint that is not in ``~/.cache/clip`` yet. Not saved.
    """

    frozen_reference = True

    def __init__(self, name: str = "ViT-B/32", revision: str | None = None, download: bool = False) -> None:
        super().__init__()
        checkpoint = load_checkpoint(name, revision, download)
        self.init_args |= {"revision": checkpoint.revision, "download": False}
        self.trainable = False
        self.name = f"clip-text-{checkpoint.stem}"
        self.checkpoint = checkpoint
        self.tower = _TextTower(checkpoint.model)
        self.context_length = int(self.tower.positional_embedding.shape[0])
        self.width = int(self.tower.text_projection.shape[1])
        self._cache = InstructionCache()

    @property
    def revision(self) -> str:
        """First 16 digits of the checkpoint's SHA-256."""
        return self.checkpoint.revision

    def tokenise(self, instructions: Sequence[str]) -> Int[Tensor, "M K"]:
        """Token numbers, K = 77 in the published checkpoints; a longer instruction is cut, with a warning."""
        rows: list[Tensor] = []
        for text in instructions:
            try:
                rows.append(clip.tokenize(text, self.context_length))
            except RuntimeError:  # what openai-clip raises for a long text
                warnings.warn(
                    f"{self.name} reads {self.context_length} tokens; the end of this instruction is ignored: {text!r}",
                    stacklevel=2,
                )
                rows.append(clip.tokenize(text, self.context_length, truncate=True))
        return torch.cat(rows).long() if rows else torch.zeros(0, self.context_length, dtype=torch.long)

    def forward(self, instructions: Sequence[str]) -> Float[Tensor, "M D"]:
        """Encode M instructions; one met before is looked up."""
        device = self.tower.text_projection.device
        if not instructions:
            return torch.zeros(0, self.width, device=device)
        rows = self._cache.lookup(instructions, lambda texts: self.tower(self.tokenise(texts).to(device)))
        return torch.stack(rows).to(device)
