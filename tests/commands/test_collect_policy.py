"""``guerdon collect --policy``: logs of a saved policy, or one clear line."""

import pytest
import torch

from guerdon.cli import main
from guerdon.core.hub import save_component
from guerdon.datasets.opening import open_dataset
from guerdon.policies.gaussian import GaussianPolicy

pytestmark = pytest.mark.xdist_group("cli")


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
        ("--encoder x", "name it with --policy DIR"),
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
