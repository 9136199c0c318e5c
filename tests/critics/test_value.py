"""State values against closed forms."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, Observation, RewardEstimates, TrajectoryBatch
from guerdon.critics.value import ValueCritic
from guerdon.rewards.recorded import RecordedReward
from guerdon.testing import check_critic, pad_steps, trajectory_batches

quick = settings(max_examples=25, deadline=None)


def chain(length, end, reward, final=None, last_observed=True):
    """One walk down a corridor; the state is one-hot, so a linear critic is a table."""
    state = torch.eye(length + 1)[None]
    rewards = torch.full((1, length), float(reward))
    if final is not None:
        rewards[0, -1] = final
    batch = TrajectoryBatch(
        state=state,
        actions=torch.zeros(1, length, 1),
        mask=torch.ones(1, length, dtype=torch.bool),
        end=torch.tensor([int(end)]),
        last_observed=torch.tensor([last_observed]),
        recorded={"reward": Labelled(values=rewards, valid=torch.ones(1, length, dtype=torch.bool))},
    )
    return batch, RecordedReward()(batch)


def table(length, gamma, lam):
    """A critic that holds one number per state."""
    critic = ValueCritic(length + 1, hidden=(), gamma=gamma, lam=lam)
    torch.nn.init.zeros_(critic.network[-1].weight)
    critic.network[-1].bias.requires_grad_(False)
    return critic


def learn(critic, batch, rewards, rounds):
    """Full steps: on the mean of T squares a rate of T/2 puts every entry on its target."""
    optimizer = torch.optim.SGD([critic.network[-1].weight], lr=batch.mask.shape[1] / 2)
    for _ in range(rounds):
        optimizer.zero_grad()
        critic.loss(batch, rewards)["loss"].backward()
        optimizer.step()
    return critic(batch).v[0].detach()


@pytest.mark.parametrize("lam", [1.0, 0.8])
def test_a_corridor_is_learned_to_its_closed_form(lam):
    # -1 a step but for the last, nothing after: V of the first state is -(1 - γ^(d-1)) / (1 - γ); at d = 20 and
    # γ = 0.99 that is -(1 - 0.99^19) / 0.01 = -17.38. Every state on: V_t = -(1 - γ^(d-1-t)) / (1 - γ).
    length, gamma = 20, 0.99
    batch, rewards = chain(length, End.SUCCESS, reward=-1.0, final=0.0)
    learned = learn(table(length, gamma, lam), batch, rewards, rounds=80)
    left = torch.arange(length - 1, -1, -1)
    closed = -(1 - gamma**left) / (1 - gamma)
    assert closed[0].item() == pytest.approx(-17.38, abs=0.01)
    assert torch.allclose(learned[:length], closed.float(), atol=1e-3)


def test_a_failure_at_the_end_is_felt_from_the_start():
    # -1 a step, -10 on the last: V_0 = -(1 - 0.9^4)/0.1 - 0.9^4 · 10 = -3.439 - 6.561 = -10
    batch, rewards = chain(5, End.FAILURE, reward=-1.0, final=-10.0)
    learned = learn(table(5, 0.9, 1.0), batch, rewards, rounds=5)
    assert learned[0].item() == pytest.approx(-10.0, abs=1e-3)
    assert learned[4].item() == pytest.approx(-10.0, abs=1e-3)


def test_a_time_limit_is_continued_by_the_value_of_what_follows():
    batch, rewards = chain(3, End.TIME_LIMIT, reward=0.0)
    critic = table(3, 0.9, 1.0)
    with torch.no_grad():
        critic.network[-1].weight[0, 3] = 10.0  # V of the last observation; V of the others is 0
    parts = critic.loss(batch, rewards)
    # targets 0.9 · 10, 0.81 · 10, 0.729 · 10 in reverse: mean of 9², 8.1², 7.29²
    assert parts["loss"].item() == pytest.approx((81 + 65.61 + 53.1441) / 3, rel=1e-5)
    ended = replace(batch, end=torch.tensor([int(End.SUCCESS)]), terminated=torch.tensor([True]))
    assert critic.loss(ended, rewards)["loss"].item() == 0


def test_an_unknown_reward_is_no_surprise():
    batch, _ = chain(4, End.SUCCESS, reward=1.0)
    critic = ValueCritic(5, hidden=(8,), gamma=0.9, lam=0.7)
    valid = torch.tensor([[True, False, True, True]])
    unknown = RewardEstimates(rewards=torch.tensor([[1.0, torch.nan, 1.0, 1.0]]), valid=valid)
    v = [*critic(batch).v[0, :4].tolist(), 0.0]  # nothing follows a success
    surprise = [1 + 0.9 * v[t + 1] - v[t] for t in range(4)]
    surprise[1] = 0.0
    # errors are Σ (γλ)^k surprise; the unknown step passes on what comes later, and is not trained on itself
    errors = [sum(0.63 ** (k - t) * surprise[k] for k in range(t, 4)) for t in range(4)]
    expected = (errors[0] ** 2 + errors[2] ** 2 + errors[3] ** 2) / 3
    assert critic.loss(batch, unknown)["loss"].item() == pytest.approx(expected, rel=1e-5)
    nothing = RewardEstimates(rewards=torch.full((1, 4), torch.nan), valid=torch.zeros(1, 4, dtype=torch.bool))
    assert critic.loss(batch, nothing)["loss"].item() == 0


def test_a_step_into_an_observation_never_made_is_unknown_unless_it_terminates():
    critic = ValueCritic(4, hidden=(8,), lam=0.0)
    cut, rewards = chain(3, End.TIME_LIMIT, reward=5.0, last_observed=False)
    values = critic(cut).v[0].detach()
    errors = [5 + 0.99 * values[t + 1] - values[t] for t in range(3)]
    assert critic.loss(cut, rewards)["loss"].item() == pytest.approx((errors[0] ** 2 + errors[1] ** 2).item() / 2)
    done, rewards = chain(3, End.SUCCESS, reward=5.0, last_observed=False)
    final = (5 - values[2]) ** 2
    assert critic.loss(done, rewards)["loss"].item() == pytest.approx(
        (errors[0] ** 2 + errors[1] ** 2 + final).item() / 3
    )


def test_context_steps_are_not_trained_on():
    batch, rewards = chain(3, End.SUCCESS, reward=1.0)
    critic = ValueCritic(4, hidden=(), lam=0.0)
    last_only = replace(batch, weight=torch.tensor([[0.0, 0.0, 1.0]]))
    value = critic(batch).v[0, 2].item()
    assert critic.loss(last_only, rewards)["loss"].item() == pytest.approx((1 - value) ** 2, rel=1e-5)


def test_padding_is_worth_nothing():
    batch, _ = chain(3, End.SUCCESS, reward=1.0)
    critic = ValueCritic(4, hidden=(8,))
    padded = critic(pad_steps(batch, 2)).v
    assert torch.equal(padded[:, :4], critic(batch).v)
    assert not padded[:, 4:].any()


def test_features_are_looked_at():
    critic = ValueCritic(1, hidden=(4,), feature_sizes={"clip/top": 2})
    seen = Observation(state=torch.zeros(2, 1), features={"clip/top": torch.tensor([[0.0, 0.0], [1.0, 1.0]])})
    one, other = critic.value(seen)
    assert one != other


@quick
@given(trajectory_batches(state_size=2))
def test_it_keeps_every_promise_of_a_critic(batch):
    check_critic(ValueCritic(2, hidden=(4,)), batch)


@quick
@given(trajectory_batches(state_size=2), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_loss_is_a_number_whatever_stands_in_the_padding(batch, lam):
    critic = ValueCritic(2, hidden=(4,), lam=lam)
    loss = critic.loss(batch, RecordedReward()(batch))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in critic.parameters() if p.grad is not None)


def test_its_loss_reaches_its_parameters():
    batch, rewards = chain(4, End.SUCCESS, reward=1.0)
    check_critic(ValueCritic(5, hidden=(4,)), batch, rewards)
