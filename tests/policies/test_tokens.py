"""The token policy against slow literal passes, one for each token and without kept keys and values."""

import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from guerdon.backbones.decoder_language import LanguageDecoder
from guerdon.backbones.decoder_small import SmallDecoder
from guerdon.backbones.decoder_vlm import VLMDecoder
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.cli import main
from guerdon.core.batch import Decision, Observation
from guerdon.core.sizes import DataSizes, take_sizes
from guerdon.policies.action_bins import ActionBins
from guerdon.policies.tokens import TokenPolicy
from guerdon.testing import check_policy, trajectory_batches
from guerdon.testing.language_checkpoints import tiny_language
from guerdon.testing.vlm_checkpoints import tiny_vlm

TEXTS = ("open the drawer", "close it", "push the red block to the left")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_language(tmp_path_factory.mktemp("language") / "tiny"))


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory):
    return str(tiny_vlm(tmp_path_factory.mktemp("vlm") / "tiny", "smolvlm"))


def made(bins: int = 5, horizon: int = 2, execute: int = 1, actions: int = 2, **more: Any) -> Any:
    decoder = more.pop("decoder", None) or SmallDecoder(width=16, heads=2, buckets=32)
    state = more.pop("state_size", 3)
    policy = TokenPolicy(decoder, state, actions, horizon, execute, bins=ActionBins(bins), **more)
    with torch.no_grad():
        policy.bin_outputs.normal_(std=0.5)  # the even start would make all bins alike
    return policy


def on_language(folder, lora: LoRA | None = None, **more: Any) -> Any:
    policy = TokenPolicy(LanguageDecoder(folder, lora=lora), 3, 2, bins=ActionBins(8), **more)
    if lora is not None:
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
    return policy


def seen(points: int = 5, state: int = 3) -> Observation:
    texts = tuple(TEXTS[i % 3] for i in range(points))
    return Observation(state=torch.randn(points, state, generator=torch.Generator().manual_seed(2)), instructions=texts)


def drawn(policy: Any, observation: Observation, seed: int = 0) -> Decision:
    return policy.act(observation, generator=torch.Generator().manual_seed(seed))


def slow_logits(policy: Any, observation: Observation, row: int, before: list[int]):
    """Logits of the next token of one row, by a pass over everything before it."""
    one = observation[row]
    decoder = policy.decoder
    if isinstance(decoder, SmallDecoder):
        prompt, trunk = (decoder.start + decoder.words(one.instructions))[:, None], decoder.model
    else:
        tokens = torch.tensor([decoder._tokens_of(one.instructions[0])])
        prompt, trunk = decoder.model.get_input_embeddings()(tokens), decoder.model.base_model
    parts = [prompt]
    if policy.inputs is not None:
        parts.append(policy.projections[0](policy.inputs(one))[:, None])
    parts += [policy.bin_inputs[token].view(1, 1, -1) for token in before]
    state = trunk(inputs_embeds=torch.cat(parts, 1), use_cache=False).last_hidden_state[0, -1]
    return policy.bin_outputs @ state


