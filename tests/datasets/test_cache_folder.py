"""The folder of a cache: what may become one, what it says of itself, and what making room removes."""

import json
import os
import time

import numpy as np
import pytest

from guerdon.datasets.cache_folder import MARKER, evict, is_cache, report
from guerdon.datasets.features import FeatureCache


@pytest.fixture
def filled(tmp_path, make_episode):
    """Four episodes' frames at 16 pixels, used in the order 2, 0, 3, 1, an hour apart; 4 · 6 frames of 768 bytes."""
    cache = FeatureCache(tmp_path / "cache")
    for age, index in enumerate((1, 3, 0, 2)):
        entry = cache.frames(make_episode(index), "front", 16).files[0].parent
        then = time.time() - 3600 * (age + 1)
        os.utime(entry, (then, then))
    return cache


def held(cache, make_episode):
    """Episodes whose frames need no decoding."""
    return [i for i in range(4) if cache.frames(make_episode(i), "front", 16, compute=False).rows.known().all()]


def test_the_report_adds_up_and_moves_nothing(filled, tmp_path):
    (group,) = filled.report().groups
    assert (group.encoder, group.revision, group.entries, group.known, group.places) == ("frames", "16", 4, 24, 24)
    files = [p for p in (tmp_path / "cache").rglob("*.npy")]
    assert group.bytes == filled.report().bytes == sum(p.stat().st_size for p in files) > 24 * 768
    assert group.last_used == pytest.approx(time.time() - 3600, abs=60)
    assert filled.report() == filled.report()
    with pytest.raises(ValueError, match="no feature cache"):
        report(tmp_path)


def test_what_was_used_longest_ago_goes_first(filled, make_episode):
    size = filled.report().bytes
    made = filled.evict(size * 5 // 8)
    assert (made.removed, made.in_use) == (2, 0) and made.left == filled.report().bytes <= size * 5 // 8
    assert made.freed == size - made.left
    assert held(filled, make_episode) == [1, 3]
    assert filled.evict(size * 5 // 8).removed == 0
    again = filled.frames(make_episode(2), "front", 16)
    assert np.array_equal(again.read(np.arange(6)), make_episode(2).frames["front"].read(np.arange(6), 16))


def test_use_is_noted(filled, make_episode):
    filled.frames(make_episode(2), "front", 16).read(np.array([0]))  # the oldest, read now
    filled.evict(filled.report().bytes // 3)
    assert held(filled, make_episode) == [2]


def test_what_this_process_uses_stays(filled, make_episode):
    busy = filled.frames(make_episode(2), "front", 16)
    writing = filled.frames(make_episode(0, 9), "front", 16, compute=False)
    writing.fill(np.array([3]))
    made = filled.evict(0)
    assert (made.removed, made.in_use) == (3, 2) and made.left == filled.report().bytes > 0
    assert busy.rows.known().all() and writing.rows.known().sum() == 1
    del busy, writing
    assert filled.evict(0).left == 0
    assert [p.name for p in filled.folder.iterdir()] == [MARKER]  # no empty folders stay behind
    with pytest.raises(ValueError, match="max_bytes is -1"):
        filled.evict(-1)


def test_only_what_the_cache_made_is_ever_removed(filled, tmp_path):
    (tmp_path / "precious").mkdir()
    precious = tmp_path / "precious" / "00000.npy"
    precious.write_text("of another life")
    entry = next((filled.folder / "frames" / "16").iterdir())
    link = entry.parent / ("0" * 32)
    link.symlink_to(precious.parent)
    strangers = [filled.folder / "notes.txt", entry / "notes.txt", entry.parent / "notes.npy"]
    for stranger in strangers:
        stranger.write_text("mine")
    (entry / "00009.npy").symlink_to(precious)
    filled.evict(0)
    assert precious.read_text() == "of another life" and link.is_symlink()
    assert all(stranger.read_text() == "mine" for stranger in strangers)
    assert [p for p in filled.folder.rglob("*.npy") if p.is_file() and not p.is_symlink()] == [strangers[2]]


def test_what_a_killed_writer_left_goes_after_an_hour(filled):
    entry = next((filled.folder / "frames" / "16").iterdir())
    old, fresh = entry / ".00000-0123abcd.part", entry / ".00000-0123abce.part"
    for part in (old, fresh):
        part.write_bytes(b"x" * 1000)
    os.utime(old, (0, 0))
    made = filled.evict(10**12)
    assert not old.exists() and fresh.exists() and made.removed == 0
    assert made.left == filled.report().bytes


def test_a_folder_that_holds_something_else_is_refused(tmp_path, make_episode):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="is no feature cache and holds other files: choose a new or empty folder"):
        FeatureCache(tmp_path)
    with pytest.raises(ValueError, match="no feature cache"):
        evict(tmp_path, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(OSError, match="choose another folder"):
        FeatureCache(tmp_path / "thesis.txt")
    (tmp_path / "half" / f".{MARKER}.0123").mkdir(parents=True)  # killed before it was marked
    assert is_cache(FeatureCache(tmp_path / "half").folder)


def test_a_cache_of_the_first_format_is_taken_over(tmp_path, make_episode):
    """It had no marker and a file per camera and episode; those are never read, but shown, and evicted first."""
    old = tmp_path / "convnet-8" / "0123456789abcdef" / f"{'ab' * 16}.npy"
    old.parent.mkdir(parents=True)
    np.save(old, np.zeros((6, 6), np.float16))
    (old.parent / f".{'ab' * 16}-tmp_x1").write_bytes(b"killed")
    os.utime(old, (0, 0))
    cache = FeatureCache(tmp_path)
    cache.frames(make_episode(0), "front", 16)
    groups = {g.encoder: g for g in cache.report().groups}
    assert (groups["convnet-8"].entries, groups["convnet-8"].places) == (1, 0)
    assert cache.evict(groups["frames"].bytes).removed == 1 and not old.exists()


def test_markers(tmp_path):
    folder = FeatureCache(tmp_path / "c").folder
    (folder / MARKER).write_text("{")
    with pytest.warns(UserWarning, match=r"guerdon-cache\.json is damaged and is written again"):
        FeatureCache(folder)
    said = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps(said | {"format": said["format"] + 1}))
    with pytest.raises(ValueError, match="made by a later version"):
        FeatureCache(folder)
