"""Outputs that can be written are told from those that cannot before any work is done."""

import io
import sys

import pytest

from guerdon.commands.output import require_writable, table_console


def test_a_file_that_can_be_written_may_lie_in_folders_that_are_not_there_yet(tmp_path):
    (tmp_path / "old.json").write_text("")
    for path in (None, tmp_path / "a.json", tmp_path / "a" / "b" / "c.json", tmp_path / "old.json"):
        require_writable(path)
    assert [p.name for p in tmp_path.iterdir()] == ["old.json"]


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IsADirectoryError, match="is a folder: name the file to write"):
        require_writable(tmp_path)
    with pytest.raises(PermissionError, match=r"file is no folder that can be written; choose another place"):
        require_writable(tmp_path / "file" / "a.json")


def test_tables_are_not_folded_in_a_pipe(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stdout", pipe)
    console = table_console(150)
    console.print("x" * 140)
    assert console.width == 150 and pipe.getvalue() == "x" * 140 + "\n"
