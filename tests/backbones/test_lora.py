"""Low-rank updates of the layers that are targeted, and the arguments of before that they are made of."""

from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from guerdon.backbones.lora import LoRA, lora_of


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj, self.lm_head = (nn.Linear(4, 4, dtype=torch.bfloat16) for _ in range(3))
        self.requires_grad_(False)

    def forward(self, x):
        return self.v_proj(self.q_proj(x))


def updated(**arguments: Any):
    decoder: Any = Decoder()
    LoRA(**arguments).add_to(decoder)
    return decoder, {name for name, module in decoder.named_modules() if isinstance(module, BaseTunerLayer)}


def test_the_targeted_layers_get_updates_in_float32_that_start_at_zero():
    decoder, layers = updated(rank=2)
    assert layers == {"q_proj", "v_proj"}, "every linear layer but the head of the language model"
    trained = {name: p for name, p in decoder.named_parameters() if p.requires_grad}
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert {tuple(p.shape) for p in trained.values()} == {(2, 4), (4, 2)}
    assert all(bool((p == 0).all()) == ("lora_B" in name) for name, p in trained.items())
    assert updated(rank=2, targets=["v_proj"])[1] == updated(rank=2, targets="v_proj")[1] == {"v_proj"}


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (3, 1.5)])
def test_the_update_is_scaled_by_alpha_over_rank(alpha, scale):
    decoder = updated(rank=2, alpha=alpha)[0].float()
    down, up = decoder.q_proj.lora_A["default"].weight, decoder.q_proj.lora_B["default"].weight
    nn.init.normal_(up)
    x = torch.randn(3, 4)
    wanted = decoder.q_proj.base_layer(x) + scale * x @ down.T @ up.T
    torch.testing.assert_close(decoder.q_proj(x), wanted)


def test_bad_settings_are_named():
    refused: list[dict[str, Any]] = [{"rank": -1}, {"alpha": 0}, {"dropout": 1.0}]
    for wrong in refused:
        with pytest.raises(ValueError, match="expected a rank of at least 0, a positive alpha and a dropout in"):
            LoRA(**wrong)
    with pytest.raises(ValueError, match=r"targets \['query'\]: expected 'all-linear' or some of .*'q_proj'"):
        LoRA(targets=["query"]).add_to(Decoder())


def test_a_rank_of_zero_trains_nothing():
    assert updated(rank=0)[1] == set()


def test_arguments_of_before_make_the_object():
    assert lora_of().rank == 0
    made = lora_of(lora_rank=4, lora_alpha=2, lora_dropout=0.1, lora_targets=["q_proj"])
    assert made.init_args == {"rank": 4, "alpha": 2, "dropout": 0.1, "targets": ["q_proj"]}


def test_a_model_without_linear_layers_is_named():
    with pytest.raises(ValueError, match=r"Sequential has no nn.Linear layer.*set lora to None"):
        LoRA(rank=2).add_to(nn.Sequential(nn.Conv1d(2, 2, 1)))
