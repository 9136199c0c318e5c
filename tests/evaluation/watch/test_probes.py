"""Probes pay clips that should earn nothing to rewards that cannot tell, and to no other."""

from dataclasses import replace

import pytest
import torch

from guerdon.backbones.model_inputs import ModelInputs
from guerdon.core.batch import End, Labelled, RewardEstimates, Sampled, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.evaluation.watch.probes import probe
from guerdon.evaluation.watch.spot_labels import stack_rows
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward

from .watched_runs import Told, rollout, with_instructions


class Listening(Told):
    """Believes in every success whose instruction begins with the right word."""

    inputs = ModelInputs(instruction=True)

    def forward(self, batch):
        right = torch.tensor([float(text.startswith("reach")) for text in batch.instructions])
        return super().forward(replace(batch, state=batch.state * right[:, None, None]))


class Deaf(Told):
    """Says that it reads the instruction, and does not."""

    inputs = ModelInputs(instruction=True)


def test_a_deaf_reward_pays_another_task():
    batch = with_instructions(rollout([0.9] * 4), "reach the ball")
    assert probe(Listening(), batch, instructions=("open the drawer",))["other_task"].share == 0
    found = probe(Deaf(), batch, instructions=("open the drawer", "reach the ball"))["other_task"]
    assert (found.clips, found.honest, found.claimed) == (4, 4, 4)
    assert "other_task" not in probe(Deaf(), batch), "no other task is known"
    assert probe(Listening(), with_instructions(batch, "reach the ball", "close it"))["other_task"].clips == 4


def test_clips_end_where_the_score_is_best_and_failures_prove_nothing():
    batch = rollout([0.9, 0.3, 0.9], steps=6)
    batch.state[0, 4:, 0] = 0.2  # succeeds at observation 3, no more, and leaves again
    batch.state[0, 3, 0] = 0.8
    batch.state[2, :, 0] = 0.9  # begins as a success: nothing is reached
    found = probe(Told(), batch)
    assert (found["honest"].clips, found["honest"].honest) == (3, 1)
    # paid: 0.8 up to its best, 0.3, and 0; reversed from there: the same backwards
    assert found["honest"].paid == pytest.approx(0.8 + 0.3)
    assert found["reversed"].paid == pytest.approx(-0.8 - 0.3)
    assert found["frozen"].paid == 0
    assert probe(Told(), batch, rows=1)["honest"].paid == pytest.approx(0.8), "what reaches success is taken first"


class Bright(RewardModel):
    """Success is a bright picture."""

    inputs = ModelInputs(cameras=("front",))

    def forward(self, batch):
        sampled = batch.frames["front"]
        level = sampled.values.float().mean((2, 3, 4)) / 255
        score = Labelled(values=level, valid=batch.observed)
        return RewardEstimates(rewards=level[:, 1:] - level[:, :-1], valid=batch.mask, success=score)


def test_frames_are_frozen_reversed_and_blackened():
    steps = torch.arange(5).expand(2, -1)
    frames = (torch.linspace(25, 230, 5)[None, :, None, None, None] * torch.ones(2, 5, 3, 4, 4)).to(torch.uint8)
    batch = replace(rollout([0.0, 0.0]), frames={"front": Sampled(values=frames, step=steps)})
    found = probe(Bright(), batch)
    assert found["honest"].mean == pytest.approx(205 / 255, abs=0.01)
    assert found["frozen"].mean == found["blank"].mean == 0
    assert found["reversed"].mean == pytest.approx(-205 / 255, abs=0.01)
    assert [found[name].share for name in ("frozen", "reversed", "blank")] == [0, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_clips_on_the_host_are_probed_by_a_reward_on_an_accelerator():
    torch.manual_seed(0)
    batch, reward = (
        rollout([0.9, 0.2]),
        ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=1)).eval(),
    )
    here = probe(reward, batch)
    there = probe(reward.to("cuda"), batch)
    assert there.keys() == here.keys() and there["honest"].paid == pytest.approx(here["honest"].paid, abs=1e-3)


class Tracked(RewardModel):
    """Progress is where the hand is, in a track."""

    def forward(self, batch):
        hand = batch.tracks["hand"]
        phi = torch.where(hand.valid, hand.values[..., 0], 0.0)
        return RewardEstimates(
            rewards=torch.where(batch.mask, phi[:, 1:] - phi[:, :-1], 0.0),
            valid=batch.mask,
            progress=Labelled(values=phi.clamp(0, 1), valid=batch.made & hand.valid),
        )


def tracked(to, steps):
    """A row whose hand goes evenly from 0 to a place."""
    hand = torch.linspace(0, to, steps + 1)[None, :, None] * torch.ones(3)
    return replace(
        rollout([to], steps=steps),
        tracks={"hand": Labelled(values=hand, valid=torch.ones(1, steps + 1, dtype=torch.bool))},
    )


def test_a_reward_that_reads_tracks_is_probed_on_tracks():
    found = probe(Tracked(), stack_rows([tracked(0.9, 4), tracked(0.8, 6)]))
    assert found["honest"].paid == pytest.approx(0.9 + 0.8, abs=1e-5)
    assert found["frozen"].paid == pytest.approx(0.0, abs=1e-5)
    assert found["reversed"].paid == pytest.approx(-0.9 - 0.8, abs=1e-5)


def test_a_track_per_step_is_probed_on_its_own_clock():
    """K = T is a legal track; it was once taken for one per observation, which crashed."""
    rows = TrajectoryBatch(
        state=torch.zeros(1, 6, 2),
        actions=torch.zeros(1, 5, 1),
        mask=torch.ones(1, 5, dtype=torch.bool),
        end=torch.tensor([End.SUCCESS]),
        tracks={"grasped": Labelled(values=torch.ones(1, 5), valid=torch.ones(1, 5, dtype=torch.bool))},
    )
    found = probe(Grasped(), rows)
    assert found["honest"].paid == pytest.approx(5.0)
    assert found["reversed"].paid == 0.0  # no step leads backwards, so no grasp is known on one


class Grasped(RewardModel):
    """Pays every step on which something is grasped."""

    def forward(self, batch):
        track = batch.tracks["grasped"]
        assert track.valid.shape == batch.mask.shape
        valid = batch.mask & track.valid
        return RewardEstimates(rewards=torch.where(valid, track.values, 0.0), valid=valid)
