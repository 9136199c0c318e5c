"""``guerdon evaluate`` of a reward model: controls beside its metrics, a JSON file, and no simulator."""

import json
import subprocess
import sys

import pytest

from guerdon.cli import main
from guerdon.core.hub import save_component
from guerdon.policies.gaussian import GaussianPolicy

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]


def test_it_prints_the_controls_and_writes_json(here, tmp_path, capsys):
    command = ["evaluate", "--model", str(here / "run"), "--data", str(here / "held"), "--json", "out/figures.json"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "clock t/T" in shown and "played in reverse" in shown
    found = json.loads((tmp_path / "out/figures.json").read_text())
    assert found["counts"]["episodes"] == 6 and found["model"]["hash"]
    assert found["figures"]["clock"]["value_order_correlation"]["value"] == pytest.approx(1.0)
    assert found["figures"]["model"]["instruction_accuracy"]["value"] is None  # one task: undefined, not ½
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["figures.json"]


def test_several_data_sets_are_evaluated_as_one(here, capsys):
    both = ["--data", str(here / "held"), "--also", str(here / "train")]
    assert main(["evaluate", "--model", str(here / "run"), *both, "--json", "f.json", "--confusion", "0"]) == 0
    with open("f.json") as file:
        assert json.load(file)["counts"]["episodes"] == 14


@pytest.mark.slow
def test_no_simulator_environment_or_policy_is_imported(place, tmp_path):
    arguments = ["evaluate", "--model", str(place / "run/model"), "--data", str(place / "held"), "--confusion", "0"]
    code = (
        "import sys; from guerdon.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        "rooms = ('guerdon.envs', 'guerdon.policies')\n"
        "found = [m for m in sys.modules if m == 'mujoco' or m.startswith('mujoco.')\n"
        "         or any(m == room or m.startswith(room + '.') for room in rooms)]\n"
        "assert not found, found\n"
        "assert 'guerdon.evaluation.dataset' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "clock t/T" in done.stdout


def test_a_model_of_another_kind_is_refused(here, error_line):
    save_component(GaussianPolicy(state_size=12, action_size=2), "policy")
    assert main(["evaluate", "--model", "policy", "--data", str(here / "held")]) == 2
    assert "expected a reward model" in error_line()


@pytest.mark.parametrize(
    ("option", "flag"),
    [("--policy p", "--policy"), ("--failure-cost 3", "--failure-cost"), ("--terminating success", "--terminating")],
)
def test_options_of_critics_are_refused_for_a_reward_model(refused, option, flag):
    refused(f"evaluate --model {{place}}/run --data {{place}}/held {option}", f"{flag} is for critics")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("evaluate --model {place}/run/model --data {place}/run", "no data set we read"),
        ("evaluate --model {place}/held --data {place}/held", "component.json"),
        ("evaluate --model {place}/run/model --data {place}/held --split test", "it has eval"),
        ("evaluate --model {place}/run/model --data {place}/held --device tpu9", "tpu9"),
        ("evaluate --model {place}/run/model --data {place}/held --json {place}/tiny.yaml/f", "choose another place"),
        ("evaluate --model {place}/run/model --data {place}/held --batch-size 0", "at least one episode"),
        ("evaluate --model {place}/run/model --data {place}/held --nonsense", "--nonsense"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(refused, command, says):
    refused(command, says)
