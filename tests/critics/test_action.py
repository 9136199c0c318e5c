"""The ALOE critic against closed forms, and what it refuses."""

import itertools
import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch, terminated_from
from guerdon.core.returns import chunk_td_targets
from guerdon.critics.action import ActionCritic
from guerdon.critics.chunks import REPLAN, aggregate
from guerdon.critics.ensembles import Aggregation
from guerdon.critics.logged import LoggedChunks
from guerdon.critics.networks import ChunkNetwork, ChunkPerceptron, ChunkTransformer
from guerdon.testing import check_critic, reopen, trajectory_batches

GOAL, SLIP, GAMMA = 5, 0.2, 0.9
V_POLICY = [-4.578437, -3.741776, -2.776000, -1.661186, -0.374332]  # right with 0.9; exact dynamic programming


class Table(ChunkNetwork):
    """A number for every state, number of steps shown and row of actions 0 and 1; actions between are chances of 1.

    So a policy that draws every action by itself is one chunk, and an expectation over it is exact.
    """

    def __init__(self, states: int, horizon: int, members: int = 1) -> None:
        super().__init__(states, 1, horizon, members)
        self.entries = nn.ParameterList(
            [nn.Parameter(torch.zeros(members, states, 2**n)) for n in range(1, horizon + 1)]
        )

    def members_of(self, state, actions, mask, observation):
        found = torch.zeros(self.members, len(state))
        for n, entries in enumerate(self.entries, 1):
            rows = (mask.sum(1) == n).nonzero().flatten()
            weight = torch.ones(len(rows), 1)
            for k in range(n):
                chance = actions[rows, k]
                weight = torch.stack([weight * (1 - chance), weight * chance], 2).flatten(1)
            found = found.index_put(
                (torch.arange(self.members)[:, None], rows[None]),
                torch.einsum("ms,ksc,mc->km", state[rows], entries, weight),
            )
        return found


class FirstAction(Table):
    """A table that looks at the first action of a chunk only: n-step returns without a correction."""

    def __init__(self, states: int, horizon: int) -> None:
        super().__init__(states, 1)
        self.horizon = horizon

    def members_of(self, state, actions, mask, observation):
        return super().members_of(state, actions[:, :1], mask[:, :1], observation)


class Ladder(ChunkNetwork):
    """A number for every state and number of steps shown; actions are not looked at."""

    def __init__(self, states: int, horizon: int, members: int = 1) -> None:
        super().__init__(states, 1, horizon, members)
        self.entries = nn.ParameterList([nn.Parameter(torch.zeros(members, states, horizon))])

    def members_of(self, state, actions, mask, observation):
        length = nn.functional.one_hot(mask.sum(1) - 1, self.horizon).float()
        return torch.einsum("ms,mh,ksh->km", state, length, self.entries[0])


class Always:
    """Proposes the same chunk everywhere."""

    def __init__(self, chunk: list[float]) -> None:
        self.chunk, self.version, self.asked = torch.tensor(chunk)[:, None], 0, []

    def __call__(self, batch, rows, steps, n):
        self.asked.extend(zip(rows.tolist(), steps.tolist(), strict=True))
        return self.chunk.expand(n, len(rows), -1, -1).clone()


class Every:
    """Proposes every chunk as often as a policy takes it that goes right nine times out of ten."""

    def __init__(self, horizon: int) -> None:
        self.version = 0
        one = [1.0] * 9 + [0.0]
        self.chunks = torch.tensor(list(itertools.product(one, repeat=horizon)))[:, None, :, None]

    def __call__(self, batch, rows, steps, n):
        assert n == len(self.chunks)
        return self.chunks.expand(-1, len(rows), -1, -1)


def sweep(critic, batch, rewards, proposer=None):
    """One full step: every entry goes to the weighted mean of its targets, by the gradient of the loss alone."""
    points = critic.points(batch, rewards)
    entries = list(critic.network.entries)
    members = critic.logged_members(batch, points.rows, points.steps, points.lengths)
    share = torch.autograd.grad((members * points.weight).sum(), entries, materialize_grads=True)
    gradient = torch.autograd.grad(critic.loss(batch, rewards, proposer)["loss"], entries, materialize_grads=True)
    scale = len(members) * points.weight.sum() / 2
    with torch.no_grad():
        for entry, by, weight in zip(entries, gradient, share, strict=True):
            entry -= torch.where(weight > 0, by * scale / weight.clamp(min=1e-12), 0.0)
    critic.after_step()


