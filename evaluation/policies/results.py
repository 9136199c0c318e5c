"""Results of an evaluation of policies: success rates with intervals, and paired differences on the same starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...core.files import without_nan
from ...core.intervals import Estimate, paired_bootstrap, wilson_estimate
from ..aggregate import (
    episodes_to_tell,
    interquartile_mean,
    paired_counts,
    paired_episodes_to_tell,
    paired_rates_estimate,
    probability_of_improvement,
    rates_estimate,
    sign_test,
)
from .outcomes import Outcome

APART = 0.05
"""Difference of success rates whose number of episodes is reported: five points."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Outcomes of one policy in one task."""

    task: str
    """Name of the task."""
    policy: str
    """``"model"`` or ``"against"``."""
    episodes: int
    """Number of starts."""
    successes: int
    """Number of starts that were solved."""
    success: Estimate
    """Success rate with its 95 % Wilson interval."""
    steps: float
    """Mean number of control steps of all episodes."""
    steps_of_successes: float
    """Mean number of control steps of the successful episodes; NaN where there is none."""
    reward: float
    """Mean sum of the environment's rewards."""
    to_tell: int
    """Number of episodes of each policy that tell a difference of five points from this rate, on independent starts."""

    @classmethod
    def of(cls, task: str, policy: str, outcomes: Sequence[Outcome]) -> "TaskResult":
        """Summarise outcomes.

        Args:
            task: Name of the task.
            policy: ``"model"`` or ``"against"``.
            outcomes: At least one outcome.
        """
        solved = [outcome for outcome in outcomes if outcome.success]
        rate = wilson_estimate(len(solved), len(outcomes))
        return cls(
            task=task,
            policy=policy,
            episodes=len(outcomes),
            successes=len(solved),
            success=rate,
            steps=float(np.mean([outcome.steps for outcome in outcomes])),
            steps_of_successes=float(np.mean([outcome.steps for outcome in solved])) if solved else math.nan,
            reward=float(np.mean([outcome.reward for outcome in outcomes])),
            to_tell=episodes_to_tell(APART, rate.value),
        )


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """Two policies on the same starts."""

    task: str
    """Name of the task; empty for all tasks together."""
    episodes: int
    """Number of starts."""
    difference: Estimate
    """Success rate of the model less that of the other policy, with a 95 % interval from a bootstrap over starts."""
    wins: int
    """Number of starts that only the model solved."""
    losses: int
    """Number of starts that only the other policy solved."""
    p_value: float
    """Exact p-value of McNemar's test (two-sided) that both solve the same share of starts."""
    to_tell: int
    """Number of starts that tell a difference of five points at this share of discordant starts."""

    @classmethod
    def of(
        cls, task: str, first: Sequence[Sequence[float | int]], second: Sequence[Sequence[float | int]], seed: int = 0
    ) -> "PairedResult":
        """Compare two policies on the same starts of one or more tasks.

        Args:
            task: Name of the task; empty for several.
            first: Outcomes of the model, 0 or 1, task by task.
            second: Outcomes of the other policy on the same starts.
            seed: Random seed of the bootstrap.
        """
        if len(first) == 1:
            value, low, high = paired_bootstrap(first[0], second[0], np.arange(len(first[0])), seed=seed)
            difference = Estimate(value=value, low=low, high=high)
        else:
            difference = paired_rates_estimate(lambda a, b: float((a - b).mean()), first, second, seed=seed)
        one, two = np.concatenate(first), np.concatenate(second)
        wins, losses = paired_counts(one, two)
        return cls(
            task=task,
            episodes=one.size,
            difference=difference,
            wins=wins,
            losses=losses,
            p_value=sign_test(wins, losses),
            to_tell=paired_episodes_to_tell(APART, (wins + losses) / one.size),
        )