def slow_log_probs(policy: Any, observation: Observation, tokens) -> torch.Tensor:
    rows: list[list[Any]] = []
    for row, chosen in enumerate(tokens.tolist()):
        rows.append([])
        for place, token in enumerate(chosen):
            logits = slow_logits(policy, observation, row, chosen[:place]) / policy.temperature
            kept = range(len(logits))
            if policy.top_k is not None:
                kept = sorted(kept, key=lambda k: -float(logits[k]))[: policy.top_k]
            rows[-1].append(logits[token] - torch.logsumexp(torch.stack([logits[k] for k in kept]), 0))
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (1.6, None), (0.7, 2)])
@pytest.mark.parametrize("kind", ["small", "language"])
def test_log_probability_agrees_with_a_pass_for_each_token(folder, kind, temperature, top_k):
    more: dict[str, Any] = {"temperature": temperature, "top_k": top_k}
    policy = made(**more) if kind == "small" else on_language(folder, horizon=2, **more)
    observation = seen(4)
    decision = drawn(policy, observation)
    with torch.no_grad():
        slow = slow_log_probs(policy, observation, decision.extras["tokens"])
        evaluated = policy.evaluate(observation, decision)
    torch.testing.assert_close(decision.log_prob, slow, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(evaluated.log_prob, slow, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_the_ratio_of_the_first_minibatch_is_one(folder, lora):
    policy, observation = on_language(folder, lora, horizon=3, temperature=1.5, top_k=4), seen()
    decision = drawn(policy.eval(), observation)
    policy.train()  # as a policy is while it learns
    for rows in ([0, 1, 2, 3, 4], [4, 1], [2]):
        now = policy.evaluate(observation[rows], decision[rows]).log_prob
        assert ((now - decision.log_prob[rows]).exp() - 1).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        lower = policy.evaluate(observation, decision).log_prob
    assert lower.dtype == torch.float32
    assert ((lower - decision.log_prob).exp() - 1).abs().max() < 1e-5


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.6, 2), (2.0, 3)])
def test_samples_have_the_probabilities_they_are_said_to_have(temperature, top_k):
    policy = made(bins=4, horizon=1, temperature=temperature, top_k=top_k)
    alone, count = seen(1), 6000
    pairs = torch.tensor(list(itertools.product(range(4), repeat=2)))
    decision = Decision(
        chunk=torch.zeros(len(pairs), 1, 2), executed=torch.ones(len(pairs)).long(), extras={"tokens": pairs}
    )
    every = Observation(state=alone.state.expand(len(pairs), -1), instructions=alone.instructions * len(pairs))
    with torch.no_grad():
        expected = [math.exp(sum(row)) for row in slow_log_probs(policy, every, pairs).tolist()]
        evaluated = policy.evaluate(every, decision).log_prob.sum(1).exp().tolist()
    many = Observation(state=alone.state.expand(count, -1), instructions=alone.instructions * count)
    tokens = drawn(policy, many).extras["tokens"]
    found = torch.bincount(tokens[:, 0] * 4 + tokens[:, 1], minlength=16).tolist()
    allowed = [n for n in range(16) if found[n] or not top_k]
    if top_k:  # the second token has its own top k for each first one
        assert len(allowed) <= top_k**2
        expected = [p if n in allowed else 0.0 for n, p in enumerate(expected)]
    assert sum(expected) == pytest.approx(1, abs=1e-4)
    assert [evaluated[n] for n in allowed] == pytest.approx([expected[n] for n in allowed], rel=1e-3)
    chi2 = sum((found[n] - count * expected[n]) ** 2 / (count * expected[n]) for n in allowed)
    assert stats.chi2.sf(chi2, len(allowed) - 1) > 1e-3


def test_a_recorded_token_that_left_the_top_k_keeps_a_finite_log_probability_and_gradient():
    policy, observation = made(top_k=2), seen()
    decision = drawn(policy, observation)
    with torch.no_grad():
        policy.bin_outputs.neg_()  # the likeliest bins become the least likely
    evaluated = policy.evaluate(observation, decision)
    evaluated.log_prob.sum().backward()
    assert bool(evaluated.log_prob.isfinite().all()) and bool((evaluated.log_prob < math.log(1 / 3) + 1e-6).any())
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)


def test_a_pretrained_model_starts_from_its_own_logits_restricted_to_the_bins(folder):
    policy: Any = TokenPolicy(LanguageDecoder(folder), 0, 2, horizon=2, bins=ActionBins(8))
    decoder = policy.decoder
    rows = decoder.reserve(8).tokens
    observation = seen(3)
    decision = drawn(policy, observation)
    for row, chosen in enumerate(decision.extras["tokens"].tolist()):
        tokens = [*decoder._tokens_of(observation.instructions[row]), *(rows[token] for token in chosen)]
        with torch.no_grad():
            own = decoder.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -5:-1, list(rows)]
        wanted = own.log_softmax(-1).gather(1, torch.tensor(chosen)[:, None])[:, 0]
        torch.testing.assert_close(decision.log_prob[row], wanted, atol=1e-5, rtol=1e-5)