def corridor(horizon, recorded=True, policy=None):
    """Every outcome of every chunk from every state, weighted by its probability; step 0 is learned from alone.

    Args:
        horizon: Steps of a chunk.
        recorded: Whether the plan was recorded, so that what lies behind the end of an episode is known.
        policy: Weigh chunks by this chance to go right in steps 1 … h − 1; None weighs all alike.
    """
    rows = []
    for start in range(GOAL):
        for plan in itertools.product((0, 1), repeat=horizon):
            open_paths, done = [([start], 1.0)], []
            for action in plan:
                following = []
                for path, chance in open_paths:
                    steps = [(path[-1] + 1, 1 - SLIP), (path[-1], SLIP)] if action else [(path[-1], 1.0)]
                    for state, probability in steps:
                        (done if state == GOAL else following).append(([*path, state], chance * probability))
                open_paths = following
            weight = 1.0 if policy is None else math.prod(policy if a else 1 - policy for a in plan[1:])
            rows += [(path, plan, chance * weight) for path, chance in done + open_paths]
    count = len(rows)
    length = torch.tensor([len(path) - 1 for path, _, _ in rows])
    padded = torch.tensor([path + [0] * (horizon + 1 - len(path)) for path, _, _ in rows])
    plans = torch.tensor([plan for _, plan, _ in rows]).float()[..., None]
    mask = torch.arange(horizon) < length[:, None]
    weight = torch.zeros(count, horizon)
    weight[:, 0] = torch.tensor([chance for _, _, chance in rows])
    reached = padded.gather(1, length[:, None])[:, 0] == GOAL
    rewards = torch.where(reached[:, None] & (torch.arange(horizon) == length[:, None] - 1), 0.0, -1.0)
    batch = TrajectoryBatch(
        state=nn.functional.one_hot(padded, GOAL + 1).float(),
        actions=plans.masked_fill(~mask[..., None], math.nan),
        mask=mask,
        end=torch.where(reached, int(End.SUCCESS), int(End.CUT)),
        weight=weight,
        decision_step=torch.zeros(count, 1, dtype=torch.long),
        behaviour={"sample": plans[:, None]} if recorded else {},
    )
    return batch, RewardEstimates(rewards=rewards.masked_fill(~mask, 0.0), valid=mask)


def evaluated(critic, batch, rewards, proposer):
    """V of the five states after sweeps."""
    for _ in range(12 + 28 // critic.horizon):  # a state stays itself with 0.28: errors fall by 0.25 a sweep
        sweep(critic, batch, rewards, proposer)
    return at_states(critic.network, proposer.chunk if isinstance(proposer, Always) else proposer.chunks)


@torch.no_grad()
def at_states(network, chunks):
    found = []
    for chunk in chunks.reshape(-1, chunks.shape[-2]):
        batch = TrajectoryBatch(
            state=torch.eye(GOAL + 1)[:, None].repeat(1, 2, 1),
            actions=torch.zeros(GOAL + 1, 1, 1),
            mask=torch.ones(GOAL + 1, 1, dtype=torch.bool),
        )
        observation = batch.observe(torch.arange(GOAL), torch.zeros(GOAL, dtype=torch.long))
        each = chunk[None, :, None].expand(GOAL, -1, 1)
        found.append(network(observation, each, torch.ones(each.shape[:2], dtype=torch.bool))[0])
    return torch.stack(found).mean(0)


# T1, T2: the corridor -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("horizon", "all_right"), [(1, -4.518197), (2, -4.457288), (3, -4.395703), (5, -4.270471)])
def test_every_chunk_length_gives_the_same_value_of_the_policy_whoever_acted(horizon, all_right):
    # T1 and T2: all chunks are logged equally often, which is a behaviour that goes right half of the time
    batch, rewards = corridor(horizon)
    critic = ActionCritic(Table(GOAL + 1, horizon), gamma=GAMMA, polyak_rate=1.0)
    v = evaluated(critic, batch, rewards, Always([0.9] * horizon))
    torch.testing.assert_close(v, torch.tensor(V_POLICY), atol=2e-5, rtol=0)
    q = at_states(critic.network, torch.ones(horizon, 1))
    assert float(q[0]) == pytest.approx(all_right, abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [1, 2])
def test_sampled_chunks_give_the_same_value(horizon):
    batch, rewards = corridor(horizon)
    critic = ActionCritic(Table(GOAL + 1, horizon), gamma=GAMMA, polyak_rate=1.0, target_samples=10**horizon)
    v = evaluated(critic, batch, rewards, Every(horizon))
    torch.testing.assert_close(v, torch.tensor(V_POLICY), atol=5e-5, rtol=0)


@pytest.mark.parametrize("horizon", [1, 2, 3, 5])
def test_sweeps_of_the_pure_target_agree(horizon):
    batch, rewards = corridor(horizon, policy=0.9)
    assert swept(batch, rewards, horizon, first=0.9)[0] == pytest.approx(V_POLICY[0], abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "v0"), [(2, -5.437525), (3, -5.790777), (5, -6.094191)])
