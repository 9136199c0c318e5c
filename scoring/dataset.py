"""Scores a data set offline: one parquet row per recorded observation, resumable, bad episodes named in their rows."""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__
from ..backbones.model_inputs import inputs_of
from ..core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates, named_ends
from ..core.files import replacing
from ..core.hub import SPEC, class_path, component_hash, describe, read_spec
from ..core.interfaces import Component, Critic, Proposer, RewardModel
from ..core.opening import open_component
from ..datasets.collate import Window
from ..datasets.episodes import BadEpisodeError, Episode, EpisodeDataset
from ..datasets.features import FeatureCache
from ..datasets.opening import open_dataset
from ..datasets.reader import EpisodeReader
from ..rewards.step_cost import StepCost
from .scores import (
    COUNTERS,
    PARTS,
    SCORES,
    Counters,
    added,
    bad_episodes,
    bad_rows,
    episode_rows,
    join_parts,
    read_scores,
    write_part,
)

RUN = "run.json"
_ENDS = ("success", "failure")
Table = Any  # pyarrow ships no types


@dataclass(frozen=True, kw_only=True)
class ScoringReport:
    """What a scoring run did."""

    path: Path
    """The finished ``scores.parquet``."""
    episodes: int
    bad: tuple[BadEpisodeError, ...]
    resumed: int
    """Episodes that an earlier, interrupted run had scored already."""
    observations: int
    """Recorded observations of the episodes that were scored."""
    estimated: int
    """Of these, how many have an estimate of anything: 0 where the model abstained throughout."""
    counters: Counters
    """What the model and its parts counted meanwhile (``abstained``, ``failures``); see `model_counters`."""


def model_reader(model: Component, dataset: EpisodeDataset, cache: FeatureCache | None = None) -> EpisodeReader:
    """A reader that gives a model what it was built for.

    Args:
        model: Its ``inputs`` say what it reads.
        dataset: Where from.
        cache: Keeps the features of a frozen encoder, or the frames at the model's size.

    Raises:
        ValueError: If the data set has another state width, or none of the model's cameras.
    """
    inputs = inputs_of(model)
    if inputs.state_size and inputs.state_size != dataset.state_size:
        raise ValueError(
            f"{type(model).__name__} reads a state of {inputs.state_size} numbers, {dataset.name} has "
            f"{dataset.state_size}: score the data it was made for, or train a model for this robot"
        )
    if inputs.cameras and not set(inputs.cameras) & set(dataset.cameras):
        raise ValueError(
            f"{type(model).__name__} looks through {', '.join(inputs.cameras)}; {dataset.name} has "
            f"{', '.join(dataset.cameras) or 'no camera'}"
        )
    useful = cache if inputs.encoder is not None or inputs.frame_size is not None else None
    return EpisodeReader(dataset, inputs.cameras, inputs.frame_size, inputs.encoder, useful)


def read_for(reader: EpisodeReader, model: Component, episodes: Sequence[Episode]) -> TrajectoryBatch:
    """Batch whole episodes as a model evaluates them: every ``frames_every``-th recorded frame.

    Raises:
        BadEpisodeError: If a video cannot be decoded.
    """
    return reader.batch([Window(episode=e) for e in episodes], None, inputs_of(model).frames_every)


