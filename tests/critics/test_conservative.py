"""The calibrated floor: by hand, by its purpose, and where it has nothing to say."""

import math
from typing import Any, Literal

import pytest
import torch
from torch import nn

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.critics.action import ActionCritic
from guerdon.critics.chunks import REPLAN
from guerdon.critics.conservative import CalibratedFloor
from guerdon.critics.logged import LoggedChunks
from guerdon.critics.networks import ChunkNetwork, ChunkPerceptron
from guerdon.testing import check_critic, reopen


class Slope(ChunkNetwork):
    """Q = slope · first action."""

    def __init__(self, horizon: int = 1) -> None:
        super().__init__(1, 1, horizon, 1)
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, observation, chunk, mask):
        return (self.slope * chunk[:, 0, 0])[None]


class Fixed:
    version = 0

    def __init__(self, *actions):
        self.actions = torch.tensor(actions)

    def __call__(self, batch, rows, steps, n):
        return self.actions[:n, None, None, None].expand(-1, len(rows), 1, 1)


def steps(returns, ends, actions=None):
    """One-step rows."""
    count = len(returns)
    mask = torch.ones(count, 1, dtype=torch.bool)
    batch = TrajectoryBatch(
        state=torch.zeros(count, 2, 1),
        actions=torch.tensor(actions or [0.0] * count)[:, None, None],
        mask=mask,
        end=torch.tensor([int(e) for e in ends]),
    )
    return batch, RewardEstimates(rewards=torch.tensor(returns)[:, None], valid=mask)


def penalty_of(critic, batch, rewards, proposer=None):
    return float(critic.loss(batch, rewards, proposer).get("penalty", torch.zeros(())))


def test_the_penalty_by_hand():
    # Q = action, the logged action 0.5 returned 2.0; proposals 1 and 4: mean(max(1, 2), max(4, 2)) - 0.5 = 2.5, and
    # α = 0.1; a log-sum-exp gives log((e^2 + e^4) / 2) - 0.5
    batch, rewards = steps([2.0], [End.SUCCESS], [0.5])
    gaps: dict[Literal["mean", "logsumexp"], float] = {
        "mean": 2.5,
        "logsumexp": math.log((math.e**2 + math.e**4) / 2) - 0.5,
    }
    for reduce, gap in gaps.items():
        floor = CalibratedFloor(alpha=0.1, proposals=2, uniform=0, reduce=reduce)
        critic = ActionCritic(Slope(), penalty=floor)
        found = critic.loss(batch, rewards, Fixed(1.0, 4.0))
        assert float(found["penalty"]) == pytest.approx(0.1 * gap)
        assert float(found["loss"].detach()) == pytest.approx((0.5 - 2.0) ** 2 + 0.1 * gap)
        assert float(found["td_loss"]) == pytest.approx(2.25)


def test_below_the_floor_nothing_is_pushed_down():
    # d penalty / d slope: other chunks above the floor count with their action, those below not at all
    batch, rewards = steps([2.0], [End.SUCCESS], [0.5])
    critic: Any = ActionCritic(Slope(), penalty=CalibratedFloor(alpha=1.0, proposals=2, uniform=0))
    for actions, gradient in (((1.0, 4.0), 4.0 / 2 - 0.5), ((1.0, 1.5), -0.5), ((3.0, 5.0), 4.0 - 0.5)):
        critic.zero_grad()
        critic.loss(batch, rewards, Fixed(*actions))["loss"].backward()
        td = 2 * (0.5 - 2.0) * 0.5
        assert float(critic.network.slope.grad) == pytest.approx(gradient + td)


def test_steps_without_a_known_return_get_no_penalty():
    ends = [End.SUCCESS, End.CUT]
    both = ActionCritic(Slope(), penalty=CalibratedFloor(alpha=1.0, proposals=1, uniform=0))
    alone = penalty_of(both, *steps([2.0], ends[:1]), Fixed(3.0))
    assert alone == pytest.approx(3.0)
    assert penalty_of(both, *steps([2.0, 2.0], ends), Fixed(3.0)) == pytest.approx(alone)  # a mean over known steps
    assert "penalty" not in both.loss(*steps([2.0], ends[1:]), Fixed(3.0))


