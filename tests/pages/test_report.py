"""The report: one page, nothing to load, nothing believed that comes from data."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from guerdon.core.batch import End
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Episode, EpisodeSummary
from guerdon.pages import report
from guerdon.pages.report import build, write_report
from guerdon.pages.report_metrics import read_evaluation, render_evaluation
from guerdon.pages.report_page import render
from guerdon.scoring.scores import ScoredEpisode

NASTY = "open <script>alert('x')</script> & \"close\""
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Memory:
    fps, state_size, action_size, cameras, name = 10.0, 3, 1, ("front",), "memory"

    def __init__(self, pictures=True, count=8):
        self.pictures, self.count = pictures, count

    def __len__(self):
        return self.count

    def summary(self, place):
        success = None if place == 1 else float(place % 2 == 0)
        return EpisodeSummary(index=place, steps=10, instruction=NASTY, success=success)

    def __getitem__(self, place):
        if place == 2:
            raise BadEpisodeError(2, "rows", "row group 3 is <cut>")
        pictures = np.random.default_rng(place).integers(0, 255, (11, 3, 24, 32), np.uint8)
        return Episode(
            index=place,
            state=np.random.default_rng(place).normal(size=(11, 3)).astype(np.float32),
            actions=np.zeros((10, 1), np.float32),
            end=End.CUT,
            frames={"front": ArrayFrames(values=pictures, step=np.arange(11))} if self.pictures else {},
        )


def scored(index, final, std=np.nan, status="ok", success=None):
    values = np.linspace(0, final, 11)
    unknown = np.full(11, np.nan)
    return ScoredEpisode(
        index=index,
        status=status,
        seconds=np.arange(11) / 10,
        progress=values if status == "ok" else unknown,
        success=unknown if success is None else np.linspace(0, success, 11),
        reward=np.append(np.diff(values), np.nan) if status == "ok" else unknown,
        std=np.full(11, std),
    )


METADATA = {
    "data": "logs/<b>drawer</b>",
    "model": "runs/<i>m</i>",
    "class_path": "guerdon.rewards.progress.ProgressReward",
    "model_hash": "0123456789abcdef",
    "version": "0.1.0",
    "configuration": {"note": "</pre><script>alert(2)</script>"},
}


@pytest.fixture
def data(monkeypatch):
    memory = Memory()
    monkeypatch.setattr(report, "open_dataset", lambda _: memory)
    return memory


class Page(HTMLParser):
    """Tags and what they would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)


def test_the_page_is_whole_loads_nothing_and_escapes_everything(data):
    episodes = [*(scored(i, i / 8, std=0.1) for i in range(7)), scored(7, 0, status="video")]
    text = render(build(episodes, METADATA, {7: "ends <early>"}))
    page = Page(text)
    assert not page.open  # every element is closed, in order
    assert "script" not in page.tags and "b" in page.tags and page.tags.count("img") > 8
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    assert not re.findall(r"https?://|url\(|@import", text)
    shown = "".join(page.text)
    assert NASTY in shown and "logs/<b>drawer</b>" in shown and "runs/<i>m</i>" in shown
    assert "ends <early>" in shown and "</pre><script>alert(2)</script>" in shown
    assert "rows: row group 3 is <cut>" in shown  # an episode that was scored and cannot be read any more


def test_best_worst_and_doubtful_episodes_are_told_apart(data):
    finals, spread = [0.5, 0.9, 0.1, 0.8, 0.2, 0.6, 0.4, 0.55], [0.01, 0.3, 0.3, 0.3, 0.3, 0.2, 0.02, 0.1]
    episodes = [scored(i, f, std=s) for i, (f, s) in enumerate(zip(finals, spread, strict=True))]
    page = build(episodes, METADATA, {}, count=2)
    found = {name: [c.index for c in cards] for name, (_, cards) in page.sections.items()}
    assert found == {"Best episodes": [1, 3], "Worst episodes": [2, 4], "Most doubtful episodes": [5, 7]}
    assert page.score_name == "final progress"
    assert page.sections["Most doubtful episodes"][0].startswith("Largest mean standard deviation")


def test_success_outranks_progress_and_doubt_without_spread_is_nearness_to_a_half(data):
    episodes = [scored(i, 1 - i / 10, success=s) for i, s in enumerate([0.1, 0.95, 0.4, 0.52, 0.9])]
    page = build(episodes, METADATA, {}, count=1)
    found = {name: [c.index for c in cards] for name, (_, cards) in page.sections.items()}
    assert found == {"Best episodes": [1], "Worst episodes": [0], "Most doubtful episodes": [3]}
    assert page.sections["Most doubtful episodes"][0].startswith("Final success probability nearest ½")


def test_outcomes_counts_and_bad_episodes(data):
    episodes = [*(scored(i, 0.5) for i in range(4)), scored(4, 0, status="video"), scored(5, 0, status="empty")]
    page = build(episodes, METADATA, {4: "cut short"})
    assert page.bad == [(4, "video", "cut short"), (5, "empty", "")]
    assert page.counts["episodes"] == "6" and page.counts["status video"] == "1"
    assert (page.counts["successes"], page.counts["failures"], page.counts["outcome unknown"]) == ("2", "1", "1")


def test_states_are_drawn_where_there_is_no_camera(data):
    data.pictures = False
    text = render(build([scored(i, i / 4) for i in range(4)], METADATA, {}))
    assert "No camera: 3 of 3 state dimensions" in text and "<img" not in text


def test_a_page_without_the_data_says_so(tmp_path):
    page = build([scored(0, 0.4), scored(1, 0.6)], {"data": str(tmp_path / "gone")}, {})
    assert "cannot be opened any more" in page.facts["data"]
    assert "outcome unknown" in render(page)


