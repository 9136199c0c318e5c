"""Sources of pairs: each segment once, rows that stay with their pairs."""

import torch

from guerdon.core.batch import PreferencePairs, TrajectoryBatch
from guerdon.preference.pair_sources import ArrayPairs, with_used_rows


def pairs():
    """Rows whose state is their number; rows 1 and 4 show one segment."""
    steps = torch.arange(6.0)[:, None, None].expand(6, 3, 1)
    batch = TrajectoryBatch(
        state=steps.clone(),
        actions=torch.zeros(6, 2, 1),
        mask=torch.ones(6, 2, dtype=torch.bool),
        episode=torch.tensor([0, 1, 2, 3, 1, 5]),
    )
    return PreferencePairs(
        batch=batch,
        chosen=torch.tensor([0, 5, 4]),
        rejected=torch.tensor([1, 3, 2]),
        label=torch.tensor([1.0, 0.0, 0.5]),
        weight=torch.ones(3),
    )


def test_rows_that_no_pair_names_and_repeated_segments_are_left_out():
    kept = with_used_rows(pairs()[[0, 2]])
    assert kept.batch.state[:, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert kept.chosen.tolist() == [0, 1] and kept.rejected.tolist() == [1, 2]
    assert kept.label.tolist() == [1.0, 0.5]
    assert len(with_used_rows(pairs()[[]])) == 0


def test_arrays_give_pairs_by_place_with_their_episodes():
    source = ArrayPairs(pairs(), "arrays")
    assert source.episodes == [(0, 1), (5, 3), (1, 2)] and source.labels == [1.0, 0.0, 0.5]
    assert (source.sizes.state_size, source.sizes.action_size) == (1, 1)
    taken = source.pairs([1])
    assert taken.batch.state[taken.chosen, 0, 0].tolist() == [5.0]
    assert taken.batch.state[taken.rejected, 0, 0].tolist() == [3.0]
    assert len(source.segments([0, 2])) == 3
