"""Layout of the state: every number has one place, the same for all tasks of a suite."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.envs.libero_tasks.layout import ARM, FIXTURE, OBJECT, PROPRIO, Layout, layout_of

names = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=5)


@given(names, names)
def test_columns_cover_the_state_once(objects, fixtures):
    layout = Layout(tuple(objects), tuple(f"fixture_{name}" for name in fixtures))
    covered = sorted(
        place
        for name, (first, end) in layout.columns.items()
        if name not in ("proprio",)
        for place in range(first, end)
    )
    assert covered == list(range(layout.size))
    assert layout.size == PROPRIO + ARM + OBJECT * len(objects) + FIXTURE * len(fixtures)


def test_the_layout_of_a_suite_holds_what_any_of_its_tasks_has_and_no_work_surface():
    first = {"objects": {"milk": ["milk_1"]}, "fixtures": {"table": ["main_table"], "stove": ["stove_1"]}}
    second = {"objects": {"bowl": ["bowl_2", "bowl_1"], "milk": ["milk_1"]}, "fixtures": {"floor": ["floor"]}}
    layout = layout_of([first, second])
    assert layout == layout_of([second, first])
    assert layout.objects == ("bowl_1", "bowl_2", "milk_1") and layout.fixtures == ("stove_1",)
    assert layout.columns["milk_1"] == (35, 38) and layout.columns["stove_1.joints"] == (55, 58)


@pytest.mark.slow
def test_tasks_of_a_suite_have_one_layout(libero):
    pair = libero("libero_object", 0), libero("libero_object", 1)
    assert pair[0].columns == pair[1].columns and pair[0].state_size == pair[1].state_size == 125
    assert libero("libero_object", 0, state="proprio").columns == {
        "proprio": (0, 8),
        "end_effector": (0, 3),
        "end_effector.rotation": (3, 6),
        "gripper": (6, 8),
    }
