"""Spot checks draw episodes, write them, and put the labels where they belong."""

import json
import math
from dataclasses import replace

import pytest
import torch

from guerdon.evaluation.watch.metrics import EpisodeRecord
from guerdon.evaluation.watch.questions import SpotChecks, draw_episodes

from .watched_runs import rollout

SCORES = [0.9, 0.1, 0.52, 0.8, math.nan, 0.45]


def record(name, score=0.5, success=math.nan, drawn=""):
    return EpisodeRecord(name=name, learned=0.0, score=score, success=success, recorded=math.nan, drawn=drawn)


RECORDS = [record(str(i), score) for i, score in enumerate(SCORES)]


def test_doubtful_episodes_are_those_nearest_to_the_threshold():
    def draw(ask_random, ask_doubtful, threshold=0.5):
        return draw_episodes(RECORDS, ask_random, ask_doubtful, threshold, torch.Generator().manual_seed(0))

    assert draw(0, 2) == {2: "doubtful", 5: "doubtful"}
    assert draw(0, 1, threshold=0.85) == {0: "doubtful"} or draw(0, 1, threshold=0.85) == {3: "doubtful"}
    assert draw(0, 9).keys() == {0, 1, 2, 3, 5}, "without a score there is no doubt"
    assert draw(9, 9) == dict.fromkeys(draw(9, 0), "random") and len(draw(9, 0)) == 6
    assert draw(0, 0) == {}
    mixed = draw(2, 2)
    left = [i for i in (2, 5, 3, 0, 1) if mixed.get(i) != "random"]
    assert sorted(mixed.values()) == ["doubtful", "doubtful", "random", "random"]
    assert {i for i, why in mixed.items() if why == "doubtful"} == set(left[:2])


@pytest.mark.slow
def test_random_draws_are_fair_and_depend_on_seed_rollout_and_process(tmp_path):
    drawn = [draw_episodes(RECORDS, 2, 0, 0.5, torch.Generator().manual_seed(seed)) for seed in range(300)]
    counts = torch.tensor([sum(i in d for d in drawn) for i in range(6)])
    assert counts.min() > 70 and counts.max() < 130, "each of six is drawn in a third of 300"

    def asked(seed, number, rank):
        checks = SpotChecks(ask_random=3, seed=seed)
        checks.open(tmp_path)
        return tuple(r.name for r in checks.ask(rollout([0.1] * 6), RECORDS, 0.5, number, rank) if r.drawn)

    for place in range(3):  # seed, rollout, process
        drawn = [asked(*(value if place == i else 0 for i in range(3))) for value in range(8)]
        assert len(set(drawn)) > 4 and drawn[0] == asked(0, 0, 0)


def test_drawn_episodes_are_written_and_listed(tmp_path):
    checks = SpotChecks(ask_random=1, ask_doubtful=1)
    checks.open(tmp_path)
    found = checks.ask(rollout(SCORES[:4]), RECORDS[:4], 0.5, number=7)
    assert [replace(r, drawn="") for r in found] == RECORDS[:4]
    drawn = {r.name: r.drawn for r in found if r.drawn}
    assert sorted(drawn.values()) == ["doubtful", "random"]
    assert {p.stem for p in (tmp_path / "episodes").iterdir()} == set(drawn)
    checks.write([*found, record("4", math.nan, drawn="random")])
    checks.write(found)
    listed = [json.loads(line) for line in (tmp_path / "to_label.jsonl").read_text().splitlines()]
    assert {line["episode"]: line["drawn"] for line in listed} == drawn | {"4": "random"} and len(listed) == 3
    by_name = {line["episode"]: line for line in listed}
    for name in drawn:
        assert by_name[name]["score"] == SCORES[int(name)] and (tmp_path / by_name[name]["look_at"]).is_file()
    assert by_name["4"]["score"] is None


