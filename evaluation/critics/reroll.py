"""Re-rolled returns: execute one chunk from a saved state, then follow the policy, and add up the rewards."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ...core.batch import Observation
from ...core.interfaces import Policy
from ...datasets.episodes import Episode
from ...envs.saved import SavedState
from ...envs.task import Context, ResumableTask, Task
from ...envs.vector import VectorEnv

Tail = Literal["never", "failure", "zero"]
StepReward = Callable[[bool, bool], float]
"""Reward of a step from (success, terminated): whether it solved the task, whether the simulator ended the episode."""


def step_cost(failure_cost: float | int = 1.0, scale: float | int = 1.0) -> StepReward:
    """Make the reward of RECAP and ALOE: −1 a step, 0 on the step that succeeds, a cost on one that ends in failure.

    See `guerdon.StepCost` for the same reward of logged episodes.

    Args:
        failure_cost: Cost of a step that ends in failure.
        scale: Divisor of all rewards.
    """

    def paid(success: bool, terminated: bool) -> float:
        return (0.0 if success else -failure_cost if terminated else -1.0) / scale

    return paid


@dataclass(frozen=True, kw_only=True, eq=False)
class Rerolled:
    """Results of n rollouts from each of M saved states."""

    returns: Float[np.ndarray, "M n"]
    """Discounted returns, with the value of what follows the step limit."""
    success: Bool[np.ndarray, "M n"]
    """Whether the rollout succeeded."""
    steps: Int[np.ndarray, "M n"]
    """Number of steps, the one that succeeded included."""

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
    first_chunks: Float[np.ndarray, "M H A"] | Sequence[Float[np.ndarray, "_ A"]] | None = None,
    *,
    rollouts: int = 1,
    steps: int | Sequence[int] | None = None,
    gamma: float | int = 0.99,
    reward: StepReward | None = None,
    tail: Tail = "never",
    generator: torch.Generator | None = None,
) -> Rerolled:
    """Execute a chunk from each saved state, then follow the policy until success or the step limit, n times.

    The return is Σ_k γ^k r_k up to the success, the simulator's own termination, or the step limit. What would have
    followed the limit is not known. ``tail`` chooses its value, and the choice matters wherever the policy often fails:

    * ``"never"``: the policy never succeeds, γ^n · r / (1 − γ) with r the reward of an ordinary step;
    * ``"failure"``: the limit ends in failure (ALOE treats a time-out so): the last step gets the reward of a failure;
    * ``"zero"``: nothing.

    Several environments are stepped together, each at its own rollout; a free one takes the next rollout. The same
    generator and number of environments give the same returns; another number assigns the policy's noise differently.

    Args:
        envs: Copies of the task that the states were saved from.
        policy: Policy that acts after the chunk; it sees states, no frames. To act without noise, pass a
            `guerdon.Deterministic`.
        saved: M states, see `guerdon.ResumableTask.save`.
        first_chunks: Actions executed first, one chunk per state, of any number of steps; None follows the policy from
            the start.
        rollouts: Number n of rollouts from each state.
        steps: Step limit, for all states or for each; None takes the task's time limit.
        gamma: Discount factor per step, in [0, 1].
        reward: Reward of a step; None takes `step_cost` with a failure that costs as much as a step.
        tail: Value of what follows the step limit.
        generator: Random generator of the policy's noise; None makes one with seed 0.

    Raises:
        ValueError: If shapes do not fit, a limit is longer than the task's time limit, or an argument makes no sense.
    """
    count = len(saved)
    limits = _limits(envs, count, steps)
    chunks = _first_chunks(envs, count, first_chunks)
    if rollouts < 1 or not 0 <= gamma <= 1:
        raise ValueError(f"expected at least one rollout and a discount in [0, 1], got {rollouts} and {gamma}")
    if tail not in get_args(Tail) or (tail == "never" and gamma == 1):
        raise ValueError(f"tail {tail!r} with gamma {gamma}: expected never (with a discount below 1), failure or zero")
    noise = torch.Generator().manual_seed(0) if generator is None else generator
    work = _Work(envs, policy, gamma, reward or step_cost(), tail, noise)
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
    """The environments, and the rollout that runs in each."""

    def __init__(
        self,
        envs: VectorEnv,
        policy: Policy,
        gamma: float | int,
        reward: StepReward,
        tail: Tail,
        generator: torch.Generator,
    ) -> None:
        self.envs, self.policy, self.generator = envs, policy, generator
        self.gamma, self.reward, self.tail = gamma, reward, tail
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
        """Make one step in every busy environment; return the finished rollouts, and whether each succeeded."""
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
        decision = self.policy.act(observation, generator=self.generator)
        chunk, executed = decision.chunk.float().cpu().numpy(), decision.executed.tolist()
        for row, place in enumerate(places):
            if not 1 <= executed[row] <= chunk.shape[1]:
                raise ValueError(
                    f"expected decisions that execute 1 … {chunk.shape[1]} steps, got {executed[row]}: correct what "
                    f"{type(self.policy).__name__} returns"
                )
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
    envs: VectorEnv, count: int, chunks: np.ndarray | Sequence[np.ndarray] | None
) -> list[Float[np.ndarray, "n A"]]:
    width = envs.task.action_size
    if chunks is None:
        return [np.zeros((0, width))] * count
    found = list(chunks)
    wrong = [chunk.shape for chunk in found if chunk.ndim != 2 or chunk.shape[1] != width]
    if len(found) != count or wrong:
        got = f"one of shape {wrong[0]}" if wrong else f"{len(found)} chunks"
        raise ValueError(
            f"first_chunks: expected a chunk of (n, {width}) actions for each of {count} states, got {got}"
        )
    if not all(np.isfinite(chunk).all() for chunk in found):
        raise ValueError("first_chunks: an action that should be executed is NaN or infinite: repair the chunks")
    return found


def context_of(episode: Episode) -> tuple[str, int, Context]:
    """Read task, task seed and context that a logged episode started from, as `guerdon.envs.collect` wrote them.

    Raises:
        ValueError: If the episode does not record them.
    """
    name, _, rest = episode.context.partition("#")
    seed, _, index = rest.partition(".")
    if not (name and seed.isdigit() and index.isdigit()):
        raise ValueError(
            f"episode {episode.index} does not record which simulated start it is from (its context is "
            f"{episode.context!r}, expected <task>#<seed>.<number>): only episodes of `guerdon collect` can be replayed"
        )
    return name, int(seed), Context.numbered(name, int(index))


def replay(task: Task, episode: Episode, steps: Sequence[int], tolerance: float = 1e-5) -> list[SavedState]:
    """Replay a logged episode in the simulator, and save its state at some of its steps.

    Every state on the way is compared with the recorded one, so that no rollout starts from a state that is not in the
    log.

    Args:
        task: Task of the episode, made with its seed.
        episode: Episode that was collected in the simulator; its context names the start.
        steps: Numbers of the observations to save at, 0 … T, in any order.
        tolerance: Largest difference of any number of a state.

    Returns:
        Saved states, in the order of ``steps``.

    Raises:
        ValueError: If the episode is of another task or seed, does not record where it started, or does not repeat; the
            step and the difference are named.
        TypeError: If the task cannot be saved and restored.
    """
    if not isinstance(task, ResumableTask):
        raise TypeError(f"{task.name}: {type(task).__name__} has no save and restore: choose a task that has both")
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
        raise ValueError(f"episode {episode.index} has observations 0 … {episode.steps}, requested was {wrong[0]}")
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
