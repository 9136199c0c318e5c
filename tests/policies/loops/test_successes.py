"""The online buffer: what is a success, where it is cut, what stays, and the data set it becomes."""

from contextlib import closing

import numpy as np
import pytest
import torch

from guerdon.core.batch import End, Labelled, Sampled, TrajectoryBatch
from guerdon.datasets.opening import open_dataset
from guerdon.envs.vector import make_task
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.loops.successes import (
    GatherSuccesses,
    Success,
    SuccessBuffer,
    kept_of,
    successes_in,
    write_successes,
)


def rollout(first=(3, None, 2, 4), ends=(End.TIME_LIMIT, End.TIME_LIMIT, End.CUT, End.SUCCESS), steps=(5, 5, 5, 4)):
    """Rows whose states and actions name their row and step; ``first`` is the observation of the first success."""
    rows, longest = len(first), max(steps)
    time = torch.arange(longest + 1.0)
    name = torch.arange(rows)[:, None] * 100.0
    flags = torch.stack([(time == -1 if at is None else time == at) for at in first]).float()
    mask = time[None, :-1] < torch.tensor(steps)[:, None]
    return TrajectoryBatch(
        state=torch.stack([(name + time).expand(rows, -1)] * 12, 2),
        actions=torch.stack([(name + time[:-1]).expand(rows, -1)] * 3, 2) / 1000,
        mask=mask,
        instructions=("reach",) * rows,
        end=torch.tensor([int(end) for end in ends]),
        success=torch.tensor([float(at is not None) for at in first]),
        success_known=torch.tensor([end != End.CUT for end in ends]),
        group=torch.arange(rows) + 7,
        labels={"success": Labelled(values=flags, valid=(time > 0).expand(rows, -1).clone())},
        decision_step=torch.where(mask, torch.arange(longest), -1),
    )


def policy():
    return GaussianPolicy(12, 3, hidden=(4,)).eval()


def test_successes_that_ended_are_taken_and_cut_at_the_first():
    found = successes_in(rollout(), policy(), SuccessBuffer())
    assert [(one.group, one.steps, one.success_step) for one in found] == [(7, 3, 3), (10, 4, 4)]
    assert found[0].state[:, 0].tolist() == [0, 1, 2, 3] and found[1].state[:, 0].tolist() == [300, 301, 302, 303, 304]
    assert torch.allclose(found[1].actions[:, 0], torch.tensor([0.300, 0.301, 0.302, 0.303]))


def test_steps_after_the_success_can_be_kept_where_there_are_any():
    found = successes_in(rollout(), policy(), SuccessBuffer(hold_steps=9))
    assert [(one.steps, one.success_step) for one in found] == [(5, 3), (4, 4)]


def test_relabelled_actions_are_the_mean_of_the_policy():
    mean, batch = policy(), rollout()
    (one, _) = successes_in(batch, mean, SuccessBuffer(relabel=True))
    wanted = mean.act(batch.observe(torch.zeros(3, dtype=torch.long), torch.arange(3)), deterministic=True).chunk[:, 0]
    assert torch.equal(one.actions, wanted)


def test_features_in_place_of_frames_are_refused_with_what_to_do():
    batch = rollout()
    step = torch.zeros(4, 1, dtype=torch.long)
    features = {"encoder/front": Sampled(values=torch.zeros(4, 1, 2), step=step)}
    fields = {name: getattr(batch, name) for name in ("state", "actions", "mask", "instructions", "end", "success")}
    batch = TrajectoryBatch(**fields, success_known=batch.success_known, features=features)
    with pytest.raises(ValueError, match="leave the encoder out of frames"):
        successes_in(batch, policy(), SuccessBuffer())


def success(steps, group=0, camera=False):
    frames = {}
    if camera:
        frames["corner2"] = (torch.full((2, 3, 16, 16), group, dtype=torch.uint8), torch.tensor([0, steps]))
    state, actions = torch.full((steps + 1, 12), float(group)), torch.full((steps, 3), 2.0)
    return Success(state=state, actions=actions, instruction="reach", group=group, success_step=steps, frames=frames)


@pytest.mark.parametrize(("keep", "stay"), [("last", [1, 2, 3]), ("shortest", [0, 2, 3])])
def test_the_last_or_the_shortest_stay(keep, stay):
    found = [success(steps, group) for group, steps in enumerate((4, 9, 2, 4))]
    assert [one.group for one in kept_of(found, SuccessBuffer(size=3, keep=keep))] == stay


def test_of_equally_short_ones_the_later_stays():
    found = [success(4, group) for group in range(3)]
    assert [one.group for one in kept_of(found, SuccessBuffer(size=2, keep="shortest"))] == [1, 2]


def test_what_is_gathered_comes_back_from_a_checkpoint(tmp_path):
    one = GatherSuccesses(SuccessBuffer())
    one.kept, one.episodes, one.found = [success(3, 5, camera=True)], 4, 2
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two = GatherSuccesses(SuccessBuffer())
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (two.episodes, two.found, two.kept[0].group, two.kept[0].success_step) == (4, 2, 5, 3)
    assert torch.equal(two.kept[0].state, one.kept[0].state)
    assert torch.equal(two.kept[0].frames["corner2"][0], one.kept[0].frames["corner2"][0])


def test_the_data_set_replaces_an_earlier_one_and_holds_actions_within_the_bounds(tmp_path):
    with closing(make_task("mujoco/reach", seed=3)) as task:
        write_successes([success(3), success(4, 1)], task, tmp_path / "buffer", grouped=False)
        write_successes([success(5, 8, camera=True)], task, tmp_path / "buffer", grouped=False)
        dataset = open_dataset(tmp_path / "buffer")
        (episode,) = (dataset[place] for place in range(len(dataset)))
        assert np.allclose(episode.actions, task.action_high) and episode.fps == pytest.approx(task.fps)
    assert (episode.steps, episode.success, episode.end, episode.split) == (5, 1.0, End.SUCCESS, "train")
    assert episode.context == "mujoco/reach#3.8" and dataset.cameras == ("corner2",)
    with closing(make_task("mujoco/reach")) as task:
        write_successes([success(3)], task, tmp_path / "drawn", grouped=True)
    assert open_dataset(tmp_path / "drawn")[0].context == ""  # the number is that of a draw


@pytest.mark.parametrize("given", [{"size": 0}, {"hold_steps": -1}])
def test_settings_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match="expected at least one trajectory"):
        SuccessBuffer(**given)
