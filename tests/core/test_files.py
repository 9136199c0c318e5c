import pytest

from guerdon.core.files import replacing, write_json, write_text


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