def test_without_chunks_the_behaviour_leaks_in(steps, v0):
    # negative control of T2: n-step returns of a behaviour that goes right half of the time, regressed on one action
    batch, rewards = corridor(steps, policy=0.5)
    assert swept(batch, rewards, steps, first=0.9)[0] == pytest.approx(v0, abs=2e-5)
    critic = ActionCritic(FirstAction(GOAL + 1, steps), gamma=GAMMA, polyak_rate=1.0)
    v = evaluated(critic, batch, rewards, Always([0.9] * steps))
    assert float(v[0]) == pytest.approx(v0, abs=5e-5)


def swept(batch, rewards, horizon, first):
    """V of the states by sweeps of `chunk_td_targets`; the first action is the policy's, the weights hold the rest."""
    state = batch.state.argmax(2)
    begin, weight = state[:, 0], batch.weight[:, 0].double()
    went = batch.behaviour["sample"][:, 0, 0, 0]
    weight = weight * torch.where(went > 0, first, 1 - first)
    v = torch.zeros(GOAL + 1, dtype=torch.float64)
    for _ in range(40):
        values = chunk_td_targets(rewards.rewards.double(), v[state], batch.mask, batch.terminated, horizon, GAMMA)
        total = torch.zeros_like(v).index_add(0, begin, weight * values[:, 0])
        v = total / torch.zeros_like(v).index_add(0, begin, weight).clamp(min=1e-12)
    return v.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recorded", "tails", "next_to_goal"),
    [(True, "mask", -2.6723), (False, "complete", -0.6907), (True, "complete", V_POLICY[4])],
)
def test_hidden_tails_give_the_end_away(recorded, tails, next_to_goal):
    # a mask that stops at the end says that there is one: chunks shown whole are those that did not reach the goal, and
    # V comes out far too low; a repeated last action says less, and with the plan that was recorded V is exact
    batch, rewards = corridor(3, recorded)
    critic = ActionCritic(Table(GOAL + 1, 3), gamma=GAMMA, polyak_rate=1.0, logged=LoggedChunks(tails=tails))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of logs that do not say when the policy planned
        v = evaluated(critic, batch, rewards, Always([0.9] * 3))
    assert float(v[4]) == pytest.approx(next_to_goal, abs=1e-4)


# T3, T4, T5: chains ---------------------------------------------------------------------------------------------------


def chain(length, end=End.SUCCESS, final=0.0, states=None, first=0):
    """A walk down a chain of states at -1 a step, and ``final`` for the last."""
    states = length + 1 if states is None else states
    rewards = torch.full((1, length), -1.0)
    rewards[0, -1] = final
    batch = TrajectoryBatch(
        state=torch.eye(states)[None, first : first + length + 1],
        actions=torch.zeros(1, length, 1),
        mask=torch.ones(1, length, dtype=torch.bool),
        end=torch.tensor([int(end)]),
        recorded={REPLAN: Labelled(values=torch.zeros(1, length), valid=torch.ones(1, length, dtype=torch.bool))},
    )
    return batch, RewardEstimates(rewards=rewards, valid=batch.mask)


def ladder(states, horizon, gamma=0.99, **more: Any) -> Any:
    return ActionCritic(Ladder(states, horizon), gamma=gamma, polyak_rate=1.0, **more), Always([0.0] * horizon)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "horizon", "final", "v0"),
    [(50, 1, 0.0, -38.8883), (300, 25, 0.0, -95.0464), (300, 50, 0.0, -95.0464), (50, 7, -1000.0, -650.0055)],
)
def test_a_chain_is_learned_to_its_closed_form(length, horizon, final, v0):
    # T3: -(1 - 0.99^(d-1)) / 0.01, and 0.99^49 of the penalty at the end
    batch, rewards = chain(length, End.SUCCESS if final == 0 else End.FAILURE, final)
    critic, policy = ladder(length + 1, horizon)
    for _ in range(math.ceil(length / horizon)):
        sweep(critic, batch, rewards, policy)
    assert float(critic(batch, policy).v[0, 0]) == pytest.approx(v0, rel=1e-4)


def test_nothing_follows_a_termination():
    # T4: d = 10, h = 50. Right: -(1 - 0.99^9) / 0.01 = -8.6483. A chunk filled up with -1 and continued by -100 gives
    # -(1 - 0.99^50) / 0.01 - 0.99^50 * 100 + 0.99^9 = -100 + 0.9135 = -99.0865
    batch, rewards = chain(10)
    critic, policy = ladder(11, 50)
    points = critic.points(batch, rewards)
    assert float(critic.targets(batch, rewards, points, policy)[0, 0]) == pytest.approx(-8.6483, abs=1e-4)
    assert policy.asked == []  # all chunks reach the end: nothing is bootstrapped, and nobody is asked
    padded = torch.full((1, 50), -1.0)
    padded[0, 9] = 0.0
    values = torch.full((1, 51), -100.0)
    wrong = chunk_td_targets(padded, values, torch.ones(1, 50, dtype=torch.bool), torch.tensor([False]), 50, 0.99)
    assert float(wrong[0, 0]) == pytest.approx(-99.0865, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("horizon", "sweeps"), [(1, 98), (5, 20), (10, 10), (25, 4), (50, 2)])
