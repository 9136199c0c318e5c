"""``guerdon report``: a page, its path, or one clear line."""

import pytest

from guerdon.cli import main

pytestmark = pytest.mark.xdist_group("cli")


def test_it_writes_the_page_and_prints_its_path(here, tmp_path, capsys):
    assert main(["report", "--scores", str(here / "scores"), "--out", "page.html"]) == 0
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == "page.html"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("report --scores {place}/held --out r.html", "scores"),
        ("report --scores {place}/scores --out {place}/run", "is a folder"),
        ("report --scores {place}/scores --out r.html --episodes 0", "at least one episode"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(refused, command, says):
    refused(command, says)
