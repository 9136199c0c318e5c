import gc
import warnings
from typing import Any

import clip
import pytest
import torch
from clip.clip import _transform
from PIL import Image

from guerdon.backbones import openai_clip
from guerdon.backbones.openai_clip import ClipEncoder, ClipText, load_checkpoint
from guerdon.core.files import sha256_file
from guerdon.testing import tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip(folder / "archive.pt", "archive")
    tiny_clip(folder / "state_dict.pt", "state_dict")
    tiny_clip(folder / "weights.safetensors", "safetensors")
    return folder


@pytest.fixture
def images():
    return torch.randint(0, 256, (4, 3, 45, 70), dtype=torch.uint8)


def pillow(frame):
    return Image.fromarray(frame.permute(1, 2, 0).numpy())


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(45, 70), (70, 45), (32, 32), (20, 31), (180, 320), (33, 32)])
def test_preprocessing_equals_the_packages_own(folder, height, width):
    """Smooth and noisy pictures, larger and smaller than the tower reads, in both directions."""
    encoder = ClipEncoder(str(folder / "archive.pt"))
    noise = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    ramp = torch.linspace(0, 255, width).expand(1, 3, height, width).to(torch.uint8)
    for frame in (noise, ramp):
        expected = _transform(32)(pillow(frame[0]))
        # one grey level of 255 over the smallest deviation, 0.2613: 0.0150
        torch.testing.assert_close(encoder.preprocess(frame)[0], expected, atol=0.0151, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["archive.pt", "state_dict.pt", "weights.safetensors"])
