"""Rewards for completed stages: by hand, against a literal loop, as properties; and stages as targets."""

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.core.interfaces import TaskDecomposer, TaskPlan, TaskStage
from guerdon.core.returns import discounted_returns
from guerdon.critics.value import ValueCritic
from guerdon.datasets.collate import collate
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.lerobot import LeRobotDataset
from guerdon.datasets.lerobot_writer import LeRobotWriter
from guerdon.datasets.module import EpisodeData
from guerdon.datasets.stages import stage_proportions
from guerdon.envs.collect import collect
from guerdon.envs.vector import make_task
from guerdon.policies.advantage import RewardToGo
from guerdon.rewards.fit import RewardTraining
from guerdon.rewards.observed import RewardInputs
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedSuccess
from guerdon.rewards.recorded_plans import RecordedDecomposer
from guerdon.rewards.rule_decomposer import RuleDecomposer
from guerdon.rewards.subgoals import StageLabels, SubgoalLabels, SubgoalReward
from guerdon.testing import check_reward_model, cut_after

SOME = settings(max_examples=40, deadline=None)
TEA = {"make tea": {"stages": [{"name": "boil"}, {"name": "pour"}, {"name": "wait"}]}}


class Counts(TaskDecomposer):
    """Counts stages as ``labels["count"]`` says, and remembers what it was asked to plan."""

    def __init__(self, stages: int = 3) -> None:
        super().__init__()
        self.stages = stages
        self.asked: list[str] = []

    def plan(self, instructions, first_frames=None):
        self.asked += instructions
        made = tuple(TaskStage(name=f"s{i}") for i in range(self.stages))
        return [TaskPlan(instruction=text, stages=() if text == "?" else made) for text in instructions]

    def completed(self, batch, plans, causal):
        assert all(plan.stages for plan in plans)
        return batch.labels["count"]


def counted(*rows, valid=None, end=End.CUT, texts=None):
    values = torch.tensor(rows, dtype=torch.float32)
    steps = values.shape[1] - 1
    known = torch.ones_like(values, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return TrajectoryBatch(
        state=torch.zeros(len(rows), steps + 1, 1),
        actions=torch.zeros(len(rows), steps, 1),
        mask=torch.ones(len(rows), steps, dtype=torch.bool),
        instructions=texts or ("make tea",) * len(rows),
        end=torch.full((len(rows),), int(end)),
        labels={"count": Labelled(values=values, valid=known)},
    )


def test_a_bonus_for_every_stage_once():
    # 0 → 1.4: one stage; back to 0 and again 1: nothing; → 3: two stages
    scored = SubgoalReward(Counts(), bonus=0.5)(counted([0, 1.4, 0, 1, 3, 2.5]))
    assert scored.rewards.tolist() == [[0.5, 0, 0, 1.0, 0]]
    assert bool(scored.valid.all())
    assert scored.progress.values.tolist() == [pytest.approx([0, 1.4 / 3, 0, 1 / 3, 1, 2.5 / 3])]


def test_what_was_complete_at_first_is_not_paid():
    assert SubgoalReward(Counts())(counted([2, 2, 3])).rewards.tolist() == [[0, 1]]


def test_unknown_counts_are_unknown_rewards():
    valid = [[True, False, True, False, False]]
    scored = SubgoalReward(Counts())(counted([0, 3, 1, 3, 3], valid=valid))
    assert scored.valid.tolist() == [[False, True, False, False]]
    assert scored.rewards.tolist() == [[0, 1, 0, 0]]  # paid where it is seen; what is held in between is not lost
    late = SubgoalReward(Counts())(counted([0, 2, 3], valid=[[False, True, True]]))
    assert late.valid.tolist() == [[False, True]]  # nobody knows what the first step earned
    assert late.rewards.tolist() == [[0, 1]]


def test_the_potential_by_hand():
    # Φ = 0, 0.5, 1; γ = 0.9: 0.9 · 0.5 − 0 = 0.45; cut: 0.9 · 1 − 0.5 = 0.4; ended: 0 − 0.5 = −0.5
    reward = SubgoalReward(Counts(), mode="potential", gamma=0.9)
    assert reward(counted([0, 1.5, 3])).rewards.tolist() == [pytest.approx([0.45, 0.4])]
    assert reward(counted([0, 1.5, 3], end=End.TIME_LIMIT)).rewards.tolist() == [pytest.approx([0.45, 0.4])]
    assert reward(counted([0, 1.5, 3], end=End.SUCCESS)).rewards.tolist() == [pytest.approx([0.45, -0.5])]
    hidden = counted([0, 1.5, 3], end=End.SUCCESS, valid=[[True, True, False]])
    assert reward(hidden).rewards.tolist() == [pytest.approx([0.45, -0.5])]  # after an end it is known to be 0
    assert reward(counted([0, 1.5, 3], valid=[[True, False, True]])).valid.tolist() == [[False, False]]


counts = st.lists(st.floats(0, 3, width=16), min_size=2, max_size=10)


@given(row=counts, gamma=st.sampled_from([0.5, 0.9, 1.0]), end=st.sampled_from([End.CUT, End.SUCCESS, End.FAILURE]))
@SOME
def test_the_potential_telescopes(row, gamma, end):
    batch = counted(row, end=end)
    scored = SubgoalReward(Counts(), mode="potential", gamma=gamma)(batch)
    total = float(discounted_returns(scored.rewards, batch.mask, gamma)[0, 0])
    left = gamma ** (len(row) - 1) * row[-1] / 3 if end == End.CUT else 0.0
    assert total == pytest.approx(left - row[0] / 3, abs=1e-5)


@given(row=counts, data=st.data())
@SOME
def test_the_bonus_is_the_literal_loop(row, data):
    valid = data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))
    best, paid, known = None, [], []
    for t, (count, seen) in enumerate(zip(row, valid, strict=True)):
        whole = int(count + 1e-5)
        if t:
            known.append(seen and best is not None)
            paid.append(max(0, whole - best) if known[-1] else 0)
        if seen:
            best = whole if best is None else max(best, whole)
    scored = SubgoalReward(Counts())(counted(row, valid=[valid]))
    assert scored.valid.tolist() == [known]
    assert scored.rewards.tolist() == [paid]


