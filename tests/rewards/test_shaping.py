import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedSuccess
from guerdon.rewards.shaping import Delta, FirstHit, Level, Potential, Shaped, Sparse
from guerdon.testing import check_reward_model, trajectory_batches


class Told(RewardModel):
    """Says of progress and success what the state holds; NaN means it abstains."""

    causal = True

    def forward(self, batch):
        def part(column):
            values = batch.state[..., column]
            return Labelled(values=values.nan_to_num(0.0), valid=~values.isnan() & batch.observed)

        progress, success = part(0), part(1)
        rewards = torch.zeros_like(batch.weight)
        return RewardEstimates(rewards=rewards, valid=batch.mask, progress=progress, success=success)


def rows(progress, success, end=None):
    state = torch.stack([torch.tensor(progress), torch.tensor(success)], -1).float()
    mask = torch.ones(len(state), state.shape[1] - 1, dtype=torch.bool)
    ends = torch.full((len(state),), int(End.TIME_LIMIT)) if end is None else torch.tensor([int(e) for e in end])
    return TrajectoryBatch(state=state, actions=torch.zeros(*mask.shape, 0), mask=mask, end=ends)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Level, Delta, FirstHit, Sparse, Potential], ids=lambda kind: kind.__name__)
@settings(max_examples=8)
@given(batch=trajectory_batches(state_size=2))
def test_every_promise_is_kept(kind, batch):
    check_reward_model(kind(ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=1)), 2.0), batch)


def test_leaving_costs_nothing_and_coming_back_pays_nothing_by_hand():
    batch = rows([[0.25, 0.5, 0.25, 0.5, 0.75], [0.5, 0.25, 0.0, 0.25, 0.5]], [[0.0] * 5, [0.0] * 5])
    assert FirstHit(Told(), 3.0)(batch).rewards.tolist() == [[0.25, 0, 0, 0.25], [0, 0, 0, 0]]
    batch = rows([[0.0, 0.5, 0.5, 0.0]], [[0.0, 0.0, 1.0, 0.5]])
    assert FirstHit(Told(), 2.0)(batch).rewards.tolist() == [[0.5, 2.0, 0.0]]
    assert FirstHit(Told(), 0.0)(batch).rewards.tolist() == [[0.5, 0.0, 0.0]]


def test_an_unknown_estimate_keeps_the_best_so_far():
    nan = math.nan
    scored = FirstHit(Told(), 0.0)(rows([[nan, 0.25, nan, 0.5, 0.75]], [[0.0] * 5]))
    assert scored.valid.tolist() == [[False, False, False, True]]
    assert scored.rewards.tolist() == [[0, 0, 0, 0.25]]
    scored = FirstHit(Told(), 0.0)(rows([[0.5, nan, 0.25, 0.5, 1.0]], [[0.0] * 5]))
    assert scored.valid.tolist() == [[False, False, True, True]]
    assert scored.rewards.tolist() == [[0, 0, 0, 0.5]]


@given(batch=trajectory_batches(state_size=2))
def test_it_is_the_loop(batch):
    model = ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=0))
    with torch.no_grad():
        inner, scored = model(batch), FirstHit(model, 1.5)(batch)
    for row in range(len(batch.mask)):
        best = -math.inf
        for step in range(batch.mask.shape[1]):
            here, there = (
                float(inner.progress.values[row, i] + 1.5 * inner.success.values[row, i]) for i in (step, step + 1)
            )
            known = bool(inner.progress.valid[row, step]), bool(inner.progress.valid[row, step + 1])
            best = max(best, here) if known[0] else best
            if all(known) and batch.mask[row, step]:
                assert scored.valid[row, step]
                assert float(scored.rewards[row, step]) == pytest.approx(max(0.0, there - best), abs=1e-6)
            else:
                assert not scored.valid[row, step] and scored.rewards[row, step] == 0


def test_on_rising_estimates_it_is_the_change_of_the_potential():
    batch = rows([[0.0, 0.25, 0.5, 1.0]], [[0.0, 0.0, 0.5, 1.0]])
    phi = batch.state[..., 0] + 2 * batch.state[..., 1]
    assert torch.equal(FirstHit(Told(), 2.0)(batch).rewards, phi[:, 1:] - phi[:, :-1])


