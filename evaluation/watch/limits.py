"""Limits of the metrics of a learned reward, and the alarms they raise."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

LEAST_CLIPS = 10
"""Clips that a probe must be evaluated on before it can raise an alarm."""


class AlarmLimits:
    """Limits beyond which a metric of the learned reward raises an alarm.

    Args:
        max_false_positive_rate: Largest lower bound of the false-positive rate, in [0, 1]; None raises no such alarm.
        min_failures: Number of failed episodes that this alarm needs.
        max_drift: Largest share of observations outside the training data, in [0, 1]; None raises no such alarm.
        max_probe: Largest lower bound of the share of successful clips that still succeed when a probe alters them, in
            [0, 1]; None raises no such alarm.
        on_alarm: Reaction to an alarm: ``"warn"`` continues training, ``"stop"`` ends it after the rollout.

    Raises:
        ValueError: If a number lies outside its range, or ``on_alarm`` is neither of the two.
    """

    def __init__(
        self,
        max_false_positive_rate: float | int | None = 0.2,
        min_failures: int = 20,
        max_drift: float | int | None = 0.5,
        max_probe: float | int | None = 0.5,
        on_alarm: Literal["warn", "stop"] = "warn",
    ) -> None:
        limits = {"max_false_positive_rate": max_false_positive_rate, "max_drift": max_drift, "max_probe": max_probe}
        for name, limit in limits.items():
            if limit is not None and not 0 <= limit <= 1:
                raise ValueError(f"{name} is {limit}: expected a share in [0, 1], or None")
        if min_failures < 1:
            raise ValueError(f"min_failures {min_failures}: expected at least 1")
        if on_alarm not in ("warn", "stop"):
            raise ValueError(f'on_alarm {on_alarm!r}: expected "warn" or "stop"')
        self.max_false_positive_rate, self.min_failures = max_false_positive_rate, min_failures
        self.max_drift, self.max_probe = max_drift, max_probe
        self.on_alarm: Literal["warn", "stop"] = on_alarm

    def alarms(self, metrics: Mapping[str, float], images: bool = True) -> tuple[str, ...]:
        """Return the names of the alarms that metrics raise.

        A metric that is missing or NaN raises none.

        Args:
            metrics: Metrics of `compare`, ``drift``, and those of `probe_metrics`.
            images: Whether the reward model observes camera images. Without, the probe ``"blank"`` raises no alarm: its
                clips show the mean state of the training data, which may well be a success.

        Returns:
            Some of ``"false_positives"``, ``"drift"``, and ``"probe_<name>"`` in the order of the metrics.
        """
        found: list[str] = []
        enough = metrics.get("failures", 0) >= self.min_failures
        if enough and _above(metrics.get("false_positive_rate_low"), self.max_false_positive_rate):
            found.append("false_positives")
        if _above(metrics.get("drift"), self.max_drift):
            found.append("drift")
        if metrics.get("probe_clips", 0) >= LEAST_CLIPS:
            bounds = [name for name in metrics if name.startswith("probe_") and name.endswith("_low")]
            over = [name.removesuffix("_low") for name in bounds if _above(metrics[name], self.max_probe)]
            found += [name for name in over if images or name != "probe_blank"]
        return tuple(found)

    def stops(self, alarms: Sequence[str], retrained: bool = False) -> bool:
        """Return whether training ends after a rollout.

        Args:
            alarms: Names of the alarms.
            retrained: Whether the reward model was retrained, which settles the alarm of false positives.
        """
        return self.on_alarm == "stop" and any(not retrained or alarm != "false_positives" for alarm in alarms)


def _above(value: float | int | None, limit: float | int | None) -> bool:
    return value is not None and limit is not None and value > limit


def describe_alarm(alarm: str, metrics: Mapping[str, float]) -> str:
    """Return one clause that states what raised an alarm.

    Args:
        alarm: Name of the alarm, as `AlarmLimits.alarms` returns it.
        metrics: Metrics that raised it.
    """
    if alarm == "false_positives":
        return (
            f"the reward takes {metrics['false_positive_rate']:.0%} of {int(metrics['failures'])} failures for "
            f"successes (at least {metrics['false_positive_rate_low']:.0%})"
        )
    if alarm == "drift":
        return f"{metrics['drift']:.0%} of the observations lie beyond what 99 % of the training data hold"
    return f"{alarm}: {metrics.get(f'{alarm}_claimed', math.nan):.0%} still succeed"
