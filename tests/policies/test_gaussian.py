"""The Gaussian policy against torch's own normal distribution."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import Decision, Observation
from guerdon.core.hub import load_component
from guerdon.policies.gaussian import GaussianPolicy, within
from guerdon.testing import check_policy, trajectory_batches


def made(horizon=3, execute=2, log_std=-0.5, **more: Any) -> Any:
    policy: Any = GaussianPolicy(2, 2, horizon=horizon, execute=execute, hidden=(8,), log_std=log_std, **more)
    with torch.no_grad():
        policy.network[-1].weight.mul_(50)  # the cautious start would make all means alike
        policy.log_std += 0.1 * torch.arange(horizon * 2).view(horizon, 2)
    return policy


def seen(points=5):
    return Observation(state=torch.randn(points, 2))


def drawn(policy, observation, seed=0) -> Any:
    return policy.act(observation, generator=torch.Generator().manual_seed(seed))


def test_log_probability_and_entropy_agree_with_torch():
    policy, observation = made(), seen()
    decision = drawn(policy, observation)
    mean, log_std = policy.distribution(observation)
    normal = torch.distributions.Normal(mean, log_std.exp().expand_as(mean))
    evaluated = policy.evaluate(observation, decision)
    assert torch.allclose(evaluated.log_prob, normal.log_prob(decision.chunk).flatten(1), atol=1e-5)
    # two of three steps are carried out: entropy of four of six dimensions
    assert torch.allclose(evaluated.entropy, normal.entropy()[:, :2].sum((1, 2)), atol=1e-5)


def test_what_was_drawn_is_judged_exactly_as_it_was_drawn():
    policy, observation = made(), seen()
    decision = drawn(policy, observation)
    assert torch.equal(decision.log_prob, policy.evaluate(observation, decision).log_prob)
    one_by_one = [policy.evaluate(observation[i], decision[i]).log_prob for i in range(5)]
    assert torch.allclose(torch.cat(one_by_one), decision.log_prob, atol=1e-5)


def test_lower_precision_while_learning_does_not_move_the_ratio():
    policy, observation = made(), seen()
    decision = drawn(policy, observation)
    with torch.autocast("cpu", torch.bfloat16):
        learned = policy.evaluate(observation, decision).log_prob
    assert torch.equal(learned, decision.log_prob)


def test_units_of_steps_that_were_not_carried_out_are_masked():
    policy, observation = made(horizon=3, execute=2), seen(3)
    decision = Decision(chunk=torch.zeros(3, 3, 2), executed=torch.tensor([1, 2, 3]))
    mask = policy.evaluate(observation, decision).unit_mask
    assert mask.int().tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert drawn(policy, observation).executed.tolist() == [2, 2, 2]
    entropy = policy.evaluate(observation, decision).entropy
    assert entropy[0] < entropy[1] < entropy[2]


def test_draws_have_the_mean_and_spread_they_are_said_to_have():
    policy = made()
    many = Observation(state=torch.randn(1, 2).expand(20_000, -1))
    chunk = drawn(policy, many).chunk
    mean, log_std = policy.distribution(many[0])
    # standard error of the mean is σ/√20000 = 0.7 % of σ, of the spread 0.5 %: five of them
    assert ((chunk.mean(0) - mean[0]).abs() < 0.036 * log_std.exp()).all()
    assert ((chunk.std(0) / log_std.exp() - 1).abs() < 0.026).all()


def test_a_generator_fixes_the_draw_and_leaves_the_global_one_alone():
    policy, observation = made(), seen()
    before = torch.get_rng_state()
    one, again, other = drawn(policy, observation), drawn(policy, observation), drawn(policy, observation, seed=1)
    assert torch.equal(one.chunk, again.chunk)
    assert not torch.equal(one.chunk, other.chunk)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_generator_of_the_host_serves_a_policy_elsewhere():
    policy, observation = made(), seen()
    here = drawn(policy, observation).chunk
    there = drawn(policy.to("cuda"), observation).chunk
    assert there.device.type == "cuda"
    assert torch.allclose(here, there.cpu(), atol=1e-4)


def test_deterministic_action_is_the_mean():
    policy, observation = made(), seen()
    assert torch.equal(policy.act(observation, deterministic=True).chunk, policy.distribution(observation)[0])


@pytest.mark.parametrize("log_std, clamped", [(-9.0, -4.0), (3.0, 0.5)])
def test_the_spread_is_clamped_alike_in_every_use(log_std, clamped):
    policy: Any = GaussianPolicy(2, 2)
    with torch.no_grad():
        policy.log_std.fill_(log_std)  # a step of an optimizer may lead there
    observation = seen(1)
    decision = drawn(policy, observation)
    normal = torch.distributions.Normal(policy.distribution(observation)[0], math.exp(clamped))
    assert torch.allclose(decision.log_prob, normal.log_prob(decision.chunk).flatten(1), atol=1e-4)
    assert torch.equal(policy.evaluate(observation, decision).log_prob, decision.log_prob)


def test_a_cautious_start_acts_near_zero():
    policy = GaussianPolicy(2, 2)
    assert policy.act(seen(), deterministic=True).chunk.abs().max() < 0.1


# --- imitation ------------------------------------------------------------------------------------------------------


def test_imitation_is_the_squared_distance_averaged_over_real_steps():
    policy, observation = made(), seen(2)
    mean = policy.distribution(observation)[0].detach()
    # row 0: 1 off in one dimension of step 0, 3 off in both of step 1 → (1/2 + 9)/2; row 1: only step 0, exact
    off = torch.tensor([[[1.0, 0.0], [3.0, 3.0], [100.0, 100.0]], [[0.0, 0.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert policy.imitation_loss(observation, mean + off, mask).tolist() == pytest.approx([4.75, 0.0], abs=1e-5)


def test_nothing_behind_the_mask_reaches_loss_or_gradient():
    policy, observation = made(), seen(2)
    chunk = torch.zeros(2, 3, 2)
    chunk[0, 1:] = torch.nan
    mask = torch.tensor([[True, False, False], [False, False, False]])
    loss = policy.imitation_loss(observation, chunk, mask)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert loss[1] == 0
    assert all(p.grad.isfinite().all() for p in policy.network.parameters())


def test_imitation_leaves_the_spread_alone():
    policy = made()
    policy.imitation_loss(seen(), torch.ones(5, 3, 2), torch.ones(5, 3, dtype=torch.bool)).sum().backward()
    assert policy.log_std.grad is None
    assert policy.network[-1].weight.grad.abs().sum() > 0


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon, execute", [(1, 0), (1, 2), (4, 5), (0, 0)])
def test_more_steps_than_a_chunk_has_are_refused(horizon, execute):
    with pytest.raises(ValueError, match=f"execute={execute}, horizon={horizon}"):
        GaussianPolicy(2, 2, horizon=horizon, execute=execute)


@pytest.mark.parametrize("shape", [(5, 2, 2), (5, 3, 1)])
def test_chunks_of_another_shape_are_refused(shape):
    policy, observation = made(), seen()
    with pytest.raises(ValueError, match="chunks of 3 steps, 2 dimensions each"):
        policy.evaluate(observation, Decision(chunk=torch.zeros(shape), executed=torch.ones(5).long()))
    with pytest.raises(ValueError, match="chunks of 3 steps, 2 dimensions each"):
        policy.imitation_loss(observation, torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool))


@given(trajectory_batches(state_size=2), st.integers(1, 4), st.data())
def test_it_keeps_every_promise_of_a_policy(batch, horizon, data):
    check_policy(GaussianPolicy(2, 3, horizon=horizon, execute=data.draw(st.integers(1, horizon)), hidden=(4,)), batch)


# --- the spread at its bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound, sign", [(-1.0, -1.0), (0.5, 1.0)])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_spread_that_reached_a_bound_comes_back(bound, sign, optimizer):
    """Entropy is pushed against a bound for long, then pulled the other way."""
    policy, observation = made(log_std=-0.3, log_std_range=(-1.0, 0.5)), seen()
    decision = drawn(policy, observation)
    steps = optimizer([policy.log_std], lr=0.02)

    def push(direction, times):
        for _ in range(times):
            steps.zero_grad()
            (-direction * policy.evaluate(observation, decision).entropy.mean()).backward()
            steps.step()

    push(sign, 300)
    used = policy.distribution(observation)[1]
    executed = used[: policy.execute]
    assert torch.equal(executed, torch.full_like(executed, bound)), "it never reached the bound: the test shows nothing"
    push(-sign, 60)
    back = policy.distribution(observation)[1][: policy.execute]
    assert ((back - bound) * sign < -0.1).all(), "frozen at the bound"


def test_the_gradient_is_cut_only_where_descent_leads_further_out():
    values = torch.tensor([-2.0, -2.0, 0.0, 0.0, 3.0, 3.0], requires_grad=True)
    pull = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    clamped = within(values, -1.0, 1.0)
    assert clamped.tolist() == [-1, -1, 0, 0, 1, 1]
    (clamped * pull).sum().backward()
    # a step goes against the gradient: at -2 only a negative one leads back, at 3 only a positive one
    assert values.grad is not None and values.grad.tolist() == [0, -1, 1, -1, 1, 0]


@pytest.mark.parametrize("log_std", [-5.0, 1.0, float("nan")])
def test_a_spread_that_starts_outside_of_its_range_is_refused(log_std):
    with pytest.raises(ValueError, match=r"log_std_range \(-4.0, 0.5\): expected the initial log_std"):
        GaussianPolicy(2, 2, log_std=log_std)


def test_sampling_density_and_entropy_use_one_spread_outside_of_the_range():
    policy, observation = made(log_std_range=(-1.0, 0.5)), seen(2000)
    with torch.no_grad():
        policy.log_std.fill_(2.0)  # as a step of an optimizer may leave it
    decision = drawn(policy, observation)
    mean, log_std = policy.distribution(observation)
    assert (log_std == 0.5).all()
    assert (decision.chunk - mean).std().item() == pytest.approx(math.exp(0.5), rel=0.03)
    evaluated = policy.evaluate(observation, decision)
    normal = torch.distributions.Normal(mean, log_std.exp().expand_as(mean))
    assert torch.allclose(evaluated.log_prob, normal.log_prob(decision.chunk).flatten(1), atol=1e-5)
    assert torch.allclose(evaluated.entropy, normal.entropy()[:, :2].sum((1, 2)), atol=1e-5)


def test_a_policy_saved_with_a_spread_outside_of_its_range_opens(tmp_path):
    policy = GaussianPolicy(2, 2, hidden=(4,), log_std=-4.0)
    with torch.no_grad():
        policy.log_std.fill_(-5.0)
    policy.init_args["log_std"] = -5.0  # what version 0.1 accepted
    policy.save_pretrained(tmp_path / "old")
    opened = GaussianPolicy.from_pretrained(tmp_path / "old")
    assert (opened.distribution(seen())[1] == -4.0).all()
    assert torch.equal(opened.log_std, policy.log_std), "weights are those of the file"


def test_the_hidden_layer_is_what_the_mean_is_a_linear_map_of():
    policy, observation = made(), seen()
    evaluated = policy.evaluate(observation, drawn(policy, observation))
    mean = policy.distribution(observation)[0]
    assert torch.equal(policy.network[-1](evaluated.hidden).view_as(mean), mean)


class Quiet(GaussianPolicy):
    """A subclass that fixes its standard deviation."""

    def __init__(self, state_size: int = 2, action_size: int = 2):
        super().__init__(state_size, action_size, hidden=(4,), log_std=-3.0)


def test_a_subclass_without_an_initial_deviation_opens_again(tmp_path):
    policy = Quiet()
    policy.save_pretrained(tmp_path / "quiet")
    again = load_component(tmp_path / "quiet", known=(Quiet,))
    assert torch.equal(again.state_dict()["log_std"], policy.log_std)


def test_an_old_initial_deviation_without_a_saved_range_opens_within_the_default_one():
    assert GaussianPolicy.renewed({"log_std": 1.5})["log_std"] == 0.5
    assert GaussianPolicy.renewed({"log_std": 1.5, "log_std_range": [-1.0, 2.0]})["log_std"] == 1.5
    assert GaussianPolicy.renewed({"hidden": [4]}) == {"hidden": [4]}