def test_the_deterministic_action_is_the_likeliest_bin_at_every_token():
    policy, observation = made(temperature=0.0), seen(3)
    decision = policy.act(observation, deterministic=True)
    assert decision.log_prob is None
    for row, chosen in enumerate(decision.extras["tokens"].tolist()):
        for place, token in enumerate(chosen):
            assert int(slow_logits(policy, observation, row, chosen[:place]).argmax()) == token
    centres = torch.linspace(-1, 1, 5)[decision.extras["tokens"]]
    assert torch.equal(decision.chunk, centres.view(3, 2, 2))


def test_units_of_steps_that_were_not_carried_out_are_masked():
    policy, observation = made(horizon=3, execute=2), seen(3)
    decision = Decision(chunk=torch.zeros(3, 3, 2), executed=torch.tensor([1, 2, 3]))
    evaluated = policy.evaluate(observation, decision)
    assert evaluated.unit_mask.int().tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert drawn(policy, observation).executed.tolist() == [2, 2, 2]
    assert evaluated.entropy[0] < evaluated.entropy[2]


def test_entropy_is_that_of_the_tempered_bins():
    policy, observation = made(horizon=1, temperature=1.3, top_k=3), seen(2)
    decision = drawn(policy, observation)
    with torch.no_grad():
        found = policy.evaluate(observation, decision).entropy
    for row, chosen in enumerate(decision.extras["tokens"].tolist()):
        kept = [slow_logits(policy, observation, row, chosen[:n]).detach().div(1.3).topk(3).values for n in range(2)]
        wanted = sum(float(torch.distributions.Categorical(logits=logits).entropy()) for logits in kept)
        assert float(found[row]) == pytest.approx(wanted, abs=1e-5)


def test_chunks_without_recorded_tokens_are_put_into_the_nearest_bins():
    policy, observation = made(), seen()
    decision = drawn(policy, observation)
    near = Decision(chunk=decision.chunk + 0.2, executed=torch.full((5,), 2))
    assert torch.equal(policy.evaluate(observation, near).log_prob, policy.evaluate(observation, decision).log_prob)


