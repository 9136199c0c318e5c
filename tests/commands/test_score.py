"""``guerdon score``: what it prints of a model that knows, of one that abstains, and of a run that goes on."""

import json

import numpy as np
import pytest

from guerdon.backbones.recorded_chat import RecordedChat
from guerdon.cli import main
from guerdon.commands.score import lines
from guerdon.datasets.episodes import ArrayFrames, BadEpisodeError, Episode
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.rewards.zero_shot.frame_order import ShuffledFrames
from guerdon.scoring.dataset import ScoringReport
from guerdon.scoring.scores import read_scores

pytestmark = pytest.mark.xdist_group("cli")


def without_bar(capsys):
    """What was printed, without the progress bar."""
    return [line for line in capsys.readouterr().out.splitlines() if line.strip() and "scoring" not in line]


def test_it_says_how_much_is_known_and_why_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with LeRobotWriter(tmp_path / "data", fps=10) as writer:
        for number in range(2):
            frames = ArrayFrames(values=np.zeros((4, 3, 16, 16), np.uint8), step=np.arange(4))
            writer.add(
                Episode(
                    index=number,
                    state=np.full((4, 1), number, np.float32),
                    actions=np.zeros((3, 1), np.float32),
                    instruction="reach",
                    fps=10.0,
                    frames={"front": frames},
                )
            )
    line = {"name": "someone", "kind": "reply", "key": "of another prompt", "text": "Yes", "problem": ""}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
    chat = RecordedChat("answers.jsonl", missing="problem")
    ShuffledFrames(chat, ["front"]).save_pretrained(tmp_path / "model")
    assert main("score --model model --data data --out scores".split()) == 0
    wanted = [
        "2 of 2 episodes scored",
        "0 of 8 observations have an estimate",
        "  RecordedChat.failures 2: not recorded",
        "  ShuffledFrames.abstained 8: no answer: not recorded",
        "scores/scores.parquet",
    ]
    said = without_bar(capsys)
    assert said[:2] == wanted[:2] and sorted(said) == sorted(wanted)


def test_of_a_model_that_knows_it_says_so_and_nothing_else(here, capsys):
    command = ["score", "--model", str(here / "run/model"), "--data", str(here / "held"), "--out", "s"]
    assert main(command) == 0
    first, second, last = without_bar(capsys)
    count = len(read_scores("s").table)
    assert first == "6 of 6 episodes scored" and second == f"{count} of {count} observations have an estimate"
    assert last == "s/scores.parquet"
    assert main(command) == 0
    assert without_bar(capsys)[0] == "6 of 6 episodes scored, 6 of them by an earlier run"


def test_a_report_in_lines(tmp_path):
    report = ScoringReport(
        path=tmp_path / "scores.parquet",
        episodes=5,
        bad=(BadEpisodeError(3, "video", "there is no such file"),),
        resumed=2,
        observations=40,
        estimated=30,
        counters={"A.failures": {"timeout": 2, "refusal": 1}},
    )
    assert lines(report) == [
        "4 of 5 episodes scored, 2 of them by an earlier run",
        "30 of 40 observations have an estimate",
        "  A.failures 2: timeout",
        "  A.failures 1: refusal",
        "  episode 3 not scored, video: there is no such file",
        str(tmp_path / "scores.parquet"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("score --model {place}/run/model --data nowhere --out s", "nowhere"),
        ("score --model nowhere --data {place}/held --out s", "nowhere"),
        ("score --model {place}/run/model --data {place}/held --out {place}/tiny.yaml/s", "choose another place"),
        ("score --model {place}/run/model --data {place}/held --out s --batch-size 0", "--batch-size"),
        ("score --model {place}/run/model --data {place}/held --out s --terminating won", "--terminating: 'won' is no"),
        ("score --model {place}/run/model --data {place}/train --out {place}/scores", "holds scores of another run"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(refused, command, says):
    refused(command, says)


def test_scores_of_another_run_are_replaced_with_a_flag(here, error_line, capsys):
    command = ["score", "--model", str(here / "run/model"), "--out", "s", "--data"]
    assert main([*command, str(here / "held")]) == 0
    capsys.readouterr()
    assert main([*command, str(here / "train")]) == 2
    assert "choose another folder, or give --overwrite to replace them" in error_line()
    assert main([*command, str(here / "train"), "--overwrite"]) == 0
    assert "8 of 8 episodes scored\n" in capsys.readouterr().out
