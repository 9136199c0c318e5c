"""Configurations that version 0.1 wrote are read, with one warning, and only where they need it."""

import json
import warnings

import pytest
import yaml

from guerdon.cli import main
from guerdon.commands.old_configs import gathered, readable_configs, renewed_arguments

OLD = {
    "model": {
        "class_path": "guerdon.rewards.fit.RewardTraining",
        "init_args": {
            "reward": {
                "class_path": "guerdon.rewards.progress.ProgressReward",
                "init_args": {"state_size": 12, "width": 8, "layers": 1, "heads": 2, "success_weight": 0.5},
            }
        },
    },
    "trainer": {
        "callbacks": [
            {"class_path": "guerdon.policies.watch.HackingWatch", "init_args": {"threshold": 0.7, "window": 3}}
        ]
    },
}


def written(tmp_path, values, name="old.yaml"):
    (tmp_path / name).write_text(yaml.safe_dump(values))
    return str(tmp_path / name)


def test_class_paths_are_renewed_and_flat_arguments_gathered(tmp_path):
    path = written(tmp_path, OLD)
    with pytest.warns(
        DeprecationWarning, match=r"old.yaml names guerdon.rewards.fit.RewardTraining and 2 more"
    ) as seen:
        with readable_configs([path]) as (copy,):
            values = yaml.safe_load(copy.read_text())
    assert len(seen) == 1
    assert copy.name == "old.yaml"  # the name of a run comes from it
    assert not copy.exists()
    reward = values["model"]["init_args"]["reward"]
    assert reward == {
        "class_path": "guerdon.ProgressReward",
        "init_args": {
            "state_size": 12,
            "success_weight": 0.5,
            "observer": {
                "class_path": "guerdon.ObservationEncoder",
                "init_args": {"width": 8, "layers": 1, "heads": 2},
            },
        },
    }
    watch = values["trainer"]["callbacks"][0]
    assert watch["init_args"] == {
        "claim": {"class_path": "guerdon.SuccessClaim", "init_args": {"threshold": 0.7}},
        "history": {"class_path": "guerdon.RolloutWindow", "init_args": {"window": 3}},
    }


def test_a_file_of_today_is_read_as_it_is(tmp_path):
    path = written(tmp_path, {"model": {"class_path": "guerdon.RewardTraining", "init_args": {"learning_rate": 0.1}}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with readable_configs([path]) as (same,):
            assert str(same) == path


def test_arguments_that_are_given_both_ways_stay_for_the_constructor_to_refuse():
    observer = {"class_path": "guerdon.ObservationEncoder", "init_args": {}}
    value = {"class_path": "guerdon.ProgressReward", "init_args": {"observer": observer, "width": 8}}
    assert gathered(value) == value


def test_classes_of_others_are_left_alone():
    value = {"class_path": "outcome.OutcomeReward", "init_args": {"width": 8}}
    assert gathered(value) == value


def test_class_paths_on_the_command_line_are_renewed():
    assert renewed_arguments(
        ["--model", "guerdon.rewards.fit.RewardTraining", "--x=guerdon.policies.watch.HackingWatch"]
    ) == [
        "--model",
        "guerdon.RewardTraining",
        "--x=guerdon.HackingWatch",
    ]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--model.init_args.reward.init_args.width", "--model.init_args.reward.init_args.observer.init_args.width"),
        ("--model.reward.width", "--model.reward.observer.width"),
        ("--model.reward.init_args.width=4", "--model.reward.init_args.observer.init_args.width=4"),
        ("--model.reward.init_args.state_size", "--model.reward.init_args.state_size"),  # its own argument
        ("--model.reward.init_args.observer.width", "--model.reward.init_args.observer.width"),
        ("--model.other.width", "--model.other.width"),
        ("--width", "--width"),
    ],
)
def test_flat_arguments_on_the_command_line_reach_the_object_that_takes_them(given, meant, tmp_path):
    with pytest.warns(DeprecationWarning), readable_configs([written(tmp_path, OLD)]) as paths:
        assert renewed_arguments([given, "4"], paths) == [meant, "4"]


FLAT = {"class_path": "guerdon.rewards.progress.ProgressReward", "init_args": {"width": 33}}
INSIDE = {
    "class_path": "guerdon.ProgressReward",
    "init_args": {"observer": {"class_path": "guerdon.ObservationEncoder", "init_args": {"width": 33}}},
}


@pytest.mark.parametrize("joined", [False, True])
def test_json_on_the_command_line_is_renewed_like_a_file(joined):
    given = [f"--model.reward={json.dumps(FLAT)}"] if joined else ["--model.reward", json.dumps(FLAT)]
    value = renewed_arguments(given)[-1]
    assert json.loads(value.partition("=")[2] if joined else value) == INSIDE
    watch = {"class_path": "guerdon.policies.watch.HackingWatch", "init_args": {"window": 3}}
    (value,) = renewed_arguments([f"--trainer.callbacks+={json.dumps([watch])}"])
    name, _, text = value.partition("=")
    assert name == "--trainer.callbacks+"
    assert json.loads(text)[0]["init_args"]["history"]["init_args"] == {"window": 3}


def test_what_is_no_json_is_left_for_the_parser_to_refuse():
    assert renewed_arguments(["--model.reward", "{broken"]) == ["--model.reward", "{broken"]


def test_flat_arguments_follow_a_class_that_the_command_line_names():
    reward = ["--model.reward", "guerdon.rewards.progress.ProgressReward", "--model.reward.width", "77"]
    assert renewed_arguments(["--model", "guerdon.rewards.fit.RewardTraining", *reward])[-2:] == [
        "--model.reward.observer.width",
        "77",
    ]
    watch = ["--trainer.callbacks+=guerdon.policies.watch.HackingWatch", "--trainer.callbacks.init_args.ask_random=3"]
    assert renewed_arguments(watch)[-1] == "--trainer.callbacks.init_args.questions.init_args.ask_random=3"


@pytest.mark.parametrize("at", ["--model.reward.observer", "--model.init_args.reward.init_args.observer"])
def test_a_class_may_be_named_where_a_configuration_holds_null(at, tmp_path):
    reward = {"class_path": "guerdon.ProgressReward", "init_args": {"observer": None}}
    config = {"model": {"class_path": "guerdon.RewardTraining", "init_args": {"reward": reward}}}
    given = [f"{at}.class_path", "guerdon.ObservationEncoder", f"{at}.width", "4"]
    with readable_configs([written(tmp_path, config)]) as paths:
        assert renewed_arguments(given, paths) == given


def test_flat_arguments_of_a_callback_reach_the_last_one(tmp_path):
    with pytest.warns(DeprecationWarning), readable_configs([written(tmp_path, OLD)]) as paths:
        assert renewed_arguments(["--trainer.callbacks.init_args.window", "7"], paths) == [
            "--trainer.callbacks.init_args.history.init_args.window",
            "7",
        ]


def test_what_is_no_yaml_is_one_clear_error(tmp_path):
    (tmp_path / "broken.yaml").write_text("model: [1, 2")
    with pytest.raises(ValueError, match=r"broken.yaml is no YAML"), readable_configs([str(tmp_path / "broken.yaml")]):
        pass


def test_the_command_shows_the_warning_that_python_hides(tmp_path, monkeypatch):
    path = written(tmp_path, OLD)
    monkeypatch.chdir(tmp_path)
    with pytest.warns(DeprecationWarning, match="as version 0.1 did; it still opens. Write guerdon.RewardTraining"):
        warnings.simplefilter("ignore", DeprecationWarning)  # as Python does outside tests
        assert main(["fit", "--config", path, "--print_config"]) == 0
