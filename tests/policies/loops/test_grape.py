"""GRAPE's loop: stages and their files, runs that go on from any moment, and every kind of bad outcome."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from guerdon.core.batch import End, RewardEstimates, TrajectoryBatch
from guerdon.core.hub import load_component
from guerdon.datasets.labels import LabelFactory
from guerdon.datasets.module import EpisodeData
from guerdon.envs.collect import collect_dataset
from guerdon.envs.instructions import REACH
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.deterministic import Deterministic
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.loops import (
    grape,
    grape_evaluation,
    grape_pairs,
    grape_rollouts,
    grape_scores,
    stages,
)
from guerdon.policies.loops.grape import Grape
from guerdon.policies.loops.grape_evaluation import HeldOutEvaluation, Violations
from guerdon.policies.loops.grape_rollouts import part_paths, read_parts
from guerdon.policies.loops.grape_stages import CloningStage, PreferenceStage
from guerdon.policies.loops.ire_vla_stages import SupervisedStage
from guerdon.policies.rollouts.data import RolloutData
from guerdon.policies.rollouts.groups import GroupRollouts
from guerdon.preference.references import RecordedReference
from guerdon.preference.rules import PairRule, RandomPairs, SuccessPairs
from guerdon.preference.tpo import TrajectoryPreference
from guerdon.rewards.grape.trajectory import GrapeScore
from guerdon.rewards.recorded import RecordedSuccess
from guerdon.rewards.stages.rule_decomposer import RuleDecomposer

ITERATION = ("rollouts", "scores", "pairs", "tpo", "evaluation")
STAGES = ("0_sft", "0_evaluation", *(f"{number}_{name}" for number in (1, 2) for name in ITERATION))
GROUPS = GroupRollouts(size=3, contexts=3, rejection="none")


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grape") / "demos"
    collect_dataset("mujoco/reach", folder, episodes=4, quality="expert", frames=False)
    return folder


def rollouts(**more: Any) -> RolloutData:
    settings: dict[str, Any] = {
        "task": "mujoco/reach",
        "rollouts": 2,
        "envs": 9,
        "horizon": 25,
        "contexts": 6,
        "groups": GROUPS,
    }
    return RolloutData(**(settings | more))


def reward(**more: Any) -> GrapeScore:
    settings: dict[str, Any] = {"costs": ["mujoco/reach"], "weights": [0.001, 1.0, 2.0]}
    return GrapeScore(**(settings | more))


def loop(demos: Path, **more: Any) -> Grape:
    """Small settings of every stage; what was named comes in their place."""
    labels = LabelFactory(rewind=0.0, reverse=0.0, wrong_instruction=0.0)
    settings: dict[str, Any] = {
        "policy": GaussianPolicy(hidden=(16, 16), log_std=-1.0),
        "expert": EpisodeData(str(demos), val_fraction=0.0, batch_size=4, labels=labels),
        "rollouts": rollouts(),
        "reward": reward(),
        "tpo": PreferenceStage(held_out=0.3, minibatch_pairs=2, optimizer=PolicyAdam(learning_rate=1e-2)),
        "sft": SupervisedStage(epochs=2, passes=5, minibatch_size=32),
        "evaluation": HeldOutEvaluation(episodes=4),
        "iterations": 2,
        "accelerator": "cpu",
    }
    return Grape(**(settings | more))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_component(folder).state_dict())


def same(one: Path, two: Path) -> bool:
    before, after = weights(one), weights(two)
    return all(torch.equal(before[name], after[name]) for name in before)


def played(run: Path) -> TrajectoryBatch:
    return read_parts(part_paths(run / "1_rollouts"), frames=True)


@pytest.fixture(scope="module")
def whole(demos, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert loop(demos).run(folder) == folder / "model"
    return folder


def test_each_stage_is_a_folder_with_its_last_file(whole):
    assert {path.name for path in whole.iterdir()} == {*STAGES, "iterations.json", "model"}
    last = {"rollouts": "rollouts.json", "scores": "scores.json", "pairs": "pairs.json"}
    last |= {"tpo": "model/component.json", "sft": "model/component.json", "evaluation": "evaluation.json"}
    for stage in STAGES:
        assert (whole / stage / last[stage.partition("_")[2]]).is_file()
    assert same(whole / "model", whole / "2_tpo" / "model")
    assert not same(whole / "1_tpo" / "model", whole / "2_tpo" / "model")


def test_rollouts_are_kept_with_all_that_learning_needs(whole):
    batch = played(whole)
    told = json.loads((whole / "1_rollouts" / "rollouts.json").read_text())
    assert len(batch) == told["episodes"] == 18 and told["groups"] == 6 and told["parts"] == 2
    assert told["env_steps"] == int(batch.steps.sum())
    assert {"sample", "log_prob"} <= set(batch.behaviour) and {"end_effector", "goal"} <= set(batch.tracks)
    assert bool(batch.success_known.all())
    assert set(batch.instructions) == {REACH}  # the one that the policy acts on (B13)
    # points are measured at every observation, also of what moves (B2, B3): here the state holds them too
    tip, observed = batch.tracks["end_effector"], batch.observed
    assert torch.allclose(tip.values[observed], batch.state[observed][:, 6:9]) and bool(tip.valid[observed].all())
    assert float((tip.values[:, 0] - tip.values[:, 5]).norm(dim=1).min()) > 0
    # no step is cut off at either end (B10), and every row is a decision at every step
    assert torch.equal(batch.steps, batch.length) and torch.equal(batch.decision_mask, batch.mask)
    counts = torch.unique(batch.group, return_counts=True)[1]
    assert counts.tolist() == [3] * 6  # every initial state once, before any comes again


def test_the_stored_observation_is_that_before_the_action(whole):
    """The released code stored o_{t+1} with a_t (B4): the recorded log-probability is then not reproduced."""
    batch = played(whole)
    policy: Any = load_component(whole / "0_sft" / "model")
    rows, places = batch.decision_mask.nonzero(as_tuple=True)
    observation, decision = batch.at(rows, batch.decision_step[rows, places], 1)
    again = policy.evaluate(observation, decision).log_prob
    assert torch.allclose(again, batch.behaviour["log_prob"][rows, places], atol=1e-4)
    # samples are kept as drawn, and executed ones are clipped (B9)
    clipped = decision.chunk[:, 0].clamp(-1, 1)
    assert torch.allclose(clipped, batch.actions[rows, batch.decision_step[rows, places]], atol=1e-6)


def test_scores_hold_every_term_in_full_precision(whole):
    batch = played(whole)
    told = json.loads((whole / "1_scores" / "scores.json").read_text())
    assert [row["row"] for row in told["rows"]] == list(range(18)) and told["scored"] == 18
    raw = reward().raw_terms(batch)
    for row, entry in enumerate(told["rows"]):
        assert entry["raw_terms"] == {name: float(values[row]) for name, values in raw.items()}
        assert entry["score"] == pytest.approx(sum(entry["terms"].values()), abs=1e-5)
        assert entry["reason"] == ""
    # more than one score of each outcome: they are not truncated to whole numbers (B5)
    assert len({entry["score"] for entry in told["rows"] if entry["success"] == 0}) > 2
    shares = told["shares"]["within_groups"]
    assert sum(shares.values()) == pytest.approx(1) and len(told["shares"]["groups"]) == 6


def test_pairs_are_of_one_initial_state_with_their_reasons(whole):
    batch = played(whole)
    scores = {e["row"]: e["score"] for e in json.loads((whole / "1_scores" / "scores.json").read_text())["rows"]}
    told = json.loads((whole / "1_pairs" / "pairs.json").read_text())
    assert told["pairs"] and told["groups"] == 6
    assert told["groups_with_a_pair"] + len(told["groups_without_a_pair"]) == 6
    for pair in told["pairs"]:
        chosen, rejected = pair["chosen"], pair["rejected"]
        assert int(batch.group[chosen]) == int(batch.group[rejected]) == pair["group"]
        assert torch.allclose(batch.state[chosen, 0], batch.state[rejected, 0])
        assert pair["margin"] == pytest.approx(scores[chosen] - scores[rejected]) and pair["margin"] > 0
        assert pair["lengths"] == [int(batch.steps[chosen]), int(batch.steps[rejected])]
        assert " > " in pair["reason"]
    assert told["reasons"] == dict(Counter(pair["reason"] for pair in told["pairs"]))
    held = {pair["group"] for pair in told["pairs"] if pair["held_out"]}
    assert held and held.isdisjoint({pair["group"] for pair in told["pairs"] if not pair["held_out"]})


def test_learning_reports_the_implicit_reward_on_held_out_groups(whole):
    told = json.loads((whole / "1_tpo" / "stage.json").read_text())
    pairs = json.loads((whole / "1_pairs" / "pairs.json").read_text())["pairs"]
    assert told["pairs"] == sum(not pair["held_out"] for pair in pairs)
    assert told["held_out_pairs"] == sum(pair["held_out"] for pair in pairs) > 0
    assert told["updates"] == math.ceil(told["pairs"] / 2)
    for part in ("train", "held_out"):
        assert told[part]["accuracy"]["before"] == 0.5  # the policy is the reference
    assert told["train"]["accuracy"]["after"] > 0.5
    chosen, rejected = (told["train"]["log_prob"][side] for side in ("chosen", "rejected"))
    assert chosen["after"] - chosen["before"] > rejected["after"] - rejected["before"]


def test_the_table_of_iterations_gathers_what_was_measured(whole):
    table = json.loads((whole / "iterations.json").read_text())
    assert [row["iteration"] for row in table] == [0, 1, 2]
    for row in table:
        told = json.loads((whole / f"{row['iteration']}_evaluation" / "evaluation.json").read_text())
        assert row["success"] == told["all"]["success"] and len(told["episodes"]) == 4
    assert "pairs" not in table[0] and table[2]["held_out_accuracy"]["after"] is not None
    assert table[1]["rollouts"] == 18


def test_a_complete_run_is_left_alone(demos, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    loop(demos).run(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


class Killed(BaseException):
    """Stands for SIGKILL: nothing may be done about it."""


def after(calls: int, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Call a function that many times; the next call kills."""
    left = [calls]

    def call(*given: Any, **named: Any) -> Any:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return plain(*given, **named)

    return call