def test_features_equal_the_packages_own(folder, images, file):
    made: Any = clip.load(str(folder / "archive.pt"), device="cpu", jit=False)
    model, transform = made
    texts = ["open the drawer", "put the cup on the plate"]
    with torch.no_grad():
        expected_image = model.encode_image(torch.stack([transform(pillow(frame)) for frame in images]))
        expected_text = model.encode_text(clip.tokenize(texts))
    encoder, text = ClipEncoder(str(folder / file)), ClipText(str(folder / file))
    torch.testing.assert_close(encoder.encode(images), expected_image, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(text(texts), expected_text, atol=1e-5, rtol=1e-5)
    assert encoder.encode(images).dtype == torch.float32 and encoder.width == text.width == 32


@pytest.mark.slow
def test_frozen_always(folder, images):
    parent = torch.nn.Sequential(ClipEncoder(str(folder / "archive.pt"))).train()
    assert not any(module.training for module in parent[0].modules())
    assert not any(p.requires_grad for p in parent.parameters())
    assert not parent(images).requires_grad
    assert not ClipText(str(folder / "archive.pt")).train().training


@pytest.mark.slow
def test_both_towers_share_one_load_that_is_freed_with_them(folder):
    gc.collect()
    before = len(openai_clip._loaded)
    encoder = ClipEncoder(str(folder / "archive.pt"))
    text = ClipText(str(folder / "archive.pt"))
    assert text.checkpoint is encoder.checkpoint and len(openai_clip._loaded) == before + 1
    assert text.tower.text_projection is encoder.checkpoint.model.text_projection
    del encoder, text
    gc.collect()
    assert len(openai_clip._loaded) == before


@pytest.mark.slow
def test_a_trainable_tower_is_its_own_and_is_saved_with_weights(folder, images, tmp_path):
    frozen = ClipEncoder(str(folder / "archive.pt"))
    before = frozen.encode(images)
    tower = ClipEncoder(str(folder / "archive.pt"), trainable=True).train()
    base = tower.revision
    assert tower.training and all(p.requires_grad for p in tower.parameters())
    optimizer = torch.optim.SGD(tower.parameters(), lr=1e-2)
    tower(images).square().sum().backward()
    optimizer.step()
    assert torch.equal(frozen.encode(images), before)
    assert (tower.encode(images) - before).abs().max() > 1e-3 and tower.revision != base
    tower.save_pretrained(tmp_path / "tower")
    opened = ClipEncoder.from_pretrained(tmp_path / "tower")
    assert torch.equal(opened.encode(images), tower.encode(images))


@pytest.mark.slow
def test_saved_by_name_and_revision(folder, images, tmp_path):
    encoder, text = ClipEncoder(str(folder / "archive.pt")), ClipText(str(folder / "archive.pt"))
    for component in (encoder, text):
        component.save_pretrained(tmp_path / type(component).__name__)
        size = (tmp_path / type(component).__name__ / "model.safetensors").stat().st_size
        assert size < 1000  # no weights
    assert torch.equal(ClipEncoder.from_pretrained(tmp_path / "ClipEncoder").encode(images), encoder.encode(images))
    assert torch.equal(ClipText.from_pretrained(tmp_path / "ClipText")(["go"]), text(["go"]))
    assert encoder.init_args["revision"] == encoder.revision == text.revision


def test_another_checkpoint_in_its_place_is_refused(tmp_path):
    file = tiny_clip(tmp_path / "clip.pt", "state_dict")
    ClipEncoder(str(file)).save_pretrained(tmp_path / "encoder")
    tiny_clip(file, "state_dict", seed=1)
    with pytest.raises(ValueError, match="this is another checkpoint"):
        ClipEncoder.from_pretrained(tmp_path / "encoder")


@pytest.mark.slow
def test_an_over_long_instruction_is_cut_with_a_warning(folder):
    text = ClipText(str(folder / "archive.pt"))
    long = "pick up the red cup " * 30  # 150 words
    with pytest.warns(UserWarning, match="reads 77 tokens; the end of this instruction is ignored: 'pick up the red"):
        got = text([long, "short"])
    with torch.no_grad():
        expected = text.tower(clip.tokenize(long, truncate=True))[0]
    torch.testing.assert_close(got[0], expected, atol=1e-6, rtol=1e-5)
    with warnings.catch_warnings():  # known by now: said once
        warnings.simplefilter("error")
        assert torch.equal(text([long])[0], got[0])


def test_instructions_come_in_order_and_once(folder):
    text = ClipText(str(folder / "archive.pt"))
    a, b, again = text(["open", "close", "open"])
    assert torch.equal(a, again) and not torch.allclose(a, b)
    assert text([]).shape == (0, 32)


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nothing is downloaded unasked: .* download=True"):
        ClipEncoder("ViT-B/32")
    with pytest.raises(FileNotFoundError, match=r"no CLIP checkpoint 'ViT-Z/1'.*published names RN50, "):
        ClipText("ViT-Z/1")


def test_a_damaged_file_in_the_cache_is_not_fetched_again_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cached = tmp_path / ".cache" / "clip" / "ViT-B-32.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    with pytest.raises(ValueError, match="is not the published ViT-B/32"):
        ClipEncoder("ViT-B/32")


@pytest.mark.slow
def test_a_published_name_is_opened_from_the_cache(folder, tmp_path, monkeypatch, images):
    monkeypatch.setenv("HOME", str(tmp_path))
    cached = tiny_clip(tmp_path / ".cache" / "clip" / "ViT-B-32.pt")
    sha256 = sha256_file(cached)
    monkeypatch.setitem(openai_clip.PUBLISHED, "ViT-B/32", f"https://example.invalid/{sha256}/ViT-B-32.pt")
    encoder = ClipEncoder("ViT-B/32", download=True)  # asked for, and not needed
    assert encoder.name == "clip-ViT-B-32" and encoder.revision == sha256[:16]
    assert encoder.init_args["download"] is False
    expected = ClipEncoder(str(folder / "archive.pt")).encode(images)
    assert torch.equal(encoder.encode(images), expected)


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    for file in ("text.pt", "other.pt", "cut.safetensors"):
        with pytest.raises(ValueError, match=f"{file} cannot be opened as a CLIP checkpoint"):
            load_checkpoint(str(tmp_path / file))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"visual.conv1.weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="cannot be opened"):
        load_checkpoint(str(tmp_path / "trap.pt"))
    assert not (tmp_path / "ran").exists()


def test_tiny_clip_refuses_sizes_clip_cannot_have(tmp_path):
    with pytest.raises(ValueError, match="multiples of 16 and of 64"):
        tiny_clip(tmp_path / "clip.pt", width=32)
    assert not list(tmp_path.iterdir())
