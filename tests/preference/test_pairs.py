"""Preference pairs of the rows of a batch."""

from dataclasses import replace

import pytest
import torch

from guerdon import RewardEstimates, RewardModel
from guerdon.core.batch import End, TrajectoryBatch
from guerdon.datasets.labels import LabelFactory
from guerdon.preference.pairs import preference_pairs, require_one_start, reward_pairs
from guerdon.preference.rules import PairRule, SuccessPairs


class LastAction(RewardModel):
    """Pays the action of the last step; rows whose first action is NaN cannot be scored."""

    causal = True

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        last = torch.arange(batch.mask.shape[1]) == batch.steps[:, None] - 1
        valid = batch.mask & ~batch.actions[:, :1, 0].isnan()
        rewards = torch.where(last & valid, batch.actions[..., 0], 0.0)
        return RewardEstimates(rewards=rewards, valid=valid, terms={"external": 0.25 * rewards, "self": 0.75 * rewards})


def played(scores, group, steps=None, end=None, **more):
    steps = steps or [3] * len(scores)
    mask = torch.arange(max(steps)) < torch.tensor(steps)[:, None]
    state = torch.zeros(len(scores), max(steps) + 1, 2)
    state[:, 0] = torch.tensor(group)[:, None]
    state[:, 1:] = torch.arange(len(scores))[:, None, None]
    return TrajectoryBatch(
        state=state,
        actions=torch.tensor(scores)[:, None, None].expand(-1, max(steps), 1).clone(),
        mask=mask,
        end=torch.tensor(end or [int(End.FAILURE)] * len(scores)),
        instructions=("reach",) * len(scores),
        group=torch.tensor(group),
        **more,
    )


def rows(steps, end, width=None, instructions=None, **more):
    width = width or max(steps)
    index = torch.arange(width + 1).float()
    return TrajectoryBatch(
        state=index[None, :, None].repeat(len(steps), 1, 1),
        actions=100 + index[None, :-1, None].repeat(len(steps), 1, 1),
        mask=torch.arange(width)[None] < torch.tensor(steps)[:, None],
        end=torch.tensor([int(e) for e in end]),
        instructions=tuple(instructions or [f"task {i}" for i in range(len(steps))]),
        **more,
    )


def test_the_best_of_each_group_is_chosen_over_its_worst():
    ends = [int(End.SUCCESS), int(End.FAILURE), int(End.SUCCESS), int(End.FAILURE), int(End.FAILURE)]
    made = reward_pairs(played([3.0, 1.0, 2.0, 5.0, 4.0], [7, 7, 7, 2, 2], end=ends), LastAction())
    assert made.pairs.chosen.tolist() == [0, 3] and made.pairs.rejected.tolist() == [1, 4]
    assert made.margin.tolist() == [2.0, 1.0] and made.scores.tolist() == [3.0, 1.0, 2.0, 5.0, 4.0]
    assert made.reasons == ("success > failure", "failure > failure by self")
    assert made.pairs.label.tolist() == [1, 1] and made.left_out == {} and len(made) == 2


def test_pieces_unscored_rows_and_groups_without_a_pair_are_counted():
    batch = played([3.0, 1.0, float("nan"), 5.0, 4.0, 4.0], [0, 0, 0, 1, 2, 2], offset=torch.tensor([0, 0, 0, 2, 0, 0]))
    made = reward_pairs(batch, LastAction())
    assert made.pairs.chosen.tolist() == [0]
    assert made.left_out == {
        "rows that are no whole episode": 1,
        "whole rows that could not be scored": 1,
        "groups without a pair": 1,
    }
    assert made.scores.isnan().tolist() == [False, False, True, True, False, False]


def test_padding_changes_nothing():
    batch = played([3.0, 1.0], [0, 0], steps=[2, 4])
    batch.actions[0, 2:] = float("nan")
    made = reward_pairs(batch, LastAction())
    assert made.margin.tolist() == [2.0]


def test_identical_trajectories_make_no_pair():
    batch = played([1.0, 1.0], [0, 0], end=[int(End.SUCCESS), int(End.FAILURE)])
    batch.state[1] = batch.state[0]
    made = reward_pairs(batch, LastAction(), SuccessPairs())
    assert len(made) == 0
    assert made.left_out == {"pairs of identical trajectories": 1, "groups without a pair": 1}
    batch.state[1, 2] += 1
    assert len(reward_pairs(batch, LastAction(), SuccessPairs())) == 1


def test_the_reason_names_a_rule_that_does_not_score():
    batch = played([1.0, 3.0], [0, 0], end=[int(End.SUCCESS), int(End.FAILURE)])
    assert reward_pairs(batch, LastAction(), SuccessPairs()).reasons == (
        "success > failure (random success against failure)",
    )
    assert reward_pairs(batch, LastAction(), PairRule()).reasons == ("failure > success",)


def test_rows_of_one_group_are_of_one_task_and_one_start():
    batch = played([1.0, 2.0], [0, 0])
    require_one_start(batch)
    with pytest.raises(ValueError, match="rows 0 and 1 are in group 0 and differ in task"):
        require_one_start(replace(batch, task=torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"differ in task: 0 .'reach'. and 0 .'push'"):
        require_one_start(replace(batch, instructions=("reach", "push"), task=torch.tensor([0, 0])))
    other = batch.state.clone()
    other[1, 0, 1] += 0.01
    with pytest.raises(ValueError, match=r"begin in states that differ by 0\.01"):
        reward_pairs(replace(batch, state=other), LastAction())
    assert len(reward_pairs(replace(batch, state=other), LastAction(), start_tolerance=0.1)) == 1
    assert len(reward_pairs(replace(batch, state=other), LastAction(), start_tolerance=None)) == 1
    unknown = batch.state.clone()
    unknown[1, 0, 1] = float("nan")
    with pytest.raises(ValueError, match="differ by nan"):
        require_one_start(replace(batch, state=unknown))


def test_pairs_by_hand():
    batch = rows([4, 4, 4, 4], [End.SUCCESS, End.FAILURE, End.TAKEOVER, End.SUCCESS], instructions=["a", "a", "a", "b"])
    pairs = preference_pairs(LabelFactory().targets(replace(batch, task=torch.tensor([0, 0, 0, 1]))))
    assert [(int(w), int(r)) for w, r in zip(pairs.chosen, pairs.rejected, strict=True)] == [(0, 1)]
    six = rows([9] * 6, [End.SUCCESS] * 6, instructions=["a"] * 6, task=torch.zeros(6).long())
    drawn, _ = LabelFactory(0.0, 0.0, 0.0, clip=1.0).draw(six, torch.Generator())
    pairs = preference_pairs(drawn, margin=0.2)
    final = drawn.labels["progress"].values.gather(1, drawn.observed.sum(1, keepdim=True) - 1)[:, 0]
    literal = {(i, j) for i in range(6) for j in range(6) if final[i] - final[j] > 0.2}
    assert literal == {(int(w), int(r)) for w, r in zip(pairs.chosen, pairs.rejected, strict=True)} and literal
