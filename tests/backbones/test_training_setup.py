"""Start of a training run: refused settings, sizes of the data, and the normaliser fitted once."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guerdon.backbones.model_inputs import ModelInputs
from guerdon.backbones.training_setup import check_frames, fit_normaliser, prepare_model
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import TrajectoryBatch
from guerdon.core.sizes import DataSizes
from guerdon.datasets.module import EpisodeData
from guerdon.preference.fit import PreferenceTraining
from guerdon.rewards.state_action import StateActionReward


def module(model, precision="32-true", sizes=None) -> Any:
    """Training of a model, attached to what it asks a trainer for."""
    made: Any = PreferenceTraining(model)
    data = SimpleNamespace() if sizes is None else SimpleNamespace(sizes=sizes)
    strategy = SimpleNamespace(broadcast=lambda value: value)
    made._trainer = SimpleNamespace(precision=precision, datamodule=data, strategy=strategy)
    return made


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_of_the_data_is_refused(precision):
    with pytest.raises(ValueError, match=f"precision {precision} would cut"):
        prepare_model(module(StateActionReward(3, 2), precision), StateActionReward(3, 2), "fit")


def test_sizes_that_the_model_lacks_come_from_the_data():
    model = StateActionReward(hidden=())
    sizes = DataSizes(name="lift", state_size=3, action_size=2)
    prepare_model(module(model, sizes=sizes), model, "fit")
    assert model.network[0].in_features == 5
    other = StateActionReward(4, 2)
    with pytest.raises(ValueError, match="lift"):
        prepare_model(module(other, sizes=sizes), other, "fit")


def test_a_model_without_a_trainable_weight_is_refused_only_where_it_is_trained():
    model = StateActionReward(3, 2).requires_grad_(False)
    prepare_model(module(model), model, "validate")
    with pytest.raises(ValueError, match="StateActionReward has nothing to train"):
        prepare_model(module(model), model, "fit")


def test_the_normaliser_is_fitted_once():
    model = StateActionReward(1, 1, hidden=())

    def batch(value):
        return TrajectoryBatch(
            state=torch.full((1, 3, 1), value), actions=torch.zeros(1, 2, 1), mask=torch.ones(1, 2, dtype=torch.bool)
        )

    fit_normaliser(module(model), model, [batch(2.0), batch(4.0)])
    assert model.state_mean.tolist() == [3.0, 0.0]
    fit_normaliser(module(model), model, [batch(9.0)])
    assert model.state_mean.tolist() == [3.0, 0.0]


def test_features_that_the_model_would_not_make_itself_are_refused(tmp_path):
    def frozen():
        encoder = ConvEncoder(width=4, channels=(4,), size=8)  # one name whatever its weights, as two files may have
        encoder.trainable = False
        return encoder

    one, other = frozen(), frozen()
    given = {"cameras": ["front"], "cache": str(tmp_path), "frame_size": 16}
    with pytest.raises(ValueError, match=f"revision {other.revision}, the model's has {one.revision}"):
        check_frames(
            ModelInputs(cameras=("front",), encoder=one, frame_size=16), EpisodeData("x", encoder=other, **given)
        )
    with pytest.raises(ValueError, match="frames of size 16, the model asks for None"):
        check_frames(ModelInputs(cameras=("front",), encoder=one), EpisodeData("x", encoder=one, **given))
    other.load_state_dict(one.state_dict())
    check_frames(ModelInputs(cameras=("front",), encoder=one, frame_size=16), EpisodeData("x", encoder=other, **given))
    check_frames(ModelInputs(), EpisodeData("x"))
