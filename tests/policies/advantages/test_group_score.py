import math
import warnings
from dataclasses import replace
from typing import Any

import lightning
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import Policy, RewardModel
from guerdon.core.returns import group_standardise, leave_one_out
from guerdon.policies.advantages.group_score import (
    NORMALISE,
    GroupScore,
    group_normalise,
    group_ranks,
    group_variance,
    merge_ties,
    term_shares,
)
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.rewards.grape.trajectory import GrapeScore
from guerdon.rewards.recorded import RecordedReward
from guerdon.testing import reopen


class Parts(RewardModel):
    """Two recorded columns, each a term."""

    causal = False

    def __init__(self, first: float = 1.0, second: float = 1.0) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, batch):
        one, two = batch.recorded["one"], batch.recorded["two"]
        valid = one.valid & two.valid & batch.mask
        terms = {
            "one": torch.where(valid, self.first * one.values, 0.0),
            "two": torch.where(valid, self.second * two.values, 0.0),
        }
        return RewardEstimates(rewards=terms["one"] + terms["two"], valid=valid, terms=terms)


def batch_of(one, two=None, group=None, end=End.FAILURE, **fields):
    """Rows of 3 steps whose last one pays the given numbers."""
    rows = len(one)
    mask = torch.ones(rows, 3, dtype=torch.bool)

    def last(values):
        paid = torch.zeros(rows, 3)
        paid[:, 2] = torch.tensor(values)
        return Labelled(values=paid, valid=mask)

    given = {
        "state": torch.zeros(rows, 4, 2),
        "actions": torch.zeros(rows, 3, 1),
        "mask": mask,
        "end": torch.full((rows,), int(end)),
        "group": torch.zeros(rows, dtype=torch.long) if group is None else torch.tensor(group),
        "task": torch.zeros(rows, dtype=torch.long),
        "recorded": {"one": last(one), "two": last([0.0] * rows if two is None else two)},
    }
    return TrajectoryBatch(**given | fields)


def run(source, batch):
    return source(batch, source.estimate(batch))


def quiet(**given):
    return GroupScore(Parts(), min_share=0.0, **given)


def test_by_hand():
    batch = batch_of([1.0, 2.0, 6.0, 4.0, 5.0], group=[0, 0, 0, 1, 1])
    expected = {
        "none": [1.0, 2.0, 6.0, 4.0, 5.0],
        "leave_one_out": [1 - 4, 2 - 3.5, 6 - 1.5, -1.0, 1.0],
        # mean 3, deviations −2, −1, 3, variance 14/2; then 4.5 ± 0.5, variance 0.5
        "zscore": [-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5, -0.5 / 0.5**0.5, 0.5 / 0.5**0.5],
        "rank": [-1.0, 0.0, 1.0, -1.0, 1.0],
        "mean": [-2.0, -1.0, 3.0, -0.5, 0.5],
        # population variances 14/3 and 0.25
        "leave_one_out_std": [-3 / (14 / 3) ** 0.5, -1.5 / (14 / 3) ** 0.5, 4.5 / (14 / 3) ** 0.5, -2.0, 2.0],
        # of all five: mean 3.6, squares 6.76 + 2.56 + 5.76 + 0.16 + 1.96 = 17.2 over 5
        "batch": [x / 3.44**0.5 for x in (-2.6, -1.6, 2.4, 0.4, 1.4)],
    }
    for how, numbers in expected.items():
        advantages = run(quiet(normalise=how), batch)
        for decision in range(3):
            assert advantages.advantages[:, decision].tolist() == pytest.approx(numbers, rel=1e-5)
        assert advantages.returns[:, 1].tolist() == [1.0, 2.0, 6.0, 4.0, 5.0]
        assert bool(advantages.valid.all())


