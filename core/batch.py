"""The types that cross every boundary: trajectories, estimates, advantages and pairs.

Notation of tensor shapes: B rows (whole episodes or windows of one), T steps, Tp1 = T + 1 observations, S state width,
A action width, F sampled frames, N decisions, M decision points taken out of a batch, H chunk length, U units of a
log-probability (tokens, dimensions or denoising steps), K = T or T + 1, P pairs.

Step t leads from observation t to observation t + 1; ``mask[b, t]`` is True on the first L steps of row b.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from .decisions import Decision, Evaluation, Observation
from .record import Clock, Labelled, Record, Sampled, expect, expect_ascending, row_index

_DERIVED: Any = None  # default of a field that __post_init__ fills in from the others
_ROW, _STEP, _OBSERVATION = ({"clock": clock} for clock in (Clock.ROW, Clock.STEP, Clock.OBSERVATION))
_COLUMN, _SAMPLE, _DECISION = ({"clock": clock} for clock in (Clock.COLUMN, Clock.SAMPLE, Clock.DECISION))


class End(IntEnum):
    """How a piece of a trajectory ends."""

    CUT = 0
    """Window or fragment boundary: the episode goes on."""
    SUCCESS = 1
    FAILURE = 2
    TIME_LIMIT = 3
    TAKEOVER = 4
    """A person took over."""


TERMINATING = frozenset({End.SUCCESS, End.FAILURE})
"""Ends after which nothing is bootstrapped, unless a caller names another set (ALOE adds time limit and take-over)."""


def terminated_from(end: Int[Tensor, " B"], terminating: Iterable[int] = TERMINATING) -> Bool[Tensor, " B"]:
    """Mark the rows that end in a terminating state, after which there is no future reward."""
    return torch.isin(end, torch.tensor(sorted(int(e) for e in terminating), dtype=end.dtype, device=end.device))


def named_ends(argument: str, names: Sequence[str]) -> frozenset[End]:
    """Look up ends by their names in lower case.

    Args:
        argument: Name of the argument that holds them, for errors.
        names: Names of ends, such as ``["success", "time_limit"]``.

    Raises:
        ValueError: If there is no such end. A cut is none: the episode goes on.
    """
    known = {end.name.lower(): end for end in End if end != End.CUT}
    wrong = [names] if isinstance(names, str) else [name for name in names if name not in known]
    if wrong:
        raise ValueError(f"{argument}: {wrong[0]!r} is no end; expected a list of names out of {', '.join(known)}")
    return frozenset(known[name] for name in names)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectoryBatch(Record):
    """Whole episodes or windows of them, padded to T steps. Only state, actions and mask must be given.

    Raises:
        ValueError: If shapes disagree, or the mask is not True exactly on the first steps of a row.
        TypeError: If a field holds the wrong kind of numbers.
    """

    actions: Float[Tensor, "B T A"] = field(metadata=_STEP)
    """Actions as the environment executed them."""
    mask: Bool[Tensor, "B T"] = field(metadata=_STEP)
    """True on real steps."""
    state: Float[Tensor, "B Tp1 S"] = field(metadata=_OBSERVATION)
    frames: Mapping[str, Sampled] = field(default_factory=dict[str, Sampled], metadata=_SAMPLE)
    """Camera → uint8 (B, F, C, H, W), RGB."""
    features: Mapping[str, Sampled] = field(default_factory=dict[str, Sampled], metadata=_SAMPLE)
    """``encoder/camera`` → (B, F, D) or (B, F, K, D): frozen, embedded once."""
    instructions: tuple[str, ...] = field(default=(), metadata=_ROW)
    task: Int[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    """Paraphrases share a task. Derived: one task per distinct instruction."""
    end: Int[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    """`End` of each row. Derived: CUT."""
    terminated: Bool[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    """True where nothing may be bootstrapped. Derived: success and failure."""
    last_observed: Bool[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    """False where the last observation is a repeat of the one before. Derived: True."""
    success: Float[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    """In [0, 1]; partial success between. Derived: 1 and 0 from the end, else 0 and unknown."""
    success_known: Bool[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    episode: Int[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    offset: Int[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    """Index in the episode of this row's observation 0."""
    length: Int[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    """Steps of the whole episode. Derived: the row's own."""
    group: Int[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    """Same task and same initial state. Derived: each row alone."""
    source: Int[Tensor, " B"] = field(default=_DERIVED, metadata=_ROW)
    weight: Float[Tensor, "B T"] = field(default=_DERIVED, metadata=_STEP)
    """0 = context only. Derived: 1 on real steps."""
    labels: Mapping[str, Labelled] = field(default_factory=dict[str, Labelled], metadata=_COLUMN)
    tracks: Mapping[str, Labelled] = field(default_factory=dict[str, Labelled], metadata=_COLUMN)
    recorded: Mapping[str, Labelled] = field(default_factory=dict[str, Labelled], metadata=_COLUMN)
    decision_step: Int[Tensor, "B N"] = field(default=_DERIVED, metadata=_DECISION)
    """Steps at which the policy decided, ascending; −1 pads. Derived: every real step."""
    behaviour: Mapping[str, Shaped[Tensor, "B N ..."]] = field(default_factory=dict[str, Tensor], metadata=_DECISION)
    """What the acting policy recorded: log_prob, sample (before clipping), tokens, chain, denoise_index; and unit_mask,
    bool in the shape of log_prob, where some of its units are padding (such as the tails of token sequences): True on
    real units, and whatever log_prob holds elsewhere is not read."""

    def __post_init__(self) -> None:
        """Fill in what was left out, then check every shape."""
        self._fill()
        self._check()

    def _fill(self) -> None:
        expect("actions", self.actions, (-1, -1, -1), "float")
        rows, steps = self.actions.shape[:2]
        expect("mask", self.mask, (rows, steps), "bool")
        device = self.mask.device
        real = self.mask.sum(1)

        def fill(name: str, make: Callable[[], object]) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, make())

        def whole(value: int) -> Tensor:
            return torch.full((rows,), value, dtype=torch.long, device=device)

        if not self.instructions:
            object.__setattr__(self, "instructions", ("",) * rows)
        if len(self.instructions) != rows:
            raise ValueError(f"instructions: expected {rows}, one a row, got {len(self.instructions)}")
        distinct = {text: i for i, text in enumerate(dict.fromkeys(self.instructions))}
        known = self.end is not None or self.success is not None  # pyright: ignore[reportUnnecessaryComparison]
        fill("task", lambda: torch.tensor([distinct[t] for t in self.instructions], dtype=torch.long, device=device))
        fill("end", lambda: whole(End.CUT))
        fill("terminated", lambda: terminated_from(self.end))
        fill("last_observed", lambda: torch.ones(rows, dtype=torch.bool, device=device))
        if self.success is None and self.success_known is None:  # pyright: ignore[reportUnnecessaryComparison]
            decided = (self.end == End.SUCCESS) | (self.end == End.FAILURE) | (self.end == End.TIME_LIMIT)
            object.__setattr__(self, "success_known", decided & known)
        fill("success", lambda: (self.end == End.SUCCESS).float())
        fill("success_known", lambda: torch.ones(rows, dtype=torch.bool, device=device))
        fill("episode", lambda: torch.arange(rows, device=device))
        fill("offset", lambda: whole(0))
        fill("length", lambda: self.offset + real)
        fill("group", lambda: self.episode.clone())
        fill("source", lambda: whole(0))
        fill("weight", lambda: self.mask.float())
        every = torch.arange(steps, device=device).expand(rows, steps)
        fill("decision_step", lambda: torch.where(self.mask, every, -1))

    def _check(self) -> None:
        rows, steps = self.mask.shape
        expect("state", self.state, (rows, steps + 1, -1), "float")
        kinds = {"task": "int", "end": "int", "terminated": "bool", "last_observed": "bool", "success": "float"}
        kinds |= {"success_known": "bool", "episode": "int", "offset": "int", "length": "int", "group": "int"}
        for name, kind in (kinds | {"source": "int"}).items():
            expect(name, getattr(self, name), (rows,), kind)
        expect("weight", self.weight, (rows, steps), "float")
        expect("decision_step", self.decision_step, (rows, -1), "int")
        if self.mask.device.type == "cpu" and bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any()):
            raise ValueError("mask: expected True on the first steps of every row only, got a gap")
        expect_ascending("decision_step", self.decision_step, strictly=True)
        self._check_numbers()
        for camera, sampled in self.frames.items():
            expect(f"frames[{camera!r}]", sampled.values, (rows, -1, -1, -1, -1), "uint8")
        for name, sampled in self.features.items():
            expect(f"features[{name!r}]", sampled.values, (rows, -1, -1), "float")
        for kind in ("labels", "tracks", "recorded"):
            for name, column in cast(Mapping[str, Labelled], getattr(self, kind)).items():
                if tuple(column.valid.shape) not in ((rows, steps), (rows, steps + 1)):
                    raise ValueError(
                        f"{kind}[{name!r}]: expected ({rows}, {steps}) for steps or ({rows}, {steps + 1}) for "
                        f"observations, got {tuple(column.valid.shape)}"
                    )
        for name, value in self.behaviour.items():
            expect(f"behaviour[{name!r}]", value, tuple(self.decision_step.shape))

    def _check_numbers(self) -> None:
        """Check what numbers mean; on the host only, where batches are made: elsewhere each check would wait."""
        if self.mask.device.type != "cpu":
            return
        late = (self.decision_step >= self.steps[:, None]) & (self.decision_step >= 0)
        if bool(late.any()):
            row = int(late.any(1).nonzero()[0, 0])
            raise ValueError(
                f"decision_step: expected steps below {int(self.steps[row])} in row {row}, got "
                f"{self.decision_step[row].tolist()}"
            )
        wrong = self.success_known & ~((self.success >= 0) & (self.success <= 1))
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise ValueError(f"success: expected a number in [0, 1] in row {row}, got {float(self.success[row])}")

    @property
    def steps(self) -> Int[Tensor, " B"]:
        """Number of real steps L of each row."""
        return self.mask.sum(1)

    @property
    def observed(self) -> Bool[Tensor, "B Tp1"]:
        """Mask of the observations 0 … L that were made; a repeated last one was not."""
        index = torch.arange(self.mask.shape[1] + 1, device=self.mask.device)
        return index[None] <= (self.steps - (~self.last_observed).long())[:, None]

    @property
    def made(self) -> Bool[Tensor, "B Tp1"]:
        """Mask of the observations that were made in rows with a step, to which targets and estimates belong."""
        return self.observed & (self.steps > 0)[:, None]

    @property
    def whole(self) -> Bool[Tensor, " B"]:
        """Mask of the rows that are whole episodes: with a step, from step 0, as long as their episode."""
        return (self.offset == 0) & (self.steps > 0) & (self.steps >= self.length)

    @property
    def decision_mask(self) -> Bool[Tensor, "B N"]:
        """Mask of the real decisions."""
        return self.decision_step >= 0

    def observe(self, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"]) -> Observation:
        """Take M observations out of the batch; a camera gives its last frame at or before the step.

        Args:
            rows: Row of each observation.
            steps: Observation index, 0 … L.

        Raises:
            ValueError: If an observation is not real, or a camera has no frame at or before it.
        """
        rows, steps = rows.to(self.mask.device), steps.to(self.mask.device)
        outside = (steps < 0) | (steps > self.steps[rows])
        if bool(outside.any()):
            at = int(outside.nonzero()[0, 0])
            last = int(self.steps[rows[at]])
            raise ValueError(f"observation {int(steps[at])} of row {int(rows[at])} is not real: expected 0 … {last}")
        return Observation(
            state=self.state[rows, steps],
            frames={k: _hold(s, rows, steps) for k, s in self.frames.items()},
            features={k: _hold(s, rows, steps) for k, s in self.features.items()},
            instructions=tuple(self.instructions[i] for i in rows.tolist()),
        )

    def at(
        self, rows: Int[Tensor, " M"], steps: Int[Tensor, " M"], horizon: int | None = None
    ) -> tuple[Observation, Decision]:
        """Take M decision points out of the batch.

        Args:
            rows: Row of each decision.
            steps: Step of each decision.
            horizon: Chunk length H for logged actions; where the acting policy recorded its sample, that is taken
                whole and this is ignored. Default 1. Past the end of a row the last action is repeated.

        Returns:
            The observations, and the decisions with ``executed`` = steps until the next recorded decision (logged
            actions have none) or the row's end, at most H.

        Raises:
            ValueError: If a step is not real, or the policy that acted did not decide there.
        """
        rows, steps = rows.to(self.mask.device), steps.to(self.mask.device)
        length = self.steps[rows]
        if bool(((steps < 0) | (steps >= length)).any()):
            at = int(((steps < 0) | (steps >= length)).nonzero()[0, 0])
            raise ValueError(
                f"step {int(steps[at])} of row {int(rows[at])} is not real: expected 0 … {int(length[at]) - 1}"
            )
        if "sample" in self.behaviour:
            point = self.decision_step[rows] == steps[:, None]
            if not bool(point.any(1).all()):
                at = int((~point.any(1)).nonzero()[0, 0])
                raise ValueError(f"the policy did not decide at step {int(steps[at])} of row {int(rows[at])}")
            n = point.int().argmax(1)
            taken = {k: v[rows, n] for k, v in self.behaviour.items()}
            chunk = taken.pop("sample")
            later = torch.where(self.decision_step[rows] > steps[:, None], self.decision_step[rows], length[:, None])
            executed = (later.amin(1) - steps).clamp(max=chunk.shape[1])
            log_prob = taken.pop("log_prob", None)
            decision = Decision(chunk=chunk, executed=executed, log_prob=log_prob, extras=taken)
        else:
            index = steps[:, None] + torch.arange(horizon or 1, device=steps.device)
            chunk = self.actions[rows[:, None], torch.minimum(index, length[:, None] - 1)]
            decision = Decision(chunk=chunk, executed=(length - steps).clamp(max=horizon or 1))
        return self.observe(rows, steps), decision


CLOCKS: Mapping[str, Clock] = {f.name: f.metadata["clock"] for f in fields(TrajectoryBatch)}
"""Clock of each field of a batch."""


def _hold(sampled: Sampled, rows: Tensor, steps: Tensor) -> Tensor:
    rows, steps = rows.to(sampled.step.device), steps.to(sampled.step.device)
    return sampled.values[rows, sampled.held(rows, steps)]


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardEstimates(Record):
    """A reward model's estimates for every step. Invalid entries are left out of whatever is computed from them."""

    rewards: Float[Tensor, "B T"]
    valid: Bool[Tensor, "B T"]
    progress: Labelled | None = None
    """(B, T+1), in [0, 1]."""
    success: Labelled | None = None
    """(B, T+1), probability that the task is done at the observation."""
    std: Float[Tensor, "B T"] | None = None
    """Predictive standard deviation of the reward."""
    terms: Mapping[str, Float[Tensor, "B T"]] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        """Check that every part has the same shape."""
        expect("rewards", self.rewards, (-1, -1), "float")
        rows, steps = self.rewards.shape
        expect("valid", self.valid, (rows, steps), "bool")
        for name, column in (("progress", self.progress), ("success", self.success)):
            if column is not None and tuple(column.valid.shape) != (rows, steps + 1):
                raise ValueError(f"{name}: expected ({rows}, {steps + 1}), got {tuple(column.valid.shape)}")
        for name, term in {**self.terms, **({} if self.std is None else {"std": self.std})}.items():
            expect(name, term, (rows, steps), "float")


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueEstimates(Record):
    """A critic's values of observations, and of logged actions where it has them."""

    v: Float[Tensor, "B Tp1"]
    q: Float[Tensor, "B T"] | None = None
    members: Float[Tensor, "K B T"] | None = None
    """Q of each member of an ensemble."""

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> "ValueEstimates":
        """Select rows; the members' leading dimension stays."""
        index = row_index(rows, len(self), "ValueEstimates")
        return ValueEstimates(
            v=self.v[index],
            q=None if self.q is None else self.q[index],
            members=None if self.members is None else self.members.transpose(0, 1)[index].transpose(0, 1),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Advantages(Record):
    """Advantages and value targets on the policy's decisions; they carry no gradient."""

    advantages: Float[Tensor, "B N"]
    returns: Float[Tensor, "B N"]
    valid: Bool[Tensor, "B N"]
    values: Float[Tensor, "B Np1"] | None = None

    def __post_init__(self) -> None:
        """Check shapes, and that nothing carries a gradient."""
        shape = tuple(self.advantages.shape)
        expect("returns", self.returns, shape, "float")
        expect("valid", self.valid, shape, "bool")
        if self.values is not None:
            expect("values", self.values, (shape[0], shape[1] + 1), "float")
        parts = (self.advantages, self.returns, *(() if self.values is None else (self.values,)))
        if any(part.requires_grad for part in parts):
            raise ValueError("advantages and returns must not carry a gradient: compute them under torch.no_grad()")


@dataclass(frozen=True, kw_only=True, eq=False)
class PreferencePairs(Record):
    """Preference pairs: two rows of a batch each, the preferred one first."""

    batch: TrajectoryBatch
    chosen: Int[Tensor, " P"]
    rejected: Int[Tensor, " P"]
    label: Float[Tensor, " P"]
    """1 = chosen preferred, 0.5 = tie."""
    weight: Float[Tensor, " P"]

    def __post_init__(self) -> None:
        """Check that every pair names two rows of the batch."""
        for name, kind in (("chosen", "int"), ("rejected", "int"), ("label", "float"), ("weight", "float")):
            expect(name, getattr(self, name), (len(self.chosen),), kind)
        for name, rows in (("chosen", self.chosen), ("rejected", self.rejected)):
            outside = (rows < 0) | (rows >= len(self.batch))
            if rows.device.type == "cpu" and bool(outside.any()):
                got = int(rows[outside][0])
                raise ValueError(f"{name}: expected rows 0 … {len(self.batch) - 1} of the batch, got {got}")

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.chosen)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> "PreferencePairs":
        """Select pairs; the batch stays whole."""
        index = row_index(rows, len(self), "PreferencePairs")
        return PreferencePairs(
            batch=self.batch,
            chosen=self.chosen[index],
            rejected=self.rejected[index],
            label=self.label[index],
            weight=self.weight[index],
        )


__all__ = [
    "CLOCKS",
    "TERMINATING",
    "Advantages",
    "Decision",
    "End",
    "Evaluation",
    "Labelled",
    "Observation",
    "PreferencePairs",
    "Record",
    "RewardEstimates",
    "Sampled",
    "TrajectoryBatch",
    "ValueEstimates",
    "named_ends",
    "terminated_from",
]
