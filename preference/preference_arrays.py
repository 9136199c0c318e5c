"""Arrays of preference pairs with two segments each, in the layout of Preference Transformer's human labels."""

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core.batch import End, PreferencePairs, TrajectoryBatch
from ..core.files import replacing

_SEGMENTS = ("obs_1", "obs_2", "action_1", "action_2")
_LABELS = (0.0, 0.5, 1.0)


def read_preference_arrays(path: Path, label: Literal["human", "script"] = "human") -> PreferencePairs:
    """Read pairs of segments and their labels from an ``.npz`` file.

    The layout is that of the human labels of Preference Transformer (Kim et al. 2023, arXiv 2303.00957) as packed with
    inverse preference learning (Hejna & Sadigh 2023, arXiv 2305.15363): ``obs_1`` and ``obs_2`` (N, T, S), ``action_1``
    and ``action_2`` (N, T, A), ``label_human`` and ``label_script`` (N,) with the probability that segment **2** is
    preferred.

    Args:
        path: File with the arrays; pickled objects are refused.
        label: Whether to take the labels of people or those of the scripted rater.

    Returns:
        N pairs on a batch of 2N rows: row i is segment 1 of pair i and ``chosen``, row N + i segment 2 and
        ``rejected``; ``label`` is the probability that segment 1 is preferred, so 0 where people prefer segment 2. The
        files hold one observation an action, so the last observation repeats the one before (``last_observed`` is
        False). Segments that are alike to the last digit share an ``episode``, so that a split by episode keeps them
        on one side.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is cut or no archive, an array is missing or unknown, shapes disagree, a number is not
            finite, or a label is not 0, 0.5 or 1.
    """
    arrays = _load(path)
    name = f"label_{label}"
    _check_arrays(path, arrays, name)
    first, second = torch.from_numpy(arrays["obs_1"]), torch.from_numpy(arrays["obs_2"])
    state = torch.cat([first, second]).float()
    state = torch.cat([state, state[:, -1:]], 1)
    actions = torch.cat([torch.from_numpy(arrays["action_1"]), torch.from_numpy(arrays["action_2"])]).float()
    count, steps = first.shape[:2]
    flat = torch.cat([state.flatten(1), actions.flatten(1)], 1).numpy()
    distinct = np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1)
    batch = TrajectoryBatch(
        state=state,
        actions=actions,
        mask=torch.ones(2 * count, steps, dtype=torch.bool),
        last_observed=torch.zeros(2 * count, dtype=torch.bool),
        episode=torch.from_numpy(distinct).long(),
        group=torch.arange(2 * count),
        end=torch.full((2 * count,), int(End.CUT)),
    )
    return PreferencePairs(
        batch=batch,
        chosen=torch.arange(count),
        rejected=count + torch.arange(count),
        label=1 - torch.from_numpy(arrays[name]).float(),
        weight=torch.ones(count),
    )


def write_preference_arrays(pairs: PreferencePairs, path: Path, script: Tensor | None = None) -> None:
    """Write pairs of segments and their labels, whole or not at all, as `read_preference_arrays` reads them.

    Segment 1 is the chosen row and segment 2 the rejected one. The layout has room for the first T observations of a
    segment, one length for all, and no weights: an observation after the last action is left out.

    Args:
        pairs: Pairs with labels 0, 0.5 or 1 and weights of 1, on rows of one length.
        path: File that ends in ``.npz``.
        script: Labels (P,) of a scripted rater: probability that the chosen row is better; None leaves them out.

    Raises:
        ValueError: If lengths, labels or weights do not fit the layout, or the file has another ending.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected a name that ends in .npz")
    both = torch.cat([pairs.chosen, pairs.rejected])
    steps = pairs.batch.steps[both]
    if not len(pairs) or int(steps.min()) != int(steps.max()) or int(steps.max()) == 0:
        raise ValueError(
            f"rows of {sorted(set(steps.tolist()))} steps: expected pairs whose rows have one length of at least 1; "
            "cut the rows to one length with `guerdon.core.edit.truncate`"
        )
    if not bool((pairs.weight == 1).all()):
        raise ValueError("weights other than 1 have no place in these arrays: write the answers as JSON lines instead")
    labels = {"label_human": pairs.label, **({} if script is None else {"label_script": script})}
    length = int(steps[0])
    state, actions = pairs.batch.state, pairs.batch.actions
    arrays = {
        "obs_1": state[pairs.chosen, :length].numpy(force=True),
        "obs_2": state[pairs.rejected, :length].numpy(force=True),
        "action_1": actions[pairs.chosen, :length].numpy(force=True),
        "action_2": actions[pairs.rejected, :length].numpy(force=True),
        **{name: (1 - value.float()).numpy(force=True) for name, value in labels.items()},
    }
    for name in labels:
        _check_arrays(path, arrays, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        np.savez_compressed(fresh, allow_pickle=False, **arrays)


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected an .npz file with {', '.join(_SEGMENTS)}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path} is cut or no .npz file of plain arrays: {error}") from error


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], label: str) -> None:
    known = {*_SEGMENTS, "label_human", "label_script"}
    missing, unknown = [name for name in (*_SEGMENTS, label) if name not in arrays], sorted(set(arrays) - known)
    if missing or unknown:
        raise ValueError(
            f"{path}: missing arrays: {', '.join(missing) or 'none'}; unknown arrays: {', '.join(unknown) or 'none'}; "
            f"expected {', '.join(sorted(known))}"
        )
    shape = arrays["obs_1"].shape
    for name, array in arrays.items():
        wanted = shape[:1] if name.startswith("label") else (arrays[f"{name.split('_')[0]}_1"].shape)
        ranks = 1 if name.startswith("label") else 3
        fits = array.ndim == ranks and array.shape == wanted and array.shape[: min(ranks, 2)] == shape[: min(ranks, 2)]
        if not fits or 0 in array.shape[:2]:
            raise ValueError(
                f"{path}: {name} has shape {array.shape}, obs_1 {shape}: expected obs (N, T, S), action (N, T, A) and "
                "label (N,) with N and T of at least 1"
            )
        if array.dtype.kind not in "fiu" or not bool(np.isfinite(array).all()):
            raise ValueError(f"{path}: {name} ({array.dtype}): expected finite numbers in every entry")
        if name.startswith("label") and not bool(np.isin(array, _LABELS).all()):
            wrong = array[~np.isin(array, _LABELS)][0]
            raise ValueError(
                f"{path}: {name} holds {wrong}: expected 0 (segment 1 preferred), 0.5 (tie) or 1 (segment 2)"
            )


__all__ = ["read_preference_arrays", "write_preference_arrays"]
