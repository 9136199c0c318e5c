"""Published models whose weights stay as they are: what is trained in them is saved, and nothing else is trained."""

from typing import Any, cast

from torch import nn


def save_trained_only(module: nn.Module) -> None:
    """Leave the frozen weights of ``module.model`` out of the module's state, and do not miss them when it is loaded.

    Saving raises a ValueError while a published weight requires a gradient, see `require_frozen`.

    Args:
        module: Module with a published model as ``model``, and the names of the weights trained in it as ``trained``.
    """
    module.register_state_dict_post_hook(_leave_out_frozen)
    module.register_load_state_dict_post_hook(_expect_no_frozen)


def freeze_or_train(module: nn.Module, requires_grad: bool) -> None:
    """Let the weights that are trained in a module require a gradient or not; the published weights never do.

    Args:
        module: Module with a published model as ``model``, and the names of the weights trained in it as ``trained``.
        requires_grad: Whether the weights that are trained require a gradient.
    """
    holder = cast(Any, module)
    for name, parameter in holder.model.named_parameters():
        parameter.requires_grad_(requires_grad and name in holder.trained)


def require_frozen(module: nn.Module) -> None:
    """Make sure that no published weight is being trained: it would be lost, as no file holds it.

    Args:
        module: Module with a published model as ``model``, and the names of the weights trained in it as ``trained``.

    Raises:
        ValueError: If a published weight requires a gradient.
    """
    holder = cast(Any, module)
    for name, parameter in holder.model.named_parameters():
        if parameter.requires_grad and name not in holder.trained:
            raise ValueError(
                f"expected the published weights of {holder.name} to be frozen, {name!r} requires a gradient: they are "
                "not saved, so what they learn would be lost. requires_grad_(True) of a module around the model "
                "unfreezes them: call requires_grad_ of the model itself, or freeze and unfreeze parts with "
                "frozen_parts of PolicyAdam; train low-rank updates (lora) to adapt the model"
            )


def _leave_out_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    require_frozen(module)
    kept = {f"{prefix}model.{name}" for name in cast(Any, module).trained}
    for key in [k for k in state if k.startswith(f"{prefix}model.") and k not in kept]:
        del state[key]


def _expect_no_frozen(module: nn.Module, wrong: Any) -> None:
    holder = cast(Any, module)
    frozen = {f"model.{n}" for n in holder.model.state_dict()} - {f"model.{n}" for n in holder.trained}

    def ours(key: str) -> bool:
        parts = key.split(".")
        return any(".".join(parts[i:]) in frozen for i in range(len(parts)))

    wrong.missing_keys[:] = [key for key in wrong.missing_keys if not ours(key)]


__all__ = ["freeze_or_train", "require_frozen", "save_trained_only"]