@given(row=counts, mode=st.sampled_from(["bonus", "potential"]), data=st.data())
@SOME
def test_rewards_of_a_prefix_are_the_prefix_of_the_rewards(row, mode, data):
    cut = data.draw(st.integers(2, len(row)))
    reward = SubgoalReward(Counts(), mode=mode)
    whole, part = reward(counted(row)), reward(counted(row[:cut]))
    assert part.rewards.tolist() == whole.rewards[:, : cut - 1].tolist()


def test_going_back_and_forth_earns_nothing():
    reward = SubgoalReward(Counts())
    steady, restless = reward(counted([0, 1, 1, 1, 1, 2])), reward(counted([0, 1, 0, 1, 0, 2]))
    assert float(steady.rewards.sum()) == float(restless.rewards.sum()) == 2


def test_plans_are_made_once_and_no_plan_is_no_reward():
    reward = SubgoalReward(Counts())
    batch = counted([0, 1], [0, 2], [0, 0], texts=("a", "b", "a"))
    reward(batch), reward(batch[[0]]), reward(counted([0, 3], texts=("c",)))
    assert reward.decomposer.asked == ["a", "b", "c"]
    alone = SubgoalReward(Counts())(counted([0, 3], texts=("?",)))
    assert not bool(alone.valid.any()) and not bool(alone.progress.valid.any())
    assert alone.rewards.tolist() == [[0]]


@pytest.mark.parametrize("count", [-1.0, 3.5, float("nan")])
def test_counts_that_cannot_be_are_refused(count):
    with pytest.raises(ValueError, match=r"Counts counts .* at observation 1 of row 0: expected 0 … 3"):
        SubgoalReward(Counts())(counted([0, count]))


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="gamma is 2"):
        SubgoalReward(Counts(), gamma=2.0)
    with pytest.raises(ValueError, match="bonus is nan"):
        SubgoalReward(Counts(), bonus=float("nan"))


