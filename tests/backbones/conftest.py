"""Checkpoints of decoders that several files share."""

from typing import Any

import pytest

from guerdon.testing.language_checkpoints import tiny_language
from guerdon.testing.vlm_checkpoints import tiny_vlm

VLMS: list[Any] = ["qwen2_5_vl", "qwen3_vl", "smolvlm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("decoders")
    found = {name: tiny_vlm(place / name, name) for name in VLMS}
    return found | {
        "language": tiny_language(place / "language"),
        "no chat": tiny_language(place / "no_chat", chat=False),
    }
