"""Vision-language models as decoders: the state after pictures, and what is refused."""

import pytest
import torch

from guerdon.backbones.decoder_vlm import VLMDecoder
from guerdon.backbones.vlm import VLM
from guerdon.core.batch import Observation
from guerdon.testing.vlm_checkpoints import tiny_vlm

from .test_decoder import LONG, SHORT, VLMS, embeddings, opened, seen


@pytest.mark.parametrize("kind", VLMS)
def test_the_state_after_a_prompt_with_pictures_gives_the_models_own_next_token(folders, kind):
    decoder = opened(kind, folders)
    observation = seen(SHORT, LONG)
    asked = [decoder.prompt.format(instruction=text) for text in (SHORT, LONG)]
    prompts = list(zip(observation.frames["front"], asked, strict=True))
    with torch.no_grad():
        wanted = decoder.vlm.begin_answers(prompts)[0].logits
        state = decoder.extend(decoder.read(observation, 0), embeddings(decoder, 2, 0))[:, 0]
        found = decoder.vlm.model.get_output_embeddings()(state)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_missing_camera_is_named(folders):
    with pytest.raises(ValueError, match=r"cameras \['front'\], 'front' is missing from \[\]"):
        opened("smolvlm", folders).read(Observation(state=torch.zeros(1, 1), instructions=(SHORT,)), 0)


def test_blip2_is_refused_with_the_policy_to_take_instead(tmp_path):
    vlm = VLM(str(tiny_vlm(tmp_path / "blip2", "blip2")))
    with pytest.raises(ValueError, match=r"BLIP-2 model.*take VLAPolicy with VLMBackbone"):
        VLMDecoder(vlm, ["front"])


def test_a_text_is_refused_before_the_pictures_are_read(folders):
    decoder = VLMDecoder(VLM(str(folders["smolvlm"]), max_tokens=80), ["front"])
    decoder.reserve(300)
    decoder.vlm.model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=r"its prompt of \d+ tokens.*shorten the instruction or the chunk"):
        decoder.read(seen("a" + " a" * 200), 4)
    with pytest.raises(ValueError, match="stands for an action bin"):
        decoder.read(seen("ü#"), 0)
