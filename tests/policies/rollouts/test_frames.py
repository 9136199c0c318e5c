"""Frames of rollouts: which observations they show, who sees them, and renderers that do not work."""

from typing import Any

import numpy as np
import pytest
import torch

from guerdon.backbones.vision import ConvEncoder, VisionEncoder
from guerdon.core.batch import End
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.data import RolloutData
from guerdon.policies.rollouts.frames import Eye, RolloutFrames
from guerdon.policies.rollouts.pieces import batch_pieces
from guerdon.policies.rollouts.runner import Runner
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward

from .small_tasks import Noisy, Numbered, Slow, SlowStreet, Street, both, contexts, corridor, generator

EYE = RolloutFrames(cameras=["eye"], image_size=(4, 6))


def check_frames(batch, steps):
    """The renderer writes 10 · context + step + 1 into every pixel."""
    eye = batch.frames["eye"]
    assert (eye.values.dtype, tuple(eye.values.shape[2:])) == (torch.uint8, (3, 4, 6))
    assert [[s for s in row if s >= 0] for row in eye.step.tolist()] == steps
    for row in range(len(batch)):
        for place, step in enumerate(steps[row]):
            context, at = batch.state[row, step].tolist()
            assert (eye.values[row, place] == 10 * context + at + 1).all()


# --- which observations ---------------------------------------------------------------------------------------------


def test_decisions_and_last_observations_have_a_frame():
    runner = corridor(2, task=Slow, frames=EYE)
    batch = batch_pieces(runner.play(Numbered(3, 2), contexts(0, 3, 5), generator()))
    # seven steps, a success at step 4, an end at step 2; a decision every other step
    check_frames(batch, [[0, 2, 4, 6, 7], [0, 2, 4], [0, 2]])


@pytest.mark.parametrize(("every", "wanted"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 2, 3, 4, 6, 7])])
def test_further_frames_come_at_an_interval(every, wanted):
    frames = RolloutFrames(cameras=["eye"], image_size=(4, 6), frames_every=every)
    batch = batch_pieces(corridor(1, task=Slow, frames=frames).play(Numbered(3, 2), contexts(0), generator()))
    check_frames(batch, [wanted])


def test_a_piece_that_goes_on_has_the_frame_of_its_last_observation_and_keeps_the_others():
    runner, draws = corridor(1, task=Slow, frames=EYE), generator()
    policy = Numbered(2, 2)
    check_frames(batch_pieces(runner.collect(policy, 3, contexts(0), draws)), [[0, 2, 4]])
    check_frames(batch_pieces(runner.collect(policy, 4, contexts(0), draws)), [[0, 2, 4, 6, 7], [0, 2]])


@pytest.mark.parametrize("spares", [0, 2])
def test_a_policy_sees_the_frame_of_the_observation_that_it_decides_on(spares):
    policy = Noisy()
    runner = both(3, (Slow, SlowStreet), frames=EYE, spares=spares)
    order = [*contexts(0, 3, 4, 6), *contexts(1, 5, 2, task=Street)]
    batch = batch_pieces(runner.play(policy, order, generator()))
    for observation in policy.seen:
        wanted = 10 * observation.state[:, 0] + observation.state[:, 1] + 1
        assert observation.frames["eye"].dtype == torch.uint8
        assert torch.equal(observation.frames["eye"][:, 0, 0, 0].float(), wanted)
    rows, steps = batch.mask.nonzero(as_tuple=True)
    taken, _ = batch.at(rows, steps)
    wanted = 10 * taken.state[:, 0] + taken.state[:, 1] + 1
    assert torch.equal(taken.frames["eye"][:, 2, 3, 5].float(), wanted), "training sees what acting saw"
    runner.close()


def test_frames_change_nothing_else():
    plain, seen = (corridor(2, task=Slow, frames=frames) for frames in (None, EYE))
    one, other = (batch_pieces(r.play(Noisy(), contexts(0, 3, 5), generator(), False)) for r in (plain, seen))
    assert plain is not seen and one.frames == {} and torch.equal(one.actions, other.actions)
    assert torch.equal(one.state, other.state) and torch.equal(one.end, other.end)


# --- renderers that do not work -------------------------------------------------------------------------------------


class Black(Slow):
    def render(self, camera=None, size=(96, 96)):
        return np.zeros((3, *size), np.uint8)


class Sideways(Slow):
    def render(self, camera=None, size=(96, 96)):
        return np.ones((*size, 3), np.uint8)


def test_a_renderer_that_gives_black_frames_is_noticed():
    runner = corridor(task=Black, frames=EYE)
    with pytest.raises(RuntimeError, match=r"test/corridor, camera 'eye': the first frame is black.*MUJOCO_GL"):
        runner.collect(Numbered(), 4, contexts(0), generator())


def test_a_scene_may_become_black_later():
    task: Any = Slow()
    task.reset(contexts(0)[0])
    eye = Eye(EYE, [task])
    eye.render(task)
    task.at = -1  # the pixels are the context and the step
    assert not eye.render(task)["eye"].any()
    task.index, task.at = 25, 5  # and 256 is 0 again


def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected \(3, 4, 6\) uint8, got \(4, 6, 3\) uint8"):
        corridor(task=Sideways, frames=EYE).collect(Numbered(), 4, contexts(0), generator())


