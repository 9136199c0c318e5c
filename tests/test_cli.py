"""The command itself: what answers at once, how an error is told, and where a user's own classes are found."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import guerdon
from guerdon.cli import COMMANDS, main
from guerdon.commands.arguments import build_parser
from guerdon.core.hub import save_component
from guerdon.datasets.episodes import Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.rewards.recorded import RecordedReward

HEAVY = ("torch", "numpy", "lightning", "transformers", "mujoco", "rich", "yaml", "jsonargparse")


def error_line(capsys):
    """The one line on standard error."""
    text = capsys.readouterr().err
    assert "Traceback" not in text and text.startswith("guerdon: error:") and text.count("\n") == 1, text
    return text


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_questions_are_answered_at_once_and_import_nothing_heavy(arguments):
    """Except by fit, validate, sft and loop: the parsers that print their help know every argument of the trainer."""
    if arguments[0] in ("fit", "validate", "sft", "loop"):
        pytest.skip("knows every argument of the trainer")
    code = (
        "import sys, time; start = time.process_time(); from guerdon.cli import main; "
        f"assert main({arguments!r}) == 0; took = time.process_time() - start; "
        f"heavy = {set(HEAVY)!r} & set(sys.modules); assert not heavy, heavy; assert took < 0.2, took"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if arguments == ["--version"]:
        assert re.fullmatch(r"guerdon \d+\.\d+\.\d+\S*\n", done.stdout)
    else:
        assert done.stdout.startswith("usage: guerdon")


@pytest.mark.slow
def test_every_command_is_a_module_that_runs():
    offered = re.search(r"invalid choice: 'x' \(choose from (.*?)\)", _said(["x"]))
    assert offered and set(re.findall(r"\w+", offered[1])) == set(COMMANDS)
    for module in COMMANDS.values():
        assert callable(importlib.import_module(f"guerdon.commands.{module}").run)


def _said(arguments):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from guerdon.cli import main; sys.exit(main(sys.argv[1:]))", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stderr + done.stdout


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("", "the following arguments are required: COMMAND (see guerdon --help)"),
        ("train", "invalid choice: 'train'"),
        ("inspect", "the following arguments are required: DIR (see guerdon inspect --help)"),
        ("inspect . --nonsense", "unrecognised arguments: --nonsense (see guerdon inspect --help)"),
        ("report --scores s", "arguments are required: --out"),
        ("inspect nowhere", "nowhere is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    assert says in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        main(["inspect", "nowhere", "--debug"])
    monkeypatch.setenv("GUERDON_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["inspect", "nowhere"])
    monkeypatch.setenv("GUERDON_DEBUG", "0")
    assert main(["inspect", "nowhere"]) == 2


def raising(monkeypatch, error):
    """Let `guerdon inspect` end with an error."""
    import guerdon.commands.inspecting

    def broken(*_):
        raise error

    monkeypatch.setattr(guerdon.commands.inspecting, "describe_folder", broken)


def test_the_unforeseen_keeps_its_traceback(monkeypatch):
    for error in (ZeroDivisionError(), RuntimeError("No module named 'x'"), TypeError("no such argument")):
        raising(monkeypatch, error)
        with pytest.raises(type(error)):
            main(["inspect", "."])


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("expected\n  this, got that"), "error: expected this, got that\n"),
        (OSError(28, "No space left on device", "a.txt"), "error: a.txt: No space left on device\n"),
        (NotImplementedError("not for critics"), "error: not for critics\n"),
        (TypeError("x holds a ValueCritic, expected a RewardModel"), "error: x holds a ValueCritic, expected"),
        (
            ModuleNotFoundError("No module named 'metaworld'", name="metaworld"),
            "'metaworld'; install it with: pip install 'guerdon[sim]'\n",
        ),
        (ModuleNotFoundError("x needs ray: pip install it", name="ray"), "error: x needs ray: pip install it\n"),
        (RuntimeError("Error(s) in loading state_dict for A: size mismatch"), "does not fit the configuration"),
        (ValueError(""), "error: ValueError\n"),
        (ValueError("Pass evict=True, or pass trust=True"), "error: Give --evict, or pass trust=True\n"),
    ],
)
def test_expected_errors_are_told_in_one_line(error, says, monkeypatch, capsys):
    raising(monkeypatch, error)
    assert main(["inspect", "."]) == 2
    assert says in error_line(capsys)


@pytest.mark.parametrize(
    "path", ["guerdon.ProgresReward", "guerdon.rewards.progress.ProgresReward", "guerdon.no.ProgresReward"]
)
def test_a_class_path_that_never_existed_answers_with_the_nearest(path, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(
        "model:\n  class_path: guerdon.RewardTraining\n  init_args:\n    reward:\n      class_path: " + path + "\n"
    )
    assert main(["fit", "--config", str(tmp_path / "a.yaml")]) == 2
    line = error_line(capsys)
    assert f"'{path}'" in line and line.endswith("did you mean ProgressReward or VlmProgressReward or ProgressGain?\n")


def test_an_interrupt_and_a_closed_pipe_have_exit_codes_of_their_own(monkeypatch, capsys):
    raising(monkeypatch, KeyboardInterrupt())
    assert main(["inspect", "."]) == 130
    assert "interrupted" in capsys.readouterr().err
    raising(monkeypatch, BrokenPipeError())
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # is replaced, so that nothing is flushed into the closed pipe
    assert main(["inspect", "."]) == 0
    assert sys.stdout.name == os.devnull
    sys.stdout.close()


# --- a user's own classes -------------------------------------------------------------------------------------------

OWN = """
from guerdon.core.batch import RewardEstimates
from guerdon.core.interfaces import RewardModel


