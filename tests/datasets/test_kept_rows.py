"""Rows on disk: computed once, whatever is killed, damaged, removed or written by two at once."""

import multiprocessing
import os
import resource
import signal
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.datasets.kept_rows import BLOCK, KeptRows


def value(places):
    """What the row of a place should hold."""
    return np.stack([places % 2048, places // 3 % 2048, -(places % 7)], 1).astype(np.float16)


class Computed:
    """Counts what it computes."""

    def __init__(self, pause: float = 0.0) -> None:
        self.places, self.pause = [], pause

    def __call__(self, places):
        time.sleep(self.pause)
        self.places += places.tolist()
        return value(places)


def rows(folder, count, compute=None):
    return KeptRows(folder, count, np.dtype(np.float16), {-1: 3}, compute or Computed())


def test_an_untouched_row_is_not_computed_and_a_touched_one_once(tmp_path):
    made = Computed()
    kept = rows(tmp_path / "a", 300, made)
    assert np.array_equal(kept.read(np.array([299, 0, 5, 5])), value(np.array([299, 0, 5, 5])))
    assert sorted(made.places) == [0, 5, 299]
    assert kept.known().nonzero()[0].tolist() == [0, 5, 299]
    # two blocks of 128 places and one of 44; only the first and the last have a row yet
    assert [f.name for f in kept.files] == ["00000.npy", "00002.npy"]
    kept.fill()
    assert sorted(made.places) == list(range(300))
    assert np.array_equal(np.load(kept.files[1]), value(np.arange(128, 256)))  # any tool opens them
    assert kept.read(np.zeros(0, np.int64)).shape == (0, 3)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "fill", "remove", "spoil"]), st.integers(0, 399), st.integers(1, 150)),
        max_size=8,
    )
)
def test_whatever_happens_every_row_is_what_it_should_be(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("kept")
    for what, start, count in steps:
        kept = rows(folder / "a", 400)
        places = np.arange(start, min(start + count, 400))
        if what == "read":
            assert np.array_equal(kept.read(places), value(places))
        elif what == "fill":
            kept.fill(places)
            assert kept.known()[places].all()
        elif kept.files:
            file = kept.files[start % len(kept.files)]
            if what == "remove":
                file.unlink()
            else:
                content = bytearray(file.read_bytes())
                content[start % len(content)] ^= count
                file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(rows(folder / "a", 400).read(np.arange(400)), value(np.arange(400)))


test_whatever_happens_every_row_is_what_it_should_be = pytest.mark.filterwarnings("ignore:.*is damaged")(
    test_whatever_happens_every_row_is_what_it_should_be
)


def test_a_changed_byte_anywhere_is_found(tmp_path):
    kept = rows(tmp_path / "a", 40)
    kept.fill()
    (file,) = kept.files
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        made = Computed()
        with pytest.warns(UserWarning, match=r"00000\.npy is damaged"):
            assert np.array_equal(rows(tmp_path / "a", 40, made).read(np.arange(40)), value(np.arange(40)))
        assert made.places == list(range(40))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-40]), "its end is missing"),
        (lambda f: f.write_bytes(b""), "0 bytes"),
        (lambda f: np.save(f, np.zeros((40, 3), np.float32)), "its end is missing"),
        (lambda f: f.write_bytes(os.urandom(5000)), "its end is missing"),
    ],
)
def test_a_spoiled_block_is_named_and_made_again(tmp_path, spoil, says):
    kept = rows(tmp_path / "a", 40)
    kept.fill()
    spoil(kept.files[0])
    # this object checked the block before: the file's time and size say that it is another one now
    with pytest.warns(UserWarning, match=f"00000.npy is damaged .*{says}.*computed again"):
        assert np.array_equal(kept.read(np.arange(40)), value(np.arange(40)))


