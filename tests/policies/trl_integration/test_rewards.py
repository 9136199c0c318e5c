"""Reward models and critics as reward functions: what they return, and runs of TRL's GRPO and RLOO trainers."""

import pickle
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

import datasets
from guerdon.core.batch import RewardEstimates, TrajectoryBatch, ValueEstimates
from guerdon.core.interfaces import Critic, RewardModel
from guerdon.critics.action import ActionCritic
from guerdon.critics.networks import ChunkPerceptron
from guerdon.policies.action_bins import ActionBins
from guerdon.policies.trl_integration.actions import ActionNumbers, ActionTokens, LoggedTurns
from guerdon.policies.trl_integration.completions import Completion
from guerdon.policies.trl_integration.rewards import TRLActionValue, TRLReward, require_reduction, trajectory_scores
from guerdon.rewards.combine import Sum
from guerdon.rewards.step_cost import StepCost

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


class Near(RewardModel):
    """Minus the distance of an action to its goal; abstains on actions whose first number is above 0.9."""

    def __init__(self, goal: float = 0.0) -> None:
        super().__init__()
        self.goal = goal

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        assert not self.training and not torch.is_grad_enabled()
        away = (batch.actions - self.goal).abs().sum(2)
        return RewardEstimates(rewards=-away, valid=batch.mask & (batch.actions[..., 0] <= 0.9))


class Crashing(RewardModel):
    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        raise RuntimeError("out of memory")


class Infinite(RewardModel):
    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        return RewardEstimates(rewards=torch.full(batch.mask.shape, torch.inf), valid=batch.mask)


def logged(rows: int = 4) -> TrajectoryBatch:
    generator = torch.Generator().manual_seed(1)
    return TrajectoryBatch(
        state=torch.randn(rows, 4, 3, generator=generator),
        actions=torch.rand(rows, 3, 2, generator=generator),
        mask=torch.ones(rows, 3, dtype=torch.bool),
        instructions=("open it",) * rows,
    )


def called(function: Any, texts: list[str], **more: Any) -> list[float | None]:
    columns = {"episode": list(range(len(texts))), "step": [0] * len(texts)} | more
    return function(prompts=["act"] * len(texts), completions=texts, completion_ids=None, **columns)


def test_each_completion_has_its_own_reward_and_none_where_there_is_none():
    function = TRLReward(Near(), LoggedTurns(ActionNumbers(2), logged()))
    rewards = called(function, ["0.5 0.25", "left", "1.0 0.0", "0 0"])
    assert rewards == [-0.75, None, None, 0.0]
    assert called(function, ["left", "right"]) == [None, None] and called(function, []) == []


def test_a_crash_is_no_reward():
    function = TRLReward(Crashing(), LoggedTurns(ActionNumbers(2), logged()))
    with pytest.raises(RuntimeError, match="out of memory"):
        called(function, ["0 0"])
    function = TRLReward(Infinite(), LoggedTurns(ActionNumbers(2), logged()))
    with pytest.raises(FloatingPointError, match="Infinite scored completion 0 of 1 with inf, marked as valid"):
        called(function, ["0 0"])


def test_the_function_is_pickled_and_keeps_its_name_and_the_modes_of_its_parts():
    reward = Near().train()
    function = TRLReward(reward, LoggedTurns(ActionNumbers(2), logged()), name="near")
    again = pickle.loads(pickle.dumps(function))
    assert again.__name__ == "near" and TRLReward(reward, function.read).__name__ == "Near"
    assert called(again, ["0.5 0.25"]) == called(function, ["0.5 0.25"]) == [-0.75]
    assert reward.training
    assert not isinstance(function, torch.nn.Module)  # a trainer would take it for a model of texts


def test_the_share_without_a_reward_is_logged():
    noted: dict[str, float] = {}
    function = TRLReward(Near(), LoggedTurns(ActionNumbers(2), logged()))
    called(function, ["0 0", "left", "0 1", "right"], log_metric=noted.__setitem__)
    assert noted == {"Near/without_reward": 0.5}


def scored(rewards: list[list[float]], valid: list[list[bool]], reduce: Any, **more: Any) -> list[float | None]:
    class Fixed(RewardModel):
        def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
            return RewardEstimates(rewards=torch.tensor(rewards), valid=torch.tensor(valid))

    rows, steps = len(rewards), len(rewards[0])
    fields: dict[str, Any] = {"mask": torch.ones(rows, steps, dtype=torch.bool)} | more
    batch = TrajectoryBatch(state=torch.zeros(rows, steps + 1, 1), actions=torch.zeros(rows, steps, 1), **fields)
    return trajectory_scores(Fixed(), batch, reduce)