@pytest.mark.parametrize(
    ("wins", "leave_one_out_mass", "zscore_mass"), [(1, 2.0, 5.29), (4, 4.57, 8.0), (0, 0.0, 0.0), (8, 0.0, 0.0)]
)
def test_the_weight_of_a_group_of_eight(wins, leave_one_out_mass, zscore_mass):
    # 2S(K − S)/(K − 1) and 2√(S(K − S)): standard scores raise the weight of groups that are nearly solved or hopeless
    score, group = torch.tensor([1.0] * wins + [0.0] * (8 - wins)), torch.zeros(8, dtype=torch.long)
    valid = torch.ones(8, dtype=torch.bool)
    mass = {how: group_normalise(score, group, how, valid).abs().sum().item() for how in NORMALISE}
    assert mass["leave_one_out"] == pytest.approx(leave_one_out_mass, abs=0.005)
    assert mass["mean"] == pytest.approx(leave_one_out_mass * 7 / 8, abs=0.005)
    assert mass["leave_one_out_std"] == pytest.approx(zscore_mass * 8 / 7, abs=0.01)
    assert mass["batch"] == pytest.approx(zscore_mass, abs=0.005)  # one group: population standard deviation
    assert mass["zscore"] == pytest.approx(zscore_mass * (7 / 8) ** 0.5, abs=0.005)  # unbiased, as in GRPO's code