def test_a_camera_that_a_task_lacks_is_named():
    with pytest.raises(ValueError, match="test/street: unknown camera 'eye'; its cameras: none"):
        both(tasks=(Slow, Street), frames=EYE)
    with pytest.raises(ValueError, match="mujoco/reach: unknown camera 'side'; its cameras: front, top"):
        Runner("mujoco/reach", 1, frames=RolloutFrames(cameras=["side"]))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"cameras": []}, "at least one, each once"),
        ({"cameras": ["a", "a"]}, "at least one, each once"),
        ({"cameras": "front"}, r"write \['front'\]"),
        ({"cameras": ["a"], "image_size": 0}, "expected positive numbers"),
        ({"cameras": ["a"], "frames_every": 0}, "expected positive numbers"),
    ],
)
def test_settings_that_make_no_sense(more, match):
    with pytest.raises(ValueError, match=match):
        RolloutFrames(**more)


# --- a real renderer ------------------------------------------------------------------------------------------------


@pytest.mark.pixels
def test_a_reward_on_pixels_scores_rollouts():
    runner = Runner("mujoco/reach", 2, frames=RolloutFrames(cameras=["front", "top"], image_size=24))
    task = runner.simulators.tasks[0]
    policy = GaussianPolicy(12, 3, hidden=(8,), horizon=2, execute=2).eval()
    batch = batch_pieces(runner.collect(policy, 20, task.contexts("train", 2), generator()))
    assert (batch.end == End.CUT).all() and bool((batch.frames["top"].values > 0).any())
    encoder = ConvEncoder(width=8, channels=(4, 8), size=8)
    seeing = ObservationEncoder(cameras=("front", "top"), encoder=encoder, width=16, layers=1, heads=2)
    found = ProgressReward(observer=seeing).eval()(batch)
    assert torch.equal(found.valid, batch.mask), "every step ends at a frame, that before or its own"
    for row in range(2):  # the first frame is the reset's, at the size asked for
        task.reset(task.contexts("train", 2)[int(batch.group[row])])
        shown = torch.from_numpy(task.render("top", (24, 24)))
        assert torch.equal(batch.frames["top"].values[row, 0], shown)
    runner.close()


# --- frozen encoders ------------------------------------------------------------------------------------------------


class Mean(VisionEncoder):
    """The mean of each colour, and a count of the frames that were encoded."""

    name, width, trainable = "mean", 3, False

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.seen = 0

    def preprocess(self, frames):
        return frames.float() / 255

    def features(self, pixels):
        self.seen += len(pixels)
        return pixels.mean((2, 3)) * self.scale


class Coloured(GaussianPolicy):
    """Remembers the features that it was shown."""

    def act(self, observation, deterministic=False, generator=None):
        self.shown = [*getattr(self, "shown", []), observation]
        return super().act(observation, deterministic, generator)


def test_features_travel_in_place_of_frames_and_each_frame_is_encoded_once():
    encoder = Mean()
    frames = RolloutFrames(cameras=["eye"], image_size=(4, 6), frames_every=3, encoder=encoder)
    runner = corridor(2, task=Slow, frames=frames)
    policy = Coloured(2, 1, hidden=(8,), horizon=2, execute=2, feature_sizes={"mean/eye": 3}).eval()
    wanted = 0
    for play in (True, False, False):
        if play:
            pieces = runner.play(policy, contexts(0, 3, 6), generator())
        else:
            pieces = runner.collect(policy, 9, contexts(0, 3, 6), generator())
        wanted += sum(sum(step >= piece.fresh + (piece.fresh > 0) for step in piece.frame_step) for piece in pieces)
        batch = batch_pieces(pieces)
        eye = batch.features["mean/eye"]
        assert batch.frames == {} and eye.values.shape[2:] == (3,)
        for row in range(len(batch)):
            for place, step in enumerate(s for s in eye.step[row].tolist() if s >= 0):
                context, at = batch.state[row, step].tolist()
                shown = torch.tensor((10 * context + at + 1) / 255).half().float()
                assert torch.equal(eye.values[row, place], shown.expand(3))
        rows, steps = (batch.decision_step >= 0).nonzero(as_tuple=True)
        taken, decision = batch.at(rows, batch.decision_step[rows, steps])
        assert taken.features.keys() == {"mean/eye"}
        log_prob = policy.evaluate(taken, decision).log_prob
        assert decision.log_prob is not None
        assert torch.allclose(log_prob, decision.log_prob, atol=1e-5), "training sees what acting saw"
    assert encoder.seen == wanted, "a frame was encoded twice, or not at all"
    assert all(not observation.frames for observation in policy.shown)


def test_an_encoder_that_learns_is_refused():
    encoder = ConvEncoder(width=8, channels=(4, 8), size=8)
    with pytest.raises(ValueError, match="is trainable, so its features change: put it into the policy"):
        RolloutFrames(cameras=["eye"], encoder=encoder)


def test_the_widths_of_features_are_known_to_what_learns():
    data = RolloutData("mujoco/reach", frames=RolloutFrames(cameras=["top"], encoder=Mean()))
    assert data.sizes.feature_sizes == {"mean/top": 3}
