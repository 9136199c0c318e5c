"""Values on a backbone of their own."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from guerdon.backbones.encoder_tokens import EncoderBackbone
from guerdon.backbones.language import HashedText
from guerdon.backbones.latent_cache import LatentCache
from guerdon.backbones.lora import LoRA
from guerdon.backbones.token_learner import TokenLearner
from guerdon.backbones.token_states import ObservationTokens, TokenBackbone
from guerdon.backbones.vlm import VLM
from guerdon.backbones.vlm_tokens import VLMBackbone
from guerdon.core.batch import Observation, Sampled, TrajectoryBatch
from guerdon.core.sizes import DataSizes, take_sizes
from guerdon.critics.backbone_value import BackboneValue
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.rewards.recorded import RecordedSuccess
from guerdon.testing import check_critic
from guerdon.testing.vlm_checkpoints import tiny_vlm


class Words(TokenBackbone):
    """A token per word, with as much padding behind the longest text as it is told."""

    def __init__(self, padding: int = 0):
        super().__init__()
        self.width, self.padding = 8, padding
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(50, 8)

    def read(self, observation):
        return Observation(state=observation.state[:, :0], instructions=observation.instructions)

    def forward(self, observation):
        rows = [[len(word) for word in text.split()] for text in observation.instructions]
        longest = max(map(len, rows)) + self.padding
        numbers = torch.tensor([row + [49] * (longest - len(row)) for row in rows])
        mask = torch.arange(longest)[None] < torch.tensor([len(row) for row in rows])[:, None]
        return ObservationTokens(hidden=self.table(numbers), mask=mask)


def valued(backbone: TokenBackbone, **more: Any) -> Any:
    torch.manual_seed(1)
    return BackboneValue(backbone, hidden=(8,), token_learner=TokenLearner(width=8, heads=2), **more)


def state_value(**more: Any) -> Any:
    return valued(EncoderBackbone(state_size=3, text=HashedText(8), width=8, heads=2), **more)


def batch(rows=3, steps=4):
    generator = torch.Generator().manual_seed(0)
    return TrajectoryBatch(
        state=torch.randn(rows, steps + 1, 3, generator=generator),
        actions=torch.zeros(rows, steps, 2),
        mask=torch.arange(steps)[None] < torch.tensor([4, 2, 3])[:rows, None],
        end=torch.tensor([1, 2, 0])[:rows],
        instructions=("open the drawer", "push", "close it now please")[:rows],
    )


@pytest.mark.parametrize("more", [{}, {"state_size": 3}])
def test_it_keeps_the_contract_of_critics(more):
    rows = batch()
    check_critic(state_value(**more), rows, RecordedSuccess()(rows))


@pytest.mark.parametrize("padding", [1, 7])
def test_how_far_texts_are_padded_does_not_change_a_value(padding):
    seen = Observation(state=torch.zeros(3, 0), instructions=("open the drawer", "push", "a b c d e"))
    plain, padded = valued(Words()), valued(Words(padding))
    torch.testing.assert_close(plain.value(seen), padded.value(seen), atol=1e-6, rtol=1e-5)
    alone = torch.cat([plain.value(seen[row]) for row in range(3)])
    torch.testing.assert_close(alone, plain.value(seen), atol=1e-6, rtol=1e-5)
    losses = [value.loss_of(seen, torch.ones(3))[0] for value in (plain, padded)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-6, rtol=1e-5)


def test_it_learns_targets_that_hang_on_words_and_state():
    value = state_value()
    seen = Observation(state=torch.randn(64, 3), instructions=("open", "close") * 32)
    targets = seen.state[:, 0] * torch.tensor([1.0, -1.0]).repeat(32)
    optimizer = torch.optim.Adam(value.parameters(), 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        each, values, metrics = value.loss_of(seen, targets)
        each.mean().backward()
        optimizer.step()
    torch.testing.assert_close(each, (values - targets).square())
    assert not metrics and float(each.detach().mean()) < 0.1 * float(targets.square().mean())


def test_reward_to_go_values_with_it_and_trains_it():
    rows, value = batch(), state_value()
    source = RewardToGo(RecordedSuccess(), value, normalise=False)
    rewards = source.estimate(rows)
    advantages = source(rows, rewards)
    assert advantages.advantages.shape == rows.decision_step.shape
    terms = source.loss(rows, advantages, torch.tensor([0, 1]), torch.tensor([0, 1]))
    terms["loss"].backward()
    assert all(p.grad is not None for p in value.backbone.parameters() if p.requires_grad)


def test_a_frozen_backbone_is_asked_once_and_the_rest_learns():
    rows, value = batch(), state_value(cache=LatentCache())
    value.backbone.requires_grad_(False)
    first = value(rows).v
    misses = value.cache.misses
    torch.testing.assert_close(value(rows).v, first)
    assert value.cache.misses == misses == len({(r, t) for r, t in rows.made.nonzero().tolist()})
    value.loss(rows, RecordedSuccess()(rows))["loss"].backward()
    assert all((p.grad is not None) == (not n.startswith("backbone.")) for n, p in value.named_parameters())


@pytest.mark.slow
def test_it_values_pictures_with_a_vision_language_model(tmp_path):
    vlm = VLM(str(tiny_vlm(tmp_path / "blip2", "blip2")), lora=LoRA(rank=2))
    rows = batch()
    frames = torch.randint(0, 256, (3, 5, 3, 16, 16), dtype=torch.uint8)
    shown = Sampled(values=frames, step=torch.arange(5).expand(3, 5))
    value = valued(VLMBackbone(vlm, ["eye"], micro_batch=4))
    check_critic(value, replace(rows, frames={"eye": shown}), RecordedSuccess()(rows))
    assert value.inputs.cameras == ("eye",) and value.inputs.instruction


def test_sizes_come_from_the_data_and_scales_from_a_batch():
    value: Any = valued(EncoderBackbone(width=8, heads=2), state_size=None)
    with pytest.raises(ValueError, match=r"BackboneValue.state_size"):
        value.value(Observation(state=torch.zeros(1, 3)))
    assert take_sizes(value, DataSizes(name="data", state_size=3, action_size=2))
    rows = batch()
    value.fit_scales(rows)
    wanted = rows.state[rows.made].mean(0)
    torch.testing.assert_close(value.proprioception.mean, wanted)
    torch.testing.assert_close(value.backbone.state_in.mean, wanted)


def test_scales_of_a_pretrained_backbone_stay():
    value: Any = valued(EncoderBackbone(state_size=3, width=8, heads=2), state_size=3)
    rows = batch()
    value.backbone.state_in.fit(Observation(state=10 + torch.randn(5, 3)))
    before = value.backbone.state_in.mean.clone()
    value.fit_scales(rows)
    assert torch.equal(value.backbone.state_in.mean, before)
    torch.testing.assert_close(value.proprioception.mean, rows.state[rows.made].mean(0))


def test_values_are_those_of_full_precision_under_autocast():
    value, seen = state_value(), Observation(state=torch.randn(4, 3), instructions=("open",) * 4)
    with torch.autocast("cpu", torch.bfloat16):
        lower = value.value(seen)
    assert torch.equal(lower, value.value(seen))
