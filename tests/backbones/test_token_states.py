"""Base of the token backbones: versions of weights, and what a subclass must write."""

from typing import Any

import pytest
import torch
from torch import nn

from guerdon.backbones.token_states import TokenBackbone
from guerdon.core.batch import Observation


class Rows(TokenBackbone):
    """Has one weight of several rows, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.arange(12.0).view(4, 3))
        self.register_buffer("scale", torch.ones(3))


def test_equal_weights_have_one_version_and_any_change_another():
    one, two = Rows(), Rows()
    version = one.version
    assert two.version == version and one.version == version
    changes = [
        lambda rows: rows[0, 0].add_(1e-6),
        lambda rows: rows.copy_(rows.flip(0)),  # the same numbers in another order
        lambda rows: rows[1].mul_(-1),
    ]
    found = {version}
    for change in changes:
        other = Rows()
        with torch.no_grad():
            change(other.rows)
        found.add(other.version)
    scaled: Any = Rows()
    scaled.scale[1] = 2.0
    assert len({*found, scaled.version}) == 5


def test_it_learns_while_a_weight_requires_a_gradient():
    backbone = Rows()
    assert backbone.learns
    backbone.requires_grad_(False)
    assert not backbone.learns


def test_a_subclass_writes_what_it_reads_and_encodes():
    seen = Observation(state=torch.zeros(1, 1))
    with pytest.raises(NotImplementedError, match="Rows reads nothing"):
        Rows().read(seen)
    with pytest.raises(NotImplementedError, match="Rows encodes nothing"):
        Rows()(seen)
