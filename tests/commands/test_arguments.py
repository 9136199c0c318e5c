"""The arguments of every command: names, defaults and what is refused before anything is imported."""

import re
from pathlib import Path

import pytest

from guerdon.commands.arguments import build_parser, names_in
from guerdon.commands.evaluate import DEFAULTS

MODEL_AND_DATA = ["--model", "m", "--data", "d"]


def parse(*arguments):
    return build_parser("1.2.3").parse_args(arguments)


def test_defaults_of_a_command_are_those_of_its_help(capsys):
    found = parse("collect", "--env", "mujoco/reach", "--out", "d")
    assert (found.episodes, found.image_size, found.quality, found.split) == (20, 96, "mixed", "train")
    assert found.frames is None and found.horizon is None and found.camera is None and found.out == Path("d")
    assert parse("collect", "--env", "e", "--out", "d", "--states-only").frames is False
    found = parse("evaluate", *MODEL_AND_DATA)
    assert found.device == "auto"
    with pytest.raises(SystemExit):
        parse("evaluate", "--help")
    shown = " ".join(capsys.readouterr().out.partition("options:")[2].split())
    for name, value in DEFAULTS.items():  # filled in later: what was given may be refused
        assert getattr(found, name) is None
        assert re.search(rf"--{name.replace('_', '-')} [A-Z] (?:(?! --).)*? default: {value}\b", shown), name
    assert parse("score", "--model", "m", "--data", "d", "--out", "o").batch_size == 8
    assert found.json is None and found.trust is False and found.also == [] and found.threshold is None
    found = parse("labels", "--data", "d")
    assert (found.show, found.seed, found.out) == (20, None, Path("labels.png"))
    found = parse("calibrate", *MODEL_AND_DATA, "--out", "o")
    assert (found.split, found.method, found.abstain, found.by) == ("val", "isotonic", 0.0, None)
    assert parse("fit", "-c", "a.yaml", "--config", "b.yaml").config == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["collect", "--env", "e", "--out", "d", "--episodes", "0"],
            "--episodes: expected at least one episode, got 0",
        ),
        (["collect", "--env", "e", "--out", "d", "--image-size", "-3"], "--image-size: expected at least one pixel"),
        (["collect", "--env", "e", "--out", "d", "--horizon", "x"], "--horizon: expected at least one step, got x"),
        (["evaluate", *MODEL_AND_DATA, "--batch-size", "0"], "--batch-size: expected at least one episode, got 0"),
        (["score", *MODEL_AND_DATA, "--out", "o", "--batch-size", "1.5"], "--batch-size: expected at least one"),
        (["labels", "--data", "d", "--show", "0"], "--show: expected at least one sample, got 0"),
        (["report", "--scores", "s", "--out", "o", "--episodes", "0"], "--episodes: expected at least one episode"),
        (["collect", "--env", "e", "--out", "d", "--frames", "--states-only"], "not allowed with argument --frames"),
        (["evaluate", *MODEL_AND_DATA, "--tail", "maybe"], "invalid choice: 'maybe'"),
        (["score", *MODEL_AND_DATA], "the following arguments are required: --out"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as left:
        parse(*arguments)
    assert left.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("guerdon: error: ") and says in text and text.count("\n") == 1
    assert text.endswith(f"(see guerdon {arguments[0]} --help)\n")


def test_which_commands_read_configurations_and_so_import_classes_by_name():
    for arguments in (["fit"], ["validate"], ["sft"], ["labels"]):
        found = parse(*arguments)
        assert found.overrides and found.own_classes
    for arguments in (["score", *MODEL_AND_DATA, "--out", "o"], ["inspect", "x"], ["demo"]):
        found = parse(*arguments)
        assert not found.overrides and not found.own_classes


def test_every_option_has_a_help_text(capsys):
    for command in ("collect", "score", "evaluate", "calibrate", "labels", "report", "inspect", "demo"):
        with pytest.raises(SystemExit):
            parse(command, "--help")
        shown = capsys.readouterr().out
        options = shown[shown.index("options:") :]
        for entry in options.split("\n  -")[1:]:
            words = entry.replace("\n", " ").split()
            flags = [w for w in words if w.startswith("-") or w.isupper() or "." in w]
            assert len(words) > len(flags), entry


def test_names_are_split_at_commas():
    assert names_in("success, failure,,time_limit ") == ["success", "failure", "time_limit"] and names_in("") == []