def test_longer_chunks_carry_values_faster(horizon, sweeps):
    # T5: V(0) = -(1 - 0.99^99) / 0.01 = -63.03; k sweeps reach hk steps, and 97.3 are needed for one percent
    batch, rewards = chain(100)
    critic, policy = ladder(101, horizon)
    truth, needed = -(1 - 0.99**99) / 0.01, 0
    while abs(float(critic(batch, policy).v[0, 0]) - truth) > 0.01 * abs(truth):
        sweep(critic, batch, rewards, policy)
        needed += 1
    assert needed == sweeps


# T6: re-plans ---------------------------------------------------------------------------------------------------------


def coin(replan=None):
    """A coin shows at the second state; the second action answers to it and is paid for agreeing. States: 0, heads 1,
    tails 2, end 3. Both first actions lead on alike."""
    rows = [(first, side) for first in (0.0, 1.0) for side in (0, 1)]
    state = torch.stack([torch.eye(4)[[0, 1 + side, 3]] for _, side in rows])
    actions = torch.tensor([[first, float(side)] for first, side in rows])[..., None]
    mask = torch.ones(4, 2, dtype=torch.bool)
    flags = {} if replan is None else {REPLAN: Labelled(values=torch.tensor([replan]).repeat(4, 1), valid=mask)}
    batch = TrajectoryBatch(state=state, actions=actions, mask=mask, end=torch.ones(4).long(), recorded=flags)
    return batch, RewardEstimates(rewards=torch.tensor([[0.0, 1.0]]).repeat(4, 1), valid=mask)


