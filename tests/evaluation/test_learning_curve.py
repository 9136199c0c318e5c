"""Numbers of a learning curve: what ended in a rollout, success with its interval, and the file."""

import math
from dataclasses import replace

import pytest
import torch

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.evaluation.learning_curve import (
    LearningRecord,
    SuccessPoint,
    count_successes,
    ended_totals,
    read_learning_record,
)


def rollout(ends=(End.TIME_LIMIT, End.CUT, End.SUCCESS), lengths=(4, 3, 2), success=(0.0, 0.0, 1.0)):
    """Rows of an ended failure, an episode that goes on, and an ended success."""
    steps = torch.tensor(lengths)
    mask = torch.arange(4)[None] < steps[:, None]
    known = torch.tensor([end != End.CUT for end in ends])
    return TrajectoryBatch(
        state=torch.zeros(3, 5, 2),
        actions=torch.zeros(3, 4, 1),
        mask=mask,
        end=torch.tensor([int(end) for end in ends]),
        length=steps + ~known,
        success=torch.tensor(success),
        success_known=known,
        recorded={"reward": Labelled(values=torch.where(mask, 1.0, math.nan), valid=mask)},
    )


def test_only_episodes_that_ended_count():
    total = ended_totals(rollout())
    assert total == {
        "episodes": 2, "length": 6, "outcomes": 2, "successes": 1, "rewarded": 2, "env_return": 6,
    }  # fmt: skip


def test_a_hidden_outcome_is_taken_from_the_data_module_and_a_hidden_reward_is_unknown():
    shown = replace(rollout(ends=(End.TIME_LIMIT, End.CUT, End.TIME_LIMIT)), recorded={})
    hidden = replace(shown, success_known=torch.zeros(3, dtype=torch.bool), success=torch.zeros(3))
    total = ended_totals(hidden, [0.0, math.nan, 1.0])
    assert (total["episodes"], total["outcomes"], total["successes"]) == (2, 2, 1)
    assert (total["rewarded"], total["env_return"]) == (0, 0)
    assert ended_totals(hidden)["outcomes"] == 0


def test_a_rollout_in_which_nothing_ended():
    total = ended_totals(rollout(ends=(End.CUT,) * 3))
    assert set(total.values()) == {0.0}


def test_successes_are_counted_over_all_batches_with_wilsons_interval():
    point = count_successes([rollout(), rollout()], 100)
    assert (point.env_steps, point.successes, point.episodes, point.rate) == (100, 2, 4, 0.5)
    # p = 1/2, n = 4, z = 1.96: (0.5 + z²/8 ± z √(1/16 + z²/64)) / (1 + z²/4)
    assert point.interval == pytest.approx((0.1500, 0.8500), abs=1e-4)
    nothing = count_successes([], 0)
    assert nothing.episodes == 0 and math.isnan(nothing.rate)


def test_the_file_gives_back_the_record(tmp_path):
    start = SuccessPoint(env_steps=0, successes=1, episodes=8)
    record = LearningRecord(
        tasks=("mujoco/reach",),
        start=start,
        rollouts=[{"env_steps": 10.0, "kl": math.nan}, {"env_steps": 20.0, "kl": 0.5}],
        validations=[SuccessPoint(env_steps=20, successes=8, episodes=8)],
    )
    record.write(tmp_path)
    again = read_learning_record(tmp_path)
    assert again is not None and again.start == start and again.validations == record.validations
    assert again.column("kl").tolist() == [[20.0], [0.5]]
    assert again.column("missing").shape == (2, 0)
    assert again.to_json() == record.to_json()


def test_no_file_and_another_file(tmp_path):
    assert read_learning_record(tmp_path) is None
    (tmp_path / "curves.json").write_text('{"start": 3}')
    with pytest.raises(ValueError, match=r"curves\.json is no learning curve"):
        read_learning_record(tmp_path)
