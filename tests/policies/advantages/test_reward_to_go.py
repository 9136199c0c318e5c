"""Advantages on decisions: by hand, against a literal loop, and where potentials telescope."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.core.returns import discounted_returns
from guerdon.critics.distributional import DistributionalValue
from guerdon.critics.value import ValueCritic
from guerdon.policies.advantages.reward_to_go import RewardToGo, Uniform, at_decisions, values_at_decisions
from guerdon.rewards.recorded import RecordedReward

# decisions of different lengths are what many of these tests are about
pytestmark = pytest.mark.filterwarnings("ignore:the decisions of this batch execute")


class Told(ValueCritic):
    """Values every observation at the first entry of its state."""

    def __init__(self):
        super().__init__(1, hidden=())
        self.scale = nn.Parameter(torch.ones(()))

    def value(self, observation):
        return self.scale * observation.state[:, 0]


class Progress(RewardModel):
    """Progress is a recorded label; its reward is nothing."""

    def __init__(self, causal: bool = True):
        super().__init__()
        self.causal = causal
        self.layer = nn.Sequential(nn.Linear(1, 1), nn.Dropout())

    def forward(self, batch):
        return RewardEstimates(
            rewards=torch.zeros_like(batch.weight), valid=batch.mask, progress=batch.labels.get("progress")
        )


def rollout(rewards, values, end, decisions=None, valid=None, weight=None, progress=None, **more):
    """Rows of rewards (lists of their own lengths), values of every observation, decisions."""
    steps = max(len(r) for r in rewards)
    length = torch.tensor([len(r) for r in rewards])
    mask = torch.arange(steps) < length[:, None]

    def padded(rows, width, fill=0.0):
        return torch.tensor([[float(x) for x in r] + [fill] * (width - len(r)) for r in rows])

    count = max(len(d) for d in decisions) if decisions else 0
    labels = {}
    if progress is not None:
        known = torch.arange(steps + 1) <= length[:, None]
        labels["progress"] = Labelled(values=padded(progress, steps + 1), valid=known)
    return TrajectoryBatch(
        state=padded(values, steps + 1, torch.nan)[..., None],
        actions=torch.zeros(len(rewards), steps, 1),
        mask=mask,
        end=torch.tensor([int(e) for e in end]),
        recorded={
            "reward": Labelled(
                values=padded(rewards, steps), valid=mask if valid is None else torch.tensor(valid) & mask
            )
        },
        weight=mask.float() if weight is None else torch.tensor(weight),
        labels=labels,
        **({} if decisions is None else {"decision_step": padded(decisions, count, -1).long()}),
        **more,
    )


def estimated(batch, **options: Any):
    given: dict[str, Any] = {"normalise": False, **options}
    source = RewardToGo(RecordedReward(), Told(), **given)
    return source(batch, source.estimate(batch))


# --- every step a decision ------------------------------------------------------------------------------------------


def test_gae_by_hand():
    # δ = (0.99·0.5 − 0.2, 0.99·0.8 − 0.5, 1 − 0.8) = (0.295, 0.292, 0.2); γλ = 0.9405
    # A_2 = 0.2, A_1 = 0.292 + 0.9405·0.2 = 0.4801, A_0 = 0.295 + 0.9405·0.4801 = 0.746534
    batch = rollout([[0, 0, 1]], [[0.2, 0.5, 0.8, 99.0]], [End.SUCCESS])
    found = estimated(batch, gamma=0.99, lam=0.95)
    assert found.advantages[0].tolist() == pytest.approx([0.746534, 0.480100, 0.2], abs=1e-5)
    assert found.returns[0].tolist() == pytest.approx([0.946534, 0.980100, 1.0], abs=1e-5)
    assert found.valid.all()


def test_what_follows_counts_after_a_time_limit_and_not_after_an_end():
    values = [[0.0, 0.0, 10.0]]
    cut = estimated(rollout([[0, 0]], values, [End.TIME_LIMIT]), gamma=0.5, lam=1.0)
    assert cut.returns[0].tolist() == [2.5, 5.0]
    for end in (End.SUCCESS, End.FAILURE):
        assert estimated(rollout([[0, 0]], values, [end]), gamma=0.5, lam=1.0).returns[0].tolist() == [0, 0]


def test_advantages_are_standardised_over_the_valid_decisions_of_the_rollout():
    batch = rollout([[3, 1], [7]], [[0, 0, 0], [0, 0]], [End.SUCCESS] * 2, weight=[[0.0, 1.0], [1.0, 0.0]])
    found = estimated(batch, gamma=0.0, normalise=True)
    # 1 and 7 count: mean 4, spread 3
    assert found.advantages.tolist() == [[0, pytest.approx(-1, abs=1e-6)], [pytest.approx(1, abs=1e-6), 0]]


# --- chunks ---------------------------------------------------------------------------------------------------------


def test_chunked_decisions_by_hand():
    # decisions at 0 and 2 of 5 steps: rewards 1+2 and 3+4+5; V at observations 0, 2 and, bootstrapped, 5
    values = [[0.5, 77, 1.5, 77, 77, 2.5]]
    batch = rollout([[1, 2, 3, 4, 5]], values, [End.CUT], decisions=[[0, 2]])
    found = estimated(batch, gamma=0.9, lam=0.8)
    late = 12 + 0.9 * 2.5 - 1.5
    early = 3 + 0.9 * 1.5 - 0.5
    assert found.advantages[0].tolist() == pytest.approx([early + 0.72 * late, late], rel=1e-5)
    assert found.values[0].tolist() == [0.5, 1.5, 2.5]
    done = estimated(replace(batch, terminated=torch.tensor([True])), gamma=0.9, lam=0.8)
    assert done.advantages[0, 1].item() == pytest.approx(12 - 1.5, rel=1e-5)


@st.composite
def chunked(draw):
    """Rollouts that decide now and then, with unknown rewards and context."""
    rows = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 7), min_size=rows, max_size=rows))
    number = st.integers(-4, 4).map(float)

    def some(length):
        return draw(st.lists(number, min_size=length, max_size=length))

    def decided(length):
        return sorted({0} | draw(st.sets(st.integers(0, length - 1))))

    steps = max(lengths)
    flags = st.lists(st.lists(st.booleans(), min_size=steps, max_size=steps), min_size=rows, max_size=rows)
    return rollout(
        [some(n) for n in lengths],
        [some(n + 1) for n in lengths],
        [draw(st.sampled_from(list(End))) for _ in lengths],
        decisions=[decided(n) for n in lengths],
        valid=draw(flags),
        weight=[[float(x) for x in row] for row in draw(flags)],
        progress=[[draw(st.integers(0, 4)) / 4 for _ in range(n + 1)] for n in lengths],
        last_observed=torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows))),
    )


def literal(batch, gamma, lam, potential, per_step=False):
    """Advantage and validity of every decision, one at a time."""
    found = {}
    for row in range(len(batch)):
        steps, over = int(batch.steps[row]), bool(batch.terminated[row])
        decisions = [d for d in batch.decision_step[row].tolist() if d >= 0]
        trace = 0.0
        for n in reversed(range(len(decisions))):
            start, stop = decisions[n], decisions[n + 1] if n + 1 < len(decisions) else steps
            final = stop == steps
            reward = batch.recorded["reward"]
            known = bool(reward.valid[row, start:stop].all())
            if final and not over and not batch.last_observed[row]:
                known = False
            value, after = batch.state[row, start, 0], batch.state[row, stop, 0] * (not (final and over))
            inside, across = (gamma, gamma ** (stop - start)) if per_step else (1.0, gamma)
            gained = sum(inside**k * reward.values[row, start + k] for k in range(stop - start))
            surprise = gained + across * after - value
            if potential:
                phi = batch.labels["progress"].values
                surprise += across * phi[row, stop] * (not (final and over)) - phi[row, start]
            trace = (surprise if known else 0.0) + across * lam * trace
            found[row, n] = (float(trace), known and bool(batch.weight[row, start] > 0))
    return found


@given(chunked(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.7, 1.0]), st.booleans(), st.booleans())
def test_chunked_decisions_against_a_literal_loop(batch, gamma, lam, potential, per_step):
    discount = "step" if per_step else "decision"
    found = estimated(batch, gamma=gamma, lam=lam, potential=Progress() if potential else None, discount=discount)
    expected = literal(batch, gamma, lam, potential, per_step)
    for (row, n), (advantage, valid) in expected.items():
        assert bool(found.valid[row, n]) == valid
        assert found.advantages[row, n].item() == pytest.approx(advantage if valid else 0.0, abs=1e-3)
        if valid:
            assert found.returns[row, n] == pytest.approx(advantage + float(found.values[row, n]), abs=1e-3)
    assert int(found.valid.sum()) == sum(valid for _, valid in expected.values())


def test_discounts_per_step_by_hand():
    # decisions at 0 and 2 of 5 steps, γ = 0.9: rewards 1 + 0.9·2 and 3 + 0.9·4 + 0.81·5, values after 2 and 3 steps
    batch = rollout([[1, 2, 3, 4, 5]], [[0.5, 77, 1.5, 77, 77, 2.5]], [End.CUT], decisions=[[0, 2]])
    found = estimated(batch, gamma=0.9, lam=0.8, discount="step")
    late = 3 + 3.6 + 4.05 + 0.729 * 2.5 - 1.5
    early = 1 + 1.8 + 0.81 * 1.5 - 0.5
    assert found.advantages[0].tolist() == pytest.approx([early + 0.81 * 0.8 * late, late], rel=1e-5)
    # with λ = 1 and a termination the return is the discounted sum of all rewards, wherever decisions fall
    ended = replace(batch, terminated=torch.tensor([True]))
    whole = sum(0.9**k * (k + 1) for k in range(5))
    for decisions in ([[0, 2]], [[0, 1, 4]], [[0]]):
        chosen = torch.tensor(decisions)
        returns = estimated(replace(ended, decision_step=chosen), gamma=0.9, lam=1.0, discount="step").returns
        assert returns[0, 0].item() == pytest.approx(whole, rel=1e-5)


def test_clocks_agree_where_every_decision_executes_one_step():
    batch = rollout([[1, -2, 3], [4, 5]], [[1, 2, 3, 4], [5, 6, 7]], [End.CUT, End.SUCCESS])
    one, two = (estimated(batch, gamma=0.7, lam=0.6, discount=clock) for clock in ("decision", "step"))
    assert torch.allclose(one.advantages, two.advantages, atol=1e-6)
    assert torch.allclose(one.returns, two.returns, atol=1e-6)


def test_potentials_telescope_on_the_clock_of_steps():
    batch = rollout(
        [[1, 2, 3, 4]], [[0.0] * 5], [End.SUCCESS], decisions=[[0, 2, 3]], progress=[[0.25, 0.9, 0.5, 0.75, 1.0]]
    )
    plain = estimated(batch, gamma=0.9, lam=1.0, discount="step").returns
    shaped = estimated(batch, gamma=0.9, lam=1.0, discount="step", potential=Progress()).returns
    assert torch.allclose(shaped, plain - torch.tensor([[0.25, 0.5, 0.75]]), atol=1e-5)


@pytest.mark.filterwarnings("default")
def test_decisions_of_different_lengths_are_warned_about_once():
    def batch(decisions):
        return rollout([[0] * 6] * 2, [[0] * 7] * 2, [End.CUT] * 2, decisions=decisions)

    source = RewardToGo(RecordedReward(), Told(), normalise=False)
    even, uneven = batch([[0, 2, 4], [0, 2, 4]]), batch([[0, 2, 4], [0, 3]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source(even, source.estimate(even))
        cut = batch([[0, 2, 4, 5], [0, 2, 4, 5]])  # 2, 2, 1 and 1 steps: not the last, but cut before it
        for quiet in (RewardToGo(RecordedReward(), Told(), gamma=1.0), RewardToGo(RecordedReward(), Told(), **STEP)):
            quiet(uneven, quiet.estimate(uneven))
            quiet(cut, quiet.estimate(cut))
    with pytest.warns(UserWarning, match=r"execute 2 to 3 steps, and gamma 0\.99.*set discount='step'"):
        source(uneven, source.estimate(uneven))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source(uneven, source.estimate(uneven))


STEP: dict[str, Any] = {"discount": "step"}


@pytest.mark.parametrize("options", [{"micro_batch": 0}])
def test_an_empty_micro_batch_is_refused(options):
    with pytest.raises(ValueError, match="expected decision or step, and at least one observation at a time"):
        RewardToGo(RecordedReward(), Told(), **options)


# --- critics --------------------------------------------------------------------------------------------------------


class Asked(ValueCritic):
    """Keeps how many observations it was shown."""

    def __init__(self):
        super().__init__(1, hidden=(4,))
        self.shown = []

    def value(self, observation):
        self.shown.append(len(observation))
        return super().value(observation)


@given(chunked(), st.integers(1, 5))
def test_values_are_those_of_all_observations_and_asked_for_at_decisions_only(batch, micro_batch):
    batch = replace(batch, state=batch.state.nan_to_num(0.0))
    critic = Asked()
    found = values_at_decisions(critic, batch, micro_batch)
    wanted = int(batch.decision_mask.sum()) + len(batch)
    assert sum(critic.shown) == wanted and max(critic.shown) <= micro_batch
    assert torch.allclose(found, at_decisions(batch, critic(batch).v), atol=1e-6)


def test_a_distributional_critic_learns_returns_by_its_own_loss():
    torch.manual_seed(0)
    critic = DistributionalValue(1, hidden=(16,), bins=21, low=-2.0, high=2.0)
    source = RewardToGo(RecordedReward(), critic, gamma=0.0, normalise=False, value_weight=0.5)
    batch = rollout([[1.0, -1.0]] * 4, [[0.5, -0.5, 0.0]] * 4, [End.SUCCESS] * 4)
    told = source(batch, source.estimate(batch))
    rows, steps = batch.mask.nonzero(as_tuple=True)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.05)
    first = source.loss(batch, told, rows, steps)
    each, _, _ = critic.loss_of(batch.observe(rows, steps), told.returns.flatten())
    assert first["loss"].item() == pytest.approx(0.5 * each.mean().item(), rel=1e-6)
    assert first["clamped"] == 0 and {"entropy", "value_error"} <= first.keys()
    for _ in range(60):
        optimizer.zero_grad()
        parts = source.loss(batch, told, rows, steps)
        parts["loss"].backward()
        optimizer.step()
    assert parts["value_error"] < 0.05 * first["value_error"]
    assert not parts["value_error"].requires_grad


def test_a_value_that_is_no_number_names_the_critic():
    source = RewardToGo(RecordedReward(), Told())
    batch = rollout([[0, 0]], [[0.0, float("nan"), 0.0]], [End.CUT])
    with pytest.raises(FloatingPointError, match="Told gave decision 1 of episode 0 the value nan"):
        source(batch, source.estimate(batch))


# --- shaping --------------------------------------------------------------------------------------------------------


def test_potentials_telescope_when_a_row_terminates():
    # Σ γ^n (r_n + γΦ_{n+1} − Φ_n) with Φ = 0 after the end is Σ γ^n r_n − Φ_0: with critic 0 and λ = 1 that is the
    # return; chunks end at observations 2 and 3, so Φ there counts and Φ in between does not
    batch = rollout(
        [[1, 2, 3, 4]], [[0.0] * 5], [End.SUCCESS], decisions=[[0, 2, 3]], progress=[[0.25, 0.9, 0.5, 0.75, 1.0]]
    )
    plain = estimated(batch, gamma=0.9, lam=1.0).returns
    shaped = estimated(batch, gamma=0.9, lam=1.0, potential=Progress()).returns
    phi = torch.tensor([[0.25, 0.5, 0.75]])
    assert plain[0].tolist() == pytest.approx([3 + 0.9 * (3 + 0.9 * 4), 3 + 0.9 * 4, 4], rel=1e-6)
    assert torch.allclose(shaped, plain - phi, atol=1e-6)


def test_a_cut_row_keeps_the_potential_of_where_it_stopped():
    batch = rollout([[0, 0]], [[0.0] * 3], [End.CUT], progress=[[0.25, 0.5, 1.0]])
    shaped = estimated(batch, gamma=0.5, lam=1.0, potential=Progress()).returns
    # 0.5·0.5 − 0.25 + 0.5·(0.5·1 − 0.5) = 0; 0.5·1 − 0.5 = 0
    assert shaped[0].tolist() == [0.0, 0.0]


@given(st.lists(st.integers(0, 8), min_size=2, max_size=7), st.sampled_from([0.5, 0.9, 1.0]), st.data())
def test_shaping_costs_a_policy_its_first_potential_and_nothing_else(phi, gamma, data):
    steps = len(phi) - 1
    rewards = data.draw(st.lists(st.integers(-3, 3), min_size=steps, max_size=steps))
    batch = rollout([rewards], [[0.0] * (steps + 1)], [End.FAILURE], progress=[[p / 8 for p in phi]])
    shaped = estimated(batch, gamma=gamma, lam=1.0, potential=Progress()).returns
    plain = discounted_returns(torch.tensor([rewards]).float(), batch.mask, gamma)
    assert shaped[0, 0].item() == pytest.approx(plain[0, 0].item() - phi[0] / 8, abs=1e-5)


def test_a_decision_whose_potential_is_unknown_is_not_trained_on():
    batch = rollout([[1, 1, 1]], [[0.0] * 4], [End.SUCCESS], progress=[[0, 0.5, 0.5, 1.0]])
    progress = batch.labels["progress"]
    holed = replace(progress, valid=torch.tensor([[True, False, True, False]]))
    found = estimated(replace(batch, labels={"progress": holed}), potential=Progress())
    # Φ of observation 1 is missing: decisions 0 and 1 touch it; after the end Φ is 0, known or not
    assert found.valid[0].tolist() == [False, False, True]


def test_a_reward_without_progress_is_no_potential():
    batch = rollout([[1]], [[0.0, 0.0]], [End.SUCCESS])
    with pytest.raises(ValueError, match="RecordedReward gives no progress: it cannot be a potential"):
        estimated(batch, potential=RecordedReward())


# --- the unknown ----------------------------------------------------------------------------------------------------


def test_unknown_rewards_contribute_nothing_but_let_the_future_through():
    batch = rollout([[1, 50, 4]], [[0.0, 2.0, 3.0, 0.0]], [End.SUCCESS], valid=[[True, False, True]])
    found = estimated(batch, gamma=0.5, lam=1.0)
    # A_2 = 4 − 3 = 1; A_1 is a gap: 0 + 0.5·1; A_0 = 1 + 0.5·2 − 0 + 0.25·1
    assert found.valid[0].tolist() == [True, False, True]
    assert found.advantages[0].tolist() == [2.25, 0, 1]
    other = rollout([[1, -9e9, 4]], [[0.0, 2.0, 3.0, 0.0]], [End.SUCCESS], valid=[[True, False, True]])
    assert torch.equal(found.advantages, estimated(other, gamma=0.5, lam=1.0).advantages)


def test_context_decisions_are_not_trained_on_but_pass_rewards_back():
    batch = rollout([[1, 2]], [[0.0] * 3], [End.SUCCESS], weight=[[0.0, 1.0]])
    found = estimated(batch, gamma=1.0, lam=1.0)
    assert (found.valid.tolist(), found.advantages.tolist()) == ([[False, True]], [[0, 2]])
    assert found.returns[0].tolist() == [3, 2]


def test_one_unknown_step_makes_its_whole_chunk_unknown():
    batch = rollout([[1, 1, 1, 1]], [[0.0] * 5], [End.SUCCESS], decisions=[[0, 2]], valid=[[True, False, True, True]])
    assert estimated(batch).valid.tolist() == [[False, True]]


# --- what gives rewards stays as it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, whole",
    [({}, True), ({"end": torch.tensor([int(End.CUT)])}, False), ({"length": torch.tensor([9])}, False)],
    ids=["whole", "cut", "beginning"],
)
def test_a_reward_that_looks_ahead_scores_finished_episodes_only(change, whole):
    batch = replace(rollout([[1, 1]], [[0.0] * 3], [End.TIME_LIMIT]), **change)
    source = RewardToGo(Progress(causal=False), Told())
    if whole:
        source.estimate(batch)
    else:
        with pytest.raises(ValueError, match=r"Progress is not causal.*pieces that were cut"):
            source.estimate(batch)
    RewardToGo(Progress(causal=True), Told()).estimate(batch)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_known_reward_that_is_no_number_is_named_and_an_unknown_one_may_be_anything(value):
    class Diverged(Progress):
        def forward(self, batch):
            scored = super().forward(batch)
            rewards = scored.rewards.clone()
            rewards[1, 0] = value
            return replace(scored, rewards=rewards, valid=scored.valid & batch.labels["told"].valid[:, 1:])

    batch = rollout([[0, 0], [0, 0]], [[0, 0, 0]] * 2, [End.TIME_LIMIT] * 2)
    told = Labelled(values=torch.zeros(2, 3), valid=torch.ones(2, 3, dtype=torch.bool))
    source = RewardToGo(Diverged(), Told())
    with pytest.raises(
        FloatingPointError, match=r"Diverged gave (nan|inf) as a known reward \(row 1, step 0; 1 in all"
    ):
        source.estimate(replace(batch, labels={"told": told}))
    told.valid[1, 1] = False
    assert not bool(source.estimate(replace(batch, labels={"told": told})).valid[1, 0])


def test_rewards_and_potentials_are_frozen_and_stay_in_evaluation_mode():
    source = RewardToGo(Progress(), ValueCritic(1, hidden=(2,)), potential=Progress())
    source.train()
    frozen = [*source.reward.modules(), *source.potential.modules()]
    assert not any(m.training for m in frozen)
    assert all(m.training for m in source.critic.modules())
    assert not any(p.requires_grad for m in (source.reward, source.potential) for p in m.parameters())
    source.eval()
    assert not source.critic.training


def test_the_critic_learns_at_the_decisions_it_is_shown():
    batch = rollout([[1, 2, 3], [4]], [[0.0, 1.0, 2.0, 3.0], [5.0, 6.0]], [End.SUCCESS] * 2, decisions=[[0, 2], [0]])
    source = RewardToGo(RecordedReward(), Told(), gamma=0.5, value_weight=2.0)
    advantages = source(batch, source.estimate(batch))
    # row 0 decision at 2: return 3, value 2; row 1 decision at 0: return 4, value 5 → mean of 1 and 1, times 2
    parts = source.loss(batch, advantages, torch.tensor([0, 1]), torch.tensor([2, 0]))
    assert parts["loss"].item() == pytest.approx(2.0)
    assert parts["value_error"].item() == pytest.approx(1.0)
    parts["loss"].backward()
    assert source.critic.scale.grad != 0
    assert not parts["value_error"].requires_grad


def test_a_row_without_steps_is_legal():
    batch = rollout([[1.0], []], [[0.0, 0.0], [0.0]], [End.SUCCESS, End.CUT])
    found = estimated(batch)
    assert found.valid.tolist() == [[True], [False]]
    assert found.advantages.isfinite().all()


# --- behaviour cloning ----------------------------------------------------------------------------------------------


def test_uniform_counts_every_logged_decision_but_context():
    batch = rollout([[9, 9], [9]], [[0.0] * 3, [0.0] * 2], [End.CUT] * 2, weight=[[0.0, 1.0], [1.0, torch.nan]])
    source = Uniform()
    rewards = source.estimate(batch)
    found = source(batch, rewards)
    assert (rewards.rewards.any().item(), rewards.valid.equal(batch.mask)) == (False, True)
    assert found.valid.tolist() == [[False, True], [True, False]]
    assert found.advantages.tolist() == [[0, 1], [1, 0]]
    assert source.loss(batch, found, torch.zeros(1).long(), torch.zeros(1).long()) == {}
