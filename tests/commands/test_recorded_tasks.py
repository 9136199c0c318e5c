"""A run knows its tasks, and a configuration that plays another one is refused; through the real command."""

import json
from pathlib import Path

import pytest

from guerdon.cli import main
from guerdon.commands.recorded_tasks import check_tasks_of_models, names_of_simulators, record_tasks, tasks_of
from guerdon.datasets.module import EpisodeData
from guerdon.policies.rollouts.data import RolloutData

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]
POLICY = "--model.init_args.policy.init_args.path"


def test_tasks_of_rollouts_and_of_collected_episodes(here):
    assert tasks_of(RolloutData(["mujoco/reach", "kitchen/kettle"])) == ["mujoco/reach", "kitchen/kettle"]
    assert tasks_of(EpisodeData([str(here / "train"), str(here / "held")])) == ["mujoco/reach"]
    assert json.loads((here / "run/tasks.json").read_text()) == {"tasks": ["mujoco/reach"]}


def test_nothing_is_recorded_where_nothing_is_known(tmp_path):
    assert tasks_of(None) == []
    record_tasks(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def config(path):
    return {"init_args": {"policy": {"init_args": {"path": str(path)}}, "reward": {"init_args": {"path": ""}}}}


@pytest.mark.parametrize("played", [["mujoco/reach"], ["kitchen/kettle", "mujoco/reach"]])
def test_a_task_that_was_trained_on_is_played(here, played, capsys):
    check_tasks_of_models(config(here / "run/model"), played, named=False)
    check_tasks_of_models(config(here / "elsewhere/model"), ["kitchen/kettle"], named=False)  # not known
    assert capsys.readouterr().err == ""


OWN = """
from guerdon import make_task

def line(horizon=50, seed=0):
    task = make_task("mujoco/reach", horizon, seed)
    task.name = "line"
    return task
"""


def test_a_simulator_of_ones_own_is_known_by_both_of_its_names(tmp_path, monkeypatch):
    """Collected episodes carry the name that a simulator gives itself."""
    monkeypatch.chdir(tmp_path)
    Path("own_sim_of_two_names.py").write_text(OWN)
    Path("tasks.json").write_text('{"tasks": ["line"]}')
    data = RolloutData("own_sim_of_two_names:line", contexts=2, eval_contexts=0, envs=1)
    names = data.task_names
    check_tasks_of_models(config(tmp_path / "model"), names, False, lambda: names_of_simulators(data))
    with pytest.raises(ValueError, match="was trained on line"):
        check_tasks_of_models(config(tmp_path / "model"), names, False)
    data.setup("fit")
    assert tasks_of(data) == ["own_sim_of_two_names:line", "line"]
    data.teardown("fit")


def test_another_task_is_refused_unless_the_command_names_it(here, capsys):
    with pytest.raises(ValueError, match=r"was trained on mujoco/reach, and a/b is played: give --data"):
        check_tasks_of_models(config(here / "run/model"), ["a/b"], named=False)
    check_tasks_of_models(config(here / "run/model"), ["a/b"], named=True)
    assert "warning" in capsys.readouterr().err


def test_the_first_line_of_a_configuration_on_the_models_of_another_task(here, tmp_path, error_line, capsys):
    cloned = ["fit", "--config", "behaviour_cloning", "--data.init_args.path", str(here / "train")]
    assert main([*cloned, "--trainer.fast_dev_run", "1", "--out", "cloned"]) == 0
    Path("cloned/tasks.json").write_text('{"tasks": ["test/other"]}')  # as wide as reach
    Path("ppo.yaml").write_text(
        Path(__file__)
        .parents[2]
        .joinpath("configs/ppo_sparse.yaml")
        .read_text()
        .replace("metaworld/push-v3", "mujoco/reach")
    )
    ppo = ["fit", "--config", "ppo.yaml", POLICY, "cloned/model", "--trainer.fast_dev_run", "1", "--out", "ppo"]
    ppo += ["--data.init_args.workers", "0", "--data.init_args.steps", "32", "--data.init_args.eval_contexts", "2"]
    assert main(ppo) == 2
    line = error_line()
    assert "cloned/model" in line and "trained on test/other, and mujoco/reach is played" in line
    assert not Path("ppo").exists()
    assert main([*ppo, "--data.init_args.task", "mujoco/reach"]) == 0
    assert "warning: cloned/model" in capsys.readouterr().err