def test_reductions_of_known_rewards():
    rewards = [[1.0, 2.0, 6.0]]
    every = [[True, True, True]]
    assert [scored(rewards, every, how)[0] for how in ("sum", "mean", "last")] == [9.0, 3.0, 6.0]
    short = torch.tensor([[True, True, False]])
    assert [scored(rewards, every, how, mask=short)[0] for how in ("sum", "mean", "last")] == [3.0, 1.5, 2.0]


def test_a_gap_makes_the_sum_unknown_and_the_last_reward_needs_only_itself():
    rewards, gap = [[1.0, 2.0, 6.0]], [[True, False, True]]
    assert [scored(rewards, gap, how)[0] for how in ("sum", "mean", "last")] == [None, None, 6.0]
    assert [scored(rewards, [[True, True, False]], how)[0] for how in ("sum", "mean", "last")] == [None, None, None]


def test_a_reward_whose_observation_was_never_made_is_not_missed():
    unseen = {"last_observed": torch.zeros(1, dtype=torch.bool)}
    assert scored([[1.0, 2.0, 0.0]], [[True, True, False]], "sum", **unseen) == [3.0]
    assert scored([[0.0]], [[False]], "sum", **unseen) == [None]


def test_chunks_at_logged_observations_are_for_critics():
    with pytest.raises(ValueError, match="chunks of 2 steps at a logged observation have no observations"):
        TRLReward(Near(), LoggedTurns(ActionNumbers(2, 2), logged()))
    with pytest.raises(ValueError, match="reduce 'max': expected sum, mean or last"):
        require_reduction("max")


def test_a_critic_values_the_chunk_at_the_logged_observation():
    batch = logged()
    critic = ActionCritic(ChunkPerceptron(3, 2, horizon=2))
    function = pickle.loads(pickle.dumps(TRLActionValue(critic, LoggedTurns(ActionNumbers(2, 2), batch))))
    values = called(function, ["0.5 0.25 0.1 0.2", "none", "0 0 0 0"], step=[1, 1, 2])
    chunk = torch.tensor([[[0.5, 0.25], [0.1, 0.2]], [[0.0, 0.0], [0.0, 0.0]]])
    at = batch.observe(torch.tensor([0, 2]), torch.tensor([1, 2]))
    with torch.no_grad():
        members = critic.network(at, chunk, torch.ones(2, 2, dtype=torch.bool))
    expected = critic.pessimistic(members).tolist()
    assert values[1] is None and [values[0], values[2]] == pytest.approx(expected, abs=1e-6)


def test_a_critic_without_values_of_actions_is_refused():
    class OnlyV(Critic):
        def forward(self, batch: TrajectoryBatch, proposer: Any = None) -> ValueEstimates:
            return ValueEstimates(v=torch.zeros(len(batch), 2))

    with pytest.raises(ValueError, match="OnlyV values observations only: expected a critic of actions"):
        called(TRLActionValue(OnlyV(), LoggedTurns(ActionNumbers(2), logged())), ["0 0"])


def test_any_reward_model_scores_trajectories_that_a_reader_of_ones_own_plays():
    def played(completion: Completion) -> TrajectoryBatch | None:
        steps = len(completion.text)
        return TrajectoryBatch(
            state=torch.zeros(1, steps + 1, 1),
            actions=torch.zeros(1, steps, 1),
            mask=torch.ones(1, steps, dtype=torch.bool),
            success=torch.zeros(1),
            success_known=torch.ones(1, dtype=torch.bool),
        )

    cost = StepCost(failure_cost=3.0, scale=1.0)
    assert called(TRLReward(Sum([cost], [2.0]), played), ["aaa", "a"]) == [-6.0, -2.0]


@pytest.mark.parametrize(("trainer", "settings"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_a_trainer_of_trl_learns_from_a_reward(language_folder, trl_settings, trainer, settings):
    """Two tokens are an action; the reward prefers numbers near 0.9 and abstains above, so both must be handled."""
    found = trl_settings(
        settings,
        max_steps=16,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=2,
        learning_rate=3e-2,
        beta=0.0,
    )
    bins = [token for token in range(3, 340) if token % 2]
    read = LoggedTurns(ActionTokens(bins, 2, bins=ActionBins(len(bins))), logged())
    rows = [{"prompt": [{"role": "user", "content": "act"}], "episode": i, "step": 0} for i in range(4)]
    run = trainer(
        model=language_folder,
        reward_funcs=TRLReward(Near(0.9), read, name="near"),
        args=found,
        train_dataset=datasets.Dataset.from_list(rows),
    )
    run.train()
    means = [log["rewards/near/mean"] for log in run.state.log_history if "rewards/near/mean" in log]
    missing = [log["near/without_reward"] for log in run.state.log_history if "near/without_reward" in log]
    assert len(means) == 16 and 0 < missing[0] < 1  # every other token is no bin
    assert sum(means[-4:]) / 4 > sum(means[:4]) / 4 + 0.3
