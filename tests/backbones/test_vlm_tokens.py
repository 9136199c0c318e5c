"""A vision-language model as a backbone: what it reads, low-rank updates and versions, and what is refused."""

from typing import Any

import pytest
import torch

from guerdon.backbones.latent_cache import LatentCache
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.backbones.vlm_tokens import VLMBackbone
from guerdon.core.batch import Observation
from guerdon.testing.conformance import reopen
from guerdon.testing.vlm_checkpoints import tiny_vlm

ARCHITECTURES: list[Any] = ["blip2", "smolvlm", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("vlm")
    return {name: tiny_vlm(place / name, name) for name in ARCHITECTURES}


def observations(count=3, cameras=("eye", "wrist")):
    generator = torch.Generator().manual_seed(0)
    frames = {
        camera: torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8) for camera in cameras
    }
    words = ("open the drawer", "push", "close the door, then lift the blue cube")
    return Observation(state=torch.randn(count, 3), frames=frames, instructions=words[:count])


def backbone(folder, rank=0, **more: Any):
    torch.manual_seed(1)
    lora = LoRA(rank=rank) if rank else None
    return VLMBackbone(VLM(str(folder), lora=lora), cameras=["eye", "wrist"], **more)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pictures_and_instruction_count_the_state_does_not_and_rows_do_not_mix(folders, name):
    made, seen = backbone(folders[name], micro_batch=2), observations()
    tokens = made(seen)
    assert tokens.hidden.shape == (*tokens.mask.shape, made.width) and len(set(tokens.mask.sum(1).tolist())) > 1
    for row in range(3):
        alone = made(seen[row])
        torch.testing.assert_close(tokens.hidden[row][tokens.mask[row]], alone.hidden[0], atol=1e-4, rtol=1e-4)
    first = seen[0]
    still = Observation(state=first.state + 1, frames=first.frames, instructions=first.instructions)
    assert torch.equal(made(still).hidden, made(first).hidden)
    for changed in (
        Observation(state=first.state, frames={**first.frames, "wrist": 255 - first.frames["wrist"]}),
        Observation(state=first.state, frames=first.frames, instructions=("open the window",)),
    ):
        last = [made(one).hidden[0, -1] for one in (first, changed)]
        assert (last[0] - last[1]).abs().max() > 1e-3


def test_low_rank_updates_learn_are_saved_and_make_the_version(folders):
    made, seen = backbone(folders["blip2"], rank=2), observations()
    assert made.learns and all("lora_" in name for name, _ in made.own_weights())
    before = made.version
    made(seen).hidden.square().sum().backward()
    assert {n for n, p in made.named_parameters() if p.grad is not None} == {
        n for n, _ in made.named_parameters() if "lora_" in n
    }
    with torch.no_grad():
        for _, weight in made.own_weights():
            weight.normal_(std=0.2)
    assert made.version != before
    opened = reopen(made)
    torch.testing.assert_close(opened(seen).hidden, made(seen).hidden)
    assert opened.version == made.version


def test_a_cache_does_not_mix_the_updated_and_the_published_model(folders):
    made, seen, cache = backbone(folders["smolvlm"], rank=2), observations(), LatentCache()
    with torch.no_grad():
        for _, weight in made.own_weights():
            weight.normal_(std=0.2)
    made.requires_grad_(False)
    trained = cache.tokens(made, seen)
    with made.vlm.without_lora():
        published = cache.tokens(made, seen)
        torch.testing.assert_close(published.hidden, made(seen).hidden.masked_fill(~published.mask[..., None], 0.0))
    assert (published.hidden - trained.hidden).abs().max() > 1e-3
    assert not made.learns, "a frozen update stays frozen behind without_lora"
    torch.testing.assert_close(cache.tokens(made, seen).hidden, trained.hidden)


def test_a_model_without_updates_never_learns(folders):
    made = backbone(folders["blip2"])
    assert not made.learns and not list(made.own_weights()) and made.inputs.cameras == ("eye", "wrist")


def test_bad_input_is_named(folders):
    made = backbone(folders["blip2"], max_instruction_tokens=8)
    with pytest.raises(ValueError, match=r"expected frames of camera 'wrist', got cameras \['eye'\]"):
        made(observations(cameras=("eye",)))
    with pytest.raises(ValueError, match=r"an instruction has \d+ tokens, expected at most 8: shorten it"):
        made(observations())
    with pytest.raises(ValueError, match="expected a list of at least one name, each once"):
        VLMBackbone(made.vlm, ["eye", "eye"])
    with pytest.raises(ValueError, match=r"expected \{instruction\} once"):
        VLMBackbone(made.vlm, ["eye"], prompt="do it")
    with pytest.raises(ValueError, match="expected positive numbers"):
        VLMBackbone(made.vlm, ["eye"], micro_batch=0)
