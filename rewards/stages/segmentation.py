"""Monotone segmentation: from probabilities that stages are complete to the stage of every observation.

Given is done[t, i] in [0, 1], the probability that stage i is complete at observation t. A path is the number of stages
complete at each observation, c_t in 0 … S. It starts at 0, never falls, and may end anywhere, so that a failed episode
need not pass through stages it never reached. Stages are completed in their order, so c_t = k means that stages
0 … k − 1 are complete and the others are not. With every answer taken as independent evidence,

    log P(answers at t | c_t = k) = Σ_{i<k} log done[t, i] + Σ_{i≥k} log(1 − done[t, i]).

All S answers count for every k, because likelihoods of different data cannot be compared. Up to a
constant it is Σ_{i<k} logit done[t, i], so a path with stage i first complete at observation τ_i scores
Σ_i Σ_{t≥τ_i} logit done[t, i], and only the order of the τ_i couples the stages.

The stage of an observation is min(c_t, S − 1): the first that is not complete, and the last one once all are.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core.interfaces import Component

CERTAIN = 1e-6
"""Smallest distance of a probability from 0 and 1, so that no single answer outweighs every other."""
_TIE = 1e-9  # scores are sums of float64; ones that differ by less are equal


class StagePath(Component):
    """Settings of the path of stages that is computed from probabilities of complete stages.

    Args:
        min_length: Number of observations a stage lasts at least, in whole episodes; see `monotone_completed`.
        threshold: Probability above which a stage is complete, in [0, 1), when only the past is known.
        hold: Number of evaluated observations in a row for which it must be, at least 1, when only the past is known.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, min_length: int = 1, threshold: float = 0.5, hold: int = 2) -> None:
        super().__init__()
        if min_length < 0 or not 0 <= threshold < 1 or hold < 1:
            raise ValueError(
                f"min_length {min_length}, threshold {threshold}, hold {hold}: expected at least 0, 0 <= threshold < 1 "
                "and at least 1"
            )
        self.min_length, self.threshold, self.hold = min_length, threshold, hold

    def completed(self, done: Float[Tensor, "T1 S"], valid: Bool[Tensor, " T1"], causal: bool) -> Int[Tensor, " T1"]:
        """Count the stages complete at each observation, 0 … S.

        Args:
            done: Probability that a stage is complete; where ``valid`` is False it may hold anything.
            valid: Observations that carry evidence.
            causal: Use the observations up to each one only, as `online_completed`; otherwise the whole episode,
                as `monotone_completed`.

        Raises:
            ValueError: If a probability that counts is outside [0, 1], or there is no stage.
        """
        if causal:
            return online_completed(done, valid, self.threshold, self.hold)
        return monotone_completed(done, valid, self.min_length)


def monotone_completed(
    done: Float[Tensor, "T1 S"], valid: Bool[Tensor, " T1"], min_length: int = 1
) -> Int[Tensor, " T1"]:
    """Count the complete stages at each observation, 0 … S, on the most likely path over the whole episode.

    Dynamic programming over the stages, O(T S). Among equally likely paths the one with the later transitions is taken.

    Args:
        done: Probability that a stage is complete; where ``valid`` is False it may hold anything.
        valid: True on observations that carry evidence.
        min_length: Number of observations that every stage lasts at least if it is entered and left, at least 0. The
            plan's last stage, and the one in which the episode breaks off, may be shorter. 0 lets several stages end
            between two observations, which suits observations far apart.

    Returns:
        (T+1,) int64, never falling, 0 at observation 0.

    Raises:
        ValueError: If a probability that counts is outside [0, 1], there is no stage, or ``min_length`` is negative.
    """
    _check(done, valid)
    if min_length < 0:
        raise ValueError(f"min_length is {min_length}: expected at least 0 observations")
    count, stages = done.shape
    evidence = torch.where(valid[:, None], done.double(), 0.5).clamp(CERTAIN, 1 - CERTAIN).logit()
    gain = torch.zeros(count + 1, stages, dtype=torch.float64, device=done.device)  # row T+1: never complete
    gain[:count] = evidence.flip(0).cumsum(0).flip(0)
    best = gain.new_full((stages, count + 1), -torch.inf)  # of stage i first complete at τ, and all before it
    first = max(1, _gap(0, stages, min_length))
    best[0, first:] = gain[first:, 0]
    best[0, count] = 0.0
    for i in range(1, stages):
        gap = _gap(i, stages, min_length)
        earlier = best[i - 1, :count].cummax(0).values
        best[i, gap:count] = earlier[: count - gap] + gain[gap:count, i] if gap < count else best[i, gap:count]
        best[i, count] = best[i - 1].max()
    completed = torch.zeros(count, dtype=torch.long, device=done.device)
    limit = count  # the last τ allowed by the stage after this one
    for i in reversed(range(stages)):
        reachable = best[i, : limit + 1]
        tau = int((reachable >= reachable.max() - _TIE).nonzero()[-1])
        completed[tau:] += 1
        limit = count if tau == count else tau - _gap(i, stages, min_length)
    return completed


