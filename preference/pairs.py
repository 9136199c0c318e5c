"""Preference pairs of trajectories: which of two rows of a batch is the better one, and why."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def group_pairs(
    scores: Float[Tensor, " N"],
    group: Int[Tensor, " N"],
    top: int = 1,
    margin: float | int = 0.0,
    valid: Bool[Tensor, " N"] | None = None,
) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Pair the best rows of every group with its worst (GRAPE, arXiv 2411.19309, Algorithm 1: top-m × bottom-m).

    With k = min(``top``, valid rows of the group // 2), each of the k best is paired with each of the k worst, so that
    no row is on both sides. Rows with equal scores rank in their order.

    Args:
        scores: Score of each row.
        group: Group of each row: pairs are made within one group only.
        top: Largest number m of rows on either side, at least 1.
        margin: A pair is kept if its scores differ by more than this, at least 0; equal scores make no pair.
        valid: Rows that count; the others may hold NaN. None takes all.

    Returns:
        Rows that are chosen and rejected (P,): groups in the order of their first row, in a group by the rank of the
        chosen row, then of the rejected row.

    Raises:
        ValueError: If shapes differ, ``top`` or ``margin`` is out of range, or the score of a valid row is not finite.
    """
    if scores.dim() != 1 or group.shape != scores.shape or (valid is not None and valid.shape != scores.shape):
        got = [tuple(scores.shape), tuple(group.shape), *(() if valid is None else (tuple(valid.shape),))]
        raise ValueError(f"scores, group and valid: expected one shape (N,), got {', '.join(map(str, got))}")
    if top < 1 or not margin >= 0:
        raise ValueError(f"top {top}, margin {margin}: expected at least one row a side and a margin of at least 0")
    used = torch.ones_like(group, dtype=torch.bool) if valid is None else valid
    if not bool(scores[used].isfinite().all()):
        row = int((used & ~scores.isfinite()).nonzero()[0, 0])
        raise ValueError(
            f"the score of row {row} is {float(scores[row])}: expected a finite number; leave rows that cannot be "
            "scored out with valid"
        )
    values, members = scores.detach().cpu().double(), group.cpu()
    counted = used.cpu()
    chosen: list[int] = []
    rejected: list[int] = []
    for name in dict.fromkeys(members.tolist()):
        rows = ((members == name) & counted).nonzero()[:, 0]
        k = min(top, len(rows) // 2)
        ranked = rows[torch.argsort(values[rows], descending=True, stable=True)].tolist()
        for better in ranked[:k]:
            for worse in ranked[len(ranked) - k :]:
                if float(values[better] - values[worse]) > margin:
                    chosen.append(better)
                    rejected.append(worse)
    return (
        torch.tensor(chosen, dtype=torch.long, device=group.device),
        torch.tensor(rejected, dtype=torch.long, device=group.device),
    )


__all__ = ["group_pairs"]
