"""The file of the watch: a line a rollout, of one run only."""

import json
import math

import lightning
import pytest

from guerdon.evaluation.watch.watch_log import WatchLog, log_metrics


def lines(log):
    return [json.loads(line) for line in log.file.read_text().splitlines()]


def test_a_line_holds_metrics_and_the_names_of_those_that_are_undefined(tmp_path):
    log = WatchLog(tmp_path / "run")
    log.open(0)
    log.append(0, {"failures": 2.0, "drift": math.nan}, (), False)
    log.append(2, {"failures": 3.0, "drift": 0.5}, ("drift",), True)
    assert log.file == tmp_path / "run" / "watch.jsonl"
    first, second = lines(log)
    assert list(first.items()) == [
        ("rollout", 0),
        ("failures", 2.0),
        ("drift", None),
        ("undefined", ["drift"]),
        ("alarms", []),
        ("retrained", False),
    ]
    assert (second["rollout"], second["undefined"]) == (2, [])
    assert (second["alarms"], second["retrained"]) == (["drift"], True)


def test_lines_that_a_checkpoint_does_not_know_are_dropped(tmp_path):
    log = WatchLog(tmp_path)
    for number in range(4):
        log.append(number, {}, (), False)
    with log.file.open("a") as file:
        file.write('{"roll')  # a crash
    WatchLog(tmp_path).open(2)
    assert [line["rollout"] for line in lines(log)] == [0, 1]


def test_another_run_is_not_overwritten(tmp_path):
    WatchLog(tmp_path).append(0, {}, (), False)
    with pytest.raises(FileExistsError, match=r"watch\.jsonl holds the metrics of an earlier run: choose"):
        WatchLog(tmp_path).open(0)
    WatchLog(tmp_path / "other").open(3)  # resumed in another folder: there is nothing to drop


def test_names_in_the_logger():
    class Module(lightning.LightningModule):
        def log(self, name, value, **more):
            assert more == {"on_step": True, "on_epoch": False, "batch_size": 1}
            logged[name] = value

    logged = {}
    log_metrics(Module(), {"drift": 0.5, "tau": math.nan, "probe_frozen": 0.1, "seconds": 2.0}, ("drift",))
    assert math.isnan(logged.pop("watch_tau"))
    assert logged == {
        "watch_drift": 0.5,
        "probe_frozen": 0.1,
        "watch_seconds": 2.0,
        "watch_undefined": 1.0,
        "watch_alarms": 1.0,
    }
