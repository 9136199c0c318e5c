"""VLA policies: one head whatever the backbone, a cache that changes nothing, frozen and learning backbones."""

import copy
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from guerdon.backbones.encoder_tokens import EncoderBackbone
from guerdon.backbones.language import HashedText
from guerdon.backbones.latent_cache import LatentCache
from guerdon.backbones.lora import LoRA
from guerdon.backbones.token_learner import TokenLearner
from guerdon.backbones.token_states import ObservationTokens, TokenBackbone
from guerdon.backbones.vision import ConvEncoder
from guerdon.backbones.vlm import VLM
from guerdon.backbones.vlm_tokens import VLMBackbone
from guerdon.core.batch import Observation
from guerdon.core.hub import load_component, save_component
from guerdon.core.sizes import DataSizes, take_sizes
from guerdon.critics.backbone_value import BackboneValue
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.chunks import ScaleHead
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts.data import RolloutData
from guerdon.policies.vla import VLAPolicy
from guerdon.rewards.recorded import RecordedSuccess
from guerdon.testing import check_policy
from guerdon.testing.conformance import reopen
from guerdon.testing.vlm_checkpoints import tiny_vlm

ARCHITECTURES: list[Any] = ["blip2", "smolvlm", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("vlm")
    return {name: tiny_vlm(place / name, name) for name in ARCHITECTURES}


def seen(points=5, cameras=("eye",), size=3):
    generator = torch.Generator().manual_seed(3)
    frames = {c: torch.randint(0, 256, (points, 3, 16, 16), generator=generator, dtype=torch.uint8) for c in cameras}
    words = ("open the drawer", "push", "close it now", "lift", "open the red door")
    return Observation(state=torch.randn(points, size, generator=generator), frames=frames, instructions=words[:points])


def learner():
    return TokenLearner(width=16, queries=2, heads=2)


def small(**more: Any) -> Any:
    torch.manual_seed(1)
    backbone = EncoderBackbone(
        state_size=3, cameras=["eye"], encoder=ConvEncoder(8, (4, 4), 16), text=HashedText(8), width=16, heads=2
    )
    policy = VLAPolicy(backbone, action_size=2, horizon=3, execute=2, hidden=(16,), token_learner=learner(), **more)
    return lively(policy)


def on_vlm(folder, rank=0, **more: Any) -> Any:
    torch.manual_seed(1)
    vlm = VLM(str(folder), lora=LoRA(rank=rank) if rank else None)
    backbone = VLMBackbone(vlm, cameras=["eye"], prompt="{instruction}?")
    return lively(VLAPolicy(backbone, state_size=3, action_size=2, hidden=(16,), token_learner=learner(), **more))


def lively(policy: Any) -> Any:
    with torch.no_grad():
        policy.network[-1].weight.mul_(50)  # the cautious start would make all means alike
    return policy


def drawn(policy, observation) -> Any:
    return policy.act(observation, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", ["gaussian", "laplace"])
@pytest.mark.parametrize("more", [{}, {"state_size": 3, "log_scale": ScaleHead((8,))}])
def test_it_keeps_the_contract_of_policies(head, more):
    check_policy(small(head=head, **more), seen())


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_keeps_the_contract_on_every_family_of_vision_language_models(folders, name):
    check_policy(on_vlm(folders[name], rank=2), seen(3))


def test_pictures_words_and_state_reach_the_actions(folders):
    policy, observation = on_vlm(folders["blip2"]), seen(2)
    chunk = policy.act(observation, deterministic=True).chunk
    others = [
        Observation(state=observation.state + 1, frames=observation.frames, instructions=observation.instructions),
        Observation(state=observation.state, frames={"eye": 255 - observation.frames["eye"]}),
        Observation(state=observation.state, frames=observation.frames, instructions=("lift", "lift it")),
    ]
    for other in others:
        assert (policy.act(other, deterministic=True).chunk - chunk).abs().amax((1, 2)).min() > 1e-4


def test_a_gaussian_head_is_cloned_by_squared_errors_and_a_laplace_head_by_absolute_ones():
    observation, chunk, mask = (
        seen(),
        torch.randn(5, 3, 2),
        torch.arange(3)[None] < torch.tensor([3, 2, 1, 3, 2])[:, None],
    )
    for head, power in (("gaussian", 2), ("laplace", 1)):
        policy = small(head=head)
        error = (policy.act(observation, deterministic=True).chunk - chunk).abs().pow(power).mean(2)
        wanted = (error * mask).sum(1) / mask.sum(1)
        torch.testing.assert_close(policy.imitation_loss(observation, chunk, mask), wanted)


def test_hidden_is_the_pooled_vector_that_an_evaluation_returns():
    policy, observation = small(state_size=3), seen()
    hidden = policy.hidden(observation)
    assert hidden.shape == (5, policy.hidden_size) == (5, 2 * 16 + 3)
    torch.testing.assert_close(hidden, policy.encoded(observation))
    torch.testing.assert_close(policy.evaluate(observation, drawn(policy, observation)).hidden, hidden)
    hidden.square().sum().backward()
    assert any(p.grad is not None for p in policy.backbone.parameters())


def test_a_cache_changes_no_number_and_every_observation_is_encoded_once():
    plain, observation = small(), seen()
    cached = small(cache=LatentCache())
    cached.load_state_dict(plain.state_dict())
    encoded = 0

    def count(*_):
        nonlocal encoded
        encoded += 1

    cached.backbone.register_forward_hook(count)
    for policy in (plain, cached):
        policy.backbone.requires_grad_(False)
        policy.train()
    decision = drawn(plain, observation)
    for _ in range(3):
        one, other = (policy.evaluate(observation, decision) for policy in (plain, cached))
        torch.testing.assert_close(one.log_prob, other.log_prob)
        torch.testing.assert_close(one.hidden, other.hidden)
        for policy, evaluation in ((plain, one), (cached, other)):
            policy.zero_grad()
            evaluation.log_prob.sum().backward()
        for (name, mine), theirs in zip(plain.named_parameters(), cached.parameters(), strict=True):
            if mine.grad is None:
                assert theirs.grad is None and name.startswith(("backbone.", "log_std")), name
            else:
                torch.testing.assert_close(mine.grad, theirs.grad)
    assert encoded == 1
    with torch.no_grad():
        next(cached.backbone.parameters()).add_(0.1)
    cached.evaluate(observation, decision)
    assert encoded == 2


def test_a_backbone_that_learns_passes_the_cache_by():
    policy, observation = small(cache=LatentCache()), seen()
    policy.imitation_loss(observation, torch.zeros(5, 3, 2), torch.ones(5, 3, dtype=torch.bool)).sum().backward()
    assert policy.cache.entries == 0 and all(p.grad is not None for p in policy.backbone.parameters())


def test_a_frozen_part_stays_bit_identical_while_the_rest_learns():
    policy, observation = small(state_size=3, cache=LatentCache()), seen()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    adam = PolicyAdam(learning_rate=1e-2, frozen_parts=("backbone",))
    adam.freeze(policy)
    optimizer = adam.make(policy, nn.Module())
    version = policy.backbone.version
    for _ in range(3):
        optimizer.zero_grad()
        policy.imitation_loss(observation, torch.ones(5, 3, 2), torch.ones(5, 3, dtype=torch.bool)).sum().backward()
        optimizer.step()
    after = policy.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"token_learner", "network"} and policy.backbone.version == version


@pytest.mark.parametrize("name", ["blip2", "smolvlm"])
def test_low_rank_updates_are_cloned_and_the_published_weights_stay_out_of_the_file(folders, tmp_path, name):
    policy, observation = on_vlm(folders[name], rank=2, cache=LatentCache()), seen(3)
    published = {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 3e-3)
    losses: list[float] = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = policy.imitation_loss(observation, torch.eye(3)[:, None, :2], torch.ones(3, 1, dtype=torch.bool)).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    assert all(torch.equal(published[n], p) for n, p in policy.named_parameters() if n in published)
    assert any("lora_B" in n and bool((p != 0).any()) for n, p in policy.named_parameters())
    save_component(policy, tmp_path / "policy")
    opened: Any = load_component(tmp_path / "policy")
    assert not any(n.startswith("backbone.vlm.") and "lora_" not in n for n in policy.state_dict())
    assert opened.backbone.vlm.fingerprint == policy.backbone.vlm.fingerprint
    torch.testing.assert_close(
        opened.act(observation, deterministic=True).chunk, policy.act(observation, deterministic=True).chunk
    )


def test_half_precision_backbones_give_whole_precision_heads(folders):
    torch.manual_seed(1)
    vlm = VLM(str(folders["blip2"]), dtype="bfloat16", lora=LoRA(rank=2))
    policy = VLAPolicy(VLMBackbone(vlm, ["eye"]), action_size=2, token_learner=learner())
    decision = drawn(policy, seen(2))
    assert decision.chunk.dtype == decision.log_prob.dtype == torch.float32
    policy.imitation_loss(seen(2), decision.chunk, torch.ones(2, 1, dtype=torch.bool)).sum().backward()
    assert all(p.grad is not None for n, p in policy.named_parameters() if "lora_B" in n)


def test_sizes_come_from_the_data_and_a_saved_policy_is_built(tmp_path):
    policy: Any = VLAPolicy(EncoderBackbone(width=16, heads=2), state_size=None, token_learner=learner())
    assert take_sizes(policy, DataSizes(name="data", state_size=3, action_size=2))
    assert policy.backbone.state_size == policy.state_size == 3 and policy.action_size == 2
    observation = Observation(state=torch.randn(4, 3))
    torch.testing.assert_close(
        reopen(policy).act(observation, deterministic=True).chunk, policy.act(observation, deterministic=True).chunk
    )


def test_a_copy_for_another_process_leaves_the_cache_behind():
    policy = small(cache=LatentCache())
    policy.backbone.requires_grad_(False)
    policy.act(seen())
    assert policy.cache.entries == 5 and copy.deepcopy(policy).cache.entries == 0


def test_bad_input_is_named(folders):
    policy = small(state_size=3)
    with pytest.raises(ValueError, match="expected a state of width 3, got 4"):
        policy.act(seen(size=4))
    with pytest.raises(ValueError, match=r"expected frames of camera 'eye', got \['wrist'\]"):
        policy.act(seen(cameras=("wrist",)))
    with pytest.raises(ValueError, match="expected chunks of 3 steps, 2 dimensions each"):
        policy.imitation_loss(seen(), torch.zeros(5, 3, 4), torch.ones(5, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"VLAPolicy has action_size 2, and the actions of data are 4 wide"):
        take_sizes(policy, DataSizes(name="data", state_size=3, action_size=4))
    with pytest.raises(ValueError, match=r"EncoderBackbone has state_size 3, and the states of data are 5 wide"):
        take_sizes(small(), DataSizes(name="data", state_size=5, action_size=2))
    with pytest.raises(ValueError, match=r"VLAPolicy.action_size"):
        VLAPolicy(EncoderBackbone(state_size=3)).act(seen())
    with pytest.raises(ValueError, match="made for tokens of width 9"):
        VLAPolicy(EncoderBackbone(state_size=3), token_learner=TokenLearner(token_width=9))
    long = Observation(state=torch.zeros(1, 3), frames=seen(1).frames, instructions=("go on " * 300,))
    with pytest.raises(ValueError, match=r"an instruction has \d+ tokens, expected at most 128: shorten it"):
        on_vlm(folders["blip2"]).act(long)
    with pytest.raises(ValueError, match=r"targets \['query'\]: expected 'all-linear' or some of"):
        VLM(str(folders["blip2"]), lora=LoRA(targets=["query"]))


class Marked(TokenBackbone):
    """Tokens straight out of the state: the action stands in the one that carries a mark."""

    def __init__(self):
        super().__init__()
        self.width = 12

    def read(self, observation):
        return observation

    def forward(self, observation):
        hidden = observation.state.unflatten(1, (-1, 12))
        return ObservationTokens(hidden=hidden, mask=torch.ones(hidden.shape[:2], dtype=torch.bool))


def cloned_error(seed):
    torch.manual_seed(seed)
    policy = VLAPolicy(Marked(), action_size=1, hidden=(32,), token_learner=TokenLearner(width=16, heads=2))
    optimizer = torch.optim.Adam(policy.parameters(), 5e-3)

    def batch(count=64):
        tokens = torch.randn(count, 6, 12)
        tokens[..., 0] = 0.0
        place, row = torch.randint(6, (count,)), torch.arange(count)
        tokens[row, place, 0] = 4.0
        return Observation(state=tokens.flatten(1)), tokens[row, place, 1].view(count, 1, 1)

    for _ in range(400):
        observation, action = batch()
        optimizer.zero_grad()
        policy.imitation_loss(observation, action, torch.ones(64, 1, dtype=torch.bool)).mean().backward()
        optimizer.step()
    observation, action = batch(500)
    return float((policy.act(observation, deterministic=True).chunk - action).square().mean())


@pytest.mark.slow
def test_cloning_finds_the_token_that_matters():
    assert all(cloned_error(seed) < 0.3 for seed in range(5)), "a policy that looks at all tokens alike is above 0.7"


@pytest.mark.slow
def test_reinforcement_learning_with_a_frozen_backbone_keeps_it_bit_identical_and_encodes_each_observation_once():
    """Stage 1 of iRe-VLA: the head and a fresh critic on the policy's cached tokens."""
    torch.manual_seed(0)
    backbone = EncoderBackbone(text=HashedText(8), width=16, hidden=(16,), layers=1, heads=2)
    policy: Any = VLAPolicy(backbone, hidden=(16,), token_learner=learner(), cache=LatentCache())
    value = BackboneValue(EncoderBackbone(width=16, hidden=(16,), layers=0, heads=2), hidden=(16,))
    optimizer = PolicyOptimizer(
        policy,
        RewardToGo(RecordedSuccess(), value),
        ClippedSurrogate(),
        passes=3,
        minibatch_size=32,
        optimizer=PolicyAdam(learning_rate=1e-2, frozen_parts=("backbone",)),
    )
    encoded = 0

    def count(module, arguments, made):
        nonlocal encoded
        encoded += len(made.hidden)

    data = RolloutData("mujoco/reach", steps=48, rollouts=1, envs=2, workers=0, contexts=4, eval_contexts=2)
    data.setup("fit")
    take_sizes(optimizer, data.sizes)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    policy.backbone.register_forward_hook(count)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(optimizer, data)
    changed = {n.partition(".")[0] for n, weight in policy.state_dict().items() if not torch.equal(weight, before[n])}
    assert changed == {"token_learner", "network", "log_std"}
    assert encoded == policy.cache.misses <= 48 + 4 and policy.cache.hits >= 3 * 40
