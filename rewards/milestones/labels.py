"""Milestone labels of episodes and batches: steps that lead to a keyframe, and progress over the milestones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...core.arguments import folds
from ...core.batch import Labelled, TrajectoryBatch
from ...datasets.episodes import BadEpisodeError, Column, Episode
from ...datasets.labels import KINDS, LabelFactory, with_remaining_targets, with_success_targets
from .detection import MilestoneDetector, finite_array, milestone_progress, step_labels, unit_openness

MILESTONE, MILESTONE_PROGRESS = "milestone", "milestone_progress"
"""Names of the stored labels: y of each step (T,), and z of each observation (T+1,)."""

_OTHER_TASK = tuple(KINDS.index(name) for name in ("wrong_instruction", "cross_task"))


class MilestoneTracks:
    """Tracks of an episode in which milestones are found.

    Args:
        gripper: Name of the track of the gripper's openness; None, or an empty name (a command line has no None), for
            a robot without a gripper, where the path gives the milestones.
        hand: Name of the track of the end effector's position, in metres.
        gripper_range: Recorded values (closed, open) of the gripper, such as (0, 0.08) for a width in metres. None
            where it is an openness in 0 … 1, or where the detector has the range; see
            `guerdon.rewards.milestones.detection.unit_openness`.

    Raises:
        ValueError: If the range is not two different finite numbers.
    """

    def __init__(
        self,
        gripper: str | None = "gripper",
        hand: str = "end_effector",
        gripper_range: Sequence[float | int] | None = None,
    ) -> None:
        self.gripper, self.hand = gripper or None, hand
        self.gripper_range = None if gripper_range is None else tuple(gripper_range)
        if self.gripper_range is not None:
            unit_openness(np.array(self.gripper_range[:1], np.float64), self.gripper_range)

    def read(self, episode: Episode, made: int) -> tuple[np.ndarray | None, np.ndarray]:
        """Return the openness (N,), None for a robot without a gripper, and the position (N, 3) of the end effector.

        Args:
            episode: Episode with the tracks.
            made: N, observations that were really made.

        Raises:
            ValueError: If a track is missing, has gaps, or holds a value that is not finite or no openness.
        """
        wanted = [self.hand] if self.gripper is None else [self.gripper, self.hand]
        missing = [name for name in wanted if name not in episode.tracks]
        if missing:
            held = ", ".join(sorted(episode.tracks)) or "none"
            hint = "; for a robot without gripper pass gripper=None" if self.gripper in missing else ""
            raise ValueError(f"no track {' and none '.join(map(repr, missing))}: its tracks are {held}{hint}")
        for name in wanted:
            track = episode.tracks[name]
            if len(track.values) != episode.steps + 1:
                raise ValueError(f"track {name!r}: expected one entry per observation, got {len(track.values)}")
            gap = ~track.valid[:made]
            if gap.any():
                raise ValueError(f"track {name!r} is unknown at observation {int(np.argmax(gap))}: repair or remove it")
            finite_array(f"track {name!r}", track.values[:made], dimensions=1 if name == self.gripper else 2)
        openness = None if self.gripper is None else episode.tracks[self.gripper].values[:made]
        if openness is not None and self.gripper_range is not None:
            openness = unit_openness(openness, self.gripper_range)
        return openness, episode.tracks[self.hand].values[:made]


class MilestoneLabels(LabelFactory):
    """Label factory that adds the milestone labels of whole episodes as targets, and draws negatives.

    ``labels["milestone"]`` (B, T) is y, ``labels["progress"]`` (B, T+1) is z. Success and remaining-time targets are
    those of `LabelFactory`. A known failure (success 0) has label 0 at every step, and unknown progress unless
    ``failed_progress`` is ``"zero"``. Rows of an unknown or partial outcome (between 0 and 1) have no labels. With
    another task's instruction a row is 0 at every step. Where success is recorded as a flag, the first flag that is set
    is the success; a flag per step describes the observation after the step. An episode that begins in success has
    y = z = 1 throughout.

    Labels stored by `with_milestones` are used where a batch holds them. Windows need them, because a part of an
    episode does not show its milestones.

    Args:
        detector: Detector of the milestones; None takes the defaults.
        tracks: Tracks of gripper and end effector; None takes ``"gripper"`` and ``"end_effector"``. Its arguments may
            also be given here one by one, such as ``gripper_range=(0, 0.08)``.
        window: Number of steps labelled 1 up to a keyframe, at least 1; see `step_labels`.
        margin: Number of steps before those that stay unknown, at least 0; the paper has none.
        failed_progress: Progress of a known failure: unknown, or zero.
        rewind: Share of rows played forward to a random point and then backwards.
        wrong_instruction: Share of rows that get another instruction.
        cross_task: Share of rows that show the video of another task.
        other_instructions: Instructions that no recording fulfils, which are drawn as wrong ones too.
        assume_success: Treat episodes of unknown outcome as successes.

    Raises:
        ValueError: If an argument is out of its range, or both the tracks and the detector have a gripper range.
    """

    @folds(tracks=MilestoneTracks)
    def __init__(
        self,
        detector: MilestoneDetector | None = None,
        tracks: MilestoneTracks | None = None,
        window: int = 5,
        margin: int = 5,
        failed_progress: Literal["unknown", "zero"] = "unknown",
        rewind: float = 0.0,
        wrong_instruction: float = 0.0,
        cross_task: float = 0.0,
        other_instructions: list[str] | tuple[str, ...] = (),
        assume_success: bool = False,
    ) -> None:
        super().__init__(
            rewind=rewind,
            reverse=0.0,
            wrong_instruction=wrong_instruction,
            cross_task=cross_task,
            other_instructions=other_instructions,
            assume_success=assume_success,
        )
        step_labels(1, np.zeros(0), window=window, margin=margin)
        if failed_progress not in ("unknown", "zero"):
            raise ValueError(f"failed_progress is {failed_progress!r}: expected 'unknown' or 'zero'")
        self.detector = MilestoneDetector() if detector is None else detector
        self.tracks = MilestoneTracks() if tracks is None else tracks
        self.window, self.margin, self.failed_progress = window, margin, failed_progress
        given, detected = self.tracks.gripper_range, self.detector.gripper_range
        if given is not None and detected is not None:
            raise ValueError(f"gripper_range {given}, and the detector has {detected}: give one of them")

    def label(self, episode: Episode) -> dict[str, Column]:
        """Compute both labels of one episode.

        Args:
            episode: Whole episode with the tracks.

        Raises:
            BadEpisodeError: If a track of a success is missing, has gaps, or holds a value that is not finite or no
                openness, or recorded success is not one number per step or observation.
        """
        made = episode.steps + int(episode.last_observed)
        success = self._success_at(episode, made)
        try:
            found = self.detector(*self.tracks.read(episode, made), success) if success else None
        except ValueError as error:
            raise BadEpisodeError(episode.index, "track", str(error)) from error
        z, z_known = np.zeros(episode.steps + 1, np.float32), np.zeros(episode.steps + 1, bool)
        y, y_known = np.zeros(episode.steps, np.float32), np.zeros(episode.steps, bool)
        if found is not None:
            z[:made], z_known[:made] = milestone_progress(made, found.observations), True
            y, y_known = step_labels(episode.steps, found.keyframes, success, self.window, self.margin)
        elif success is not None:  # it begins in success: every step leaves it, and no path leads to it
            z[:made], z_known[:made], y[:], y_known[:] = 1, True, 1, True
        elif episode.success is not None and episode.success <= 0:
            y_known[:] = True
            z_known[:made] = self.failed_progress == "zero"
        return {MILESTONE: Column(values=y, valid=y_known), MILESTONE_PROGRESS: Column(values=z, valid=z_known)}

    def _success_at(self, episode: Episode, made: int) -> int | None:
        """Return the observation of a success: the first flagged one, else the last one made; None without success."""
        if not (self.assume_success if episode.success is None else episode.success >= 1):
            return None
        flags = episode.labels.get("success")
        if flags is not None:
            if flags.values.ndim != 1:
                shape = tuple(flags.values.shape)
                raise BadEpisodeError(
                    episode.index, "label", f"recorded success: expected one number each, got {shape}"
                )
            done = flags.valid & (flags.values >= 1)
            if len(done) == episode.steps:  # a flag per step: step t shows at observation t + 1
                done = np.append(False, done)
            if done[:made].any():
                return int(np.argmax(done))
        return made - 1

    def targets(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """Add the targets without drawing negatives.

        Raises:
            ValueError: If a row is a window without stored labels, or its tracks cannot be used.
        """
        batch = with_success_targets(batch, self.success_tail, self.assume_success)
        batch = with_remaining_targets(batch, self.assume_success)
        stored = [batch.labels.get(name) for name in (MILESTONE, MILESTONE_PROGRESS)]
        if stored[0] is None or stored[1] is None:
            stored = self._found(batch)
        step, progress = (
            Labelled(
                values=torch.where(valid, part.values.float(), 0.0),
                valid=valid,
            )
            for part, valid in (
                (part, part.valid & real)
                for part, real in zip(stored, (batch.mask, batch.made), strict=True)
                if part is not None
            )
        )
        kept = {name: label for name, label in batch.labels.items() if name != MILESTONE_PROGRESS}
        return replace(batch, labels={**kept, MILESTONE: step, "progress": progress})

    def _found(self, batch: TrajectoryBatch) -> list[Labelled | None]:
        partial = (batch.offset > 0) | (batch.steps < batch.length)
        if bool(partial.any()):
            raise ValueError(
                f"row {int(partial.nonzero()[0, 0])} is a window of an episode: milestones need all of it; set window "
                "to None, or store them in the episodes with with_milestones before cutting"
            )
        steps = batch.mask.shape[1]
        columns = {MILESTONE: (steps, batch.mask), MILESTONE_PROGRESS: (steps + 1, batch.observed)}
        values = {name: torch.zeros(len(batch), width) for name, (width, _) in columns.items()}
        known = {name: torch.zeros(len(batch), width, dtype=torch.bool) for name, (width, _) in columns.items()}
        for row in range(len(batch)):
            if not int(batch.steps[row]):
                continue
            for name, column in self.label(_episode_of(batch, row)).items():
                values[name][row, : len(column.values)] = torch.from_numpy(column.values)
                known[name][row, : len(column.valid)] = torch.from_numpy(column.valid)
        device = batch.mask.device
        return [Labelled(values=values[name].to(device), valid=known[name].to(device)) for name in columns]

    def draw(self, batch: TrajectoryBatch, generator: torch.Generator) -> tuple[TrajectoryBatch, dict[str, int]]:
        """Add targets and draw negatives; every step of a row with another task's instruction or video has label 0."""
        batch, counts = super().draw(batch, generator)
        kind = batch.labels["negative"].values[:, 0]
        other = torch.isin(kind, torch.tensor(_OTHER_TASK, device=kind.device))[:, None]
        label = batch.labels[MILESTONE]
        label = Labelled(
            values=torch.where(other, 0.0, label.values), valid=torch.where(other, batch.mask, label.valid)
        )
        return replace(batch, labels={**batch.labels, MILESTONE: label}), counts


