"""Rewards for completed stages: by hand, against a literal loop, as properties; and stages as targets."""

import json
from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from guerdon.backbones.chat import Chat, Reply
from guerdon.backbones.lora import LoRA
from guerdon.backbones.model_inputs import ModelInputs
from guerdon.backbones.vlm import VLM
from guerdon.core.batch import End, Labelled, Sampled, TrajectoryBatch
from guerdon.core.interfaces import TaskDecomposer, TaskPlan, TaskStage
from guerdon.core.returns import discounted_returns
from guerdon.critics.value import ValueCritic
from guerdon.datasets.collate import collate
from guerdon.datasets.formats.lerobot import LeRobotDataset
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.datasets.stages import stage_proportions
from guerdon.envs.collect import collect
from guerdon.envs.vector import make_task
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.rewards.fit import RewardTraining
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedSuccess
from guerdon.rewards.stages.decomposer import VlmDecomposer
from guerdon.rewards.stages.recorded_plans import RecordedDecomposer
from guerdon.rewards.stages.rule_decomposer import RuleDecomposer
from guerdon.rewards.stages.segmentation import StagePath
from guerdon.rewards.stages.subgoals import StageLabels, SubgoalLabels, SubgoalReward
from guerdon.testing import check_reward_model, cut_after

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


@pytest.mark.slow
@given(row=counts, gamma=st.sampled_from([0.5, 0.9, 1.0]), end=st.sampled_from([End.CUT, End.SUCCESS, End.FAILURE]))
def test_the_potential_telescopes(row, gamma, end):
    batch = counted(row, end=end)
    scored = SubgoalReward(Counts(), mode="potential", gamma=gamma)(batch)
    total = float(discounted_returns(scored.rewards, batch.mask, gamma)[0, 0])
    left = gamma ** (len(row) - 1) * row[-1] / 3 if end == End.CUT else 0.0
    assert total == pytest.approx(left - row[0] / 3, abs=1e-5)


@pytest.mark.slow
@given(row=counts, data=st.data())
def test_the_bonus_is_the_literal_loop(row, data):
    valid = data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))
    best, paid, known = None, [], []
    for t, (count, seen) in enumerate(zip(row, valid, strict=True)):
        whole = int(count + 1e-5)
        if t:
            known.append(seen and best is not None)
            paid.append(max(0, whole - best) if seen and best is not None else 0)
        if seen:
            best = whole if best is None else max(best, whole)
    scored = SubgoalReward(Counts())(counted(row, valid=[valid]))
    assert scored.valid.tolist() == [known]
    assert scored.rewards.tolist() == [paid]


@pytest.mark.slow
@given(row=counts, mode=st.sampled_from(["bonus", "potential"]), data=st.data())
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
    for shown in (batch, batch[[0]], counted([0, 3], texts=("c",))):
        reward(shown)
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
    stage = Labelled(values=label.values.long(), valid=label.valid)
    return replace(batch, labels={**batch.labels, "stage": stage})


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bonus", "potential"])
@pytest.mark.parametrize("causal", [True, False])
def test_stages_by_rule_keep_every_promise(episodes, mode, causal):
    batch = collate([episodes[0], next(e for e in episodes if e.quality == "random")])
    check_reward_model(SubgoalReward(RuleDecomposer(), mode=mode, causal=causal), batch)


@pytest.mark.slow
def test_a_success_is_paid_every_stage_and_a_failure_what_it_reached(episodes):
    batch = collate(episodes)
    paid = SubgoalReward(RuleDecomposer())(batch).rewards.sum(1)
    assert paid[batch.success == 1].tolist() == [2.0] * int((batch.success == 1).sum())
    assert bool((paid[batch.success == 0] < 2).all())


