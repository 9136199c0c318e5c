"""The oracle follows stages without looking ahead, and names points that it cannot find."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.datasets.collate import collate
from guerdon.rewards.milestones.detection import (
    gripper_milestones,
)
from guerdon.rewards.milestones.oracle import METAWORLD_POINTS, MilestoneOracle
from guerdon.rewards.milestones.payment import MODES, MilestonePayment
from guerdon.testing import check_reward_model, trajectory_batches

modes = st.sampled_from(MODES)


STAGES = (("hand", "object", 0.1), ("gripper",), ("object", "goal", 0.1))
COLUMNS = {"hand": (0, 1), "object": (1, 2), "goal": (2, 3), "gripper": (3, 4)}


def test_the_oracle_by_hand():
    hand = [1.0, 0.55, 0.05, 0.05, 0.05, 0.05, 0.05, 0.5, 0.9, 0.3]
    obj = [0.0] * 7 + [0.45, 0.95, 0.95]
    goal = [1.0] * 10
    grip = [1.0, 1, 1, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]  # closed at 3, complete at 6
    state = torch.tensor([list(zip(hand, obj, goal, grip, strict=True))])
    batch = TrajectoryBatch(
        state=state,
        actions=torch.zeros(1, 9, 0),
        mask=torch.ones(1, 9, dtype=torch.bool),
        end=torch.tensor([int(End.SUCCESS)]),
    )
    oracle = MilestoneOracle(
        STAGES, points=COLUMNS, near=2.0, start_steps=0, payment=MilestonePayment(mode="first_hit")
    )
    scored = oracle(batch)
    # reaching, from 1 to 0.1 m: 0, then (1 − 0.55)/0.9 = 0.5, both thirds; reached at 2; gripper done at 6; then the
    # object is 1 m away: at 7 (1 − 0.55)/0.9 = 0.5 of the last third; at 8 it is 0.05 m from the goal: done, for good
    wanted = [0, 1 / 6, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 5 / 6, 1, 1]
    assert scored.progress.values[0].tolist() == pytest.approx(wanted)
    assert scored.rewards.tolist() == [[0, 1, 0, 0, 0, 1, 0, 1, 0]]
    # labelled: within 0.2 of the object (2 … 8, at 7 and 8 by 0.05 too), the change complete at 6, the goal at 8, 9
    assert scored.terms["milestone"].tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 1]]


def graspings(grip, stages, hand=None, **more):
    """The oracle's progress on one row of a gripper, of a hand as far from the object, and of an object at rest."""
    count = len(grip)
    hand = [0.0] * count if hand is None else hand
    state = torch.tensor([list(zip(hand, [0.0] * count, [1.0] * count, grip, strict=True))])
    batch = TrajectoryBatch(
        state=state, actions=torch.zeros(1, count - 1, 0), mask=torch.ones(1, count - 1, dtype=torch.bool), **more
    )
    return MilestoneOracle(stages, points=COLUMNS, start_steps=0, payment=MilestonePayment(mode="first_hit"))(batch)


def test_a_change_before_its_turn_is_not_paid():
    early = [1.0, 1, 0.4, 0.4, 0.4, 0.4, *[0.4] * 14]  # closed at 2, complete at 5
    hand = [1.0] * 10 + [0.0] * 10  # reached at 10
    stages = STAGES[:2]
    scored = graspings(early, stages, hand)
    assert scored.progress.values[0].tolist() == [0] * 10 + [0.5] * 10  # the grasp was over: nothing held
    assert scored.rewards[0].nonzero().flatten().tolist() == [9]
    again = [*early[:12], *[1.0] * 8]  # opened at 12, complete at 15
    scored = graspings(again, stages, hand)
    assert scored.progress.values[0].tolist() == [0] * 10 + [0.5] * 5 + [1] * 5
    # a change that is complete just as the stage before it is passed came before its turn too; one step later counts
    assert graspings(early, stages, [1.0] * 5 + [0.0] * 15).progress.values[0, -1] == 0.5
    assert graspings(early, stages, [1.0] * 4 + [0.0] * 16).progress.values[0].tolist() == [0] * 4 + [0.5] + [1] * 15
    # two stages of the gripper take two changes
    twice = graspings(again, (("gripper",), ("gripper",)))
    assert twice.progress.values[0].tolist() == [0] * 5 + [0.5] * 10 + [1] * 5


def literal_stages(distance, changes, stages):
    """How many stages are passed at each observation, one search a stage: from its beginning for what ends it."""
    ends, begin = [], 0
    for stage in stages:
        if stage == ("gripper",):
            hits = [t for t in changes if t > begin]
        else:
            hits = [t for t in range(begin, len(distance)) if distance[t] <= stage[2]]
        if not hits:
            break
        begin = hits[0]
        ends.append(begin)
    return [sum(end <= t for end in ends) for t in range(len(distance))]


@given(
    data=st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.5])), min_size=2, max_size=8),
    order=st.permutations([("hand", "object", 0.1), ("gripper",), ("gripper",)]),
)
def test_stages_are_those_of_a_literal_search(data, order):
    grip, hand = ([pair[i] for pair in data for _ in range(5)] for i in (0, 1))
    scored = graspings(grip, tuple(order), hand)
    changes = gripper_milestones(np.array(grip), start_steps=0).tolist()
    passed = (scored.progress.values[0] * 3 + 1e-4).floor().tolist()
    assert passed == literal_stages(hand, changes, order)


