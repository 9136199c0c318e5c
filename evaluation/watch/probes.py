"""Probes: clips altered so that a sound reward model pays nothing for them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...backbones.model_inputs import inputs_of
from ...core.batch import Sampled, TrajectoryBatch
from ...core.edit import reindex, truncate, without_outcome
from ...core.interfaces import RewardModel
from ...core.intervals import wilson_interval
from ...datasets.negatives import reverse_map, stall_map
from ...rewards.observation_encoder import ObservationEncoder
from .metrics import Score, best_and_last, score_kind, score_track

PROBES = ("frozen", "reversed", "other_task", "blank")
"""Names of all probes."""


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a reward model predicts for one kind of clip."""

    clips: int = 0
    """Number of clips."""
    paid: float = 0.0
    """Sum of the rewards over all clips."""
    honest: int = 0
    """Number of clips that succeed by the reward model's own prediction when they are played unaltered."""
    claimed: int = 0
    """Number of these that still succeed when altered."""

    @property
    def mean(self) -> float:
        """Mean return of a clip; NaN without one."""
        return self.paid / self.clips if self.clips else math.nan

    @property
    def share(self) -> float:
        """Share of the successful clips that still succeed when altered, in [0, 1]; NaN without one."""
        return self.claimed / self.honest if self.honest else math.nan

    def __add__(self, other: "ProbeResult") -> "ProbeResult":
        return ProbeResult(
            clips=self.clips + other.clips,
            paid=self.paid + other.paid,
            honest=self.honest + other.honest,
            claimed=self.claimed + other.claimed,
        )


@torch.no_grad()
def probe(
    reward: RewardModel,
    batch: TrajectoryBatch,
    threshold: float = 0.5,
    kind: Score | None = None,
    instructions: Sequence[str] = (),
    rows: int = 16,
) -> dict[str, ProbeResult]:
    """Evaluate a reward model on clips as they were, and altered so that they should earn nothing.

    A clip is a row up to the observation of its best score. Rows that succeed by the reward model's own prediction are
    taken first: on others a probe proves nothing.

    * ``"honest"``: the clip itself.
    * ``"frozen"``: its first observation at every step.
    * ``"reversed"``: played backwards. Since it begins where the success was, it claims a success only where the score
      rises to the threshold from below.
    * ``"other_task"``: with the instruction of another task.
    * ``"blank"``: black frames (or the mean feature, where the batch holds features only) and the mean state.

    Args:
        reward: Reward model in evaluation mode.
        batch: Rollouts, or clips with observations from their start on.
        threshold: Smallest score that claims a success.
        kind: Prediction that serves as the score; None takes `score_kind`.
        instructions: Instructions of other tasks; empty takes those of other rows.
        rows: Largest number of clips.

    Returns:
        A `ProbeResult` for ``"honest"`` and for each of `PROBES` that is defined. ``"other_task"`` is undefined where
        the reward model reads no instruction, or no other instruction is known.
    """
    batch = batch[batch.steps > 0]
    if not len(batch):
        return {}
    estimates = reward(batch)
    kind = kind or score_kind(estimates)
    track, valid = (part.to(batch.mask.device) for part in score_track(estimates, batch, kind))
    best, _ = best_and_last(track, valid)
    reached = _rises(track, valid, threshold)
    order = torch.where(best.isnan(), -torch.inf, best).argsort(descending=True)
    order = order[reached[order].int().argsort(descending=True, stable=True)][:rows]
    place = torch.where(valid, track, -torch.inf).argmax(1)
    length = torch.where(reached, place, batch.steps)[order]
    clips, reached = truncate(without_outcome(batch[order]), length), reached[order]
    found: dict[str, ProbeResult] = {}
    altered = {"honest": clips, **_altered(reward, clips, instructions)}
    for name, clip in altered.items():
        estimates = reward(clip)
        known = estimates.valid & clip.mask.to(estimates.valid.device)
        track, valid = (part.to(batch.mask.device) for part in score_track(estimates, clip, kind))
        claims = _rises(track, valid, threshold)
        if name not in ("honest", "reversed"):
            claims = torch.nan_to_num(best_and_last(track, valid)[0], nan=-math.inf) >= threshold
        found[name] = ProbeResult(
            clips=len(clip),
            paid=float(torch.where(known, estimates.rewards, 0.0).sum()),
            honest=int(reached.sum()),
            claimed=int((claims & reached).sum()),
        )
    return found


