"""Instructions and goals, known without the simulator; run as a script, this file writes them."""

import json
from pathlib import Path

import pytest

from guerdon.envs.libero_tasks import catalogue
from guerdon.envs.libero_tasks.catalogue import task_goals
from guerdon.envs.libero_tasks.goals import order
from guerdon.envs.libero_tasks.suites import SUITES, find_task, goal_of, parse_suite

FILE = Path(catalogue.__file__).with_name("tasks.json")


def written() -> str:
    """Text of the file as the installed package has the tasks, one task a line."""
    lines = []
    for suite in SUITES:
        for number, parsed in enumerate(parse_suite(suite)):
            entry = {
                "instruction": find_task(suite, number).instruction,
                "goal": goal_of(parsed),
                "parts": order(goal_of(parsed), parsed["initial_state"]),
            }
            lines.append(f"{json.dumps(f'{suite}/{number}')}: {json.dumps(entry, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def test_every_task_has_an_instruction_and_a_goal_whose_parts_hold_all_of_it():
    goals = task_goals()
    assert len(goals) == 290
    for entry in goals.values():
        assert entry.instruction and set(entry.goal) <= set(entry.parts)
        assert {part[0] for part in set(entry.parts) - set(entry.goal)} <= {"open"}


def test_the_same_words_never_ask_for_different_kinds_of_steps():
    kinds = {}
    for entry in task_goals().values():
        kinds.setdefault(entry.instruction, set()).add(tuple(part[0] for part in entry.parts))
    assert {text: found for text, found in kinds.items() if len(found) > 1} == {}


@pytest.mark.slow
def test_the_file_is_what_the_installed_package_says():
    pytest.importorskip("libero")
    assert FILE.read_text(encoding="utf-8") == written()


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
