"""Scored episodes and their data in memory, and a reader of pages."""

from html.parser import HTMLParser

import numpy as np

from guerdon.core.batch import End
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Episode, EpisodeSummary
from guerdon.scoring.scores import ScoredEpisode

NASTY = "open <script>alert('x')</script> & \"close\""
METADATA = {
    "data": "logs/<b>drawer</b>",
    "model": "runs/<i>m</i>",
    "class_path": "guerdon.ProgressReward",
    "model_hash": "0123456789abcdef",
    "version": "0.1.0",
    "configuration": {"note": "</pre><script>alert(2)</script>"},
}


class Memory:
    """Successes at even places, failures at odd ones, the outcome of place 1 unknown; place 2 cannot be read."""

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


def scored(index, final, std=np.nan, status="ok", success=None, **more):
    """Progress rises evenly to its final value, and so does success where it is given."""
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
        **more,
    )


class Reader(HTMLParser):
    """Tags with their attributes, texts, and what a page would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.text, self.open, self.found = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.found.append((tag, dict(attrs)))
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text.append(text)

    @property
    def shown(self):
        """All text, with single spaces."""
        return " ".join("".join(self.text).split())

    def lines(self, kind):
        """Points of the lines of a class."""
        points = [a["points"] for tag, a in self.found if tag == "polyline" and kind in a["class"].split()]
        return [[tuple(map(float, point.split(","))) for point in line.split()] for line in points]
