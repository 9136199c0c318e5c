"""Every configuration runs, through the real command, on tiny data of the kind it is for."""

import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from guerdon.cli import main
from guerdon.core.batch import End
from guerdon.core.hub import load_component
from guerdon.core.interfaces import Critic, Policy, RewardModel, TaskDecomposer
from guerdon.datasets.episodes import ArrayFrames
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.formats.video import write_video
from guerdon.envs.collect import collect
from guerdon.envs.vector import make_task
from guerdon.preference.answers import Answer, Choice, write_answers
from guerdon.preference.segments import Segment, SegmentPair, write_segment_pairs
from guerdon.testing.clip_checkpoints import tiny_clip
from guerdon.testing.language_checkpoints import tiny_language
from guerdon.testing.vlm_checkpoints import tiny_vlm

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
REACH = ["--data.init_args.path", "{reach}"]
COMPARED = [
    *(*REACH, "--data.init_args.pairs", "{reach}/compared.jsonl", "--data.init_args.answers", "{reach}/answers.jsonl"),
]
CLIPS = ["--data.init_args.path", "{clips}", "--data.init_args.cache", "{cache}"]
REWARD, POLICY = "--model.init_args.reward.init_args", "--model.init_args.policy.init_args"
PROPOSER = "--model.init_args.proposer.init_args"
DECOMPOSER = "--model.init_args.decomposer.init_args"
SPARSE = [
    *(f"{POLICY}.path", "{behaviour_cloning}", "--data.init_args.task", "mujoco/reach"),
    *("--data.init_args.rollouts", "1", "--data.init_args.envs", "2", "--data.init_args.workers", "1"),
    *("--data.init_args.contexts", "2", "--data.init_args.eval_contexts", "2", "--trainer.val_check_interval", "1"),
]
TURNS = "--loop.init_args.rollouts.init_args"
DEMONSTRATIONS = ["--loop.init_args.expert.init_args.path", "{reach}"]
REACHING = [
    *(f"{TURNS}.task", "mujoco/reach", f"{TURNS}.steps", "64", f"{TURNS}.rollouts", "1", f"{TURNS}.envs", "2"),
    *(f"{TURNS}.workers", "0", f"{TURNS}.contexts", "4"),
]
CLONED = ["--loop.init_args.sft.init_args.epochs", "1"]
REPLAYED = ["--loop.init_args.sl.init_args.epochs", "1", "--loop.init_args.sl.init_args.without_success", "expert"]
GROUPS = [
    *(*SPARSE, "--data.init_args.horizon", "8", "--data.init_args.groups.contexts", "2"),
    *("--data.init_args.groups.size", "2", "--data.init_args.groups.rejection", "none"),
]
TURN_GROUPS = [
    *(f"{TURNS}.task", "mujoco/reach", f"{TURNS}.rollouts", "1", f"{TURNS}.envs", "2", f"{TURNS}.workers", "0"),
    *(f"{TURNS}.contexts", "2", f"{TURNS}.horizon", "12", f"{TURNS}.groups.contexts", "2", f"{TURNS}.groups.size", "2"),
    *("--loop.init_args.iterations", "1", "--loop.init_args.evaluation.init_args.episodes", "2"),
]
LOOP_REWARD = "--loop.init_args.reward.init_args"
STEPS = [*SPARSE, "--data.init_args.steps", "64", "--data.init_args.horizon", "20"]
ADVANTAGE = "--model.init_args.advantage.init_args"
# what makes each configuration small, and fit for the tiny data; {name} stands for a folder
SMALL = {
    "behaviour_cloning": REACH,
    "laplace_cloning": REACH,
    "kto": [f"{POLICY}.path", "{behaviour_cloning}", "--data.init_args.path", "{attempts}"],
    "token_cloning": REACH,
    "tpo": [
        *(f"{POLICY}.path", "{behaviour_cloning}", "--data.init_args.episodes.init_args.path", "{attempts}"),
        *("--data.init_args.start_tolerance", "null"),
    ],
    "token_language": [
        *(*REACH, f"{POLICY}.decoder.init_args.name", "{language}", f"{POLICY}.bins.init_args.bins", "8"),
        *("--data.init_args.val_fraction", "0.3"),
    ],
    "progress_state": [*REACH, f"{REWARD}.state_size", "12"],
    "progress_stages": [*REACH, f"{REWARD}.state_size", "12"],
    "progress_ensemble": [*REACH, f"{REWARD}.member.init_args.state_size", "12"],
    **dict.fromkeys(("preference_reward", "preference_transformer", "preference_ensemble"), COMPARED),
    "preference_flags": REACH,
    "progress_pixels": CLIPS,
    "milestones": [
        *(*REACH, f"{REWARD}.state_size", "12", f"{REWARD}.action_size", "3"),
        *("--data.init_args.labels.init_args.tracks.init_args.gripper", ""),
    ],
    "aloe_critic": [*REACH, f"{PROPOSER}.policy.init_args.path", "{behaviour_cloning}"],
    "aloe_policy": [
        *(*REACH, f"{POLICY}.path", "{behaviour_cloning}"),
        *("--model.init_args.advantage.init_args.critic.init_args.path", "{aloe_critic}"),
    ],
    "n_step_policy": [
        *(*REACH, f"{POLICY}.path", "{behaviour_cloning}", "--model.init_args.advantage.init_args.steps", "5"),
        *("--model.init_args.advantage.init_args.critic.init_args.path", "{distributional_value}"),
        *("--model.init_args.advantage.init_args.reward.init_args.path", "{distributional_value}/../reward"),
    ],
    "reward_aligned_cloning": [
        *(*REACH, "--model.init_args.advantage.init_args.reward.init_args.path", "{progress_state}"),
        *("--model.init_args.advantage.init_args.steps", "5"),
    ],
    "ppo_sparse": [*SPARSE, "--data.init_args.steps", "64"],
    "group_policy": GROUPS,
    **dict.fromkeys(("loop", "loop_code", "ript_quest", "ript_quest_code"), GROUPS),
    **{name: [*GROUPS, f"{POLICY}.path", "{laplace_cloning}"] for name in ("ript_oft", "ript_oft_code")},
    **dict.fromkeys(("simplevla", "grpo", "rloo"), GROUPS),
    **dict.fromkeys(("ppo", "vla_rl_code"), STEPS),
    # the task has no object: the goal stands for it
    "rl4vla_grpo_code": [*GROUPS, f"{ADVANTAGE}.reward.init_args.moved_object", "goal"],
    "rl4vla_ppo": [*STEPS, f"{ADVANTAGE}.reward.init_args.moved_object", "goal"],
    "vla_rl": [*STEPS, f"{ADVANTAGE}.reward.init_args.rewards.init_args.path", "{milestones}"],
    "opd": [*STEPS, f"{ADVANTAGE}.teacher.init_args.path", "{behaviour_cloning}"],
    "ppo_grape": [
        *(*SPARSE, "--data.init_args.horizon", "8", "--data.init_args.groups.contexts", "2"),
        *("--model.init_args.advantage.init_args.reward.init_args.costs", '["mujoco/reach"]'),
    ],
    "q_chunking": [*REACH, f"{PROPOSER}.policy.init_args.path", "{behaviour_cloning}"],
    "iql_critic": REACH,
    "distributional_value": REACH,
    "grape_score": [*REACH, f"{REWARD}.costs", '["mujoco/reach"]'],
    "decomposer": [
        *("--data.path", "{seen}", "--data.frames_every", "8", "--data.frame_size", "16"),
        *(f"{DECOMPOSER}.frame_size", "16", f"{DECOMPOSER}.max_new_tokens", "8", f"{DECOMPOSER}.attempts", "1"),
        *(f"{DECOMPOSER}.chat.init_args.name", "{vlm}", f"{DECOMPOSER}.chat.init_args.dtype", "float32"),
        *("--model.tuning.max_steps", "2", "--model.tuning.accumulate", "1"),
    ],
    "progress_vlm": [
        *(*CLIPS, "--data.init_args.frame_size", "32", f"{REWARD}.frames.init_args.frame_size", "32"),
        *(f"{REWARD}.vlm.init_args.name", "{vlm}", f"{REWARD}.frames.init_args.max_frames", "6"),
    ],
    "vla_cloning": [
        *("--data.init_args.path", "{seen}", "--data.init_args.cache", "{features}"),
        *("--data.init_args.encoder.init_args.name", "{clip}"),
        *(f"{POLICY}.backbone.init_args.encoder.init_args.name", "{clip}"),
        *(f"{POLICY}.backbone.init_args.text.init_args.name", "{clip}", "--model.init_args.passes", "1"),
    ],
    "vla_blip2": ["--data.init_args.path", "{seen}", f"{POLICY}.backbone.init_args.vlm.init_args.name", "{blip2}"],
    "ppo_learned_reward": [
        *(f"{POLICY}.path", "{behaviour_cloning}"),
        *("--model.init_args.advantage.init_args.reward.init_args.reward.init_args.path", "{progress_state}"),
        *("--data.init_args.task", "mujoco/reach", "--data.init_args.steps", "64", "--data.init_args.rollouts", "1"),
        *("--data.init_args.envs", "2", "--data.init_args.workers", "1"),
        *("--data.init_args.contexts", "4", "--data.init_args.eval_contexts", "2", "--trainer.val_check_interval", "1"),
    ],
    "grape": [*DEMONSTRATIONS, *CLONED, *TURN_GROUPS, f"{LOOP_REWARD}.costs", '["mujoco/reach"]'],
    "grape_safety": [
        *(*DEMONSTRATIONS, *CLONED, *TURN_GROUPS, f"{LOOP_REWARD}.costs", '["mujoco/reach_safety"]'),
        *("--loop.init_args.evaluation.init_args.violations.init_args.costs", '["mujoco/reach_safety"]'),
    ],
    "ire_vla": [*DEMONSTRATIONS, *REACHING, *CLONED, *REPLAYED],
    "ire_vla_freeze": [*DEMONSTRATIONS, *REACHING, *CLONED, *REPLAYED],
    "ppo_replay": [*DEMONSTRATIONS, *REACHING, *CLONED, *REPLAYED],
    "ire_vla_sft": [*DEMONSTRATIONS, *CLONED],
    "ire_vla_scratch": REACHING,
    "ppo_watched": [
        *(f"{POLICY}.path", "{behaviour_cloning}"),
        *("--model.init_args.advantage.init_args.reward.init_args.reward.init_args.path", "{progress_state}"),
        *("--data.init_args.task", "mujoco/reach", "--data.init_args.steps", "64", "--data.init_args.rollouts", "1"),
        *("--data.init_args.envs", "2", "--data.init_args.workers", "1"),
        *("--data.init_args.contexts", "4", "--data.init_args.eval_contexts", "2", "--trainer.val_check_interval", "1"),
        *("--trainer.callbacks.init_args.drift.init_args.training.init_args.path", "{reach}"),
        *("--trainer.callbacks.init_args.retraining.init_args.retrain.init_args.data.init_args.path", "{reach}"),
    ],
}
COMMANDS = {"decomposer": "sft"} | {
    name: "loop" for name in ("ire_vla", "ire_vla_freeze", "ire_vla_sft", "ire_vla_scratch", "ppo_replay")
}
"""Command of a configuration that is not for `guerdon fit`."""
LOOPS = {"grape", "grape_safety"}
"""Configurations of loops, for `guerdon fit` too: Lightning's quick run is not for them."""
pytestmark = pytest.mark.xdist_group("configs")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny data, and the models of configurations that came before."""
    place = tmp_path_factory.mktemp("configs")
    made = ["collect", "--env", "mujoco/reach", "--episodes", "6", "--states-only", "--out", str(place / "reach")]
    assert main(made) == 0
    compare(place / "reach")
    clips = place / "clips"
    clips.mkdir()
    rows: list[str] = []
    for number in range(4):
        frames = np.random.default_rng(number).integers(0, 255, (9, 3, 64, 80), np.uint8)
        write_video(clips / f"{number}.mp4", frames, 10)
        split = "val" if number == 3 else "train"
        rows.append(json.dumps({"file": f"{number}.mp4", "instruction": f"task {number % 2}", "split": split}))
    (clips / "metadata.jsonl").write_text("\n".join(rows))
    vlm, blip2 = tiny_vlm(place / "vlm"), tiny_vlm(place / "blip2", "blip2")
    clip = tiny_clip(place / "clip.safetensors", "safetensors")
    language = tiny_language(place / "language")
    with closing(make_task("mujoco/reach")) as task, LeRobotWriter(place / "seen", task.fps) as writer:
        for episode in collect(task, {"expert": 1.0}, 4, frames=False):
            pictures = np.random.default_rng(0).integers(0, 255, (episode.steps + 1, 3, 16, 16), np.uint8)
            shown = ArrayFrames(values=pictures, step=np.arange(episode.steps + 1), identity=str(episode.index))
            writer.add(replace(episode, frames={"corner2": shown}))
    with closing(make_task("mujoco/reach")) as task, LeRobotWriter(place / "attempts", task.fps) as writer:
        for number, episode in enumerate(collect(task, {"expert": 1.0}, 6, frames=False)):
            outcome = {"end": End.FAILURE, "success": 0.0} if number % 2 else {}
            labels = {name: replace(c, values=0 * c.values) for name, c in episode.labels.items()}
            outcome = outcome | ({"labels": labels} if number % 2 else {})
            writer.add(replace(episode, group=number // 2, context=f"start {number // 2}", **outcome))
    data = {"reach": place / "reach", "seen": place / "seen", "attempts": place / "attempts", "clips": clips}
    caches = {"cache": place / "cache", "features": place / "features"}
    return data | caches | {"vlm": vlm, "blip2": blip2, "clip": clip, "language": language}


def compare(folder):
    """Pairs of segments of the episodes in a data set, and answers to them."""
    pairs = [
        SegmentPair(
            id=f"p{number}",
            first=Segment(episode=2 * (number // 2), start=number % 2, stop=8),
            second=Segment(episode=2 * (number // 2) + 1, start=number % 2, stop=10),
        )
        for number in range(6)
    ]
    choices: list[Choice] = ["first", "second", "tie", "first", "skip", "second"]
    write_segment_pairs(pairs, folder / "compared.jsonl")
    answers = [Answer(pair=pair.id, choice=choice) for pair, choice in zip(pairs, choices, strict=True)]
    write_answers(answers, folder / "answers.jsonl")


def test_every_configuration_is_tested():
    assert {path.stem for path in CONFIGS} == set(SMALL)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_is_the_command_that_runs_it(path):
    first = path.read_text().splitlines()[0]
    command = COMMANDS.get(path.stem, "fit")
    assert re.match(rf"# guerdon {command} --config (configs/)?{path.stem}(\.yaml)?( |$)", first), first


def run(path, folders, out):
    """The command on tiny data; models that the configuration builds on are made first where they are missing."""
    for name in {*re.findall(r"{(\w+)}", " ".join(SMALL[path.stem]))} - set(folders):
        folders[name] = run(path.with_name(f"{name}.yaml"), folders, folders["reach"].with_name(name))
    overrides = [part.format(**folders) for part in SMALL[path.stem]]
    command = COMMANDS.get(path.stem, "fit")
    lightning = command == "fit" and path.stem not in LOOPS
    quick = [*(["--trainer.fast_dev_run", "1"] if lightning else []), "--out", str(out)]
    # by its name, from a folder that does not hold it: that is how an installed guerdon is used
    assert main([command, "--config", path.name, *overrides, *quick]) == 0
    return out / "model"


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configuration_runs(path, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = run(path, folders, tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[-1] == str(model)
    assert isinstance(load_component(model), RewardModel | Critic | Policy | TaskDecomposer)
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    if path.stem.endswith("_critic"):
        assert isinstance(load_component(model.with_name("reward")), RewardModel)
