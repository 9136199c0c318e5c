"""iRe-VLA: stages that freeze what they should, a buffer of successes, and runs that resume inside any stage."""

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from guerdon.core.batch import Observation
from guerdon.core.hub import load_component
from guerdon.critics.value import ValueCritic
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.datasets.opening import open_dataset
from guerdon.envs.collect import collect_dataset
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.loops import stages
from guerdon.policies.loops.ire_vla import IReVLA
from guerdon.policies.loops.ire_vla_stages import ConsolidationStage, ReinforcementStage, StageEnd, SupervisedStage
from guerdon.policies.loops.successes import SuccessBuffer
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts.data import RolloutData
from guerdon.rewards.recorded import RecordedSuccess

BACKBONE = ("network.0", "network.2")
STAGES = ("0_sft", "1_mujoco-reach_rl", "1_mujoco-reach_sl")
ROLLOUTS, EPOCHS, MORE = 3, 3, 2


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ire_vla") / "demos"
    collect_dataset("mujoco/reach", folder, episodes=6, quality="expert", frames=False)
    return folder


def reinforcement(**more: Any) -> ReinforcementStage:
    settings: dict[str, Any] = {
        "advantage": RewardToGo(RecordedSuccess(), ValueCritic(hidden=(16,))),
        "optimizer": PolicyAdam(critic_learning_rate=1e-3, frozen_parts=BACKBONE),
        "passes": 2,
        "minibatch_size": 64,
        "warmup": 1,
        "until": StageEnd(success=1.1),
    }
    return ReinforcementStage(**(settings | more))


def loop(demos: Path, **more: Any) -> IReVLA:
    """Small settings of every stage; what was named comes in their place."""
    labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
    settings: dict[str, Any] = {
        "policy": GaussianPolicy(hidden=(16, 16), log_std=-1.5),
        "expert": EpisodeData(str(demos), val_fraction=0.0, batch_size=4, labels=labels),
        "rollouts": RolloutData(
            "mujoco/reach", steps=160, rollouts=ROLLOUTS, envs=4, horizon=60, contexts=8, eval_contexts=0
        ),
        "sft": SupervisedStage(epochs=EPOCHS, passes=20, minibatch_size=32),
        "rl": reinforcement(),
        "sl": ConsolidationStage(epochs=MORE, passes=2, minibatch_size=32),
        "accelerator": "cpu",
    }
    return IReVLA(**(settings | more))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_component(folder).state_dict())


