"""What other programs say of our data sets: ``lerobot-doctor``, and ``lerobot`` as a trainer uses it.

Usage: python benchmarks/lerobot_checks.py [NAME …]; names of data sets leave out the others

Set GUERDON_LEROBOT_DOCTOR to the program ``lerobot-doctor`` (0.2.0) and GUERDON_LEROBOT_PYTHON to a Python that has
``lerobot[dataset]`` (0.6.1), each in an environment of its own, for example with Python 3.12. A check whose program is
not named is left out.

Checked are data sets of ``guerdon collect`` and one in which much is unknown. Two copies are spoilt, so that the checks
are seen to fail: a NaN in a label, and one more row per episode that repeats the last action. The tools of
``lerobot-edit-dataset`` run on each, and guerdon reads what they leave. Prints tables and writes
benchmarks/results/lerobot_checks.json.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from guerdon import ArrayFrames, Column, End, Episode, LeRobotWriter, open_dataset
from guerdon.datasets.episodes import BadEpisodeError, readable
from guerdon.envs.collect import collect_dataset

HERE = Path(__file__).resolve().parent
DATA = Path("data") / "chunk-000" / "file-000.parquet"
META = Path("meta") / "episodes" / "chunk-000" / "file-000.parquet"


def unknown_set(folder: Path) -> None:
    """Write episodes of unknown outcome: two cameras, one slow, labels with gaps, a last observation not recorded."""
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder, fps=10, data_file_mb=0.001) as writer:
        for index in range(6):
            steps = 20 + 3 * index
            last = index != 2
            at, seen = np.arange(steps + 1), np.arange(steps + int(last))
            state = rng.random((steps + 1, 4)).astype(np.float32)
            state[-1] = state[-1] if last else state[-2]
            ground = rng.integers(0, 200, (1, 3, 8, 8)).repeat(8, 2).repeat(8, 3)
            pictures = (ground + at[:, None, None, None]).astype(np.uint8)
            slow = seen[::4]
            known = (rng.random(steps + 1) < 0.5) & (at < len(seen)) & (index != 4)
            progress = Column(values=np.where(known, at / steps, np.nan).astype(np.float32), valid=known)
            never = Column(values=np.full(steps + 1, np.nan, np.float32), valid=np.zeros(steps + 1, bool))
            frames = {"front": ArrayFrames(values=pictures[seen], step=seen)}
            frames["side"] = ArrayFrames(values=pictures[slow], step=slow)
            writer.add(
                Episode(
                    index=index,
                    state=state,
                    actions=rng.normal(size=(steps, 2)).astype(np.float32),
                    instruction=f"task {index % 2}",
                    end=End.CUT,
                    last_observed=last,
                    frames=frames,
                    labels={"progress": progress, "stage": never},
                    tracks={"tip": Column(values=rng.random((steps + 1, 3)), valid=at < len(seen))},
                )
            )


def with_nan(folder: Path) -> None:
    """Spoil a data set: a NaN in a label."""
    change(folder / DATA, lambda columns: columns["label.success"].__setitem__(3, float("nan")))


def with_repeat(folder: Path) -> None:
    """Spoil a data set of one file: every episode gets one more row, with the last action again."""
    table = pq.read_table(folder / DATA)
    owner = table["episode_index"].to_numpy()
    rows: list[int] = []
    for episode in np.unique(owner):
        rows += [*np.flatnonzero(owner == episode), np.flatnonzero(owner == episode)[-1]]
    columns = table.take(rows).to_pydict()
    owners = np.array(columns["episode_index"])
    step = np.concatenate([np.arange((owners == e).sum()) for e in np.unique(owners)])
    fps = json.loads((folder / "meta" / "info.json").read_text())["fps"]
    columns |= {"frame_index": step, "index": np.arange(len(step)), "timestamp": (step / fps).astype(np.float32)}
    pq.write_table(pa.table(columns, table.schema), folder / DATA)

    def longer(meta: dict[str, Any]) -> None:
        for name, more in (("length", 1), ("dataset_from_index", 0), ("dataset_to_index", 1)):
            grown = 0 if name == "length" else 1
            meta[name] = [value + grown * place + more for place, value in enumerate(meta[name])]

    change(folder / META, longer)
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["total_frames"] = len(step)
    (folder / "meta" / "info.json").write_text(json.dumps(info))


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    table = pq.read_table(path)
    columns = table.to_pydict()
    edit(columns)
    pq.write_table(pa.table(columns, table.schema), path)


def doctor(folder: Path) -> dict[str, Any] | None:
    """Return how many checks of ``lerobot-doctor`` passed, warned and failed, and what they say."""
    program = os.environ.get("GUERDON_LEROBOT_DOCTOR")
    if not program:
        return None
    done = subprocess.run([program, "check", str(folder), "--json"], capture_output=True, text=True)
    report = json.loads(done.stdout)
    messages = [message for check in report["checks"] for message in check["messages"]]
    said = [f"{m['severity']} {m['message']}" for m in messages if m["severity"] != "PASS"]
    counts = Counter(check["severity"] for check in report["checks"])
    return {"checks": ", ".join(f"{n} {kind}" for kind, n in counts.items()), "said": said}


def expected(folder: Path, target: Path) -> None:
    """Save what guerdon reads of the steps, for the comparison in the other environment."""
    dataset = open_dataset(folder)
    values: dict[str, np.ndarray] = {}
    for place in range(len(dataset)):
        episode = dataset[place]
        values |= {f"state/{place}": episode.state[: episode.steps], f"action/{place}": episode.actions}
        for camera, source in episode.frames.items():
            held = np.searchsorted(source.step, np.arange(episode.steps), side="right") - 1
            values[f"frames/{place}/{camera}"] = source.read(held)
    np.savez(target, allow_pickle=False, **values)


def lerobot(folder: Path, truth: Path, home: Path) -> dict[str, Any] | None:
    """Return what ``check_with_lerobot.py`` prints, and what guerdon reads of the edited data sets.

    Args:
        folder: Data set.
        truth: Data set that holds what should be seen; another one where the data set was spoilt.
        home: Folder for temporary files.
    """
    python = os.environ.get("GUERDON_LEROBOT_PYTHON")
    if not python:
        return None
    expected(truth, home / "expected.npz")
    edited = home / f"{folder.name}-edited"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "PYTHONPATH": ""}
    script = HERE / "lerobot_interop" / "check_with_lerobot.py"
    command = [python, str(script), str(folder), str(home / "expected.npz"), str(edited)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": [line for line in done.stderr.splitlines() if line.strip()][-1]}
    found = json.loads(done.stdout.splitlines()[-1])
    folders = sorted(path.parents[1] for path in edited.rglob("info.json"))
    return found | {"read back": {str(path.relative_to(edited)): read_back(path, folder) for path in folders}}


def read_back(edited: Path, folder: Path) -> dict[str, Any]:
    """Compare an edited data set with the episodes it was made of, by their actions."""
    before, after = open_dataset(folder), open_dataset(edited)
    sources = {episode.actions.tobytes(): episode for episode in (before[place] for place in range(len(before)))}
    found: Counter[str] = Counter()
    for episode in readable(after):
        if isinstance(episode, BadEpisodeError):
            found["refused"] += 1
            continue
        source = sources.get(episode.actions.tobytes())
        found["episodes"] += 1
        found["other steps"] += source is None
        found["claims a final observation"] += episode.last_observed
        found["other states"] += source is not None and not np.array_equal(
            episode.state[: episode.steps], source.state[: source.steps]
        )
        found["other outcome"] += source is not None and episode.success != source.success
    return dict(found)


def make_sets(home: Path) -> dict[str, Path]:
    """Write the data sets that are checked, and spoilt copies of the first."""
    folders = {"mujoco/reach": home / "reach"}
    collect_dataset("mujoco/reach", folders["mujoco/reach"], episodes=8, frames=True)
    if find_spec("metaworld"):
        folders["metaworld/push-v3"] = home / "push"
        collect_dataset("metaworld/push-v3", folders["metaworld/push-v3"], episodes=6, frames=True)
    folders["much unknown"] = home / "unknown"
    unknown_set(folders["much unknown"])
    for name, spoil in (("spoilt: NaN", with_nan), ("spoilt: repeated action", with_repeat)):
        folders[name] = home / name.split()[-1]
        shutil.copytree(home / "reach", folders[name])
        spoil(folders[name])
    return folders


def main() -> None:
    console = Console(width=160)
    target = HERE / "results" / "lerobot_checks.json"
    results: dict[str, dict[str, Any]] = json.loads(target.read_text()) if target.is_file() else {}
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*final observation")  # of the spoilt ones
        folders = make_sets(Path(home))
        for name in sys.argv[1:] or folders:
            truth = folders["mujoco/reach"] if name.startswith("spoilt") else folders[name]
            seen = lerobot(folders[name], truth, Path(home))
            results[name] = {"lerobot-doctor": doctor(folders[name]), "lerobot": seen}
            console.print(table_of(name, results[name]))
            target.write_text(json.dumps(results, indent=2) + "\n")


def table_of(name: str, result: dict[str, Any]) -> Table:
    """Make the table of one data set."""
    table = Table("program", "what", "found", title=name)
    if (said := result["lerobot-doctor"]) is not None:
        table.add_row("lerobot-doctor", "checks", said["checks"])
        for line in said["said"]:
            table.add_row("", "", line)
    for what, value in (result["lerobot"] or {}).items():
        table.add_row("lerobot", what, json.dumps(value))
    return table


if __name__ == "__main__":
    main()
