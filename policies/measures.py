"""Metrics of a batch that the policy learned from."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.batch import Advantages, TrajectoryBatch
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


@torch.no_grad()
def ratio_metrics(
    log_ratio: Float[Tensor, " M"], advantage: Float[Tensor, " M"], clip_low: float | int, clip_high: float | int
) -> dict[str, Float[Tensor, ""]]:
    """Compute how far a policy is from the one that acted, on a minibatch of decisions.

    Args:
        log_ratio: Logarithm of the ratio ρ of probabilities, new over acting policy.
        advantage: Advantage of each decision; only its sign counts.
        clip_low: Distance of the lower clip of the ratio from 1.
        clip_high: Distance of the upper clip of the ratio from 1.

    Returns:
        ``kl``: mean of ρ − 1 − log ρ, at least 0. ``log_ratio``: its mean. ``ratio_ess``: effective sample size of the
        ratios over the number of decisions, in (0, 1], 1 for equal ratios. ``clipped``: share of ratios outside of the
        clip. ``clipped_positive`` and ``clipped_negative``: shares of the decisions with a positive (negative)
        advantage whose ratio is above (below) the clip, so that they have no gradient; 0 without such decisions.
        ``ratio_error``: largest distance of a ratio from 1.
    """
    apart = log_ratio.expm1()
    above, below = apart > clip_high, apart < -clip_low
    better, worse = advantage > 0, advantage < 0
    flags = torch.stack([above | below, above & better, below & worse, better, worse]).float().mean(1)
    clipped, positive, negative, gains, losses = flags.unbind()
    scaled = (log_ratio - log_ratio.amax()).exp()  # a large ratio would overflow in the square
    smallest = torch.finfo(flags.dtype).tiny
    return {
        "kl": (apart - log_ratio).mean(),
        "log_ratio": log_ratio.mean(),
        "ratio_ess": scaled.mean().square() / scaled.square().mean(),
        "clipped": clipped,
        "clipped_positive": positive / gains.clamp(min=smallest),
        "clipped_negative": negative / losses.clamp(min=smallest),
        "ratio_error": apart.abs().amax(),
    }


def batch_metrics(minibatches: list[dict[str, Tensor]]) -> dict[str, Float[Tensor, ""]]:
    """Reduce the metrics of the minibatches of a batch: their mean over minibatches and ranks.

    Of ``ratio_error`` that of the first minibatch is taken, before any update, and under ``ratio_error_max`` the
    largest. If one is on an accelerator, the results are. Within ``joined_ranks`` all ranks must have metrics of the
    same names.

    Args:
        minibatches: Metrics of each minibatch by name; some may lack some.
    """
    names = list(dict.fromkeys(name for metrics in minibatches for name in metrics))
    if not names:
        return {}
    parts = [{name: value.float() for name, value in metrics.items()} for metrics in minibatches]
    places = [value.device for metrics in parts for value in metrics.values()]
    device = next((place for place in places if place.type != "cpu"), places[0])
    columns = {name: torch.stack([m[name].to(device) for m in parts if name in m]) for name in names}
    means = {name: column.mean() for name, column in columns.items()}
    if "ratio_error" in columns:
        means |= {"ratio_error": columns["ratio_error"][0], "ratio_error_max": columns["ratio_error"].amax()}
    ranks = over_ranks(torch.stack(list(means.values()))[None])[0]
    reduced = dict(zip(means, ranks.mean(0).unbind(), strict=True))
    if "ratio_error_max" in reduced:
        reduced["ratio_error_max"] = ranks[:, list(means).index("ratio_error_max")].amax()
    return reduced


def require_finite_advantages(batch: TrajectoryBatch, advantages: Advantages) -> None:
    """Refuse advantages that count as known and are not finite; within ``joined_ranks``, on all ranks at once.

    Otherwise one rank would end, and the others wait for it.

    Args:
        batch: Trajectories.
        advantages: Advantages of their decisions.

    Raises:
        ValueError: If an advantage or a return that counts as known is NaN or infinite, on any rank.
    """
    named = {"advantage": advantages.advantages, "return": advantages.returns}
    wrong = {name: advantages.valid & ~values.isfinite() for name, values in named.items()}
    every = over_ranks(torch.stack([where.any() for where in wrong.values()]).byte()[None])[0]
    if not bool(every.any()):
        return
    advice = "mark it invalid, or look for a critic or a reward that diverged"
    for name, where in wrong.items():
        if bool(where.any()):
            row, decision = (int(i) for i in where.nonzero()[0])
            raise ValueError(
                f"the {name} of decision {decision} of episode {int(batch.episode[row])} is "
                f"{float(named[name][row, decision])} and counts as known ({int(where.sum())} in all): {advice}"
            )
    rank = int(every.any(1).nonzero()[0])
    raise ValueError(f"an advantage or a return of rank {rank} is not finite and counts as known: {advice}")


__all__ = ["batch_metrics", "explained_variance", "ratio_metrics", "require_finite_advantages"]
