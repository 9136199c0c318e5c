"""Outcomes, and the folder that keeps them: whole parts, of one evaluation only."""

from dataclasses import fields

import numpy as np
import pytest

from guerdon.core.batch import End
from guerdon.envs.task import EVAL_OFFSET, Context
from guerdon.evaluation.policies.outcomes import SCHEMA, Outcome, OutcomeFolder, outcome_of, slug
from guerdon.policies.rollouts.pieces import Piece

IDENTITY = {
    "setting": {"seed": 0, "part": 16},
    "versions": {"torch": "2"},
    "device": {"model": "cpu"},
    "model": "guerdon.X 1",
}


def outcome(place=0, task="mujoco/reach", policy="model", success=True):
    return Outcome(
        policy=policy, task=task, place=place, context=f"{task}#0.{place}", index=place, split="eval", task_seed=0,
        seed=0, success=success, steps=3, reward=0.1 + place, end="success",
    )  # fmt: skip


def test_an_outcome_says_where_an_episode_started_and_how_it_ended():
    piece = Piece(
        context=Context("mujoco/reach", EVAL_OFFSET + 7, "eval"),
        state=[np.zeros(2)] * 3,
        actions=[np.zeros(1)] * 2,
        reward=[-1.5, 0.25],
        success=[False, False, True],
        end=End.SUCCESS,
    )
    found = outcome_of(piece, "against", "mujoco/reach", 7, (5, 6))
    assert found == Outcome(
        policy="against", task="mujoco/reach", place=7, context="mujoco/reach#5.1000007", index=EVAL_OFFSET + 7,
        split="eval", task_seed=5, seed=6, success=True, steps=2, reward=-1.25, end="success",
    )  # fmt: skip


def test_columns_are_the_fields():
    assert SCHEMA.names == [entry.name for entry in fields(Outcome)]


def test_what_was_written_is_read_and_a_shorter_part_is_not_enough(tmp_path):
    folder = OutcomeFolder(tmp_path / "out", IDENTITY)
    rows = [outcome(place) for place in range(5)]
    assert folder.read("model", "mujoco/reach", 0, 5) is None
    folder.write("model", "mujoco/reach", 0, rows)
    again = OutcomeFolder(tmp_path / "out", IDENTITY)
    assert again.read("model", "mujoco/reach", 0, 5) == rows
    assert again.read("model", "mujoco/reach", 0, 2) == rows[:2]
    assert again.read("model", "mujoco/reach", 0, 6) is None
    assert again.read("model", "mujoco/reach", 1, 5) is None
    assert again.read("against", "mujoco/reach", 0, 5) is None
    assert not list((tmp_path / "out").rglob("*.part*")), "nothing half-written"


def test_two_tasks_whose_files_would_share_a_name_are_not_mixed(tmp_path):
    folder = OutcomeFolder(tmp_path, IDENTITY)
    assert slug("gymnasium/a/b") == slug("gymnasium/a:b") == "gymnasium_a_b"
    folder.write("model", "gymnasium/a/b", 0, [outcome(task="gymnasium/a/b")])
    assert folder.read("model", "gymnasium/a:b", 0, 1) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "guerdon.X 2"}, "model: guerdon.X 1 there, guerdon.X 2 now"),
        ({"setting": {"seed": 1, "part": 16}}, "setting, seed: 0 there, 1 now"),
        ({"device": {"model": "cuda"}}, "device, model: cpu there, cuda now"),
        ({"versions": {"torch": "3"}}, "versions, torch: 2 there, 3 now"),
    ],
)
def test_outcomes_of_something_else_are_refused(tmp_path, change, says):
    OutcomeFolder(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match=says):
        OutcomeFolder(tmp_path, IDENTITY | change)


def test_another_policy_and_another_simulator_may_come_later(tmp_path):
    OutcomeFolder(tmp_path, IDENTITY)
    OutcomeFolder(tmp_path, IDENTITY | {"against": "guerdon.X 9", "versions": {"torch": "2", "metaworld": "3"}})
    OutcomeFolder(tmp_path, IDENTITY)  # and be left out again
    with pytest.raises(ValueError, match=r"against: guerdon.X 9 there, guerdon.X 8 now"):
        OutcomeFolder(tmp_path, IDENTITY | {"against": "guerdon.X 8"})
    with pytest.raises(ValueError, match="versions, metaworld: 3 there, 4 now"):
        OutcomeFolder(tmp_path, IDENTITY | {"versions": {"torch": "2", "metaworld": "4"}})


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="something else"):
        OutcomeFolder(tmp_path, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="something else"):
        OutcomeFolder(tmp_path / "thesis.txt", IDENTITY)


def test_a_folder_that_was_killed_at_any_moment_goes_on(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*args, **kwargs):
        raise Killed

    for number, target in enumerate(("guerdon.evaluation.policies.outcomes.write_json", "pathlib.Path.mkdir")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(target, killed)
            OutcomeFolder(folder, IDENTITY)
        (folder / ".settings.1-ab.part.json").touch()
        OutcomeFolder(folder, IDENTITY).write("model", "mujoco/reach", 0, [outcome()])
    (tmp_path / "old" / "outcomes").mkdir(parents=True)
    OutcomeFolder(tmp_path / "old", IDENTITY)


def test_another_machine_is_a_warning(tmp_path):
    OutcomeFolder(tmp_path, IDENTITY, "Linux a")
    OutcomeFolder(tmp_path, IDENTITY, "Linux a")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"begun on another machine \(Linux a there, Linux b here\)"):
            OutcomeFolder(tmp_path, IDENTITY, "Linux b")
