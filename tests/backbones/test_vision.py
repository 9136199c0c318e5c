import os
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from guerdon.backbones.vision import ConvEncoder, VisionEncoder, resize


def frames(count, height=48, width=64, seed=0):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(17, 31), (96, 96), (200, 130)])
def test_resize_equals_pillow(mode, height, width):
    given = frames(1, 90, 120)
    expected = Image.fromarray(given[0].permute(1, 2, 0).numpy()).resize(
        (width, height), getattr(Image.Resampling, mode.upper())
    )
    got = resize(given, height, width, mode)[0].permute(1, 2, 0)
    assert np.abs(got.numpy() - np.asarray(expected, np.float32)).max() <= 1  # one grey level


def test_resize_of_the_same_size_changes_nothing():
    given = frames(2)
    assert torch.equal(resize(given, 48, 64, "bicubic"), given.float())


@given(st.integers(0, 7), st.integers(1, 9), st.integers(0, 100))
def test_micro_batches_change_nothing(count, micro_batch, seed):
    encoder = ConvEncoder(width=8, channels=(4, 8), size=16)
    given = frames(count, seed=seed)
    together, apart = encoder(given), encoder.encode(given, micro_batch)
    assert together.shape == (count, 8) and not apart.requires_grad
    torch.testing.assert_close(apart, together.detach(), atol=1e-5, rtol=1e-5)


def test_more_frames_than_a_micro_batch():
    encoder, given = ConvEncoder(width=8, channels=(4, 8), size=16), frames(70)
    one_by_one = torch.stack([encoder(frame[None])[0] for frame in given])
    torch.testing.assert_close(encoder(given), one_by_one, atol=1e-5, rtol=1e-5)


def test_training_and_evaluation_agree():
    encoder, given = ConvEncoder(), frames(3, 100, 180)
    assert torch.equal(encoder.train()(given), encoder.eval()(given))
    assert encoder(given).shape == (3, 128)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_where_a_square_is(seed):
    """Left or right half, at any height, colour and brightness: 100 % needs position, not colour."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def sample(count):
        images = torch.randint(0, 120, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        column = torch.randint(0, 26, (count,), generator=generator)
        column += (column >= 13) * 1  # 0…12 is left, 14…26 is right
        row = torch.randint(0, 26, (count,), generator=generator)
        for image, x, y in zip(images, column.tolist(), row.tolist(), strict=True):
            image[:, y : y + 6, x : x + 6] += 100
        return images, (column > 13).float()

    encoder = ConvEncoder(width=16, channels=(8, 16), size=32)
    head = torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(60):
        images, label = sample(64)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(encoder(images))[:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, label = sample(500)
    accuracy = ((head(encoder.encode(images))[:, 0] > 0) == (label > 0)).float().mean()
    assert accuracy > 0.95


def test_every_parameter_gets_a_gradient():
    encoder = ConvEncoder(width=8, channels=(4, 8), size=16)
    encoder(frames(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_revision_follows_the_weights():
    encoder = ConvEncoder(width=8, channels=(4, 8), size=16)
    before = encoder.revision
    assert before == encoder.revision and len(before) == 16
    with torch.no_grad():
        encoder.head.bias[0] += 1e-3
    assert encoder.revision != before
    assert "/" not in encoder.name


def test_bad_frames_and_sizes_are_named():
    encoder = ConvEncoder(width=8, channels=(4, 8), size=16)
    with pytest.raises(ValueError, match=r"shape \(2, 1, 8, 8\): expected \(M, 3, H, W\)"):
        encoder(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError):
        encoder(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="micro_batch is 0"):
        encoder.encode(frames(1), 0)
    with pytest.raises(ValueError, match="size 8 leaves 1 cell after 3 halvings"):
        ConvEncoder(channels=(4, 4, 4), size=8)
    with pytest.raises(NotImplementedError, match="VisionEncoder cannot read frames: write preprocess"):
        VisionEncoder().preprocess(frames(1))


@pytest.mark.slow
def test_float_frames_are_refused_without_shape_checks_too():
    """Users run without the shape checker; the message must come from the encoder itself."""
    code = (
        "import torch; from guerdon.backbones.vision import ConvEncoder; "
        "ConvEncoder(size=16, channels=(4, 8))(torch.zeros(2, 3, 8, 8))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert "frames are torch.float32: expected uint8" in run.stderr


def test_saved_and_opened_again(tmp_path):
    encoder, given = ConvEncoder(width=8, channels=(4, 8), size=16).eval(), frames(3)
    encoder.save_pretrained(tmp_path / "encoder")
    opened = ConvEncoder.from_pretrained(tmp_path / "encoder")
    assert torch.equal(opened(given), encoder(given))
    assert (opened.revision, opened.name) == (encoder.revision, encoder.name)


@pytest.mark.slow
def test_vision_and_language_import_neither_clip_nor_transformers():
    code = (
        "import sys; import guerdon.backbones.vision, guerdon.backbones.language, guerdon.backbones.temporal; "
        "sys.exit(', '.join(m for m in ('clip', 'torchvision', 'transformers') if m in sys.modules) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
