"""Predictions of single episodes from a batch of estimates."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from guerdon.core.batch import Labelled, RewardEstimates, Sampled
from guerdon.core.interfaces import RewardModel
from guerdon.datasets.labels import with_progress_targets, with_success_targets
from guerdon.evaluation.controls import OtherTasks, predict_episodes
from guerdon.evaluation.extraction import clock_prediction, describe_conventions, extract_prediction, run_model

from .scripted import Scripted, episodes


def extract(model, batch, row=0):
    labelled = with_progress_targets(with_success_targets(batch))
    return extract_prediction(labelled, run_model(model, labelled), row)


def test_a_model_of_progress_and_success_by_hand():
    found = extract(Scripted("blind"), episodes([1]))
    assert found.values.tolist() == found.progress.tolist() == found.target.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert (found.score, found.final, found.total) == (1.0, 1.0, 1.0)
    assert found.probability.tolist() == found.label.tolist() == [0, 0, 0, 0, 1]
    failed = extract(Scripted("blind"), episodes([0]))
    assert (failed.score, failed.final) == (0.0, 0.5), "the score is the success probability, not the progress"
    assert len(failed.target) == 0, "progress of a failure is not known"


class Paid(RewardModel):
    """Gives rewards and nothing else; the second step is unknown."""

    def forward(self, batch):
        valid = batch.mask.clone()
        valid[:, 1] = False
        return RewardEstimates(rewards=torch.where(valid, 0.5, 0.0), valid=valid)


def test_a_model_of_rewards_alone_is_scored_by_their_sum():
    found = extract(Paid(), episodes([1]))
    assert found.total == found.score == 1.5 and math.isnan(found.final) and found.final_score == 1.5
    # summed so far, at the start and after every known step
    assert found.values.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert len(found.probability) == len(found.progress) == 0


def test_only_observations_with_a_new_frame_are_evaluated():
    frames = {"front": Sampled(values=torch.zeros(1, 3, 3, 4, 4, dtype=torch.uint8), step=torch.tensor([[0, 2, 4]]))}
    found = extract(Scripted("blind"), replace(episodes([1]), frames=frames))
    assert found.values.tolist() == [0.0, 0.5, 1.0] and found.score == 1.0


def test_a_repeated_last_observation_is_left_out():
    batch = replace(episodes([1]), last_observed=torch.tensor([False]))
    found = extract(Scripted("blind"), batch)
    assert found.values.tolist() == [0, 0.25, 0.5, 0.75] and found.final == 0.75


def test_the_clock_is_t_over_t_wherever_the_model_has_an_estimate():
    batch = with_progress_targets(with_success_targets(episodes([1, 0])))
    estimates = run_model(Scripted("constant"), batch)
    assert estimates.progress is not None
    valid = estimates.progress.valid.clone()
    valid[0, 1] = False
    gap = replace(estimates, progress=Labelled(values=estimates.progress.values, valid=valid))
    found = clock_prediction(batch, gap, 0)
    assert found.values.tolist() == found.progress.tolist() == [0, 0.5, 0.75, 1]
    assert found.probability.tolist() == [0, 0.25, 0.5, 0.75, 1] and found.score == found.total == found.final == 1
    assert np.array_equal(clock_prediction(batch, gap, 1).values, np.linspace(0, 1, 5))


def test_a_model_that_calls_nonsense_valid_is_refused():
    batch = episodes([1, 0])
    batch.state[0, 2, 0] = math.nan
    with pytest.raises(ValueError, match="value of episode 0 is not a number"):
        predict_episodes(Scripted("blind"), batch, OtherTasks(instructions={0: "open"}))


class Short(RewardModel):
    """Gives one reward too few."""

    def forward(self, batch):
        return RewardEstimates(rewards=torch.zeros(len(batch), 3), valid=batch.mask[:, :3])


def test_estimates_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"Short: expected rewards \(1, 4\), got \(1, 3\)"):
        run_model(Short(), episodes([1]))


def test_conventions_say_what_is_evaluated():
    batch = episodes([1])
    both = describe_conventions(Scripted()(batch))
    assert both["value order of"].startswith("progress") and both["success AUROC of"].startswith("success probability")
    graded = describe_conventions(Scripted(success=False)(batch))
    assert graded["success AUROC of"] == "progress at the last observation" and "progress error" in graded
    paid = describe_conventions(Paid()(batch))
    assert paid["value order of"].startswith("summed reward so far") and "progress error" not in paid
