"""Low-rank updates of a language model (Hu et al. 2021, arXiv:2106.09685); apart from others as peft imports slowly."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..core.interfaces import Component


class LoRA(Component):
    """Low-rank updates of linear layers, W + (α/r) B A with B = 0 at the start (Hu et al. 2021, Eq. 3).

    Args:
        rank: r, rank of the updates, at least 0; 0 trains nothing.
        alpha: α, scale of the updates, above 0; None takes 2 r.
        dropout: Probability with which an input of an update is left out in training, in [0, 1).
        targets: ``"all-linear"``, every linear layer of the language model; or last parts of their names, such as
            ``["q_proj", "v_proj"]``.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: int | None = None,
        dropout: float | int = 0.0,
        targets: str | list[str] = "all-linear",
    ) -> None:
        super().__init__()
        if rank < 0 or not 0 <= dropout < 1 or (alpha is not None and alpha <= 0):
            raise ValueError(
                f"rank {rank}, alpha {alpha}, dropout {dropout}: expected a rank of at least 0, a positive alpha and a "
                "dropout in [0, 1)"
            )
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets

    def add_to(self, decoder: Any) -> None:
        """Put trainable float32 updates into the linear layers of a language model that are targeted.

        Args:
            decoder: The language model.

        Raises:
            ValueError: If the model has no linear layer, or a target names none.
        """
        if not self.rank:
            return
        linear = [n for n, m in decoder.named_modules() if isinstance(m, nn.Linear) and not n.endswith("lm_head")]
        if not linear:
            raise ValueError(
                f"{type(decoder).__name__} has no nn.Linear layer, which low-rank updates need (GPT-2 uses "
                "Conv1D): set lora to None, or take a model with linear layers, such as Llama, Qwen or SmolLM2"
            )
        kinds = {n.rpartition(".")[2] for n in linear}
        targets = self.targets
        wanted = kinds if targets == "all-linear" else {targets} if isinstance(targets, str) else set(targets)
        if not wanted or not wanted <= kinds:
            raise ValueError(f"targets {targets!r}: expected 'all-linear' or some of {sorted(kinds)}")
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        config = LoraConfig(r=self.rank, lora_alpha=alpha, lora_dropout=self.dropout)
        config.target_modules = [n for n in linear if n.rpartition(".")[2] in wanted]
        inject_adapter_in_model(config, decoder)
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # small updates vanish in bfloat16


def adapter_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a module that hold low-rank updates.

    Args:
        module: Module, such as a policy.
    """
    return [part for part in module.modules() if isinstance(part, BaseTunerLayer)]


@contextmanager
def without_adapters(module: nn.Module) -> Generator[None]:
    """Compute with the base weights of a module within the block, without its low-rank updates.

    Args:
        module: Module, such as a policy.
    """
    layers = [part for part in module.modules() if isinstance(part, BaseTunerLayer) and not part.disable_adapters]
    learns = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, before in learns:  # peft decides anew what learns
            parameter.requires_grad_(before)


def lora_of(
    lora_rank: int = 0,
    lora_alpha: int | None = None,
    lora_dropout: float | int = 0.0,
    lora_targets: str | list[str] = "all-linear",
) -> LoRA:
    """Make low-rank updates of the arguments that `VLM` took before version 0.2.

    Args:
        lora_rank: See `LoRA`.
        lora_alpha: See `LoRA`.
        lora_dropout: See `LoRA`.
        lora_targets: See `LoRA`.

    Raises:
        ValueError: If an argument is out of its range.
    """
    return LoRA(rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, targets=lora_targets)


__all__ = ["LoRA", "adapter_layers", "lora_of", "without_adapters"]
