"""The conformance check of tasks: it passes ours, by class, function, name or object."""

import numpy as np
import pytest

from guerdon.envs.checking import check_task
from guerdon.envs.reach import Reach
from guerdon.envs.render import rendering_backend

EVERY_CHECK = 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mujoco/reach", "metaworld/drawer-open-v3", "kitchen/microwave"])
def test_the_tasks_here_keep_the_protocol(name):
    report = check_task(name)
    without_expert = name.startswith("kitchen/")
    assert len(report.checked) == EVERY_CHECK - without_expert - (rendering_backend() is None)
    assert ("it has no expert" in str(report)) == without_expert
    assert report.task == name and report.steps_per_second > 10 and report.resets_per_second > 1
    assert str(report).startswith(f"{name}: {len(report.checked)} checks passed, ")


def test_a_task_a_class_and_a_function_can_be_checked():
    assert len(check_task(Reach, steps=6, frames=False).checked) == EVERY_CHECK - 1
    assert len(check_task(lambda seed: Reach(seed=seed), steps=6, frames=False).checked) == EVERY_CHECK - 1
    task = Reach(horizon=9)
    report = check_task(task, steps=6, frames=False)
    assert any("give the class or the name instead of a task" in note for note in report.notes)
    assert task.step(np.zeros(3)).stages  # it was left open
    with pytest.raises(ValueError, match="at least 4 steps, got 3"):
        check_task(Reach, steps=3)
