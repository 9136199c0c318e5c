"""A label page in memory, served over a real socket, for the tests of the server and of the browser."""

import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import Any

import numpy as np

from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Episode, EpisodeSummary
from guerdon.pages.label_clips import Clips
from guerdon.pages.label_queue import LabelQueue
from guerdon.pages.label_server import LabelPage, bind, make_server
from guerdon.preference.answer_log import AnswerLog
from guerdon.preference.segments import Segment, SegmentPair

NASTY = "open <script>alert('x')</script> & \"close\""


class Memory:
    """Episodes whose frames are of one grey each: 40 + the number of the observation; episode 9 cannot be read."""

    fps, state_size, action_size, cameras, name = 10.0, 0, 0, ("front", "wrist"), "memory"

    def __init__(self, steps=10, every=1, size=(48, 64)):
        self.steps, self.every, self.size = steps, every, size
        self.reads = 0

    def __len__(self):
        return 10

    def summary(self, place):
        return EpisodeSummary(index=place, steps=self.steps, instruction=NASTY)

    def __getitem__(self, place):
        self.reads += 1
        if place == 9:
            raise BadEpisodeError(9, "video", "the file is <cut>")
        step = np.arange(0, self.steps + 1, self.every)
        grey = (40 + step).astype(np.uint8)[:, None, None, None]
        return Episode(
            index=place,
            state=np.zeros((self.steps + 1, 0), np.float32),
            actions=np.zeros((self.steps, 0), np.float32),
            frames={"front": ArrayFrames(values=np.broadcast_to(grey, (len(step), 3, *self.size)).copy(), step=step)},
        )


def make_pairs(count, second=None):
    """Pairs p0, p1, … of episodes 0 and 1; the segments start at different steps."""
    return [
        SegmentPair(
            id=f"p{n}",
            first=Segment(episode=0, start=n % 4, stop=n % 4 + 5),
            second=second or Segment(episode=1, start=n % 4, stop=n % 4 + 3),
        )
        for n in range(count)
    ]


class Running:
    """A label page that is served; requests to it carry what the page's carry."""

    def __init__(self, page, port):
        self.page, self.token = page, page.token
        self.base = f"http://127.0.0.1:{port}"
        self.address = f"{self.base}/?token={page.token}"

    def request(self, path, sent=None, headers=None, method=None):
        """Send a request with the token and the page's origin; return status, headers and body."""
        given = {"X-Guerdon-Token": self.token, "Content-Type": "application/json"}
        if sent is not None:
            given["Origin"] = self.base
        given = {k: v for k, v in (given | (headers or {})).items() if v is not None}
        data = None if sent is None else json.dumps(sent).encode()
        request = urllib.request.Request(self.base + path, data=data, headers=given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def json(self, path, sent=None):
        status, _, body = self.request(path, sent)
        return status, json.loads(body)


@contextmanager
def serving(path, pairs: Any = 4, raters=(), dataset=None, port=0, token=None):
    """Serve a page in a thread; stop it at the end of the block."""
    pairs = make_pairs(pairs) if isinstance(pairs, int) else pairs
    with AnswerLog(path) as log, bind(port) as sock:
        page = LabelPage(LabelQueue(pairs, log, raters), Clips(dataset or Memory()), token)
        server = make_server(page)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
                assert thread.is_alive()
            yield Running(page, sock.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
