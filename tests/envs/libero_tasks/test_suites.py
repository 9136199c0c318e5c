"""Names, instructions, time limits and files of LIBERO's suites."""

import os
import subprocess
import sys

import pytest

from guerdon.envs.libero_tasks.suites import (
    SUITES,
    find_task,
    goal_of,
    horizon_of,
    instruction_of,
    official_states,
    parse_name,
    parse_suite,
)

WORDS, OTHER = "pick up the milk and place it in the basket", "grab the milk"


def test_a_name_is_a_suite_and_a_number():
    assert parse_name("libero_object/9") == ("libero_object", 9)
    assert parse_name("libero_90/89") == ("libero_90", 89)
    assert parse_name("libero_goal_swap/0") == ("libero_goal_swap", 0)
    assert len(SUITES) == 21 and sum(SUITES.values()) == 290


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("libero_objects/3", r"no suite 'libero_objects'; did you mean libero/libero_object/3"),
        ("libero_object/10", r"libero_object has the tasks libero/libero_object/0 … libero/libero_object/9"),
        ("libero_object/-1", r"libero_object has the tasks"),
        ("libero_object", r"libero_object has the tasks"),
        ("libero_object/milk", r"libero_object has the tasks"),
        ("zzz/0", r"no suite 'zzz'; did you mean libero/libero_spatial/0"),
        ("", r"no suite ''"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_near_ones(name, message):
    with pytest.raises(ValueError, match=message):
        parse_name(name)


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("libero_object", WORDS),
        ("libero_90", WORDS),
        ("libero_object_swap", WORDS),
        ("libero_object_object", WORDS),
        ("libero_object_lan", OTHER),
        ("libero_object_task", OTHER),
    ],
)
def test_the_instruction_is_that_of_the_task_and_not_of_the_file_it_was_made_from(suite, expected):
    assert instruction_of(suite, WORDS, OTHER) == expected


def test_a_variant_has_the_time_limit_of_its_suite():
    limits = [horizon_of(name) for name in ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")]
    assert limits == [220, 280, 300, 520, 400]
    assert horizon_of("libero_object_task") == 280 and horizon_of("libero_10_lan") == 520


@pytest.mark.slow
def test_every_task_has_its_files_an_instruction_and_a_goal():
    pytest.importorskip("libero")
    for suite, count in SUITES.items():
        tasks = [find_task(suite, number) for number in range(count)]
        assert len({task.bddl for task in tasks}) == count
        assert all(task.states is not None and task.instruction for task in tasks)
        for parsed in parse_suite(suite):
            assert all(len(predicate) in (2, 3) for predicate in goal_of(parsed))
    assert official_states(find_task("libero_goal", 4)).shape[0] == 50


@pytest.mark.slow
def test_another_task_in_the_same_scene_has_the_words_of_its_own_goal():
    pytest.importorskip("libero")
    assert find_task("libero_object", 0).instruction == "pick up the alphabet soup and place it in the basket"
    changed = find_task("libero_object_task", 0)
    assert changed.instruction == "pick the cream cheese and place it in the basket"
    assert goal_of(parse_suite("libero_object_task")[0]) == (("in", "cream_cheese_1", "basket_1_contain_region"),)
    assert find_task("libero_object_lan", 0).instruction == "grab alphabet soup and put it into basket"


_IMPORT = """
import os, warnings
warnings.simplefilter("error")
before = {name: os.environ.get(name) for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
from guerdon.envs.libero_tasks.suites import load_package
load_package()
assert before == {name: os.environ.get(name) for name in before}, "the environment was changed"
import sys
assert "OpenGL.EGL" not in sys.modules and "OpenGL.osmesa" not in sys.modules, "an OpenGL library was opened"
"""


@pytest.mark.slow
def test_importing_the_simulator_prints_nothing_and_leaves_the_environment_as_it_was():
    pytest.importorskip("libero")
    for chosen in (None, "egl", "osmesa"):
        environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
        if chosen:
            environment["MUJOCO_GL"] = chosen
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


_MISSING = """
import sys
sys.modules["libero"] = None
from guerdon.envs.libero_tasks.suites import find_task
find_task("libero_object", 0)
"""


@pytest.mark.slow
def test_a_missing_package_says_how_to_install_it():
    done = subprocess.run([sys.executable, "-c", _MISSING], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "tasks of LIBERO need libero, which is not installed: pip install 'guerdon[libero]'" in done.stderr
