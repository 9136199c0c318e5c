"""Notes of an evaluation: why a metric is undefined, and what a reader could mistake for a fault."""

import math
from collections.abc import Sequence

from .metric import Findings, Metric
from .predictions import MODEL, EpisodePredictions

_SHORT = 8  # an episode with at most so many values has a noisy order


def notes_of(findings: Findings, metrics: Sequence[Metric]) -> tuple[str, ...]:
    """Write one line for each metric that needs one, then those about the data as a whole."""
    lines = [metric.note(metric, findings) for metric in metrics if metric.note is not None]
    lines += [_short_episodes(findings), _unranked_qualities(findings)]
    if findings.counts["partial"]:
        lines.append(f"{findings.counts['partial']} partial successes: success AUROC counts ½ and more as success")
    lines.append("the clock is t / T with no model at all: its value order is 1 by construction")
    return tuple(line for line in lines if line)


# --- notes of single metrics ----------------------------------------------------------------------------------------


def order_on_successes(metric: Metric, findings: Findings) -> str:
    """Say why successes have no order, or how many of them have none."""
    return _order(metric, findings, "value order", findings.context.rising(findings.episodes), "success")


def order_on_failures(metric: Metric, findings: Findings) -> str:
    """Say why failures have no order, or how many of them have none."""
    return _order(metric, findings, "value order on failures", findings.context.failed(findings.episodes), "failure")


def _order(metric: Metric, findings: Findings, name: str, episodes: Sequence[EpisodePredictions], outcome: str) -> str:
    value = findings.model[metric.key]
    if math.isnan(value.value):
        why = "the model's values never change in them" if episodes else f"no {outcome} labelled"
        return f"{why}: {name} undefined (n={len(episodes)})"
    if value.n_undefined:
        return f"{name}: {value.n_undefined} of {value.n + value.n_undefined} episodes have no order"
    return ""


def success_auroc(metric: Metric, findings: Findings) -> str:
    """Say which outcome is missing."""
    if not math.isnan(findings.model[metric.key].value):
        return ""
    counts = findings.counts
    labelled = counts["episodes"] - counts["unknown"]
    return f"{_missing_outcome(findings)}: success AUROC undefined (n={labelled or counts['episodes']})"


def success_auprc(metric: Metric, findings: Findings) -> str:
    """Say which outcome is missing."""
    if not math.isnan(findings.model[metric.key].value):
        return ""
    return f"{_missing_outcome(findings)}: success AUPRC undefined as well"


def pairwise_accuracy(metric: Metric, findings: Findings) -> str:
    """Say why there is no pair; without a pair there is no tie either."""
    if not math.isnan(findings.model[metric.key].value):
        return ""
    scored = [e.success for e in findings.episodes if not math.isnan(e.predictions[MODEL].total)]
    both = any(s >= 0.5 for s in scored) and any(s < 0.5 for s in scored)
    why = "no task has episodes of different outcome" if both else _missing_outcome(findings)
    return f"{why}: pairwise accuracy and ties in pairs undefined"


def _missing_outcome(findings: Findings) -> str:
    success = [e.success for e in findings.episodes]
    successes, failures = any(s >= 0.5 for s in success), any(s < 0.5 for s in success)
    if successes and failures:
        return "the model scores no success, or no failure"
    if not successes and not failures:
        return "no outcome labelled"
    return f"no {'failures' if successes else 'successes'} labelled"


def calibration_error(metric: Metric, findings: Findings) -> str:
    """Say that there is nothing to calibrate against."""
    if not math.isnan(findings.model[metric.key].value):
        return ""
    return "no episode has both a labelled outcome and a probability: calibration undefined"


def false_positive_rate(metric: Metric, findings: Findings) -> str:
    """Say that there is no threshold, or no failure to apply it to."""
    if math.isnan(findings.context.threshold):
        return "scores are no probabilities: give --threshold for the shares of failures and successes called one"
    return _rate(metric, findings, "failure")


def true_positive_rate(metric: Metric, findings: Findings) -> str:
    """Say that there is no success to apply the threshold to."""
    return "" if math.isnan(findings.context.threshold) else _rate(metric, findings, "success")


def _rate(metric: Metric, findings: Findings, outcome: str) -> str:
    value = findings.model[metric.key]
    if not math.isnan(value.value):
        return ""
    why = f"no labelled {outcome} has a score" if value.n_undefined else f"no {outcome} labelled"
    return f"{why}: {metric.title.text} undefined"


def progress_error(metric: Metric, findings: Findings) -> str:
    """Say whether the model or the labels lack progress, or that t / T stands in for labels, as the clock predicts."""
    if math.isnan(findings.model[metric.key].value):
        predicted = any(not math.isnan(e.predictions[MODEL].final) for e in findings.episodes)
        return f"{'no progress is known' if predicted else 'the model gives no progress'}: progress error undefined"
    if findings.metrics["clock"][metric.key].value < 1e-6:
        return "no progress is recorded, t / T of successes stands in: the clock has no progress error"
    return ""


def instruction_accuracy(metric: Metric, findings: Findings) -> str:
    """Say that there is no other instruction, or no episode to try it on."""
    if not _has_wrong_instructions(findings):
        return "one task only: there is no wrong instruction to try"
    if not math.isnan(findings.model[metric.key].value):
        return ""
    rising = findings.context.rising(findings.episodes)
    why = "no success has a value under both instructions" if rising else "no success labelled"
    return f"{why}: right against wrong instruction undefined"


def instruction_margin(metric: Metric, findings: Findings) -> str:
    """Say that no episode was scored under every instruction."""
    if not _has_wrong_instructions(findings) or not math.isnan(findings.model[metric.key].value):
        return ""
    why = "no episode was run with all of them"
    if any(e.under_instruction for e in findings.episodes):
        why = "no video has a score under its own and another instruction"
    return f"{why}: instruction margin undefined (see --confusion)"


def _has_wrong_instructions(findings: Findings) -> bool:
    return any("wrong_instruction" in e.predictions for e in findings.episodes)


def quality_ranking(metric: Metric, findings: Findings) -> str:
    """Say that there is no quality to compare."""
    if not math.isnan(findings.model[metric.key].value):
        return ""
    why = "no quality is recorded"
    if any(e.quality for e in findings.episodes):
        why = "no task has episodes of two qualities, or the model scores them all alike"
    return f"{why}: quality ranking undefined"


# --- notes about the data -------------------------------------------------------------------------------------------


def _short_episodes(findings: Findings) -> str:
    lengths = sorted(len(e.predictions[MODEL].values) for e in findings.context.rising(findings.episodes))
    if not lengths or lengths[len(lengths) // 2] > _SHORT:
        return ""
    typical = lengths[len(lengths) // 2]
    spread = 1 / math.sqrt(max(1, typical - 1))
    return f"half of the episodes have {typical} values or fewer: by chance the order of one varies by ±{spread:.2f}"


def _unranked_qualities(findings: Findings) -> str:
    names = sorted({e.quality for e in findings.episodes if e.quality})
    unplaced = [name for name in names if name not in findings.context.levels]
    if not unplaced:
        return ""
    return f"qualities without a place in the order ({', '.join(unplaced)}) are not ranked: --quality-order"
