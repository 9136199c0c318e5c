"""Episodes whose outcome a person is asked for."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ...core.batch import TrajectoryBatch
from .metrics import EpisodeRecord
from .spot_labels import EPISODES, LABELS, QUESTIONS, load_episode, read_labels, save_episode, write_questions

REMEMBERED = 200
"""Number of episodes that are remembered for a label to come."""


class SpotChecks:
    """Questions to a person about the outcome of some episodes of every rollout.

    Args:
        ask_random: Number of episodes per rollout that are drawn at random. They enter the false-positive rate.
        ask_doubtful: Number of episodes per rollout whose score is nearest to the threshold. They serve retraining
            only, unless their outcome is known anyway.
        labels: File with the labels; None reads ``labels.jsonl`` in the folder of the watch.
        seed: Random seed of the draws.

    Raises:
        ValueError: If a number of episodes is negative.
    """

    def __init__(self, ask_random: int = 0, ask_doubtful: int = 0, labels: str | None = None, seed: int = 0) -> None:
        if ask_random < 0 or ask_doubtful < 0:
            raise ValueError(f"ask_random {ask_random}, ask_doubtful {ask_doubtful}: expected at least 0 episodes each")
        self.ask_random, self.ask_doubtful = ask_random, ask_doubtful
        self.labels, self.seed = labels, seed
        self._folder = Path()
        self._asked: dict[str, EpisodeRecord] = {}

    def open(self, folder: Path) -> None:
        """Set the folder that episodes are written to.

        Args:
            folder: Folder of the watch.
        """
        self._folder = folder

    @property
    def labels_file(self) -> Path:
        """File that a person writes the labels to."""
        return self._folder / LABELS if self.labels is None else Path(self.labels)

    @property
    def advice(self) -> str:
        """What a user can do where no outcome is known."""
        if self.ask_random:
            return f"label the episodes of {self._folder / QUESTIONS} in {self.labels_file}"
        return "give HackingWatch an outcome, or ask a person: ask_random"

    def ask(
        self,
        rows: TrajectoryBatch,
        records: Sequence[EpisodeRecord],
        threshold: float | int,
        number: int,
        rank: int = 0,
    ) -> list[EpisodeRecord]:
        """Draw episodes of a rollout and write them for a person to look at.

        Args:
            rows: Finished episodes of the rollout on this process.
            records: Record of each episode.
            threshold: Smallest score that claims a success.
            number: Number of the rollout, from 0.
            rank: Rank of this process.

        Returns:
            The records, with ``drawn`` set where a person is asked.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number * 1_009 + rank)
        drawn = draw_episodes(records, self.ask_random, self.ask_doubtful, threshold, generator)
        for index in drawn:
            save_episode(rows[index], self._folder / EPISODES, records[index].name)
        return [replace(record, drawn=drawn.get(index, "")) for index, record in enumerate(records)]

    def write(self, records: Sequence[EpisodeRecord]) -> None:
        """Add the drawn episodes to the list of those to label.

        Args:
            records: Records of a rollout on all processes.
        """
        questions = [
            {
                "episode": record.name,
                "drawn": record.drawn,
                "score": None if math.isnan(record.score) else record.score,
                "look_at": f"{EPISODES}/{record.name}.png",
            }
            for record in records
            if record.drawn
        ]
        if questions:
            write_questions(self._folder / QUESTIONS, questions)

    def read(self) -> dict[str, int]:
        """Read the labels.

        Returns:
            Name of the episode to its success, 0 or 1.

        Raises:
            ValueError: If a line is no label; the message names the file and the line.
        """
        return read_labels(self.labels_file)

    def remember(self, records: Sequence[EpisodeRecord], labels: Collection[str]) -> None:
        """Keep the records of drawn episodes for labels to come; beyond 200 the oldest go, unlabelled ones first.

        Args:
            records: Records of a rollout on all processes.
            labels: Names of the labelled episodes.
        """
        self._asked |= {record.name: record for record in records if record.drawn}
        spare = sorted(self._asked, key=lambda name: (name in labels, name))
        for name in spare[: max(0, len(self._asked) - REMEMBERED)]:
            del self._asked[name]

    def forget(self) -> None:
        """Forget all records, since a retrained reward model would score these episodes otherwise."""
        self._asked.clear()

    def labelled(self, records: Sequence[EpisodeRecord], labels: Mapping[str, int]) -> list[EpisodeRecord]:
        """Put labels into records, and add labelled episodes that are not among them.

        An episode whose outcome is known without a person counts like any other, whether it was drawn or not.

        Args:
            records: Records of the rollouts that metrics are computed over.
            labels: Name of the episode to its success, 0 or 1.
        """
        found = {r.name: r if math.isnan(r.success) else replace(r, drawn="") for r in records}
        found |= {name: r for name, r in self._asked.items() if name in labels and name not in found}
        return [replace(r, success=float(labels[name])) if name in labels else r for name, r in found.items()]

    def metrics(self, labels: Collection[str]) -> dict[str, float]:
        """Count the labels of episodes that were drawn (``labels``), and all others (``labels_unmatched``).

        Args:
            labels: Names of the labelled episodes.
        """
        matched = sum(name in self._asked for name in labels)
        return {"labels": float(matched), "labels_unmatched": float(len(labels) - matched)}

    def false_positives(
        self, labels: Mapping[str, int], threshold: float | int, known: Collection[str] = ()
    ) -> dict[str, TrajectoryBatch]:
        """Load the episodes that a person labelled as failures and the reward model takes for successes.

        Args:
            labels: Name of the episode to its success, 0 or 1.
            threshold: Smallest score that claims a success.
            known: Names of episodes that are not loaded.

        Returns:
            Name of the episode to a batch of one row.

        Raises:
            FileNotFoundError: If the file of an episode is missing.
        """
        wrong = [name for name, r in self._asked.items() if labels.get(name) == 0 and r.claimed(threshold)]
        return {name: load_episode(self._folder / EPISODES, name) for name in wrong if name not in known}

    def state_dict(self) -> dict[str, Any]:
        """Return the records of drawn episodes as plain values."""
        return {"asked": [asdict(record) for record in self._asked.values()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the values that ``state_dict`` returned.

        Args:
            state_dict: Values of a checkpoint; other keys are ignored.
        """
        self._asked = {r["name"]: EpisodeRecord(**r) for r in state_dict["asked"]}


def draw_episodes(
    records: Sequence[EpisodeRecord],
    ask_random: int,
    ask_doubtful: int,
    threshold: float | int,
    generator: torch.Generator,
) -> dict[int, str]:
    """Draw episodes at random, and of the others those whose score is nearest to the threshold.

    Args:
        records: Episodes of a rollout; one without a score is drawn at random only.
        ask_random: Number of episodes drawn at random.
        ask_doubtful: Number of episodes near the threshold.
        threshold: Smallest score that claims a success.
        generator: Random numbers of the draw.

    Returns:
        Index of the episode to ``"random"`` or ``"doubtful"``.
    """
    drawn = dict.fromkeys(torch.randperm(len(records), generator=generator)[:ask_random].tolist(), "random")
    doubtful = [i for i, record in enumerate(records) if i not in drawn and not math.isnan(record.score)]
    doubtful.sort(key=lambda index: abs(records[index].score - threshold))
    return drawn | dict.fromkeys(doubtful[:ask_doubtful], "doubtful")
