"""Files that appear whole or not at all, strict JSON, and hashes."""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from guerdon.core.files import read_json, replacing, sha256_file, short_hash, without_nan, write_json, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as fresh:
        fresh.write_text("half")
        assert fresh.parent == tmp_path and fresh.suffix == ".txt"
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["page.txt"]
    with replacing(path) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["page.txt"]
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "no" / "page.txt") as fresh:
        fresh.write_text("nowhere")


def test_json_has_no_number_that_is_none(tmp_path):
    path = tmp_path / "made" / "figures.json"
    write_json(path, {"τ": [1, None]})
    assert path.read_text(encoding="utf-8") == '{\n  "τ": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert "τ" in path.read_text(encoding="utf-8") and len(list(path.parent.iterdir())) == 1


def test_text_replaces_a_file_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "made" / "page.txt"
    write_text(path, "old\n")
    write_text(path, "τ\n")
    assert path.read_bytes() == "τ\n".encode() and [p.name for p in path.parent.iterdir()] == ["page.txt"]


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    path = tmp_path / "marker.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_json(path, [number] * 1000), range(40)))
    found = json.loads(path.read_text())
    assert len(found) == 1000 and len(set(found)) == 1 and [p.name for p in tmp_path.iterdir()] == ["marker.json"]


def test_json_is_read_or_explained(tmp_path):
    path = tmp_path / "settings.json"
    with pytest.raises(FileNotFoundError, match=r"settings\.json does not exist: expected the settings of a demo"):
        read_json(path, "the settings of a demo")
    write_json(path, {"τ": [1, None]})
    assert read_json(path, "anything") == {"τ": [1, None]}
    for content in (b"{", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"settings\.json is no JSON: .*; expected JSON with the settings of a demo"
        ):
            read_json(path, "the settings of a demo")


def test_what_is_no_number_becomes_null(tmp_path):
    values = {"a": [1.0, math.nan, (math.inf, "nan")], 2: {"b": -math.inf, "c": None, "d": True}}
    assert without_nan(values) == {"a": [1.0, None, [None, "nan"]], "2": {"b": None, "c": None, "d": True}}
    write_json(tmp_path / "x.json", without_nan(values))
    assert without_nan(np.float64("nan")) is None


def test_hashes(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256_file(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    # the first digits of the SHA-256 of {"a": [1], "b": null}, as components and runs are named by
    expected = hashlib.sha256(b'{"a": [1], "b": null}').hexdigest()[:16]
    assert short_hash({"b": None, "a": [1]}) == short_hash({"a": [1], "b": None}) == expected
