"""The report: one page, nothing to load, nothing believed that comes from data."""

import re
import shutil
import subprocess
from itertools import pairwise

import numpy as np
import pytest

from guerdon.pages import episode_cards
from guerdon.pages.report import build, render, write_report

from .evaluations import FULL, evaluation_of
from .scored import METADATA, NASTY, Memory, Reader, scored

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def data(monkeypatch):
    memory = Memory()
    monkeypatch.setattr(episode_cards, "open_dataset", lambda _: memory)
    return memory


def chosen(page):
    return {section.heading: [card.index for card in section.cards] for section in page.sections}


def test_the_page_is_whole_loads_nothing_and_escapes_everything(data):
    episodes = [*(scored(i, i / 8, std=0.1) for i in range(7)), scored(7, 0, status="video")]
    text = render(build(episodes, METADATA, {7: "ends <early>"}, evaluation=evaluation_of(**FULL)))
    page = Reader(text)
    assert not page.open  # every element is closed, in order
    assert "script" not in page.tags and "b" in page.tags and page.tags.count("img") > 8
    assert not {"em", "other", "early", "cut"} & set(page.tags)
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    assert not re.findall(r"https?://|url\(|@import", text)
    for wanted in (
        NASTY,
        "logs/<b>drawer</b>",
        "runs/<i>m</i>",
        "ends <early>",
        "</pre><script>alert(2)</script>",
        "rows: row group 3 is <cut>",  # an episode that was scored and cannot be read any more
        "nothing <em>wrong</em>",
        "runs/<other>",
    ):
        assert wanted in page.shown


def test_a_larger_value_lies_higher_on_the_page(data):
    """SVG counts from above; a chart upside down would look like any other."""
    page = Reader(render(build([scored(0, 0.9, success=0.4), scored(1, 0.1, success=0.3)], METADATA, {}, count=1)))
    best, worst = page.lines("progress")
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(best)), "progress rises"
    assert best[-1][1] < worst[-1][1], "0.9 lies above 0.1"
    success, lower = page.lines("success")
    assert best[-1][1] < success[-1][1] < lower[-1][1] < worst[-1][1], "all on one scale: 0.9, 0.4, 0.3, 0.1"
    assert best[0] == worst[0], "both begin at 0"


def test_a_critics_value_lies_higher_where_it_is_larger(data):
    def valued(index, values):
        return scored(index, np.nan, value=np.array(values, float))

    rising, falling = [-3.0] * 10 + [5.0], [5.0] * 10 + [-3.0]
    text = render(build([valued(4, rising), valued(3, falling)], METADATA, {}, count=1))
    page = Reader(text)
    up, down = page.lines("value")
    assert up[-1][1] < up[0][1] and down[-1][1] > down[0][1] and up[-1][1] == down[0][1]
    levels = re.findall(r'<text x="3" y="([\d.]+)">([^<]*)</text>', text)[:3]
    by_height = [label for _, label in sorted(levels, key=lambda level: float(level[0]))]
    assert by_height == ["5", "1", "-3"], "the scale reads from the largest down to the smallest"
    assert page.shown.count("largest fall") == 1, "of the failure only"
    assert "largest fall, 8 from 0.00 s to 1.00 s" in page.shown


def test_best_worst_and_doubtful_episodes_are_told_apart(data):
    finals, spread = [0.5, 0.9, 0.1, 0.8, 0.2, 0.6, 0.4, 0.55], [0.01, 0.3, 0.3, 0.3, 0.3, 0.2, 0.02, 0.1]
    episodes = [scored(i, f, std=s) for i, (f, s) in enumerate(zip(finals, spread, strict=True))]
    page = build(episodes, METADATA, {}, count=2)
    assert chosen(page) == {"Best episodes": [1, 3], "Worst episodes": [2, 4], "Most doubtful episodes": [5, 7]}
    assert page.score_name == "final progress"
    assert page.sections[-1].line.startswith("Largest mean standard deviation")


def test_success_outranks_progress_and_doubt_without_spread_is_nearness_to_a_half(data):
    episodes = [scored(i, 1 - i / 10, success=s) for i, s in enumerate([0.1, 0.95, 0.4, 0.52, 0.9])]
    page = build(episodes, METADATA, {}, count=1)
    assert chosen(page) == {"Best episodes": [1], "Worst episodes": [0], "Most doubtful episodes": [3]}
    assert page.sections[-1].line.startswith("Final success probability nearest ½")


def test_outcomes_counts_and_bad_episodes(data):
    episodes = [*(scored(i, 0.5) for i in range(4)), scored(4, 0, status="video"), scored(5, 0, status="empty")]
    page = build(episodes, METADATA, {4: "cut short"})
    assert page.bad == [(4, "video", "cut short"), (5, "empty", "")]
    assert page.counts["episodes"] == "6" and page.counts["status video"] == "1"
    assert (page.counts["successes"], page.counts["failures"], page.counts["outcome unknown"]) == ("2", "1", "1")
    assert page.outcomes is not None
    assert {row.name: len(row.dots) for row in page.outcomes.rows} == {"success": 2, "failure": 1, "unknown": 1}


def test_a_page_without_the_data_says_so(tmp_path):
    page = build([scored(0, 0.4), scored(1, 0.6)], {"data": str(tmp_path / "gone")}, {})
    assert "cannot be opened any more" in page.facts["data"]
    assert "outcome unknown" in render(page)


def test_a_model_without_progress_and_success_is_ranked_by_reward(data):
    episodes = [scored(i, v) for i, v in ((0, 0.2), (1, 0.7))]
    for episode in episodes:
        episode.progress[:] = np.nan
    page = build(episodes, METADATA, {})
    assert page.score_name == "summed reward" and chosen(page)["Best episodes"] == [1]
    assert "neither progress nor success" in render(page)


def test_a_page_of_bad_episodes_alone(data):
    text = render(build([scored(0, 0, status="video")], METADATA, {0: "cut short"}))
    page = Reader(text)
    assert not page.open and "cut short" in page.shown and "Final score by true outcome" not in page.shown


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scores\.parquet"):
        write_report(tmp_path, tmp_path / "page.html")
    with pytest.raises(ValueError, match="at least one episode to show"):
        write_report(tmp_path, tmp_path / "page.html", episodes=0)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_report(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="hold no episode"):
        build([], METADATA, {})


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_opens_the_page_without_complaint(data, tmp_path):
    page = tmp_path / "page.html"
    episodes = [scored(i, i / 8, std=0.1) for i in range(8)]
    page.write_text(render(build(episodes, METADATA, {}, evaluation=evaluation_of(**FULL))))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    command = [BROWSER, *options, "--enable-logging=stderr", "--v=0", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Most doubtful episodes" in done.stdout and "Reliability" in done.stdout
    assert "CONSOLE" not in done.stderr