@pytest.mark.slow
def test_it_shapes_a_sparse_reward_as_a_potential(episodes):
    batch = collate(episodes[:2])
    source = RewardToGo(RecordedSuccess(), ValueCritic(39), potential=SubgoalReward(RuleDecomposer()), normalise=False)
    plain = RewardToGo(RecordedSuccess(), source.critic, normalise=False)
    rewards = source.estimate(batch)
    shaped, bare = source(batch, rewards), plain(batch, rewards)
    assert bool(shaped.valid[batch.decision_mask].all())
    assert not torch.allclose(shaped.advantages, bare.advantages)


@pytest.mark.slow
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


@pytest.mark.slow
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
    looking: Any = Counts()
    looking.inputs = ModelInputs(cameras=("top",))
    with pytest.raises(ValueError, match="Counts looks through cameras: label the data set once with StageLabels"):
        SubgoalLabels(looking)


@pytest.mark.slow
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
    model = ProgressReward(state_size=39, observer=ObservationEncoder(layers=0, width=32))
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


def brightness(picture):
    return int(picture.float().mean())


class Says(Chat):
    """Plans as many stages as the first picture's brightness in tens, 1 … 3, and says that as many are complete.

    The first ``fails`` questions for a plan go unanswered, and those for an instruction with "?" are never answered.
    """

    def __init__(self, fails=0):
        super().__init__()
        self.name, self.fails, self.batches = "says", fails, []

    def reply(self, prompts, max_new_tokens=512):
        self.batches.append([(prompt[0].split(": ")[1].split(".")[0], brightness(prompt[1])) for prompt in prompts])
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt):
        self.fails -= 1
        if self.fails >= 0 or "?" in prompt[0]:
            return Reply(text=None, problem="timed out")
        return Reply(text=json.dumps({"stages": [{"name": f"s{i}"} for i in range(brightness(prompt[1]) // 10)]}))

    def answer_log_probs(self, prompts, answers) -> Float[Tensor, "M K"]:
        pictures = [[part for part in prompt if isinstance(part, Tensor)] for prompt in prompts]
        done = torch.tensor([min(brightness(p[-1]) // 10, len(answers) - 1) for p in pictures])
        return torch.nn.functional.one_hot(done, len(answers)).mul(0.7).add(0.05).log()


class Planning(VLM):
    """A real model, whose weights are random, that was taught plans: as many stages as the first pixel says, 1 … 4."""

    def reply(self, prompts, max_new_tokens=512):
        pictures: list[Any] = [prompt[1] for prompt in prompts]
        sizes = [1 + int(picture[0, 0, 0]) % 4 for picture in pictures]
        return [Reply(text=json.dumps({"stages": [{"name": f"s{i}"} for i in range(n)]})) for n in sizes]


def asked(reward: Any) -> list:
    """What the chat of a reward's decomposer was asked, call by call."""
    return reward.decomposer.chat.batches


def looking(chat, cameras=("wrist",)):
    return VlmDecomposer(chat, list(cameras), attempts=1, path=StagePath(hold=1))


def seen(levels, steps=(0, 1, 2, 3, 4), texts=None, offset=None):
    """Rows whose frames have the brightness written down; a row of None has no frame."""
    rows, size = len(levels), len(steps)
    values = torch.zeros(rows, size, 3, 4, 4, dtype=torch.uint8)
    step = torch.full((rows, size), -1)
    for row, level in enumerate(levels):
        if level is not None:
            values[row] = torch.tensor(level, dtype=torch.uint8)[:, None, None, None]
            step[row] = torch.tensor(steps)
    return TrajectoryBatch(
        actions=torch.zeros(rows, 4, 1),
        state=torch.zeros(rows, 5, 1),
        mask=torch.ones(rows, 4, dtype=torch.bool),
        frames={"wrist": Sampled(values=values, step=step)},
        instructions=texts or ("open",) * rows,
        offset=torch.tensor(offset or [0] * rows),
    )


def equal(one, other):
    return all(
        torch.equal(a, b)
        for a, b in (
            (one.rewards, other.rewards),
            (one.valid, other.valid),
            (one.progress.values, other.progress.values),
            (one.progress.valid, other.progress.valid),
        )
    )


def test_every_row_is_planned_for_from_its_own_first_picture():
    """Two rows with one instruction: three stages in one scene, one stage in the other."""
    batch = seen([[30, 0, 10, 20, 30], [10, 0, 0, 10, 10]])
    reward = SubgoalReward(looking(Says()))
    assert [len(plan.stages) for plan in reward.plans(batch)] == [3, 1]
    # a path begins with no stage complete; then the brightness in tens is how many are
    whole = reward(batch)
    assert whole.rewards.tolist() == [[0, 1, 1, 1], [0, 0, 1, 0]] and bool(whole.valid.all())
    for row in range(2):
        assert equal(SubgoalReward(looking(Says()))(batch[row]), whole[row])


def test_a_score_does_not_depend_on_what_was_scored_before():
    first, second = seen([[30, 0, 10, 20, 30]]), seen([[20, 0, 10, 10, 20]])
    busy = SubgoalReward(looking(Says()))
    busy(first)
    assert equal(busy(second), SubgoalReward(looking(Says()))(second))
    assert [len(busy.plans(b)[0].stages) for b in (first, second)] == [3, 2]


def test_all_new_plans_are_asked_for_at_once_and_only_once():
    reward = SubgoalReward(looking(Says()))
    batch = seen([[10] * 5, [20] * 5, [10] * 5, [10] * 5], texts=("open", "open", "open", "shut"))
    for shown in (batch, batch[1], seen([[20] * 5, [30] * 5])):
        reward(shown)
    assert asked(reward) == [[("open", 10), ("open", 20), ("shut", 10)], [("open", 30)]]


def test_a_row_without_a_frame_is_invalid_and_the_others_are_not():
    for order in ([None, [20] * 5], [[20] * 5, None]):
        reward = SubgoalReward(looking(Says()))
        scored = reward(seen(order))
        assert scored.valid.all(1).tolist() == scored.valid.any(1).tolist() == [level is not None for level in order]
        assert asked(reward) == [[("open", 20)]]
    nothing = SubgoalReward(looking(Says()))
    assert not bool(nothing(seen([None, None])).valid.any())
    assert asked(nothing) == [] and not nothing.decomposer.abstained
    with pytest.raises(ValueError, match="expected frames of front, the trajectories hold frames of wrist"):
        SubgoalReward(looking(Says(), ["front"]))(seen([[20] * 5]))


def test_a_window_from_inside_an_episode_does_not_show_how_it_began():
    reward = SubgoalReward(looking(Says()))
    scored = reward(seen([[20] * 5, [30] * 5], offset=[0, 7]))
    assert scored.valid.all(1).tolist() == scored.valid.any(1).tolist() == [True, False]
    assert asked(reward) == [[("open", 20)]]


def test_a_plan_that_failed_is_asked_for_again():
    reward = SubgoalReward(looking(Says(fails=1)))
    batch = seen([[20] * 5, [30] * 5])
    assert reward(batch).valid.any(1).tolist() == [False, True]
    assert bool(reward(batch).valid.all())
    assert asked(reward) == [[("open", 20), ("open", 30)], [("open", 20)]]
    by_text = SubgoalReward(Counts())
    for _ in range(2):
        by_text(counted([0, 3], texts=("?",)))
    assert by_text.decomposer.asked == ["?", "?"]


def test_it_plans_through_its_own_cameras():
    batch = seen([[20] * 5])
    other = Sampled(values=torch.full((1, 5, 3, 4, 4), 30, dtype=torch.uint8), step=torch.arange(5)[None])
    both = replace(batch, frames={"another": other, "wrist": batch.frames["wrist"]})
    reward = SubgoalReward(looking(Says()))
    reward(both)
    assert asked(reward) == [[("open", 20)]]
    # of two cameras the one named first, unless the other one alone was there at the row's first moment
    late = replace(other, step=torch.tensor([[1, 2, 3, 4, -1]]))
    for frames, level in (({"wrist": batch.frames["wrist"], "top": other}, 30), ({**batch.frames, "top": late}, 20)):
        two = SubgoalReward(looking(Says(), ["top", "wrist"]))
        two(replace(batch, frames=frames))
        assert asked(two) == [[("open", level)]]


def test_who_does_not_look_is_given_no_picture():
    class Blind(Counts):
        def plan(self, instructions, first_frames=None):
            assert first_frames is None
            return super().plan(instructions)

    batch = seen([[10] * 5, None, [20] * 5], texts=("a", "a", "b"))
    label = Labelled(values=torch.arange(5.0).clamp(max=3).expand(3, -1), valid=torch.ones(3, 5, dtype=torch.bool))
    reward = SubgoalReward(Blind())
    assert bool(reward(replace(batch, labels={"count": label})).valid.all())
    assert reward.decomposer.asked == ["a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "smolvlm"])
def test_a_real_model_scores_a_row_alone_as_in_a_batch(filmed, folders, architecture):
    batch = replace(filmed(), instructions=("open the drawer",) * 2)
    batch.frames["wrist"].values[:, 0, 0, 0, 0] = torch.tensor([2, 3])
    vlm = Planning(str(folders[architecture]))  # it holds no plans: those are the reward's

    def fresh():
        return SubgoalReward(VlmDecomposer(vlm, ["wrist"], min_mass=0.0, path=StagePath(hold=1)), mode="potential")

    with torch.no_grad():
        whole, backwards = fresh()(batch), fresh()(batch[[1, 0]])
        assert [len(plan.stages) for plan in fresh().plans(batch)] == [3, 4]
        assert bool(whole.valid[batch.mask].all()) and bool((whole.progress.values[:, 2] > 0).all())
        for row in range(2):
            alone, steps = fresh()(batch[row]), int(batch.steps[row])
            for scored in (whole[row], backwards[1 - row]):
                assert torch.equal(alone.valid[0, :steps], scored.valid[0, :steps])
                assert torch.allclose(alone.rewards[0, :steps], scored.rewards[0, :steps], atol=1e-5)
                found = scored.progress.values[0, : steps + 1]
                assert torch.allclose(alone.progress.values[0, : steps + 1], found, atol=1e-5)


@pytest.mark.slow
def test_a_real_model_keeps_every_promise(filmed, folders):
    """Random weights write no plan, so what is promised here is that nothing is made up, whatever the batch."""
    decomposer = VlmDecomposer(VLM(str(folders["smolvlm"])), ["wrist"], attempts=1, max_new_tokens=4, min_mass=0.0)
    check_reward_model(SubgoalReward(decomposer), filmed())
    assert decomposer.abstained and not bool(SubgoalReward(decomposer)(filmed()).valid.any())


def test_stage_labels_look_at_each_episode():
    """Three stages in the first episode's scene and two in the second's, under one instruction."""
    task = make_task("mujoco/reach", 5, 0)
    made = list(collect(task, {"random": 1.0}, episodes=2, frames=True))
    task.close()
    camera = next(iter(made[0].frames))

    class Sizes(Says):
        def _one(self, prompt):
            size = 3 if torch.equal(prompt[1], first) else 2
            return Reply(text=json.dumps({"stages": [{"name": f"s{i}"} for i in range(size)]}))

        def answer_log_probs(self, prompts, answers) -> Float[Tensor, "M K"]:
            shares = torch.full((len(prompts), len(answers)), 0.01)
            shares[:, -1] = 0.9
            return shares.log()

    first = collate(made[:1], cameras=(camera,)).frames[camera].values[0, 0]
    label = StageLabels(looking(Sizes(), [camera]))
    stages = [label(episode).labels["stage"] for episode in made]
    assert [int(column.values.max()) for column in stages] == [2, 1]
    assert all(column.valid.any() for column in stages)


def test_the_decomposer_is_frozen_for_good(folders):
    decomposer = looking(VLM(str(folders["smolvlm"]), lora=LoRA(rank=2)))
    assert any(p.requires_grad for p in decomposer.parameters())
    assert SubgoalReward(decomposer).decomposer is decomposer
    assert not any(p.requires_grad for p in decomposer.parameters())
