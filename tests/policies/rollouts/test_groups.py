"""Rollouts for groups: whole episodes of one initial state, rejection, caps, quotas, skips, resuming."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from guerdon.core.batch import End
from guerdon.policies.advantages.group_score import GroupScore
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.loops.curriculum import Curriculum
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts.data import RolloutData
from guerdon.policies.rollouts.groups import GroupDraws, GroupRollouts, play_groups
from guerdon.policies.rollouts.pieces import Piece, batch_pieces
from guerdon.rewards.recorded import RecordedReward

from .small_tasks import Corridor, Street, contexts
from .test_data import trainer


def draws(setting, *indices, task=Corridor, more=()):
    return GroupDraws(setting, [*contexts(*indices, task=task), *more])


class Played:
    """Plays instantly: an episode succeeds with the probability that its context has."""

    def __init__(self, rates, seed=0):
        self.rates, self.random, self.asked = rates, np.random.default_rng(seed), []

    def __call__(self, contexts, numbers, wave):
        self.asked.append([c.index for c in contexts])
        return [
            Piece(
                context=context,
                draw=number,
                state=np.zeros((3, 2), np.float32),
                actions=np.zeros((2, 1), np.float32),
                reward=[0.0, 0.0],
                success=[False, False, bool(self.random.random() < self.rates.get(context.index, 0.5))],
                decision_step=[0, 1],
                end=End.TIME_LIMIT,
            )
            for context, number in zip(contexts, numbers, strict=True)
        ]


def no_score(pieces):
    raise AssertionError("nobody asked for scores")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_group_is_whole_episodes_of_one_draw():
    setting = GroupRollouts(size=3, contexts=2, rejection="none")
    held = draws(setting, 0, 1)
    found = [play_groups(held, Played({}), no_score, generator(seed)) for seed in range(2)]
    assert [piece.draw for piece in found[0].pieces] == [0] * 3 + [1] * 3
    assert [piece.draw for piece in found[1].pieces] == [2] * 3 + [3] * 3, "a context drawn twice makes two groups"
    batch = batch_pieces([piece for one in found for piece in one.pieces])
    assert len(set(batch.group.tolist())) == 4
    assert Counter(batch.group.tolist()).most_common()[0][1] == 3
    assert {piece.context.index for piece in found[0].pieces} == {0, 1}, "no context twice as long as there are others"


def test_groups_of_equal_outcomes_are_drawn_again_and_their_steps_are_counted():
    setting = GroupRollouts(size=2, contexts=3, max_tried=50)
    held = draws(setting, 0, 1, 2, 3)
    play = Played({0: 0.0, 1: 1.0, 2: 0.5, 3: 0.5})
    found = play_groups(held, play, no_score, generator())
    assert found.accepted == 3 and len(found.pieces) == 6
    assert {piece.context.index for piece in found.pieces} <= {2, 3}
    for start in range(0, 6, 2):
        assert sum(any(p.success) for p in found.pieces[start : start + 2]) == 1
    tried = sum(map(len, play.asked)) // 2
    assert found.metrics["groups_tried"] == tried > 3
    assert found.metrics["rejected_steps"] == 2 * 2 * (tried - 3)
    assert found.env_steps == 2 * 2 * tried
    assert found.metrics["accepted_share"] == pytest.approx(3 / tried)


def test_drawing_again_ends_at_the_cap():
    for rate in (0.0, 1.0):
        setting = GroupRollouts(size=2, contexts=3, max_tried=2.5)
        found = play_groups(draws(setting, 0, 1), Played({0: rate, 1: rate}), no_score, generator())
        assert (found.accepted, found.metrics["groups_tried"]) == (0, 7)
        assert len(found.pieces) == 14, "what was played is returned, for its metrics"


@pytest.mark.parametrize("rejection", ["none", "drop"])
def test_without_drawing_again_every_group_is_played_once(rejection):
    setting = GroupRollouts(size=4, contexts=40, rejection=rejection)
    found = play_groups(draws(setting, *range(40)), Played({}), no_score, generator())
    mixed = 1 - 2 * 0.5**4
    assert found.metrics["groups_tried"] == 40
    assert found.accepted == 40 if rejection == "none" else 25 < found.accepted < 40
    assert found.accepted / 40 == pytest.approx(1 if rejection == "none" else mixed, abs=0.15)


def test_the_share_that_is_accepted_is_that_of_mixed_groups():
    """1 − p^K − (1 − p)^K, against 2,000 groups."""
    for rate in (0.1, 0.5):
        setting = GroupRollouts(size=8, contexts=2_000, rejection="drop")
        found = play_groups(draws(setting, 7), Played({7: rate}, seed=3), no_score, generator())
        assert found.metrics["accepted_share"] == pytest.approx(1 - rate**8 - (1 - rate) ** 8, abs=0.03)


def test_scores_are_compared_where_the_settings_say_so():
    setting = GroupRollouts(size=2, contexts=2, rejection="drop", compare="score")
    asked = []

    def score(pieces):
        asked.append(len(pieces))
        return [0.1, 0.3, math.nan, 0.4]

    found = play_groups(draws(setting, 0, 1), Played({0: 1.0, 1: 1.0}), score, generator())
    assert asked == [4], "all episodes of a wave are scored in one batch"
    assert found.accepted == 1, "a group with one known score cannot be compared"
    assert found.pieces[0].draw == 0


def test_a_curriculum_draws_what_is_open_more_often():
    rates = {0: 0.0, 1: 0.5, 2: 1.0}
    setting = GroupRollouts(size=4, contexts=1, rejection="none", curriculum=Curriculum("frontier", 0.1, 0.1))
    held, play = draws(setting, 0, 1, 2), Played(rates)
    for seed in range(200):
        play_groups(held, play, no_score, generator(seed))
    drawn = Counter(indices[0] for indices in play.asked[50:])
    assert drawn[1] > 2 * max(drawn[0], drawn[2]) and min(drawn.values()) > 0


def test_solved_initial_states_are_passed_over_three_times():
    setting = GroupRollouts(size=2, contexts=1, rejection="none", skip_solved=True)
    held, play = draws(setting, 0, 1), Played({0: 1.0, 1: 0.5})
    for seed in range(120):
        play_groups(held, play, no_score, generator(seed))
    drawn = Counter(indices[0] for indices in play.asked)
    assert 10 <= drawn[0] <= 40 and drawn[0] + drawn[1] == 120
    alone = draws(setting, 0)
    assert [play_groups(alone, Played({0: 1.0}), no_score, generator(s)).accepted for s in range(9)] == [1] * 9


def test_quotas_fix_the_mix_that_rejection_would_shift():
    setting = GroupRollouts(size=2, contexts=4, max_tried=100, quotas={Corridor.name: 3, Street.name: 1})
    held = draws(setting, 0, 1, more=contexts(10, 11, task=Street))
    assert held.wanted() == {Corridor.name: 3, Street.name: 1}
    found = play_groups(held, Played({0: 0.05, 1: 0.05}), no_score, generator())
    assert Counter(p.context.task for p in found.pieces) == {Corridor.name: 6, Street.name: 2}
    assert found.metrics[f"groups_accepted/{Corridor.name}"] == 3
    shares = [found.metrics[f"accepted_share/{name}"] for name in (Corridor.name, Street.name)]
    assert shares[0] < shares[1], "the share of accepted groups is logged by task"
    with pytest.raises(ValueError, match=r"contexts 1: with these quotas test/street would get no group"):
        draws(replace(setting, contexts=1), 0, more=contexts(1, task=Street))
    with pytest.raises(ValueError, match="quotas of test/street: expected one for each of test/corridor, test/street"):
        draws(replace(setting, quotas={Street.name: 1.0}), 0, more=contexts(1, task=Street))


def test_what_is_remembered_goes_on():
    setting = GroupRollouts(size=2, contexts=2, skip_solved=True, curriculum=Curriculum())
    held, play = draws(setting, 0, 1, 2), Played({0: 1.0})
    for seed in range(5):
        play_groups(held, play, no_score, generator(seed))
    other = draws(replace(setting, curriculum=Curriculum()), 0, 1, 2)
    other.load_state_dict(held.state_dict())
    assert other.state_dict() == held.state_dict()
    assert other.draw(None, 3, generator(9)) == held.draw(None, 3, generator(9))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"size": 1}, "groups of 2 or more"),
        ({"contexts": 0}, "at least one of them"),
        ({"max_tried": 0.5}, "a multiple of at least 1"),
        ({"quotas": {}}, "a share above 0 for each task"),
        ({"quotas": {"a": -1.0}}, "a share above 0 for each task"),
    ],
)
def test_settings_that_make_no_sense(more, match):
    with pytest.raises(ValueError, match=match):
        GroupRollouts(**more)


# --- in training ----------------------------------------------------------------------------------------------------


class Watching(PolicyOptimizer):
    """Keeps the batches and the advantages."""

    def training_step(self, batch, batch_index):
        self.shown = [*getattr(self, "shown", []), batch]
        super().training_step(batch, batch_index)


def group_module(reward=None):
    torch.manual_seed(0)
    policy = GaussianPolicy(12, 3, hidden=(8,), horizon=2, execute=2)
    return Watching(policy, GroupScore(reward or RecordedReward()), ClippedSurrogate(), passes=2, minibatch_size=64)


def test_every_decision_of_every_episode_is_trained_on():
    module = group_module()
    groups = GroupRollouts(size=3, contexts=2, rejection="none")
    data = RolloutData("mujoco/reach", rollouts=2, envs=2, horizon=7, contexts=5, eval_contexts=0, groups=groups)
    trainer(max_epochs=1).fit(module, data)
    for batch in module.shown:
        assert bool(batch.whole.all()) and (batch.weight[batch.mask] == 1).all()
        assert sorted(Counter(batch.group.tolist()).values()) == [3, 3]
        advantages = module.advantage(batch, module.advantage.estimate(batch))
        assert torch.equal(advantages.valid, batch.decision_mask), "from the first step on"
        first = batch.state[:, 0]
        for group in set(batch.group.tolist()):
            assert len(first[batch.group == group].unique(dim=0)) == 1, "a group begins in one state"
    assert data.env_steps == sum(int(b.mask.sum()) for b in module.shown)


def test_rollouts_that_cut_episodes_are_refused():
    data = RolloutData("mujoco/reach", steps=20, rollouts=1, envs=1, horizon=7, contexts=2, eval_contexts=0)
    with pytest.raises(ValueError, match=r"GroupScore compares whole episodes.*--data.init_args.groups.size 8"):
        trainer(max_epochs=1).fit(group_module(), data)


def test_a_rollout_without_an_accepted_group_changes_nothing():
    module = group_module()
    before = [p.clone() for p in module.policy.parameters()]
    groups = GroupRollouts(size=2, contexts=1, max_tried=2.0)
    data = RolloutData("mujoco/reach", rollouts=2, envs=2, horizon=1, contexts=3, eval_contexts=0, groups=groups)
    trainer(max_epochs=1).fit(module, data)
    assert data.env_steps == 2 * 2 * 2
    assert all(torch.equal(p, b) for p, b in zip(module.policy.parameters(), before, strict=True))
    assert data.metrics["groups_accepted"] == 0


def test_the_reward_of_the_run_is_compared():
    module = group_module()
    groups = GroupRollouts(size=2, contexts=2, compare="score")
    data = RolloutData(
        "mujoco/reach", rollouts=1, envs=2, horizon=4, contexts=3, eval_contexts=0, groups=groups, end_on_success=False
    )
    trainer(max_epochs=1).fit(module, data)
    assert data.metrics["groups_accepted"] == 2, "distances differ where nobody succeeds"


def test_outcomes_that_are_hidden_are_not_compared():
    for groups in (
        GroupRollouts(),
        GroupRollouts(rejection="none", curriculum=Curriculum()),
        GroupRollouts(compare="score", skip_solved=True),
    ):
        with pytest.raises(ValueError, match="hide_outcome with groups"):
            RolloutData("mujoco/reach", end_on_success=False, hide_outcome=True, groups=groups)
    RolloutData("mujoco/reach", end_on_success=False, hide_outcome=True, groups=GroupRollouts(rejection="none"))


def test_groups_may_be_given_in_a_configuration():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(lightning.LightningDataModule, "data")
    given = parser.parse_args(
        [
            "--data=guerdon.RolloutData",
            "--data.init_args.task=mujoco/reach",
            "--data.init_args.groups.size=4",
            "--data.init_args.groups.curriculum.mode=variance",
        ]
    )
    built: Any = parser.instantiate_classes(given)
    data = built.data
    assert (data.groups.size, data.groups.curriculum.mode) == (4, "variance")
