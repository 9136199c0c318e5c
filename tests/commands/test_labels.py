"""The ``labels`` command, as a user runs it."""

import pytest

from guerdon.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reach(tmp_path_factory):
    place = tmp_path_factory.mktemp("labels") / "reach"
    made = ["collect", "--env", "mujoco/reach", "--episodes", "6", "--states-only", "--out", str(place)]
    assert main(made) == 0
    return place


def test_samples_of_a_folder(reach, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert main(["labels", "--data", str(reach), "--show", "12", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "progress known" in told and str(out.name) in told and out.stat().st_size > 10_000
    assert main(["labels", "--data", str(reach), "--show", "12", "--out", str(out)]) == 0
    assert capsys.readouterr().out == told  # the same seed draws the same samples
    assert main(["labels", "--data", str(reach), "--show", "12", "--seed", "5", "--out", str(out)]) == 0
    assert capsys.readouterr().out != told


def test_samples_of_a_configuration_with_overrides(reach, tmp_path, capsys):
    common = ["labels", "--config", "progress_state", "--data.init_args.path", str(reach), "--show", "9"]
    labels = "--data.init_args.labels.init_args"
    switches = [
        f"{labels}.rewind",
        "0",
        f"{labels}.reverse",
        "0",
        f"{labels}.stall",
        "1",
        f"{labels}.wrong_instruction",
        "0",
    ]
    assert main([*common, *switches, "--out", str(tmp_path / "a.png")]) == 0
    told = capsys.readouterr().out
    assert "stall" in told and "rewind" not in told and "original" not in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--show", "3"], "one of them"),
        (["--data", "nowhere"], "no data set at nowhere"),
        (["--data", "{reach}", "--show", "0"], "at least one sample"),
        (["--data", "{reach}", "--out", "no/such/x.png"], "there is no folder"),
        (["--config", "progress_state", "--data.init_args.nix", "3"], "'nix' is not accepted"),
        (["--config", "progress_state", "--data.init_args.labels.init_args.stall", "2"], "at most 1 all"),
        (["--config", "nix.yaml"], "no configuration nix.yaml"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, said, reach, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["labels", *(a.replace("{reach}", str(reach)) for a in arguments)]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert not list(tmp_path.iterdir())