def test_logged_chunks_that_span_replans_come_out_too_high_and_are_warned_of():
    # every logged chunk returned 1, but a blind chunk agrees with the coin half of the time
    batch, rewards = coin()
    critic = ActionCritic(Table(4, 2), gamma=1.0, polyak_rate=1.0)
    with pytest.warns(UserWarning, match="may span re-plans: not all of these trajectories record"):
        sweep(critic, batch, rewards, Always([0.5, 0.5]))
    torch.testing.assert_close(critic.logged_q(batch)[0, :, 0], torch.ones(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        critic.loss(batch, rewards, Always([0.5, 0.5]))  # once is enough


def test_flags_end_chunks_at_replans_and_remove_the_bias():
    # one-step chunks: the value of the policy that sees the coin is 1, of one that does not look 0.5
    batch, rewards = coin(replan=[1.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        critic = ActionCritic(Table(4, 2), gamma=1.0, polyak_rate=1.0)
        for _ in range(3):
            sweep(critic, batch, rewards, Always([0.5]))
    # answers other than the coin's are never logged: the entries at heads for 0 and at tails for 1 are 1, else 0
    torch.testing.assert_close(critic.logged_q(batch)[0, :, 0], torch.full((4,), 0.5))
    open_loop = ActionCritic(Table(4, 2), gamma=1.0, polyak_rate=1.0, logged=LoggedChunks(across_replans=True))
    with pytest.warns(UserWarning, match="span re-plans of the policy that acted"):
        sweep(open_loop, batch, rewards, Always([0.5, 0.5]))
    torch.testing.assert_close(open_loop.logged_q(batch)[0, :, 0], torch.ones(4))


def test_rows_that_do_not_tell_are_warned_of_beside_rows_that_do():
    batch, rewards = coin(replan=[1.0, 0.0])
    column = batch.recorded[REPLAN]
    valid = column.valid.clone()
    valid[2] = False
    mixed = replace(batch, recorded={REPLAN: Labelled(values=column.values, valid=valid)})
    with pytest.warns(UserWarning, match="not all of these trajectories record"):
        ActionCritic(Table(4, 2)).points(mixed, rewards)


# T7, T8: ends and fragments -------------------------------------------------------------------------------------------

LIMITS = frozenset({End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.TAKEOVER})


@pytest.mark.parametrize("end", list(End))
@pytest.mark.parametrize("preset", ["default", "aloe"])
def test_what_follows_each_end(end, preset):
    # three steps at -1 (the last included) and a value of -10 behind them, gamma 0.5: R = -1 - 0.5 - 0.25 = -1.75, and
    # 0.125 * -10 = -1.25 more where the row goes on: a cut always, a time limit or a take-over by default only
    batch, rewards = chain(3, end, final=-1.0)
    if preset == "aloe":
        batch = replace(batch, terminated=terminated_from(batch.end, LIMITS))
    critic, policy = ladder(4, 3, gamma=0.5)
    nn.init.constant_(critic.target.entries[0], -10.0)
    goes_on = end == End.CUT or (preset == "default" and end in (End.TIME_LIMIT, End.TAKEOVER))
    target = critic.targets(batch, rewards, critic.points(batch, rewards), policy)[0]
    assert target[0].item() == pytest.approx(-3.0 if goes_on else -1.75)
    assert target[2].item() == pytest.approx(-6.0 if goes_on else -1.0)
    assert policy.asked == ([(0, 3)] if goes_on else [])


def test_a_cut_without_its_last_observation_is_learned_one_step_short():
    batch, rewards = chain(3, End.CUT, final=-1.0)
    batch = replace(batch, last_observed=torch.tensor([False]))
    critic, policy = ladder(4, 3, gamma=0.5)
    nn.init.constant_(critic.target.entries[0], -10.0)
    points = critic.points(batch, rewards)
    assert points.steps.tolist() == [0, 1]
    # from 0: -1 - 0.5 - 0.25 * 10, from 1: -1 - 0.5 * 10
    torch.testing.assert_close(critic.targets(batch, rewards, points, policy)[0], torch.tensor([-4.0, -6.0]))
    ended = replace(batch, terminated=torch.tensor([True]))
    assert critic.points(ended, rewards).steps.tolist() == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [1, 2, 4, 8])
def test_fragments_are_stitched(horizon):
    # T8: A … B by one policy (4 steps, cut), B … goal by a person (5 steps, success), never in one episode:
    # V(A) = -(1 - g^4) / (1 - g) + g^4 V(B), V(B) = -(1 - g^4) / (1 - g)
    first, known = chain(4, End.CUT, final=-1.0, states=10)
    second, then = chain(5, End.SUCCESS, states=10, first=4)
    critic, policy = ladder(10, horizon, gamma=GAMMA)
    for _ in range(9):
        sweep(critic, first, known, policy)
        sweep(critic, second, then, policy)
    piece = (1 - GAMMA**4) / (1 - GAMMA)
    assert float(critic(second, policy).v[0, 0]) == pytest.approx(-piece, abs=1e-4)
    assert float(critic.logged_q(first)[0, 0, 0]) == pytest.approx(-piece - GAMMA**4 * piece, abs=1e-4)


def test_stitching_by_the_pure_target():
    # the same with sweeps of `chunk_td_targets` over V, for every chunk length
    (first, known), (second, then) = chain(4, End.CUT, final=-1.0, states=10), chain(5, states=10, first=4)
    piece = (1 - GAMMA**4) / (1 - GAMMA)
    for horizon in (1, 2, 3, 5, 8):
        v = torch.zeros(1, 10)
        for _ in range(9):
            v[:, :4] = chunk_td_targets(known.rewards, v[:, :5], first.mask, first.terminated, horizon, GAMMA)
            v[:, 4:9] = chunk_td_targets(then.rewards, v[:, 4:], second.mask, second.terminated, horizon, GAMMA)
        assert float(v[0, 0]) == pytest.approx(-piece - GAMMA**4 * piece, abs=1e-4)


# targets against a walk, step by step ---------------------------------------------------------------------------------


class Blend(ChunkNetwork):
    """Members that differ: (k + 1) · (sum of the state) + (sum of the actions shown) · 0.1 · k - steps shown."""

    def __init__(self, state_size: int, action_size: int, horizon: int, members: int) -> None:
        super().__init__(state_size, action_size, horizon, members)
        self.scale = nn.Parameter(torch.ones(()))

    def members_of(self, state, actions, mask, observation):
        k = torch.arange(self.members)[:, None]
        # the sign makes another member the smallest from one observation to the next
        found = (k + 1) * state.sum(1) + 0.1 * k * actions.sum((1, 2)) - mask.sum(1)
        return self.scale * found


class Drift:
    """Proposes chunks that depend on the state and on the number of the draw."""

    version = 0

    def __init__(self, action_size, length):
        self.action_size, self.length = action_size, length

    def __call__(self, batch, rows, steps, n):
        state = batch.state[rows, steps].sum(1)[None, :, None, None]
        draw = torch.arange(n).float()[:, None, None, None]
        step = torch.arange(self.length).float()[None, None, :, None]
        return (state + draw - step).expand(-1, -1, -1, self.action_size)


def reduced(values, how, lcb):
    mean = sum(values) / len(values)
    if how == "mean":
        return mean
    if how == "min":
        return min(values)
    return mean - lcb * math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


@given(st.data())
def test_targets_agree_with_a_walk_step_by_step(data):
    batch = data.draw(trajectory_batches(state_size=2, action_size=1, stored_labels=False))
    rows, steps = batch.mask.shape
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    valid = torch.rand(rows, steps, generator=generator) < data.draw(st.sampled_from([0.6, 1.0]))
    flags = (torch.rand(rows, steps, generator=generator) < 0.4).float()
    ends = data.draw(st.sets(st.sampled_from(list(End))))
    across = data.draw(st.booleans())
    batch = replace(
        batch,
        terminated=terminated_from(batch.end, ends),
        recorded={REPLAN: Labelled(values=flags, valid=torch.rand(rows, steps, generator=generator) < 0.9)},
        weight=torch.where(torch.rand(rows, steps, generator=generator) < 0.8, batch.weight, 0.0),
    )
    known = valid & batch.mask
    rewards = RewardEstimates(
        rewards=torch.where(known, torch.randn(rows, steps, generator=generator), math.nan), valid=valid
    )
    horizon, gamma = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([0.0, 0.7, 1.0]))
    how, lcb, draws = data.draw(st.sampled_from(["min", "mean", "lcb", "independent"])), 0.5, 2
    length = data.draw(st.integers(1, horizon))
    critic = ActionCritic(
        Blend(2, 1, horizon, 3),
        gamma,
        how,
        target_samples=draws,
        aggregation=Aggregation(lcb=lcb),
        logged=LoggedChunks(across_replans=across),
    )
    policy = Drift(1, length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = critic.points(batch, rewards)
    targets = critic.targets(batch, rewards, points, policy)

    def bootstrap(row, step, member):
        total = float(batch.state[row, step].clamp(-10, 10).sum())
        mean = 0.0
        for draw in range(draws):
            actions = sum(max(-10.0, min(10.0, float(batch.state[row, step].sum()) + draw - i)) for i in range(length))
            values = [(k + 1) * total + 0.1 * k * actions - length for k in range(3)]
            mean += (values[member] if how == "independent" else reduced(values, how, lcb)) / draws
        return mean

    wanted = []
    column = batch.recorded[REPLAN]
    for row in range(rows):
        last = int(batch.steps[row])
        for start in range(last):
            if not float(batch.weight[row, start]) > 0:
                continue
            n, collected, at = 0, 0.0, start
            while n < horizon and at < last and bool(valid[row, at]):
                if n and not across and bool(column.valid[row, at]) and float(column.values[row, at]) > 0:
                    break  # planned anew
                if at + 1 == last and not bool(batch.last_observed[row]) and not bool(batch.terminated[row]):
                    break  # nobody saw where this step led
                collected += gamma**n * float(rewards.rewards[row, at])
                n, at = n + 1, at + 1
            if n == 0:
                continue
            over = at == last and bool(batch.terminated[row])
            members = range(3) if how == "independent" else [0]
            wanted.append(
                (row, start, [collected + (0.0 if over else gamma**n * bootstrap(row, at, m)) for m in members])
            )
    assert list(zip(points.rows.tolist(), points.steps.tolist(), strict=True)) == [(r, s) for r, s, _ in wanted]
    if wanted:
        values = torch.tensor([value for _, _, value in wanted]).T
        torch.testing.assert_close(targets.expand_as(values), values, atol=1e-3, rtol=1e-4)


# aggregation, weights, values -----------------------------------------------------------------------------------------


def test_members_are_reduced_in_the_target_as_asked():
    # two members at -2 and -6 behind one step at -1, gamma 0.5: min -1 - 3, mean -1 - 2, lcb (std 2, half of it)
    # -1 - 0.5 * (4 + 1) = -3.5, and each member's own
    batch, rewards = chain(1, End.CUT, final=-1.0)
    found = {}
    for how in ("min", "mean", "lcb", "independent"):
        critic: Any = ActionCritic(Ladder(2, 1, members=2), gamma=0.5, target_agg=how, aggregation=Aggregation(lcb=0.5))
        with torch.no_grad():
            critic.target.entries[0][:] = torch.tensor([-2.0, -6.0])[:, None, None]
        found[how] = critic.targets(batch, rewards, critic.points(batch, rewards), Always([0.0]))[:, 0].tolist()
    assert found == {"min": [-4.0], "mean": [-3.0], "lcb": [-3.5], "independent": [-2.0, -4.0]}


def test_the_target_takes_the_mean_over_chunks_of_the_smallest_member():
    # chunk 0: members (0, 2), chunk 1: members (5, 1): mean of minima (0 + 1) / 2, not minimum of means min(2.5, 1.5)
    class Both:
        version = 0

        def __call__(self, batch, rows, steps, n):
            return torch.tensor([0.0, 1.0])[:, None, None, None].expand(-1, len(rows), 1, 1)

    batch, rewards = chain(1, End.CUT, final=0.0)
    critic: Any = ActionCritic(Table(2, 1, members=2), gamma=1.0, target_samples=2, value_samples=2, polyak_rate=1.0)
    with torch.no_grad():
        critic.network.entries[0][:] = torch.tensor([[[0.0, 5.0]], [[2.0, 1.0]]])
    critic.after_step()
    assert critic.targets(batch, rewards, critic.points(batch, rewards), Both()).tolist() == [[0.5]]
    assert critic(batch, Both()).v.tolist() == [[0.5, 0.5]]


def test_sources_and_steps_are_weighted():
    # rows of sources 0, 1 and 2 with errors 1, 2 and 3; source 1 counts three times, source 2 not at all, and row 0
    # has weight 2: (2 · 1 + 3 · 4) / (2 + 3)
    state = torch.ones(3, 2, 1)
    batch = TrajectoryBatch(
        state=state,
        actions=torch.zeros(3, 1, 1),
        mask=torch.ones(3, 1, dtype=torch.bool),
        end=torch.full((3,), int(End.FAILURE)),
        source=torch.tensor([0, 1, 2]),
        weight=torch.tensor([[2.0], [1.0], [1.0]]),
    )
    rewards = RewardEstimates(rewards=torch.tensor([[1.0], [2.0], [3.0]]), valid=batch.mask)
    critic = ActionCritic(Ladder(1, 1), logged=LoggedChunks(source_weights={"1": 3.0, "2": 0.0}))
    assert critic.points(batch, rewards).rows.tolist() == [0, 1]
    assert float(critic.loss(batch, rewards)["loss"].detach()) == pytest.approx(14 / 5)
    assert reopen(critic).logged.source_weights == {1: 3.0, 2: 0.0}


def test_a_batch_with_nothing_to_learn_from_gives_zero():
    batch, rewards = chain(3)
    critic, policy = ladder(4, 2)
    loss = critic.loss(batch, replace(rewards, valid=torch.zeros_like(rewards.valid)), policy)["loss"]
    loss.backward()
    assert float(loss.detach()) == 0.0 and bool((critic.network.entries[0].grad == 0).all())


def test_a_horizon_longer_than_the_data_is_the_data():
    batch, rewards = chain(3, End.CUT, final=-1.0)
    long, short = ladder(4, 40)[0], ladder(4, 3)[0]
    for critic in (long, short):
        nn.init.constant_(critic.target.entries[0], -10.0)
    policy = Always([0.0] * 3)
    mine, theirs = (c.targets(batch, rewards, c.points(batch, rewards), policy) for c in (long, short))
    torch.testing.assert_close(mine, theirs)


def test_proposals_longer_than_the_critic_are_cut():
    batch, rewards = chain(3, End.CUT)
    critic, _ = ladder(4, 2)
    points = critic.points(batch, rewards)
    mine = critic.targets(batch, rewards, points, Always([0.0, 0.0]))
    torch.testing.assert_close(critic.targets(batch, rewards, points, Always([0.0, 0.0, 9.0, 9.0])), mine)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("network", ["transformer", "separate", "perceptron"])
def test_it_keeps_what_every_critic_promises(members, network):
    batch, rewards = mixed()
    if network == "perceptron":
        made = ChunkPerceptron(3, 2, 4, members, hidden=(16,))
    else:
        made = ChunkTransformer(3, 2, 4, members, width=16, layers=1, heads=2, shared=network == "transformer")
    critic = ActionCritic(made, target_samples=2)
    critic.fit_scales(batch)
    check_critic(critic, batch, rewards, Drift(2, 4))
    found = critic(batch, Drift(2, 4))
    assert found.members is not None and len(found.members) == members
    torch.testing.assert_close(found.q, aggregate(found.members, "min") * batch.mask)


def mixed(rows=5, steps=7):
    """Random rows of all ends and lengths, one without a step."""
    length = torch.tensor([7, 4, 0, 1, 6])
    mask = torch.arange(steps) < length[:, None]
    batch = TrajectoryBatch(
        state=torch.randn(rows, steps + 1, 3),
        actions=torch.randn(rows, steps, 2).masked_fill(~mask[..., None], math.nan),
        mask=mask,
        end=torch.arange(5),
        recorded={REPLAN: Labelled(values=(torch.arange(steps) % 3 == 0).float().repeat(rows, 1), valid=mask)},
    )
    return batch, RewardEstimates(rewards=torch.randn(rows, steps).masked_fill(~mask, 0.0), valid=mask)


@pytest.mark.slow
def test_it_learns_what_it_should_from_the_real_loss():
    # one step, reward = action: Q regresses to it, over three seeds
    for seed in range(3):
        torch.manual_seed(seed)
        batch = TrajectoryBatch(
            state=torch.randn(64, 2, 1),
            actions=torch.rand(64, 1, 1) * 2 - 1,
            mask=torch.ones(64, 1, dtype=torch.bool),
            end=torch.full((64,), int(End.SUCCESS)),
        )
        rewards = RewardEstimates(rewards=batch.actions[:, :, 0], valid=batch.mask)
        critic = ActionCritic(ChunkTransformer(1, 1, 2, width=16, layers=1, heads=2))
        critic.fit_scales(batch)
        optimizer = torch.optim.Adam([p for p in critic.parameters() if p.requires_grad], lr=2e-2)
        for _ in range(20):
            optimizer.zero_grad()
            critic.loss(batch, rewards)["loss"].backward()
            optimizer.step()
            critic.after_step()
        found = critic.logged_q(batch)[:, :, 0]
        assert torch.corrcoef(torch.stack([found[0], batch.actions[:, 0, 0]]))[0, 1] > 0.95


# bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_that_are_no_numbers_are_refused_by_name(value):
    batch, rewards = chain(3)
    batch = replace(batch, episode=torch.tensor([17]))
    broken = rewards.rewards.clone()
    broken[0, 1] = value
    critic, policy = ladder(4, 2)
    with pytest.raises(ValueError, match=r"reward of episode 17 is (nan|inf) at step 1.*mark it invalid"):
        critic.loss(batch, replace(rewards, rewards=broken), policy)
    unknown = torch.tensor([[True, False, True]])
    found = critic.loss(batch, RewardEstimates(rewards=broken, valid=unknown), policy)
    assert math.isfinite(float(found["loss"].detach()))


def test_states_and_actions_that_are_no_numbers_are_refused():
    batch, rewards = chain(3)
    critic, policy = ladder(4, 2)
    for name in ("state", "actions"):
        values = getattr(batch, name).clone()
        values[0, 1] = math.nan
        with pytest.raises(ValueError, match="a state or action of episode 0 is NaN"):
            critic.loss(replace(batch, **{name: values}), rewards, policy)


def test_actions_of_another_width_are_refused():
    batch, rewards = chain(3, End.CUT)
    critic, _ = ladder(4, 2)

    class Wide:
        version = 0

        def __call__(self, batch, rows, steps, n):
            return torch.zeros(n, len(rows), 2, 7)

    with pytest.raises(ValueError, match=r"policy proposes actions of 7 dimensions, the critic was made for 1"):
        critic.loss(batch, rewards, Wide())
    data = replace(batch, actions=torch.zeros(1, 3, 7))
    with pytest.raises(ValueError, match=r"values actions of 1 dimensions, these chunks have 7"):
        critic.loss(data, rewards, Always([0.0]))
    with pytest.raises(ValueError, match=r"actions of width 1, the data have 7"):
        critic.fit_scales(data)
    with pytest.raises(ValueError, match=r"expected a state of width 4, got 9"):
        critic.loss(replace(batch, state=torch.zeros(1, 4, 9)), rewards, Always([0.0]))


def test_proposals_are_checked():
    batch, rewards = chain(3, End.CUT)
    critic, _ = ladder(4, 2)

    class Wrong:
        version = 0

        def __init__(self, chunks):
            self.chunks = chunks

        def __call__(self, batch, rows, steps, n):
            return self.chunks

    with pytest.raises(ValueError, match="pass a proposer"):
        critic.loss(batch, rewards)
    with pytest.raises(ValueError, match="pass a proposer"):
        critic(batch)
    with pytest.raises(ValueError, match=r"expected chunks \(1, 2, H, A\), got"):
        critic.loss(batch, rewards, Wrong(torch.zeros(2, 2, 2, 1)))
    with pytest.raises(ValueError, match=r"expected chunks"):
        critic.loss(batch, rewards, Wrong(torch.zeros(1, 2, 0, 1)))
    with pytest.raises(ValueError, match="proposed an action that is NaN or infinite"):
        critic.loss(batch, rewards, Wrong(torch.full((1, 2, 2, 1), math.nan)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 1.1},
        {"gamma": -0.1},
        {"target_agg": "max"},
        {"pessimism": "independent"},
        {"lcb": -1.0},
        {"target_samples": 0},
        {"value_samples": 0},
        {"polyak_rate": 0.0},
        {"polyak_rate": 1.5},
        {"micro_batch": 0},
        {"tails": "repeat"},
        {"source_weights": {"demo": 1.0}},
        {"source_weights": {"1": -1.0}},
        {"source_weights": {"1": math.inf}},
        {"source_weights": {"²": 1.0}},
    ],
)
def test_arguments_that_make_no_sense_are_refused(wrong):
    # the tests' shape checks refuse unknown words before the constructor does
    with pytest.raises((ValueError, TypeError), match=r"expected|Expected type"):
        ActionCritic(Ladder(2, 1), **wrong)