def test_nobody_is_asked_by_default(tmp_path):
    checks = SpotChecks()
    checks.open(tmp_path)
    assert checks.ask(rollout(SCORES[:4]), RECORDS[:4], 0.5, 0) == RECORDS[:4]
    checks.write(RECORDS)
    assert not list(tmp_path.iterdir()) and checks.read() == {}


def test_labels_are_read_from_the_folder_or_the_file_given(tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"episode": "a", "success": 1}\n')
    (tmp_path / "mine.jsonl").write_text('{"episode": "b", "success": 0}\n')
    for checks, labels in ((SpotChecks(), {"a": 1}), (SpotChecks(labels=str(tmp_path / "mine.jsonl")), {"b": 0})):
        checks.open(tmp_path)
        assert checks.read() == labels


def test_labels_replace_outcomes_and_bring_old_episodes_back():
    checks = SpotChecks()
    checks.remember([record("old", drawn="random"), record("doubted", drawn="doubtful"), record("not drawn")], {})
    now = [record("a", success=1.0, drawn="doubtful"), record("b", drawn="random"), record("c")]
    labels = {"old": 1, "a": 0, "c": 1, "not drawn": 1, "nobody's": 1}
    found = {r.name: r for r in checks.labelled(now, labels)}
    assert list(found) == ["a", "b", "c", "old"]
    assert (found["a"].success, found["a"].drawn) == (0, ""), "its outcome was known: it counts like any other"
    assert math.isnan(found["b"].success) and found["b"].drawn == "random"
    assert (found["c"].success, found["old"].success, found["old"].drawn) == (1, 1, "random")
    assert checks.metrics(labels) == {"labels": 1.0, "labels_unmatched": 4.0}
    checks.forget()
    assert checks.metrics(labels) == {"labels": 0.0, "labels_unmatched": 5.0}


def test_beyond_two_hundred_the_oldest_unlabelled_episodes_are_forgotten():
    checks = SpotChecks()
    names = [f"{i:06d}-0-0" for i in range(250)]
    for name in names:
        checks.remember([record(name, drawn="random")], {names[0], names[3]})
    kept = [r["name"] for r in checks.state_dict()["asked"]]
    assert kept == [names[0], names[3], *names[52:]]


@pytest.mark.slow
def test_labelled_failures_that_fooled_the_reward_are_loaded(tmp_path):
    checks = SpotChecks(ask_random=4)
    checks.open(tmp_path)
    records = [record(name, score) for name, score in (("a", 0.9), ("b", 0.8), ("c", 0.1), ("d", 0.7))]
    checks.remember(checks.ask(rollout([0.9, 0.8, 0.1, 0.7]), records, 0.5, 0), {})
    found = checks.false_positives({"a": 0, "b": 1, "c": 0}, 0.5)
    assert list(found) == ["a"] and found["a"].state[0, -1, 0] == pytest.approx(0.9)
    assert checks.false_positives({"a": 0, "d": 0}, 0.5, known={"a"}).keys() == {"d"}
    assert checks.false_positives({"a": 0}, 0.95) == {}


def test_what_was_asked_goes_on_from_its_state():
    checks, again = SpotChecks(), SpotChecks()
    checks.remember([record("a", drawn="random")], {})
    again.load_state_dict({**checks.state_dict(), "of something else": 1})
    assert again.state_dict() == checks.state_dict() and again.metrics({"a"})["labels"] == 1


def test_advice_names_the_files_or_the_arguments(tmp_path):
    checks = SpotChecks(ask_random=1, labels="mine.jsonl")
    checks.open(tmp_path)
    assert checks.advice == f"label the episodes of {tmp_path / 'to_label.jsonl'} in mine.jsonl"
    assert SpotChecks(ask_doubtful=1).advice == "give HackingWatch an outcome, or ask a person: ask_random"


@pytest.mark.parametrize("options", [{"ask_random": -1}, {"ask_doubtful": -1}])
def test_arguments_that_make_no_sense(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} -1"):
        SpotChecks(**options)