def killed_in_batch(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Kill in a batch of the fit of a stage."""
    plain = stages.StageFolder.fit

    class Kill(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            raise Killed

    def fit(self: Any, module: Any, data: Any, callbacks: Any, epochs: int, accelerator: str) -> None:
        plain(self, module, data, [*([Kill()] if self.path.name == stage else []), *callbacks], epochs, accelerator)

    monkeypatch.setattr(stages.StageFolder, "fit", fit)


def killed_before_saving(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Kill between the end of training and the model of a stage."""
    plain = stages.StageFolder.finish

    def finish(self: Any, component: Any) -> None:
        if self.path.name == stage:
            raise Killed
        plain(self, component)

    monkeypatch.setattr(stages.StageFolder, "finish", finish)


def nth(module: Any, name: str, calls: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Kill at the call of a function after a number of calls."""
    return lambda patch: patch.setattr(module, name, after(calls, getattr(module, name)))


MOMENTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "before the first rollout": nth(grape_rollouts, "play_groups", 0),
    "between two parts of the rollouts": nth(grape_rollouts, "play_groups", 1),
    "before the last file of the rollouts": nth(grape_rollouts, "write_json", 0),
    "in the scores of iteration 2": nth(grape_scores, "write_json", 1),
    "in the pairs": nth(grape_pairs, "write_json", 0),
    "while learning": lambda patch: killed_in_batch(patch, "1_tpo"),
    "before the numbers of learning": nth(grape, "learning_summary", 0),
    "before the model of iteration 2": lambda patch: killed_before_saving(patch, "2_tpo"),
    "in the evaluation": nth(grape_evaluation, "write_json", 1),
    "before the last model": nth(grape, "save_component", 0),
}


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(name, marks=() if name.startswith(("between", "before the model")) else pytest.mark.slow)
        for name in MOMENTS
    ],
)
def test_a_run_that_was_killed_ends_as_the_uninterrupted_one(demos, whole, tmp_path, monkeypatch, moment):
    with monkeypatch.context() as patch:
        MOMENTS[moment](patch)
        with pytest.raises(Killed):
            loop(demos).run(tmp_path)
    assert not (tmp_path / "model").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    loop(demos).run(tmp_path)
    for stage in ("0_sft", "1_tpo", "2_tpo", ""):
        assert same(whole / stage / "model", tmp_path / stage / "model"), stage
    assert json.loads((whole / "iterations.json").read_text()) == json.loads((tmp_path / "iterations.json").read_text())
    for path, time in before.items():  # parts and models that were there are not made again
        assert path.stat().st_mtime_ns == time, path


def test_a_checkpoint_of_other_pairs_is_not_gone_on_with(demos, whole, tmp_path, monkeypatch):
    short = {"iterations": 1, "evaluation": None}
    with monkeypatch.context() as patch:
        patch.setattr(grape, "learning_summary", after(0, grape.learning_summary))
        with pytest.raises(Killed):  # after the checkpoint of the end of training
            loop(demos, **short, tpo=PreferenceStage(pairs=RandomPairs(seed=1))).run(tmp_path)
    (tmp_path / "1_pairs" / "pairs.json").unlink()
    loop(demos, **short).run(tmp_path)
    assert same(tmp_path / "1_tpo" / "model", whole / "1_tpo" / "model")


def test_a_stage_that_was_made_from_another_one_is_refused(demos, tmp_path):
    small = {"iterations": 1, "evaluation": None}
    loop(demos, **small).run(tmp_path)
    changed: Any = load_component(tmp_path / "0_sft" / "model")
    with torch.no_grad():
        next(changed.parameters()).add_(1.0)
    stages.StageFolder(tmp_path / "0_sft").finish(changed)
    with pytest.raises(ValueError, match=r"1_rollouts was made from another .* remove it and the stages"):
        loop(demos, **small).run(tmp_path)


def test_rollouts_that_are_all_alike_say_that_the_policy_must_sample(demos, tmp_path):
    still = Deterministic(GaussianPolicy(12, 3, hidden=(8,)))
    with pytest.raises(ValueError, match=r"18 rollouts of 6 initial states are the same .*temperature above 0"):
        loop(demos, policy=still, sft=None, evaluation=None).run(tmp_path)
    assert not (tmp_path / "1_rollouts" / "rollouts.json").exists()


def test_groups_without_a_pair_say_why_and_what_to_change(demos, tmp_path):
    never = rollouts(horizon=2)
    with pytest.raises(
        ValueError, match=r"none of 6 groups has a preference pair.*scored alike \(6 groups\).*margin of"
    ):
        loop(demos, rollouts=never, reward=RecordedSuccess(), sft=None, evaluation=None).run(tmp_path)
    assert (tmp_path / "1_scores" / "scores.json").is_file() and not (tmp_path / "1_pairs" / "pairs.json").exists()
    # the stages before are complete, and the same run goes on with another reward once the scores are removed
    (tmp_path / "1_scores" / "scores.json").unlink()
    loop(demos, rollouts=never, sft=None, evaluation=None, iterations=1).run(tmp_path)
    assert (tmp_path / "model").is_dir()


def test_rows_that_cannot_be_scored_are_named_and_no_number_is_made_up(demos, tmp_path):
    with pytest.raises(ValueError, match=r"0 of 3 rollouts could be scored: no costs for the instruction"):
        loop(demos, reward=reward(costs=["metaworld/push-v3"]), sft=None, evaluation=None).run(tmp_path)
    told = json.loads((tmp_path / "1_scores" / "scores.json").read_text())
    assert told["scored"] == 0
    for row in told["rows"]:
        assert row["score"] is None and set(row["terms"].values()) == {None} and "no costs" in row["reason"]
        assert row["raw_terms"]["external"] is None and row["raw_terms"]["self"] is not None


def test_a_score_that_is_not_finite_is_no_score_and_named():
    class Diverged(RecordedSuccess):
        def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
            found = super().forward(batch)
            return replace(found, rewards=torch.where(batch.group[:, None] == 1, -math.inf, found.rewards))

    batch = TrajectoryBatch(
        state=torch.zeros(2, 3, 1),
        actions=torch.zeros(2, 2, 1),
        mask=torch.ones(2, 2, dtype=torch.bool),
        end=torch.full((2,), End.FAILURE),
        success_known=torch.ones(2, dtype=torch.bool),
        group=torch.tensor([0, 1]),
    )
    found = grape_scores.score_rows(batch, Diverged())
    assert found.score[0] == 0 and found.score[1].isnan()
    assert found.reasons[0] == "" and "-inf, which is not a finite number" in found.reasons[1]


def test_pairs_of_two_failures_that_only_likelihood_tells_apart_are_counted_and_warned_of(demos, tmp_path, capsys):
    never = rollouts(horizon=2)
    loop(demos, rollouts=never, reward=reward(weights=[1.0, 1e-6, 2.0]), sft=None, evaluation=None, iterations=1).run(
        tmp_path
    )
    told = json.loads((tmp_path / "1_pairs" / "pairs.json").read_text())
    assert told["reasons"] == {"failure > failure by self": len(told["pairs"])} and told["pairs"]
    said = capsys.readouterr().err
    count = len(told["pairs"])
    assert f"{count} of {count} pairs are of two failures that only their likelihood tells apart" in said
    assert "require_success_gap" in said


def test_a_term_that_changes_nothing_is_warned_of(demos, tmp_path, capsys):
    loop(demos, iterations=1, evaluation=None, reward=reward(weights=[1e-9, 1.0, 2.0])).run(tmp_path)
    assert "the term 'self' makes" in capsys.readouterr().err


def test_a_single_group_is_learned_from_and_none_is_held_out(demos, tmp_path):
    one = rollouts(rollouts=1, contexts=1, groups=GroupRollouts(size=4, contexts=1, rejection="none"))
    loop(demos, rollouts=one, iterations=1, evaluation=None).run(tmp_path)
    told = json.loads((tmp_path / "1_tpo" / "stage.json").read_text())
    assert (told["pairs"], told["held_out_pairs"]) == (1, 0) and told["held_out"]["accuracy"]["after"] is None


ARMS: dict[str, dict[str, Any]] = {
    "cloned": {"tpo": CloningStage(minibatch_pairs=2, optimizer=PolicyAdam(learning_rate=1e-2))},
    "steps": {"tpo": PreferenceStage(TrajectoryPreference(reduce="step"), optimizer=PolicyAdam(learning_rate=1e-2))},
    "success": {"tpo": PreferenceStage(pairs=PairRule(require_success_gap=True))},
    "random": {"tpo": PreferenceStage(pairs=SuccessPairs())},
    "no self": {"reward": GrapeScore(["mujoco/reach"], weights=[0.0, 1.0, 5.0])},
    "initial": {"tpo": PreferenceStage(reference="initial", passes=2)},
    "recorded": {"tpo": PreferenceStage(reference=RecordedReference())},
}


@pytest.mark.parametrize("arm", [pytest.param(name, marks=pytest.mark.slow) for name in ARMS])
def test_the_baselines_are_other_settings_of_the_same_loop(demos, tmp_path, arm):
    varied = rollouts(groups=GroupRollouts(size=6, contexts=4, rejection="none"), contexts=8, horizon=40)
    able = {
        "policy": GaussianPolicy(hidden=(16, 16), log_std=-1.5),  # it sometimes succeeds
        "sft": SupervisedStage(epochs=3, passes=20, minibatch_size=32),
    }
    loop(demos, rollouts=varied, evaluation=None, **able, **ARMS[arm]).run(tmp_path)
    told = json.loads((tmp_path / "2_tpo" / "stage.json").read_text())
    assert told["updates"] > 0 and not same(tmp_path / "0_sft" / "model", tmp_path / "2_tpo" / "model")
    if arm == "initial":  # relative to the first policy, that of iteration 1 orders pairs already
        assert told["train"]["accuracy"]["before"] != 0.5
    if arm == "cloned":
        assert told["updates"] == math.ceil(told["pairs"] / 2)


def test_the_same_seed_gives_the_same_run_and_another_does_not(demos, whole, tmp_path):
    loop(demos, iterations=1, evaluation=None, seed=1).run(tmp_path / "other")
    assert not same(whole / "1_tpo" / "model", tmp_path / "other" / "model")


def test_a_policy_without_supervised_learning_is_kept_as_it_begins(demos, tmp_path):
    loop(demos, sft=None, expert=None, iterations=1, evaluation=None).run(tmp_path)
    begun: Any = load_component(tmp_path / "0_start" / "model")
    assert (begun.state_size, begun.action_size) == (12, 3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"iterations": 0}, "iterations 0"),
        ({"rollouts": RolloutData("mujoco/reach")}, "has no groups"),
        ({"expert": None}, "sft learns from expert data"),
    ],
)
def test_what_is_missing_is_named(demos, given, says):
    with pytest.raises(ValueError, match=says):
        loop(demos, **given)


def test_tasks_of_another_robot_are_refused_before_training(demos, tmp_path):
    with pytest.raises(ValueError, match="kitchen/microwave has states of 59"):
        loop(demos, rollouts=rollouts(task="kitchen/microwave")).run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_evaluation_on_states_that_are_learned_from_is_refused(demos, tmp_path):
    with pytest.raises(ValueError, match="are learned from"):
        loop(demos, evaluation=HeldOutEvaluation(episodes=4, split="train")).run(tmp_path)


@pytest.mark.slow
def test_a_safety_objective_measures_violations_in_every_iteration(demos, tmp_path):
    careful = {
        "reward": reward(costs=["mujoco/reach_safety"]),
        "evaluation": HeldOutEvaluation(episodes=8, violations=Violations(["mujoco/reach_safety"])),
    }
    loop(demos, **careful, iterations=1).run(tmp_path)
    for row in json.loads((tmp_path / "iterations.json").read_text()):
        assert 0 <= row["violations"]["low"] <= row["violations"]["value"] <= row["violations"]["high"] <= 1


@pytest.mark.slow
def test_several_tasks_are_learned_together(tmp_path):
    pytest.importorskip("metaworld")
    tasks = ["metaworld/reach-v3", "metaworld/push-v3"]
    several = rollouts(
        task=tasks,
        horizon=6,
        contexts=2,
        envs=4,
        rollouts=1,
        groups=GroupRollouts(size=3, contexts=4, rejection="none"),
    )
    costs = GrapeScore(["metaworld/reach-v3", "metaworld/push-v3"], [0.0, 1.0, 2.0], decomposer=RuleDecomposer())
    one = Grape(GaussianPolicy(hidden=(8,)), several, costs, evaluation=HeldOutEvaluation(2), iterations=1)
    one.run(tmp_path)
    batch = played(tmp_path)
    assert sorted(batch.task.tolist()) == [0] * 6 + [1] * 6  # each task alike, in random order
    paired = json.loads((tmp_path / "1_pairs" / "pairs.json").read_text())
    groups = [(one["task"], one["group"]) for name in ("pairs", "groups_without_a_pair") for one in paired[name]]
    assert sorted(task for task, _ in groups) == [0, 0, 1, 1] and len(set(groups)) == 4
    told = json.loads((tmp_path / "1_evaluation" / "evaluation.json").read_text())
    assert list(told["tasks"]) == tasks and [told["tasks"][name]["episodes"] for name in tasks] == [2, 2]


def test_the_self_term_falls_with_the_length_of_an_episode_however_long():
    """A product of floored probabilities is 0 from 249 steps on, and such episodes ranked higher (B6)."""
    batch = TrajectoryBatch(
        state=torch.zeros(3, 401, 1),
        actions=torch.zeros(3, 400, 1),
        mask=torch.arange(400) < torch.tensor([200, 260, 400])[:, None],
        end=torch.full((3,), End.TIME_LIMIT),
        behaviour={"log_prob": torch.full((3, 400, 1), -50.0)},
    )
    floored = GrapeScore(weights=[0.01, 0.0, 0.0], log_prob_floor=math.log(0.05))
    found = grape_scores.score_rows(batch, floored).score
    assert torch.allclose(found, 0.01 * math.log(0.05) * torch.tensor([200.0, 260.0, 400.0]).double())
