"""Run directories and configurations: what the ``fit``, ``sft`` and ``labels`` commands share."""

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..core.files import read_json, write_json

MODEL, CONFIG, CHECKPOINTS = "model", "config.yaml", "checkpoints"
_SAVED = f"{CHECKPOINTS}/model.json"
"""File of a run that names the checkpoint with the weights of its model."""
_CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """Folder of a training run, and what was there before the run."""

    folder: Path
    earlier: frozenset[Path]
    """Paths in the folder before the run."""
    made: tuple[Path, ...]
    """Folders that the run made, innermost first."""

    def take_back(self) -> None:
        """Remove everything that a run wrote which failed before its first update."""
        for path in set(self.folder.iterdir()) - self.earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.made:
            if not any(path.iterdir()):
                path.rmdir()


def make_run_directory(
    config: Path | None, out: Path | None, resumes: bool, continuing: str | None = None
) -> RunDirectory:
    """Make the directory of a run.

    Args:
        config: Configuration, whose name becomes part of the name of a new directory.
        out: Directory; None makes a new one under ``runs/``.
        resumes: Whether an earlier run in the directory is continued.
        continuing: Argument that would continue it, for the error; None names that of Lightning.

    Raises:
        FileExistsError: If the directory holds an earlier run that is not continued.
        OSError: If it cannot be made or written.
    """
    if out is None:
        # a second run within a second takes the next free name
        stem = Path("runs") / (config.stem if config else "run") / time.strftime("%Y%m%d-%H%M%S")
        out = next(p for n in range(1, 1000) if not (p := stem if n == 1 else Path(f"{stem}-{n}")).exists())
    elif (out / CONFIG).exists() and not resumes and "LOCAL_RANK" not in os.environ:
        how = continuing or f"--ckpt_path {out / CHECKPOINTS / 'last.ckpt'}"
        raise FileExistsError(f"{out} holds an earlier run: choose another --out, or go on with it: {how}")
    made = tuple(path for path in (out, *out.parents) if not path.exists())
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot make the run directory {out}: {error.strerror or error}; choose another --out"
        ) from error
    if not os.access(out, os.W_OK):
        raise PermissionError(f"cannot write into the run directory {out}: choose another --out")
    return RunDirectory(folder=out, earlier=frozenset(out.iterdir()), made=made)


def note_checkpoint(run: Path, checkpoint: Path, weights: Mapping[str, Tensor]) -> None:
    """Record which checkpoint holds the weights that a run saved as its model; none if they differ.

    Args:
        run: Run directory.
        checkpoint: Checkpoint that the weights were read from, or the last one.
        weights: State of the module whose component was saved.
    """
    state = _read(checkpoint)
    same = all(_equal(weights[name], value) for name, value in state["state_dict"].items() if name in weights)
    place = checkpoint.resolve()
    inside = place.is_relative_to(run.resolve())  # a run may be moved
    kept = str(place.relative_to(run.resolve()) if inside else place)
    step = state.get("global_step")
    write_json(run / _SAVED, {"checkpoint": kept if same else None, "global_step": step if same else None})


def trained_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint whose weights a run saved as its model; None where it kept none.

    A run that was interrupted before it saved a model has its newest checkpoint. A run of an earlier version, which
    recorded none, has the best one where a checkpoint callback monitored a metric, else the last one.

    Args:
        run: Run directory.
    """
    paths = (path for path in (run / CHECKPOINTS).glob("*.ckpt") if not path.name.startswith("."))
    kept = sorted(paths, key=lambda path: path.stat().st_mtime)
    if not (run / MODEL).is_dir():
        return kept[-1] if kept else None
    if (run / _SAVED).is_file():
        return _noted(run)
    lasts = [path for path in kept if path.name.startswith("last")] or kept
    if not lasts:
        return None
    last = lasts[-1]
    for state in _read(last).get("callbacks", {}).values():
        if isinstance(state, dict) and state.get("monitor") and state.get("best_model_path"):  # pyright: ignore
            best = Path(cast(dict[str, str], state)["best_model_path"])
            best = best if best.is_file() else run / CHECKPOINTS / best.name  # the run may have been moved
            if best.is_file():
                return best
    return last


def _noted(run: Path) -> Path | None:
    """Return the recorded checkpoint, unless it was removed or written again by a run that went on from it."""
    noted = read_json(run / _SAVED, "the checkpoint of the saved model")
    if noted["checkpoint"] is None:
        return None
    path = run / noted["checkpoint"]
    return path if path.is_file() and _read(path).get("global_step") == noted["global_step"] else None


def _read(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)


def _equal(one: Tensor, two: Tensor) -> bool:
    one, two = one.detach().cpu(), two.cpu()
    return one.shape == two.shape and bool(((one == two) | ((one != one) & (two != two))).all())


def resolve_config(name: str) -> Path:
    """Find a configuration by its path, or by the name of one that comes with guerdon.

    Raises:
        FileNotFoundError: If there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = _CONFIGS / (path.name if path.suffix else f"{path.name}.yaml")
    if packaged.is_file() and path.parent in (Path("."), Path("configs")):
        return packaged
    raise FileNotFoundError(f"no configuration {name}: expected a YAML file; {offered_configs()}")


def offered_configs() -> str:
    """List in words the configurations that come with guerdon."""
    return f"guerdon comes with {', '.join(sorted(path.stem for path in _CONFIGS.glob('*.yaml')))}"


def asks_only(arguments: Sequence[str]) -> bool:
    """Tell whether arguments ask for help or for the configuration only, so that nothing runs."""
    return any(a in ("-h", "--help") or a.startswith(("--help", "--print_config")) for a in arguments)


def tidy(message: str) -> str:
    """Reduce jsonargparse's account of every type it tried to what is wrong, in one line."""
    text = " ".join(message.split())
    for noise in (
        r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: ",
        r"- Expected a <class 'NoneType'> ?",
        r"- Type [^:]{1,120} expects a function or a callable class: .*?(?=Given value type|$)",
        r"- Expected a path but \S+ either not accessible or invalid ?",
        r"Given value type: <class '[\w.]*(?:NestedArg|Namespace)'> Given value: (?:NestedArg|Namespace)\(.*\)",
    ):
        text = re.sub(noise, "", text)
    text = re.sub(r"Given value type: <class '\w+'> Given value: ", "got ", text)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text).replace(": - ", ": ").replace("Parser key ", "")
    return re.sub(r"^(- )+", "", " ".join(text.split()))
