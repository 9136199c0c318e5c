"""JSON-lines files are written whole, and read with the numbers of their lines."""

import pytest

from guerdon.evaluation.watch.json_lines import read_json_lines, write_json_lines


def test_objects_come_back_under_the_numbers_of_their_lines(tmp_path):
    path = tmp_path / "made" / "lines.jsonl"
    write_json_lines(path, [{"a": 1, "τ": None}, {}])
    assert path.read_text() == '{"a": 1, "\\u03c4": null}\n{}\n'
    assert read_json_lines(path) == {1: {"a": 1, "τ": None}, 2: {}}
    path.write_text('\n{"a": 1}\n\n{"b": 2}')
    assert read_json_lines(path) == {2: {"a": 1}, 4: {"b": 2}}


def test_a_last_line_without_an_end_may_be_broken_and_no_other(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"b"')
    assert read_json_lines(path) == {1: {"a": 1}}
    path.write_text('{"a": 1}\n{"b"\n')
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2: expected a JSON object, got '\{\"b\"'"):
        read_json_lines(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"line 1: expected a JSON object, got '\[1\]'"):
        read_json_lines(path)


def test_a_number_that_is_none_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_json_lines(path, [{"a": 1}])
    with pytest.raises(ValueError, match="JSON"):
        write_json_lines(path, [{"a": float("nan")}])
    assert read_json_lines(path) == {1: {"a": 1}} and [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
