"""Identity of a scoring run: what its scores depend on, comparison with an earlier run, and continuation."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..backbones.model_inputs import inputs_of
from ..core.files import read_json, short_hash, write_json
from ..core.hub import class_path, describe, hash_component
from ..core.interfaces import Component, Proposer
from ..datasets.episodes import EpisodeDataset
from ..datasets.opening import recorded_files
from .scores import PARTS, SCORES, Scores, read_scores

RUN = "run.json"
"""File among the parts that holds the metadata of the run they belong to."""


def run_identity(
    model: Component,
    dataset: EpisodeDataset,
    part_size: int,
    proposer: Proposer | None = None,
    terminating: Sequence[str] = (),
    model_hash: str | None = None,
) -> dict[str, str]:
    """Collect everything that scores depend on.

    Args:
        model: Reward model or critic.
        dataset: Data set that is scored.
        part_size: Number of episodes in a part.
        proposer: Source of the policy's chunks, if any.
        terminating: Names of the ends after which a critic's value is left out.
        model_hash: Content hash of the folder the model was opened from; None hashes the model.

    Returns:
        ``model_hash``, ``data`` (the resolved folder), ``data_hash``, ``settings`` (JSON) and, of a proposer,
        ``policy_hash``.
    """
    path = Path(dataset.name)
    inputs = inputs_of(model)
    settings = {"part_size": part_size, "frames_every": inputs.frames_every, "frame_size": inputs.frame_size}
    settings |= {"cameras": list(inputs.cameras), "episodes": len(dataset)}
    if terminating:
        settings |= {"terminating": sorted(set(terminating))}
    identity = {
        "model_hash": hash_component(model) if model_hash is None else model_hash,
        "data": str(path.resolve()) if path.exists() else dataset.name,
        "data_hash": hash_recording(dataset),
        "settings": json.dumps(settings),
    }
    if isinstance(proposer, Component):
        identity["policy_hash"] = hash_component(proposer)
    return identity


def hash_recording(dataset: EpisodeDataset) -> str:
    """Hash the numbers, lengths and instructions of all episodes, and size and time of change of every recorded file.

    The files distinguish a data set that was recorded again from the one before, even with episodes of equal lengths.
    """
    digest = hashlib.sha256()
    for place in range(len(dataset)):
        summary = dataset.summary(place)
        digest.update(f"{summary.index} {summary.steps} {summary.instruction}\n".encode())
    path = Path(dataset.name)
    for file in recorded_files(path):
        state = file.stat()
        digest.update(f"{file.relative_to(path)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def fingerprint(identity: Mapping[str, str]) -> str:
    """Hash the identity of a run; two runs with the same fingerprint give the same scores."""
    return short_hash(dict(identity))


def run_metadata(identity: Mapping[str, str], model: Component, source: str = "") -> dict[str, str]:
    """Make the metadata of a score file: identity, fingerprint, model, version and time.

    Args:
        identity: Result of `run_identity`.
        model: Reward model or critic.
        source: Folder or repository it was opened from; empty for one in memory.
    """
    return {
        **identity,
        "fingerprint": fingerprint(identity),
        "class_path": class_path(type(model)),
        "configuration": json.dumps(describe(model)),
        "version": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": source,
    }


def begin_run(folder: Path, metadata: Mapping[str, str], overwrite: bool) -> Scores | None:
    """Begin a run in a folder, or continue an interrupted one.

    Args:
        folder: Folder of the scores.
        metadata: Result of `run_metadata`.
        overwrite: Replace what another run left.

    Returns:
        The scores where the same run is finished already, else None. Parts of the same run are kept, parts of another
        are removed.

    Raises:
        ValueError: If the folder holds another run and is not to be overwritten.
    """
    if (folder / SCORES).is_file():
        earlier = read_scores(folder)
        if earlier.metadata.get("fingerprint") == metadata["fingerprint"] and not overwrite:
            return earlier
        found = {**earlier.metadata, "settings": json.dumps(earlier.metadata["settings"])}
        _refuse_other(folder, found, metadata, overwrite)
    started = _metadata_of_parts(folder)
    same = started.get("fingerprint") == metadata["fingerprint"]
    if started and not same:
        _refuse_other(folder, started, metadata, overwrite)
    if overwrite or not same:
        for file in (folder / PARTS).glob("part-*.parquet"):
            file.unlink()
    (folder / PARTS).mkdir(exist_ok=True)
    write_json(folder / PARTS / RUN, dict(metadata))
    return None


def _metadata_of_parts(folder: Path) -> dict[str, str]:
    """Read the metadata of an interrupted run; empty where there is none, or its parts carry none."""
    file = folder / PARTS / RUN
    return read_json(file, "the metadata of a scoring run") if file.is_file() else {}


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
        f"{folder} holds scores of another run ({'; '.join(differ)}): choose another folder, or pass overwrite=True "
        "to replace them"
    )