def test_the_hidden_state_predicts_the_first_token_and_is_the_same_for_any_padding(folder):
    policy = on_language(folder)
    observation = seen(3)
    decision = drawn(policy, observation)
    hidden = policy.hidden(observation)
    assert hidden.shape == (3, policy.hidden_size)
    torch.testing.assert_close(policy.evaluate(observation, decision).hidden, hidden, atol=1e-5, rtol=1e-5)
    for row in range(3):
        logits = slow_logits(policy, observation, row, [])
        torch.testing.assert_close(policy.logits(hidden[row]), logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(policy.hidden(observation[[row]]), hidden[[row]], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_gradients_reach_bins_projections_and_low_rank_updates_and_nothing_else(folder, lora):
    policy, observation = on_language(folder, lora), seen()
    policy.evaluate(observation, drawn(policy, observation)).log_prob.sum().backward()
    reached = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    learns = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert reached == learns
    own = {"bin_inputs", "bin_outputs", "projections.0.weight", "projections.0.bias"}
    assert own == {n for n in learns if "lora_" not in n}
    assert bool(lora) == any("lora_" in n for n in learns)


def test_features_enter_as_an_embedding_each():
    policy = made(feature_sizes={"clip/front": 4, "clip/wrist": 2}, state_size=3)
    assert len(policy.projections) == 3
    features = {"clip/front": torch.randn(2, 4), "clip/wrist": torch.randn(2, 2)}
    observation = Observation(state=torch.randn(2, 3), features=features)
    before = policy.hidden(observation)
    for name in features:
        moved = {**features, name: features[name] + 1}
        changed = policy.hidden(Observation(state=observation.state, features=moved))
        assert not torch.allclose(changed, before, atol=1e-4)


def test_pictures_reach_the_action_of_a_vision_language_model(vlm_folder):
    decoder = VLMDecoder(VLM(vlm_folder), ["front"])
    policy = made(decoder=decoder, state_size=0, bins=32)
    frames = torch.randint(0, 256, (2, 3, 16, 16)).to(torch.uint8)
    one = Observation(
        state=torch.zeros(2, 0), frames={"front": frames}, instructions=("zz", "z")
    )  # a tiny vocabulary: words are bins
    other = Observation(state=torch.zeros(2, 0), frames={"front": 255 - frames}, instructions=("zz", "z"))
    assert not torch.allclose(policy.hidden(one), policy.hidden(other), atol=1e-3)
    check_policy(policy, one)


# --- imitation -------------------------------------------------------------------------------------------------------


def test_imitation_is_the_cross_entropy_of_all_bins_at_temperature_one():
    policy, observation = made(temperature=3.0, top_k=1), seen(2)
    tokens = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    chunk = torch.linspace(-1, 1, 5)[tokens].view(2, 2, 2)
    loss = policy.imitation_loss(observation, chunk, torch.tensor([[True, True], [True, False]]))
    policy.temperature, policy.top_k = 1.0, None
    with torch.no_grad():
        slow = slow_log_probs(policy, observation, tokens)
    assert loss.tolist() == pytest.approx([-float(slow[0].sum()) / 2, -float(slow[1, :2].sum())], abs=1e-4)


def test_nothing_behind_the_mask_reaches_loss_or_gradient():
    policy, observation = made(), seen(2)
    chunk = torch.zeros(2, 2, 2)
    chunk[:, 1] = torch.nan
    loss = policy.imitation_loss(observation, chunk, torch.tensor([[True, False], [False, False]]))
    loss.sum().backward()
    assert bool(loss.isfinite().all()) and loss[1] == 0
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)


@pytest.mark.parametrize("value", [1.3, float("nan")])
def test_logged_actions_outside_of_the_bins_are_refused(value):
    chunk = torch.zeros(5, 2, 2)
    chunk[3, 1, 1] = value
    with pytest.raises(ValueError, match="dimension 1 of an action is"):
        made().imitation_loss(seen(), chunk, torch.ones(5, 2, dtype=torch.bool))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cloning_learns_actions_that_depend_on_state_instruction_and_earlier_dimensions(seed):
    torch.manual_seed(seed)
    policy: Any = TokenPolicy(SmallDecoder(width=32, heads=2, buckets=64), 2, 2, bins=ActionBins(5))
    state = torch.randn(256, 2)
    texts = tuple("open it" if n % 2 else "close it" for n in range(256))
    signs = torch.tensor([1.0 if n % 2 else -1.0 for n in range(256)])
    first = state[:, 0].sign() * signs
    chunk = torch.stack([first, 0.5 * first * state[:, 1].sign()], 1)[:, None]
    observation, mask = Observation(state=state, instructions=texts), torch.ones(256, 1, dtype=torch.bool)
    steps = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(150):
        loss = policy.imitation_loss(observation, chunk, mask).mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
    right = (policy.act(observation, deterministic=True).chunk - chunk).abs().amax((1, 2)) < 0.1
    assert loss.item() < 0.7 < 2 * math.log(2) and right.float().mean() > 0.85  # guesses: 2 log 2 nats, a quarter right


# --- as a component --------------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(trajectory_batches(state_size=2), st.integers(1, 3), st.data())
def test_it_keeps_every_promise_of_a_policy(batch, horizon, data):
    execute = data.draw(st.integers(1, horizon))
    check_policy(made(horizon=horizon, execute=execute, actions=3, state_size=2), batch)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_on_a_language_model_it_keeps_every_promise_of_a_policy(folder, lora):
    check_policy(on_language(folder, lora), seen(4))


def test_a_saved_policy_holds_no_frozen_weight(folder, tmp_path):
    policy = on_language(folder, LoRA(rank=2))
    with torch.no_grad():
        policy.bin_inputs.normal_()
    policy.save_pretrained(tmp_path / "saved")
    kept = set(policy.state_dict())
    assert not any(name.startswith("decoder.model.") and "lora_" not in name for name in kept)
    again = TokenPolicy.from_pretrained(tmp_path / "saved")
    one, other = drawn(policy, seen()), drawn(again, seen())
    assert torch.equal(one.chunk, other.chunk) and torch.equal(one.log_prob, other.log_prob)  # pyright: ignore


def test_a_pickled_policy_acts_alike(folder):
    for policy in (made(), on_language(folder, LoRA(rank=2))):
        again = pickle.loads(pickle.dumps(policy))
        assert torch.equal(drawn(policy, seen()).log_prob, drawn(again, seen()).log_prob)  # pyright: ignore


def test_sizes_are_taken_from_the_data():
    policy: Any = TokenPolicy(SmallDecoder(width=16, heads=2), bins=ActionBins(5))
    for use in (lambda: policy.act(seen()), lambda: policy.hidden(seen())):
        with pytest.raises(ValueError, match=r"TokenPolicy is not built yet, TokenPolicy.state_size"):
            use()
    take_sizes(policy, DataSizes(name="data", state_size=3, action_size=2))
    assert drawn(policy, seen()).chunk.shape == (5, 1, 2)
    with pytest.raises(ValueError, match="TokenPolicy has action_size 2, and the actions of other are 4 wide"):
        take_sizes(policy, DataSizes(name="other", state_size=3, action_size=4))


def test_a_generator_fixes_the_draw_and_leaves_the_global_one_alone():
    policy, observation = made(), seen()
    before = torch.get_rng_state()
    one, again, other = drawn(policy, observation), drawn(policy, observation), drawn(policy, observation, seed=1)
    assert torch.equal(one.chunk, again.chunk)
    assert not torch.equal(one.chunk, other.chunk)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_it_learns_from_rollouts_of_worker_processes(tmp_path, monkeypatch):
    """Through the real command: the policy travels to two workers, and its tokens and log-probabilities come back."""
    monkeypatch.chdir(tmp_path)
    policy: Any = TokenPolicy(SmallDecoder(width=16, heads=2), 12, 3, horizon=2, execute=2, bins=ActionBins(5), top_k=3)
    policy.save_pretrained(tmp_path / "policy")
    data = "--data.init_args"
    fit = ["fit", "--config", "ppo_sparse.yaml", "--model.init_args.policy.init_args.path", str(tmp_path / "policy")]
    fit += [f"{data}.task", "mujoco/reach", f"{data}.steps", "64", f"{data}.rollouts", "2", f"{data}.envs", "4"]
    fit += [f"{data}.workers", "2", f"{data}.contexts", "2", f"{data}.eval_contexts", "2"]
    fit += ["--model.init_args.freeze_policy_batches", "0", "--model.init_args.minibatch_size", "8"]
    fit += ["--trainer.val_check_interval", "2"]
    assert main([*fit, "--out", str(tmp_path / "run")]) == 0
    learned = TokenPolicy.from_pretrained(tmp_path / "run" / "model")
    assert not torch.equal(learned.bin_outputs, policy.bin_outputs)
    assert drawn(learned, seen(3, 12)).chunk.shape == (3, 2, 3)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_at_temperature_zero_nothing_has_a_likelihood():
    policy, observation = made(temperature=0), seen()
    decision = policy.act(observation, deterministic=True)
    with pytest.raises(ValueError, match="temperature 0 has no likelihood: expected a temperature above 0"):
        policy.evaluate(observation, decision)
    with pytest.raises(ValueError, match=r"temperature 0 has no sample.* or deterministic acting"):
        policy.act(observation)
    assert bool(policy.imitation_loss(observation, decision.chunk, torch.ones(5, 2, dtype=torch.bool)).isfinite().all())


@pytest.mark.parametrize("more", [{"temperature": -1.0}, {"temperature": math.inf}, {"top_k": 0}, {"top_k": 6}])
def test_sampling_that_makes_no_sense_is_refused(more):
    with pytest.raises(ValueError, match="expected a temperature of at least 0, and between 1 and 5 bins"):
        made(**more)


@pytest.mark.parametrize("horizon, execute", [(1, 0), (1, 2), (0, 0)])
def test_more_steps_than_a_chunk_has_are_refused(horizon, execute):
    with pytest.raises(ValueError, match=f"execute={execute}, horizon={horizon}"):
        made(horizon=horizon, execute=execute)


@pytest.mark.parametrize("shape", [(5, 1, 2), (5, 2, 1)])
def test_chunks_of_another_shape_are_refused(shape):
    policy, observation = made(), seen()
    with pytest.raises(ValueError, match="chunks of 2 steps, 2 dimensions each"):
        policy.evaluate(observation, Decision(chunk=torch.zeros(shape), executed=torch.ones(5).long()))
    with pytest.raises(ValueError, match="chunks of 2 steps, 2 dimensions each"):
        policy.imitation_loss(observation, torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool))


