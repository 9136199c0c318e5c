"""A simulated task as an environment: its tools, its reward, and a run of TRL's GRPO trainer that calls them."""

import gc
import inspect
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from guerdon.core.batch import End, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.envs.reach import Reach, reach_expert
from guerdon.policies.trl_integration.environment import TRLEnvironment, TRLEnvironments
from guerdon.rewards.recorded import RecordedReward, RecordedSuccess


class Watched(Reach):
    """Reach task that counts its closings, and breaks where it is told to."""

    def __init__(self, horizon: int = 50, seed: int = 0) -> None:
        super().__init__(horizon, seed)
        self.closed = 0
        self.breaks: Exception | None = None

    def step(self, action: np.ndarray) -> Any:
        if self.breaks is not None:
            raise self.breaks
        return super().step(action)

    def close(self) -> None:
        self.closed += 1
        super().close()


class Kept(RewardModel):
    """Keeps the batch it was given; abstains where the episode failed."""

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        self.batch = batch
        good = (batch.end != End.FAILURE)[:, None]
        return RewardEstimates(rewards=torch.ones(batch.mask.shape), valid=batch.mask & good)


def started(task: Reach, reward: RewardModel | None = None, **more: Any) -> TRLEnvironment:
    environment = TRLEnvironment(task, RecordedReward() if reward is None else reward, **more)
    environment.reset(prompt="act", context=3)
    return environment


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split("[")[1].split("]")[0].split(", ")]


def test_the_only_tool_is_act_and_the_model_is_told_what_it_takes():
    public = [name for name, _ in inspect.getmembers(TRLEnvironment, inspect.isfunction) if not name.startswith("_")]
    assert sorted(public) == ["act", "get_reward", "reset"]
    schema = get_json_schema(started(Reach()).act)["function"]
    assert schema["name"] == "act" and "Move the robot" in schema["description"]
    assert schema["parameters"]["properties"]["action"]["type"] == "array"
    assert schema["parameters"]["properties"]["action"]["items"] == {"type": "number"}


def test_an_episode_is_that_of_the_simulator():
    task, other = Reach(horizon=4), Reach(horizon=4)
    environment = TRLEnvironment(task, RecordedReward())
    first = environment.reset(prompt="act", context=3)
    state = other.reset(other.contexts("train", 4)[3])
    assert first.startswith("Step 0 of 4, state [") and np.allclose(numbers(first), state, rtol=5e-3, atol=5e-3)
    total = 0.0
    for place in range(4):
        action = [0.5, -0.25, float(place) / 4]
        text = environment.act(action)
        step = other.step(np.array(action))
        total += step.reward
        assert np.allclose(numbers(text), step.state, rtol=5e-3, atol=5e-3)
    assert text.endswith("The time is over.")
    assert environment.get_reward() == pytest.approx(total, abs=1e-4)
    environment.reset(context=3)
    assert environment.get_reward() is None  # the next episode has no step yet


def test_an_episode_ends_with_success():
    task = Reach()
    environment = started(task, reward := Kept())
    state = task.reset(task.contexts("train", 4)[3])
    for _ in range(50):
        text = environment.act(reach_expert(state).tolist())
        state = np.array(numbers(text))
        if "The task is done." in text:
            break
    assert environment.get_reward() == float(text.split()[1])
    assert reward.batch.end.tolist() == [End.SUCCESS] and bool(reward.batch.whole[0])
    with pytest.raises(RuntimeError, match="the episode is over: stop acting"):
        environment.act([0.0, 0.0, 0.0])


def test_an_episode_that_the_model_leaves_is_a_failure_and_one_without_an_action_has_no_reward():
    environment = started(Reach(), reward := Kept())
    assert environment.get_reward() is None
    environment.act([0.1, 0.1, 0.1])
    assert environment.get_reward() is None  # the reward abstains on failures
    assert reward.batch.end.tolist() == [End.FAILURE]
    success = started(Reach(), RecordedSuccess())
    success.act([0.0, 0.0, 0.0])
    assert success.get_reward() == 0.0


def test_an_action_is_held_and_pictures_are_for_the_reward():
    environment = started(Reach(horizon=5), reward := Kept(), hold=2)
    assert environment.act([0.1, 0.1, 0.1]).startswith("Step 2 of 5")
    assert environment.act([0.1, 0.1, 0.1]).startswith("Step 4 of 5")
    assert environment.act([0.1, 0.1, 0.1]).startswith("Step 5 of 5")
    assert environment.get_reward() == 5.0 and reward.batch.end.tolist() == [End.TIME_LIMIT]
    wrongs: list[dict[str, Any]] = [{"hold": 0}, {"cameras": ["side"]}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"hold 0: expected|unknown camera 'side'; it has front, top"):
            started(Reach(), **wrong)


@pytest.mark.parametrize(
    "action", [[0.1, 0.2], [0.1, 0.2, 2.0], [0.1, 0.2, float("nan")], ["0.1", 0, 0], [True, 0, 0], [[0.1], 0, 0]]
)
def test_a_wrong_action_moves_nothing_and_is_explained(action):
    environment = started(Reach())
    act: Any = inspect.unwrap(TRLEnvironment.act)  # the trainer passes what the model wrote, whatever it is
    with pytest.raises(ValueError, match=r"an action of 3 numbers from \[-1.0, -1.0, -1.0\] to \[1.0, 1.0, 1.0\], got"):
        act(environment, action)
    assert environment.get_reward() is None