def staged(rows, end=End.SUCCESS):
    batch = counted(*rows, end=end)
    label = batch.labels["count"]
    batch.labels["stage"] = Labelled(values=label.values.long(), valid=label.valid)
    return batch


@pytest.mark.parametrize("mode", ["bonus", "potential"])
def test_recorded_stages_keep_every_promise(mode):
    decomposer = RecordedDecomposer(TEA, causal_labels=True)
    rows = [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1]]
    check_reward_model(SubgoalReward(RecordedDecomposer(TEA), mode=mode, causal=False), staged(rows))
    # with_other_future draws other stages, which a recorded decomposer refuses: hindsight is checked above
    whole = SubgoalReward(decomposer, mode=mode)(staged(rows))
    for step in range(5):
        cut = SubgoalReward(decomposer, mode=mode)(cut_after(staged(rows), step))
        assert torch.allclose(cut.rewards[:, : step + 1], whole.rewards[:, : step + 1], atol=1e-6)


def test_a_reward_says_whether_it_is_causal():
    online, hindsight = SubgoalReward(RecordedDecomposer(TEA)), SubgoalReward(RecordedDecomposer(TEA), causal=False)
    assert online.causal and not hindsight.causal
    with pytest.raises(ValueError, match="cannot be used online"):
        online(staged([[0, 1, 2]]))
    assert hindsight(staged([[0, 1, 2]])).rewards.tolist() == [[1, 2]]  # success completes the last one too
    source = RewardToGo(hindsight, ValueCritic(1))
    with pytest.raises(ValueError, match="not causal"):
        source.estimate(staged([[0, 1, 2]], end=End.CUT))


@pytest.fixture(scope="module")
def episodes():
    task = make_task("metaworld/drawer-open-v3", 120, 0)
    made = list(collect(task, {"expert": 0.5, "random": 0.25, "aborted": 0.25}, episodes=8, frames=False))
    task.close()
    return made


@pytest.mark.parametrize("mode", ["bonus", "potential"])
@pytest.mark.parametrize("causal", [True, False])
def test_stages_by_rule_keep_every_promise(episodes, mode, causal):
    batch = collate([episodes[0], next(e for e in episodes if e.quality == "random")])
    check_reward_model(SubgoalReward(RuleDecomposer(), mode=mode, causal=causal), batch)


def test_a_success_is_paid_every_stage_and_a_failure_what_it_reached(episodes):
    batch = collate(episodes)
    paid = SubgoalReward(RuleDecomposer())(batch).rewards.sum(1)
    assert paid[batch.success == 1].tolist() == [2.0] * int((batch.success == 1).sum())
    assert bool((paid[batch.success == 0] < 2).all())


def test_it_shapes_a_sparse_reward_as_a_potential(episodes):
    batch = collate(episodes[:2])
    source = RewardToGo(RecordedSuccess(), ValueCritic(39), potential=SubgoalReward(RuleDecomposer()), normalise=False)
    plain = RewardToGo(RecordedSuccess(), source.critic, normalise=False)
    rewards = source.estimate(batch)
    shaped, bare = source(batch, rewards), plain(batch, rewards)
    assert bool(shaped.valid[batch.decision_mask].all())
    assert not torch.allclose(shaped.advantages, bare.advantages)


def test_hindsight_stages_are_written_into_episodes(episodes):
    label = StageLabels(RuleDecomposer())
    won = label(next(e for e in episodes if e.success == 1))
    stage = won.labels["stage"]
    assert stage.valid.all() and stage.values.dtype == np.int64
    assert sorted(set(stage.values.tolist())) == [0, 1]
    assert (np.diff(stage.values) >= 0).all()
    assert len(label.decomposer.plan([won.instruction])[0].stages) == 2
    with_fraction = StageLabels(RuleDecomposer(), causal=True, fraction=True)(won).labels
    within = with_fraction["stage_fraction"]
    assert within.valid.all() and 0 <= within.values.min() and within.values.max() == 1.0
    assert within.values[-1] == 1.0  # the last stage is complete
    online = RuleDecomposer().completed(collate([won]), RuleDecomposer().plan([won.instruction]), True).values[0]
    assert np.allclose(with_fraction["stage"].values + within.values, online.numpy(), atol=1e-6)


