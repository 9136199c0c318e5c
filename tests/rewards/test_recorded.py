from dataclasses import replace

import pytest
import torch
from hypothesis import given

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.rewards.recorded import RecordedReward, RecordedSuccess
from guerdon.testing import check_reward_model, trajectory_batches


@pytest.mark.slow
@given(batch=trajectory_batches())
def test_every_promise_is_kept(batch):
    check_reward_model(RecordedReward(), batch)
    check_reward_model(RecordedSuccess(), batch)


def a_batch(ends, **more):
    rows = len(ends)
    mask = torch.tensor([[True, True, True]] * rows)
    mask[0, 2] = False
    return TrajectoryBatch(
        state=torch.zeros(rows, 4, 0),
        actions=torch.zeros(rows, 3, 0),
        mask=mask,
        end=torch.tensor([int(e) for e in ends]),
        **more,
    )


def test_recorded_rewards_pass_and_unknown_ones_stay_unknown():
    column = Labelled(
        values=torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.nan, 6.0]]),
        valid=torch.tensor([[True, True, True], [True, False, True]]),
    )
    scored = RecordedReward("dense")(a_batch([End.CUT] * 2, recorded={"dense": column}))
    assert scored.rewards.tolist() == [[1, 2, 0], [4, 0, 6]]
    assert scored.valid.tolist() == [[True, True, False], [True, False, True]]
    wrong = replace(column, valid=torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"recorded 'dense' of episode 1 is nan at step 1"):
        RecordedReward("dense")(a_batch([End.CUT] * 2, recorded={"dense": wrong}))
    with pytest.raises(ValueError, match=r"no recorded column 'reward': these trajectories recorded dense"):
        RecordedReward()(a_batch([End.CUT] * 2, recorded={"dense": column}))
    per_observation = Labelled(values=torch.zeros(2, 4), valid=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="one number per step"):
        RecordedReward()(a_batch([End.CUT] * 2, recorded={"reward": per_observation}))


def test_sparse_success_is_paid_on_the_last_real_step_of_a_success():
    scored = RecordedSuccess()(a_batch([End.SUCCESS, End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.TAKEOVER]))
    assert scored.rewards.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert scored.valid.tolist() == [[True, True, False], *[[True] * 3] * 3, [False] * 3]


def test_a_window_inside_an_episode_paid_nothing_and_a_fragment_with_flags_is_known():
    window = a_batch([End.CUT, End.CUT], length=torch.tensor([9, 3]))
    assert RecordedSuccess()(window).valid.tolist() == [[True, True, False], [False] * 3]
    flags = Labelled(values=torch.zeros(2, 4), valid=torch.tensor([[False, True, True, True]] * 2))
    told = RecordedSuccess()(replace(window, labels={"success": flags}))
    assert told.valid[1].tolist() == [True] * 3 and told.rewards[1].tolist() == [0] * 3