@dataclass(frozen=True, kw_only=True)
class PolicyEvaluation:
    """Evaluation of a policy, or of two on the same starts."""

    model: Mapping[str, Any]
    """Path, class path, content hash and arguments of the policy."""
    against: Mapping[str, Any] | None
    """Those of the policy it is compared with."""
    setting: Mapping[str, Any]
    """Split, seeds, time limit and kind of actions."""
    versions: Mapping[str, str]
    """Versions of guerdon, of torch, and of the simulators."""
    machine: str
    """Processor that the episodes were played on."""
    outcomes: Sequence[Outcome]
    """Outcomes start by start, of both policies."""
    tasks: Sequence[TaskResult]
    """Results by task and policy."""
    paired: Sequence[PairedResult] = ()
    """Differences by task and, for several tasks, over all (the last one)."""
    interquartile_mean: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    """Interquartile mean of the tasks' success rates by policy, for several tasks."""
    improvement: Estimate | None = None
    """Probability that the model improves on the other policy in a task: the share of tasks in which its success rate
    is higher, and half of those in which both are equal. For several tasks and two policies."""
    videos: Sequence[str] = ()
    """Videos that were written."""

    @classmethod
    def of(
        cls,
        outcomes: Sequence[Outcome],
        model: Mapping[str, Any],
        against: Mapping[str, Any] | None,
        setting: Mapping[str, Any],
        versions: Mapping[str, str],
        machine: str,
        videos: Sequence[str] = (),
    ) -> "PolicyEvaluation":
        """Summarise outcomes.

        Args:
            outcomes: Outcomes of every start of every task, of one policy or of both.
            model: Identity of the policy: path and hash of its weights.
            against: Identity of the policy it is compared with.
            setting: Setting of the evaluation; its ``"seed"`` is that of the bootstrap.
            versions: Versions that the outcomes depend on.
            machine: Processor.
            videos: Videos that were written.
        """
        names = list(dict.fromkeys(outcome.task for outcome in outcomes))
        policies = list(dict.fromkeys(outcome.policy for outcome in outcomes))
        by = {
            (policy, name): sorted(
                (o for o in outcomes if o.task == name and o.policy == policy), key=lambda outcome: outcome.place
            )
            for name in names
            for policy in policies
        }
        flags = {p: [[float(o.success) for o in by[p, name]] for name in names] for p in policies}
        seed = int(setting.get("seed", 0))
        several, two = len(names) > 1, len(policies) == 2
        paired: list[PairedResult] = []
        improvement = None
        if two:
            a, b = flags[policies[0]], flags[policies[1]]
            paired = [PairedResult.of(name, [x], [y], seed) for name, x, y in zip(names, a, b, strict=True)]
            if several:
                paired.append(PairedResult.of("", a, b, seed))
                improvement = paired_rates_estimate(
                    lambda x, y: probability_of_improvement(x[None], y[None]), a, b, seed=seed
                )
        return cls(
            model=model,
            against=against,
            setting=setting,
            versions=versions,
            machine=machine,
            outcomes=outcomes,
            tasks=[TaskResult.of(name, policy, by[policy, name]) for name in names for policy in policies],
            paired=paired,
            interquartile_mean={p: rates_estimate(interquartile_mean, flags[p], seed=seed) for p in policies}
            if several
            else {},
            improvement=improvement,
            videos=videos,
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-able values; NaN becomes None."""
        return without_nan({
            "model": dict(self.model),
            "against": None if self.against is None else dict(self.against),
            "setting": dict(self.setting),
            "versions": dict(self.versions),
            "machine": self.machine,
            "tasks": [asdict(result) for result in self.tasks],
            "paired": [asdict(result) for result in self.paired],
            "interquartile_mean": {policy: asdict(found) for policy, found in self.interquartile_mean.items()},
            "improvement": None if self.improvement is None else asdict(self.improvement),
            "videos": list(self.videos),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        })  # fmt: skip


__all__ = ["APART", "PairedResult", "PolicyEvaluation", "TaskResult"]
