"""Cards of single episodes: pictures or states, and why there are none."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from guerdon.datasets.episodes import BadEpisodeError
from guerdon.pages import episode_cards
from guerdon.pages.episode_cards import ScoredData
from guerdon.pages.report import build, render

from .scored import METADATA, NASTY, Memory, scored


@pytest.fixture
def memory(monkeypatch):
    found = Memory()
    monkeypatch.setattr(episode_cards, "open_dataset", lambda _: found)
    return found


def cards(episodes, limits=None):
    data = ScoredData("folder")
    rank = {e.index: float(e.index) for e in episodes}
    return episode_cards.episode_cards(episodes, data, ("final progress", rank), limits)


def test_a_card_names_the_episode_and_why_it_is_shown(memory):
    (card,) = cards([scored(4, 0.5, std=0.25)])
    assert (card.index, card.instruction, card.outcome) == (4, NASTY, 1.0)
    assert card.remark == "final progress 4.00, mean standard deviation 0.25"
    assert cards([scored(4, 0.5)])[0].remark == "final progress 4.00"


def test_a_strip_holds_a_picture_of_each_eighth(memory):
    (card,) = cards([scored(3, 0.5)])
    pictures = [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in card.pictures]
    assert len(pictures) == 8 and all(picture.format == "JPEG" for picture in pictures)
    # steps 0.625, 1.875, … of ten: the frame that was seen then
    frames = memory[3].frames["front"].read(np.array([0, 1, 3, 4, 5, 6, 8, 9]), 120)
    for picture, frame in zip(pictures, frames, strict=True):
        assert picture.size == frame.shape[:0:-1]
        assert abs(np.asarray(picture, float).mean() - frame.mean()) < 5
    assert card.states is None and card.note == ""


def test_states_are_drawn_where_there_is_no_camera(memory):
    memory.pictures = False
    (card,) = cards([scored(3, 0.5)])
    assert card.pictures == [] and card.states is not None and card.states.dimensions == 3
    text = render(build([scored(i, i / 4) for i in range(4)], METADATA, {}))
    assert "No camera: 3 of 3 state dimensions" in text and "<img" not in text


def test_more_scores_than_states_repeat_states(memory):
    memory.pictures = False
    episode = scored(3, 0.5)
    columns = ("seconds", "progress", "success", "reward", "std", "value", "q")
    longer = replace(episode, **{name: np.linspace(0, 1, 30) for name in columns})
    (card,) = cards([longer])
    assert card.states is not None and len(card.states.lines[0].points.split()) == 30


def test_an_episode_that_cannot_be_read_is_shown_with_the_reason(memory):
    (card,) = cards([scored(2, 0.5)])
    assert card.note == "rows: row group 3 is <cut>" and card.curves.lines and card.pictures == []
    (gone,) = cards([scored(99, 0.5)])
    assert gone.note == "the data set no longer holds this episode" and gone.outcome is None


def test_a_video_that_breaks_is_named(memory, monkeypatch):
    def broken(self, indices, size=None):
        raise BadEpisodeError(3, "video", "ends early")

    monkeypatch.setattr(type(memory[3].frames["front"]), "read", broken)
    (card,) = cards([scored(3, 0.5)])
    assert card.note == "video: ends early" and card.pictures == []


def test_a_critics_fall_is_marked_where_the_episode_failed(memory):
    value = np.array([0.0, 1.0, *[0.2] * 9])
    failed, succeeded, unknown = cards([scored(i, np.nan, value=value) for i in (3, 4, 1)], (0.0, 1.0))
    assert failed.value is not None and failed.value.fall is not None and failed.value.fall.amount == 0.8
    for card in (succeeded, unknown):
        assert card.value is not None and card.value.fall is None
    assert cards([scored(3, 0.5)])[0].value is None
