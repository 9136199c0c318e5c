"""``guerdon collect``: a data set of the quality that was asked for, or one clear line."""

import pytest
import torch

from guerdon.cli import main
from guerdon.commands.collect import parse_quality
from guerdon.core.hub import save_component
from guerdon.datasets.opening import open_dataset
from guerdon.policies.gaussian import GaussianPolicy

pytestmark = pytest.mark.xdist_group("cli")


def test_the_episodes_are_those_that_were_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = "collect --env mujoco/reach --episodes 4 --quality expert=0.5,random=0.5 --split eval --horizon 9"
    assert main([*command.split(), "--seed", "3", "--states-only", "--out", "a"]) == 0
    assert "4 episodes" in capsys.readouterr().out
    dataset = open_dataset("a")
    summaries = [dataset.summary(i) for i in range(len(dataset))]
    assert sorted(s.quality for s in summaries) == ["expert", "expert", "random", "random"]
    assert {s.split for s in summaries} == {"eval"} and max(s.steps for s in summaries) == 9 and not dataset.cameras
    assert main([*command.split(), "--seed", "3", "--states-only", "--out", "b"]) == 0
    assert (open_dataset("b")[0].state == dataset[0].state).all()


def test_the_noise_of_noisy_experts_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "collect --env mujoco/reach --episodes 1 --quality noisy --horizon 9 --states-only"
    for name, noise in (("own", ()), ("half", ("--noise", "0.5")), ("loud", ("--noise", "1.5"))):
        assert main([*command.split(), *noise, "--out", name]) == 0
    own, half, loud = (open_dataset(name)[0].actions for name in ("own", "half", "loud"))
    assert (own == half).all() and not (own[: len(loud)] == loud[: len(own)]).all()


def test_a_quality_is_a_name_or_shares():
    assert parse_quality("mixed") == "mixed"
    assert parse_quality("expert=0.5, random=0.25,noisy=.25") == {"expert": 0.5, "random": 0.25, "noisy": 0.25}
    with pytest.raises(ValueError, match="--quality expert=lots: expected shares such as expert="):
        parse_quality("expert=lots")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("collect --env mujoco/reach", "--out"),
        ("collect --env mujoco/nothing --out d", "mujoco/nothing"),
        ("collect --env mujoco/reach --out d --episodes 0", "at least one episode"),
        ("collect --env mujoco/reach --out d --quality perfect", "perfect"),
        ("collect --env mujoco/reach --out d --quality expert=lots", "expected shares"),
        ("collect --env mujoco/reach --out d --noise lots", "expected a number of at least 0, got lots"),
        ("collect --env mujoco/reach --out d --noise -1", "expected a number of at least 0, got -1"),
        ("collect --env gymnasium/Pendulum-v1 --out d", "success="),
        ("collect --env gymnasium/CartPole-v1 --out d", "continuous actions"),
        ("collect --env gymnasium/FetchReech-v4 --out d", "gymnasium/FetchReach-v4"),
        ("collect --env nowhere:Task --out d", "no module nowhere"),
        ("collect --env mujoco/reach --out {place}/held", "held"),
        ("collect --env mujoco/reach --out {place}/tiny.yaml/d", "tiny.yaml"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(refused, command, says):
    refused(command, says)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Folder of a saved policy that was not trained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("policy") / "model"
    save_component(GaussianPolicy(12, 3, horizon=2, execute=2, hidden=(8,)), folder)
    return folder


def test_a_policy_collects_its_own_logs(tmp_path, monkeypatch, capsys, policy):
    monkeypatch.chdir(tmp_path)
    command = ["collect", "--env", "mujoco/reach", "--episodes", "3", "--horizon", "6", "--states-only"]
    command += ["--policy", str(policy)]
    for name, more in (("a", []), ("b", ["--sampled"]), ("c", ["--deterministic", "--split", "eval"])):
        assert main([*command, *more, "--out", name]) == 0
        assert "policy      3 episodes" in capsys.readouterr().out
    sampled, again, likely = (open_dataset(name) for name in "abc")
    assert {sampled.summary(i).quality for i in range(3)} == {"policy"}
    assert all((sampled[i].state == again[i].state).all() for i in range(3)), "a policy samples unless told otherwise"
    assert "log_prob" in sampled[0].recorded and "log_prob" not in likely[0].recorded
    assert likely.summary(0).split == "eval"
    assert main([*command, "--quality", "policy=0.5,expert=0.5", "--out", "d"]) == 0
    assert {open_dataset("d").summary(i).quality for i in range(3)} == {"policy", "expert"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--quality policy", "quality 'policy' needs a policy that acts: name it with --policy"),
        ("--deterministic", "name it with --policy DIR"),
        ("--policy nowhere", "nowhere"),
        ("--policy {policy} --env metaworld/push-v3", "has states of width 39 and actions of width 4, the policy "),
    ],
)
def test_a_policy_that_cannot_act_is_one_line(tmp_path, monkeypatch, error_line, policy, more, says):
    monkeypatch.chdir(tmp_path)
    command = f"collect --env mujoco/reach --states-only --out x {more}".format(policy=policy)
    assert main(command.split()) == 2
    assert says in error_line()
    assert list(tmp_path.iterdir()) == []
