"""``guerdon inspect``: it tells a data set, a component, a run, scores and a feature cache apart."""

import re

import numpy as np
import pytest

from guerdon.cli import main
from guerdon.commands.inspecting import parse_size, shown_size
from guerdon.datasets.episodes import ArrayFrames, Episode
from guerdon.datasets.features import FeatureCache

pytestmark = pytest.mark.xdist_group("cli")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "wanted"),
    [
        ("held", "6, of which 0"),
        ("run", "ProgressReward"),
        ("run/model", "ProgressReward"),
        ("scores", "{place}/held"),
    ],
)
def test_it_says_what_a_folder_is(here, capsys, folder, wanted):
    assert main(["inspect", str(here / folder)]) == 0
    assert wanted.format(place=here) in capsys.readouterr().out.replace("\n", "")


def test_a_feature_cache_is_shown_and_room_is_made(here, tmp_path, capsys, error_line):
    frames = {"front": ArrayFrames(values=np.zeros((5, 3, 8, 8), np.uint8), step=np.arange(5))}
    state, actions = np.zeros((6, 0), np.float32), np.zeros((5, 0), np.float32)
    episode = Episode(index=0, state=state, actions=actions, frames=frames)
    FeatureCache("kept").frames(episode, "front", 8)
    assert main(["inspect", "kept"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"frames +8 +1 +5 of 5 +1\.\d+ kB +20\d\d-", shown) and "feature cache" in shown
    assert main(["inspect", "kept", "--evict", "1MB"]) == 0
    assert "removed 0 entries, 0 bytes" in capsys.readouterr().out
    assert main(["inspect", "kept", "--evict", "0.5 kB"]) == 0
    assert re.search(r"removed 1 entries, 1\.\d+ kB\n", capsys.readouterr().out)
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["guerdon-cache.json"]
    assert main(["inspect", "kept", "--evict", "a lot"]) == 2
    assert "expected one such as 20GB" in error_line()


def test_sizes_as_people_write_them():
    said = ("0", "20GB", "1.5 GiB", "3m", "7", "2TB", "1 kib")
    assert [parse_size(s) for s in said] == [0, 20 * 10**9, 3 * 2**29, 3 * 10**6, 7, 2 * 10**12, 1024]
    for wrong in ("", "-1", "GB", "1 XB", "1e9", "nan"):
        with pytest.raises(ValueError, match="is no size"):
            parse_size(wrong)
    assert [shown_size(n) for n in (0, 999, 1000, 20_500_000, 3 * 10**12)] == [
        *("0 bytes", "999 bytes", "1 kB", "20.5 MB", "3 TB")
    ]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("inspect nowhere", "nowhere is no folder"),
        ("inspect {place}/run/logs", "no data set we read"),
        ("inspect {place}/held --evict 1GB", "is no feature cache: --evict removes nothing anywhere else"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(refused, command, says):
    refused(command, says)
