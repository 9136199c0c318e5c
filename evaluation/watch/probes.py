"""Clips that a reward should not pay: time frozen or reversed, another task's instruction, nothing to see."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...backbones.model_inputs import inputs_of
from ...core.batch import Labelled, Sampled, TrajectoryBatch
from ...core.interfaces import RewardModel
from ...core.intervals import wilson_interval
from ...datasets.negatives import reorder, reverse_map, stall_map
from ...rewards.observation_encoder import ObservationEncoder
from .metrics import Score, best_and_last, score_kind, score_track

PROBES = ("frozen", "reversed", "other_task", "blank")


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a reward says of one kind of clip."""

    clips: int = 0
    paid: float = 0.0
    """Sum of what it pays for the clips."""
    honest: int = 0
    """Clips that it says reach success when they are played as they were."""
    claimed: int = 0
    """Those of them that it still says succeed."""

    @property
    def mean(self) -> float:
        """Paid for a clip on average; NaN without one."""
        return self.paid / self.clips if self.clips else math.nan

    @property
    def share(self) -> float:
        """Claimed of the honest ones; NaN without one."""
        return self.claimed / self.honest if self.honest else math.nan

    def __add__(self, other: "Probed") -> "Probed":
        return Probed(
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
) -> dict[str, Probed]:
    """Ask a reward about clips as they were and as they should earn nothing.

    A clip is a row up to the observation of its best score. ``"honest"`` is the clip itself; ``"frozen"`` shows its
    first observation all the time; ``"reversed"`` plays it backwards, and claims success only where the score rises to
    the threshold from below, since it begins where success was; ``"other_task"`` tells another task's instruction;
    ``"blank"`` shows black frames (or the mean feature, where only features are there) and the mean state. Rows that
    reach success by the reward's own account are taken first: on others a probe can prove nothing.

    Args:
        reward: In evaluation mode.
        batch: Rollouts, or clips with observations from their start on.
        threshold: Score from which on the reward claims a success.
        kind: What the score is; None takes `score_kind`.
        instructions: Of other tasks; empty takes those of other rows.
        rows: At most this many clips.

    Returns:
        A `Probed` for ``"honest"`` and each of `PROBES` that is defined: ``"other_task"`` is not where the reward reads
        no instruction or there is no other one.
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
    clips, reached = _cut(batch[order], length), reached[order]
    found: dict[str, Probed] = {}
    altered = {"honest": clips, **_altered(reward, clips, instructions)}
    for name, clip in altered.items():
        said = reward(clip)
        known = said.valid & clip.mask.to(said.valid.device)
        track, valid = (part.to(batch.mask.device) for part in score_track(said, clip, kind))
        claims = _rises(track, valid, threshold)
        if name not in ("honest", "reversed"):
            claims = torch.nan_to_num(best_and_last(track, valid)[0], nan=-math.inf) >= threshold
        found[name] = Probed(
            clips=len(clip),
            paid=float(torch.where(known, said.rewards, 0.0).sum()),
            honest=int(reached.sum()),
            claimed=int((claims & reached).sum()),
        )
    return found


def probe_figures(probed: Mapping[str, Probed], names: Sequence[str], level: float | int = 0.95) -> dict[str, float]:
    """Figures to log: what ``"honest"`` and each named probe is paid on average, and how many claims outlive it.

    Returns:
        ``probe_honest`` and ``probe_<name>`` (mean pay of a clip), ``probe_clips`` (honest successes),
        ``probe_<name>_claimed`` (share of them still claimed) and ``probe_<name>_low`` (lower Wilson bound of that).
    """
    honest = probed.get("honest", Probed())
    figures = {"probe_honest": honest.mean, "probe_clips": float(honest.honest)}
    for name in names:
        found = probed.get(name, Probed())
        figures |= {f"probe_{name}": found.mean, f"probe_{name}_claimed": found.share}
        figures[f"probe_{name}_low"] = wilson_interval(found.claimed, found.honest, level)[0]
    return figures


def _rises(track: Float[Tensor, "B Tp1"], valid: Bool[Tensor, "B Tp1"], threshold: float | int) -> Bool[Tensor, " B"]:
    """Rows whose score begins below the threshold and reaches it."""
    first = track.gather(1, valid.int().argmax(1)[:, None]).squeeze(1)
    return valid.any(1) & (first < threshold) & (valid & (track >= threshold)).any(1)


def _cut(batch: TrajectoryBatch, length: Int[Tensor, " B"]) -> TrajectoryBatch:
    """The first steps of every row, with nothing but what a reward model may look at."""
    steps = int(length.max())
    mask = torch.arange(steps, device=batch.mask.device)[None] < length[:, None]

    def shown(sampled: Sampled) -> Sampled:
        late = sampled.step > length.to(sampled.step.device)[:, None]
        return Sampled(values=sampled.values, step=torch.where(late, -1, sampled.step))

    def known(track: Labelled) -> Labelled:
        early = torch.arange(steps + 1, device=mask.device)[None] <= length[:, None]
        return Labelled(values=track.values[:, : steps + 1], valid=track.valid[:, : steps + 1] & early)

    return TrajectoryBatch(
        state=batch.state[:, : steps + 1],
        actions=batch.actions[:, :steps],
        mask=mask,
        frames={name: shown(sampled) for name, sampled in batch.frames.items()},
        features={name: shown(sampled) for name, sampled in batch.features.items()},
        tracks={name: known(track) for name, track in batch.tracks.items()},
        instructions=batch.instructions,
        task=batch.task,
        last_observed=batch.last_observed | (length < batch.steps),
    )


def _altered(reward: RewardModel, clips: TrajectoryBatch, instructions: Sequence[str]) -> dict[str, TrajectoryBatch]:
    observed, width = clips.observed.sum(1), clips.mask.shape[1] + 1
    altered = {
        "frozen": reorder(clips, stall_map(observed, torch.zeros_like(observed), width)),
        "reversed": reorder(clips, reverse_map(observed, width)),
    }
    known = list(dict.fromkeys(instructions or clips.instructions))
    others = [[text for text in known if text != own] for own in clips.instructions]
    reads = inputs_of(reward).instruction or getattr(reward, "inputs", None) is None
    if reads and all(others):
        told = tuple(choice[row % len(choice)] for row, choice in enumerate(others))
        altered["other_task"] = replace(clips, instructions=told, task=clips.task.max() + 1 + clips.task)
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