def test_it_is_frozen_and_says_what_it_lacks():
    model = FirstHit(ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=0)))
    assert not any(p.requires_grad for p in model.parameters())
    assert model.inputs.state_size == 2
    with pytest.raises(ValueError, match="RecordedSuccess estimates neither progress nor success"):
        FirstHit(RecordedSuccess())(rows([[0.0, 1.0]], [[0.0, 1.0]]))
    with pytest.raises(NotImplementedError, match="write pay"):
        Shaped(Told())(rows([[0.0, 1.0]], [[0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"gamma is 1\.5"):
        Potential(Told(), gamma=1.5)
    with pytest.raises(ValueError, match="threshold is nan"):
        Sparse(Told(), threshold=math.nan)
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="success_weight"):
            FirstHit(Told(), weight)


def test_the_other_modes_by_hand():
    nan = math.nan
    batch = rows([[0.25, 0.5, 0.25, 1.0], [0.5, nan, 1.0, 0.5]], [[0.0] * 4] * 2)
    level = Level(Told(), 0.0)(batch)
    assert level.rewards.tolist() == [[0.5, 0.25, 1.0], [0, 1.0, 0.5]]
    assert level.valid.tolist() == [[True] * 3, [False, True, True]]
    delta = Delta(Told(), 0.0)(batch)
    assert delta.rewards.tolist() == [[0.25, -0.25, 0.75], [0, 0, -0.5]]
    assert delta.valid.tolist() == [[True] * 3, [False, False, True]]
    sparse = Sparse(Told(), 0.0, threshold=0.5)(batch)
    assert sparse.rewards.tolist() == [[1, 0, 0], [0, 0, 0]], "who starts there has reached nothing"
    assert sparse.valid.tolist() == [[True] * 3, [False, True, True]]


def test_a_potential_is_zero_after_an_end_and_only_there():
    progress = [[0.25, 0.5, 0.75]] * 4
    ends = [End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.CUT]
    shaped = Potential(Told(), gamma=0.5)(rows(progress, [[0.0] * 3] * 4, ends))
    assert shaped.rewards.tolist() == [[0, -0.5], [0, -0.5], [0, -0.125], [0, -0.125]]
    unseen = Potential(Told(), gamma=0.5)(rows([[0.25, 0.5, math.nan]] * 2, [[0.0] * 3] * 2, ends[1:3]))
    assert unseen.rewards.tolist() == [[0, -0.5], [0, 0]]
    assert unseen.valid.tolist() == [[True, True], [True, False]], "after an end Φ is 0, whoever looked"


@given(batch=trajectory_batches(state_size=2), gamma=st.floats(0.0, 1.0))
def test_the_discounted_sum_of_a_potential_telescopes(batch, gamma):
    model = ProgressReward(state_size=2, observer=ObservationEncoder(width=8, layers=0))
    with torch.no_grad():
        phi = model(batch).progress.values.double()
        scored = Potential(model, gamma=gamma)(batch)
    shaped = scored.rewards.double()
    for row, length in enumerate(batch.steps.tolist()):
        if length and bool(scored.valid[row, :length].all()):
            total = sum(gamma**t * float(shaped[row, t]) for t in range(length))
            last = 0.0 if batch.terminated[row] else gamma**length * float(phi[row, length])
            assert total == pytest.approx(last - float(phi[row, 0]), abs=1e-5)


def best_actions(reward, chance, over, gamma):
    """Optimal actions of a tabular MDP: reward and chance (S, A, S'); ``over`` (S',) ends an episode."""
    value = torch.zeros(len(over), dtype=torch.float64)
    for _ in range(4000):
        q = (chance * (reward + gamma * value.masked_fill(over, 0.0))).sum(-1)
        value = q.max(-1).values
    return q >= value[:, None] - 1e-6


def paid(model, phi, over):
    """What a shaping pays for going from s to s' in one step, (S, S')."""
    count = len(phi)
    pairs = [(s, t) for s in range(count) for t in range(count)]
    batch = rows(
        [[float(phi[s]), float(phi[t])] for s, t in pairs],
        [[0.0, 0.0]] * len(pairs),
        [End.FAILURE if over[t] else End.CUT for _, t in pairs],
    )
    return model(batch).rewards.double().reshape(count, count)


@pytest.mark.slow
def test_potentials_leave_every_optimal_policy_of_random_tables_alone():
    generator = torch.Generator().manual_seed(0)
    changed = 0
    for _ in range(20):
        count, actions, gamma = 5, 3, 0.9
        reward = torch.randn(count, actions, count, generator=generator, dtype=torch.float64)
        chance = torch.rand(count, actions, count, generator=generator, dtype=torch.float64).softmax(-1)
        over = torch.arange(count) == count - 1
        phi = torch.rand(count, generator=generator)
        plain = best_actions(reward, chance, over, gamma)
        shaped = paid(Potential(Told(), gamma=gamma), 5 * phi, over)
        assert torch.equal(best_actions(reward + shaped[:, None], chance, over, gamma)[:-1], plain[:-1])
        wrong = paid(Potential(Told(), gamma=0.5), 5 * phi, over)
        changed += not torch.equal(best_actions(reward + wrong[:, None], chance, over, gamma)[:-1], plain[:-1])
    assert changed > 5, "with another discount the policies do change: the comparison can fail"


def test_the_additive_form_makes_loitering_optimal():
    # far -> near -> done; staying near is free, done pays 1 and ends
    chance = torch.zeros(3, 2, 3, dtype=torch.float64)
    chance[0, 0, 0] = chance[0, 1, 1] = chance[1, 0, 1] = chance[1, 1, 2] = chance[2, :, 2] = 1
    reward = torch.zeros(3, 2, 3, dtype=torch.float64)
    reward[1, 1, 2] = 1
    over = torch.tensor([False, False, True])
    phi = torch.tensor([0.0, 0.5, 1.0])
    plain = best_actions(reward, chance, over, 0.99)
    assert plain[:2].tolist() == [[False, True]] * 2
    for model, same in ((Potential(Told(), gamma=0.99), True), (Level(Told(), 0.0), False)):
        assert (
            torch.equal(best_actions(reward + paid(model, phi, over)[:, None], chance, over, 0.99)[:2], plain[:2])
            is same
        )
    looped = best_actions(reward + paid(Level(Told(), 0.0), phi, over)[:, None], chance, over, 0.99)
    assert looped[1].tolist() == [True, False], "it stays near for ever"
