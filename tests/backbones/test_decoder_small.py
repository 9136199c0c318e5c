"""The small decoder: what its prompt holds, how it starts, and what is refused."""

import pytest
import torch

from guerdon.backbones.decoder_small import SmallDecoder

from .test_decoder import embeddings, seen


def after(decoder, *instructions):
    """State behind the prompts and one embedding."""
    prefix = decoder.read(seen(*instructions), 1)
    return decoder.extend(prefix, embeddings(decoder, len(instructions), 1)[:1].expand(len(instructions), -1, -1))


def test_the_instruction_is_part_of_the_prompt_unless_there_are_no_buckets():
    torch.manual_seed(0)
    reads, deaf = SmallDecoder(width=16, heads=2, buckets=64), SmallDecoder(width=16, heads=2, buckets=0)
    one, two = (after(reads, text) for text in ("open the drawer", "push the block"))
    assert not torch.allclose(one, two, atol=1e-4)
    assert torch.equal(after(deaf, "open the drawer"), after(deaf, "push the block"))


def test_it_starts_nearly_even_with_neighbours_alike():
    torch.manual_seed(0)
    decoder = SmallDecoder(width=32, heads=2)
    rows = decoder.reserve(64)
    assert rows.tokens == tuple(range(64)) and rows.inputs.shape == rows.outputs.shape == (64, 32)
    probability = (after(decoder, "open it").detach()[0, -1] @ rows.outputs.T).softmax(-1)
    assert float(probability.max() / probability.min()) < 1.2
    apart = (rows.inputs[1:] - rows.inputs[:-1]).norm(dim=1).mean()
    assert float(apart) < float((rows.inputs[32:] - rows.inputs[:32]).norm(dim=1).mean())


@pytest.mark.parametrize("bad", [{"width": 15}, {"layers": 0}, {"heads": 3}, {"buckets": -1}])
def test_sizes_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match="a multiple of twice the heads"):
        SmallDecoder(**bad)
