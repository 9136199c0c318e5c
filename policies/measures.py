"""Metrics of a batch that the policy learned from."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.batch import Advantages
from .ranks import over_ranks


def explained_variance(advantages: Advantages) -> Float[Tensor, ""]:
    """Compute 1 − Var(returns − values)/Var(returns) over the valid decisions of all ranks.

    Args:
        advantages: Advantages of a batch, with its values.

    Returns:
        At most 1; NaN without values, or where the returns do not vary.
    """
    if advantages.values is None:
        return torch.tensor(float("nan"))
    known = torch.stack([advantages.returns, advantages.returns - advantages.values[:, :-1]], 2)[advantages.valid]
    returns, error = over_ranks(known)[0].double().unbind(1)
    if len(returns) < 2 or bool(returns.max() == returns.min()):
        return torch.tensor(float("nan"))
    return (1 - error.var() / returns.var()).float()


__all__ = ["explained_variance"]
