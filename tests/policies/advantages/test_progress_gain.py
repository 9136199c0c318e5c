"""Progress gained by a chunk: by hand, at the end of a row, and where progress is unknown."""

import pytest
import torch

from guerdon.core.batch import Labelled, RewardEstimates, TrajectoryBatch
from guerdon.policies.advantages.progress_gain import ProgressGain
from guerdon.rewards.recorded import RecordedReward


def gains(progress, steps, lengths, valid=None, **more):
    """Gains of rows with the recorded progress."""
    progress = torch.tensor(progress)
    known = torch.ones_like(progress, dtype=torch.bool) if valid is None else torch.tensor(valid)
    rows, size = progress.shape[0], progress.shape[1] - 1
    batch = TrajectoryBatch(
        state=torch.zeros(rows, size + 1, 2),
        actions=torch.zeros(rows, size, 1),
        mask=torch.arange(size) < torch.tensor(lengths)[:, None],
        **more,
    )
    source = ProgressGain(Progress(progress.tolist(), known.tolist()), steps)
    return source(batch, source.estimate(batch))


class Progress(RecordedReward):
    """Gives the progress it is told."""

    def __init__(self, progress: list, valid: list):
        super().__init__()
        self.progress, self.known = torch.tensor(progress), torch.tensor(valid)

    def forward(self, batch):
        told = Labelled(values=self.progress, valid=self.known)
        return RewardEstimates(rewards=torch.zeros_like(batch.weight), valid=batch.mask, progress=told)


def test_gains_by_hand_and_the_last_chunk_is_not_punished():
    # steady progress to 1 in five steps, windows of two: every chunk gains 0.4, the last one too
    found = gains([[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]], 2, [5])
    assert found.advantages[0].tolist() == pytest.approx([0.4] * 5)
    assert found.valid.all()
    # its last observation was never made: the window ends at the one before, and nothing is made up
    found = gains([[0.0, 0.2, 0.4, 0.6, 0.8, 0.0]], 2, [5], last_observed=torch.tensor([False]))
    assert found.advantages[0].tolist() == pytest.approx([0.4] * 5)


def test_a_row_shorter_than_a_window_is_scaled_to_it():
    # 0.3 in three steps, windows of six: 0.6; one observation only: unknown
    found = gains([[0.0, 0.1, 0.2, 0.3]] * 2, 6, [3, 1], last_observed=torch.tensor([True, False]))
    assert found.advantages[0].tolist() == pytest.approx([0.6] * 3)
    assert found.valid.tolist() == [[True] * 3, [False] * 3]


def test_unknown_progress_gives_no_gain():
    valid = [[True, True, False, True, True, True]]
    found = gains([[0.0, 0.2, 9.0, 0.6, 0.8, 1.0]], 2, [5], valid)
    # from 0 to 2 and from 2 to 4 are unknown; the windows of the last two steps are 3 to 5
    assert found.valid.tolist() == [[False, True, False, True, True]]
    assert found.advantages[0].tolist() == pytest.approx([0.0, 0.4, 0.0, 0.4, 0.4])


def test_a_reward_without_progress_is_refused():
    with pytest.raises(ValueError, match="RecordedReward gives no progress"):
        mask = torch.ones(1, 1, dtype=torch.bool)
        batch = TrajectoryBatch(
            state=torch.zeros(1, 2, 2),
            actions=torch.zeros(1, 1, 1),
            mask=mask,
            recorded={"reward": Labelled(values=torch.ones(1, 1), valid=mask)},
        )
        source = ProgressGain(RecordedReward(), 2)
        source(batch, source.estimate(batch))
    with pytest.raises(ValueError, match="at least one"):
        ProgressGain(RecordedReward(), 0)


def test_context_only_decisions_are_not_valid_and_the_reward_is_frozen():
    weight = torch.tensor([[1.0, 0.0, 1.0]])
    found = gains([[0.0, 0.1, 0.2, 0.3]], 1, [3], weight=weight)
    assert found.valid.tolist() == [[True, False, True]]
    assert found.advantages[0].tolist() == pytest.approx([0.1, 0.0, 0.1])
    source = ProgressGain(Progress([[0.0, 1.0]], [[True, True]]).train(), 1)
    assert not source.train().reward.training
