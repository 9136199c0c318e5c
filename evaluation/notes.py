"""Says in words why a figure is undefined, and what a reader would otherwise take for a fault."""

import math
from collections.abc import Mapping, Sequence

from .metrics import Figures
from .predictions import MODEL, Basis, Judged


def notes_of(
    judged: Sequence[Judged], figures: Mapping[str, Figures], counts: Mapping[str, int], basis: Basis
) -> tuple[str, ...]:
    """One line for each undefined figure of the model, and for each that needs a word.

    Args:
        judged: All episodes.
        figures: By name of the reading.
        counts: Episodes by outcome.
        basis: Rules the figures are computed by.
    """
    model = figures[MODEL]
    notes = [
        *_discrimination(judged, model, counts),
        *_threshold(judged, model, counts, basis),
        *_order(judged, model, basis),
        *_progress(judged, model, figures),
        *_instructions(judged, model, counts, basis),
        *_qualities(judged, model, basis),
    ]
    if counts["partial"]:
        notes.append(f"{counts['partial']} partial successes: success AUROC counts ½ and more as success")
    notes.append("the clock is t / T with no model at all: its value order is 1 by construction")
    return tuple(notes)


def _discrimination(judged: Sequence[Judged], model: Figures, counts: Mapping[str, int]) -> list[str]:
    notes: list[str] = []
    labelled = counts["episodes"] - counts["unknown"]
    if math.isnan(model.success_auroc.value):
        lacking = "successes" if not any(j.success >= 0.5 for j in judged) else "failures"
        why = f"no {lacking} labelled" if labelled else "no outcome labelled"
        if labelled and any(j.success >= 0.5 for j in judged) and any(j.success < 0.5 for j in judged):
            why = "the model scores no success, or no failure"
        notes.append(f"{why}: success AUROC undefined (n={labelled or counts['episodes']})")
        notes.append(f"{why}: success AUPRC, pairs and their ties undefined as well")
    elif math.isnan(model.pairwise_accuracy.value):
        notes.append("no task has episodes of different outcome: pairwise accuracy undefined")
    if math.isnan(model.calibration_error.value):
        notes.append("no labelled outcome beside a probability: calibration undefined")
    return notes


def _threshold(judged: Sequence[Judged], model: Figures, counts: Mapping[str, int], basis: Basis) -> list[str]:
    if math.isnan(basis.threshold):
        return ["scores are no probabilities: give --threshold for the shares of failures and successes called one"]
    notes: list[str] = []
    for figure, what, kind in (
        (model.false_positive_rate, "false positives", "failure"),
        (model.true_positive_rate, "true positives", "success"),
    ):
        if math.isnan(figure.value):
            why = f"no {kind} labelled" if not figure.n_undefined else f"no labelled {kind} has a score"
            notes.append(f"{why}: {what} undefined")
    return notes


def _order(judged: Sequence[Judged], model: Figures, basis: Basis) -> list[str]:
    notes: list[str] = []
    kinds = (
        ("value order", model.value_order_correlation, basis.rising(judged), "success"),
        ("value order on failures", model.value_order_failures, basis.failed(judged), "failure"),
    )
    for what, figure, rows, kind in kinds:
        if math.isnan(figure.value):
            why = "the model's values never change in them" if rows else f"no {kind} labelled"
            notes.append(f"{why}: {what} undefined (n={len(rows)})")
        elif figure.n_undefined:
            notes.append(f"{what}: {figure.n_undefined} of {figure.n + figure.n_undefined} episodes have no order")
    lengths = sorted(len(j.readings[MODEL].values) for j in basis.rising(judged))
    if lengths and lengths[len(lengths) // 2] <= 8:
        typical = lengths[len(lengths) // 2]
        spread = 1 / math.sqrt(max(1, typical - 1))
        notes.append(
            f"half of the episodes have {typical} values or fewer: by chance the order of one varies by ±{spread:.2f}"
        )
    return notes


def _progress(judged: Sequence[Judged], model: Figures, figures: Mapping[str, Figures]) -> list[str]:
    if math.isnan(model.progress_error.value):
        gives = any(not math.isnan(j.readings[MODEL].final) for j in judged)
        return [f"{'no progress is known' if gives else 'the model gives no progress'}: progress error undefined"]
    clock = figures["clock"].progress_error.value
    if clock < 1e-6:
        return ["no progress is recorded, t / T of successes stands in: the clock has no progress error"]
    return []


def _instructions(judged: Sequence[Judged], model: Figures, counts: Mapping[str, int], basis: Basis) -> list[str]:
    tried = any("wrong_instruction" in j.readings for j in judged)
    if not tried:
        return ["one task only: there is no wrong instruction to try"]
    notes: list[str] = []
    if math.isnan(model.instruction_accuracy.value):
        why = "no success labelled" if not basis.rising(judged) else "no success has a value under both instructions"
        notes.append(f"{why}: right against wrong instruction undefined")
    if math.isnan(model.instruction_margin.value):
        asked = any(j.under for j in judged)
        why = (
            "no video has a score under its own and another instruction"
            if asked
            else "no episode was asked all of them"
        )
        notes.append(f"{why}: instruction margin undefined (see --confusion)")
    return notes


def _qualities(judged: Sequence[Judged], model: Figures, basis: Basis) -> list[str]:
    names = sorted({j.quality for j in judged if j.quality})
    unplaced = [name for name in names if name not in basis.levels]
    notes: list[str] = []
    if unplaced:
        notes.append(f"qualities without a place in the order ({', '.join(unplaced)}) are not ranked: --quality-order")
    if math.isnan(model.quality_ranking.value):
        why = "no quality is recorded"
        if names:
            why = "no task has episodes of two qualities, or the model scores them all alike"
        notes.append(f"{why}: quality ranking undefined")
    return notes
