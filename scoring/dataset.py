"""Offline scoring of a data set: one parquet row per recorded observation, resumable, bad episodes named."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..core.batch import TERMINATING, RewardEstimates, TrajectoryBatch, ValueEstimates, named_ends
from ..core.interfaces import Critic, Proposer, RewardModel
from ..core.opening import open_component
from ..datasets.episodes import BadEpisodeError, EpisodeDataset
from ..datasets.features import FeatureCache
from ..datasets.model_reader import model_reader, read_places
from ..datasets.opening import open_dataset
from ..datasets.reader import EpisodeReader
from .counters import Counters, model_counters, subtract_counters
from .ends import ENDS, priced_ends
from .parts import Part, join_parts, plan_parts, write_part
from .run import begin_run, run_identity, run_metadata
from .scores import COUNTERS, PARTS, SCORES, Scores, bad_episodes, bad_rows, episode_rows

Table = Any  # pyarrow ships no types


@dataclass(frozen=True, kw_only=True)
class ScoringReport:
    """Result of a scoring run."""

    path: Path
    """Path of the finished ``scores.parquet``."""
    episodes: int
    """Number of episodes in the data set."""
    bad: tuple[BadEpisodeError, ...]
    """Episodes that could not be scored."""
    resumed: int
    """Number of episodes that an earlier, interrupted run had scored already."""
    observations: int
    """Number of recorded observations of the episodes that were scored."""
    estimated: int
    """Number of these observations that have any estimate; 0 where the model abstained throughout."""
    counters: Counters
    """Counts of the model and its parts during the run (``abstained``, ``failures``); see `model_counters`."""


def score_dataset(
    model: RewardModel | Critic | str | Path,
    dataset: EpisodeDataset | str | Path,
    out: str | Path,
    *,
    batch_size: int = 8,
    part_size: int = 64,
    device: str = "auto",
    cache: str | Path | None = None,
    overwrite: bool = False,
    progress_bar: bool = True,
    trust: bool = False,
    proposer: Proposer | None = None,
    terminating: Sequence[str] | None = None,
) -> ScoringReport:
    """Score every episode of a data set into ``out/scores.parquet``.

    Each row is one recorded observation. Its columns:

    * ``progress`` and ``success`` at the observation.
    * ``reward`` of the step that leaves it, and the ``std`` of that reward; null at the last observation.
    * ``value`` of the observation and ``q`` of the logged action, for critics; null for reward models. There is no
      value after a termination.
    * ``valid``: True where anything is known. Where the model abstains, the numbers are null.
    * ``status``: "ok", or why the episode could not be scored; ``reason`` gives it in words. A bad episode keeps its
      rows, all null. An episode about which the model abstained throughout is "ok".

    The metadata of the schema hold hash and configuration of the model, version, data folder and time, the number of
    ``observations`` of the scored episodes, the number that are ``estimated``, and the ``counters`` of the model.

    Parts of ``part_size`` episodes are written to ``out/parts`` and joined at the end. The same call continues an
    interrupted run, and leaves a finished file of the same run as it is.

    Args:
        model: Reward model or critic, or the folder or repository that holds one; it is moved to the device and put
            in evaluation mode.
        dataset: Data set, or the folder that holds it.
        out: Folder of the scores.
        batch_size: Number of episodes in a forward pass.
        part_size: Number of episodes in a part.
        device: Device to compute on; "auto" takes a GPU where there is one.
        cache: Folder of frozen features or scaled frames; see `FeatureCache`.
        overwrite: Whether to replace scores of another model, data set or setting in ``out``.
        progress_bar: Whether to show a progress bar.
        trust: Whether code outside guerdon may run to open the model, where ``model`` is a folder.
        proposer: Source of the policy's chunks, for a critic that values observations by them. Its noise is the same
            for the same part, so that a continued run gives the same scores.
        terminating: Names of the ends after which a critic's value is left out; None takes `priced_ends` where
            ``model`` is a folder, else success and failure.

    Raises:
        OSError: If ``out`` cannot be written; before any work.
        ValueError: If ``out`` holds another run, the data set does not fit the model, or a critic lacks a proposer.
    """
    if batch_size < 1 or part_size < 1:
        raise ValueError(f"batch_size {batch_size}, part_size {part_size}: expected positive numbers")
    folder = Path(out)
    _require_writable(folder)
    data = dataset if isinstance(dataset, EpisodeDataset) else open_dataset(dataset)
    source, model_hash = "", None
    if isinstance(model, str | Path):
        source = str(model)
        model, opened = open_component(model, (RewardModel, Critic), "a reward model or a critic", "cpu", trust)
        model_hash = opened.get("hash")  # of the folder as it stands, whatever version wrote it
    if proposer is not None and isinstance(model, RewardModel):
        raise ValueError(f"a policy proposes chunks to critics, and {type(model).__name__} is a reward model")
    ends = _terminating(model, source, terminating)
    reader = model_reader(
        model,
        data,
        None if cache is None else FeatureCache(cache),
        TERMINATING if isinstance(model, RewardModel) else named_ends("terminating", ends),
    )
    identity = run_identity(model, data, part_size, proposer, ends, model_hash)
    metadata = run_metadata(identity, model, source)
    finished = begin_run(folder, metadata, overwrite)
    if finished is not None:
        return _report_finished(folder, finished)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    scorer = _Scorer(
        model=model.to(chosen).eval(), reader=reader, batch_size=batch_size, device=chosen, proposer=proposer
    )
    parts = plan_parts(folder, len(data), part_size)
    resumed = _write_parts(scorer, parts, progress_bar)
    joined = join_parts([part.file for part in parts], folder / SCORES, metadata)
    shutil.rmtree(folder / PARTS)
    return ScoringReport(
        path=folder / SCORES,
        episodes=len(data),
        bad=joined.bad,
        resumed=resumed,
        observations=joined.observations,
        estimated=joined.estimated,
        counters=joined.counters,
    )


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write scores to {folder}: {error.strerror}; choose another folder") from error


def _terminating(model: RewardModel | Critic, source: str, given: Sequence[str] | None) -> Sequence[str]:
    """Name the ends after which a critic's value is left out; none for a reward model."""
    if isinstance(model, RewardModel):
        return ()
    if given is not None:
        return given
    return priced_ends(source) if source else ENDS