def test_steps_are_weighted_as_in_the_squared_error():
    batch, rewards = steps([0.0, 0.0], [End.FAILURE] * 2, [0.0, 1.0])
    critic = ActionCritic(
        Slope(),
        penalty=CalibratedFloor(alpha=1.0, proposals=1, uniform=0),
        logged=LoggedChunks(source_weights={"0": 1.0}),
    )
    batch.weight[:, 0] = torch.tensor([3.0, 1.0])
    # gaps 2 - 0 and 2 - 1, weights 3 and 1: 7 / 4
    assert penalty_of(critic, batch, rewards, Fixed(2.0)) == pytest.approx(7 / 4)


def test_uniform_chunks_lie_in_the_range_of_the_data():
    seen = []

    class Watching(Slope):
        def forward(self, observation, chunk, mask):
            seen.append(chunk.detach())
            return super().forward(observation, chunk, mask)

    batch, rewards = steps([0.0] * 200, [End.FAILURE] * 200, torch.linspace(-2, 5, 200).tolist())
    critic = ActionCritic(Watching(), penalty=CalibratedFloor(proposals=0, uniform=3))
    with pytest.raises(ValueError, match="call fit_scales"):
        critic.loss(batch, rewards)
    critic.fit_scales(batch)
    seen.clear()
    critic.loss(batch, rewards)  # all rows end and nobody proposes: no policy is needed
    drawn = torch.cat(seen[1:]).flatten()
    assert len(drawn) == 600 and -2 <= float(drawn.min()) < -1.8 and 4.8 < float(drawn.max()) <= 5
    assert float(drawn.mean()) == pytest.approx(1.5, abs=4 * 7 / math.sqrt(12 * 600))


@pytest.mark.slow
def test_it_keeps_unseen_actions_down_where_extrapolation_would_praise_them():
    # logged actions in [-1, 0] return their value; unseen ones up to 1 are praised by a line, not with the penalty
    found = {}
    for alpha in (None, 1.0):
        torch.manual_seed(0)
        actions = (-torch.rand(128)).tolist()
        batch, rewards = steps(actions, [End.FAILURE] * 128, actions)
        penalty = None if alpha is None else CalibratedFloor(alpha=alpha, proposals=1, uniform=0)
        critic = ActionCritic(ChunkPerceptron(1, 1, 1, 2, hidden=(32,)), penalty=penalty)
        critic.fit_scales(batch)
        optimizer = torch.optim.Adam(critic.network.parameters(), lr=3e-2)
        for _ in range(60):
            optimizer.zero_grad()
            critic.loss(batch, rewards, Fixed(1.0))["loss"].backward()
            optimizer.step()
        value = critic(batch, Fixed(*[1.0] * 4)).v[0, 0]
        found[alpha] = float(value)
    assert found[1.0] < found[None] - 0.2
    assert found[1.0] > -1.5  # but not without a bottom: returns go down to -1


def test_chunks_are_compared_at_the_same_length():
    # a row that ends after 2 of 4 steps: other chunks are shown as many steps of it as the logged one
    seen = []

    class Watching(Slope):
        def forward(self, observation, chunk, mask):
            seen.append(mask.sum(1).tolist())
            return super().forward(observation, chunk, mask)

    mask = torch.ones(1, 2, dtype=torch.bool)
    batch = TrajectoryBatch(
        state=torch.zeros(1, 3, 1),
        actions=torch.randn(1, 2, 1),
        mask=mask,
        end=torch.tensor([int(End.SUCCESS)]),
        recorded={REPLAN: Labelled(values=torch.tensor([[1.0, 0.0]]), valid=mask)},
    )
    rewards = RewardEstimates(rewards=torch.zeros(1, 2), valid=mask)
    critic = ActionCritic(
        Watching(4), penalty=CalibratedFloor(proposals=0, uniform=1), logged=LoggedChunks(tails="mask")
    )
    critic.fit_scales(batch)
    critic.loss(batch, rewards)
    assert seen == [[2, 1], [2, 1]]


