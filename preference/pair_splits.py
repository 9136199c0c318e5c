"""Splits of preference pairs into training and validation, with no episode on both sides where that is possible."""

import warnings
from collections.abc import Sequence

from ..datasets.splits import connected, in_hash_order


def split_pairs(episodes: Sequence[tuple[int, int]], val_fraction: float) -> tuple[list[int], list[int]]:
    """Split pairs so that no episode is on both sides, where the pairs allow it.

    Pairs that share an episode, directly or through other pairs, form a group. Groups are held out in the order of a
    hash of their names, each as long as it fits into ``val_fraction`` of the pairs: the same pairs always give the same
    split. Where the groups are too large to hold out half of that share, pairs are held out one by one in such an order
    and a warning says how many of them share an episode with training pairs: their accuracy is then too good.

    Args:
        episodes: Episodes of the two segments of each pair.
        val_fraction: Share of the pairs to hold out, in [0, 1).

    Returns:
        Places of the training and of the validation pairs, ascending.

    Raises:
        ValueError: If the fraction is not in [0, 1).
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}: expected at least 0 and below 1")
    wanted = round(val_fraction * len(episodes))
    if val_fraction and len(episodes) > 1:
        wanted = min(max(wanted, 1), len(episodes) - 1)
    groups = connected([[f"episode {first}", f"episode {second}"] for first, second in episodes])
    held: list[int] = []
    for name in in_hash_order(groups):
        if len(held) + len(groups[name]) <= wanted:
            held += groups[name]
    if 2 * len(held) < wanted:
        order = in_hash_order(f"{place}: {first} {second}" for place, (first, second) in enumerate(episodes))
        held = [int(name.partition(":")[0]) for name in order[:wanted]]
        train = {number for place, pair in enumerate(episodes) if place not in set(held) for number in pair}
        shared = sum(not train.isdisjoint(episodes[place]) for place in held)
        warnings.warn(
            f"the pairs cannot be split without an episode on both sides: they form {len(groups)} connected groups, "
            f"the largest of {max(map(len, groups.values()))} pairs; {shared} of {len(held)} validation pairs share an "
            "episode with training pairs, so that their accuracy is too good; compare more episodes in fewer pairs "
            "each, or set val_fraction to 0",
            stacklevel=2,
        )
    chosen = set(held)
    return [place for place in range(len(episodes)) if place not in chosen], sorted(held)


__all__ = ["split_pairs"]
