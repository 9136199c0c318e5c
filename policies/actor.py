"""A policy as the actor of collected episodes, decision by decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ..core.batch import Decision, Observation
from ..core.interfaces import Policy
from ..datasets.episodes import Column
from ..envs.quality import ActorMaker, Behaviour
from ..envs.task import Context, Task
from .rollouts.alone import decide_alone, global_noise_restored
from .rollouts.frames import Eye, RolloutFrames


def observe(task: Task, state: np.ndarray, frames: RolloutFrames | None) -> Observation:
    """Make the observation of a policy at a state, as rollouts do: features come in place of the frames.

    Args:
        task: Task in that state, for its instruction and frames.
        state: State (S,).
        frames: Cameras that the policy sees, with the encoder of its features; None renders nothing.
    """
    shown = {} if frames is None else Eye(frames, [task]).render(task)
    features: dict[str, torch.Tensor] = {}
    if frames is not None and frames.encoder is not None:
        for camera, name in zip(frames.cameras, frames.feature_sizes, strict=True):
            features[name] = torch.from_numpy(frames.encode([shown.pop(camera)]))
    return Observation(
        state=torch.from_numpy(np.asarray(state, np.float32))[None],
        frames={camera: torch.from_numpy(frame)[None] for camera, frame in shown.items()},
        features=features,
        instructions=(task.instruction,),
    )


@dataclass
class PolicyActor(Behaviour):
    """Behaviour in which a policy acts for one episode.

    It decides at the first state and whenever the steps it chose to execute are over. Noise comes from a generator of
    the episode, so that nothing that was played before moves it.

    Raises:
        ValueError: If a decision executes no step, or more than its chunk has.
    """

    policy: Policy
    """Policy that acts; it should be in evaluation mode."""
    task: Task
    """Task that it acts in, for its instruction and pictures."""
    generator: torch.Generator
    """Random generator of the episode."""
    deterministic: bool = False
    """Whether the policy's deterministic chunks are taken."""
    frames: RolloutFrames | None = None
    """Cameras that the policy sees, or whose features it reads; None renders nothing."""
    _waiting: list[np.ndarray] = field(default_factory=list[np.ndarray])
    _decided: dict[int, Decision] = field(default_factory=dict[int, Decision])
    _steps: int = 0

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the action (A,) for a state (S,)."""
        if not self._waiting:
            self._decide(state)
        self._steps += 1
        return self._waiting.pop(0)

    def _decide(self, state: np.ndarray) -> None:
        observation = observe(self.task, state, self.frames)
        with global_noise_restored(self.policy):
            decision = decide_alone(self.policy, observation, self.generator, self.deterministic)
        chunk, executed = decision.chunk[0].cpu().numpy(), int(decision.executed[0])
        if not 1 <= executed <= len(chunk):
            raise ValueError(f"expected a decision that executes 1 … {len(chunk)} steps of its chunk, got {executed}")
        self._waiting = list(chunk[:executed])
        self._decided[self._steps] = decision

    def records(self) -> Mapping[str, Column]:
        """Return ``sample`` (H, A) and ``log_prob`` (U,) of each decision at its step, unknown elsewhere.

        They are the chunk as it was drawn, before the simulator's bounds clip it, and the log-probability of its units,
        as in the behaviour of rollouts. A deterministic policy, or one without a log-probability, records neither.
        """
        found = {step: one.log_prob[0].cpu().numpy() for step, one in self._decided.items() if one.log_prob is not None}
        if self.deterministic or len(found) < len(self._decided):
            return {}
        samples = {step: one.chunk[0].cpu().numpy() for step, one in self._decided.items()}
        return {"log_prob": self._column(found), "sample": self._column(samples)}

    def _column(self, known: Mapping[int, np.ndarray]) -> Column:
        valid = np.isin(np.arange(self._steps), list(known))
        values = np.zeros((self._steps, *known[0].shape), np.float32)
        values[valid] = [known[step] for step in sorted(known)]
        return Column(values=values, valid=valid)


def actor_of(policy: Policy, deterministic: bool = False, frames: RolloutFrames | None = None) -> ActorMaker:
    """Return the function that makes the actor of each episode for `guerdon.collect_dataset`.

    Args:
        policy: Policy that acts; it is put in evaluation mode.
        deterministic: Take the policy's deterministic chunks; otherwise they are sampled, as in training.
        frames: Cameras that the policy sees; None renders nothing.
    """
    policy.eval()

    def make(task: Task, context: Context, generator: np.random.Generator) -> Behaviour:
        noise = torch.Generator().manual_seed(int(generator.integers(1 << 62)))
        return PolicyActor(policy, task, noise, deterministic, frames)

    return make


__all__ = ["PolicyActor", "actor_of", "observe"]