def test_gaps_are_not_drawn_over(data):
    episode = scored(0, 1.0)
    episode.progress[4:6] = np.nan
    text = render(build([episode], METADATA, {}))
    assert len(re.findall('class="curve progress"', text)) == 2


def test_a_model_without_progress_and_success_is_ranked_by_reward(data):
    episodes = [scored(i, v) for i, v in ((0, 0.2), (1, 0.7))]
    for episode in episodes:
        episode.progress[:] = np.nan
    page = build(episodes, METADATA, {})
    assert page.score_name == "summed reward"
    assert [c.index for c in page.sections["Best episodes"][1]] == [1]
    assert "neither progress nor success" in render(page)


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scores\.parquet"):
        write_report(tmp_path, tmp_path / "page.html")
    with pytest.raises(ValueError, match="at least one episode to show"):
        write_report(tmp_path, tmp_path / "page.html", episodes=0)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_report(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="hold no episode"):
        build([], METADATA, {})


def figures_of(**more):
    """What `guerdon evaluate --json` writes, as far as a page needs it."""

    def figure(value, low=None, high=None, n=4):
        return {"value": value, "low": low, "high": high, "n": n, "n_undefined": 1, "macro": value}

    model = {
        "success_auroc": figure(0.93, 0.81, 0.99),
        "calibration_error": figure(0.12),
        "instruction_auroc": figure(None),
    }
    return {
        "model": {"hash": METADATA["model_hash"]},
        "data": "<b>held</b>",
        "split": "",
        "counts": {"episodes": 5, "tasks": 2},
        "conventions": {"pairs": "of one task"},
        "figures": {"model": model, "clock": {"success_auroc": figure(0.5)}},
        "notes": ["nothing <em>wrong</em>"],
        **more,
    }


FULL = {
    "threshold": 0.5,
    "tasks": [{"task": 0, "instruction": NASTY, "episodes": 3, "figures": {"success_auroc": {"value": 0.75}}}],
    "reliability": {"probability": [0.1, None, 0.9], "happened": [0.0, None, 0.5], "count": [8, 0, 2]},
    "confusion": {
        "tasks": [0, 1],
        "instructions": [NASTY, "close"],
        "cells": [[0.9, None], [0.2, 0.7]],
        "counts": [[2, 0], [2, 2]],
        "missing": ["videos of 'close' have no score under 'open'"],
    },
    "comparison": {
        "model": {"path": "runs/<other>"},
        "episodes": 5,
        "left_out": 0,
        "differences": {
            "success_auroc": {
                "first": 0.93, "second": 0.8, "difference": 0.13, "low": 0.02, "high": 0.2, "n": 5, "better": "first",
            },
            "instruction_auroc": {
                "first": None, "second": None, "difference": None, "low": None, "high": None, "n": 0, "better": "",
            },
        },
    },
}  # fmt: skip


def test_figures_are_drawn_and_escaped(data):
    text = render(build([scored(i, i / 8) for i in range(4)], METADATA, {}, evaluation=figures_of(**FULL)))
    page = Page(text)
    assert not page.open and "script" not in page.tags and "em" not in page.tags and "other" not in page.tags
    assert not re.findall(r"https?://|url\(|@import", text)
    shown = "".join(page.text)
    for wanted in (
        "0.93",
        "0.81 … 0.99",
        "<b>held</b>",
        "nothing <em>wrong</em>",
        NASTY,
        "runs/<other>",
        "this is better",
    ):
        assert wanted in shown
    assert "+0.13 +0.02 … +0.20" in shown.replace("\n", "") and "4 (1 undefined)" in shown
    assert shown.count("videos of 'close' have no score under 'open'") == 1


def test_the_reliability_diagram_by_hand():
    text = render_evaluation(figures_of(**FULL))
    # a plot of 300 units from (34, 310): 0.1 said and never so, 0.9 said and so half of the time; an empty bin has none
    assert 'points="64.0,310.0 304.0,160.0"' in text
    assert text.count('class="reliable"') == text.count('class="bar"') == 2
    assert "said 0.90, was 0.50, 2 times" in text


def test_an_empty_cell_is_a_dash_and_no_zero():
    text = render_evaluation(figures_of(**FULL))
    cells = re.findall(r'<td class="(cell[^"]*)"[^>]*>([^<]*)</td>', text)
    assert cells == [("cell own", "0.90"), ("cell soft", "–"), ("cell", "0.20"), ("cell own", "0.70")]


def test_figures_of_an_older_file_are_drawn_as_far_as_they_go():
    text = render_evaluation(figures_of())
    assert "success AUROC" in text and "reliability" not in text and "Instructions and videos" not in text


def test_files_that_hold_no_figures(tmp_path, data):
    for text, says in (("{", "is no JSON"), ("[1]", "holds no figures"), ('{"figures": {}}', "holds no figures")):
        (tmp_path / "figures.json").write_text(text)
        with pytest.raises(ValueError, match=says):
            read_evaluation(tmp_path / "figures.json")
    with pytest.raises(FileNotFoundError, match="guerdon evaluate --json"):
        read_evaluation(tmp_path / "nothing.json")
    (tmp_path / "figures.json").write_text(json.dumps(figures_of()))
    assert read_evaluation(tmp_path / "figures.json")["split"] == ""


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_opens_the_page_without_complaint(data, tmp_path):
    page = tmp_path / "page.html"
    episodes = [scored(i, i / 8, std=0.1) for i in range(8)]
    page.write_text(render(build(episodes, METADATA, {}, evaluation=figures_of(**FULL))))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    command = [BROWSER, *options, "--enable-logging=stderr", "--v=0", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Most doubtful episodes" in done.stdout and "Reliability" in done.stdout
    assert "CONSOLE" not in done.stderr
