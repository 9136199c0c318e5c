"""Models over an observer: which size holds, arguments given flat, and weights saved when they lay in the model."""

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import Labelled, TrajectoryBatch
from guerdon.core.sizes import DataSizes, require_sizes, take_sizes
from guerdon.rewards.combine import Sum
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.milestones.reward import MilestoneReward
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.observed import ObservedReward, balanced_bernoulli, required_label
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.success import SuccessReward

DATA = DataSizes(name="data/reach", state_size=3, action_size=2)
MODELS = (ProgressReward, SuccessReward, MilestoneReward)


def rows(states=3, **more):
    return TrajectoryBatch(
        state=torch.randn(2, 5, states), actions=torch.randn(2, 4, 2), mask=torch.ones(2, 4, dtype=torch.bool), **more
    )


def convnet():
    return ConvEncoder(width=8, channels=(4, 8), size=8)


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_data_name_the_size_of_a_model_and_of_its_observer(model):
    for made in (model(), model(observer=ObservationEncoder(width=8, layers=0))):
        with pytest.raises(ValueError, match=f"{model.__name__}.state_size"):
            require_sizes(made)
        assert made.state_size is None and take_sizes(made, DATA)
        require_sizes(made)
        assert made.state_size == made.init_args["state_size"] == made.observer.init_args["state_size"] == 3
        assert made.eval()(rows()).rewards.shape == (2, 4)


@pytest.mark.parametrize("model", MODELS)
def test_a_size_from_the_data_gives_the_weights_of_one_that_was_given(model):
    torch.manual_seed(2)
    sizes: dict[str, Any] = {"state_size": 3, "action_size": 2} if model is MilestoneReward else {"state_size": 3}
    given = model(**sizes)
    torch.manual_seed(2)
    taken = model()
    take_sizes(taken, DATA)
    assert all(torch.equal(one, other) for one, other in zip(given.parameters(), taken.parameters(), strict=True))


def test_an_observer_is_given_the_size_of_the_model_in_place():
    observer = ObservationEncoder(width=8)
    assert ProgressReward(3, observer).observer is observer and observer.state_size == 3
    assert ProgressReward(observer=observer).state_size == 3
    with pytest.raises(ValueError, match="state_size 4 of the model, and 3 of its observer"):
        ProgressReward(4, observer)


def test_members_of_an_ensemble_take_their_size_from_the_data_too():
    model = EnsembleReward(ProgressReward(observer=ObservationEncoder(width=8, layers=0)), size=2)
    assert take_sizes(model, DATA)
    assert [member.state_size for member in model.members] == [3, 3]
    assert model.members[0].observer is not model.members[1].observer
    assert model.eval()(rows()).rewards.shape == (2, 4)


def test_models_that_share_an_observer_are_both_built():
    observer = ObservationEncoder(width=8, layers=0)
    both = Sum([ProgressReward(observer=observer), SuccessReward(observer=observer)])
    assert take_sizes(both, DATA)
    require_sizes(both)
    assert both.eval()(rows()).rewards.shape == (2, 4)


def test_another_size_than_that_of_the_data_is_refused_naming_both():
    with pytest.raises(ValueError, match=r"has state_size 7, and the states of data/reach are 3 wide"):
        take_sizes(ProgressReward(state_size=7), DATA)


def test_a_base_without_an_observer_encodes_the_state():
    base = ObservedReward(state_size=3)
    assert isinstance(base.observer, ObservationEncoder) and base.inputs.state_size == 3
    assert not base.normalised
    base.fit_normaliser([rows()])
    assert base.normalised and base.observer.normalised


# --- arguments given flat, and old weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_the_observers_arguments_may_be_given_flat(model):
    sizes: dict[str, Any] = {"action_size": 2} if model is MilestoneReward else {}
    given: dict[str, Any] = {"cameras": ["wrist"], "encoder": convnet(), "text": HashedText(8, 16)}
    made = model(2, width=12, frame_size=8, **given, **sizes)  # pyright: ignore[reportCallIssue]
    observer = made.observer
    assert (observer.width, observer.cameras, observer.frame_size, observer.state_size) == (12, ("wrist",), 8, 2)
    assert (observer.temporal is None) == (model is not ProgressReward), "each has its own default of layers"
    assert made.init_args["observer"] is observer and "width" not in made.init_args
    with pytest.raises(TypeError, match="observer and width are both given"):
        model(observer=ObservationEncoder(), width=8)  # pyright: ignore[reportCallIssue]


def flat(name):
    """The name a weight had when it lay in the model itself."""
    return name.replace("observer.", "")


