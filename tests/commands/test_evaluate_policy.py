"""``guerdon evaluate`` on policies: a small one, on the reach task, through the real command."""

import importlib
import io
import json

import av
import pytest
import torch
from rich.console import Console

from guerdon.cli import main
from guerdon.commands.evaluate_policy import print_policies
from guerdon.core.hub import save_component
from guerdon.critics.value import ValueCritic
from guerdon.envs import collect as collect_module
from guerdon.evaluation.policies.outcomes import Outcome
from guerdon.evaluation.policies.results import PolicyEvaluation
from guerdon.evaluation.policies.setting import PlaySetting, machine
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward

pytestmark = [pytest.mark.xdist_group("cli")]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Two saved policies, neither of them trained, a critic and a reward model."""
    folder = tmp_path_factory.mktemp("policies")
    torch.manual_seed(0)
    for name, component in (
        ("one", GaussianPolicy(12, 3, horizon=2, execute=2, hidden=(8,))),
        ("two", GaussianPolicy(12, 3, hidden=(8,))),
        ("seeing", GaussianPolicy(12, 3, hidden=(8,), feature_sizes={"mean/top": 3})),
        ("critic", ValueCritic(12, hidden=(8,))),
        ("reward", ProgressReward(state_size=12, observer=ObservationEncoder(width=8, layers=1, heads=2))),
    ):
        save_component(component, folder / name)
    return folder


@pytest.fixture
def evaluate(policies, tmp_path, monkeypatch, capsys):
    """A function that runs the command in an empty folder and returns what it printed, in one line."""
    monkeypatch.chdir(tmp_path)

    def run(arguments, model="one"):
        command = arguments.format(place=policies)
        assert main(["evaluate", "--model", str(policies / model), *command.split()]) == 0
        return " ".join(capsys.readouterr().out.split())

    return run


@pytest.fixture
def wrong(policies, tmp_path, monkeypatch, error_line):
    """A function that runs the command with a mistake, and returns the line that says what is wrong."""
    monkeypatch.chdir(tmp_path)

    def run(arguments, model="one"):
        command = arguments.format(place=policies)
        assert main(["evaluate", "--model", str(policies / model), *command.split()]) == 2
        assert list(tmp_path.iterdir()) == []
        return error_line()

    return run


def test_the_success_rate_is_printed_with_its_interval_and_the_number_of_episodes(evaluate, tmp_path):
    text = evaluate("--env mujoco/reach --episodes 6 --horizon 5 --json found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    (result,) = found["tasks"]
    assert result["episodes"] == 6 and result["steps"] <= 5
    low, high = (f"{100 * result['success'][end]:.1f}" for end in ("low", "high"))
    assert f"mujoco/reach 6 {100 * result['success']['value']:.1f} {low} … {high}" in text
    assert f"told apart by {result['to_tell']} episodes of each policy" in text
    assert "deterministic actions, split eval, seed 0, task seed 0, at most 5 steps" in text
    assert [o["index"] for o in found["outcomes"]] == [1_000_000 + i for i in range(6)]
    assert found["model"]["hash"] and found["versions"]["mujoco"] and found["setting"]["horizon"] == 5
    assert list(tmp_path.iterdir()) == [tmp_path / "found.json"]


def test_options_reach_the_episodes(evaluate, tmp_path):
    common = "--env mujoco/reach --episodes 3 --horizon 4"
    seen = {}
    for name, more in {
        "plain": "",
        "again": "",
        "split": "--split train",
        "task": "--task-seed 1",
        "sampled": "--sampled",
        "seed": "--sampled --seed 1",
    }.items():
        evaluate(f"{common} {more} --json {name}.json")
        outcomes = json.loads((tmp_path / f"{name}.json").read_text())["outcomes"]
        seen[name] = [(o["split"], o["task_seed"], o["reward"]) for o in outcomes]
    assert seen["plain"] == seen["again"]
    assert len({tuple(rows) for rows in seen.values()}) == 5
    assert seen["split"][0][0] == "train" and seen["task"][0][1] == 1


def test_two_policies_on_the_same_starts(evaluate, tmp_path):
    text = evaluate("--against {place}/two --env mujoco/reach --episodes 4 --horizon 5 --json found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["against"]["path"].endswith("two") and len(found["outcomes"]) == 8
    assert {o["policy"] for o in found["outcomes"]} == {"model", "against"}
    assert "model − against" in text and "won lost" in text and "McNemar" in text
    (paired,) = found["paired"]
    assert paired["episodes"] == 4


def test_outcomes_are_kept_and_another_policy_is_refused(evaluate, policies, tmp_path, error_line):
    evaluate("--env mujoco/reach --episodes 3 --horizon 4 --out kept")
    assert (tmp_path / "kept" / "evaluation.json").is_file()
    settings = json.loads((tmp_path / "kept" / "settings.json").read_text())
    assert settings["device"] == {"model": "cpu"} and settings["machine"] == machine()
    evaluate("--env mujoco/reach --episodes 3 --horizon 4 --out kept")
    command = f"evaluate --model {policies}/two --env mujoco/reach --episodes 3 --horizon 4 --out kept"
    assert main(command.split()) == 2
    assert "kept holds outcomes of another evaluation (model: " in error_line()


def test_a_video_of_each_of_the_first_starts(evaluate, tmp_path):
    if collect_module.rendering_backend() is None:
        pytest.skip("no OpenGL here")
    text = evaluate("--env mujoco/reach --episodes 3 --horizon 4 --sampled --out kept --video 2")
    videos = sorted((tmp_path / "kept/videos/mujoco_reach").iterdir())
    assert [video.name[:9] for video in videos] == ["model-000", "model-001"]
    assert "video: kept/videos/mujoco_reach/model-000" in text
    with av.open(str(videos[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5, "every observation of four steps"


ENCODER = """
import torch
from guerdon.backbones.vision import VisionEncoder

