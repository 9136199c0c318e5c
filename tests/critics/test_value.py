"""State values against closed forms."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, Observation, RewardEstimates, TrajectoryBatch
from guerdon.core.returns import discounted_returns
from guerdon.critics.value import ValueCritic, known_returns
from guerdon.rewards.recorded import RecordedReward
from guerdon.testing import check_critic, pad_steps, trajectory_batches


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


def table(length, gamma, lam) -> Any:
    """A critic that holds one number per state."""
    critic: Any = ValueCritic(length + 1, hidden=(), gamma=gamma, lam=lam)
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


# T3: −1 a step, d steps to the end; V_0 = −(1 − .99^(d−1))/.01, and a failure at the end adds .99^(d−1) · its cost
@pytest.mark.parametrize(
    "length, end, final, expected",
    [(50, End.SUCCESS, 0.0, -38.8883), (300, End.SUCCESS, 0.0, -95.0464), (50, End.FAILURE, -1000.0, -650.0055)],
)
def test_monte_carlo_targets_of_a_long_chain(length, end, final, expected):
    batch, rewards = chain(length, end, reward=-1.0, final=final)
    targets, counted = table(length, 0.99, 1.0).targets(batch, rewards)
    assert targets[0, 0].item() == pytest.approx(expected, abs=1e-3)
    assert counted.all()


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_the_same_tail_is_continued_where_it_was_cut_and_not_where_it_terminated(lam):  # T7
    cut, rewards = chain(3, End.CUT, reward=0.0)
    over, _ = chain(3, End.FAILURE, reward=0.0)
    critic = table(3, 0.5, lam)
    with torch.no_grad():
        critic.network[-1].weight[0, 3] = 8.0  # V of the last observation
    # V of the others is 0: λ-returns of the cut row are .5 · 8, then .5 · λ · 4, then .5 · λ of that
    assert critic.targets(cut, rewards)[0].tolist() == [[1.0 * lam * lam, 2.0 * lam, 4.0]]
    assert critic.targets(over, rewards)[0].tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.slow
def test_fragments_are_stitched_by_values_and_not_by_returns():  # T8
    # A → B in two steps by one actor, B → goal in three by another, never in one row: states 0 1 2 and 2 3 4 5
    def piece(states, end, rewards):
        steps = len(states) - 1
        batch = TrajectoryBatch(
            state=torch.eye(6)[states][None],
            actions=torch.zeros(1, steps, 1),
            mask=torch.ones(1, steps, dtype=torch.bool),
            end=torch.tensor([int(end)]),
        )
        return batch, RewardEstimates(rewards=torch.tensor([rewards]), valid=batch.mask)

    first, second = piece([0, 1, 2], End.CUT, [-1.0, -1.0]), piece([2, 3, 4, 5], End.SUCCESS, [-1.0, -1.0, 0.0])

    def learned(**how: Any):
        critic: Any = ValueCritic(6, hidden=(), gamma=0.9, **how)
        torch.nn.init.zeros_(critic.network[-1].weight)
        critic.network[-1].bias.requires_grad_(False)
        optimizer = torch.optim.SGD([critic.network[-1].weight], lr=0.5)
        for _ in range(200):
            optimizer.zero_grad()
            torch.stack([critic.loss(*each)["loss"] for each in (first, second)]).sum().backward()
            optimizer.step()
        return critic(first[0]).v[0, 0].item()

    # V(B) = −1 − .9 = −1.9; V(A) = −1.9 + .81 · V(B) = −3.439: both TD and a Monte-Carlo return continued by a value
    assert learned(lam=0.0) == pytest.approx(-3.439, abs=1e-3)
    assert learned(lam=1.0) == pytest.approx(-3.439, abs=1e-3)
    # the return of the first fragment alone: −1.9 if it is taken to be over, unknown (so 0, as it began) if left out
    assert learned(lam=1.0, cuts="end") == pytest.approx(-1.9, abs=1e-3)
    assert learned(lam=1.0, cuts="leave_out") == 0.0


def test_leaving_out_takes_only_returns_that_are_facts():
    batch, rewards = chain(4, End.SUCCESS, reward=-1.0)
    critic = ValueCritic(5, gamma=0.9, lam=1.0, cuts="leave_out")
    valid = torch.tensor([[True, False, True, True]])
    unknown = RewardEstimates(rewards=torch.where(valid, -1.0, torch.nan), valid=valid)
    targets, counted = critic.targets(batch, unknown)
    assert counted.tolist() == [[False, False, True, True]]
    assert targets[counted].tolist() == pytest.approx([-1.9, -1.0])
    limit, rewards = chain(4, End.TIME_LIMIT, reward=-1.0, last_observed=False)
    assert not critic.targets(limit, rewards)[1].any()
    assert critic.loss(limit, rewards)["loss"].item() == 0
    # taken to be over, not even the observation that nobody made is missed
    over = ValueCritic(5, gamma=0.9, lam=1.0, cuts="end").targets(limit, rewards)
    assert over[1].all() and over[0][0].tolist() == pytest.approx([-3.439, -2.71, -1.9, -1.0])


def test_a_reward_that_is_no_number_is_an_error():
    batch, rewards = chain(3, End.SUCCESS, reward=1.0)
    broken = replace(rewards, rewards=torch.tensor([[1.0, torch.nan, 1.0]]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        ValueCritic(4).loss(batch, broken)
    refused: list[dict[str, Any]] = [{"cuts": "bootstrap_all"}, {"gamma": 1.5}, {"lam": -0.1}]
    for wrong in refused:
        with pytest.raises((ValueError, TypeError), match="cuts"):
            ValueCritic(4, **wrong)


def test_scales_come_from_observations_that_were_made():
    batch, _ = chain(2, End.CUT, reward=0.0, last_observed=False)
    batch = replace(batch, state=torch.tensor([[[0.0], [4.0], [4.0]]]))
    critic = ValueCritic(1)
    critic.fit_scales(pad_steps(batch, 3))
    assert critic.reads.mean.item() == 2.0 and critic.reads.std.item() == 2.0 and bool(critic.reads.fitted)
    assert critic.inputs.state_size == 1


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


@pytest.mark.slow
@given(trajectory_batches(state_size=2))
def test_it_keeps_every_promise_of_a_critic(batch):
    check_critic(ValueCritic(2, hidden=(4,)), batch)


@given(trajectory_batches(state_size=2), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_loss_is_a_number_whatever_stands_in_the_padding(batch, lam):
    critic = ValueCritic(2, hidden=(4,), lam=lam)
    loss = critic.loss(batch, RecordedReward()(batch))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in critic.parameters() if p.grad is not None)


@given(trajectory_batches(state_size=2), st.sampled_from(["bootstrap", "leave_out", "end"]))
def test_a_terminated_row_with_known_rewards_has_one_return_whatever_cuts_mean(batch, cuts):
    rewards = RecordedReward()(batch)
    targets, counted = ValueCritic(2, hidden=(4,), gamma=0.9, lam=1.0, cuts=cuts).targets(batch, rewards)
    facts = known_returns(batch, rewards.valid)
    returns = discounted_returns(torch.where(rewards.valid, rewards.rewards, 0.0), batch.mask, 0.9)
    assert bool(counted[facts].all())
    assert torch.allclose(targets[facts], returns[facts], atol=1e-5)
    assert cuts != "leave_out" or torch.equal(counted, facts)


def test_its_loss_reaches_its_parameters():
    batch, rewards = chain(4, End.SUCCESS, reward=1.0)
    check_critic(ValueCritic(5, hidden=(4,)), batch, rewards)
