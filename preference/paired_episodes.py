"""Data module of logged episodes that are scored by a reward model and paired within their initial states."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import lightning
import torch

from ..core.batch import PreferencePairs, TrajectoryBatch
from ..core.edit import concat
from ..core.interfaces import RewardModel
from ..core.sizes import DataSizes
from ..datasets.episodes import BadEpisodeError
from ..datasets.module import EpisodeData
from .pairs import START_TOLERANCE, RowScores, pairs_of_scores, row_scores
from .rules import PairRule


@dataclass(frozen=True, kw_only=True)
class PlacedPair:
    """Two episodes of a data set by their places, the chosen one first."""

    chosen: int
    """Place of the better episode."""
    rejected: int
    """Place of the worse one."""
    reason: str
    """Why the pair was made."""


class PairedEpisodes(lightning.LightningDataModule):
    """Preference pairs of logged episodes, such as several attempts of a robot from each of some initial states.

    Every episode is scored once by a reward model. Pairs are made within a group: episodes of one task that begin in
    one initial state. Training and validation episodes are those of the data module, which never splits an initial
    state, so no trajectory is on both sides. A batch holds some of the pairs, and its episodes are read when it is
    asked for.

    Args:
        episodes: Data module of the episodes; its windows, targets and negatives are not used.
        reward: Reward model that scores whole episodes; it is frozen.
        rule: Which episodes of an initial state are paired; None takes the best against the worst.
        pairs_per_batch: Number of pairs whose episodes are in memory at once.
        start_tolerance: Largest difference of the first states of one group, per number; None does not compare them, as
            for a real robot whose initial states are one by name only.

    Raises:
        ValueError: If the number of pairs is below 1.
    """

    def __init__(
        self,
        episodes: EpisodeData,
        reward: RewardModel,
        rule: PairRule | None = None,
        pairs_per_batch: int = 64,
        start_tolerance: float | None = START_TOLERANCE,
    ) -> None:
        super().__init__()
        if pairs_per_batch < 1:
            raise ValueError(f"pairs_per_batch {pairs_per_batch}: expected at least one pair")
        self.episodes, self.reward = episodes, reward.requires_grad_(False).eval()
        self.rule = PairRule() if rule is None else rule
        self.pairs_per_batch, self.start_tolerance = pairs_per_batch, start_tolerance
        self.pairs: dict[str, list[PlacedPair]] = {}
        """Pairs of the splits ``train`` and ``val``, once they are set up."""

    @property
    def sizes(self) -> DataSizes:
        """Widths of the states, actions and cached features of the episodes."""
        return self.episodes.sizes

    def setup(self, stage: str) -> None:
        """Score all episodes, and make the pairs.

        Raises:
            ValueError: If no pair can be made of the training episodes, or episodes of one group differ in task or
                initial state.
        """
        if self.pairs:
            return
        self.episodes.setup(stage)
        self.pairs = {split: self._paired(split) for split in ("train", "val")}

    @torch.no_grad()
    def _paired(self, split: Literal["train", "val"]) -> list[PlacedPair]:
        rows: dict[tuple[int, int], list[tuple[int, TrajectoryBatch, RowScores]]] = {}
        for place in self.episodes.places[split]:
            try:
                batch = self.episodes.whole([place])
            except BadEpisodeError as error:
                warnings.warn(f"left out: {error} ({error.status})", stacklevel=2)
                continue
            scored = row_scores(batch, self.reward(batch))
            start = int(batch.task[0]), int(batch.group[0])
            rows.setdefault(start, []).append((place, replace(batch, frames={}, features={}), scored))
        made: list[PlacedPair] = []
        left_out: Counter[str] = Counter()
        for group in rows.values():
            places = [place for place, _, _ in group]
            found = pairs_of_scores(
                concat([batch for _, batch, _ in group]),
                _joined([scored for _, _, scored in group]),
                self.rule,
                self.start_tolerance,
            )
            left_out.update(found.left_out)
            sides = zip(found.pairs.chosen.tolist(), found.pairs.rejected.tolist(), found.reasons, strict=True)
            made += [PlacedPair(chosen=places[a], rejected=places[b], reason=reason) for a, b, reason in sides]
        self._tell(split, made, len(rows), left_out)
        return made

    def _tell(self, split: str, made: list[PlacedPair], groups: int, left_out: Counter[str]) -> None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        if split == "train" and not made:
            raise ValueError(
                f"no pair can be made of the {groups} groups of training episodes{f': {reasons}' if reasons else ''}; "
                "a pair needs two episodes of one task from one initial state with different scores: record several "
                "attempts from each, or take a reward model that tells them apart"
            )
        trainer = cast(Any, self.trainer)
        if groups and (trainer is None or trainer.is_global_zero):
            print(f"{len(made)} {split} pairs of {groups} groups{f'; {reasons}' if reasons else ''}", file=sys.stderr)

    def train_dataloader(self) -> "PairBatches":
        """Make the sized stream of training pairs, in their order."""
        return PairBatches(self, "train")

    def val_dataloader(self) -> "PairBatches | list[Any]":
        """Make the sized stream of held-out pairs; empty where there are none."""
        return PairBatches(self, "val") if self.pairs["val"] else []


class PairBatches:
    """Sized stream of batches of pairs, read when they are asked for.

    Args:
        data: Data module with its pairs.
        split: Split of the pairs.
    """

    def __init__(self, data: PairedEpisodes, split: Literal["train", "val"]) -> None:
        self._data, self._pairs = data, data.pairs[split]

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._pairs) // self._data.pairs_per_batch)

    def __iter__(self) -> Iterator[PreferencePairs]:
        """Yield the batches."""
        size = self._data.pairs_per_batch
        for start in range(0, len(self._pairs), size):
            part = self._pairs[start : start + size]
            places = list(dict.fromkeys(place for pair in part for place in (pair.chosen, pair.rejected)))
            row = {place: number for number, place in enumerate(places)}
            ones = torch.ones(len(part))
            yield PreferencePairs(
                batch=self._data.episodes.whole(places),
                chosen=torch.tensor([row[pair.chosen] for pair in part]),
                rejected=torch.tensor([row[pair.rejected] for pair in part]),
                label=ones,
                weight=ones.clone(),
            )


def _joined(scored: Sequence[RowScores]) -> RowScores:
    """Join the scores of several episodes; a term that one of them lacks is unknown there."""
    names = dict.fromkeys(name for one in scored for name in one.terms)
    unknown = torch.full((1,), torch.nan)
    return RowScores(
        scores=torch.cat([one.scores for one in scored]),
        terms={name: torch.cat([one.terms.get(name, unknown.to(one.scores)) for one in scored]) for name in names},
    )


__all__ = ["PairBatches", "PairedEpisodes", "PlacedPair"]
