"""Distances from the training data, by hand and on data whose distribution is known."""

import math
from dataclasses import replace

import pytest
import torch

from guerdon.core.batch import TrajectoryBatch
from guerdon.evaluation.watch.drift import TrainingFeatures, fit_training_features
from guerdon.rewards.shaping import FirstHit

from .watched_runs import Told, normal, recordings, trained


@pytest.mark.parametrize("seed", range(3))
def test_drift_is_one_percent_at_home_and_all_of_it_far_away(seed):
    model = Told()
    familiar = fit_training_features(model, [normal(100, 10 * seed), normal(100, 10 * seed + 1)])
    assert familiar.kind == "state"
    beyond, count = familiar.beyond(model, normal(200, 10 * seed + 2))
    assert count == 2000
    assert beyond / count == pytest.approx(0.01, abs=0.008)
    # the second number is 2 · the first + 0.5 · noise: breaking that is far, though every number alone is usual
    broken = normal(200, 10 * seed + 3)
    broken.state[:, :, 1] *= -1
    beyond, count = familiar.beyond(model, broken)
    assert beyond / count > 0.5


def test_distance_by_hand():
    familiar = TrainingFeatures(
        "state", torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]), torch.eye(2), 2.0, 0.99, ""
    )
    # (5 − 1) / 2 = 2 and 3: √(4 + 9)
    assert familiar.distances(torch.tensor([[5.0, 3.0], [1.0, 0.0]])).tolist() == pytest.approx([math.sqrt(13), 0])
    with pytest.raises(ValueError, match="expected 2 numbers per observation, got 3"):
        familiar.distances(torch.zeros(1, 3))


def test_context_and_padding_do_not_drift():
    familiar = fit_training_features(Told(), [normal(40, 0)])
    batch = normal(2, 1)
    away = replace(batch, weight=torch.cat([torch.zeros(2, 6), torch.ones(2, 3)], 1))
    away.state[:, :6] = 1e6  # context: the weights of both steps around are 0
    beyond, count = familiar.beyond(Told(), away)
    assert count == 2 * 4 and beyond <= 1
    real = torch.arange(9)[None] < torch.tensor([[3], [9]])
    short = TrajectoryBatch(state=normal(2, 1).state, actions=torch.zeros(2, 9, 1), mask=real)
    short.state[0, 4:] = torch.nan
    assert familiar.beyond(Told(), short)[1] == 4 + 10


def test_familiar_features_are_saved_and_belong_to_their_weights(tmp_path):
    data = recordings(0, 24)
    reward = trained(data, steps=3)
    familiar = fit_training_features(FirstHit(reward), data)
    assert familiar.kind == "hidden"
    familiar.save(tmp_path / "features.safetensors")
    loaded = TrainingFeatures.load(tmp_path / "features.safetensors")
    assert loaded.beyond(reward, data[0]) == familiar.beyond(reward, data[0])
    assert loaded.fits(reward) and loaded.threshold == familiar.threshold
    with torch.no_grad():
        reward.head.weight += 1
    assert not loaded.fits(reward)
    with pytest.raises(FileNotFoundError, match="there is no"):
        TrainingFeatures.load(tmp_path / "nothing")
    (tmp_path / "broken").write_text("no tensors")
    with pytest.raises(ValueError, match="holds no training features"):
        TrainingFeatures.load(tmp_path / "broken")
    with pytest.raises(ValueError, match="expected at least 4 training episodes, to hold one out, got 2"):
        fit_training_features(Told(), [normal(2, 0)])
    with pytest.raises(ValueError, match="no model with hidden features"):
        fit_training_features(Told(), [normal(8, 0)], "hidden")