@pytest.mark.parametrize("mode", MODES)
def test_a_window_does_not_show_what_was_passed_before_it(mode):
    whole = TrajectoryBatch(
        state=torch.rand(2, 11, 4), actions=torch.zeros(2, 10, 0), mask=torch.ones(2, 10, dtype=torch.bool)
    )
    oracle = MilestoneOracle(STAGES, points=COLUMNS, start_steps=0, payment=MilestonePayment(mode=mode))
    begun = oracle(replace(whole, offset=torch.tensor([0, 3]), length=torch.tensor([13, 13])))
    assert begun.valid.all(1).tolist() == [True, False]
    assert not bool(begun.valid[1].any() | begun.progress.valid[1].any())
    assert float(begun.rewards[1].abs().sum() + begun.progress.values[1].sum() + begun.terms["milestone"][1].sum()) == 0
    assert torch.equal(begun.rewards[0], oracle(whole).rewards[0])


@pytest.mark.slow
@settings(max_examples=4)
@given(batch=trajectory_batches(state_size=4), mode=modes)
def test_every_promise_of_the_oracle_is_kept(batch, mode):
    check_reward_model(
        MilestoneOracle(STAGES, points=COLUMNS, start_steps=1, merge=2, payment=MilestonePayment(mode=mode)), batch
    )


@pytest.mark.slow
@settings(max_examples=10)
@given(seed=st.integers(0, 999), cut=st.integers(1, 19))
def test_the_oracle_does_not_look_ahead(seed, cut):
    generator = torch.Generator().manual_seed(seed)
    batch = TrajectoryBatch(
        state=torch.rand(2, 21, 4, generator=generator).cumsum(1) % 1,
        actions=torch.zeros(2, 20, 0),
        mask=torch.ones(2, 20, dtype=torch.bool),
    )
    start = replace(
        TrajectoryBatch(state=batch.state[:, : cut + 1], actions=batch.actions[:, :cut], mask=batch.mask[:, :cut])
    )
    for mode in MODES:
        oracle = MilestoneOracle(STAGES, points=COLUMNS, start_steps=1, payment=MilestonePayment(mode=mode))
        whole, prefix = oracle(batch), oracle(start)
        assert torch.equal(whole.rewards[:, :cut], prefix.rewards)
        assert torch.equal(whole.progress.values[:, : cut + 1], prefix.progress.values)


def test_tracks_come_before_columns_and_missing_points_are_named(tmp_path, episode):
    batch = collate([episode()])
    stages = (("end_effector", "mug", 0.1),)
    with pytest.raises(ValueError, match=r"point 'mug' is no track of these trajectories \(they have end_effector"):
        MilestoneOracle(stages)(batch)
    mug = Labelled(values=torch.tensor([[[30.0, 0, 0]]]).repeat(1, 31, 1), valid=torch.ones(1, 31, dtype=torch.bool))
    scored = MilestoneOracle(stages, points={"end_effector": (0, 1)})(
        replace(batch, tracks={**batch.tracks, "mug": mug})
    )
    assert scored.progress.values[0, [0, 30]].tolist() == [0, 1]  # 30 m in steps of one, by the track of three numbers
    unseen = Labelled(values=mug.values * math.nan, valid=~mug.valid)
    scored = MilestoneOracle(stages)(replace(batch, tracks={**batch.tracks, "mug": unseen}))
    assert not bool(scored.valid.any())
    with pytest.raises(ValueError, match=r"point 'mug' is \[nan, nan, nan\] at observation 0 of row 0"):
        known = Labelled(values=mug.values * math.nan, valid=mug.valid)
        MilestoneOracle(stages)(replace(batch, tracks={**batch.tracks, "mug": known}))
    with pytest.raises(ValueError, match="columns 36 to 39 do not lie in a state of 4 numbers"):
        MilestoneOracle((("end_effector", "goal", 0.1),), points=METAWORLD_POINTS)(batch)
    for wrong in (("hand",), ("hand", "object"), ("hand", "object", 0.0), ("hand", "object", "near")):
        with pytest.raises(ValueError, match="expected \\[point, point, radius above 0\\]"):
            MilestoneOracle((wrong,))
    with pytest.raises(ValueError, match="0 stages"):
        MilestoneOracle(())
    MilestoneOracle(STAGES, points=COLUMNS, payment=MilestonePayment(mode="first_hit")).save_pretrained(
        tmp_path / "oracle"
    )
    assert MilestoneOracle.from_pretrained(tmp_path / "oracle").stages == MilestoneOracle(STAGES).stages


def test_the_payment_is_an_object_or_given_flat(tmp_path):
    flat = MilestoneOracle(STAGES, points=COLUMNS, mode="first_hit", bonus=0.5)  # pyright: ignore[reportCallIssue]
    whole = MilestoneOracle(STAGES, points=COLUMNS, payment=MilestonePayment(mode="first_hit", bonus=0.5))
    for oracle in (flat, whole):
        oracle.save_pretrained(tmp_path / "oracle")
        for one in (oracle, MilestoneOracle.from_pretrained(tmp_path / "oracle")):
            paid = one.payment
            assert (paid.mode, paid.bonus, paid.milestones, paid.slack) == ("first_hit", 0.5, 3, 0.0)
    assert MilestoneOracle(STAGES, payment=MilestonePayment(milestones=3)).payment.milestones == 3
    with pytest.raises(ValueError, match="counts 2 milestones, and there are 3 stages"):
        MilestoneOracle(STAGES, milestones=2)  # pyright: ignore[reportCallIssue]