def with_milestones(episode: Episode, labels: MilestoneLabels | None = None) -> Episode:
    """Store the milestone labels in an episode, so that windows of it keep them.

    Args:
        episode: Whole episode with tracks of the gripper and the end effector.
        labels: Factory of the labels; None takes the defaults.

    Raises:
        BadEpisodeError: If a track is missing, has gaps, or holds a value that is not finite or no openness.
    """
    found = (MilestoneLabels() if labels is None else labels).label(episode)
    return replace(episode, labels={**episode.labels, **found})


def _episode_of(batch: TrajectoryBatch, row: int) -> Episode:
    """Convert a whole row into an episode, without its frames."""
    steps = int(batch.steps[row])

    def columns(stored: Mapping[str, Labelled]) -> dict[str, Column]:
        cut: dict[str, Column] = {}
        for name, part in stored.items():
            width = steps + part.valid.shape[1] - batch.mask.shape[1]
            cut[name] = Column(values=_host(part.values[row, :width]), valid=_host(part.valid[row, :width]))
        return cut

    return Episode(
        index=int(batch.episode[row]),
        state=_host(batch.state[row, : steps + 1]),
        actions=_host(batch.actions[row, :steps]),
        last_observed=bool(batch.last_observed[row]),
        success=float(batch.success[row]) if bool(batch.success_known[row]) else None,
        labels=columns(batch.labels),
        tracks=columns(batch.tracks),
    )


def _host(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


__all__ = ["MILESTONE", "MILESTONE_PROGRESS", "MilestoneLabels", "MilestoneTracks", "with_milestones"]