@given(
    scores=st.lists(st.sampled_from([0.1, 0.3, 0.7]), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_baselines_against_a_loop(scores, seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.tensor(scores)
    group = torch.randint(0, 3, score.shape, generator=generator)
    valid = torch.rand(score.shape, generator=generator) < 0.8
    mean = group_normalise(score, group, "mean", valid)
    scaled = group_normalise(score, group, "leave_one_out_std", valid)
    for i in range(len(score)):
        own = [float(score[j]) for j in range(len(score)) if group[j] == group[i] and valid[j]]
        if not bool(valid[i]) or len(set(own)) < 2:
            assert float(mean[i]) == float(scaled[i]) == 0.0, "alone, cut out or equal: exactly 0"
            continue
        average = sum(own) / len(own)
        std = (sum((x - average) ** 2 for x in own) / len(own)) ** 0.5
        assert float(mean[i]) == pytest.approx(float(score[i]) - average, abs=1e-6)
        others = (sum(own) - float(score[i])) / (len(own) - 1)
        assert float(scaled[i]) == pytest.approx((float(score[i]) - others) / std, rel=1e-4)


def test_rows_with_a_small_advantage_are_left_out():
    batch = batch_of([0.0, 0.004, 1.0, 0.0], group=[0, 0, 1, 1])
    source = quiet(min_advantage=0.01)
    found = run(source, batch)
    assert found.valid.any(1).tolist() == [False, False, True, True]
    assert found.advantages[:2].abs().sum() == 0
    assert source.figures["group_rows_small_advantage"] == 2
    assert run(quiet(), batch).valid.all(), "by default none is"
    with pytest.raises(ValueError, match="min_advantage is -1"):
        quiet(min_advantage=-1.0)


def test_the_whole_batch_needs_no_groups():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(quiet(normalise="batch"), batch_of([0.0, 1.0], group=[0, 1]))
    assert found.advantages[:, 0].tolist() == pytest.approx([-1.0, 1.0], rel=1e-5)


@given(
    scores=st.lists(st.floats(-10, 10, width=16, allow_subnormal=False), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_comparisons_within_groups(scores, seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.tensor(scores)
    group = torch.randint(0, 3, score.shape, generator=generator)
    valid = torch.rand(score.shape, generator=generator) < 0.8
    torch.testing.assert_close(
        group_normalise(score, group, "zscore", valid), group_standardise(score, group, valid=valid)
    )
    torch.testing.assert_close(
        group_normalise(score, group, "leave_one_out", valid), leave_one_out(score, group, valid)
    )
    ranks = group_ranks(score, group, valid)
    for i in range(len(score)):
        others = [j for j in range(len(score)) if j != i and group[j] == group[i] and valid[j]]
        above = sum(float(score[i] > score[j]) - float(score[i] < score[j]) for j in others)
        expected = above / len(others) if others and bool(valid[i]) else 0.0
        assert float(ranks[i]) == pytest.approx(expected)
    for name in set(group.tolist()):
        assert float(ranks[group == name].sum()) == pytest.approx(0.0, abs=1e-5)
    shifted = group_ranks(torch.where(group == 0, 3 * score + 7, score), group, valid)
    torch.testing.assert_close(shifted, ranks)  # only the order inside a group matters


def test_what_is_incomplete_is_left_out_of_the_baseline():
    batch = batch_of([1.0, 2.0, 6.0, 100.0, 100.0, 100.0, 100.0])
    valid = batch.mask.clone()
    valid[3, 1] = False  # one reward unknown
    batch = replace(
        batch,
        recorded={**batch.recorded, "one": replace(batch.recorded["one"], valid=valid)},
        end=torch.tensor([2, 2, 2, 2, int(End.CUT), 2, int(End.CUT)]),
        offset=torch.tensor([0, 0, 0, 0, 0, 2, 0]),
        length=torch.tensor([3, 3, 3, 3, 4, 5, 9]),
    )
    source = quiet()
    advantages = run(source, batch)
    assert advantages.valid.any(1).tolist() == [True] * 3 + [False] * 4
    assert advantages.advantages[:, 0].tolist() == [-3.0, -1.5, 4.5, 0, 0, 0, 0]
    assert not bool(advantages.returns[3:].any())
    assert source.figures["group_rows"] == 3
    assert source.figures["group_rows_left_out"] == 4


def test_a_whole_row_with_an_open_end_counts_where_the_reward_scores_it():
    """Logged episodes without a label; whether such a row can be scored is for the reward to say."""
    batch = batch_of([1.0, 2.0, 6.0], end=End.CUT)
    assert run(quiet(), batch).advantages[:, 0].tolist() == [-3.0, -1.5, 4.5]
    spoken = -torch.tensor([1.0, 2.0, 6.0])[:, None, None].expand(3, 3, 1)
    batch = replace(batch, behaviour={"log_prob": spoken})
    given: dict[str, Any] = {"weights": (1.0, 0.0, 0.0)}
    advantages = run(GroupScore(GrapeScore(**given, open_ends=True)), batch)
    assert bool(advantages.valid.all())
    assert advantages.advantages[:, 0].tolist() == [9.0, 4.5, -13.5]  # −3, −6, −18 and the means of the others
    with pytest.warns(UserWarning, match="none of the 3 whole episodes .* no whole, finished episode"):
        assert not bool(run(GroupScore(GrapeScore(**given)), batch).valid.any())
    with pytest.warns(UserWarning, match="none of the 1 whole episodes"):  # two are pieces
        run(GroupScore(GrapeScore(**given)), replace(batch, length=torch.tensor([3, 4, 4])))


def test_the_reason_why_no_row_counts_is_told_once():
    batch = batch_of([1.0, 2.0, 3.0])
    source = GroupScore(GrapeScore(weights=(1.0, 0.0, 1.0)))
    with pytest.warns(UserWarning, match="GrapeScore scored none of the 3 whole .* recorded no finite log-probability"):
        run(source, batch)
    unknown = replace(batch.recorded["one"], valid=batch.mask & False)
    unsaid = replace(batch, recorded={**batch.recorded, "one": unknown})
    with pytest.warns(UserWarning, match="Parts scored none of the 3 whole episodes .* 9 of their 9 rewards"):
        run(quiet(), unsaid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(source, batch)
        pieces = replace(unsaid, length=torch.tensor([4, 4, 4]))
        told = quiet()
        run(told, pieces)  # no episode came to its end yet
        run(told, replace(unsaid, recorded=batch.recorded))
        some = batch.mask.clone()
        some[0] = False
        run(told, replace(unsaid, recorded={**batch.recorded, "one": replace(unknown, valid=some)}))
    with pytest.warns(UserWarning, match="9 of their 9"):  # silence before was no promise
        run(told, unsaid)


def test_a_final_reward_nobody_could_know_is_not_missed():
    batch = batch_of([1.0, 2.0])
    valid = batch.mask.clone()
    valid[:, 2] = False
    unknown = replace(batch, recorded={**batch.recorded, "one": replace(batch.recorded["one"], valid=valid)})
    with pytest.warns(UserWarning, match="2 of their 6 rewards are unknown"):
        assert not bool(run(quiet(), unknown).valid.any())
    repeated = replace(unknown, last_observed=torch.zeros(2, dtype=torch.bool))
    assert bool(run(quiet(), repeated).valid.all())


def test_a_group_is_a_task_and_an_initial_state():
    batch = batch_of([1.0, 2.0, 3.0, 5.0], group=[7, 7, 7, 7], task=torch.tensor([0, 0, 1, 1]))
    assert run(quiet(), batch).advantages[:, 0].tolist() == [-1.0, 1.0, -2.0, 2.0]


def test_padding_context_and_chunks():
    batch = batch_of([1.0, 3.0], decision_step=torch.tensor([[0, 2], [1, -1]]))
    batch = replace(batch, weight=torch.tensor([[0.0, 1, 1], [1, 1, 1]]))
    advantages = run(quiet(), batch)
    assert advantages.valid.tolist() == [[False, True], [True, False]]
    assert advantages.advantages.tolist() == [[0.0, -2.0], [2.0, 0.0]]


def test_what_a_reward_calls_valid_behind_the_end_of_a_row_does_not_count():
    careless = RewardEstimates(rewards=torch.ones(2, 3), valid=torch.ones(2, 3, dtype=torch.bool))
    whole = batch_of([1.0, 3.0])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    short = batch_of([1.0, 3.0], mask=mask, recorded={})
    source = quiet(normalise="none")
    for batch, scores in ((whole, [3.0, 3.0]), (short, [3.0, 1.0])):
        assert source(batch, careless).returns[:, 0].tolist() == scores


def test_groups_of_one_and_of_equals_say_nothing():
    batch = batch_of([1.0, 2.0, 2.0, 2.0], group=[0, 1, 1, 1])
    for how in ("zscore", "rank", "leave_one_out"):
        source = quiet(normalise=how)
        assert not bool(run(source, batch).advantages.any())
        assert source.figures["groups_flat"] == 1
        assert source.figures["groups_compared"] == 1
        assert source.figures["groups"] == 2


@pytest.mark.parametrize("normalise", ["zscore", "rank", "leave_one_out"])
def test_rows_that_are_all_alone_are_warned_about_once(normalise):
    source = quiet(normalise=normalise)
    batch = batch_of([1.0, 2.0, 3.0], group=[0, 1, 2])
    with pytest.warns(UserWarning, match=f"3 whole episodes .* alone in its group .*normalise='{normalise}'"):
        run(source, batch)
    assert source.figures["groups_mixed"] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(source, batch)
        run(quiet(normalise="none"), batch)  # every score counts as it is


def test_batches_that_teach_nothing_in_a_row_are_warned_about_once():
    mixed, flat = batch_of([1.0, 2.0], group=[0, 0]), batch_of([2.0, 2.0, 0.0, 0.0], group=[0, 0, 1, 1])
    source = quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in [*[flat] * 4, mixed, *[flat] * 4]:
            run(source, batch)
    with pytest.warns(UserWarning, match="in the last 5 batches, .* all rows of each group scored alike"):
        run(source, flat)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(source, flat)


def test_the_share_of_accepted_groups_by_hand():
    # one group is mixed, one flat, one alone
    source = quiet()
    run(source, batch_of([1.0, 2.0, 3.0, 3.0, 7.0], group=[0, 0, 1, 1, 2]))
    assert source.figures["groups_mixed"] == pytest.approx(1 / 3)


def test_a_reward_that_abstains_on_part_of_a_batch_compares_the_rest():
    batch = batch_of([1.0, 3.0, 50.0, 2.0, 9.0], group=[0, 0, 0, 1, 1])
    valid = batch.mask.clone()
    valid[2] = valid[4] = False  # group 0 keeps two rows, of group 1 one is left
    batch = replace(batch, recorded={**batch.recorded, "one": replace(batch.recorded["one"], valid=valid)})
    source = quiet()
    told = run(source, batch)
    assert told.valid.any(1).tolist() == [True, True, False, True, False]
    assert told.advantages[:, 0].tolist() == [-2.0, 2.0, 0.0, 0.0, 0.0]
    nothing = replace(
        batch, recorded={**batch.recorded, "one": replace(batch.recorded["one"], valid=torch.zeros_like(valid))}
    )
    with pytest.warns(UserWarning, match="scored none of the 5 whole episodes"):
        assert not run(quiet(), nothing).valid.any()


def test_shares_by_hand():
    """Within groups: one has deviations ±1 and ±1, two ±3 and 0; the gap between groups counts for neither."""
    batch = batch_of([1.0, 3.0, 101.0, 103.0], [0.0, 6.0, 50.0, 50.0], group=[0, 0, 1, 1])
    source = quiet()
    run(source, batch)
    assert source.figures["share_one"] == pytest.approx(4 / 22)  # 2 + 2 of 22; two: 18 + 0
    assert source.figures["share_two"] == pytest.approx(18 / 22)
    weighed = GroupScore(Parts(second=0.1), min_share=0.0)
    run(weighed, batch)
    assert weighed.figures["share_two"] == pytest.approx(0.18 / 4.18)


@given(seed=st.integers(0, 999))
def test_shares_add_up_and_variances_are_those_of_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 3, (9,), generator=generator)
    valid = torch.rand(9, generator=generator) < 0.8
    terms = {name: torch.randn(9, generator=generator) for name in "abc"}
    shares = term_shares(terms, group, valid)
    assert not shares or math.isclose(sum(shares.values()), 1.0, rel_tol=1e-9)
    total, free = 0.0, 0
    for name in set(group[valid].tolist()):
        members = terms["a"][valid & (group == name)].double()
        total += float((members - members.mean()).square().sum())
        free += len(members) - 1
    assert float(group_variance(terms["a"], group, valid)) == pytest.approx(total / max(free, 1), abs=1e-9)


def test_a_term_that_does_little_is_warned_about_once():
    batch = batch_of([1.0, 2.0, 3.0], [5.0, 5.2, 5.0])  # variances 1 and 0.04/3: 1.3 % of the sum
    source = GroupScore(Parts())
    with pytest.warns(UserWarning, match=r"'two' makes 1.3 % of the variance"):
        run(source, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(source, batch)
        run(GroupScore(Parts()), batch_of([1.0, 2.0, 3.0], [5.0, 2.0, 3.0]))
        alone = GroupScore(Parts(), normalise="none")
        run(alone, batch_of([1.0], [5.0]))  # nothing to compare, nothing to say
    assert "share_one" not in alone.figures


def test_a_term_that_is_equal_in_a_batch_is_no_fault_of_its_weight():
    """All rows fail at first; a later batch in which the term differs and does too little is still warned about."""
    source = GroupScore(Parts())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(source, batch_of([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]))
        assert source.figures["share_two"] == 0
        run(source, batch_of([1.0, 2.0, 3.0, 5.0], [0.1, 0.1, 7.0, 7.0], group=[0, 0, 1, 1]))  # equal in each group
    with pytest.warns(UserWarning, match=r"'two' makes .* % of the variance"):
        run(source, batch_of([1.0, 2.0, 3.0], [0.0, 0.1, 0.0]))


def test_terms_on_one_scale():
    """Ranks of each term: −1, 0, 1 and 1, −1, 0; added with weights 1 and 3."""
    batch = batch_of([1.0, 2.0, 60.0], [0.03, 0.01, 0.02])
    plain = run(quiet(normalise="none", normalise_terms="rank"), batch)
    assert plain.returns[:, 0].tolist() == [0.0, -1.0, 1.0]
    weighed = run(quiet(normalise="none", normalise_terms="rank", term_weights={"one": 1.0, "two": 3.0}), batch)
    assert weighed.returns[:, 0].tolist() == [2.0, -3.0, 1.0]
    only = run(quiet(normalise="none", normalise_terms="zscore", term_weights={"two": 1.0}), batch)
    assert only.returns[:, 0].tolist() == pytest.approx([1.0, -1.0, 0.0], rel=1e-3)
    scaled = quiet(normalise="none", normalise_terms="zscore")
    scaled.reward = Parts(second=1000.0)
    torch.testing.assert_close(
        run(scaled, batch).returns, run(quiet(normalise="none", normalise_terms="zscore"), batch).returns,
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


def test_what_is_wrong_is_said():
    batch = batch_of([1.0, 2.0])
    with pytest.raises(ValueError, match="reports the terms none"):
        run(
            GroupScore(RecordedReward("one"), normalise_terms="zscore"),
            batch,
        )
    with pytest.raises(ValueError, match="wanted are three"):
        run(quiet(normalise_terms="rank", term_weights={"three": 1.0}), batch)
    with pytest.raises(ValueError, match="term_weights weigh"):
        quiet(term_weights={"one": 1.0})
    with pytest.raises((ValueError, TypeError), match="normalise"):
        quiet(normalise="minmax")
    with pytest.raises(ValueError, match="min_share"):
        GroupScore(Parts(), min_share=1.0)
    with pytest.raises(FloatingPointError, match="Parts gave row 1 the known score inf"):
        run(quiet(), batch_of([1.0, math.inf]))
    assert bool(run(GroupScore(RecordedReward("one")), batch).valid.all())  # a reward without terms is welcome


def test_saved_and_frozen():
    source = GroupScore(Parts(second=0.5), normalise="rank", normalise_terms="zscore", term_weights={"one": 2.0})
    batch = batch_of([1.0, 2.0, 3.0], [5.0, 2.0, 3.0])
    torch.testing.assert_close(run(reopen(source), batch).advantages, run(source, batch).advantages)
    source.train()
    assert not source.reward.training


def batches(listed: Any) -> DataLoader:
    """A loader of a list of batches: torch asks for no more of a data set than places and a length."""
    return DataLoader(listed, batch_size=None)


def test_it_trains_a_policy_and_its_figures_are_logged(tmp_path):
    """In groups of one state the better actions are the larger ones: their mean rises."""
    torch.manual_seed(0)
    policy: Policy = GaussianPolicy(state_size=2, action_size=1, hidden=(8,))
    generator = torch.Generator().manual_seed(0)
    state = torch.zeros(32, 4, 2)
    rows, empty = torch.arange(32), batch_of([0.0] * 32, state=state)
    decided: list[Any] = [policy.act(empty.observe(rows, torch.full((32,), t)), generator=generator) for t in range(3)]
    sample = torch.stack([d.chunk for d in decided], 1)
    batch = batch_of(
        sample[..., 0, 0].sum(1).tolist(),
        sample[:, 0, 0, 0].tolist(),
        group=[i % 4 for i in range(32)],
        state=state,
        behaviour={"sample": sample, "log_prob": torch.stack([d.log_prob for d in decided], 1)},
    )
    module = PolicyOptimizer(policy, GroupScore(Parts()), ClippedSurrogate(), passes=4, minibatch_size=24)
    before = float(policy.distribution(batch.observe(torch.tensor([0]), torch.tensor([0])))[0].detach())
    trainer = lightning.Trainer(
        max_steps=16, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*num_workers|.*does not have many workers|.*log_every_n_steps")
        trainer.fit(module, batches([batch] * 3), batches([batch]))
    after = float(policy.distribution(batch.observe(torch.tensor([0]), torch.tensor([0])))[0].detach())
    assert after > before
    assert {"share_one", "share_two", "groups", "group_rows_left_out"} <= set(trainer.callback_metrics)


@pytest.mark.parametrize("how", ["batch", "rank", "zscore", "leave_one_out_std", "leave_one_out", "mean"])
def test_scores_that_differ_by_rounding_are_equal(how):
    """Three rows that are worth 1.2, whose terms were added in another order."""
    score = torch.tensor([1.200000002980, 1.200000025332, 1.200000002980], dtype=torch.float64)
    group, valid = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.bool)
    assert group_normalise(score, group, how, valid).tolist() == [0.0, 0.0, 0.0]
    far = group_normalise(torch.cat([score, score[:1] + 1]), torch.zeros(4, dtype=torch.long), how, valid.new_ones(4))
    assert len(set(far[:3].tolist())) == 1 and float(far[3]) > float(far[0])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.integers(0, 99))
def test_merging_ties_keeps_every_real_difference(numbers, seed):
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 2, (len(numbers),), generator=generator)
    exact = torch.tensor(numbers, dtype=torch.float64)
    noisy = exact + 1e-8 * torch.rand(len(numbers), generator=generator, dtype=torch.float64)
    merged = merge_ties(noisy, group)
    for i in range(len(numbers)):
        for j in range(len(numbers)):
            if group[i] == group[j]:
                assert bool(merged[i] == merged[j]) == (numbers[i] == numbers[j])
                assert bool(merged[i] < merged[j]) == (numbers[i] < numbers[j])
    assert float((merged - exact).abs().max()) < 1e-7
    broken = torch.cat([exact, torch.tensor([float("nan")], dtype=torch.float64)])
    assert merge_ties(broken, torch.zeros(len(broken), dtype=torch.long)) is broken