@pytest.mark.parametrize("tokens", [torch.zeros(5, 3).long(), torch.full((5, 4), 5), torch.full((5, 4), -1)])
def test_tokens_of_another_policy_are_refused(tokens):
    chunk, executed = torch.zeros(5, 2, 2), torch.ones(5).long()
    with pytest.raises(ValueError, match=r"recorded tokens of shape \(5, 4\) below 5, got shape"):
        made().evaluate(seen(), Decision(chunk=chunk, executed=executed, extras={"tokens": tokens}))


def test_a_vocabulary_without_room_for_the_bins_is_refused(folder):
    with pytest.raises(ValueError, match="free for action bins, expected 500: take fewer bins"):
        TokenPolicy(LanguageDecoder(folder), 3, 2, bins=ActionBins(500))


def test_bounds_for_another_number_of_dimensions_are_refused():
    with pytest.raises(ValueError, match="bounds for 3 action dimensions, and the actions are 2 wide"):
        TokenPolicy(SmallDecoder(width=16, heads=2), 3, 2, bins=ActionBins(5, [-1.0] * 3, [1.0] * 3))


@pytest.mark.parametrize("deterministic", [True, False])
def test_logits_that_are_not_finite_are_refused(deterministic):
    policy = made()
    with torch.no_grad():
        policy.bin_outputs[0, 0] = math.nan
    with pytest.raises(ValueError, match="expected finite logits, got NaN or infinity at observation 0 of 5"):
        policy.act(seen(), deterministic)