def test_stage_targets_made_on_loading_are_those_of_stored_stages(episodes):
    decomposer, label = RuleDecomposer(), StageLabels(RuleDecomposer())
    batch, stored = collate(episodes), collate([label(episode) for episode in episodes])
    for shares in (None, [0.25, 0.75]):
        made = SubgoalLabels(decomposer, shares).targets(batch)
        wanted = LabelFactory(progress="stages", stages=shares or 2).targets(stored)
        for name in ("progress", "success", "remaining"):
            assert torch.equal(made.labels[name].valid, wanted.labels[name].valid)
            assert torch.allclose(made.labels[name].values, wanted.labels[name].values, atol=1e-6)
    won = batch.success == 1
    assert bool(made.labels["progress"].valid[won][batch.made[won]].all())
    assert not bool(made.labels["progress"].valid[~won].all(1).any())  # where a failure broke off is not known


def test_stage_targets_by_hand():
    # stages 0 0 1 1 2 2 of three, success: τ = 0, 1/2 | 0, 1/2 | 0, 1, of which each third is worth 1/3
    batch = staged([[0, 0, 1, 1, 2, 2]])
    made = SubgoalLabels(RecordedDecomposer(TEA)).targets(batch)
    sixths = torch.tensor([[0, 1, 2, 3, 4, 6]]) / 6
    assert torch.allclose(made.labels["progress"].values, sixths)
    failed = SubgoalLabels(RecordedDecomposer(TEA)).targets(staged([[0, 0, 1, 1, 2, 2]], end=End.FAILURE))
    assert failed.labels["progress"].valid.tolist() == [[True] * 4 + [False] * 2]


def test_negatives_are_drawn_from_stage_targets():
    labels = SubgoalLabels(RecordedDecomposer(TEA), rewind=1.0)
    made, drawn = labels.draw(staged([[0, 0, 1, 1, 2, 2]]), torch.Generator().manual_seed(0))
    assert drawn["rewind"] == 1
    progress = made.labels["progress"].values[0]
    assert float(progress.max()) > float(progress[-1])  # forward, then back


def test_a_decomposer_with_cameras_labels_beforehand():
    looking = Counts()
    looking.inputs = RewardInputs(cameras=("top",))
    with pytest.raises(ValueError, match="Counts looks through cameras: label the data set once with StageLabels"):
        SubgoalLabels(looking)


def test_a_progress_model_learns_from_stages(episodes, tmp_path):
    """End to end: decomposer → stored stages → targets → a model whose progress follows them."""
    label = StageLabels(RuleDecomposer())
    with LeRobotWriter(tmp_path / "staged", fps=80) as writer:
        for episode in episodes:
            writer.add(label(episode))
    stored = LeRobotDataset(tmp_path / "staged")
    shares = stage_proportions([stored[i] for i in range(len(stored))])
    assert len(shares) == 2 and sum(shares) == pytest.approx(1)
    lightning.seed_everything(0)
    model = ProgressReward(state_size=39, layers=0, width=32)
    labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0, progress="stages", stages=[0.5, 0.5])
    data = EpisodeData(str(tmp_path / "staged"), batch_size=8, repeats=10, labels=labels, val_fraction=0.0)
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(RewardTraining(model, learning_rate=5e-3), datamodule=data)
    batch = collate([stored[i] for i in range(len(stored)) if stored[i].success == 1])
    target = labels.targets(batch).labels["progress"]
    with torch.no_grad():
        said = model.eval()(batch).progress.values
    assert bool(target.valid[batch.made].all())
    error = (said - target.values).abs()[target.valid].mean()
    middle = (0.5 - target.values).abs()[target.valid].mean()  # what knowing nothing would cost
    assert float(error) < 0.5 * float(middle)


def test_an_instruction_without_rules_is_named():
    batch = counted([0, 1], texts=("dance",))
    with pytest.raises(ValueError, match="no rule for the instruction 'dance'"):
        SubgoalReward(RuleDecomposer())(batch)
