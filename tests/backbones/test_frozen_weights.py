"""Published weights are never trained silently: whatever unfreezes them is undone, or an error at the next save."""

from typing import Any

import pytest
import torch
from torch import nn

from guerdon.backbones.decoder_language import LanguageDecoder
from guerdon.backbones.decoder_vlm import VLMDecoder
from guerdon.backbones.latent_cache import LatentCache
from guerdon.backbones.lora import LoRA
from guerdon.backbones.token_learner import TokenLearner
from guerdon.backbones.vlm import VLM
from guerdon.backbones.vlm_tokens import VLMBackbone
from guerdon.core.batch import Observation
from guerdon.critics.backbone_value import BackboneValue
from guerdon.policies.action_bins import ActionBins
from guerdon.policies.tokens import TokenPolicy
from guerdon.policies.vla import VLAPolicy
from guerdon.testing.language_checkpoints import tiny_language
from guerdon.testing.vlm_checkpoints import tiny_vlm

KINDS = ["vlm", "backbone", "decoder", "language", "vla", "tokens", "value"]
LOST = r"published weights of .* to be frozen, '.*' requires a gradient: .*would be lost.*frozen_parts of PolicyAdam"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("published")
    return {"vlm": str(tiny_vlm(place / "vlm", "smolvlm")), "language": str(tiny_language(place / "language"))}


def made(kind: str, folders: dict[str, str], rank: int = 0) -> Any:
    lora = LoRA(rank=rank) if rank else None
    if kind in ("language", "tokens"):
        decoder = LanguageDecoder(folders["language"], lora=lora)
        return decoder if kind == "language" else TokenPolicy(decoder, 3, 2, bins=ActionBins(8))
    vlm = VLM(folders["vlm"], lora=lora)
    if kind in ("vlm", "decoder"):
        return vlm if kind == "vlm" else VLMDecoder(vlm, ["eye"])
    backbone, pool = VLMBackbone(vlm, ["eye"]), TokenLearner(width=16, heads=2)
    if kind == "backbone":
        return backbone
    if kind == "vla":
        return VLAPolicy(backbone, action_size=2, hidden=(8,), token_learner=pool)
    return BackboneValue(backbone, hidden=(8,), token_learner=pool)


def learning(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_what_unfreezes_all_leaves_the_published_weights_frozen(folders, kind, rank):
    module = made(kind, folders, rank)
    at_first = learning(module)
    assert any("lora_" in name for name in at_first) == bool(rank)
    assert module.requires_grad_(False) is module and not learning(module)
    assert learning(module.requires_grad_(True)) == at_first
    assert set(module.state_dict()) >= at_first


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_saving_while_published_weights_would_learn_is_an_error(folders, kind, rank):
    module = made(kind, folders, rank)
    around = nn.ModuleList([module]).requires_grad_(True)  # goes past the methods of the parts
    with pytest.raises(ValueError, match=LOST):
        around.state_dict()
    module.requires_grad_(True)
    assert all("lora_" in name for name in around.state_dict() if ".model." in name)


def test_a_cache_does_not_keep_what_published_weights_give_while_they_would_learn(folders):
    backbone: Any = made("backbone", folders, rank=2)
    frames = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    seen = Observation(state=torch.zeros(1, 0), frames={"eye": frames}, instructions=("open it",))
    next(iter(backbone.vlm.model.parameters())).requires_grad_(True)
    for ask in (lambda: backbone.learns, lambda: backbone.version, lambda: LatentCache().tokens(backbone, seen)):
        with pytest.raises(ValueError, match=LOST):
            ask()
