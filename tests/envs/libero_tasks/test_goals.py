import pytest

from guerdon.envs.libero_tasks.goals import PlanStep, covers, is_drawer, known, order, plan_steps


def test_placing_is_reach_grasp_place():
    assert plan_steps([["on", "akita_black_bowl_1", "plate_1"]]) == [
        PlanStep("reach", "akita_black_bowl_1", ""),
        PlanStep("grasp", "akita_black_bowl_1", ""),
        PlanStep("place", "akita_black_bowl_1", "plate_1"),
    ]


def test_closed_drawer_is_opened_first():
    goal = [["in", "akita_black_bowl_1", "wooden_cabinet_1_top_region"]]
    verbs = [step.verb for step in plan_steps(goal)]
    assert verbs == ["reach", "open", "reach", "grasp", "place"]


def test_open_drawer_is_not_opened_again():
    goal = [["in", "butter_1", "wooden_cabinet_1_top_region"]]
    assert plan_steps(goal, [["open", "wooden_cabinet_1_top_region"]])[0] == PlanStep("reach", "butter_1", "")
    assert order([["open", "wooden_cabinet_1_top_region"], *goal]) == [
        ("open", "wooden_cabinet_1_top_region"),
        ("in", "butter_1", "wooden_cabinet_1_top_region"),
    ]


@pytest.mark.parametrize(
    ("placed", "closed"),
    [("white_cabinet_1_bottom_region", "white_cabinet_1_bottom_region"), ("microwave_1_heating_region", "microwave_1")],
)
def test_closing_comes_after_putting_in(placed: str, closed: str):
    goal = [["close", closed], ["in", "bowl_1", placed]]
    assert order(goal, [["open", closed]]) == [("in", "bowl_1", placed), ("close", closed)]


def test_what_carries_is_placed_first():
    goal = [["on", "bowl_1", "bowl_2"], ["in", "bowl_2", "wooden_tray_1_contain_region"]]
    assert [p[1] for p in order(goal)] == ["bowl_2", "bowl_1"]


def test_other_predicates_keep_their_order():
    goal = [["turnon", "flat_stove_1"], ["on", "moka_pot_1", "flat_stove_1_cook_region"]]
    assert order(goal) == [tuple(p) for p in goal]
    assert plan_steps(goal)[1] == PlanStep("turn", "flat_stove_1", "on")
    assert plan_steps([["turnoff", "flat_stove_1"]])[1] == PlanStep("turn", "flat_stove_1", "off")


def test_a_plate_is_pushed_along_the_table_but_lifted_elsewhere():
    pushed = plan_steps([["on", "plate_1", "main_table_stove_front_region"]])
    assert [step.verb for step in pushed] == ["reach", "push"]
    lifted = plan_steps([["on", "plate_1", "flat_stove_1_cook_region"]])
    assert [step.verb for step in lifted] == ["reach", "grasp", "place"]
    moved = plan_steps([["on", "cream_cheese_1", "main_table_stove_front_region"]])
    assert [step.verb for step in moved] == ["reach", "grasp", "place"]


def test_shelves_have_no_drawers():
    assert is_drawer("white_cabinet_1_middle_region")
    assert not is_drawer("wooden_two_layer_shelf_1_top_region")
    assert not is_drawer("wooden_cabinet_1_top_side")


@pytest.mark.parametrize("goal", [[], [["up", "bowl_1"]], [["on", "bowl_1"]], [["open", "a", "b"]]])
def test_unknown_goals_are_not_covered(goal: list[list[str]]):
    assert not known(goal) and not covers(goal)
    with pytest.raises(ValueError, match="expected a goal of"):
        plan_steps(goal)


@pytest.mark.parametrize(
    "predicate",
    [
        ["in", "white_yellow_mug_1", "microwave_1_heating_region"],
        ["in", "black_book_1", "wooden_two_layer_shelf_1_top_region"],
        ["open", "microwave_1"],
    ],
)
def test_what_cannot_be_reached_from_above_has_stages_but_no_expert(predicate: list[str]):
    assert known([predicate]) and not covers([predicate])
    assert plan_steps([predicate])[0] == PlanStep("reach", predicate[1], "")


def test_drawers_and_knobs_and_what_is_placed_from_above_are_covered():
    assert covers([["open", "wooden_cabinet_1_top_region"], ["close", "microwave_1"], ["turnoff", "flat_stove_1"]])
    assert covers([["in", "black_book_1", "desk_caddy_1_back_contain_region"], ["on", "bowl_1", "plate_1"]])


def test_goals_that_wait_for_each_other():
    with pytest.raises(ValueError, match="wait for each other"):
        order([["on", "bowl_1", "bowl_2"], ["on", "bowl_2", "bowl_1"]])
