"""Splits into training and validation episodes: the recorded one, or one that keeps related episodes together."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

VAL_FRACTION = 0.1
"""Default share of families that is held out."""


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """What decides on which side of a split an episode lies."""

    index: int
    """Number of the episode."""
    split: str = ""
    """Recorded split; empty where none is recorded."""
    context: str = ""
    """Name of the initial state; empty where it is unknown."""
    group: int | None = None
    """Number of a group of related episodes; None where there is none."""


def choose_split(
    episodes: Sequence[SplitInfo], train_split: str, val_split: str, val_fraction: float
) -> tuple[list[int], list[int]]:
    """Choose training and validation episodes.

    Where episodes of both splits are recorded, the record decides. Where only the training split is recorded, or none,
    about ``val_fraction`` of its families are held out. A family is all episodes connected by a shared context or
    group, so that no initial state is on both sides. Families are held out in the order of a hash of their names: the
    same episodes always give the same split.

    Args:
        episodes: Split information of every episode.
        train_split: Name of the recorded training split.
        val_split: Name of the recorded validation split.
        val_fraction: Share of families to hold out, in [0, 1).

    Returns:
        Places of the training and of the validation episodes.

    Raises:
        ValueError: If splits are recorded but no training split, or the fraction is not in [0, 1).
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}: expected at least 0 and below 1")
    recorded = Counter(e.split for e in episodes if e.split)
    if recorded:
        if train_split not in recorded:
            held = ", ".join(f"{name} ({count})" for name, count in sorted(recorded.items()))
            raise ValueError(f"no episode of the split {train_split!r}: the data set has {held}; set train_split")
        training = [i for i, e in enumerate(episodes) if e.split == train_split]
        if val_split in recorded:
            return training, [i for i, e in enumerate(episodes) if e.split == val_split]
        inner = _hold_out([episodes[i] for i in training], val_fraction)
        return [training[i] for i in inner[0]], [training[i] for i in inner[1]]
    return _hold_out(episodes, val_fraction)


def split_each(
    sets: Sequence[Sequence[SplitInfo]], train_split: str, val_split: str, val_fraction: float
) -> tuple[list[int], list[int]]:
    """Choose training and validation episodes of several data sets, each of which is split by itself.

    What is held out of a data set is thus the same whether it is used alone or with others, so that evaluating on the
    ``"val"`` of one of them uses no episode of the training. Of several data sets, one that records splits but no
    training split is used for validation only.

    Args:
        sets: Split information of the episodes of each data set, with the names and numbers used there.
        train_split: See `choose_split`.
        val_split: See `choose_split`.
        val_fraction: See `choose_split`.

    Returns:
        Places of the training and of the validation episodes, counted through all data sets.

    Raises:
        ValueError: As `choose_split`; for several sets, if there is nothing to train on in any of them.
    """
    if len(sets) == 1:
        return choose_split(sets[0], train_split, val_split, val_fraction)
    train: list[int] = []
    val: list[int] = []
    start = 0
    for episodes in sets:
        recorded = {e.split for e in episodes if e.split}
        if recorded and train_split not in recorded:
            chosen = ([], [i for i, e in enumerate(episodes) if e.split == val_split])
        else:
            chosen = choose_split(episodes, train_split, val_split, val_fraction)
        train += [start + i for i in chosen[0]]
        val += [start + i for i in chosen[1]]
        start += len(episodes)
    if not train:
        held = ", ".join(sorted({e.split for episodes in sets for e in episodes if e.split})) or "none"
        raise ValueError(f"no episode of the split {train_split!r} in any data set: they have {held}; set train_split")
    return train, val


def in_split(episodes: Sequence[SplitInfo], split: str, name: str) -> list[int]:
    """Return the places of the episodes of a split.

    ``"train"`` and ``"val"`` are those that `EpisodeData` makes by default, where the data set does not record both.

    Args:
        episodes: Split information of every usable episode.
        split: Name of the split; empty takes all episodes.
        name: Name of the data set, for the error message.

    Raises:
        ValueError: If there is no such split.
    """
    if not split:
        return list(range(len(episodes)))
    recorded = sorted({e.split for e in episodes if e.split})
    if split in ("train", "val") and (not recorded or ("train" in recorded and "val" not in recorded)):
        return choose_split(episodes, "train", "val", VAL_FRACTION)[split == "val"]
    chosen = [i for i, e in enumerate(episodes) if e.split == split]
    if not chosen:
        held = f"it has {', '.join(recorded)}" if recorded else "no split is recorded: expected train or val"
        raise ValueError(f"{name} has no usable episode of the split {split!r}: {held}")
    return chosen


def in_split_each(sets: Sequence[Sequence[SplitInfo]], split: str, name: str) -> list[int]:
    """Return the places of the episodes of a split, counted through several data sets that are each split by itself.

    Args:
        sets: Split information of the episodes of each data set, with the names and numbers used there.
        split: Name of the split; empty takes all episodes.
        name: Name of all data sets together, for the error message.

    Raises:
        ValueError: As `in_split`; for several sets, if none of them has such a split.
    """
    found: list[int] = []
    refused: list[ValueError] = []
    start = 0
    for episodes in sets:
        try:
            found += [start + i for i in in_split(episodes, split, name)]
        except ValueError as error:
            refused.append(error)
        start += len(episodes)
    if refused and not found:
        if len(sets) == 1:
            raise refused[0]
        held = ", ".join(sorted({e.split for episodes in sets for e in episodes if e.split}))
        raise ValueError(f"{name} has no usable episode of the split {split!r}: it has {held}")
    return found


def _hold_out(episodes: Sequence[SplitInfo], val_fraction: float) -> tuple[list[int], list[int]]:
    found = families(episodes)
    ordered = in_hash_order(found)
    held_out = round(val_fraction * len(ordered))
    if val_fraction and len(ordered) > 1:
        held_out = min(max(held_out, 1), len(ordered) - 1)
    val = sorted(place for name in ordered[:held_out] for place in found[name])
    train = sorted(place for name in ordered[held_out:] for place in found[name])
    return train, val


def in_hash_order(names: Iterable[str]) -> list[str]:
    """Order names by their hashes: the same names always come in the same order, which has no meaning.

    Args:
        names: Names.
    """
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def families(episodes: Sequence[SplitInfo]) -> dict[str, list[int]]:
    """Group the places of episodes that contexts and groups connect, under the smallest name of each family."""
    names: list[list[str]] = []
    for episode in episodes:
        known = [f"context {episode.context}"] if episode.context else []
        known += [f"group {episode.group}"] if episode.group is not None else []
        names.append(known or [f"episode {episode.index}"])
    return connected(names)


def connected(names: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Group places that share a name, directly or through others, under the smallest name of each group.

    Args:
        names: Names of each place, at least one.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for known in names:
        first, *rest = sorted(root(name) for name in known)
        for other in rest:
            parent[other] = first
    found: dict[str, list[int]] = {}
    for place, known in enumerate(names):
        found.setdefault(root(known[0]), []).append(place)
    return found
