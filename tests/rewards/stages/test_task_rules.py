"""Rules of the simulated tasks: every task has one, tasks of several parts have stages for each."""

import torch

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.envs.libero_tasks.catalogue import task_goals
from guerdon.envs.naming import task_names
from guerdon.rewards.stages.rule_decomposer import RuleDecomposer
from guerdon.rewards.stages.task_rules import RULES, TaskRule, plain, task_of


def test_every_listed_task_has_a_rule():
    assert set(RULES) == set(task_names())


def test_every_instruction_of_libero_finds_a_rule_with_the_stages_of_its_goal():
    for goal in task_goals().values():
        rule = RULES[task_of(goal.instruction)]
        assert len(rule.parts) == len(goal.parts)
        plan = RuleDecomposer().plan([goal.instruction])[0]
        names = [stage.name for stage in plan.stages]
        assert len(set(names)) == len(names)
        carried = [part for part in rule.parts if part.lift is not None]
        assert len(names) == 2 * len(rule.parts) + len(carried)


def test_other_wordings_of_libero_pro_mean_the_same_task():
    one = "pick up the alphabet soup and place it in the basket"
    other = "grab alphabet soup and put it into basket"
    assert RULES[task_of(one)] == RULES[task_of(f"  {other.upper()}. ")]
    assert plain(" Grab  it. ") == "grab it"


def test_a_goal_of_one_part_has_plain_stages_and_one_of_several_names_its_objects():
    plan = RuleDecomposer().plan(["put both the alphabet soup and the tomato sauce in the basket"])[0]
    assert [stage.name for stage in plan.stages] == [
        *("reach alphabet soup 1", "grasp alphabet soup 1", "place alphabet soup 1"),
        *("reach tomato sauce 1", "grasp tomato sauce 1", "place tomato sauce 1"),
    ]
    assert plan.stages[3].keypoints == ("object_2",) and plan.stages[5].keypoints == ("object_2", "goal_2")
    assert [stage.name for stage in RuleDecomposer().plan(["turn on the stove"])[0].stages] == ["reach", "move"]
    assert [s.name for s in RuleDecomposer().plan(["open the top drawer and put the bowl inside"])[0].stages][:2] == [
        "reach wooden cabinet 1 top region",
        "move wooden cabinet 1 top region",
    ]


def test_parts_have_tracks_of_their_own():
    rule = TaskRule(near=0.1, goal=0.1, then=(TaskRule(near=0.1, goal=0.1, part=2),))
    assert [part.tracks for part in rule.parts] == [
        ("end_effector", "object", "goal"),
        ("end_effector", "object_2", "goal_2"),
    ]


def two_objects(hand, first, second, success=()) -> TrajectoryBatch:
    """One episode of the task of two objects, as points on the x axis; goals are at 0.9 and 0.95."""

    def points(values):
        values = torch.tensor([values], dtype=torch.float32)
        return torch.stack([values, torch.zeros_like(values), torch.zeros_like(values)], -1)

    steps = len(hand) - 1
    known = torch.ones(1, steps + 1, dtype=torch.bool)
    lifted = []
    for item in (first, second):
        place = points(item)  # on its way it is carried 10 cm up
        place[..., 2] = torch.tensor([[0.0 if x in (item[0], item[-1]) else 0.1 for x in item]])
        lifted.append(place)
    held = points(hand)
    held[..., 2] = torch.tensor([[float(max(p[0, t, 2] for p in lifted)) for t in range(steps + 1)]])
    tracks = {"end_effector": held, "object": lifted[0], "object_2": lifted[1]}
    tracks |= {"goal": points([0.9] * (steps + 1)), "goal_2": points([0.95] * (steps + 1))}
    return TrajectoryBatch(
        state=torch.zeros(1, steps + 1, 2),
        actions=torch.zeros(1, steps, 2),
        mask=torch.ones(1, steps, dtype=torch.bool),
        instructions=("put both the alphabet soup and the tomato sauce in the basket",),
        tracks={name: Labelled(values=place, valid=known) for name, place in tracks.items()},
        end=torch.tensor([int(End.SUCCESS if success else End.TIME_LIMIT)]),
    )


def test_parts_are_completed_one_after_the_other():
    hand = [0.0, 0.3, 0.5, 0.9, 0.6, 0.6, 0.7, 0.95, 0.95]
    first = [0.3, 0.3, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    second = [0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.7, 0.95, 0.95]
    batch = two_objects(hand, first, second)
    decomposer = RuleDecomposer(use_success=False)
    plans = decomposer.plan(batch.instructions)
    done = decomposer.completed(batch, plans, causal=True).values.floor()[0].tolist()
    assert done == [0, 1, 2, 3, 4, 4, 5, 6, 6]


def test_an_object_at_its_goal_completes_its_own_part_only():
    """The second object arrives first: nothing is known to be complete of the first part."""
    hand, first = [0.0, 0.6, 0.7, 0.95, 0.95], [0.3] * 5
    second = [0.6, 0.6, 0.7, 0.95, 0.95]
    batch = two_objects(hand, first, second)
    decomposer = RuleDecomposer(use_success=False)
    done = decomposer.completed(batch, decomposer.plan(batch.instructions), causal=True).values.floor()[0]
    assert int(done.max()) == 0


def test_success_completes_every_part():
    batch = two_objects([0.0, 0.1, 0.2], [0.3] * 3, [0.6] * 3, success=(1,))
    decomposer = RuleDecomposer()
    done = decomposer.completed(batch, decomposer.plan(batch.instructions), causal=True).values.floor()[0].tolist()
    assert done == [0, 0, 6]