@pytest.mark.parametrize("kind", ["small", "language", "vlm"])
def test_no_observation_gives_no_decision(folder, vlm_folder, kind):
    if kind == "vlm":
        decoder = VLMDecoder(VLM(vlm_folder), ["eye"])
        policy: Any = made(decoder=decoder)
        empty = Observation(
            state=torch.zeros(0, 3), frames={"eye": torch.zeros(0, 3, 16, 16, dtype=torch.uint8)}, instructions=()
        )
    else:
        policy, empty = made() if kind == "small" else on_language(folder, horizon=2), seen(0)
    for deterministic in (True, False):
        decision = policy.act(empty, deterministic)
        assert decision.chunk.shape == (0, 2, 2) and decision.log_prob.shape == decision.extras["tokens"].shape == (
            0,
            4,
        )
    evaluated = policy.evaluate(empty, decision)
    assert evaluated.log_prob.shape == evaluated.unit_mask.shape == (0, 4) and evaluated.entropy.shape == (0,)
    assert evaluated.hidden.shape == policy.hidden(empty).shape == (0, policy.hidden_size)
    loss = policy.imitation_loss(empty, decision.chunk, torch.ones(0, 2, dtype=torch.bool))
    assert loss.shape == (0,)
    (loss.sum() + evaluated.log_prob.sum()).backward()


def test_a_fresh_policy_is_nearly_even_and_draws_more_bins_than_one_observation_allows():
    torch.manual_seed(0)
    policy = TokenPolicy(SmallDecoder(width=16, heads=2, buckets=32), 3, 2, bins=ActionBins(32), top_k=4)
    drawn_bins = drawn(policy, seen(200)).extras["tokens"][:, 0]
    assert len(drawn_bins.unique()) > 8
    with torch.no_grad():
        logits = policy.logits(policy.hidden(seen(200)))
    assert 0 < float(logits.std()) < 0.05 and float(logits.abs().max()) < 0.1