class OutcomeReward(RewardModel):
    def forward(self, batch):
        return RewardEstimates(rewards=batch.mask.float(), valid=batch.mask)
"""


@pytest.fixture
def shell(tmp_path):
    """Run the command as its console script does: the script's folder is on the path, the current folder is not."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "guerdon_script"
    script.write_text("import sys\nfrom guerdon.cli import main\nsys.exit(main())\n")
    source = Path(guerdon.__file__).parent.parent
    paths = [str(source)] if (source / "guerdon").exists() else []  # a checkout under another name is installed

    def run(*arguments, cwd):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, str(script), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def own(tmp_path, make_data):
    """A folder with outcome.py, a configuration that names its class, and a saved component of it."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "outcome.py").write_text(OWN)
    # a component of that class, written without importing it here
    save_component(RecordedReward(), folder / "model")
    spec = json.loads((folder / "model" / "component.json").read_text())
    (folder / "model" / "component.json").write_text(
        json.dumps(spec | {"class_path": "outcome.OutcomeReward", "init_args": {}})
    )
    (folder / "own.yaml").write_text(
        "model:\n  class_path: guerdon.RewardTraining\n  init_args:\n    reward: outcome.OutcomeReward\n"
        f"data:\n  class_path: guerdon.EpisodeData\n  init_args: {{path: {make_data}}}\n"
        "trainer: {fast_dev_run: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}\n"
    )
    return folder


@pytest.fixture
def make_data(tmp_path):
    import numpy as np

    with LeRobotWriter(tmp_path / "data", fps=10) as writer:
        for index in range(3):
            state, actions = np.zeros((4, 2), np.float32), np.zeros((3, 1), np.float32)
            writer.add(Episode(index=index, state=state, actions=actions, success=1.0))
    return tmp_path / "data"


@pytest.mark.slow
def test_a_class_in_the_current_folder_is_found_by_a_configuration(shell, own, tmp_path):
    done = shell("fit", "--config", "own.yaml", "--print_config", cwd=own)
    assert done.returncode == 0 and "outcome.OutcomeReward" in done.stdout, done.stderr
    done = shell("fit", "--config", own / "own.yaml", "--print_config", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    advice = "No module named 'outcome'; install it or, if it is a module of your own, run the command in its folder or"
    assert advice in done.stderr


@pytest.mark.slow
def test_a_saved_component_of_a_class_in_the_current_folder_opens_with_trust(shell, own, make_data):
    command = ("score", "--model", "model", "--data", make_data, "--out", "scores")
    done = shell(*command, cwd=own)
    assert done.returncode == 2 and "outcome.OutcomeReward, which is not part of guerdon" in done.stderr
    assert "Give --trust if you know where the folder comes from" in done.stderr and "trust=True" not in done.stderr
    assert not (own / "__pycache__").exists()  # nothing of it was imported
    done = shell(*command, "--trust", cwd=own)
    assert done.returncode == 0 and "3 of 3 episodes scored" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_file_in_the_current_folder_hides_no_installed_module(shell, own):
    for name in ("yaml", "torch", "statistics", "datasets"):
        (own / f"{name}.py").write_text("raise SystemExit('hidden')\n")
    done = shell("fit", "--config", "own.yaml", "--print_config", cwd=own)
    assert done.returncode == 0 and "hidden" not in done.stderr, done.stderr


def test_commands_that_import_no_class_by_name_leave_the_path_alone(tmp_path, monkeypatch, capsys):
    import guerdon.commands.inspecting
    import guerdon.commands.score

    seen = []
    for module in (guerdon.commands.inspecting, guerdon.commands.score):
        monkeypatch.setattr(module, "run", lambda options, rest: seen.append(str(tmp_path) in sys.path) or 0)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    score = ["score", "--model", "m", "--data", "d", "--out", "o"]
    assert [main(a) for a in (["inspect", "."], score, [*score, "--trust"])] == [0, 0, 0]
    assert seen == [False, False, True] and sys.path == before


def test_which_commands_accept_overrides():
    parser = build_parser("0")
    for arguments, accepts in ((["fit"], True), (["labels"], True), (["inspect", "x"], False), (["demo"], False)):
        options, rest = parser.parse_known_args([*arguments, "--data.path", "y"])
        assert options.overrides is accepts and rest[-2:] == ["--data.path", "y"]
