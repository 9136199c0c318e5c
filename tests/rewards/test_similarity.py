import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guerdon.backbones.language import HashedText
from guerdon.backbones.openai_clip import ClipEncoder, ClipText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import End, Sampled, TrajectoryBatch
from guerdon.core.hub import load_component
from guerdon.rewards.image_goal import ImageGoalDistance
from guerdon.rewards.observed import inputs_of
from guerdon.rewards.shaping import Delta
from guerdon.rewards.similarity import GoalSimilarity, goal_baseline_similarity
from guerdon.testing import check_reward_model, reopen, tiny_clip, trajectory_batches


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    path = str(tiny_clip(place / "archive.pt"))
    return ClipEncoder(path), ClipText(path)


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


# The formula


def test_formula_by_hand():
    goal, baseline = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    state = torch.tensor([0.0, 0.0, 5.0])  # of any length: (0, 0, 1)
    # s − g = (−1, 0, 1), ‖·‖² = 2, and the line runs along u = (1, −1, 0)/√2: (s − g)·u = −1/√2, squared ½.
    # α = 0: 1 − ½·2 = 0, the cosine. α = 1: 1 − ½·½ = 0.75.
    # α = ½: along the line all of ½, across a quarter of 2 − ½: ½ + 0.375 = 0.875; 1 − ½·0.875 = 0.5625
    for alpha, expected in ((0.0, 0.0), (1.0, 0.75), (0.5, 0.5625)):
        got = goal_baseline_similarity(state, goal, 3 * baseline, alpha)
        assert math.isclose(float(got), expected, abs_tol=1e-6)
    assert float(goal_baseline_similarity(goal, goal, baseline, 0.5)) == 1.0