def read_usable(
    reader: EpisodeReader, model: Component, places: Iterable[int], bad: dict[int, BadEpisodeError]
) -> tuple[TrajectoryBatch | None, list[Episode]]:
    """A batch of the episodes at some places without those whose video turns out to be broken; None without any left.

    Args:
        reader: Made by `model_reader`.
        model: Who reads them.
        places: Of episodes that could be read.
        bad: The broken ones are put in here, under their number.
    """
    episodes = [reader(place) for place in places]
    while episodes:
        try:
            return read_for(reader, model, episodes), episodes
        except BadEpisodeError as error:
            left = [e for e in episodes if e.index != error.index]
            if len(left) == len(episodes):
                raise
            bad[error.index], episodes = error, left
    return None, []


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

    A row stands for one recorded observation i: progress and success there, the reward of the step that leaves it and
    its ``std`` (null at the last observation, and wherever the model abstains), ``valid`` where anything is known,
    a critic's ``value`` there and its ``q`` of what was done (null for reward models; no value after a termination),
    ``status`` "ok" or why the episode could not be scored, ``reason`` in words. A bad episode keeps its rows, all null.
    The schema's metadata hold the model's hash and configuration, the version, the data folder and the time, how many
    ``observations`` the scored episodes have and how many are ``estimated``, and the model's ``counters``. An episode
    about which the model abstained throughout is "ok": it was scored, with nulls.

    Parts of ``part_size`` episodes are written to ``out/parts`` and joined at the end; an interrupted run goes on with
    the same call. A finished file of the same run is left as it is.

    Args:
        model: Any reward model or critic, or the folder or repository that holds one; put on the device in evaluation
            mode.
        dataset: Episodes, or the folder that holds them.
        out: Folder of the scores.
        batch_size: Episodes in a forward pass.
        part_size: Episodes in a part.
        device: Where to compute; "auto" takes a GPU where there is one.
        cache: Folder of frozen features or scaled frames, see `FeatureCache`.
        overwrite: Start again where ``out`` holds the scores of another model, data set or setting.
        progress_bar: Show one.
        trust: Open classes outside guerdon, where ``model`` is a folder.
        proposer: Chunks of the policy, for a critic that values observations by them. Its noise is the same for the
            same part, so that a run that goes on gives the same scores.
        terminating: Names of the ends after which a critic's value means nothing; None takes `priced_ends` where
            ``model`` is a folder, else success and failure.

    Raises:
        OSError: If ``out`` cannot be written; before any work.
        ValueError: If ``out`` holds another run, the data set does not fit the model, or a critic lacks a proposer.
    """
    if batch_size < 1 or part_size < 1:
        raise ValueError(f"batch_size {batch_size}, part_size {part_size}: expected positive numbers")
    folder = Path(out)
    _check_writable(folder)
    opened = dataset if isinstance(dataset, EpisodeDataset) else open_dataset(dataset)
    where = str(model) if isinstance(model, str | Path) else ""
    if isinstance(model, str | Path):
        model = open_component(model, (RewardModel, Critic), "a reward model or a critic", "cpu", trust)[0]
    if proposer is not None and isinstance(model, RewardModel):
        raise ValueError(f"a policy proposes chunks to critics, and {type(model).__name__} is a reward model")
    reader = model_reader(model, opened, None if cache is None else FeatureCache(cache))
    ends: Sequence[str] = ()  # of no consequence to a reward model
    if isinstance(model, Critic):
        ends = (priced_ends(where) if where else _ENDS) if terminating is None else terminating
        reader.terminating = named_ends("terminating", ends)
    metadata = run_metadata(model, opened, part_size, proposer, ends) | {"model": where}
    done = _begin(folder, metadata, overwrite)
    if done is not None:
        return done
    parts = range(0, len(opened), part_size)
    files = [folder / PARTS / f"part-{i:05d}.parquet" for i in range(len(parts))]
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = model.to(chosen).eval()
    resumed = 0
    with _bar(progress_bar) as bar:
        task = bar.add_task("scoring", total=len(opened))
        for number, (start, file) in enumerate(zip(parts, files, strict=True)):
            places = range(start, min(start + part_size, len(opened)))
            if file.is_file():
                resumed += len(places)
            else:
                before = model_counters(model)
                if proposer is not None:
                    proposer.version = number
                table = pa.concat_tables(list(_score(model, reader, places, batch_size, chosen, proposer)))
                counted = json.dumps(_since(before, model_counters(model)))
                write_part(table.replace_schema_metadata({COUNTERS: counted}), file)
            bar.update(task, advance=len(places))
    joined = join_parts(files, folder / SCORES, metadata)
    shutil.rmtree(folder / PARTS)
    return ScoringReport(
        path=folder / SCORES,
        episodes=len(opened),
        bad=joined.bad,
        resumed=resumed,
        observations=joined.observations,
        estimated=joined.estimated,
        counters=joined.counters,
    )


def priced_ends(model: str | Path) -> tuple[str, ...]:
    """Names of the ends after which the values of a saved critic mean nothing.

    These are the success and the failures of the step cost that ``guerdon fit`` left beside it; success and failure
    where another reward lies there, or none.

    Args:
        model: The critic's folder, or its run's.
    """
    folder = Path(model)
    for reward in (folder / "reward", folder.parent / "reward"):
        if (reward / SPEC).is_file() and (reward.parent == folder or folder.name == "model"):
            spec = read_spec(reward)
            if spec["class_path"] == class_path(StepCost):
                return ("success", *spec["init_args"]["failures"])
    return _ENDS


def model_counters(model: Component) -> dict[str, dict[str, int]]:
    """What a model and the modules in it count: attributes ``abstained`` and ``failures`` that are a ``Counter``.

    Returns:
        Class and attribute, such as ``ShuffledFrames.abstained`` → reason → how many since the model was made. Modules
        of one class are summed; empty counters are left out.
    """
    found: dict[str, dict[str, int]] = {}
    for module in model.modules():
        for name in ("abstained", "failures"):
            counter = getattr(module, name, None)
            if isinstance(counter, Counter):
                reasons = cast(Counter[object], counter).items()
                found = added(found, {f"{type(module).__name__}.{name}": {str(why): n for why, n in reasons}})
    return found


def _since(before: Counters, after: Counters) -> dict[str, dict[str, int]]:
    grown = {name: dict(Counter(counts) - Counter(before.get(name, {}))) for name, counts in after.items()}
    return {name: counts for name, counts in grown.items() if counts}


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write scores to {folder}: {error.strerror}; choose another folder") from error


def run_metadata(
    model: Component,
    dataset: EpisodeDataset,
    part_size: int,
    proposer: Proposer | None = None,
    terminating: Sequence[str] = (),
) -> dict[str, str]:
    """What the scores are of; two runs with the same ``fingerprint`` give the same scores."""
    model_hash = _hash(model)
    path = Path(dataset.name)
    data = str(path.resolve()) if path.exists() else dataset.name
    identity = hashlib.sha256()
    for place in range(len(dataset)):
        summary = dataset.summary(place)
        identity.update(f"{summary.index} {summary.steps} {summary.instruction}\n".encode())
    for file in _recording(path):  # one made again may have the same episodes and lengths; its files are not the same
        state = file.stat()
        identity.update(f"{file.relative_to(path)} {state.st_size} {state.st_mtime_ns}\n".encode())
    inputs = inputs_of(model)
    settings = {"part_size": part_size, "frames_every": inputs.frames_every, "frame_size": inputs.frame_size}
    settings |= {"cameras": list(inputs.cameras), "episodes": len(dataset)}
    if terminating:
        settings |= {"terminating": sorted(set(terminating))}
    named = {"model_hash": model_hash, "data": data, "settings": json.dumps(settings)}
    named |= {"data_hash": identity.hexdigest()[:16]}
    if isinstance(proposer, Component):
        named["policy_hash"] = _hash(proposer)
    return {
        **named,
        "fingerprint": hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16],
        "class_path": class_path(type(model)),
        "configuration": json.dumps(describe(model)),
        "version": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _hash(model: Component) -> str:
    with tempfile.TemporaryDirectory() as parent:
        model.save_pretrained(Path(parent) / "model")
        return component_hash(Path(parent) / "model")


def _recording(path: Path) -> list[Path]:
    """The files of a data set, without what else may lie in its folder (scores, a cache)."""
    if (path / "meta").is_dir():
        found = [f for name in ("meta", "data", "videos") for f in (path / name).rglob("*")]
    else:
        found = [*path.glob("*.jsonl"), *path.rglob("*.mp4")] if path.is_dir() else []
    return sorted(f for f in found if f.is_file())


def _begin(folder: Path, metadata: Mapping[str, str], overwrite: bool) -> ScoringReport | None:
    """Find out whether an earlier run is finished, goes on, or is another one."""
    scores, run = folder / SCORES, folder / PARTS / RUN
    if scores.is_file():
        earlier = read_scores(scores)
        if earlier.metadata.get("fingerprint") == metadata["fingerprint"] and not overwrite:
            count = int(earlier.metadata["settings"]["episodes"])
            estimated, observations = earlier.estimated
            return ScoringReport(
                path=scores,
                episodes=count,
                bad=tuple(bad_episodes(earlier.table)),
                resumed=count,
                observations=observations,
                estimated=estimated,
                counters=earlier.counters,
            )
        _refuse_other(
            folder, {**earlier.metadata, "settings": json.dumps(earlier.metadata["settings"])}, metadata, overwrite
        )
    if run.is_file():
        started = cast(dict[str, str], json.loads(run.read_text()))
        if started.get("fingerprint") != metadata["fingerprint"] or overwrite:
            _refuse_other(folder, started, metadata, overwrite)
            for file in (folder / PARTS).glob("part-*.parquet"):
                file.unlink()
    elif (folder / PARTS).is_dir():
        for file in (folder / PARTS).glob("part-*.parquet"):
            file.unlink()  # of a run nobody can name
    (folder / PARTS).mkdir(exist_ok=True)
    with replacing(run) as fresh:
        fresh.write_text(json.dumps(dict(metadata), indent=2))
    return None


def _refuse_other(folder: Path, earlier: Mapping[str, Any], now: Mapping[str, str], overwrite: bool) -> None:
    if overwrite:
        return
    names = {"model_hash": "model", "data": "data folder", "data_hash": "episodes", "settings": "settings"}
    differ = [
        f"{words}: {earlier.get(key)} there, {now.get(key)} now"
        for key, words in {**names, "policy_hash": "policy"}.items()
        if earlier.get(key) != now.get(key)
    ]
    raise ValueError(
        f"{folder} holds scores of another run ({'; '.join(differ)}): choose another folder, or overwrite it"
    )


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes"))
    return Progress(*columns, TimeRemainingColumn(), disable=not shown)


def _score(
    model: RewardModel | Critic,
    reader: EpisodeReader,
    places: Sequence[int],
    batch_size: int,
    device: str,
    proposer: Proposer | None,
) -> Iterator[Table]:
    """Tables of some episodes, in order."""
    for start in range(0, len(places), batch_size):
        found: dict[int, Episode | BadEpisodeError] = {}
        for place in places[start : start + batch_size]:
            try:
                found[place] = reader(place)
            except BadEpisodeError as error:
                found[place] = error
        scored = _forward(model, reader, found, device, proposer)
        for place, episode in found.items():
            if isinstance(episode, BadEpisodeError):
                yield bad_rows(episode, reader.dataset.summary(place).steps)
            else:
                yield scored[place]


def _forward(
    model: RewardModel | Critic,
    reader: EpisodeReader,
    found: dict[int, Episode | BadEpisodeError],
    device: str,
    proposer: Proposer | None,
) -> dict[int, Table]:
    """Score the good episodes together; one whose video breaks is marked and the rest goes on."""
    while True:
        good = {place: e for place, e in found.items() if isinstance(e, Episode)}
        if not good:
            return {}
        try:
            batch = read_for(reader, model, list(good.values()))
        except BadEpisodeError as error:
            broken = [place for place, e in good.items() if e.index == error.index]
            if not broken:
                raise
            found[broken[0]] = error
            continue
        with torch.no_grad():
            estimates = _estimate(model, batch.to(device), proposer).to("cpu")
        over = batch.terminated.tolist()
        return {p: episode_rows(e, estimates, row, over[row]) for row, (p, e) in enumerate(good.items())}


def _estimate(
    model: RewardModel | Critic, batch: TrajectoryBatch, proposer: Proposer | None
) -> RewardEstimates | ValueEstimates:
    if isinstance(model, RewardModel):
        return model(batch)
    try:
        return model(batch, proposer)
    except ValueError as error:
        if proposer is None and "proposer" in str(error):
            raise ValueError(
                f"{type(model).__name__} values observations by chunks of a policy: name it with --policy DIR, or pass "
                "a proposer"
            ) from error
        raise
