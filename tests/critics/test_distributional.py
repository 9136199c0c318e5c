"""The categorical value: what it holds, learns, and refuses to hide."""

import pytest
import torch
from hypothesis import given

from guerdon.core.batch import End, RewardEstimates, TrajectoryBatch
from guerdon.critics.distributional import DistributionalValue
from guerdon.critics.value import ValueCritic
from guerdon.rewards.recorded import RecordedReward
from guerdon.rewards.step_cost import StepCost
from guerdon.testing import check_critic, trajectory_batches


def walk(rewards, end=End.FAILURE):
    """A row whose states are one-hot, so that a network without hidden layers is a table."""
    steps = len(rewards)
    batch = TrajectoryBatch(
        state=torch.eye(steps + 1)[None],
        actions=torch.zeros(1, steps, 1),
        mask=torch.ones(1, steps, dtype=torch.bool),
        end=torch.tensor([int(end)]),
    )
    return batch, RewardEstimates(rewards=torch.tensor([rewards]), valid=batch.mask)


def learn(critic, *pieces, rounds=300):
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.3)
    for _ in range(rounds):
        optimizer.zero_grad()
        torch.stack([critic.loss(*piece)["loss"] for piece in pieces]).sum().backward()
        optimizer.step()
    return [critic(batch).v[0].detach() for batch, _ in pieces]


@pytest.mark.slow
def test_returns_are_learned_and_lie_between_bins():
    # returns of −.3, −.2, −.25 in all: −.75, −.45, −.25; with 11 bins none but the middle of −.45 falls on a bin
    piece = walk([-0.3, -0.2, -0.25])
    (values,) = learn(DistributionalValue(4, hidden=(), bins=11), piece)
    assert values[:3].tolist() == pytest.approx([-0.75, -0.45, -0.25], abs=0.01)


@pytest.mark.slow
def test_the_distribution_keeps_what_a_mean_forgets():
    # from the same state a success at once (0) or the worst failure (−1): half the mass on either end
    both = [walk([0.0], End.SUCCESS), walk([-1.0])]
    critic = DistributionalValue(2, hidden=(), bins=5)
    values = learn(critic, *both)
    held = critic.probabilities(both[0][0].observe(torch.tensor([0]), torch.tensor([0])))[0]
    assert held.tolist() == pytest.approx([0.5, 0, 0, 0, 0.5], abs=0.01)
    assert values[0][0].item() == pytest.approx(-0.5, abs=0.01)


@pytest.mark.slow
def test_advantages_are_zero_where_values_are_exact_even_if_every_return_is_negative():  # T10
    # returns from −500 to −100: four steps of −100, and −100 more with the failure; divided by 500
    rewards = torch.tensor([-100.0] * 5) / 500
    piece = walk(rewards.tolist())
    (values,) = learn(DistributionalValue(6, hidden=(), bins=201), piece, rounds=600)
    values[5] = 0.0  # nothing follows a failure
    returns = rewards.flip(0).cumsum(0).flip(0)
    assert values[:5].tolist() == pytest.approx(returns.tolist(), abs=5e-3)
    for span in (1, 2, 5):  # windows inside the row, and up to its end
        for t in range(6 - span):
            assert (rewards[t : t + span].sum() + values[t + span] - values[t]).abs() < 0.01
    # (x − min)/(max − min) − 1 of rewards and values instead shifts every window inside the row by −max/(max − min)
    affine = [(500 * float(x) + 500) / 400 - 1 for x in (rewards[0], returns[1], returns[0])]
    assert affine[0] + affine[1] - affine[2] == pytest.approx(0.25)


def test_targets_outside_the_bins_are_counted():
    critic = DistributionalValue(4, hidden=(), low=-0.5)
    parts = critic.loss(*walk([-0.3, -0.2, -0.25]))  # returns −.75, −.45, −.25
    assert parts["clamped"].item() == pytest.approx(1 / 3)
    parts = critic.loss(*walk([0.5, 0.0, 0.25]))  # .75, .25, .25
    assert parts["clamped"].item() == 1.0
    assert DistributionalValue(4, hidden=()).loss(*walk([-0.5, -0.25, -0.25]))["clamped"].item() == 0.0


def test_with_the_step_cost_nothing_is_clamped():
    batch = TrajectoryBatch(
        state=torch.randn(2, 8, 1),
        actions=torch.zeros(2, 7, 1),
        mask=torch.arange(7) < torch.tensor([7, 4])[:, None],
        end=torch.tensor([int(End.FAILURE), int(End.SUCCESS)]),
    )
    rewards = StepCost(gamma=1.0).fit([batch])(batch)
    parts = DistributionalValue(1).loss(batch, rewards)
    # C = 5.5, largest magnitude 6 + 5.5 = 11.5; the failed row's mean return −(5.5 + 3)/11.5, the other's −1.5/11.5
    assert parts["clamped"].item() == 0.0
    assert parts["target"].item() == pytest.approx(-(7 * 8.5 + 4 * 1.5) / 11.5 / 11, abs=1e-6)


def test_targets_are_those_of_the_value_critic():
    batch, rewards = walk([-0.3, -0.2, -0.25], End.CUT)
    for how in ({"lam": 1.0, "cuts": "end"}, {"lam": 0.0, "cuts": "end"}, {"lam": 0.5, "cuts": "leave_out"}):
        scalar, spread = ValueCritic(4, gamma=0.9, **how), DistributionalValue(4, gamma=0.9, **how)
        ours, theirs = spread.targets(batch, rewards), scalar.targets(batch, rewards)
        assert torch.equal(ours[1], theirs[1])
        if how["lam"] == 1.0:
            assert torch.equal(ours[0], theirs[0])
    # by default only whole returns count
    assert DistributionalValue(4).loss(batch, rewards)["loss"].item() == 0.0


@pytest.mark.slow
@given(trajectory_batches(state_size=2))
def test_every_promise_of_a_critic_is_kept(batch):
    critic = DistributionalValue(2, hidden=(4,), bins=7, low=-1.0, high=1.0)
    check_critic(critic, batch)
    assert (critic(batch).v.abs() <= 1 + 1e-6).all()
    loss = critic.loss(batch, RecordedReward()(batch))["loss"]
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in critic.parameters() if p.grad is not None)


def test_its_loss_reaches_its_parameters():
    check_critic(DistributionalValue(4, hidden=(4,)), *walk([-0.3, -0.2, -0.25]))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="bins 1, low"):
        DistributionalValue(2, bins=1)
    with pytest.raises(ValueError, match="low below high"):
        DistributionalValue(2, low=0.0, high=-1.0)