@st.composite
def embeddings(draw):
    size = draw(st.integers(2, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    return [generator.normal(size=size) * draw(st.floats(0.1, 10)) for _ in range(3)], draw(st.floats(0, 1))


def literal(state, goal, baseline, alpha):
    """1 − ½ ‖α proj_L(s) + (1 − α) s − g‖², with the projection on the line written out."""
    s, g, b = ([v / math.sqrt(sum(w * w for w in x)) for v in x] for x in (state, goal, baseline))
    d = [g[i] - b[i] for i in range(len(s))]
    way = sum((s[i] - b[i]) * d[i] for i in range(len(s))) / sum(v * v for v in d)
    projected = [b[i] + way * d[i] for i in range(len(s))]
    return 1 - 0.5 * sum((alpha * projected[i] + (1 - alpha) * s[i] - g[i]) ** 2 for i in range(len(s)))


@settings(max_examples=50, deadline=None)
@given(drawn=embeddings())
def test_formula_equals_the_slow_loop_and_keeps_its_range(drawn):
    (state, goal, baseline), alpha = drawn
    s, g, b = (torch.tensor(x) for x in (state, goal, baseline))
    got = float(goal_baseline_similarity(s, g, b, alpha))
    assert math.isclose(got, literal(state, goal, baseline, alpha), abs_tol=1e-9)
    cosine = float(torch.cosine_similarity(s, g, dim=0))
    assert math.isclose(float(goal_baseline_similarity(s, g, b, 0.0)), cosine, abs_tol=1e-9)
    assert math.isclose(float(goal_baseline_similarity(s, g, None, 0.0)), cosine, abs_tol=1e-9)
    assert cosine - 1e-9 <= got <= 1 + 1e-9  # projecting shortens s − g, so nothing falls below the cosine
    # α = 1: what lies across the line does not count
    u = torch.nn.functional.normalize(g, dim=0) - torch.nn.functional.normalize(b, dim=0)
    unit = torch.nn.functional.normalize(s, dim=0) - torch.nn.functional.normalize(g, dim=0)
    along = float((unit @ u) ** 2 / (u @ u))
    assert math.isclose(float(goal_baseline_similarity(s, g, b, 1.0)), 1 - along / 2, abs_tol=1e-9)


# Goals in words


def text_model(towers, **more):
    return GoalSimilarity(*towers, **{"cameras": ["front"], **more}).eval()


def test_rewards_are_cosines_of_the_towers_own_features(towers):
    encoder, text = towers
    frames = noise(2, 4, 3, 40, 40)
    batch = rows(frames, instructions=("open the drawer", "close it"))
    scored = text_model(towers, template="a robot that has done this: {instruction}")(batch)
    goals = text(["a robot that has done this: open the drawer", "a robot that has done this: close it"])
    for row in range(2):
        for step in range(3):
            shown = encoder.encode(frames[row, step + 1][None])[0]
            expected = torch.cosine_similarity(shown, goals[row], dim=0)
            torch.testing.assert_close(scored.rewards[row, step], expected, atol=1e-5, rtol=0)
    assert scored.valid.all() and scored.progress is None and scored.success is None
    assert scored.terms["similarity"].equal(scored.rewards) and scored.rewards.abs().max() <= 1
    change = text_model(towers, template="a robot that has done this: {instruction}", pays="change")(batch)
    torch.testing.assert_close(change.rewards[:, 1:], scored.rewards[:, 1:] - scored.rewards[:, :-1])
    assert change.terms["similarity"].equal(scored.rewards)


def test_each_instruction_has_its_goal_and_its_baseline(towers):
    encoder, text = towers
    frames = noise(4, 2, 3, 32, 32)
    prompts = {"push": "a pushed block"}
    baseline = {"push": "a block", "pull": "a handle"}
    batch = rows(frames, instructions=("push", "pull", "", "lift"))
    scored = text_model(towers, alpha=0.75, prompts=prompts, baseline=baseline)(batch)
    assert scored.valid[:, 0].tolist() == [True, True, False, False]  # no instruction; no baseline
    assert scored.rewards[2:].eq(0).all()
    for row, goal, base in ((0, "a pushed block", "a block"), (1, "pull", "a handle")):
        shown = encoder.encode(frames[row, 1][None])[0].tolist()
        expected = literal(shown, text([goal])[0].tolist(), text([base])[0].tolist(), 0.75)
        assert math.isclose(float(scored.rewards[row, 0]), expected, abs_tol=1e-5)
    one = text_model(towers, alpha=0.75, baseline="a table")(batch)
    assert one.valid[:, 0].tolist() == [True, True, False, True]
    named = text_model(towers, prompts={"": "a tidy table"})(batch)
    assert named.valid.all()


def test_a_goal_that_equals_its_baseline_is_named(towers):
    batch = rows(noise(1, 2, 3, 32, 32), instructions=("a table",))
    with pytest.raises(ValueError, match="'a table' and baseline 'a table' mean the same"):
        text_model(towers, alpha=0.5, baseline="a table")(batch)
    assert text_model(towers, alpha=0.0, baseline="a table")(batch).valid.all()


def test_long_instructions_are_cut_with_a_warning(towers):
    batch = rows(noise(1, 2, 3, 32, 32), instructions=("open the drawer " * 40,))
    with pytest.warns(UserWarning, match="reads 77 tokens"):
        text_model(towers)(batch)


# Time


def test_an_estimate_holds_between_frames_and_is_unknown_before_the_first(towers):
    encoder, text = towers
    frames = noise(1, 2, 3, 32, 32)
    batch = rows(frames, step=[[2, 4]], steps=6, instructions=("push",))
    first, second = (
        float(torch.cosine_similarity(encoder.encode(f[None])[0], text(["push"])[0], dim=0)) for f in frames[0]
    )
    level = text_model(towers)(batch)
    # observations 0 and 1 know nothing; 2 and 3 show the first frame, 4, 5 and 6 the second
    assert level.valid[0].tolist() == [False, True, True, True, True, True]
    expected = torch.tensor([0.0, first, first, second, second, second])
    torch.testing.assert_close(level.rewards[0], expected, atol=1e-5, rtol=0)
    change = text_model(towers, pays="change")(batch)
    assert change.valid[0].tolist() == [False, False, True, True, True, True]
    torch.testing.assert_close(change.rewards[0], torch.tensor([0, 0, 0, second - first, 0, 0]), atol=1e-5, rtol=0)
    unseen = replace(batch, last_observed=torch.tensor([False]))
    assert not text_model(towers)(unseen).valid[0, -1]


def test_cameras_are_averaged_where_they_have_shown_something(towers):
    one, two = noise(1, 3, 3, 32, 32), noise(1, 1, 3, 32, 32, seed=1)
    batch = rows(one, instructions=("push",))
    both = replace(batch, frames={**batch.frames, "wrist": Sampled(values=two, step=torch.tensor([[2]]))})
    alone = text_model(towers)(batch).rewards[0]
    other = text_model(towers, cameras=["wrist"])(both)
    mixed = text_model(towers, cameras=["front", "wrist", "absent"])(both).rewards[0]
    assert other.valid[0].tolist() == [False, True]
    torch.testing.assert_close(mixed, torch.stack([alone[0], (alone[1] + other.rewards[0, 1]) / 2]))


def test_cached_features_are_read_instead_of_frames(towers):
    encoder, _ = towers
    frames = noise(2, 4, 3, 32, 32)
    batch = rows(frames, instructions=("push", "pull"))
    stored = encoder.encode(frames.flatten(0, 1)).view(2, 4, -1)
    cached = features(stored, [[0, 1, 2, 3]] * 2, 3, f"{encoder.name}/front", instructions=batch.instructions)
    for model in (text_model(towers), goal_model(encoder)):
        torch.testing.assert_close(model(cached).rewards, model(batch).rewards, atol=1e-5, rtol=0)
    tokens = features(stored[:, :, None].repeat(1, 1, 3, 1), [[0, 1, 2, 3]] * 2, 3, f"{encoder.name}/front")
    tokens = replace(tokens, instructions=batch.instructions)
    torch.testing.assert_close(text_model(towers)(tokens).rewards, text_model(towers)(batch).rewards, atol=1e-5, rtol=0)
    stored[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match="camera front is NaN or infinite"):
        text_model(towers)(features(stored, [[0, 1, 2, 3]] * 2, 3, f"{encoder.name}/front"))


def test_missing_cameras_are_named(towers):
    batch = rows(noise(1, 2, 3, 32, 32), camera="side", instructions=("push",))
    with pytest.raises(ValueError, match=r"looks through front.*no frame of these.*but side"):
        text_model(towers)(batch)
    with pytest.raises(ValueError, match="looks through front"):
        goal_model(towers[0])(batch)


@settings(max_examples=4, deadline=None)
@given(batch=trajectory_batches(max_rows=3, state_size=0, stored_labels=False, cameras=("wrist", "front")))
def test_they_keep_every_promise(towers, batch):
    cameras = ["front", "absent", "wrist"]
    models = [
        text_model(towers, cameras=cameras, alpha=0.5, baseline="a table", pays="change"),
        text_model(towers, cameras=cameras),
        goal_model(towers[0], cameras=cameras),
        goal_model(ConvEncoder(8, (4, 4), 16), cameras=cameras, distance="cosine", pays="level"),
    ]
    models[0].scale.copy_(torch.tensor([-0.1, 0.2]))
    for model in models:
        check_reward_model(model, batch)


# Goals as pictures


def goal_model(encoder, cameras=("front",), **more):
    made = ImageGoalDistance(encoder, list(cameras), **more).eval()
    made.set_goal("", {camera: noise(3, 32, 32, seed=9) for camera in cameras if camera != "absent"})
    return made


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


def test_a_row_without_a_goal_is_unknown_not_zero(towers):
    made = ImageGoalDistance(towers[0], ["front"])
    made.set_goal("push", noise(3, 32, 32))
    batch = rows(noise(2, 3, 3, 32, 32), instructions=("push", "pull"))
    assert made(batch).valid.tolist() == [[True, True], [False, False]]
    made.set_goal("", noise(3, 32, 32, seed=1))
    assert made(batch).valid.all()
    assert not made(batch).rewards[0].equal(made(batch).rewards[1])


def test_goals_from_files_are_saved_without_the_files(towers, tmp_path):
    picture = noise(3, 20, 30, seed=3)
    file = tmp_path / "goal.png"
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    made = ImageGoalDistance(towers[0], ["front"], pictures={"push": str(file)})
    by_tensor = ImageGoalDistance(towers[0], ["front"])
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


def test_a_frame_that_is_the_goal_is_nearest(towers):
    frames = noise(1, 5, 3, 32, 32)
    made = ImageGoalDistance(towers[0], ["front"], pays="level")
    made.set_goal("", frames[0, 3])
    rewards = made(rows(frames)).rewards[0]
    assert int(rewards.argmax()) == 2 and abs(float(rewards[2])) < 1e-4


# A scale


def test_progress_only_with_a_scale(towers):
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


def test_what_they_read(towers):
    made = text_model(towers, cameras=["front", "wrist"], frame_size=64, frames_every=3)
    inputs = inputs_of(made)
    assert (inputs.cameras, inputs.frame_size, inputs.frames_every) == (("front", "wrist"), 64, 3)
    assert inputs.encoder is towers[0] and inputs.instruction and inputs.state_size == 0
    assert inputs_of(ImageGoalDistance(ConvEncoder(), ["front"])).encoder is None


def test_nothing_learns_and_nothing_warns(towers):
    made = text_model(towers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not made(rows(noise(1, 2, 3, 32, 32), instructions=("push",))).rewards.requires_grad
    with pytest.raises(NotImplementedError, match="nothing to train"):
        made.loss(rows(noise(1, 2, 3, 32, 32)))


def test_wrong_arguments(towers, tmp_path):
    encoder, text = towers
    other = ClipText(str(tiny_clip(tmp_path / "other.safetensors", "safetensors", seed=1)))
    for wrong, told in (
        ({"text": other}, "no pair"),
        ({"text": HashedText(7)}, "no pair"),
        ({"cameras": []}, "at least one"),
        ({"cameras": ["front", "front"]}, "each once"),
        ({"alpha": 0.5}, "with it a baseline"),
        ({"alpha": 1.5, "baseline": "x"}, r"alpha in \[0, 1\]"),
        ({"alpha": math.nan, "baseline": "x"}, r"alpha in \[0, 1\]"),
        ({"template": "do it"}, "once"),
        ({"frames_every": 0}, "1 or more"),
    ):
        with pytest.raises(ValueError, match=told):
            GoalSimilarity(**{"encoder": encoder, "text": text, "cameras": ["front"], **wrong})
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