def _report_finished(folder: Path, scores: Scores) -> ScoringReport:
    """Make the report of scores that an earlier run has finished."""
    episodes = int(scores.metadata["settings"]["episodes"])
    estimated, observations = scores.estimated
    return ScoringReport(
        path=folder / SCORES,
        episodes=episodes,
        bad=tuple(bad_episodes(scores.table)),
        resumed=episodes,
        observations=observations,
        estimated=estimated,
        counters=scores.counters,
    )


def _write_parts(scorer: "_Scorer", parts: Sequence[Part], progress_bar: bool) -> int:
    """Score and write the missing parts; return the number of episodes in the parts that were there."""
    resumed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes"))
    with Progress(*columns, TimeRemainingColumn(), disable=not progress_bar) as bar:
        task = bar.add_task("scoring", total=sum(len(part.places) for part in parts))
        for part in parts:
            if part.file.is_file():
                resumed += len(part.places)
            else:
                write_part(scorer.score(part), part.file)
            bar.update(task, advance=len(part.places))
    return resumed


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scorer:
    """Model on its device, with the reader of its data."""

    model: RewardModel | Critic
    reader: EpisodeReader
    batch_size: int
    device: str
    proposer: Proposer | None

    def score(self, part: Part) -> Table:
        """Score the episodes of a part, in order; the table's metadata hold what the model counted meanwhile."""
        before = model_counters(self.model)
        if self.proposer is not None:
            self.proposer.version = part.number
        starts = range(0, len(part.places), self.batch_size)
        table = pa.concat_tables(
            [rows for start in starts for rows in self._rows(part.places[start : start + self.batch_size])]
        )
        counted = subtract_counters(model_counters(self.model), before)
        return table.replace_schema_metadata({COUNTERS: json.dumps(counted)})

    def _rows(self, places: Sequence[int]) -> Iterator[Table]:
        """Score the episodes of a batch and yield the rows of each."""
        batch, found = read_places(self.reader, self.model, places)
        estimates = None if batch is None else self._estimate(batch)
        over = [] if batch is None else batch.terminated.tolist()
        row = 0
        for place, episode in found.items():
            if isinstance(episode, BadEpisodeError):
                yield bad_rows(episode, self.reader.dataset.summary(place).steps)
            elif estimates is not None:
                yield episode_rows(episode, estimates, row, over[row])
                row += 1

    def _estimate(self, batch: TrajectoryBatch) -> RewardEstimates | ValueEstimates:
        batch = batch.to(self.device)
        with torch.no_grad():
            if isinstance(self.model, RewardModel):
                return self.model(batch).to("cpu")
            try:
                return self.model(batch, self.proposer).to("cpu")
            except ValueError as error:
                if self.proposer is None and "proposer" in str(error):
                    raise ValueError(
                        f"{type(self.model).__name__} values observations by chunks of a policy: name it with --policy "
                        "DIR, or pass a proposer"
                    ) from error
                raise
