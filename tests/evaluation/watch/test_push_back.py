"""Training on lowers what a reward model predicts on the episodes that fooled it."""

import pytest
import torch

from guerdon.evaluation.watch.push_back import PushBack
from guerdon.rewards.calibration import Calibrated
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward

from .watched_runs import MIXED, Data, Told, hacked, recordings, trained


@pytest.mark.slow
def test_pushing_back_lowers_progress_to_a_share_of_what_it_was():
    data = recordings(0)
    reward = trained(data, model=ProgressReward)
    fooled = hacked(0)
    rows = PushBack(Data(data), progress_decay=0.5)._labelled(reward, fooled)
    with torch.no_grad():
        assert torch.allclose(rows.labels["progress"].values, 0.5 * reward(fooled).progress.values)
    assert not rows.labels["success"].values.any() and rows.labels["success"].valid.all()
    state = PushBack(Data(data), steps=30, learning_rate=2e-2, progress_decay=0.5)(reward, fooled)
    lower = ProgressReward(state_size=2, observer=ObservationEncoder(width=16, layers=0))
    lower.load_state_dict(state)
    with torch.no_grad():
        assert lower.eval()(fooled).progress.values[:, -1].mean() < 0.7 * reward(fooled).progress.values[:, -1].mean()


def test_there_must_be_something_to_push():
    with pytest.raises(ValueError, match="Told holds nothing to train: none of its models has a loss"):
        PushBack(Data([MIXED]))(Told(), MIXED)
    reward = trained(recordings(0), steps=1)
    with pytest.raises(ValueError, match="the loader gave no batch"):
        PushBack(Data([]))(reward, hacked(0))
    with pytest.raises(ValueError, match="steps 0"):
        PushBack(Data([]), steps=0)


def test_a_calibrated_reward_is_not_pushed_back():
    with pytest.raises(ValueError, match="were fitted to the old weights"):
        PushBack(Data([MIXED]))(Calibrated(trained(recordings(0), steps=1), method="platt"), hacked(0))
