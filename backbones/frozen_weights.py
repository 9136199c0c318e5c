"""Saving of published models without their weights: the state of a module holds what is trained in it alone."""

from typing import Any, cast

from torch import nn


def save_trained_only(module: nn.Module) -> None:
    """Leave the frozen weights of ``module.model`` out of the module's state, and do not miss them when it is loaded.

    Args:
        module: Module with a published model as ``model``, and the names of the weights trained in it as ``trained``.
    """
    module.register_state_dict_post_hook(_leave_out_frozen)
    module.register_load_state_dict_post_hook(_expect_no_frozen)


def _leave_out_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
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


__all__ = ["save_trained_only"]