def test_blocks_of_another_type_shape_or_place_are_not_taken(tmp_path):
    KeptRows(tmp_path / "a", 40, np.dtype(np.float32), {-1: 3}, lambda p: value(p).astype(np.float32)).fill()
    with pytest.warns(UserWarning, match="of <f4, expected 40 rows of <f2"):
        assert rows(tmp_path / "a", 40).read(np.arange(40)).dtype == np.float16
    KeptRows(tmp_path / "b", 40, np.dtype(np.float16), {-1: 2}, lambda p: value(p)[:, :2]).fill()
    with pytest.warns(UserWarning, match=r"holds \(40, 2\)"):
        assert rows(tmp_path / "b", 40).read(np.arange(40)).shape == (40, 3)
    two = rows(tmp_path / "c", 2 * BLOCK)
    two.fill()
    os.replace(two.files[1], two.files[0])
    with pytest.warns(UserWarning, match="it is block 1, expected 0"):
        assert np.array_equal(two.read(np.arange(2 * BLOCK)), value(np.arange(2 * BLOCK)))
    with pytest.warns(UserWarning, match="it is count 256, expected 250"):
        rows(tmp_path / "c", 250).read(np.array([0]))


def test_a_computation_that_gives_something_else_is_refused(tmp_path):
    for wrong in (lambda p: value(p)[:-1], lambda p: value(p).astype(np.float64), lambda p: value(p)[:, :2]):
        with pytest.raises(ValueError, match="expected 5 rows of float16 with axes"):
            rows(tmp_path / "a", 5, wrong).fill()
    assert not (tmp_path / "a").exists()


def fill_slowly(folder, count, every):
    kept = rows(folder, count, Computed(0.004))
    kept.fill(np.arange(0, count, every))
    kept.fill()


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_little_and_spoils_nothing(tmp_path):
    """One writer, killed again and again, finishes: what it had done is still there each time."""
    count, context = 2000, multiprocessing.get_context("fork")
    # longer and longer, so that a writer on a busy machine gets somewhere too
    pauses = np.random.default_rng(0).uniform(0.01, 0.06, 40) * 1.1 ** np.arange(40)
    done, kills = 0, 0
    for pause in pauses:
        writer = context.Process(target=fill_slowly, args=(tmp_path / "a", count, 1))
        writer.start()
        writer.join(float(pause))
        writer.kill()
        writer.join()
        kills += writer.exitcode == -signal.SIGKILL
        found = rows(tmp_path / "a", count).known()
        assert found.sum() >= done
        done = int(found.sum())
        made = Computed()
        there = found.nonzero()[0]
        if len(there):
            assert np.array_equal(rows(tmp_path / "a", count, made).read(there), value(there))
        assert made.places == []
        if done == count:
            break
    assert kills >= 2 and done > 0
    assert np.array_equal(rows(tmp_path / "a", count).read(np.arange(count)), value(np.arange(count)))


@pytest.mark.slow
def test_two_writers_of_the_same_rows_killed_at_random(tmp_path):
    """One wants every third row, one all of them; both are killed at different moments."""
    count, context = 1500, multiprocessing.get_context("fork")
    rng = np.random.default_rng(1)
    for _ in range(5):
        writers = [context.Process(target=fill_slowly, args=(tmp_path / "a", count, e)) for e in (3, 1)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(float(rng.uniform(0.01, 0.05)))
            writer.kill()
        for writer in writers:
            writer.join()
        kept = rows(tmp_path / "a", count)
        there = kept.known().nonzero()[0]
        if len(there):
            assert np.array_equal(kept.read(there), value(there))
    assert np.array_equal(rows(tmp_path / "a", count).read(np.arange(count)), value(np.arange(count)))


def test_two_writers_that_both_finish(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=fill_slowly, args=(tmp_path / "a", 900, every)) for every in (2, 5)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    made = Computed()
    assert np.array_equal(rows(tmp_path / "a", 900, made).read(np.arange(900)), value(np.arange(900)))
    assert len(made.places) < 900 and not list(tmp_path.rglob("*.part"))


def test_a_reader_whose_rows_are_removed_under_it_still_gets_them(tmp_path):
    kept = rows(tmp_path / "a", 200)

    def removing(places):
        for file in kept.files:
            file.unlink()
        return value(places)

    wanted = np.array([150, 2, 150])  # two blocks: computing one lot removes the other
    kept._compute = removing
    kept.fill(np.array([2]))
    assert np.array_equal(kept.read(wanted), value(wanted))


def fill_a_small_disk(folder, answer):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    try:
        rows(folder, 128).fill()
    except OSError as error:
        answer.put(str(error))


def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    writer = context.Process(target=fill_a_small_disk, args=(tmp_path / "a", answer))
    writer.start()
    said = answer.get(timeout=30)
    writer.join()
    assert "cannot write into the cache" in said and "--evict" in said
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
