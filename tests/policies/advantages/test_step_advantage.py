"""N-step advantages: against a slow loop, and zero everywhere where V is the exact return."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, TrajectoryBatch, ValueEstimates
from guerdon.core.interfaces import Critic
from guerdon.core.returns import discounted_returns
from guerdon.critics.value import ValueCritic
from guerdon.policies.advantages.step_advantage import StepAdvantage
from guerdon.rewards.recorded import RecordedReward


class Told(Critic):
    """Has the values it is told."""

    def __init__(self, v: list, gamma: float = 1.0):
        super().__init__()
        self.v, self.gamma = torch.tensor(v), gamma

    def forward(self, batch, proposer=None):
        return ValueEstimates(v=self.v)


def trajectories(rewards, ends, valid=None, lengths=None, **more):
    """Rows with recorded rewards."""
    rewards = torch.tensor(rewards)
    rows, steps = rewards.shape
    lengths = torch.full((rows,), steps) if lengths is None else torch.tensor(lengths)
    mask = torch.arange(steps) < lengths[:, None]
    valid = mask if valid is None else torch.tensor(valid)
    return TrajectoryBatch(
        state=torch.zeros(rows, steps + 1, 2),
        actions=torch.zeros(rows, steps, 1),
        mask=mask,
        end=torch.tensor([int(end) for end in ends]),
        recorded={"reward": Labelled(values=rewards, valid=valid)},
        **more,
    )


def advantages(source, batch):
    return source(batch, source.estimate(batch))


def test_by_hand():
    # gamma 0.5, N = 2. t = 0: 1 + 0.5·2 + 0.25·V(2) - V(0) = 2 + 5 - 3; t = 1: 2 + 0.5·4 + 0.25·V(3) - V(1) = 4 + 2 -
    # 7; t = 2: one step left, 4 + 0.5·V(3) - V(2) = 4 + 4 - 20
    v = [[3.0, 7.0, 20.0, 8.0]]
    batch = trajectories([[1.0, 2.0, 4.0]], [End.TIME_LIMIT])
    found = advantages(StepAdvantage(Told(v), RecordedReward(), steps=2, gamma=0.5), batch)
    assert found.advantages.tolist() == [[4.0, -1.0, -12.0]]
    assert found.returns.tolist() == [[7.0, 6.0, 8.0]] and found.values.tolist() == v
    # a success has no future: t = 1 and t = 2 lose V(3)
    over = trajectories([[1.0, 2.0, 4.0]], [End.SUCCESS])
    found = advantages(StepAdvantage(Told(v), RecordedReward(), steps=2, gamma=0.5), over)
    assert found.advantages.tolist() == [[4.0, -3.0, -16.0]]


def slow(rewards, values, length, terminated, observed, steps, gamma):
    """One row, literally; None where it is unknown."""
    found = []
    last = length if observed or terminated else length - 1
    for t in range(length):
        n = min(steps, last - t)
        window = rewards[t : t + n]
        if n < 1 or None in window:
            found.append(None)
            continue
        total = sum(gamma**k * r for k, r in enumerate(window))
        if not (terminated and t + n == length):
            total += gamma**n * values[t + n]
        found.append(total - values[t])
    return found


@given(st.data())
def test_it_is_a_slow_loop(data):
    draw, steps, gamma = data.draw, data.draw(st.integers(1, 6)), data.draw(st.sampled_from([0.0, 0.9, 1.0]))
    size, rows = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    numbers = st.floats(-10, 10, width=32)
    lengths = [draw(st.integers(0, size)) for _ in range(rows)]
    ends = [draw(st.sampled_from([End.CUT, End.SUCCESS, End.FAILURE, End.TIME_LIMIT])) for _ in range(rows)]
    observed = [draw(st.booleans()) for _ in range(rows)]
    rewards = [[draw(st.none() | numbers) for _ in range(size)] for _ in range(rows)]
    values = [[draw(numbers) for _ in range(size + 1)] for _ in range(rows)]
    batch = trajectories(
        [[0.0 if r is None else r for r in row] for row in rewards],
        ends,
        [[r is not None for r in row] for row in rewards],
        lengths,
        last_observed=torch.tensor(observed),
    )
    found = advantages(StepAdvantage(Told(values), RecordedReward(), steps, gamma), batch)
    for row in range(rows):
        terminated = ends[row] in (End.SUCCESS, End.FAILURE)
        wanted = slow(rewards[row], values[row], lengths[row], terminated, observed[row], steps, gamma)
        wanted += [None] * (size - lengths[row])
        assert found.valid[row].tolist() == [w is not None for w in wanted]
        assert found.advantages[row].tolist() == pytest.approx([w or 0.0 for w in wanted], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3, 10, 50])
@pytest.mark.parametrize("gamma", [1.0, 0.95])
@pytest.mark.parametrize("scale", [1.0, 500.0])
@pytest.mark.parametrize("end, last", [(End.SUCCESS, 0.0), (End.FAILURE, -400.0), (End.FAILURE, -100.0)])
def test_t10_the_exact_return_leaves_no_advantage(steps, gamma, scale, end, last):
    """In any window, terminal ones included; also where every return is far below zero (the largest is −100)."""
    rewards = torch.full((1, 20), -1.0 / scale)
    rewards[0, -1] = last / scale
    exact = discounted_returns(rewards, torch.ones(1, 20, dtype=torch.bool), gamma)
    v = torch.cat([exact, torch.full((1, 1), 123.0)], 1)  # what follows a termination is never read
    source = StepAdvantage(Told(v.tolist()), RecordedReward(), steps, gamma)
    found = advantages(source, trajectories(rewards.tolist(), [end]))
    assert found.valid.all()
    assert found.advantages.abs().max() < 1e-6 * max(1.0, float(exact.abs().max()))
    # the affine map (x - min)/(max - min) - 1 would have left 0.25 on returns in [-500, -100]
    assert float(-torch.tensor(-100.0) / (-100 + 500)) == 0.25


def test_it_takes_the_discount_of_the_critic():
    batch = trajectories([[1.0, 1.0]], [End.SUCCESS])
    assert StepAdvantage(Told([[0.0] * 3], gamma=0.5), RecordedReward()).gamma == 0.5
    found = advantages(StepAdvantage(Told([[0.0] * 3], gamma=0.5), RecordedReward()), batch)
    assert found.advantages.tolist() == [[1.5, 1.0]]


def test_decisions_context_and_forced_sources():
    batch = trajectories(
        [[-1.0] * 4] * 2,
        [End.SUCCESS] * 2,
        decision_step=torch.tensor([[0, 2], [1, 3]]),
        weight=torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0] * 4]),
        source=torch.tensor([0, 4]),
    )
    v = [[0.0] * 5] * 2
    found = advantages(StepAdvantage(Told(v), RecordedReward(), steps=9, force_positive=[4]), batch)
    assert found.valid.tolist() == [[False, True], [True, True]]
    assert found.advantages[0].tolist() == [0, -2] and (found.advantages[1] > 0).all()
    assert found.returns.tolist() == [[0, -2], [-3, -1]]


def test_with_a_trained_critic_saved_and_opened_again(tmp_path):
    batch = trajectories([[-1.0] * 3], [End.SUCCESS])
    source = StepAdvantage(ValueCritic(2), RecordedReward(), steps=2).train()
    assert not any(p.requires_grad for p in source.parameters())
    assert not any(m.training for m in [*source.critic.modules(), *source.reward.modules()])
    before = advantages(source, batch)
    source.save_pretrained(tmp_path)
    assert torch.equal(advantages(StepAdvantage.from_pretrained(tmp_path), batch).advantages, before.advantages)


def test_bad_input_is_refused():
    batch = trajectories([[-1.0, 0.0]], [End.SUCCESS])
    with pytest.raises(ValueError, match="at least one step"):
        StepAdvantage(Told([[0.0] * 3]), RecordedReward(), steps=0)
    with pytest.raises(ValueError, match=r"a discount in \[0, 1\]"):
        StepAdvantage(Told([[0.0] * 3]), RecordedReward(), gamma=1.5)
    with pytest.raises(FloatingPointError, match="Told gave episode 0 the advantage nan at step 1"):
        advantages(StepAdvantage(Told([[0.0, math.nan, 0.0]]), RecordedReward(), steps=2), batch)
