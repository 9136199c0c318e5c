"""PPO environment steps per second against Stable-Baselines3: same network, same environments, same run.

    python benchmarks/ppo_speed.py --task metaworld/push-v3

Both train a 2x128 tanh policy and a 2x128 tanh value network on the same task with the same number of environments,
rollout length, epochs and minibatch size. The two alternate, so a machine that slows down slows both. Stable-Baselines3
runs with the faster of its two vector environments here. Beside them stands the raw simulator: random actions, no
network, one process. Needs `pip install 'guerdon[dev,sb3]'`.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import gymnasium
import lightning
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv  # pyright: ignore[reportMissingImports]

from common import command_line, silent_trainer, write_result
from guerdon.critics.value import ValueCritic
from guerdon.envs.vector import VectorEnv, make_task
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts.data import RolloutData
from guerdon.rewards.recorded import RecordedReward

ENVS, STEPS, EPOCHS, MINIBATCH, CONTEXTS = 8, 256, 10, 256, 40


class Gym(gymnasium.Env):
    """Our task as a Gymnasium environment, for Stable-Baselines3: same contexts, same time limit, no end on success."""

    def __init__(self, name: str, number: int) -> None:
        self.task = make_task(name)
        self.contexts = self.task.contexts("train", CONTEXTS)
        self.draw = np.random.default_rng(number)
        size = self.task.state_size
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(self.task.action_low, self.task.action_high)
        self.taken = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start from a random training context."""
        self.taken = 0
        return self.task.reset(self.contexts[self.draw.integers(len(self.contexts))]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step."""
        came = self.task.step(action)
        self.taken += 1
        return came.state, came.reward, came.terminated, self.taken >= self.task.horizon, {}


def raw(name: str, steps: int) -> float:
    """Measure simulator steps per second of one process: random actions and no network."""
    envs = VectorEnv([make_task(name) for _ in range(ENVS)])
    contexts = envs.contexts("train", CONTEXTS)
    draw = np.random.default_rng(0)
    for i in range(ENVS):
        envs.reset(i, contexts[i])
    actions = draw.uniform(-1, 1, (1024, ENVS, envs.task.action_size)).astype(np.float32)
    started, taken = time.perf_counter(), 0
    while taken < steps:
        envs.step(actions[taken // ENVS % 1024])
        taken += ENVS
        for i in np.flatnonzero(~envs.running):
            envs.reset(int(i), contexts[draw.integers(CONTEXTS)])
    return taken / (time.perf_counter() - started)


class _Clock(lightning.Callback):
    """Time of the rollouts after the first (it pays for building environments), and how much of it is learning.

    With overlap the rest is the time that learning waited for a rollout.
    """

    def __init__(self) -> None:
        self.first = self.last = self.learning = self._begun = 0.0
        self.rollouts = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Start the clock of learning: the rollout is there."""
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Learning is over."""
        self.last = time.perf_counter()
        if index == 0:
            self.first = self.last
        else:
            self.learning += self.last - self._begun
            self.rollouts += 1


def ours(name: str, rollouts: int, workers: int, overlap: bool = False) -> tuple[float, float]:
    """Measure environment steps per second, and the share of the time that is learning."""
    probe = make_task(name)
    size, width = probe.state_size, probe.action_size
    probe.close()
    module = PolicyOptimizer(
        GaussianPolicy(size, width),
        RewardToGo(RecordedReward(), ValueCritic(size)),
        ClippedSurrogate(),
        passes=EPOCHS,
        minibatch_size=MINIBATCH,
    )
    data = RolloutData(
        name,
        steps=ENVS * STEPS,
        rollouts=rollouts + 1,
        envs=ENVS,
        workers=workers,
        end_on_success=False,
        contexts=CONTEXTS,
        eval_contexts=0,
        overlap=overlap,
    )
    clock = _Clock()
    trainer = silent_trainer(1, callbacks=[clock])
    trainer.fit(module, datamodule=data)
    seconds = clock.last - clock.first
    return clock.rollouts * ENVS * STEPS / seconds, clock.learning / seconds


def theirs(name: str, rollouts: int, subprocesses: bool) -> float:
    """Environment steps per second of Stable-Baselines3 after its first rollout."""
    make: list[Callable[[], gymnasium.Env]] = [partial(Gym, name, i) for i in range(ENVS)]
    envs = SubprocVecEnv(make, start_method="spawn") if subprocesses else DummyVecEnv(make)
    layers = dict(net_arch=dict(pi=[128, 128], vf=[128, 128]), activation_fn=torch.nn.Tanh)
    model = PPO(
        "MlpPolicy", envs, n_steps=STEPS, batch_size=MINIBATCH, n_epochs=EPOCHS, policy_kwargs=layers, device="cpu"
    )
    model.learn(ENVS * STEPS)
    started = time.perf_counter()
    model.learn(rollouts * ENVS * STEPS, reset_num_timesteps=False)
    seconds = time.perf_counter() - started
    envs.close()
    return rollouts * ENVS * STEPS / seconds


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "ppo_speed")
    parser.add_argument("--task", action="append", help="may be repeated; default push-v3 and mujoco/reach")
    parser.add_argument("--rollouts", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    table = Table(
        "task", "raw simulator", "ours, 2 workers", "learning", "ours, overlap", "learning", "ours, 0 workers"
    )
    for column in ("SB3 dummy", "SB3 subproc", "ratio to the faster SB3", "ratio with overlap"):
        table.add_column(column)
    results: dict[str, Any] = {}
    for name in options.task or ["metaworld/push-v3", "mujoco/reach"]:
        runs: list[dict[str, float]] = []
        for _ in range(options.repeats):
            fast, learning = ours(name, options.rollouts, workers=2)
            ahead, busy = ours(name, options.rollouts, workers=2, overlap=True)
            runs.append(
                {
                    "overlap": ahead,
                    "overlap_learning": busy,
                    "raw": raw(name, options.rollouts * ENVS * STEPS // 2),
                    "ours": fast,
                    "learning": learning,
                    "ours_one_process": ours(name, options.rollouts, workers=0)[0],
                    "sb3_dummy": theirs(name, options.rollouts, subprocesses=False),
                    "sb3_subproc": theirs(name, options.rollouts, subprocesses=True),
                }
            )
        ratios, ahead_ratios = (
            [run[key] / max(run["sb3_dummy"], run["sb3_subproc"]) for run in runs] for key in ("ours", "overlap")
        )
        mid = {key: median(run[key] for run in runs) for key in runs[0]}
        results[name] = {"runs": runs, "median": mid, "ratio": ratios, "ratio_overlap": ahead_ratios}
        cells = [f"{mid[k]:,.0f}" for k in ("raw", "ours")] + [f"{mid['learning']:.0%}"]
        cells += [f"{mid['overlap']:,.0f}", f"{mid['overlap_learning']:.0%}"]
        cells += [f"{mid[k]:,.0f}" for k in ("ours_one_process", "sb3_dummy", "sb3_subproc")]
        cells += [f"{median(r):.2f} ({min(r):.2f} … {max(r):.2f})" for r in (ratios, ahead_ratios)]
        table.add_row(name, *cells)
    Console().print(table)
    write_result(options.out, {"envs": ENVS, "steps": STEPS, "epochs": EPOCHS, "results": results})


if __name__ == "__main__":
    main()
