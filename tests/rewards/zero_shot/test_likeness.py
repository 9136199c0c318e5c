"""Rewards by likeness: what is paid, what holds between frames, and the scale that makes it progress."""

from dataclasses import replace

import pytest
import torch

from guerdon.backbones.vision import ConvEncoder, VisionEncoder
from guerdon.core.batch import End, Sampled, TrajectoryBatch
from guerdon.rewards.shaping import Delta
from guerdon.rewards.zero_shot.image_goal import ImageGoalDistance
from guerdon.rewards.zero_shot.likeness import SimilarityReward, last_observation, succeeded
from guerdon.testing import reopen


class Brightness(VisionEncoder):
    """The brightness of the first pixel as the only feature, frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.name, self.trainable = 1, "brightness", False
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.float()

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, 0, 0, :1] * self.scale


class Bright(SimilarityReward):
    """As like the goal as it is bright; rows told to wait have no goal."""

    def likeness(self, features, camera, batch):
        return features[..., 0], torch.tensor([text != "wait" for text in batch.instructions])


def frames(values):
    return torch.tensor(values, dtype=torch.uint8)[..., None, None, None].expand(*torch.tensor(values).shape, 3, 1, 1)


def rows(values, step, steps, camera="front", **more):
    """Rows of T steps with frames of the given brightness at the given observations."""
    count = len(values)
    return TrajectoryBatch(
        state=torch.zeros(count, steps + 1, 0),
        actions=torch.zeros(count, steps, 0),
        mask=torch.ones(count, steps, dtype=torch.bool),
        frames={camera: Sampled(values=frames(values), step=torch.tensor(step))},
        **more,
    )


def features(values, step, steps, name="brightness/front", **more):
    """Rows with cached features and no frames."""
    values = torch.as_tensor(values, dtype=torch.float32)
    return TrajectoryBatch(
        state=torch.zeros(len(values), steps + 1, 0),
        actions=torch.zeros(len(values), steps, 0),
        mask=torch.ones(len(values), steps, dtype=torch.bool),
        features={name: Sampled(values=values, step=torch.tensor(step))},
        **more,
    )


def test_the_level_or_its_change_is_paid_and_holds_between_frames():
    batch = rows([[3, 5]], [[1, 3]], 4)
    level = Bright(Brightness(), ["front"])(batch)
    # nothing is known before observation 1; the steps lead to observations 1, 2, 3, 4
    assert level.rewards.tolist() == [[3, 3, 5, 5]] and level.valid.tolist() == [[True] * 4]
    change = Bright(Brightness(), ["front"], pays="change")(batch)
    assert change.rewards.tolist() == [[0, 0, 2, 0]] and change.valid.tolist() == [[False, True, True, True]]
    assert change.terms["similarity"].tolist() == [[0, 3, 5, 5]]
    assert level.progress is None


def test_cameras_are_averaged_where_they_have_shown_something():
    one, other = rows([[2, 4]], [[0, 1]], 2), rows([[8]], [[1]], 2, camera="wrist")
    batch = replace(one, frames={**one.frames, **other.frames})
    assert Bright(Brightness(), ["front", "wrist", "absent"]).similarity(batch).values.tolist() == [[2, 6, 6]]


def test_a_row_without_a_goal_is_invalid_and_an_unmade_observation_too():
    batch = rows([[1, 2], [1, 2]], [[0, 1], [0, 1]], 2, instructions=("push", "wait"))
    scored = Bright(Brightness(), ["front"])(batch)
    assert scored.valid.tolist() == [[True, True], [False, False]] and scored.rewards[1].tolist() == [0, 0]
    unmade = Bright(Brightness(), ["front"])(replace(batch, last_observed=torch.tensor([False, True])))
    assert unmade.valid[0].tolist() == [True, False]


def test_cached_features_are_read_and_bad_ones_are_named():
    batch, model = rows([[3, 5]], [[0, 2]], 2), Bright(Brightness(), ["front"])
    cached = features([[[3.0], [5.0]]], [[0, 2]], 2)
    assert model(cached).rewards.tolist() == model(batch).rewards.tolist()
    assert model.inputs.encoder is model.encoder and model.inputs.instruction
    with pytest.raises(ValueError, match="a feature of camera front is NaN or infinite"):
        model(features([[[3.0], [torch.nan]]], [[0, 2]], 2))
    with pytest.raises(ValueError, match=r"looks through wrist: .* no feature brightness/…, but front"):
        Bright(Brightness(), ["wrist"])(batch)


def test_bad_settings_are_named():
    for wrong in ({"cameras": []}, {"cameras": ["front", "front"]}, {"frames_every": 0}):
        with pytest.raises(ValueError, match=r"at least one, each once|expected 1 or more"):
            Bright(**{"encoder": Brightness(), "cameras": ["front"], **wrong})


def test_which_rows_succeeded_and_where_they_end():
    ends = [End.SUCCESS, End.TIME_LIMIT, End.CUT, End.CUT, End.FAILURE]
    batch = rows([[1]] * 5, [[0]] * 5, 2, end=torch.tensor(ends))
    batch = replace(
        batch,
        success=torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]),
        success_known=torch.tensor([True, True, True, False, True]),
        length=torch.tensor([2, 2, 5, 2, 2]),  # the third is a piece of an episode
        last_observed=torch.tensor([True, False, True, True, True]),
    )
    assert succeeded(batch).tolist() == [True, True, False, False, False]
    assert last_observation(batch).tolist() == [2, 1, 2, 2, 2]
    none = replace(batch, mask=torch.zeros(5, 2, dtype=torch.bool), decision_step=torch.full((5, 1), -1))
    assert last_observation(none).tolist() == [0] * 5


def test_progress_only_with_a_scale():
    encoder = ConvEncoder(1, (4, 4), 16)
    encoder.trainable = False
    batch = features(
        torch.tensor([[0.0, 2.0, 4.0], [1.0, 0.5, 2.0], [2.0, 9.0, 0.0]])[..., None],
        [[0, 1, 2]] * 3,
        2,
        f"{encoder.name}/front",
        end=torch.tensor([End.SUCCESS, End.SUCCESS, End.FAILURE]),
    )
    made = ImageGoalDistance(encoder, ["front"], pays="level")
    made.fit_goals([batch])  # (4 + 2) / 2 = 3
    assert made(batch).progress is None
    with pytest.raises(ValueError, match="progress nor success"):
        Delta(made)(batch)
    # first: −3, −2, −1, mean −2; ends of successes: −1, −1, mean −1
    assert made.fit_scale([batch[:1], batch[1:]]) == (-2.0, -1.0)
    progress = made(batch).progress
    assert progress is not None and progress.valid.all()
    # S = −3, −1, −1 / −2, −2.5, −1 / −1, −6, −3; plus 2, cut to [0, 1]
    assert progress.values.tolist() == [[0, 1, 1], [0, 0, 1], [1, 0, 0]]
    assert Delta(made)(batch).rewards.tolist() == [[1, 0], [0, 1], [-1, 0]]
    opened = reopen(made)
    opened.encoder.trainable = False
    assert opened(batch).progress.values.equal(progress.values)
    with pytest.raises(ValueError, match="beginnings of episodes"):
        made.fit_scale([batch[2:]])
    upside_down = ImageGoalDistance(encoder, ["front"])
    upside_down.known, upside_down.instructions = torch.ones(1, 1, dtype=torch.bool), [""]
    upside_down.goals = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="does not tell how much is done"):
        upside_down.fit_scale([batch[:1]])
