"""Dynamic rejection and curricula for groups at equal environment steps: success on held-out initial states.

    python benchmarks/group_rejection.py --task metaworld/drawer-open-v3

A policy is cloned from a few noisy demonstrations. Each arm then improves it with leave-one-out advantages of groups of
eight episodes, until it has used up the same number of environment steps; rejected groups count. The policies play the
same held-out initial states, and the cloned policy beside them. Intervals are bootstrapped over initial states.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from common import command_line, silent_trainer, write_result
from guerdon import (
    ClippedSurrogate,
    Curriculum,
    EpisodeData,
    GaussianPolicy,
    GroupRollouts,
    GroupScore,
    LabelFactory,
    PolicyAdam,
    PolicyOptimizer,
    RecordedSuccess,
    RolloutData,
    TaskSetting,
    Uniform,
    WeightedImitation,
    play_episodes,
)
from guerdon.core.metrics import bootstrap_interval
from guerdon.envs.collect import collect_dataset
from guerdon.envs.vector import make_task

ENVS, EPISODES, SIZE, CONTEXTS, TRAIN = 16, 100, 8, 8, 40
ARMS: dict[str, dict[str, Any]] = {
    "no rejection": {"rejection": "none"},
    "resample": {"rejection": "resample"},
    "resample, frontier": {"rejection": "resample", "curriculum": "frontier"},
    "resample, literal": {"rejection": "resample", "curriculum": "literal"},
    "no rejection, variance": {"rejection": "none", "curriculum": "variance"},
}


class _Budget(lightning.Callback):
    """End of a run once its environment steps are used up."""

    def __init__(self, steps: int) -> None:
        self.steps, self.accepted, self.tried, self.updates = steps, 0.0, 0.0, 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Count groups, and stop."""
        self.accepted += trainer.datamodule.metrics["groups_accepted"]
        self.tried += trainer.datamodule.metrics["groups_tried"]
        self.updates += 1
        if trainer.datamodule.env_steps >= self.steps:
            trainer.should_stop = True


def clone(folder: Path, seed: int) -> GaussianPolicy:
    """Clone a policy from the demonstrations of a folder."""
    torch.manual_seed(seed)
    policy = GaussianPolicy(log_std=-1.5)
    labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
    data = EpisodeData(str(folder), val_fraction=0.0, batch_size=16, labels=labels)
    module = PolicyOptimizer(
        policy,
        Uniform(),
        WeightedImitation(),
        passes=20,
        minibatch_size=128,
        optimizer=PolicyAdam(learning_rate=1e-3),
        seed=seed,
    )
    silent_trainer(15).fit(module, datamodule=data)
    return policy.eval()


def improve(policy: GaussianPolicy, task: str, horizon: int, arm: dict[str, Any], steps: int, seed: int) -> _Budget:
    """Improve a policy with groups, in place."""
    more = dict(arm)
    mode = more.pop("curriculum", None)
    groups = GroupRollouts(size=SIZE, contexts=CONTEXTS, curriculum=None if mode is None else Curriculum(mode), **more)
    module = PolicyOptimizer(
        policy,
        GroupScore(RecordedSuccess()),
        ClippedSurrogate(),
        passes=8,
        minibatch_size=1024,
        optimizer=PolicyAdam(learning_rate=1e-4),
        seed=seed,
    )
    data = RolloutData(
        task, rollouts=1_000, envs=ENVS, horizon=horizon, contexts=TRAIN, eval_contexts=0, seed=seed, groups=groups
    )
    budget = _Budget(steps)
    silent_trainer(1, callbacks=[budget]).fit(module, datamodule=data)
    policy.eval()
    return budget


def played(policy: GaussianPolicy, task: str, horizon: int) -> np.ndarray:
    """Play the held-out initial states; return the success of each."""
    contexts = make_task(task).contexts("eval", EPISODES)
    return play_episodes(TaskSetting(task=task, horizon=horizon), policy, contexts, envs=ENVS).success.numpy()


def interval(rates: np.ndarray) -> tuple[float, float, float]:
    """Compute the mean over seeds and initial states, with an interval that resamples initial states."""
    low, high = bootstrap_interval(
        torch.from_numpy(rates.reshape(-1)).float(), torch.arange(rates.shape[1]).repeat(len(rates))
    )
    return float(rates.mean()), float(low), float(high)


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "group_rejection")
    parser.add_argument("--task", default="metaworld/drawer-open-v3")
    parser.add_argument("--demonstrations", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--horizon", type=int, default=120)
    parser.add_argument("--steps", type=int, default=120_000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    found: dict[str, list[np.ndarray]] = {"cloned": []}
    spent: dict[str, list[dict[str, float]]] = {}
    for seed in track(range(options.seeds), description="seeds"):
        with tempfile.TemporaryDirectory() as folder:
            demos = Path(folder) / "demos"
            collect_dataset(
                options.task,
                demos,
                episodes=options.demonstrations,
                seed=seed,
                quality="noisy",
                noise=options.noise,
                frames=False,
            )
            start = clone(demos, seed)
        found["cloned"].append(played(start, options.task, options.horizon))
        for name, arm in ARMS.items():
            policy = GaussianPolicy(start.state_size, start.action_size, log_std=-1.5)
            policy.load_state_dict(start.state_dict())
            budget = improve(policy, options.task, options.horizon, arm, options.steps, seed)
            found.setdefault(name, []).append(played(policy, options.task, options.horizon))
            spent.setdefault(name, []).append(
                {"accepted": budget.accepted, "tried": budget.tried, "updates": float(budget.updates)}
            )
    table = Table("arm", "success, held out", "by seed", "groups accepted of tried", "rollouts")
    results: dict[str, Any] = {}
    for name, rates in found.items():
        mean, low, high = interval(np.stack(rates))
        by_seed = [float(one.mean()) for one in rates]
        used = spent.get(name, [])
        accepted, tried = (sum(one[key] for one in used) for key in ("accepted", "tried"))
        results[name] = {"success": mean, "interval": [low, high], "seeds": by_seed, "spent": used}
        table.add_row(
            name,
            f"{mean:.2f} ({low:.2f} … {high:.2f})",
            " ".join(f"{one:.2f}" for one in by_seed),
            f"{accepted / tried:.2f} of {tried:.0f}" if used else "",
            " ".join(f"{one['updates']:.0f}" for one in used),
        )
    Console().print(table)
    settings = {k: v for k, v in vars(options).items() if k != "out"}
    write_result(options.out, {**settings, "episodes": EPISODES, "size": SIZE, "results": results})


if __name__ == "__main__":
    main()