def probe_metrics(
    results: Mapping[str, ProbeResult], names: Sequence[str], level: float | int = 0.95
) -> dict[str, float]:
    """Compute the metrics of probes.

    Args:
        results: Results by name, those of the unaltered clips under ``"honest"``.
        names: Names of the probes.
        level: Confidence level of the lower bounds, in (0, 1).

    Returns:
        ``probe_honest`` and ``probe_<name>`` (mean return of a clip), ``probe_clips`` (number of successful clips),
        ``probe_<name>_claimed`` (share of them that still succeed) and ``probe_<name>_low`` (its lower Wilson bound).
        A metric that is undefined is NaN.
    """
    honest = results.get("honest", ProbeResult())
    metrics = {"probe_honest": honest.mean, "probe_clips": float(honest.honest)}
    for name in names:
        found = results.get(name, ProbeResult())
        metrics |= {f"probe_{name}": found.mean, f"probe_{name}_claimed": found.share}
        metrics[f"probe_{name}_low"] = wilson_interval(found.claimed, found.honest, level)[0]
    return metrics


def _rises(track: Float[Tensor, "B Tp1"], valid: Bool[Tensor, "B Tp1"], threshold: float | int) -> Bool[Tensor, " B"]:
    """Return which rows have a score that begins below the threshold and reaches it."""
    first = track.gather(1, valid.int().argmax(1)[:, None]).squeeze(1)
    return valid.any(1) & (first < threshold) & (valid & (track >= threshold)).any(1)


def _altered(reward: RewardModel, clips: TrajectoryBatch, instructions: Sequence[str]) -> dict[str, TrajectoryBatch]:
    """Return the clips altered by every probe that is defined."""
    observed, width = clips.observed.sum(1), clips.mask.shape[1] + 1
    altered = {
        "frozen": reindex(clips, stall_map(observed, torch.zeros_like(observed), width)),
        "reversed": reindex(clips, reverse_map(observed, width)),
    }
    known = list(dict.fromkeys(instructions or clips.instructions))
    others = [[text for text in known if text != own] for own in clips.instructions]
    reads = inputs_of(reward).instruction or getattr(reward, "inputs", None) is None
    if reads and all(others):
        texts = tuple(choice[row % len(choice)] for row, choice in enumerate(others))
        altered["other_task"] = replace(clips, instructions=texts, task=clips.task.max() + 1 + clips.task)
    altered["blank"] = _blank(reward, clips)
    return altered


def _blank(reward: RewardModel, clips: TrajectoryBatch) -> TrajectoryBatch:
    """Black frames and the mean state: that of the reward's training data where it knows it, else of the clips."""
    model = next((m for m in reward.modules() if isinstance(m, ObservationEncoder) and m.state_size), None)
    if model is not None and model.normalised and model.state_size == clips.state.shape[2]:
        state = model.state_mean.to(clips.state)
    else:
        state = clips.state[clips.observed].mean(0)
    frames = {name: replace(s, values=torch.zeros_like(s.values)) for name, s in clips.frames.items()}
    features: Mapping[str, Sampled] = {}
    if not frames:
        features = {
            name: replace(s, values=s.values[s.mask].mean(0).expand_as(s.values)) for name, s in clips.features.items()
        }
    return replace(clips, state=state.expand_as(clips.state), frames=frames, features=features)