def changed(one: Path, two: Path) -> set[str]:
    before, after = weights(one), weights(two)
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def whole(demos, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert loop(demos).run(folder) == folder / "model"
    return folder


def test_each_stage_is_a_folder_and_the_last_policy_is_that_of_the_run(whole):
    assert {path.name for path in whole.iterdir()} == {*STAGES, "online", "model"}
    for stage in STAGES:
        assert (whole / stage / "checkpoints" / "last.ckpt").is_file()
        assert (whole / stage / "logs" / "version_0" / "metrics.csv").is_file()
    assert changed(whole / "model", whole / STAGES[2] / "model") == set()


def test_stage_1_leaves_the_frozen_parts_bit_by_bit_and_changes_head_and_critic(whole):
    learned = {"network.4.weight", "network.4.bias", "log_std"}
    assert changed(whole / STAGES[0] / "model", whole / STAGES[1] / "model") == learned
    stored = torch.load(whole / STAGES[1] / "checkpoints" / "last.ckpt", weights_only=True)
    moments = stored["optimizer_states"][0]["state"].values()
    critic = [name for name in stored["state_dict"] if name.startswith("advantage.critic.") and "network" in name]
    assert len(critic) >= 4 and len(moments) >= len(critic) + len(learned)
    assert all(bool(moment["exp_avg"].any()) for moment in moments)  # each of them had gradients


def test_stage_2_changes_every_part_of_the_policy(whole):
    every = {name for name, _ in load_component(whole / "model").named_parameters()}
    # the standard deviation is not trained by the squared error, see GaussianPolicy
    assert changed(whole / STAGES[1] / "model", whole / STAGES[2] / "model") == every - {"log_std"}


def test_the_online_buffer_is_a_data_set_of_successes_cut_at_the_first(whole):
    dataset = open_dataset(whole / "online" / "mujoco-reach")
    summary = json.loads((whole / STAGES[1] / "stage.json").read_text())
    assert 0 < len(dataset) == summary["kept"] <= summary["successes"] < summary["episodes"]
    assert summary["env_steps"] == ROLLOUTS * 160 and summary["ended_by"] == "rollouts"
    for place in range(len(dataset)):
        episode = dataset[place]
        assert episode.success == 1 and episode.end.name == "SUCCESS" and episode.quality == "policy"
        flags = episode.labels["success"]
        assert flags.values[flags.valid].tolist() == [0.0] * (episode.steps - 1) + [1.0]
        assert episode.context.startswith("mujoco/reach#0.")


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be done about it."""


class Kill(lightning.Callback):
    """Ends a fit after a number of batches, without a word to anybody."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 >= self.after:
            raise Killed


def killed_in(monkeypatch, stage: str, after: int) -> None:
    """Kill the run in a batch of a stage."""
    plain = stages.StageFolder.fit

    def fit(self, module, data, callbacks, epochs, accelerator):
        more = [Kill(after)] if self.path.name == stage else []
        plain(self, module, data, [*more, *callbacks], epochs, accelerator)

    monkeypatch.setattr(stages.StageFolder, "fit", fit)


@pytest.mark.parametrize(
    ("stage", "after"),
    [
        pytest.param(STAGES[0], 1, marks=pytest.mark.slow),
        (STAGES[0], 4),
        pytest.param(STAGES[1], 1, marks=pytest.mark.slow),
        (STAGES[1], 2),
        (STAGES[2], 2),
    ],
)
def test_a_run_that_was_killed_in_a_stage_ends_as_the_uninterrupted_one(
    demos, whole, tmp_path, monkeypatch, stage, after
):
    with monkeypatch.context() as patch:
        killed_in(patch, stage, after)
        with pytest.raises(Killed):
            loop(demos).run(tmp_path)
    assert not (tmp_path / stage / "model").exists() and not (tmp_path / "model").exists()
    earlier = STAGES[: STAGES.index(stage)]
    times = {name: (tmp_path / name / "model" / "model.safetensors").stat().st_mtime_ns for name in earlier}
    loop(demos).run(tmp_path)
    for name in (*STAGES, ""):
        assert changed(whole / name / "model", tmp_path / name / "model") == set(), name
    for name, time in times.items():  # a complete stage is not run again
        assert (tmp_path / name / "model" / "model.safetensors").stat().st_mtime_ns == time
    online = [open_dataset(folder / "online" / "mujoco-reach") for folder in (whole, tmp_path)]
    assert len(online[0]) == len(online[1])
    for place in range(len(online[0])):
        assert (online[0][place].state == online[1][place].state).all()


@pytest.mark.parametrize("stage", [pytest.param(STAGES[0], marks=pytest.mark.slow), *STAGES[1:]])
def test_a_run_that_was_killed_between_training_and_saving_ends_as_the_uninterrupted_one(
    demos, whole, tmp_path, monkeypatch, stage
):
    plain = stages.StageFolder.finish

    def finish(self, component):
        if self.path.name == stage:
            raise Killed
        plain(self, component)

    with monkeypatch.context() as patch:
        patch.setattr(stages.StageFolder, "finish", finish)
        with pytest.raises(Killed):
            loop(demos).run(tmp_path)
    assert (tmp_path / stage / "stage.json").is_file() and not (tmp_path / stage / "model").exists()
    loop(demos).run(tmp_path)
    assert changed(whole / "model", tmp_path / "model") == set()


def test_a_complete_run_is_left_alone(demos, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    loop(demos).run(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


def critics_at_the_start(monkeypatch) -> list[torch.Tensor]:
    """Gather a weight of the critic of each stage 1, as the stage begins."""
    seen: list[torch.Tensor] = []
    plain = PolicyOptimizer.on_fit_start

    def note(self):
        if isinstance(self.advantage, RewardToGo):
            seen.append(torch.cat([p.detach().flatten().clone() for p in self.advantage.critic.parameters()]))
        plain(self)

    monkeypatch.setattr(PolicyOptimizer, "on_fit_start", note)
    return seen


def at_the_end(stage: Path) -> torch.Tensor:
    stored = torch.load(stage / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    critic = ValueCritic(12, hidden=(16,))
    critic.load_state_dict(
        {k.removeprefix("advantage.critic."): v for k, v in stored.items() if k.startswith("advantage.critic.")}
    )
    return torch.cat([p.detach().flatten() for p in critic.parameters()])


@pytest.mark.parametrize("carry", [False, True])
def test_each_task_has_a_fresh_critic_unless_it_is_carried_over(demos, tmp_path, monkeypatch, carry):
    seen = critics_at_the_start(monkeypatch)
    small = loop(demos, passes=2, sl=None, rl=reinforcement(carry_critic=carry), sft=SupervisedStage(epochs=1))
    small.run(tmp_path)
    assert len(seen) == 2 and not torch.equal(*seen)
    assert torch.equal(seen[1], at_the_end(tmp_path / "1_mujoco-reach_rl")) == carry


def test_the_policy_waits_while_a_fresh_critic_warms_up(demos, tmp_path):
    small = loop(demos, sl=None, rl=reinforcement(warmup=ROLLOUTS))
    small.run(tmp_path)
    assert changed(tmp_path / STAGES[0] / "model", tmp_path / STAGES[1] / "model") == set()


def test_stage_1_ends_at_its_success_rate_and_at_its_environment_steps(demos, tmp_path):
    one = loop(demos, sl=None, rl=reinforcement(until=StageEnd(success=0.01, episodes=1)))
    one.run(tmp_path / "one")
    found = json.loads((tmp_path / "one" / STAGES[1] / "stage.json").read_text())
    assert found["ended_by"] == "success" and found["rollouts"] < ROLLOUTS and found["latest_success"] > 0
    two = loop(demos, sft=None, sl=None, rl=reinforcement(until=StageEnd(success=1.1, env_steps=161)))
    two.run(tmp_path / "two")
    found = json.loads((tmp_path / "two" / STAGES[1] / "stage.json").read_text())
    assert found["ended_by"] == "env_steps" and found["env_steps"] == 320


NEVER = {"rollouts": RolloutData("mujoco/reach", steps=40, rollouts=1, envs=4, horizon=3, contexts=4, eval_contexts=0)}


def test_a_stage_2_without_a_success_is_an_error_that_says_what_to_do(demos, tmp_path):
    with pytest.raises(ValueError, match=r"stage 2 of mujoco/reach has no success .*without_success of sl"):
        loop(demos, **NEVER).run(tmp_path)
    assert not (tmp_path / "model").exists() and not (tmp_path / "online").exists()
    # the stages before are complete, and the same run goes on with another choice
    loop(demos, **NEVER, sl=ConsolidationStage(epochs=1, without_success="expert")).run(tmp_path)
    assert json.loads((tmp_path / STAGES[2] / "stage.json").read_text())["paths"] == [str(demos)]


def test_a_stage_2_without_a_success_may_be_skipped_with_a_word(demos, tmp_path, capsys):
    loop(demos, **NEVER, sl=ConsolidationStage(without_success="skip")).run(tmp_path)
    assert "skipped without a success" in capsys.readouterr().err
    assert not (tmp_path / STAGES[2]).exists()
    assert changed(tmp_path / STAGES[0] / "model", tmp_path / "model") == set()


def test_an_online_data_set_with_a_failure_is_refused(demos, whole, tmp_path):
    loop(demos, sl=None).run(tmp_path)
    mixed = tmp_path / "online" / "mujoco-reach"
    for path in sorted(mixed.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    mixed.rmdir()
    collect_dataset("mujoco/reach", mixed, episodes=2, quality="random", frames=False)
    with pytest.raises(ValueError, match="holds successes only"):
        loop(demos).run(tmp_path)


def test_a_restart_begins_stage_2_from_the_policy_of_stage_0(demos, whole, tmp_path):
    begun: list[dict[str, torch.Tensor]] = []

    class Noting(IReVLA):
        def _supervise(self, stage, settings, policy, data, number):
            begun.append({name: value.clone() for name, value in policy.state_dict().items()})
            super()._supervise(stage, settings, policy, data, number)

    plain = loop(demos, sl=ConsolidationStage(epochs=1, restart=True))
    Noting(plain.policy, plain.expert, plain.rollouts, plain.sft, plain.rl, plain.sl, accelerator="cpu").run(tmp_path)
    sft = weights(tmp_path / STAGES[0] / "model")
    assert all(torch.equal(value, sft[name]) for name, value in begun[1].items())


@pytest.mark.parametrize(
    ("given", "stages_run"),
    [
        ({"rl": None, "sl": None}, {"0_sft"}),
        ({"rl": None}, {"0_sft", "1_sl"}),
        ({"sl": None}, {"0_sft", "1_mujoco-reach_rl", "online"}),
        ({"sft": None, "sl": None, "expert": None}, {"1_mujoco-reach_rl"}),
    ],
)
def test_a_stage_that_is_left_out_makes_a_baseline(demos, tmp_path, given, stages_run):
    loop(demos, **given).run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {*stages_run, "model"}
    assert {path.name for path in tmp_path.iterdir()} <= {*stages_run, "model", "online"}


def test_stage_2_may_be_frozen_too_and_may_leave_the_online_buffer_out(demos, tmp_path):
    frozen = PolicyAdam(learning_rate=3e-4, frozen_parts=BACKBONE)
    loop(demos, sl=ConsolidationStage(epochs=1, optimizer=frozen, online=False)).run(tmp_path)
    assert changed(tmp_path / STAGES[1] / "model", tmp_path / STAGES[2] / "model") == {
        "network.4.weight",
        "network.4.bias",
    }
    assert json.loads((tmp_path / STAGES[2] / "stage.json").read_text())["paths"] == [str(demos)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"sft": None, "rl": None, "sl": None}, "expected the settings of at least one stage"),
        ({"expert": None}, "learn from expert data"),
        ({"rollouts": None}, "rl needs rollouts"),
        ({"passes": 0}, "at least one pass"),
    ],
)
def test_what_is_missing_is_named(demos, given, says):
    with pytest.raises(ValueError, match=says):
        loop(demos, **given)


def test_hidden_outcomes_are_refused(demos):
    hidden = RolloutData("mujoco/reach", hide_outcome=True, end_on_success=False)
    with pytest.raises(ValueError, match="hide_outcome"):
        loop(demos, rollouts=hidden)


def test_tasks_of_another_robot_are_refused_before_training(demos, tmp_path):
    other = RolloutData("kitchen/microwave", rollouts=1, envs=1)
    with pytest.raises(ValueError, match="kitchen/microwave has states of 59"):
        loop(demos, rollouts=other).run(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_stage_1_runs_in_the_franka_kitchen(tmp_path):
    """There are no demonstrations, so from scratch: the adapter and the loop fit together."""
    kitchen = RolloutData("kitchen/microwave", steps=24, rollouts=2, envs=2, horizon=8, contexts=2, eval_contexts=0)
    one = IReVLA(GaussianPolicy(hidden=(16,)), rollouts=kitchen, rl=reinforcement(optimizer=None), accelerator="cpu")
    model: Any = load_component(one.run(tmp_path))
    assert (model.state_size, model.action_size) == (59, 9)


def test_a_buffer_of_relabelled_actions_holds_the_mean_of_the_policy(demos, tmp_path):
    still = reinforcement(warmup=ROLLOUTS)  # the policy that acts stays that of stage 0
    loop(demos, sl=None, rl=still, buffer=SuccessBuffer(relabel=True)).run(tmp_path)
    policy: Any = load_component(tmp_path / STAGES[0] / "model")
    dataset = open_dataset(tmp_path / "online" / "mujoco-reach")
    for place in range(len(dataset)):
        episode = dataset[place]
        mean = policy.act(Observation(state=torch.from_numpy(episode.state[:-1])), deterministic=True).chunk[:, 0]
        assert torch.allclose(mean.clamp(-1, 1), torch.from_numpy(episode.actions), atol=1e-5)


def test_a_supervised_stage_ends_after_its_updates(demos, tmp_path):
    """An epoch has two batches of episodes; the stage ends with the batch that reaches the number."""
    settings = SupervisedStage(epochs=50, passes=1, minibatch_size=32, updates=5)
    made = loop(demos, sft=settings, rl=None, sl=None)
    made.run(tmp_path / "run")
    counted = json.loads((tmp_path / "run" / "0_sft" / "stage.json").read_text())["updates"]
    assert 5 <= counted < 12
    whole_epoch = loop(demos, sft=SupervisedStage(epochs=1, passes=1, minibatch_size=32), rl=None, sl=None)
    whole_epoch.run(tmp_path / "epoch")
    assert json.loads((tmp_path / "epoch" / "0_sft" / "stage.json").read_text())["updates"] > 1
    with pytest.raises(ValueError, match="at least one epoch and one update"):
        SupervisedStage(updates=0)
