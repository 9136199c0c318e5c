"""Run directories: which folder a run gets, what is taken back, and how its configuration is found and refused."""

import re
from pathlib import Path

import pytest
import torch

from guerdon.commands.run_directory import (
    asks_only,
    make_run_directory,
    note_checkpoint,
    offered_configs,
    resolve_config,
    tidy,
    trained_checkpoint,
)


def test_a_new_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [make_run_directory(Path("configs/tiny.yaml"), None, resumes=False).folder for _ in range(3)]
    assert len(set(folders)) == 3 and all(folder.is_dir() for folder in folders)
    assert all(re.fullmatch(r"runs/tiny/\d{8}-\d{6}(-\d)?", str(folder)) for folder in folders)
    assert make_run_directory(None, None, resumes=False).folder.parent == Path("runs/run")


def test_a_folder_that_holds_a_run_is_used_again_only_to_continue_it(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(FileExistsError, match=r"holds an earlier run: .* --ckpt_path .*last\.ckpt"):
        make_run_directory(None, tmp_path, resumes=False)
    with pytest.raises(FileExistsError, match="go on with it: --resume"):
        make_run_directory(None, tmp_path, resumes=False, continuing="--resume")
    assert make_run_directory(None, tmp_path, resumes=True).folder == tmp_path


def test_what_a_failed_run_wrote_is_taken_back_and_what_was_there_stays(tmp_path):
    (tmp_path / "mine.txt").write_text("stays")
    for out in (tmp_path / "a" / "b", tmp_path):
        directory = make_run_directory(None, out, resumes=False)
        (directory.folder / "logs").mkdir()
        (directory.folder / "logs" / "x.csv").write_text("")
        (directory.folder / "config.yaml").write_text("")
        directory.take_back()
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_was_filled_by_somebody_else_meanwhile_stays(tmp_path):
    directory = make_run_directory(None, tmp_path / "a" / "b", resumes=False)
    (tmp_path / "a" / "other").mkdir()
    directory.take_back()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["other"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot make the run directory .*file/run: .*; choose another --out"):
        make_run_directory(None, tmp_path / "file" / "run", resumes=False)


def test_a_configuration_is_found_by_path_or_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("progress_state", "progress_state.yaml", "configs/progress_state.yaml"):
        assert resolve_config(name).name == "progress_state.yaml" and resolve_config(name).is_file()
    Path("progress_state.yaml").write_text("mine: true")
    assert resolve_config("progress_state.yaml") == Path("progress_state.yaml")
    for name in ("nothing", "other/progress_state.yaml"):
        with pytest.raises(FileNotFoundError, match=f"no configuration {name}: .*; guerdon comes with"):
            resolve_config(name)
    assert "progress_state" in offered_configs() and "aloe_critic" in offered_configs()


@pytest.mark.parametrize(
    ("arguments", "asks"),
    [
        (["--help"], True),
        (["--config", "a", "-h"], True),
        (["--print_config=skip_null"], True),
        (["--help", "x"], True),
        (["--model.help_me", "1"], False),
        ([], False),
    ],
)
def test_what_only_asks_runs_nothing(arguments, asks):
    assert asks_only(arguments) is asks


def test_the_account_of_every_type_is_reduced_to_what_is_wrong():
    told = """Parser key "model": Does not validate against any of the Union subtypes
    Subtypes: [<class 'NoneType'>, <class 'int'>]
    Errors:
      - Expected a <class 'NoneType'>
      - Expected a <class 'int'>
    Given value type: <class 'str'>
    Given value: many"""
    assert tidy(told) == '"model": Expected a int got many'


def test_the_noted_checkpoint_is_that_of_the_model_even_after_a_move(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    weights = {"w": torch.tensor([1.0, float("nan")])}
    for name, shift in (("one", 0.0), ("last", 1.0)):
        state = {"state_dict": {"w": weights["w"] + shift}, "global_step": 3}
        torch.save(state, run / "checkpoints" / f"{name}.ckpt")
    assert trained_checkpoint(run) == run / "checkpoints/last.ckpt", "it saved no model"
    (run / "model").mkdir()
    note_checkpoint(run, run / "checkpoints/one.ckpt", weights)
    moved = run.rename(tmp_path / "moved")
    assert trained_checkpoint(moved) == moved / "checkpoints/one.ckpt"
    note_checkpoint(moved, moved / "checkpoints/last.ckpt", weights)
    assert trained_checkpoint(moved) is None, "the last checkpoint holds other weights"
