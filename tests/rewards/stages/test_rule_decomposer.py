"""Stages by rule: by hand on a made-up carry, on real expert episodes, and what is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.core.interfaces import TaskPlan, TaskStage
from guerdon.datasets.collate import collate
from guerdon.envs.collect import collect
from guerdon.envs.instructions import KITCHEN, METAWORLD, REACH
from guerdon.envs.vector import make_task
from guerdon.rewards.stages.rule_decomposer import METAWORLD_COLUMNS, RULES, RuleDecomposer, task_of
from guerdon.testing import cut_after, pad_steps, reopen

PICK = METAWORLD["pick-place-v3"]  # near 0.06, lift 0.02, goal 0.07
ALL = [*METAWORLD.values(), *KITCHEN.values(), REACH]


def points(*rows):
    values = torch.tensor(rows, dtype=torch.float32)[None]
    return Labelled(values=values, valid=torch.ones(values.shape[:2], dtype=torch.bool))


def carry(**changes):
    """A hand goes to an object at x = 0.3, lifts it and brings it to x = 0.7: observations 0 … 6."""
    hand = points((0, 0, 0), (0.2, 0, 0), (0.28, 0, 0), (0.3, 0, 0.05), (0.5, 0, 0.05), (0.65, 0, 0.05), (0.9, 0, 0))
    item = points((0.3, 0, 0), (0.3, 0, 0), (0.3, 0, 0), (0.3, 0, 0.03), (0.5, 0, 0.03), (0.65, 0, 0.03), (0.7, 0, 0))
    goal = points(*[(0.7, 0, 0)] * 7)
    made = TrajectoryBatch(
        state=torch.zeros(1, 7, 3),
        actions=torch.zeros(1, 6, 2),
        mask=torch.ones(1, 6, dtype=torch.bool),
        instructions=(PICK,),
        tracks={"end_effector": hand, "object": item, "goal": goal},
    )
    return replace(made, **changes)


def stages(batch, causal=True, **options):
    decomposer = RuleDecomposer(**options)
    return decomposer.segment(batch, decomposer.plan(batch.instructions), causal)


def completed(batch, causal=True, **options):
    decomposer = RuleDecomposer(**options)
    return decomposer.completed(batch, decomposer.plan(batch.instructions), causal)


@pytest.mark.parametrize("causal", [True, False])
def test_a_carry_by_hand(causal):
    # hand to object: 0.3, 0.1, 0.02 < 0.06 → reach at 2; lifted by 0.03 > 0.02 at 3 → grasp;
    # object to goal at 5: (0.05, 0.03) → 0.058 < 0.07 → place, and the last stage goes on being the stage
    found = stages(carry(), causal)
    assert found.values.tolist() == [[0, 0, 1, 2, 2, 2, 2]]
    assert bool(found.valid.all())
    assert completed(carry(), causal).values.floor().tolist() == [[0, 0, 1, 2, 2, 3, 3]]


def test_the_fraction_is_what_was_covered_of_the_distance_left_at_the_start():
    done = completed(carry()).values[0]
    # reach: left is 0.3 − 0.06 = 0.24 at first, 0.1 − 0.06 = 0.04 at 1: 1 − 0.04/0.24 = 0.8333
    assert float(done[1]) == pytest.approx(0.8333, abs=1e-4)
    assert float(done[2]) == 1.0  # of a grasp nothing is covered
    # place: it begins at 3, ‖(0.4, 0.03)‖ − 0.07 = 0.3311; at 4 ‖(0.2, 0.03)‖ − 0.07 = 0.1322: 1 − 0.3993 = 0.6007
    assert float(done[4]) == pytest.approx(2.6007, abs=1e-3)
    assert float(done[6]) == 3.0


def test_a_hand_that_passes_by_ends_its_stage_online_only():
    hand = points((0, 0, 0), (0.28, 0, 0), *[(0.9, 0, 0)] * 4, (0.3, 0, 0))
    item = points(*[(0.3, 0, 0)] * 7)
    batch = carry()
    batch = replace(batch, tracks={**batch.tracks, "end_effector": hand, "object": item})
    assert stages(batch).values.tolist() == [[0, 1, 1, 1, 1, 1, 1]]
    assert stages(batch, hold=2).values.tolist() == [[0] * 7]
    assert stages(batch, causal=False).values.tolist() == [[0, 0, 0, 0, 0, 0, 1]]


def test_without_a_lift_nothing_was_grasped():
    item = points(*[(0.3 + 0.05 * max(t - 2, 0), 0, 0) for t in range(7)])
    hand = points(*[(0.3 + 0.05 * max(t - 2, 0) - 0.05, 0, 0) for t in range(7)])
    batch = carry()
    batch = replace(batch, tracks={**batch.tracks, "end_effector": hand, "object": item})
    assert stages(batch).values.tolist() == [[0, 1, 1, 1, 1, 1, 1]]


def test_success_completes_whatever_the_distances_say():
    far = points(*[(5, 5, 5)] * 7)
    batch = carry()
    lost = replace(batch, tracks={**batch.tracks, "goal": far})
    assert completed(lost).values.floor().tolist() == [[0, 0, 1, 2, 2, 2, 2]]
    flags = Labelled(values=torch.tensor([[0.0, 0, 0, 0, 0, 1, 0]]), valid=torch.arange(7)[None] > 0)
    assert completed(replace(lost, labels={"success": flags})).values.floor().tolist() == [[0, 0, 1, 2, 2, 3, 3]]
    ended = carry(tracks=lost.tracks, end=torch.tensor([int(End.SUCCESS)]))
    assert completed(ended).values.floor().tolist() == [[0, 0, 1, 2, 2, 2, 3]]
    assert completed(ended, use_success=False).values.floor().tolist() == [[0, 0, 1, 2, 2, 2, 2]]


def test_unknown_points_are_unknown_stages():
    batch = carry()
    valid = torch.ones(1, 7, dtype=torch.bool)
    valid[0, 2] = False
    item = Labelled(values=torch.where(valid[..., None], batch.tracks["object"].values, torch.nan), valid=valid)
    found = stages(replace(batch, tracks={**batch.tracks, "object": item}))
    assert found.valid.tolist() == valid.tolist()
    assert found.values.tolist() == [[0, 0, 0, 1, 1, 2, 2]]  # reached at 3, where its new resting height is taken


def test_windows_from_the_middle_are_unknown():
    found = stages(carry(offset=torch.tensor([3]), length=torch.tensor([9])))
    assert not bool(found.valid.any())
    assert not bool(found.values.any())


def test_the_state_stands_in_for_missing_tracks():
    batch = carry()
    state = torch.cat([batch.tracks[name].values for name in ("end_effector", "object", "goal")], -1)
    columns = {"end_effector": [0, 1, 2], "object": [3, 4, 5], "goal": [6, 7, 8]}
    bare = replace(batch, state=state, tracks={})
    assert torch.equal(completed(bare, state_columns=columns).values, completed(batch).values)
    with pytest.raises(ValueError, match=r"needs the track 'end_effector', this batch holds none: .*state_columns"):
        stages(bare)
    with pytest.raises(ValueError, match=r"\[36, 37, 38\], but the state has 9 numbers"):
        stages(bare, state_columns={**columns, "goal": METAWORLD_COLUMNS["goal"]})


@given(step=st.integers(0, 5), hold=st.integers(1, 2), seed=st.integers(0, 30))
def test_online_stages_use_nothing_later(step, hold, seed):
    draw = torch.Generator().manual_seed(seed)
    batch = carry()
    noisy = {
        name: Labelled(values=track.values + 0.05 * torch.randn(track.values.shape, generator=draw), valid=track.valid)
        for name, track in batch.tracks.items()
    }
    batch = replace(batch, tracks=noisy)
    whole, cut = completed(batch, hold=hold), completed(cut_after(batch, step), hold=hold)
    assert torch.equal(cut.values[:, : step + 2], whole.values[:, : step + 2])
    assert not bool(cut.valid[:, step + 2 :].any())


def test_rows_of_different_tasks_do_not_meet():
    one = carry()
    both = TrajectoryBatch(
        state=torch.zeros(2, 7, 3),
        actions=torch.zeros(2, 6, 2),
        mask=torch.ones(2, 6, dtype=torch.bool),
        instructions=(PICK, METAWORLD["push-v3"]),
        tracks={
            name: Labelled(values=track.values.expand(2, -1, -1), valid=track.valid.expand(2, -1))
            for name, track in one.tracks.items()
        },
    )
    found = stages(pad_steps(both, 2))
    assert found.values[0, :7].tolist() == stages(one).values[0].tolist()
    assert found.values[1, :7].tolist() == [0, 0, 1, 1, 1, 1, 1]  # reach and move
    assert not bool(found.valid[:, 7:].any())


@pytest.mark.parametrize("instruction", ALL)
def test_every_simulated_task_has_a_plan(instruction):
    plan = RuleDecomposer().plan([instruction])[0]
    names = tuple(stage.name for stage in plan.stages)
    assert names in {("reach",), ("reach", "move"), ("reach", "grasp", "place")}
    assert plan.instruction == instruction
    assert all(stage.description and stage.completion and stage.keypoints for stage in plan.stages)
    assert task_of(f"  {instruction.upper()}. ") in RULES


def test_an_unknown_instruction_names_those_that_read_alike():
    with pytest.raises(ValueError, match=r"no rule for the instruction 'open the draw'.*245.*'open the drawer'"):
        RuleDecomposer().plan(["open the draw"])
    known = RuleDecomposer(aliases={"Pull out the drawer": "open the drawer"})
    assert [s.name for s in known.plan(["pull out the drawer"])[0].stages] == ["reach", "move"]
    with pytest.raises(ValueError, match="no rule for the instruction 'sing'"):
        RuleDecomposer(aliases={"hum": "sing"})


def test_tasks_that_no_distance_ends_need_the_flag():
    batch = carry(instructions=(METAWORLD["hammer-v3"],))
    with pytest.raises(ValueError, match=r'hammer-v3: no distance shows .*labels\["success"\]'):
        stages(batch)
    flags = Labelled(values=torch.tensor([[0.0, 0, 0, 0, 0, 0, 1]]), valid=torch.arange(7)[None] > 0)
    flagged = replace(batch, labels={"success": flags})
    assert completed(flagged).values.floor().tolist() == [[0, 0, 1, 2, 2, 2, 3]]
    with pytest.raises(ValueError, match="use_success"):
        stages(flagged, use_success=False)


def test_what_cannot_be_used_is_refused():
    batch, decomposer = carry(), RuleDecomposer()
    plans = decomposer.plan(batch.instructions)
    with pytest.raises(ValueError, match="a plan for each of 1 rows, got 2"):
        decomposer.segment(batch, plans * 2, True)
    other = TaskPlan(instruction=PICK, stages=(TaskStage(name="dance"),))
    with pytest.raises(ValueError, match=r"plan of row 0 \(\['dance'\]\) is not this decomposer's"):
        decomposer.segment(batch, [other], True)
    values = batch.tracks["object"].values.clone()
    values[0, 4, 1] = torch.nan
    broken = {**batch.tracks, "object": Labelled(values=values, valid=batch.tracks["object"].valid)}
    with pytest.raises(ValueError, match=r"track 'object' of episode 0 is .*nan.* at observation 4"):
        decomposer.segment(replace(batch, tracks=broken), plans, True)
    flat = {**batch.tracks, "object": Labelled(values=torch.zeros(1, 7), valid=torch.ones(1, 7, dtype=torch.bool))}
    with pytest.raises(ValueError, match=r"expected a point per observation \(1, 7, 3\), got \(1, 7\)"):
        decomposer.segment(replace(batch, tracks=flat), plans, True)
    for wrong in ({"nose": [0, 1, 2]}, {"goal": [0, 1]}):
        with pytest.raises(ValueError, match="expected three places"):
            RuleDecomposer(state_columns=wrong)
    with pytest.raises(ValueError, match="hold 0"):
        RuleDecomposer(hold=0)


def test_a_saved_decomposer_comes_back():
    decomposer = RuleDecomposer(hold=2, state_columns=METAWORLD_COLUMNS, aliases={"hit": METAWORLD["hammer-v3"]})
    assert reopen(decomposer).init_args == decomposer.init_args


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pick-place-v3", "drawer-open-v3"])
def test_experts_pass_the_stages_in_order(name):
    """Reality, on held-out starts; all fifty tasks are measured in benchmarks/rule_stages.py."""
    task = make_task(f"metaworld/{name}", 150, 3)
    batch = collate(list(collect(task, {"expert": 1.0}, episodes=4, split="eval", frames=False)))
    task.close()
    assert bool((batch.success == 1).all())
    bare = replace(batch, tracks={}, labels={}, end=torch.zeros_like(batch.end))
    for row in range(4):
        online = completed(batch[row]).values.floor()[0, : int(batch.steps[row]) + 1]
        assert online.unique().tolist() == list(range(len(RuleDecomposer().plan(batch.instructions)[0].stages) + 1))
        # what a rollout shows, the state alone, says the same
        seen = completed(bare[row], use_success=False, state_columns=METAWORLD_COLUMNS).values.floor()
        assert torch.equal(seen[0, : len(online)], online)


@pytest.mark.slow
def test_the_kitchen_is_told_by_what_has_moved():
    task = make_task("kitchen/microwave", 20, 0)
    episodes = list(collect(task, {"random": 1.0}, episodes=1, frames=False))
    task.close()
    batch = collate(episodes)
    assert bool((stages(batch).values == 0).all())  # a random arm does not get there
    handle = batch.tracks["object"].values.clone()
    handle[0, 10:] += torch.tensor([0.0, -0.23, 0.0])  # opened: the handle has moved by more than 0.221
    opened = replace(batch, tracks={**batch.tracks, "object": Labelled(values=handle, valid=batch.made)})
    assert completed(opened).values.floor()[0].tolist() == [0] * 10 + [2] * 11
