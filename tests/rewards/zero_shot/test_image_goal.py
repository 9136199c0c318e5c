import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from guerdon.backbones.openai_clip import ClipEncoder
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import End, Sampled, TrajectoryBatch
from guerdon.core.hub import load_component
from guerdon.rewards.zero_shot.image_goal import ImageGoalDistance
from guerdon.testing import reopen, tiny_clip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    path = str(tiny_clip(place / "archive.pt"))
    return ClipEncoder(path)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def rows(frames, step=None, camera="front", **more):
    """Rows of T steps; a frame at every observation, or at those in ``step``."""
    count, shown = frames.shape[:2]
    length = more.pop("steps", shown - 1)
    step = torch.arange(shown).repeat(count, 1) if step is None else torch.tensor(step)
    return TrajectoryBatch(
        state=torch.zeros(count, length + 1, 0),
        actions=torch.zeros(count, length, 0),
        mask=torch.ones(count, length, dtype=torch.bool),
        frames={camera: Sampled(values=frames, step=step)},
        **more,
    )


def features(values, step, steps, name="clip-archive/front", **more):
    """A row with cached features and no frames."""
    values = torch.as_tensor(values, dtype=torch.float32)
    return TrajectoryBatch(
        state=torch.zeros(len(values), steps + 1, 0),
        actions=torch.zeros(len(values), steps, 0),
        mask=torch.ones(len(values), steps, dtype=torch.bool),
        features={name: Sampled(values=values, step=torch.tensor(step))},
        **more,
    )


def test_distances_by_hand():
    encoder = ConvEncoder(2, (4, 4), 16)
    encoder.trainable = False  # so that features are read from the batch
    name = f"{encoder.name}/front"
    batch = features([[[3.0, 4.0], [0.0, 1.0], [1.0, 1.0]]], [[0, 1, 2]], 2, name, instructions=("push",))
    far = ImageGoalDistance(encoder, ["front"])
    with pytest.raises(ValueError, match="no goal yet"):
        far(batch)
    # the goal is the last observation of the one success, (1, 1)
    assert far.fit_goals([replace(batch, end=torch.tensor([End.SUCCESS]))]) == {"push": 1}
    # V = −√13, −1, 0: 3 − 1 = 2 and 4 − 1 = 3, 4 + 9 = 13; then 1 + 0
    torch.testing.assert_close(far(batch).rewards[0], torch.tensor([math.sqrt(13) - 1, 1.0]))
    torch.testing.assert_close(far(batch).terms["similarity"][0], torch.tensor([-1.0, 0.0]))
    near = ImageGoalDistance(encoder, ["front"], distance="cosine", pays="level")
    near.fit_goals([replace(batch, end=torch.tensor([End.SUCCESS]))])
    # cos((0, 1), (1, 1)) = 1/√2
    torch.testing.assert_close(near(batch).rewards[0], torch.tensor([math.sqrt(0.5), 1.0]))


def test_goals_are_made_of_ends_of_successes_only():
    encoder = ConvEncoder(1, (4, 4), 16)
    encoder.trainable = False
    values = torch.tensor([[5.0, 1.0], [5.0, 3.0], [5.0, 100.0], [5.0, 7.0], [8.0, 9.0], [5.0, 200.0]])[..., None]
    batch = features(
        values,
        [[0, 2], [0, 1], [0, 2], [0, 2], [0, 2], [0, 2]],
        2,
        f"{encoder.name}/front",
        instructions=("push", "push", "push", "pull", "lift", "push"),
        end=torch.tensor([End.SUCCESS, End.SUCCESS, End.FAILURE, End.CUT, End.SUCCESS, End.CUT]),
        success=torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0]),
        success_known=torch.ones(6, dtype=torch.bool),
        last_observed=torch.tensor([True, True, True, True, False, True]),
        offset=torch.zeros(6, dtype=torch.long),
        length=torch.tensor([2, 2, 2, 2, 2, 9]),  # the last row is a piece of a success, not its end
    )
    made = ImageGoalDistance(encoder, ["front"])
    # push: (1 + 3) / 2; pull: a clip that ends in success; lift: its last observation is a repeat, so the first frame
    assert made.fit_goals([batch[:3], batch[3:]]) == {"push": 2, "pull": 1, "lift": 1}
    assert {i: float(made.goals[k, 0, 0]) for k, i in enumerate(made.instructions)} == {"push": 2, "pull": 7, "lift": 8}
    assert made.fit_goals([batch], any_instruction=True) == {"": 4}
    assert float(made.goals[made.instructions.index(""), 0, 0]) == 4.75  # (1 + 3 + 7 + 8) / 4
    with pytest.raises(ValueError, match="end in success"):
        made.fit_goals([batch[2:3]])