def old_models():
    """Models as they were made before, with flat arguments."""
    yield ProgressReward(state_size=3, width=8, layers=1, heads=2, text=HashedText(8, 16))  # pyright: ignore[reportCallIssue]
    yield ProgressReward(state_size=3, cameras=["wrist"], encoder=convnet(), width=8, layers=0)  # pyright: ignore[reportCallIssue]
    yield SuccessReward(state_size=3, width=8)  # pyright: ignore[reportCallIssue]
    yield MilestoneReward(state_size=3, action_size=2, width=8, layers=1, heads=2)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("model", list(old_models()), ids=["text", "frames", "success", "milestones"])
def test_weights_saved_before_there_was_an_observer_still_open(model, tmp_path):
    model.fit_normaliser([rows()])
    save_file({flat(name): value for name, value in model.state_dict().items()}, tmp_path / "old.safetensors")
    fresh = type(model)(**model.init_args | {"observer": ObservationEncoder(**model.observer.init_args)})
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    fresh.load_state_dict(load_file(tmp_path / "old.safetensors"))  # strict: every name is known, none is missing
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_old_weights_open_inside_an_ensemble_and_a_checkpoint():
    def made():
        member = ProgressReward(state_size=3, observer=ObservationEncoder(width=8, layers=0))
        return torch.nn.ModuleDict({"reward": EnsembleReward(member, size=2)})

    before, after = made(), made()
    after.load_state_dict({flat(name): value for name, value in before.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_an_old_weight_of_another_shape_or_name_is_refused():
    model = ProgressReward(state_size=3, observer=ObservationEncoder(width=8, layers=0))
    old = {flat(name): value for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"size mismatch for observer\.state_in\.weight"):
        model.load_state_dict({**old, "state_in.weight": torch.zeros(8, 4)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*stranger"):
        model.load_state_dict({**old, "stranger": torch.zeros(1)})


def test_parameters_keep_the_order_they_had_in_the_model_itself():
    """Optimizer states in checkpoints go by order: a camera's embedding, then the encoders, inputs and heads."""
    observer = ObservationEncoder(
        cameras=["wrist"], encoder=convnet(), text=HashedText(8, 16), width=8, layers=1, heads=2
    )
    model = MilestoneReward(state_size=3, action_size=2, observer=observer)
    order = list(dict.fromkeys(flat(name).split(".")[0] for name, _ in model.named_parameters()))
    assert order == [
        *("camera_embedding", "encoder", "text", "state_in", "vision_norm", "vision_in", "change_in", "film"),
        *("mix", "after", "temporal", "norm", "head", "step_head"),
    ]


# --- the loss of success, and labels ---------------------------------------------------------------------------------


def test_positives_and_negatives_weigh_the_same_by_hand():
    logit = torch.tensor([[0.0, 1.0, -1.0, 5.0]])
    target = Labelled(values=torch.tensor([[1.0, 0.0, 0.0, 0.0]]), valid=torch.tensor([[True, True, True, False]]))
    loss, counts = balanced_bernoulli(logit, target, torch.tensor([[2.0, 1.0, 3.0, 1.0]]))

    def minus_log_sigmoid(z):
        return math.log1p(math.exp(-z))

    # one positive; negatives weighted 1 and 3, whose −log(1 − σ(z)) is −log σ(−z)
    wanted = 0.5 * minus_log_sigmoid(0) + 0.5 * (minus_log_sigmoid(-1) + 3 * minus_log_sigmoid(1)) / 4
    assert float(loss) == pytest.approx(wanted, abs=1e-6)
    assert (float(counts["success_positives"]), float(counts["success_negatives"])) == (2, 4)
    half = Labelled(values=torch.full((1, 4), 0.5), valid=target.valid)  # counts on both sides by half its weight
    assert float(balanced_bernoulli(logit, half, torch.ones(1, 4))[1]["success_positives"]) == 1.5
    none, _ = balanced_bernoulli(logit, Labelled(values=target.values, valid=~target.valid & False), torch.ones(1, 4))
    assert float(none) == 0


def test_a_label_of_several_is_enough_and_none_is_named():
    label = Labelled(values=torch.zeros(2, 5), valid=torch.ones(2, 5, dtype=torch.bool))
    assert list(required_label(rows(labels={"success": label}), ("progress", "success"), "Model")) == ["success"]
    with pytest.raises(ValueError, match=r"Model learns from labels progress and success, .* holds \['other'\]"):
        required_label(rows(labels={"other": label}), ("progress", "success"), "Model")


def test_a_subclass_of_the_base_may_pass_flat_arguments_on():
    class Own(ObservedReward):
        def __init__(self, state_size: int = 3, width: int = 8) -> None:
            super().__init__(state_size=state_size, width=width, layers=0)  # pyright: ignore[reportCallIssue]

    own = Own(width=16)
    assert (own.observer.width, own.state_size) == (16, 3)
    assert own.init_args == {"state_size": 3, "width": 16}