class Mean(VisionEncoder):
    name, width, trainable = "mean", 3, False

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def preprocess(self, frames):
        return frames.float() / 255

    def features(self, pixels):
        return pixels.mean((2, 3)) * self.scale
"""


def test_a_policy_that_reads_features_is_played_with_its_encoder(policies, tmp_path, monkeypatch, capsys):
    if collect_module.rendering_backend() is None:
        pytest.skip("no OpenGL here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_mean_encoder.py").write_text(ENCODER)
    save_component(importlib.import_module("own_mean_encoder").Mean(), tmp_path / "mean")
    seeing = ["--camera", "top", "--image-size", "32", "--encoder", "mean", "--trust", "--env", "mujoco/reach"]
    command = ["evaluate", "--model", str(policies / "seeing"), *seeing, "--episodes", "2", "--horizon", "4"]
    assert main([*command, "--out", "kept", "--video", "1"]) == 0
    found = json.loads((tmp_path / "kept/evaluation.json").read_text())
    assert found["setting"]["encoder"].startswith("mean ") and len(found["outcomes"]) == 2
    (video,) = (tmp_path / "kept/videos/mujoco_reach").iterdir()
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    collected = ["collect", "--policy", str(policies / "seeing"), *seeing, "--episodes", "1", "--horizon", "4"]
    assert main([*collected, "--out", "logs", "--states-only"]) == 0
    capsys.readouterr()


def test_videos_need_opengl(wrong, monkeypatch):
    monkeypatch.setattr(collect_module, "rendering_backend", lambda: None)
    assert "videos of mujoco/reach need OpenGL" in wrong("--env mujoco/reach --video 1 --out kept")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "holds a policy, which is played on held-out starts: name its task with --env"),
        ("--env mujoco/reach --data x", "expected a reward model or a critic with --data"),
        ("--env mujoco/reach --reward x", "--reward is for critics, "),
        ("--env mujoco/reach --threshold 0.5", "--threshold is for reward models, "),
        ("--env mujoco/reach --threshold 0", "--threshold is for reward models, "),
        ("--env mujoco/reach --confusion 0", "--confusion is for reward models, "),
        ("--env mujoco/reach --states 32", "--states is for critics, "),
        ("--env mujoco/reach --rollouts 4", "--rollouts is for critics, "),
        ("--env mujoco/reach --candidates 4", "--candidates is for critics, "),
        ("--env mujoco/reach --batch-size 8", "--batch-size is for data sets, "),
        ("--env mujoco/reach --encoder {place}/one", "name its camera with --camera"),
        ("--env mujoco/reach --camera top --encoder {place}/one", "holds a GaussianPolicy: expected a vision encoder"),
        ("--env mujoco/reach --video 2", "name it with --out DIR"),
        ("--env mujoco/reach --image-size 64", "name its camera with --camera"),
        ("--env mujoco/reach --workers -1", "expected a number of processes, 0 or more"),
        ("--env mujoco/reach --workers 1 --device meta", "leave one out"),
        ("--env mujoco/reech", "did you mean mujoco/reach"),
        ("--env mujoco/reach --split val", "expected split 'train' or 'eval', got 'val'"),
        ("--env mujoco/reach --camera up", "unknown camera 'up'"),
        ("--env mujoco/reach --against {place}/critic", "holds a ValueCritic: expected a policy"),
        ("--env metaworld/push-v3", "metaworld/push-v3 has states of width 39 and actions of width 4, the policy "),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_played(wrong, arguments, says):
    assert says in wrong(arguments)


@pytest.mark.parametrize(
    ("model", "arguments", "says"),
    [
        ("reward", "", "holds a ProgressReward, which is evaluated on a data set: name it with --data DIR"),
        ("critic", "", "holds a ValueCritic, which is evaluated on a data set: name it with --data DIR"),
        ("reward", "--data x --episodes 3", "--episodes is for policies, "),
        ("seeing", "--env mujoco/reach", "reads features, mean/top, which a frozen encoder makes of frames: name "),
        ("critic", "--data x --video 3", "--video is for policies, "),
    ],
)
def test_reward_models_and_critics_say_what_they_need(wrong, model, arguments, says):
    assert says in wrong(arguments, model)


@pytest.mark.slow
def test_workers_change_nothing(evaluate, tmp_path):
    found = []
    for workers in (0, 2):
        evaluate(f"--env mujoco/reach --episodes 5 --horizon 6 --sampled --workers {workers} --json {workers}.json")
        found.append(json.loads((tmp_path / f"{workers}.json").read_text()))
    assert found[0] == found[1]


def test_names_of_tasks_are_printed_whole():
    outcomes = [
        Outcome(
            policy=policy, task="metaworld/" + "long-" * 8 + "v3", place=place, context="c", index=place, split="train",
            task_seed=0, seed=0, success=bool(place), steps=500, reward=1234.5, end="success",
        )
        for policy in ("model", "against")
        for place in range(3)
    ]  # fmt: skip
    setting = PlaySetting(split="train").to_json()
    console = Console(width=100, record=True, file=io.StringIO())
    print_policies(PolicyEvaluation.of(outcomes, {"path": "a"}, {"path": "b"}, setting, {"torch": "2"}, "cpu"), console)
    text = console.export_text()
    assert "…-" not in text and "-…" not in text and max(map(len, text.splitlines())) <= 100
    assert "note: these are starts of training" in text
