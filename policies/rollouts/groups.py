"""Rollouts for groups: several whole episodes from one initial state, drawn, compared, and drawn again."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

import torch

from ...envs.task import Context
from ..loops.curriculum import Curriculum
from .pieces import Piece

MOST_SKIPS = 3
"""Number of times that a solved initial state is passed over before it is played again (RIPT-VLA's released code)."""

Play = Callable[[list[Context], list[int], int], list[Piece]]
"""Function that plays whole episodes: contexts, their draw numbers and a wave's number in, pieces in their order."""

Score = Callable[[list[Piece]], list[float]]
"""Function that scores whole episodes; NaN where a score is unknown."""


@dataclass(frozen=True, kw_only=True)
class GroupRollouts:
    """Settings of rollouts in groups: ``size`` whole episodes from each of ``contexts`` initial states.

    All episodes of a group begin in one initial state and share its draw number as ``group``. An initial state that is
    drawn twice makes two groups. A group whose outcomes are all equal has no advantage: it teaches nothing to a policy
    that learns from `guerdon.GroupScore`. RIPT-VLA (arXiv 2505.17016, Algorithm 1) rejects it and draws another
    initial state. Rejected groups cost environment steps all the same; they are counted. Rejection weighs the initial
    states by the probability that their outcomes are mixed.

    Raises:
        ValueError: If a number makes no sense.
    """

    size: int = 8
    """Number K of episodes of a group, 2 or more."""
    contexts: int = 16
    """Number of groups in a rollout."""
    rejection: Literal["none", "drop", "resample"] = "resample"
    """What becomes of a group whose outcomes are all equal: ``"none"`` trains on it, ``"drop"`` leaves it out, and
    ``"resample"`` draws another initial state instead."""
    max_tried: float | int = 4.0
    """Largest number of groups that are played for one rollout, as a multiple of ``contexts``: where a policy always
    fails or always succeeds no number would do. The rollout then has fewer groups."""
    compare: Literal["success", "score"] = "success"
    """Outcome that is compared: the environment's success, or the summed reward of the advantage source's reward model,
    which then scores all episodes of a wave in one batch."""
    curriculum: Curriculum | None = None
    """Probabilities of the initial states; None draws all alike."""
    skip_solved: bool = False
    """Pass over an initial state up to three times after a group of successes only."""
    quotas: Mapping[str, float | int] | None = None
    """Share of the groups of each task, by its name; None leaves the mix to chance and to rejection."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.size < 2 or self.contexts < 1 or not 1 <= self.max_tried < math.inf:
            raise ValueError(
                f"size {self.size}, contexts {self.contexts}, max_tried {self.max_tried}: expected groups of 2 or more "
                "episodes, at least one of them, and a multiple of at least 1"
            )
        if self.quotas is not None and (not self.quotas or not all(0 < q < math.inf for q in self.quotas.values())):
            raise ValueError(f"quotas {dict(self.quotas)}: expected a share above 0 for each task")


class GroupDraws:
    """Draws of initial states, and what is remembered between rollouts.

    Args:
        setting: Settings of the groups.
        contexts: Initial states of all tasks.

    Raises:
        ValueError: If the quotas name a task that is not played, or leave one out.
    """

    def __init__(self, setting: GroupRollouts, contexts: Sequence[Context]) -> None:
        self.setting, self.contexts = setting, list(contexts)
        self.draws = 0
        """Number of initial states that were drawn so far."""
        self._skips: Counter[str] = Counter()
        tasks = list(dict.fromkeys(context.task for context in contexts))
        if setting.quotas is not None and set(setting.quotas) != set(tasks):
            raise ValueError(f"quotas of {', '.join(setting.quotas)}: expected one for each of {', '.join(tasks)}")
        self.tasks = tasks
        self.wanted()

    def wanted(self) -> dict[str | None, int]:
        """Split the number of groups of a rollout by task; one entry None where there are no quotas."""
        quotas, count = self.setting.quotas, self.setting.contexts
        if quotas is None:
            return {None: count}
        total = sum(quotas.values())
        exact = {task: count * quotas[task] / total for task in self.tasks}
        found: dict[str | None, int] = {task: math.floor(share) for task, share in exact.items()}
        by_rest = sorted(self.tasks, key=lambda task: math.floor(exact[task]) - exact[task])
        for task in by_rest[: count - sum(found.values())]:
            found[task] += 1
        never = [str(task) for task, groups in found.items() if not groups]
        if never:
            raise ValueError(
                f"contexts {count}: with these quotas {', '.join(never)} would get no group in any rollout; set "
                "contexts higher, or change the quotas"
            )
        return found

    def draw(self, task: str | None, count: int, generator: torch.Generator) -> list[tuple[int, Context]]:
        """Draw initial states with their draw numbers, none twice in one call as long as there are enough.

        Args:
            task: Name of the task; None draws from all.
            count: Number of initial states.
            generator: Random generator.
        """
        own = [context for context in self.contexts if task in (None, context.task)]
        names = [context_name(context) for context in own]
        curriculum = self.setting.curriculum
        weights = torch.ones(len(own), dtype=torch.float64) if curriculum is None else curriculum.probabilities(names)
        found: list[Context] = []
        while len(found) < count:
            order = torch.multinomial(weights, len(own), replacement=False, generator=generator).tolist()
            passed: list[Context] = []
            for place in order:
                if len(found) == count:
                    break
                if self._skips[names[place]] > 0:
                    self._skips[names[place]] -= 1
                    passed.append(own[place])
                else:
                    found.append(own[place])
            if len(passed) == len(own):  # everything is solved: play what there is
                found += passed[: count - len(found)]
        numbers = range(self.draws, self.draws + count)
        self.draws += count
        return list(zip(numbers, found, strict=True))

    def add(self, context: Context, outcomes: Sequence[float]) -> None:
        """Remember the outcomes of a group.

        Args:
            context: Initial state of the group.
            outcomes: Outcome of each episode, from 0 to 1.
        """
        if self.setting.curriculum is not None:
            self.setting.curriculum.add(context_name(context), outcomes)
        if self.setting.skip_solved:
            self._skips[context_name(context)] = MOST_SKIPS if all(outcome == 1 for outcome in outcomes) else 0

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered."""
        curriculum = self.setting.curriculum
        remembered = {} if curriculum is None else curriculum.state_dict()
        return {"draws": self.draws, "skips": dict(+self._skips), "curriculum": remembered}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what was remembered."""
        self.draws, self._skips = int(state_dict["draws"]), Counter(state_dict["skips"])
        if self.setting.curriculum is not None:
            self.setting.curriculum.load_state_dict(dict(state_dict["curriculum"]))


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of one rollout."""

    pieces: list[Piece]
    """Episodes of the accepted groups; of all that were played where none was accepted."""
    accepted: int
    """Number of accepted groups."""
    env_steps: int
    """Number of environment steps of all groups that were played."""
    metrics: dict[str, float]
    """Metrics by name: see `docs/groups.md`."""


def play_groups(draws: GroupDraws, play: Play, score: Score, generator: torch.Generator) -> Groups:
    """Play groups until enough of them are accepted, or the cap is reached.

    Args:
        draws: Draws of initial states; outcomes are remembered there.
        play: Function that plays whole episodes.
        score: Function whose scores are compared, if the settings say so.
        generator: Random generator of the draws.
    """
    setting = draws.setting
    missing, tried = draws.wanted(), Counter[str]()
    most = math.floor(setting.max_tried * setting.contexts) if setting.rejection == "resample" else setting.contexts
    accepted: list[list[Piece]] = []
    rejected: list[list[Piece]] = []
    share = Counter[str]()
    wave = 0
    while sum(missing.values()) and tried.total() < most:
        room = most - tried.total()
        by_task = [draws.draw(task, count, generator) for task, count in missing.items()]
        # in turns, so that no task is left out where there is room for a few only
        drawn = [one for turn in zip_longest(*by_task) for one in turn if one is not None][:room]
        contexts = [context for _, context in drawn for _ in range(setting.size)]
        numbers = [number for number, _ in drawn for _ in range(setting.size)]
        pieces = play(contexts, numbers, wave)
        scores = score(pieces) if setting.compare == "score" else [float(any(piece.success)) for piece in pieces]
        wave += 1
        for place, (_, context) in enumerate(drawn):
            rows = slice(place * setting.size, (place + 1) * setting.size)
            group, known = pieces[rows], [one for one in scores[rows] if not math.isnan(one)]
            draws.add(context, [float(any(piece.success)) for piece in group])
            tried[context.task] += 1
            mixed = len(known) > 1 and max(known) - min(known) > 1e-6 * max(1.0, abs(max(known)))
            if mixed or setting.rejection == "none":
                accepted.append(group)
                share[context.task] += 1
                missing[None if None in missing else context.task] -= 1
            else:
                rejected.append(group)
        if setting.rejection != "resample":
            break
    kept = accepted or rejected
    pieces = [piece for group in kept for piece in group]
    everything = [*accepted, *rejected]
    wasted = sum(len(piece.actions) for group in rejected for piece in group)
    metrics = {
        "groups_tried": float(tried.total()),
        "groups_accepted": float(len(accepted)),
        "accepted_share": len(accepted) / max(1, tried.total()),
        "rejected_steps": float(wasted),
        "group_success": sum(any(p.success) for g in everything for p in g) / max(1, sum(map(len, everything))),
    }
    if len(draws.tasks) > 1:
        metrics |= {f"accepted_share/{task}": share[task] / tried[task] for task in draws.tasks if tried[task]}
        metrics |= {f"groups_accepted/{task}": float(share[task]) for task in draws.tasks}
    return Groups(
        pieces=pieces,
        accepted=len(accepted),
        env_steps=sum(len(piece.actions) for group in everything for piece in group),
        metrics=metrics,
    )


def context_name(context: Context) -> str:
    """Return the name by which a curriculum remembers an initial state.

    Args:
        context: Initial state.
    """
    return f"{context.task}#{context.index}"


__all__ = ["MOST_SKIPS", "GroupDraws", "GroupRollouts", "Groups", "context_name", "play_groups"]
