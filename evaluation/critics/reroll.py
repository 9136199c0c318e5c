"""Returns rolled out again: from a saved moment carry out one chunk, then follow the policy, and see what it costs."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ...core.batch import Observation
from ...core.interfaces import Policy
from ...datasets.episodes import Episode
from ...envs.saved import SavedState
from ...envs.task import EVAL_OFFSET, Context, ResumableTask, Task
from ...envs.vector import VectorEnv

Tail = Literal["never", "failure", "zero"]
StepReward = Callable[[bool, bool], float]
"""Reward of a step from (success, terminated): whether it solved the task, whether the simulator ended the episode."""


def step_cost(failure_cost: float | int = 1.0, scale: float | int = 1.0) -> StepReward:
    """−1 a step, 0 on the step that succeeds, −``failure_cost`` on one that ends in failure; all over ``scale``.

    The reward of RECAP and ALOE, see `guerdon.rewards.step_cost.StepCost`.
    """

    def paid(success: bool, terminated: bool) -> float:
        return (0.0 if success else -failure_cost if terminated else -1.0) / scale

    return paid


@dataclass(frozen=True, kw_only=True, eq=False)
class Rerolled:
    """What came of n rollouts from each of M saved states."""

    returns: Float[np.ndarray, "M n"]
    """Discounted, with what follows the step limit."""
    success: Bool[np.ndarray, "M n"]
    steps: Int[np.ndarray, "M n"]
    """Taken, the one that succeeded included."""

    @property
    def mean(self) -> Float[np.ndarray, " M"]:
        """Mean return of each state: what a value should be."""
        return self.returns.mean(1)


@dataclass
class _Rollout:
    """One rollout while it runs in an environment."""

    start: int
    number: int
    limit: int
    queue: deque[np.ndarray]
    total: float = 0.0
    discount: float = 1.0
    steps: int = 0


def reroll(
    envs: VectorEnv,
    policy: Policy,
    saved: Sequence[SavedState],
    first_chunks: Float[np.ndarray, "M H A"] | None = None,
    lengths: Int[np.ndarray, " M"] | None = None,
    *,
    rollouts: int = 1,
    steps: int | Sequence[int] | None = None,
    gamma: float | int = 0.99,
    reward: StepReward | None = None,
    tail: Tail = "never",
    deterministic: bool = False,
    generator: torch.Generator | None = None,
) -> Rerolled:
    """Carry out a chunk from each saved state, then follow the policy until success or the step limit, n times.

    The return is Σ_k γ^k r_k up to the success, the simulator's own end, or the step limit. What would have come after
    the limit is not known; ``tail`` says what it counts for, and the choice matters wherever the policy often fails:

    * ``"never"``: the policy never succeeds, γ^n · r / (1 − γ) with r the reward of an ordinary step;
    * ``"failure"``: the limit is a failed end (ALOE counts a time-out so): the last step is paid as one;
    * ``"zero"``: nothing.

    Several environments are stepped together, each at its own rollout; whoever is done takes the next one. The same
    generator and number of environments give the same returns; another number deals the policy's noise differently.

    Args:
        envs: Copies of the task that the states were saved from.
        policy: Follows after the chunk; it sees states, no pictures.
        saved: M states, see `guerdon.envs.task.ResumableTask.save`.
        first_chunks: Carried out first; None follows the policy from the start.
        lengths: Steps of each first chunk, 0 … H; None takes all.
        rollouts: n of each state.
        steps: Limit, for all states or for each; None takes the task's time limit.
        gamma: Discount per step.
        reward: Of a step; None is `step_cost` with a failure that costs what a step does.
        tail: What follows the step limit.
        deterministic: Let the policy take its best chunk each time, instead of a sampled one.
        generator: Of the policy's noise; None seeds one with 0.

    Raises:
        ValueError: If shapes do not fit, a limit is longer than the task's time limit, or an argument makes no sense.
    """
    count = len(saved)
    limits = _limits(envs, count, steps)
    chunks = _first_chunks(envs, count, first_chunks, lengths)
    if rollouts < 1 or not 0 <= gamma <= 1:
        raise ValueError(f"expected at least one rollout and a discount in [0, 1], got {rollouts} and {gamma}")
    if tail not in ("never", "failure", "zero") or (tail == "never" and gamma == 1):
        raise ValueError(f"tail {tail!r} with gamma {gamma}: expected never (with a discount below 1), failure or zero")
    work = _Work(envs, policy, gamma, reward or step_cost(), tail, deterministic, generator)
    found = Rerolled(
        returns=np.zeros((count, rollouts)),
        success=np.zeros((count, rollouts), bool),
        steps=np.zeros((count, rollouts), np.int64),
    )
    waiting = deque((start, number) for start in range(count) for number in range(rollouts))
    while waiting or work.busy:
        for place in work.free:
            if waiting:
                start, number = waiting.popleft()
                rollout = _Rollout(start, number, int(limits[start]), deque(chunks[start]))
                work.begin(place, rollout, saved[start])
        for rollout, solved in work.step():
            place = rollout.start, rollout.number
            found.returns[place], found.success[place], found.steps[place] = rollout.total, solved, rollout.steps
    return found


class _Work:
    """The environments and who is in them."""

    def __init__(
        self,
        envs: VectorEnv,
        policy: Policy,
        gamma: float | int,
        reward: StepReward,
        tail: Tail,
        deterministic: bool,
        generator: torch.Generator | None,
    ) -> None:
        self.envs, self.policy, self.gamma, self.reward, self.tail = envs, policy, gamma, reward, tail
        self.deterministic = deterministic
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.running: dict[int, _Rollout] = {}
        self.state = np.zeros((len(envs), envs.task.state_size), np.float32)

    @property
    def busy(self) -> bool:
        return bool(self.running)

    @property
    def free(self) -> list[int]:
        return [place for place in range(len(self.envs)) if place not in self.running]

    def begin(self, place: int, rollout: _Rollout, saved: SavedState) -> None:
        # the environment's time limit is then exactly the rollout's
        left = self.envs.tasks[place].horizon - rollout.limit
        self.state[place] = self.envs.restore(place, saved, steps=left)
        self.running[place] = rollout

    def step(self) -> list[tuple[_Rollout, bool]]:
        """One step everywhere; returns the rollouts that are over, and whether they succeeded."""
        self._decide([place for place, rollout in self.running.items() if not rollout.queue])
        actions = np.zeros((len(self.envs), self.envs.task.action_size), np.float32)
        active = np.zeros(len(self.envs), bool)
        for place, rollout in self.running.items():
            actions[place] = rollout.queue.popleft()
            active[place] = True
        task = self.envs.task
        came = self.envs.step(np.clip(actions, task.action_low, task.action_high), active)
        self.state[active] = came.state[active]
        over: list[tuple[_Rollout, bool]] = []
        for place in np.flatnonzero(active).tolist():
            rollout = self.running[place]
            solved, ended = bool(came.success[place]), bool(came.terminated[place])
            late = bool(came.truncated[place]) and not solved
            rollout.total += rollout.discount * self.reward(solved, ended or (late and self.tail == "failure"))
            rollout.discount *= self.gamma
            rollout.steps += 1
            if late and not ended and self.tail == "never":
                rollout.total += rollout.discount * self.reward(False, False) / (1 - self.gamma)
            if solved or ended or late:
                over.append((self.running.pop(place), solved))
        return over

    @torch.no_grad()
    def _decide(self, places: Sequence[int]) -> None:
        if not places:
            return
        observation = Observation(
            state=torch.from_numpy(self.state[list(places)]), instructions=(self.envs.task.instruction,) * len(places)
        )
        decision = self.policy.act(observation, self.deterministic, self.generator)
        chunk, executed = decision.chunk.float().cpu().numpy(), decision.executed.tolist()
        for row, place in enumerate(places):
            if not 1 <= executed[row] <= chunk.shape[1]:
                raise ValueError(f"expected decisions that carry out 1 … {chunk.shape[1]} steps, got {executed[row]}")
            self.running[place].queue.extend(chunk[row, : executed[row]])


def _limits(envs: VectorEnv, count: int, steps: int | Sequence[int] | None) -> Int[np.ndarray, " M"]:
    horizon = min(task.horizon for task in envs.tasks)
    given = horizon if steps is None else steps
    limits = np.full(count, given) if isinstance(given, int) else np.array(given, np.int64)
    if limits.shape != (count,):
        raise ValueError(f"steps: expected one limit or one for each of {count} states, got {limits.size}")
    if limits.size and not 1 <= limits.min() <= limits.max() <= horizon:
        raise ValueError(
            f"steps: expected limits of 1 … {horizon}, the task's time limit, got {limits.min()} … {limits.max()}; "
            "make the task with a longer horizon"
        )
    return limits


def _first_chunks(
    envs: VectorEnv, count: int, chunks: np.ndarray | None, lengths: np.ndarray | None
) -> list[Float[np.ndarray, "n A"]]:
    width = envs.task.action_size
    if chunks is None:
        if lengths is not None:
            raise ValueError("lengths were given without first_chunks")
        return [np.zeros((0, width))] * count
    if chunks.ndim != 3 or chunks.shape[0] != count or chunks.shape[2] != width:
        raise ValueError(f"first_chunks: expected ({count}, H, {width}), got {chunks.shape}")
    taken = np.full(count, chunks.shape[1]) if lengths is None else lengths
    if taken.shape != (count,) or (count and not 0 <= taken.min() <= taken.max() <= chunks.shape[1]):
        raise ValueError(f"lengths: expected {count} numbers of 0 … {chunks.shape[1]} steps, got {taken.tolist()[:9]}")
    found = [chunk[:n] for chunk, n in zip(chunks, taken, strict=True)]
    if not all(np.isfinite(chunk).all() for chunk in found):
        raise ValueError("first_chunks: an action that should be carried out is NaN or infinite")
    return found


def context_of(episode: Episode) -> tuple[str, int, Context]:
    """Task, its seed and the context that a logged episode started from, as `guerdon.envs.collect` wrote them.

    Raises:
        ValueError: If the episode does not say.
    """
    name, _, rest = episode.context.partition("#")
    seed, _, index = rest.partition(".")
    if not (name and seed.isdigit() and index.isdigit()):
        raise ValueError(
            f"episode {episode.index} does not say which simulated start it is from (its context is "
            f"{episode.context!r}, expected <task>#<seed>.<number>): only episodes of `guerdon collect` can be replayed"
        )
    return name, int(seed), Context(name, int(index), "train" if int(index) < EVAL_OFFSET else "eval")


def replay(task: Task, episode: Episode, steps: Sequence[int], tolerance: float = 1e-5) -> list[SavedState]:
    """Play a logged episode again and save its state at some of its steps.

    Every state on the way is compared with the recorded one, so that nothing is rolled out from a state that the log
    never saw.

    Args:
        task: The task of the episode, made with its seed.
        episode: Collected in the simulator; its context names the start.
        steps: Observations to save at, 0 … T, in any order.
        tolerance: Largest difference of any number of a state.

    Raises:
        ValueError: If the episode is of another task or seed, does not say where it started, or does not repeat; the
            step and the difference are named.
    """
    if not isinstance(task, ResumableTask):
        raise TypeError(f"{task.name}: {type(task).__name__} has no save and restore, so nothing can go on in it")
    name, seed, context = context_of(episode)
    if (name, seed) != (task.name, task.seed):
        raise ValueError(
            f"episode {episode.index} is from {name} with seed {seed}, this is {task.name} with seed {task.seed}"
        )
    if episode.state.shape[1] != task.state_size or episode.actions.shape[1] != task.action_size:
        raise ValueError(
            f"episode {episode.index} holds states and actions of {episode.state.shape[1]} and "
            f"{episode.actions.shape[1]} numbers, {task.name} has {task.state_size} and {task.action_size}"
        )
    wrong = [step for step in steps if not 0 <= step <= episode.steps]
    if wrong:
        raise ValueError(f"episode {episode.index} has observations 0 … {episode.steps}, asked for {wrong[0]}")
    kept: dict[int, SavedState] = {}
    state = task.reset(context)
    for step in range(max(steps, default=0) + 1):
        if step:
            state = task.step(episode.actions[step - 1]).state
        if step < episode.steps or episode.last_observed:
            difference = float(np.abs(state - episode.state[step]).max())
            if not difference <= tolerance:
                raise ValueError(
                    f"episode {episode.index} does not repeat: at step {step} a state differs by {difference:.3g} from "
                    f"the recorded one (allowed: {tolerance:g}); another version of the simulator, or changed actions?"
                )
        if step in steps:
            kept[step] = task.save()
    return [kept[step] for step in steps]


__all__ = ["Rerolled", "StepReward", "Tail", "context_of", "replay", "reroll", "step_cost"]
