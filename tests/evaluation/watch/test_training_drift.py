"""Drift is the share of observations outside the training data, where those are known."""

import math

import pytest
import torch

from guerdon.evaluation.watch.drift import fit_training_features
from guerdon.evaluation.watch.rollouts import RolloutSummary
from guerdon.evaluation.watch.training_drift import TrainingDrift

from .watched_runs import Data, Told, normal, recordings, trained


def test_observations_outside_the_training_data_are_counted(tmp_path):
    drift = TrainingDrift(Data([normal(40, 0)]))
    drift.fit(Told(), tmp_path / "watch")
    assert [p.name for p in (tmp_path / "watch").iterdir()] == ["training_features.safetensors"]
    beyond, observations = drift.count(Told(), normal(10, 1))
    assert observations == 100 and beyond < 10
    assert drift.count(Told(), normal(10, 1, shift=50.0)) == (100, 100)


def test_without_training_data_there_is_no_drift(tmp_path):
    drift = TrainingDrift(features="state")
    drift.fit(Told(), tmp_path)
    assert drift.count(Told(), normal(2, 0)) == (0, 0) and not list(tmp_path.iterdir())


def test_features_are_read_again_and_fitted_anew_for_other_weights(tmp_path):
    data = recordings(0, 24)
    reward = trained(data, steps=1)
    TrainingDrift(Data(data)).fit(reward, tmp_path)
    again = TrainingDrift(Data([]))  # nothing to fit: they must come from the file
    again.fit(reward, tmp_path)
    assert again.count(reward, data[0])[1] == 24 * 5
    with pytest.raises(ValueError, match="expected at least 4 training episodes"):
        TrainingDrift(Data([]), features="state").fit(reward, tmp_path)
    with torch.no_grad():
        reward.head.weight += 1
    with pytest.raises(ValueError, match="expected at least 4 training episodes"):
        again.fit(reward, tmp_path)


def test_only_the_first_process_writes(tmp_path):
    drift = TrainingDrift(Data([normal(40, 0)]))
    drift.fit(Told(), tmp_path, writes=False)
    assert not list(tmp_path.iterdir()) and drift.count(Told(), normal(1, 1))[1] == 10


def test_given_features_are_dropped_when_the_weights_are_others(tmp_path):
    data = recordings(0, 24)
    reward = trained(data, steps=1)
    drift = TrainingDrift(fit_training_features(reward, data))
    drift.fit(reward, tmp_path)
    assert drift.count(reward, data[0])[1] == 24 * 5
    with torch.no_grad():
        reward.head.weight += 1
    drift.fit(reward, tmp_path)
    assert drift.count(reward, data[0]) == (0, 0)


def test_the_share_is_taken_over_all_rollouts():
    rollouts = [RolloutSummary(beyond=1, observations=2), RolloutSummary(beyond=0, observations=8)]
    assert TrainingDrift().metrics(rollouts) == {"drift": 0.1}
    assert math.isnan(TrainingDrift().metrics([RolloutSummary()])["drift"])
