"""A run of GRAPE's loop that is killed (SIGKILL) in every stage, and goes on with the same command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from guerdon.core.hub import load_component
from guerdon.envs.collect import collect_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals"),
]

CONFIG = """
loop:
  class_path: guerdon.Grape
  init_args:
    policy: {{class_path: guerdon.GaussianPolicy, init_args: {{hidden: [16, 16], log_std: -1.0}}}}
    expert:
      class_path: guerdon.EpisodeData
      init_args:
        path: {demos}
        val_fraction: 0.0
        batch_size: 2
        labels:
          class_path: guerdon.LabelFactory
          init_args: {{rewind: 0.0, reverse: 0.0, wrong_instruction: 0.0}}
    sft: {{class_path: guerdon.SupervisedStage, init_args: {{epochs: 2, passes: 2, minibatch_size: 32}}}}
    rollouts:
      class_path: guerdon.RolloutData
      init_args:
        task: mujoco/reach
        rollouts: 2
        envs: 6
        horizon: 15
        contexts: 4
        groups: {{size: 3, contexts: 2, rejection: none}}
    reward:
      class_path: guerdon.GrapeScore
      init_args: {{costs: [mujoco/reach], weights: [0.001, 1.0, 2.0]}}
    tpo:
      class_path: guerdon.PreferenceStage
      init_args: {{held_out: 0.3, minibatch_pairs: 2}}
    evaluation: {{class_path: guerdon.HeldOutEvaluation, init_args: {{episodes: 2}}}}
    iterations: 2
    accelerator: cpu
"""

MOMENTS = (
    # module, function, number of calls before the one that kills
    ("policies.optimizer", "PolicyOptimizer.training_step", 3),  # after the checkpoint of epoch 1 of the cloning
    ("policies.loops.stages", "StageFolder.finish", 0),  # trained, not saved
    ("policies.loops.grape", "evaluate_iteration", 0),
    ("policies.rollouts.simulators", "Simulators.execute", 160),  # in the middle of a part
    ("policies.loops.rollout_files", "save_file", 0),  # while the second part is written
    ("policies.loops.grape_rollouts", "write_json", 0),
    ("policies.loops.grape_scores", "write_json", 0),
    ("policies.loops.grape_pairs", "pairs_of_scores", 0),
    ("policies.preference_optimizer", "PreferenceOptimizer.training_step", 0),
    ("policies.loops.grape", "learning_summary", 0),  # after the checkpoint, before the numbers
    ("core.hub", "_replace_folder", 0),  # while the trained policy is put in its place
    ("policies.loops.grape_evaluation", "write_json", 0),
    ("policies.loops.grape_pairs", "write_json", 0),  # of iteration 2
    ("policies.loops.grape", "save_component", 0),  # before the last model
)

SCRIPT = """
import importlib, json, os, signal, sys

from guerdon.cli import main

moments, command = json.loads(sys.argv[1]), sys.argv[2:]
for module, _, _ in moments:
    importlib.import_module("guerdon." + module)


def prepare(module, name, calls):
    owner = importlib.import_module("guerdon." + module)
    *parents, last = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    plain, left = getattr(owner, last), [calls]

    def call(*given, **named):
        if not left[0]:
            if last == "save_file":  # half of a file
                with open(given[1], "wb") as file:
                    file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return plain(*given, **named)

    setattr(owner, last, call)


statuses = []
for moment in [*moments, None]:
    child = os.fork()  # each run is a process of its own; only the imports are shared
    if not child:
        if moment is not None:
            prepare(*moment)
        os._exit(main(command))
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""


def run(config: Path, out: Path, moments: tuple[tuple[str, str, int], ...] = ()) -> list[int]:
    """Run the command once for each moment, killed there, and once to its end; return the statuses."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(moments), "fit", "--config", str(config), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_that_is_killed_in_every_stage_ends_as_the_uninterrupted_one(tmp_path):
    demos = tmp_path / "demos"
    collect_dataset("mujoco/reach", demos, episodes=4, quality="expert", frames=False)
    config = tmp_path / "grape.yaml"
    config.write_text(CONFIG.format(demos=demos))
    assert run(config, tmp_path / "whole") == [0]
    assert run(config, tmp_path / "killed", MOMENTS) == [*(-signal.SIGKILL for _ in MOMENTS), 0]
    for stage in ("0_sft", "1_tpo", "2_tpo", ""):
        one, two = (dict(load_component(tmp_path / r / stage / "model").state_dict()) for r in ("whole", "killed"))
        assert all(torch.equal(one[key], two[key]) for key in one), stage
    tables = [json.loads((tmp_path / r / "iterations.json").read_text()) for r in ("whole", "killed")]
    assert tables[0] == tables[1]
    kept = [path for path in (tmp_path / "killed").glob("*_rollouts/*") if path.name.startswith(".")]
    assert not kept, "a file that was written by half was left behind"