@pytest.mark.parametrize("context", [None, "3", True, 1.0])
def test_a_row_without_an_initial_state_is_refused(context):
    with pytest.raises(ValueError, match="column 'context': expected the number of an initial state of mujoco/reach"):
        TRLEnvironment(Reach(), RecordedReward()).reset(prompt="act", context=context)


def test_a_diverged_simulation_has_no_reward_and_a_crash_is_raised():
    task = Watched()
    environment = started(task)
    environment.act([0.0, 0.0, 0.0])
    task.breaks = FloatingPointError("diverged")
    with pytest.raises(FloatingPointError):
        environment.act([0.0, 0.0, 0.0])
    assert environment.get_reward() is None
    task.breaks = None
    environment.reset(context=3)
    environment.act([0.0, 0.0, 0.0])
    assert environment.get_reward() is not None
    task.breaks = OSError("no renderer")
    with pytest.raises(OSError, match="no renderer"):
        environment.act([0.0, 0.0, 0.0])
    with pytest.raises(RuntimeError, match="mujoco/reach crashed while the model acted: no renderer"):
        environment.get_reward()


def test_the_simulator_is_closed_once_when_the_environment_goes():
    task = Watched()
    environment = started(task)
    del environment
    gc.collect()
    assert task.closed == 1
    other = Watched()
    with_close = started(other)
    with_close._close()
    with_close._close()
    assert other.closed == 1


def test_the_factory_is_pickled_and_makes_separate_environments():
    factory = pickle.loads(pickle.dumps(TRLEnvironments("mujoco/reach", RecordedReward(), horizon=7, seed=2)))
    first, second = factory(), factory()
    assert first.reset(context=0) == second.reset(context=0)
    first.act([1.0, 0.0, 0.0])
    assert second.act([0.0, 0.0, 0.0]).startswith("Step 1 of 7")
    rows = factory.dataset(3)
    assert rows["context"][:] == [0, 1, 2]
    assert "with 3 numbers from -1 to 1" in rows[0]["prompt"][0]["content"]
    assert factory.dataset(2, "eval")["context"][:] == [1_000_000, 1_000_001]
    with pytest.raises(ValueError, match=r"expected \{instruction\} in it"):
        factory.dataset(2, prompt="act")


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning")
def test_the_trainer_of_trl_plays_episodes_and_takes_their_rewards(language_folder, trl_settings):
    """All is TRL's own but the sampling: a tiny model with random weights writes no tool calls, so it is scripted."""
    tokeniser = AutoTokenizer.from_pretrained(language_folder)
    tokeniser.chat_template = qwen3_chat_template
    said = {0: [0.5, 0.1, 0.0], 1: [-0.5, 0.1, 0.0], 2: [0.5, 0.1], 3: None}
    """Action that each of four rollouts takes twice: two good ones, a wrong one, and none."""

    calls = iter([*said.values(), *[action for action in said.values() if action is not None]])

    class Sampler(GRPOTrainer):
        seen: list[str]

        def _generate_single_turn(self, prompt_ids: list[list[int]], *rest: Any, **more: Any) -> Any:
            self.seen += [tokeniser.decode(ids) for ids in prompt_ids]
            return [written(next(calls, None)) for _ in prompt_ids], None

    def written(action: list[float] | None) -> list[int]:
        call = json.dumps({"name": "act", "arguments": {"action": action}})
        text = "I stop." if action is None else f"<tool_call>\n{call}\n</tool_call>"
        return tokeniser(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"]

    factory = TRLEnvironments("mujoco/reach", RecordedReward(), horizon=10)
    trainer = Sampler(
        model=language_folder,
        args=trl_settings(
            GRPOConfig, max_steps=1, per_device_train_batch_size=4, num_generations=4, max_completion_length=1500
        ),
        train_dataset=factory.dataset(1),
        processing_class=tokeniser,
        environment_factory=factory,
    )
    trainer.seen = []
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    rewards = [environment.get_reward() for environment in trainer.environments]
    alone = Reach(horizon=10)
    expected: list[float] = []
    for action in (said[0], said[1]):
        alone.reset(alone.contexts("train", 1)[0])
        expected.append(sum(alone.step(np.array(action)).reward for _ in range(2)))
    assert rewards == [pytest.approx(expected[0], abs=1e-5), pytest.approx(expected[1], abs=1e-5), None, None]
    log = trainer.state.log_history[0]
    assert log["rewards/TRLEnvironment/mean"] == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert log["tools/failure_frequency"] == pytest.approx(2 / 6)
    assert trainer.seen[0].count("Step 0 of 10, state [") == 1 and "Move the robot by one action" in trainer.seen[0]
    assert "Step 1 of 10, state [" in trainer.seen[4] and "expected an action of 3 numbers" in trainer.seen[6]
    after = trainer.model.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
