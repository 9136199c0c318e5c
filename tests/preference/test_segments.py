"""Segments of episodes and pairs of them, in memory and on disk."""

import pytest

from guerdon.preference.segments import Segment, SegmentPair, read_segment_pairs, write_segment_pairs


def pairs(count: int) -> list[SegmentPair]:
    return [
        SegmentPair(id=f"p{n}", first=Segment(episode=n, stop=50), second=Segment(episode=n + 1, start=3))
        for n in range(count)
    ]


def test_pairs_come_back_as_they_were_written(tmp_path):
    write_segment_pairs(pairs(3), tmp_path / "pairs.jsonl")
    assert read_segment_pairs(tmp_path / "pairs.jsonl") == pairs(3)


def test_a_pair_needs_two_different_segments_with_steps():
    with pytest.raises(ValueError, match="p1: both segments"):
        SegmentPair(id="p1", first=Segment(episode=0), second=Segment(episode=0))
    with pytest.raises(ValueError, match="at least one step"):
        Segment(episode=0, start=4, stop=4)


def test_a_line_that_is_no_pair_is_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_segment_pairs(pairs(2), path)
    path.write_text(path.read_text() + '{"id": "p3", "first": {"episode": -1}, "second": {"episode": 1}}\n')
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 3: expected a pair .* first\.episode"):
        read_segment_pairs(path)
    whole = path.read_text().splitlines()
    path.write_text("\n".join([*whole[:2], whole[1][:20]]))
    with pytest.raises(ValueError, match="line 3"):
        read_segment_pairs(path)


def test_two_pairs_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two pairs are called 'p0'"):
        write_segment_pairs([*pairs(1), *pairs(1)], tmp_path / "pairs.jsonl")
    assert not list(tmp_path.iterdir())