def test_it_is_saved_and_keeps_what_every_critic_promises():
    mask = torch.ones(2, 3, dtype=torch.bool)
    batch = TrajectoryBatch(
        state=torch.randn(2, 4, 1),
        actions=torch.randn(2, 3, 1),
        mask=mask,
        end=torch.tensor([int(End.SUCCESS), int(End.CUT)]),
        recorded={REPLAN: Labelled(values=torch.zeros(2, 3), valid=mask)},
    )
    rewards = RewardEstimates(rewards=torch.randn(2, 3), valid=mask)
    critic = ActionCritic(ChunkPerceptron(1, 1, 2, hidden=(8,)), penalty=CalibratedFloor(alpha=0.5, uniform=2))
    critic.fit_scales(batch)
    check_critic(critic, batch, rewards, Fixed(*torch.randn(4).tolist()))
    again = reopen(critic)
    assert again.penalty is not None and (again.penalty.alpha, again.penalty.uniform) == (0.5, 2)
    assert torch.equal(again.network.action_scale.high, critic.network.action_scale.high)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0.0}, {"proposals": -1}, {"proposals": 0, "uniform": 0}, {"reduce": "max"}]
)
def test_arguments_that_make_no_sense_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=r"expected alpha above 0|Expected type"):
        CalibratedFloor(**wrong)


class Seen(Slope):
    """Keeps the chunks that it values."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks = []

    def forward(self, observation, chunk, mask):
        self.chunks.append(chunk.detach().flatten())
        return super().forward(observation, chunk, mask)


@pytest.mark.parametrize("reduce", ["mean", "logsumexp"])
def test_the_floor_is_for_the_policys_chunks_only(reduce: Literal["mean", "logsumexp"]):
    # the return 100 is above every value: a chunk of the policy counts as 100, a uniform one as itself
    batch, rewards = steps([100.0] * 4, [End.SUCCESS] * 4, [-1.0, 0.0, 1.0, 2.0])
    network = Seen()
    critic = ActionCritic(network, penalty=CalibratedFloor(alpha=1.0, proposals=1, uniform=2, reduce=reduce))
    critic.fit_scales(batch)
    found = penalty_of(critic, batch, rewards, Fixed(3.0))
    uniform = torch.stack(network.chunks[-2:])
    others = torch.cat([torch.full((1, 4), 100.0), uniform])
    soft = others.mean(0) if reduce == "mean" else others.logsumexp(0) - math.log(3)
    assert found == pytest.approx(float((soft - batch.actions[:, 0, 0]).mean()), rel=1e-5)


def test_uniform_chunks_pull_their_own_value_down_below_the_floor():
    batch, rewards = steps([100.0] * 2, [End.SUCCESS] * 2, [1.0, 2.0])
    network = Seen()
    critic = ActionCritic(network, penalty=CalibratedFloor(alpha=1.0, proposals=0, uniform=1))
    critic.fit_scales(batch)
    parts = critic.penalty
    assert parts is not None
    points = critic.points(batch, rewards)
    members = critic.logged_members(batch, points.rows, points.steps, points.lengths)
    penalty = parts(critic, batch, rewards, points, members, None)["penalty"]
    (gradient,) = torch.autograd.grad(penalty, [network.slope])
    assert float(gradient) == pytest.approx(float(network.chunks[-1].mean()) - 1.5, rel=1e-5)


def test_uniform_chunks_come_from_a_generator_of_their_own(tmp_path):
    batch, rewards = steps([0.0] * 8, [End.FAILURE] * 8, torch.linspace(-1, 1, 8).tolist())

    def made(seed=0):
        critic = ActionCritic(ChunkPerceptron(1, 1, hidden=(4,)), penalty=CalibratedFloor(proposals=0, seed=seed))
        critic.load_state_dict(weights.state_dict(), strict=False)
        assert critic.penalty is not None
        critic.penalty.draws.zero_()
        return critic

    weights = ActionCritic(ChunkPerceptron(1, 1, hidden=(4,)))
    weights.fit_scales(batch)
    before = torch.random.get_rng_state()
    one, two, other = made(), made(), made(seed=1)
    torch.random.set_rng_state(before)
    first = [penalty_of(one, batch, rewards) for _ in range(3)]
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator moved"
    torch.rand(7)
    assert [penalty_of(two, batch, rewards) for _ in range(3)] == first
    assert len(set(first)) == 3 and penalty_of(other, batch, rewards) not in first
    resumed = made()
    resumed.load_state_dict(one.state_dict())
    assert penalty_of(resumed, batch, rewards) == penalty_of(two, batch, rewards)
    old = {k: v for k, v in one.state_dict().items() if not k.endswith("draws")}
    resumed.load_state_dict(old)
    assert resumed.penalty is not None and int(resumed.penalty.draws) == 0
