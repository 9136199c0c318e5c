"""Which episodes train and which judge: the recorded split, or one that keeps what belongs together on one side."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

VAL_FRACTION = 0.1
"""Share of families held out unless something else is said."""


@dataclass(frozen=True, kw_only=True)
class Kin:
    """What an episode may share with others."""

    index: int
    split: str = ""
    context: str = ""
    group: int | None = None


def choose_split(
    episodes: Sequence[Kin], train_split: str, val_split: str, val_fraction: float
) -> tuple[list[int], list[int]]:
    """Places of the training and of the validation episodes.

    Where episodes of both splits are recorded, that decides. Where only the training split is (most data sets name
    nothing else), or none at all, about ``val_fraction`` of its families are held out, a family being all episodes
    connected by a shared context or group (an initial state must not straddle the split), in the order of a hash of
    their names: the same episodes give the same split, everywhere.

    Raises:
        ValueError: If there is a recorded split but nothing in it to train on, or the fraction is not in [0, 1).
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
    sets: Sequence[Sequence[Kin]], train_split: str, val_split: str, val_fraction: float
) -> tuple[list[int], list[int]]:
    """Places, counted through all data sets, of the training and of the validation episodes; each set splits by itself.

    What is held out of a set is thus the same whether it is used alone or beside others: whoever judges a model by
    the ``"val"`` of one of them meets no episode that it was trained on. Beside others, a set that records splits but
    no training one only validates.

    Args:
        sets: The episodes of each data set, with the names and numbers they have there.
        train_split: See `choose_split`.
        val_split: See `choose_split`.
        val_fraction: See `choose_split`.

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


def in_split(episodes: Sequence[Kin], split: str, name: str) -> list[int]:
    """Places of the episodes of a split; empty takes all.

    ``"train"`` and ``"val"`` are those that `EpisodeData` makes by default, where the data set does not record both.

    Args:
        episodes: All that can be used.
        split: Name of the split.
        name: Of the data set, for the message.

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


def in_split_each(sets: Sequence[Sequence[Kin]], split: str, name: str) -> list[int]:
    """Places, counted through all data sets, of the episodes of a split; each set splits by itself, as in `split_each`.

    Args:
        sets: The episodes of each data set, with the names and numbers they have there.
        split: Name of the split; empty takes all.
        name: Of all sets together, for the message.

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


def _hold_out(episodes: Sequence[Kin], val_fraction: float) -> tuple[list[int], list[int]]:
    found = families(episodes)
    ordered = sorted(found, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    held_out = round(val_fraction * len(ordered))
    if val_fraction and len(ordered) > 1:
        held_out = min(max(held_out, 1), len(ordered) - 1)
    val = sorted(place for name in ordered[:held_out] for place in found[name])
    train = sorted(place for name in ordered[held_out:] for place in found[name])
    return train, val


def families(episodes: Sequence[Kin]) -> dict[str, list[int]]:
    """Episodes connected by contexts and groups, under the smallest name in each family."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    names: list[str] = []
    for episode in episodes:
        known = [f"context {episode.context}"] if episode.context else []
        known += [f"group {episode.group}"] if episode.group is not None else []
        known = known or [f"episode {episode.index}"]
        first, *rest = sorted(root(name) for name in known)
        for other in rest:
            parent[other] = first
        names.append(known[0])
    families: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        families.setdefault(root(name), []).append(place)
    return families
