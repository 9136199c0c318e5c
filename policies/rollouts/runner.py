"""Rollouts of a policy in simulated tasks: whole episodes for evaluation, pieces of episodes for training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.batch import End, Labelled, Observation, TrajectoryBatch
from ...core.interfaces import Policy
from ...core.joining import join_fields
from ...envs.vector import Context, VectorEnv, make_task


@dataclass(kw_only=True)
class Piece:
    """One episode so far: states, actions and decisions since the reset of its environment."""

    context: Context
    """Initial state."""
    state: list[np.ndarray]
    """State (S,) of each observation."""
    actions: list[np.ndarray] = field(default_factory=list[np.ndarray])
    """Executed action (A,) of each step."""
    reward: list[float] = field(default_factory=list[float])
    """The environment's reward of each step."""
    success: list[bool] = field(default_factory=lambda: [False])
    """Success flag of each observation; that of the first one is not known to the simulator."""
    decision_step: list[int] = field(default_factory=list[int])
    """Step of each decision."""
    behaviour: dict[str, list[np.ndarray]] = field(default_factory=dict[str, list[np.ndarray]])
    """Records of the policy at each decision: ``sample``, and ``log_prob`` and extras if it returned them."""
    tracks: list[np.ndarray] = field(default_factory=list[np.ndarray])
    """All tracks of each observation concatenated, (W,): one array is sent faster than four."""
    track_widths: dict[str, int] = field(default_factory=dict[str, int])
    """Width of each track, in their order in ``tracks``; W is their sum."""
    end: End = End.CUT
    """How the episode ended; ``CUT`` while it goes on."""
    fresh: int = 0
    """First step that was not handed out before; earlier ones are context of weight 0."""