@pytest.mark.slow
def test_a_row_without_a_goal_is_unknown_not_zero(encoder):
    made = ImageGoalDistance(encoder, ["front"])
    made.set_goal("push", noise(3, 32, 32))
    batch = rows(noise(2, 3, 3, 32, 32), instructions=("push", "pull"))
    assert made(batch).valid.tolist() == [[True, True], [False, False]]
    made.set_goal("", noise(3, 32, 32, seed=1))
    assert made(batch).valid.all()
    assert not made(batch).rewards[0].equal(made(batch).rewards[1])


@pytest.mark.slow
def test_goals_from_files_are_saved_without_the_files(encoder, tmp_path):
    picture = noise(3, 20, 30, seed=3)
    file = tmp_path / "goal.png"
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    made = ImageGoalDistance(encoder, ["front"], pictures={"push": str(file)})
    by_tensor = ImageGoalDistance(encoder, ["front"])
    by_tensor.set_goal("push", picture)
    assert made.goals.equal(by_tensor.goals)
    made.set_goal("pull", {"front": file})
    file.unlink()
    batch = rows(noise(2, 3, 3, 32, 32), instructions=("push", "pull"))
    made.save_pretrained(tmp_path / "saved")
    opened = load_component(tmp_path / "saved")
    assert isinstance(opened, ImageGoalDistance) and opened.instructions == ["push", "pull"]
    assert opened(batch).rewards.equal(made(batch).rewards) and opened(batch).valid.all()
    opened.set_goal("lift", picture)
    assert reopen(opened).instructions == ["push", "pull", "lift"]


@pytest.mark.slow
def test_a_frame_that_is_the_goal_is_nearest(encoder):
    frames = noise(1, 5, 3, 32, 32)
    made = ImageGoalDistance(encoder, ["front"], pays="level")
    made.set_goal("", frames[0, 3])
    rewards = made(rows(frames)).rewards[0]
    assert int(rewards.argmax()) == 2 and abs(float(rewards[2])) < 1e-4


@pytest.mark.slow
def test_wrong_arguments(encoder, tmp_path):
    two = ImageGoalDistance(encoder, ["front", "wrist"])
    with pytest.raises(ValueError, match="by camera"):
        two.set_goal("", noise(3, 8, 8))
    with pytest.raises(ValueError, match=r"\['side'\]: expected some of front, wrist"):
        two.set_goal("", {"side": noise(3, 8, 8)})
    with pytest.raises(FileNotFoundError, match="no goal picture"):
        two.set_goal("", {"front": tmp_path / "absent.png"})
    (tmp_path / "prose.png").write_text("a picture of a drawer")
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        two.set_goal("", {"front": str(tmp_path / "prose.png")})
    with pytest.raises(TypeError, match="uint8"):
        two.set_goal("", {"front": torch.rand(3, 8, 8)})
    with pytest.raises(ValueError, match=r"expected \(3, H, W\)"):
        two.set_goal("", {"front": noise(8, 8)})
    assert two.instructions == []  # a goal that could not be read leaves nothing behind
    with pytest.raises(ValueError, match="each instruction once"):
        ImageGoalDistance(encoder, ["front"], instructions=["a", "a"])
