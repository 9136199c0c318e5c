"""Kill -9 at random moments: runs that were killed and resumed against the run that was not.

    python benchmarks/kill_resume.py --kills 50

Each setting trains once without interruption through `guerdon fit`. It is then trained again, killed with SIGKILL after
a random time and resumed from its last checkpoint, again and again, until as many kills are used up as it was given and
the run ends. The trained policies and critics must be equal bit by bit, and so must the counted environment steps.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from common import command_line, write_result

POLICY = {"class_path": "guerdon.GaussianPolicy", "init_args": {"horizon": 2, "execute": 2, "hidden": [32]}}
REWARD = "guerdon.RecordedReward"
GAE = {"class_path": "guerdon.RewardToGo", "init_args": {"reward": REWARD, "critic": "guerdon.ValueCritic"}}
GROUPS = {
    "size": 3,
    "contexts": 4,
    "compare": "score",
    "skip_solved": True,
    "curriculum": {"class_path": "guerdon.Curriculum", "init_args": {"mode": "variance"}},
}
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "PPO, 2 workers": (GAE, {"steps": 240, "workers": 2}),
    "PPO, 2 workers, overlap, 2 spares": (GAE, {"steps": 240, "workers": 2, "overlap": True, "spares": 2}),
    "groups, 2 workers, curriculum": (
        {"class_path": "guerdon.GroupScore", "init_args": {"reward": REWARD}},
        {"workers": 2, "groups": GROUPS},
    ),
}
ROLLOUTS = 60


def configuration(advantage: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Make the configuration of a setting."""
    common = {"task": "mujoco/reach", "rollouts": ROLLOUTS, "envs": 4, "horizon": 30, "contexts": 12}
    return {
        "seed_everything": 0,
        "model": {
            "class_path": "guerdon.PolicyOptimizer",
            "init_args": {
                "policy": POLICY,
                "advantage": advantage,
                "objective": "guerdon.ClippedSurrogate",
                "passes": 4,
                "minibatch_size": 64,
            },
        },
        "data": {"class_path": "guerdon.RolloutData", "init_args": {**common, "eval_contexts": 4, **data}},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "val_check_interval": 7,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
        },
    }


def command(config: Path, run: Path) -> list[str]:
    """Make the command that trains, or goes on."""
    last = run / "checkpoints" / "last.ckpt"
    rest = ["--ckpt_path", str(last)] if last.is_file() else []
    return [sys.executable, "-m", "guerdon.cli", "fit", "--config", str(config), "--out", str(run), *rest]


def train(config: Path, run: Path, kills: int, draw: random.Random, seconds: float) -> list[int]:
    """Train a run to its end, and kill it on the way.

    Most kills come a random time after the first new checkpoint, so that they fall into rollouts, learning, validation
    and the writing of checkpoints; one in seven falls into the start of the program.

    Args:
        config: Configuration.
        run: Run directory.
        kills: Number of kills.
        draw: Random generator of their moments.
        seconds: Time that training takes from the first checkpoint to the last, from which moments are drawn.

    Returns:
        Number of rollouts that the checkpoint held after each kill; 0 without a checkpoint.
    """
    held: list[int] = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    last = run / "checkpoints" / "last.ckpt"
    while True:
        begun = last.stat().st_mtime_ns if last.is_file() else 0
        process = subprocess.Popen(
            command(config, run), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if len(held) < kills:
            if draw.random() < 1 / 7:
                time.sleep(draw.uniform(0.0, 6.0))
            else:
                while process.poll() is None and not (last.is_file() and last.stat().st_mtime_ns > begun):
                    time.sleep(0.02)
                time.sleep(draw.uniform(0.0, min(0.3 * seconds, 4.0)))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                held.append(rollouts_of(run))
                continue
        _, error = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the run failed:\n{error}")
        if len(held) >= kills:
            return held
        shutil.rmtree(run)  # it came to its end before its moment: again from the start


def rollouts_of(run: Path) -> int:
    """Read the number of rollouts in the checkpoint of a run."""
    last = run / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return 0
    return int(torch.load(last, weights_only=True)["RolloutData"]["ranks"][0]["rollouts_made"])


def state_of(run: Path) -> dict[str, Any]:
    """Read what a run ended with."""
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {"weights": kept["state_dict"], "env_steps": kept["RolloutData"]["ranks"][0]["env_steps"]}


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "kill_resume")
    parser.add_argument("--kills", type=int, default=50, help="number of kills in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    table = Table("setting", "kills", "without a checkpoint", "rollouts at the kills", "weights equal", "steps equal")
    results: dict[str, Any] = {}
    shares = [options.kills // len(SETTINGS) + (i < options.kills % len(SETTINGS)) for i in range(len(SETTINGS))]
    with tempfile.TemporaryDirectory() as folder:
        for (name, (advantage, data)), kills in zip(SETTINGS.items(), shares, strict=True):
            place = Path(folder) / str(len(results))
            place.mkdir()
            config = place / "run.yaml"
            config.write_text(yaml.safe_dump(configuration(advantage, data)))
            train(config, place / "whole", 0, draw, 0.0)
            written = place / "whole" / "curves.json"
            seconds = written.stat().st_mtime - (place / "whole" / "config.yaml").stat().st_mtime
            held = train(config, place / "killed", kills, draw, seconds)
            one, other = state_of(place / "whole"), state_of(place / "killed")
            weights = all(torch.equal(value, other["weights"][key]) for key, value in one["weights"].items())
            steps = one["env_steps"] == other["env_steps"]
            results[name] = {
                "kills": kills,
                "held": held,
                "seconds": seconds,
                "weights_equal": weights,
                "steps_equal": steps,
                "env_steps": one["env_steps"],
            }
            shown = " ".join(map(str, held))
            table.add_row(name, str(kills), str(sum(not h for h in held)), shown, str(weights), str(steps))
            Console().print(table)
    write_result(options.out, {"rollouts": ROLLOUTS, "seed": options.seed, "results": results})


if __name__ == "__main__":
    main()