class Runner:
    """Runner of several copies of one task with one policy, decision by decision.

    All copies decide at the same moments, so that a rollout is only cut between decisions.

    Args:
        task: Name of the task, see `guerdon.make_task`.
        envs: Number of copies in this process.
        horizon: Time limit in control steps; None takes the task's own.
        end_on_success: Whether the first success ends an episode. False runs every episode to its time limit, so that
            its length shows nothing of its outcome.
        task_seed: Seed that fixes the contexts.
    """

    def __init__(
        self, task: str, envs: int, horizon: int | None = None, end_on_success: bool = True, task_seed: int = 0
    ) -> None:
        self.envs = VectorEnv([make_task(task, horizon, task_seed) for _ in range(envs)])
        self.end_on_success = end_on_success
        self._open: list[Piece | None] = [None] * envs
        self._low, self._high = self.envs.task.action_low, self.envs.task.action_high

    def collect(
        self, policy: Policy, steps: int, contexts: Sequence[Context], generator: torch.Generator
    ) -> list[Piece]:
        """Act for about ``steps`` environment steps; unfinished episodes go on in the next call.

        An unfinished episode is returned as a cut piece. The next call returns it again from its start, with the steps
        that were returned before marked as context.

        Args:
            policy: Policy that acts.
            steps: Number of environment steps over all copies.
            contexts: Initial states that new episodes are drawn from.
            generator: Random generator of contexts and noise.
        """
        done: list[Piece] = []
        taken = 0
        while taken < steps:
            for i, piece in enumerate(self._open):
                if piece is None:
                    draw = int(torch.randint(len(contexts), (), generator=generator))
                    self._open[i] = self._start(i, contexts[draw])
            taken += self._round(policy, generator, deterministic=False, done=done)
        for piece in self._open:
            if piece is not None:
                done.append(_snapshot(piece))
                piece.fresh = len(piece.actions)
        return done

    def play(
        self, policy: Policy, contexts: Sequence[Context], generator: torch.Generator, deterministic: bool = True
    ) -> list[Piece]:
        """Play one whole episode from every context; episodes in progress are dropped.

        Args:
            policy: Policy that acts.
            contexts: Initial states.
            generator: Random generator of the policy's noise.
            deterministic: Take the policy's deterministic chunks.

        Returns:
            One piece per context, in their order.
        """
        self._open = [None] * len(self.envs)
        waiting = list(enumerate(contexts))[::-1]
        place: dict[int, int] = {}
        done: list[Piece] = []
        while waiting or any(p is not None for p in self._open):
            for i, piece in enumerate(self._open):
                if piece is None and waiting:
                    number, context = waiting.pop()
                    self._open[i] = self._start(i, context)
                    place[id(self._open[i])] = number
            self._round(policy, generator, deterministic, done)
        return sorted(done, key=lambda piece: place[id(piece)])

    def _start(self, index: int, context: Context) -> Piece:
        state = self.envs.reset(index, context)
        tracks = self.envs.tasks[index].tracks()  # a reset returns the state only
        return Piece(
            context=context,
            state=[state],
            tracks=[_side_by_side(list(tracks.values()))],
            track_widths={name: len(point) for name, point in tracks.items()},
        )

    def _round(self, policy: Policy, generator: torch.Generator, deterministic: bool, done: list[Piece]) -> int:
        """Make one decision in every running copy and execute it; return the number of environment steps.

        Raises:
            ValueError: If the policy would execute fewer steps in one copy than in another.
        """
        running = np.array([p is not None for p in self._open])
        rows = [i for i, p in enumerate(self._open) if p is not None]
        state = np.stack([_piece(self._open[i]).state[-1] for i in rows])
        texts = (self.envs.task.instruction,) * len(rows)
        decision = policy.act(Observation(state=torch.from_numpy(state), instructions=texts), deterministic, generator)
        chunk = decision.chunk.cpu().numpy()
        executed = sorted(set(decision.executed.tolist()))
        if len(executed) != 1 or not 1 <= executed[0] <= chunk.shape[1]:
            raise ValueError(
                f"expected decisions that execute one number of steps, 1 … {chunk.shape[1]}, got {executed}: copies "
                "that decide at different moments cannot be stepped together; return one number for all"
            )
        recorded = {"sample": decision.chunk, "log_prob": decision.log_prob, **decision.extras}
        behaviour = {name: part.cpu().numpy() for name, part in recorded.items() if part is not None}
        for k, i in enumerate(rows):
            piece = _piece(self._open[i])
            piece.decision_step.append(len(piece.actions))
            for name, part in behaviour.items():
                piece.behaviour.setdefault(name, []).append(part[k])
        actions = np.zeros((len(running), chunk.shape[2]), np.float32)
        taken, names = 0, list(_piece(self._open[rows[0]]).track_widths)
        for step in range(executed[0]):
            actions[rows] = np.clip(chunk[:, step], self._low, self._high)
            came = self.envs.step(actions, running)
            tracks = _side_by_side([came.tracks[name] for name in names])
            for i in np.flatnonzero(running):
                piece = _piece(self._open[i])
                piece.state.append(came.state[i])
                if names:
                    piece.tracks.append(tracks[i])
                piece.actions.append(actions[i].copy())
                piece.reward.append(float(came.reward[i]))
                piece.success.append(bool(came.success[i]))
                taken += 1
                if self.end_on_success and came.success[i]:
                    piece.end = End.SUCCESS
                elif came.terminated[i]:
                    piece.end = End.SUCCESS if came.success[i] else End.FAILURE
                elif came.truncated[i]:
                    piece.end = End.TIME_LIMIT
                else:
                    continue
                done.append(piece)
                self._open[i] = None
                running[i] = False
            if not running.any():
                break
        return taken

    def close(self) -> None:
        """Close every simulator."""
        self.envs.close()


