"""Rules of the metrics: which episodes enter each of them, and its value for weights of these episodes."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ..core.metrics import mean_absolute_error, reliability_curve
from .metric import Sample, mean_sample
from .predictions import BLIND, MODEL, EpisodePredictions, MetricContext
from .weighted import (
    ordered_pairs,
    weighted_auroc,
    weighted_margin,
    weighted_mean_absolute,
    weighted_precision,
    weighted_tau_a,
    weighted_tau_b,
)

Episodes = Sequence[EpisodePredictions]

BINS = 15
"""Number of bins of the calibration error and the reliability curve."""


# --- order ----------------------------------------------------------------------------------------------------------


def order_on_successes(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Mean Spearman correlation of values with time, of episodes in which values should rise."""
    return _order(context.rising(episodes), name)


def order_on_failures(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Mean Spearman correlation of values with time, of failed episodes."""
    return _order(context.failed(episodes), name)


def _order(episodes: Episodes, name: str) -> Sample:
    used = [e for e in episodes if name in e.predictions]
    return mean_sample(used, [e.predictions[name].order for e in used], as_zero=True, chance=0.0)


# --- discrimination of outcomes -------------------------------------------------------------------------------------


def auroc(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Area under the ROC curve of the score, success from ½ on."""
    kept, score, success, missing = _scored(episodes, [e.predictions[name].score for e in episodes])
    return Sample(
        episodes=kept,
        compute=lambda weight: weighted_auroc(weight, score, success >= 0.5),
        missing=missing,
        chance=0.5,
    )


def average_precision(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Area under the precision-recall curve of the score, success from ½ on."""
    kept, score, success, missing = _scored(episodes, [e.predictions[name].score for e in episodes])
    positive = success >= 0.5
    return Sample(
        episodes=kept,
        compute=lambda weight: weighted_precision(weight, score, positive),
        missing=missing,
        chance=float(positive.mean()) if positive.any() and not positive.all() else math.nan,
    )


def pairwise_accuracy(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Share of the pairs of one task with different outcome that the summed reward orders rightly, ties ½."""
    return _pairs(episodes, name, ties=False)


def tie_rate(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Share of the pairs of one task with different outcome whose summed rewards are equal."""
    return _pairs(episodes, name, ties=True)


def false_positive_rate(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Share of the failures whose score reaches the threshold."""
    return _above_threshold(context.failed(episodes), name, context)


def true_positive_rate(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Share of the successes whose score reaches the threshold."""
    return _above_threshold([e for e in episodes if e.success >= 0.5], name, context)


def _scored(
    episodes: Episodes, scores: Sequence[float]
) -> tuple[list[EpisodePredictions], Float[np.ndarray, " n"], Float[np.ndarray, " n"], int]:
    """Return the episodes with score and outcome, both of these, and how many episodes lack one."""
    score, success = np.array(scores, float), np.array([e.success for e in episodes], float)
    known = ~(np.isnan(score) | np.isnan(success))
    kept = [e for e, k in zip(episodes, known, strict=True) if k]
    return kept, score[known], success[known], int((~known).sum())


def _pairs(episodes: Episodes, name: str, ties: bool) -> Sample:
    kept, total, success, missing = _scored(episodes, [e.predictions[name].total for e in episodes])
    task = np.unique([e.task for e in kept], return_inverse=True)[1].astype(np.int64)

    def compute(weight: np.ndarray) -> np.ndarray:
        wins, tied, pairs = ordered_pairs(weight, total, success, task)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, (tied if ties else wins) / pairs, math.nan)

    return Sample(episodes=kept, compute=compute, missing=missing, chance=math.nan if ties else 0.5)


def _above_threshold(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    used = [e for e in episodes if name in e.predictions]
    scores = [e.predictions[name].score for e in used]
    above = [math.nan if math.isnan(s + context.threshold) else float(s >= context.threshold) for s in scores]
    return mean_sample(used, above)


# --- calibration and progress ---------------------------------------------------------------------------------------


def calibration_error(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Compute the expected calibration error with `BINS` bins."""
    pieces = [calibration_pair(e, name, context) for e in episodes]
    used = [(e, p) for e, p in zip(episodes, pieces, strict=True) if len(p[0])]
    excess, count = np.zeros((len(used), BINS)), np.zeros(len(used))
    for row, (_, (probability, label)) in enumerate(used):
        # one episode's share of every bin; the metric is the sum over bins of the absolute total
        predicted, happened, members = reliability_curve(probability, label, BINS)
        excess[row] = np.where(members > 0, (predicted - happened) * members, 0.0)
        count[row] = len(probability)
    return Sample(
        episodes=[e for e, _ in used],
        compute=lambda weight: weighted_mean_absolute(weight, excess, count),
        missing=len(episodes) - len(used),
    )


def calibration_pair(
    episode: EpisodePredictions, name: str, context: MetricContext
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return probabilities and labels of an episode: of its single observations, or of the episode as a whole."""
    prediction = episode.predictions[name]
    if context.per_observation:
        known = ~np.isnan(prediction.probability)
        return prediction.probability[known], prediction.label[known]
    # a summed reward is no probability
    if math.isnan(episode.success) or math.isnan(prediction.score) or not 0 <= prediction.score <= 1:
        return np.zeros(0), np.zeros(0)
    return np.array([prediction.score]), np.array([episode.success])


def progress_error(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Mean absolute error of progress over an episode's labelled observations, then over episodes."""
    labelled = [e for e in episodes if len(e.predictions[name].target)]
    errors = [mean_absolute_error(e.predictions[name].progress, e.predictions[name].target) for e in labelled]
    found = mean_sample(labelled, errors)
    missing = found.missing + len(episodes) - len(labelled)
    return Sample(episodes=found.episodes, compute=found.compute, missing=missing)


# --- instructions ---------------------------------------------------------------------------------------------------


def instruction_accuracy(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Share of episodes that end higher under their own instruction than under a wrong one, ties ½."""
    pairs = _instruction_pairs(episodes, name, context)
    wins = [math.nan if math.isnan(a + b) else float(a > b) + 0.5 * (a == b) for _, a, b in pairs]
    return mean_sample([e for e, _, _ in pairs], wins, as_zero=True, chance=0.5)


def instruction_auroc(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Probability that an end under the right instruction is above an end under a wrong one, over all pairs."""
    pairs = _instruction_pairs(episodes, name, context)
    known = [(e, a, b) for e, a, b in pairs if not math.isnan(a + b)]
    scores = np.array([a for _, a, _ in known] + [b for _, _, b in known], float)
    right = np.arange(2 * len(known)) < len(known)
    return Sample(
        episodes=[e for e, _, _ in known],
        compute=lambda weight: weighted_auroc(np.concatenate([weight, weight], axis=1), scores, right),
        missing=len(pairs) - len(known),
        chance=0.5,
    )


def _instruction_pairs(
    episodes: Episodes, name: str, context: MetricContext
) -> list[tuple[EpisodePredictions, float, float]]:
    """Return episodes with their end under the right and under a wrong instruction; NaN where either is unknown."""
    pairs: list[tuple[EpisodePredictions, float, float]] = []
    for e in context.rising(episodes):
        wrong = e.predictions.get("wrong_instruction")
        if wrong is None or name not in (MODEL, *BLIND) or name not in e.predictions:
            pairs.append((e, math.nan, math.nan))
        elif name in BLIND:
            pairs.append((e, 0.5, 0.5))
        else:
            right = e.predictions[name]
            graded = not (math.isnan(right.final) or math.isnan(wrong.final))
            pairs.append((e, right.final, wrong.final) if graded else (e, right.score, wrong.score))
    return pairs


def instruction_margin(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Share of other instructions under which the videos of one task score lower than under their own, ties ½."""
    used = [e for e in episodes if e.task in e.under_instruction and name in (MODEL, *BLIND)]
    if not used:
        return mean_sample([], [])
    tasks = sorted({t for e in used for t in e.under_instruction})
    under = np.array([[e.under_instruction.get(t, math.nan) for t in tasks] for e in used], float)
    under = np.where(np.isnan(under) | (name not in BLIND), under, 0.5)
    own = tasks.index(used[0].task)
    kept = ~np.isnan(under[:, own])
    table = under[kept]
    return Sample(
        episodes=[e for e, k in zip(used, kept, strict=True) if k],
        compute=lambda weight: weighted_margin(weight, table, own),
        missing=int((~kept).sum()),
        chance=0.5,
    )


# --- quality --------------------------------------------------------------------------------------------------------


def quality_ranking(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Kendall's τ-b of final score and recorded quality, of the episodes of one task."""
    used, scores, levels, missing = _ranked(episodes, name, context)
    return Sample(
        episodes=used, compute=lambda weight: weighted_tau_b(weight, scores, levels), missing=missing, chance=0.0
    )


def robometer_tau_a(episodes: Episodes, name: str, context: MetricContext) -> Sample:
    """Robometer's policy ranking, τ-a over one episode per quality, of the episodes of one task."""
    used, scores, levels, missing = _ranked(episodes, name, context)
    return Sample(
        episodes=used, compute=lambda weight: weighted_tau_a(weight, scores, levels), missing=missing, chance=0.0
    )


def _ranked(
    episodes: Episodes, name: str, context: MetricContext
) -> tuple[list[EpisodePredictions], Float[np.ndarray, " n"], Float[np.ndarray, " n"], int]:
    """Return the episodes with final score and quality level, both of these, and how many episodes lack one."""
    used = [e for e in episodes if e.quality in context.levels and not math.isnan(e.predictions[name].final_score)]
    scores = np.array([e.predictions[name].final_score for e in used], float)
    levels = np.array([context.levels[e.quality] for e in used], float)
    return used, scores, levels, len(episodes) - len(used)
