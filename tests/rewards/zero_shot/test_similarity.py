import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.backbones.language import HashedText
from guerdon.backbones.model_inputs import inputs_of
from guerdon.backbones.openai_clip import ClipEncoder, ClipText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core.batch import Sampled, TrajectoryBatch
from guerdon.rewards.zero_shot.image_goal import ImageGoalDistance
from guerdon.rewards.zero_shot.similarity import GoalSimilarity, goal_baseline_similarity
from guerdon.testing import check_reward_model, tiny_clip, trajectory_batches


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


def goal_model(encoder, cameras=("front",), **more):
    made = ImageGoalDistance(encoder, list(cameras), **more).eval()
    made.set_goal("", {camera: noise(3, 32, 32, seed=9) for camera in cameras if camera != "absent"})
    return made


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_goal_that_equals_its_baseline_is_named(towers):
    batch = rows(noise(1, 2, 3, 32, 32), instructions=("a table",))
    with pytest.raises(ValueError, match="'a table' and baseline 'a table' mean the same"):
        text_model(towers, alpha=0.5, baseline="a table")(batch)
    assert text_model(towers, alpha=0.0, baseline="a table")(batch).valid.all()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@settings(max_examples=4)
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


# What both are


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
    with pytest.raises(NotImplementedError, match="has no loss"):
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