def _side_by_side(points: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate along the last axis; no points give an empty array."""
    return np.concatenate(points, -1, dtype=np.float32) if points else np.zeros(0, np.float32)


def _piece(piece: Piece | None) -> Piece:
    assert piece is not None
    return piece


def _snapshot(piece: Piece) -> Piece:
    """Copy an unfinished episode; its arrays are never changed, so that copies of the lists are enough."""
    return Piece(
        context=piece.context,
        state=list(piece.state),
        actions=list(piece.actions),
        reward=list(piece.reward),
        success=list(piece.success),
        decision_step=list(piece.decision_step),
        behaviour={name: list(parts) for name, parts in piece.behaviour.items()},
        tracks=list(piece.tracks),
        track_widths=piece.track_widths,
        fresh=piece.fresh,
    )


def batch_pieces(pieces: Sequence[Piece], instruction: str = "", hide_outcome: bool = False) -> TrajectoryBatch:
    """Pad pieces to one batch: one row each, decisions, tracks and what the policy recorded included.

    Tracks stand as in episodes that were collected: (B, T+1, 3) for a point, (B, T+1) for a number, one entry per
    observation, that of the reset first. A number that is not finite is unknown. The ``length`` of an episode that goes
    on is not known; it is given as one more than the steps so far, so that no one takes the piece for a whole episode.

    Args:
        pieces: At least one.
        instruction: What the task says.
        hide_outcome: Leave out the environment's reward and success, so that nothing that learns from the batch can
            look at them; tracks stay, as the state does. A piece that the simulator ended on success would still tell:
            collect with ``end_on_success=False``.

    Raises:
        ValueError: If there is no piece, pieces hold different tracks, or an outcome that should be hidden shows in how
            a piece ended.
    """
    if hide_outcome and any(p.end in (End.SUCCESS, End.FAILURE) for p in pieces):
        raise ValueError(
            "the outcome cannot be hidden: an episode ended because of it; collect with end_on_success=False"
        )
    for piece in pieces:
        if piece.track_widths != pieces[0].track_widths:
            raise ValueError(
                f"expected pieces of one task, got the tracks {pieces[0].track_widths} and {piece.track_widths}"
            )
    return TrajectoryBatch(**join_fields([_row(piece, instruction, hide_outcome) for piece in pieces]))


def _row(piece: Piece, instruction: str, hide_outcome: bool) -> dict[str, Any]:
    """Make the fields of one row, each with a leading dimension of 1."""
    steps = len(piece.actions)
    goes_on = piece.end == End.CUT
    asked = torch.arange(steps + 1)[None] > 0  # observation 0 has no flag
    mask = torch.ones(1, steps, dtype=torch.bool)
    row: dict[str, Any] = {
        "state": _tensor(np.stack(piece.state)),
        "actions": _tensor(np.stack(piece.actions)),
        "mask": mask,
        "instructions": (instruction,),
        "task": [0],
        "end": [int(piece.end)],
        "length": [steps + int(goes_on)],
        "success": [0.0 if hide_outcome else float(any(piece.success))],
        "success_known": [not hide_outcome and not goes_on],
        "group": [piece.context.index],
        "weight": (torch.arange(steps) >= piece.fresh).float()[None],
        "tracks": _tracks(piece),
        "decision_step": torch.tensor([piece.decision_step], dtype=torch.long),
        "behaviour": {name: _tensor(np.stack(parts)) for name, parts in piece.behaviour.items()},
    }
    if not hide_outcome:
        flags = _tensor(np.array(piece.success, np.float32))
        row["labels"] = {"success": Labelled(values=flags, valid=asked)}
        row["recorded"] = {"reward": Labelled(values=_tensor(np.array(piece.reward, np.float32)), valid=mask)}
    return row


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values)[None]


def _tracks(piece: Piece) -> dict[str, Labelled]:
    """Split the tracks of a piece by name; they are valid where they are finite."""
    if not piece.track_widths:
        return {}
    widths = piece.track_widths
    found: dict[str, Labelled] = {}
    for name, values in zip(widths, _tensor(np.stack(piece.tracks)).split(list(widths.values()), dim=2), strict=True):
        valid = values.isfinite().all(2)
        known = torch.where(valid[..., None], values, 0.0)
        found[name] = Labelled(values=known[..., 0] if widths[name] == 1 else known, valid=valid)
    return found


def split_evenly(total: int, parts: int) -> list[int]:
    """Split a number into whole numbers that differ by at most one.

    Args:
        total: Number that is split.
        parts: Number of parts.
    """
    return [total // parts + (i < total % parts) for i in range(parts)]