def monotone_stages(done: Float[Tensor, "T1 S"], valid: Bool[Tensor, " T1"], min_length: int = 1) -> Int[Tensor, " T1"]:
    """Return the stage of each observation, 0 … S − 1, on the most likely path; see `monotone_completed`."""
    return monotone_completed(done, valid, min_length).clamp(max=done.shape[1] - 1)


def online_completed(
    done: Float[Tensor, "T1 S"], valid: Bool[Tensor, " T1"], threshold: float = 0.5, hold: int = 1
) -> Int[Tensor, " T1"]:
    """Count the complete stages at each observation, 0 … S, from the observations up to it and nothing later.

    A stage is complete once all before it are and its probability was above the threshold at ``hold`` known
    observations in a row, the present one included; it stays so. Several stages may be completed by one observation,
    and none by the first.

    Args:
        done: Probability that a stage is complete; where ``valid`` is False it may hold anything.
        valid: True on observations that carry evidence; the others neither complete a stage nor break a run.
        threshold: Probability that has to be exceeded, in [0, 1).
        hold: Number of known observations in a row, at least 1.

    Returns:
        (T+1,) int64, never falling, 0 at observation 0.

    Raises:
        ValueError: If a probability that counts is outside [0, 1], there is no stage, or an argument is out of range.
    """
    _check(done, valid)
    if not 0 <= threshold < 1 or hold < 1:
        raise ValueError(f"threshold {threshold}, hold {hold}: expected 0 <= threshold < 1 and hold of at least 1")
    count, stages = done.shape
    known = valid.nonzero().flatten()
    above = (done[known] > threshold).int()
    before = torch.nn.functional.pad(above.cumsum(0), (0, 0, hold, 0))[: len(known)]  # the count ``hold`` answers ago
    held = torch.zeros(count, stages, dtype=torch.bool, device=done.device)
    held[known] = above.cumsum(0) - before == hold
    completed = torch.zeros(count, dtype=torch.long, device=done.device)
    tau = 1
    for i in range(stages):
        reached = held[tau:, i].nonzero()
        if not len(reached):
            break
        tau += int(reached[0])
        completed[tau:] += 1
    return completed


def online_stages(
    done: Float[Tensor, "T1 S"], valid: Bool[Tensor, " T1"], threshold: float = 0.5, hold: int = 1
) -> Int[Tensor, " T1"]:
    """Return the stage of each observation, 0 … S − 1, from the past alone; see `online_completed`."""
    return online_completed(done, valid, threshold, hold).clamp(max=done.shape[1] - 1)


def _gap(stage: int, stages: int, min_length: int) -> int:
    """Return the smallest number of observations from the completion of the stage before to that of this one."""
    return 0 if stage == stages - 1 else min_length


def _check(done: Tensor, valid: Tensor) -> None:
    if done.shape[1] < 1:
        raise ValueError("done has no stage: expected (T+1, S) with S of at least 1")
    wrong = valid[:, None] & ~((done >= 0) & (done <= 1))
    if bool(wrong.any()):
        t, i = (int(k) for k in wrong.nonzero()[0])
        raise ValueError(
            f"done[{t}, {i}] is {float(done[t, i])}: expected a probability in [0, 1]; mark the observation invalid if "
            "nothing is known"
        )


__all__ = ["CERTAIN", "StagePath", "monotone_completed", "monotone_stages", "online_completed", "online_stages"]
