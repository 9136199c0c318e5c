"""Components as folders: what is written comes back, and nothing foreign is run, overwritten or half-written."""

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from guerdon.backbones.language import HashedText
from guerdon.backbones.vision import ConvEncoder
from guerdon.core import hub
from guerdon.core.hub import component_hash, hash_component, load_component, read_spec, save_component
from guerdon.core.interfaces import Component
from guerdon.critics.action import ActionCritic
from guerdon.critics.networks import ChunkPerceptron
from guerdon.critics.value import ValueCritic
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import WeightedImitation
from guerdon.policies.proposer import PolicyProposer
from guerdon.policies.weights import Exponential
from guerdon.rewards.ensemble import EnsembleReward
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.recorded import RecordedReward
from guerdon.rewards.stages.rule_decomposer import RuleDecomposer


class Leaf(Component):
    """A layer, and whatever JSON can say."""

    def __init__(self, size: int = 2, note: object = None):
        super().__init__()
        self.layer, self.note = nn.Linear(size, size), note


class Backbone(Leaf):
    """Published: saved by name only."""

    frozen_reference = True

    def __init__(self, name: str = "some/encoder"):
        super().__init__(2)
        nn.init.constant_(self.layer.weight, 7.0)


class Tree(Component):
    """Components in arguments, lists and dictionaries."""

    left: Any
    right: Any
    many: Any
    named: Any

    def __init__(self, left, right=None, many=(), named=None):
        super().__init__()
        self.left, self.right = left, right
        self.many, self.named = nn.ModuleList(many), nn.ModuleDict(named or {})


class Sized(Component):
    """Is built when a data set names its width."""

    def __init__(self, state_size=None):
        super().__init__()
        self.state_size = state_size


class Outer:
    """Holds a class that cannot be named in an import."""

    class Inner(Leaf):
        """Nested."""


def reload(component, path) -> Any:
    save_component(component, path)
    return load_component(path, trust=True)


def same_weights(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


# --- round trips ----------------------------------------------------------------------------------------------------


def test_a_component_comes_back_with_arguments_weights_and_in_evaluation_mode(tmp_path):
    policy = GaussianPolicy(3, 2, horizon=4, execute=2, hidden=(5,), log_std=-2.0)
    policy.inputs.mean.fill_(0.25)
    policy.save_pretrained(tmp_path / "policy")
    other = load_component(tmp_path / "policy")
    assert isinstance(other, GaussianPolicy)
    assert not other.training
    assert other.init_args == policy.init_args
    assert same_weights(policy, other)


def test_components_in_arguments_lists_and_dictionaries_come_back(tmp_path):
    tree = Tree(Leaf(1), right=Tree(Leaf(2)), many=[Leaf(3), Leaf(4)], named={"a": Leaf(5), "b": Leaf(6)})
    other = reload(tree, tmp_path / "tree")
    assert isinstance(other, Tree)
    assert same_weights(tree, other)
    assert [other.left.layer.in_features, other.right.left.layer.in_features] == [1, 2]
    assert [m.layer.in_features for m in [*other.many, *other.named.values()]] == [3, 4, 5, 6]


def test_a_component_used_twice_is_one_again(tmp_path):
    shared = Leaf(2)
    other = reload(Tree(shared, right=Tree(shared), many=[Leaf(1), shared], named={"x": shared}), tmp_path / "tree")
    assert other.left is other.right.left is other.many[1] is other.named["x"]
    assert other.many[0] is not other.left
    spec = (tmp_path / "tree" / hub.SPEC).read_text()
    assert spec.count("same_as") == 3


def test_a_real_source_with_nested_parts_comes_back(tmp_path):
    potential = RecordedReward("p")
    source = RewardToGo(potential, ValueCritic(3, hidden=(4,)), potential=potential, gamma=0.9)
    source.save_pretrained(tmp_path / "source")
    other = RewardToGo.from_pretrained(tmp_path / "source")
    assert other.reward is other.potential
    assert (other.gamma, other.reward.key) == (0.9, "p")
    assert same_weights(source, other)


@pytest.mark.parametrize(
    "note",
    [None, True, 0, -1.5, 1e-30, "text Ω", [], [1, [2.5, "x"]], {"a": {"b": [None]}}, {}],
    ids=repr,
)
def test_json_values_come_back_equal(note, tmp_path):
    assert reload(Leaf(1, note), tmp_path / "leaf").note == note


def test_tuples_come_back_as_lists_and_paths_as_text(tmp_path):
    assert reload(Leaf(1, (1, (2, 3))), tmp_path / "leaf").note == [1, [2, 3]]
    assert reload(Leaf(1, Path("a") / "b"), tmp_path / "path").note == os.path.join("a", "b")


def test_a_frozen_reference_is_saved_by_name_only(tmp_path):
    tree = Tree(Backbone("some/encoder"), right=Leaf(2))
    with torch.no_grad():
        tree.left.layer.weight.fill_(1.0)  # an accident: a frozen backbone is what its name says
    other = reload(tree, tmp_path / "tree")
    assert torch.equal(other.left.layer.weight, torch.full((2, 2), 7.0))
    assert torch.equal(other.right.layer.weight, tree.right.layer.weight)
    held = hub.load_file(tmp_path / "tree" / hub.WEIGHTS)
    assert sorted(held) == ["right.layer.bias", "right.layer.weight"]
    assert sorted(hub.load_file(_saved(Backbone(), tmp_path / "alone") / hub.WEIGHTS)) == []


def _saved(component, path):
    save_component(component, path)
    return path


def test_no_pickle_and_nothing_else_is_in_the_folder(tmp_path):
    folder = _saved(Leaf(), tmp_path / "deep" / "leaf")
    assert sorted(p.name for p in folder.iterdir()) == [hub.SPEC, hub.WEIGHTS]
    assert [p.name for p in folder.parent.iterdir()] == ["leaf"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


# --- hashes ---------------------------------------------------------------------------------------------------------


def test_the_hash_is_of_content_alone(tmp_path):
    leaf = Leaf(2, {"b": 1, "a": 2})
    hashes = {component_hash(_saved(leaf, tmp_path / name)) for name in ("one", "two")}
    hashes.add(component_hash(_saved(load_component(tmp_path / "one", trust=True), tmp_path / "three")))
    assert len(hashes) == 1
    assert re.fullmatch("[0-9a-f]{16}", hashes.pop())


def test_the_hash_changes_with_a_weight_an_argument_and_the_class(tmp_path):
    leaf = Leaf(2)
    before = component_hash(_saved(leaf, tmp_path / "a"))
    with torch.no_grad():
        leaf.layer.bias[0] += 1e-6
    weight = component_hash(_saved(leaf, tmp_path / "b"))
    other = Leaf(2, note="x")
    other.load_state_dict(leaf.state_dict())
    argument = component_hash(_saved(other, tmp_path / "c"))
    spec = json.loads((tmp_path / "c" / hub.SPEC).read_text())
    spec["class_path"] += "2"
    (tmp_path / "c" / hub.SPEC).write_text(json.dumps(spec))
    assert len({before, weight, argument, component_hash(tmp_path / "c")}) == 4


def _shared():
    leaf = Leaf(2)
    return Tree(leaf, right=Tree(leaf), many=[Leaf(1), leaf], named={"x": leaf})


def _half():
    return Leaf(3).to(torch.bfloat16)


def _transposed():
    leaf = Leaf(3)
    leaf.layer.weight = nn.Parameter(torch.arange(9.0).reshape(3, 3).T)  # not contiguous
    return leaf


KINDS = {
    "a component with weights": lambda: Leaf(2, {"b": 1, "ä": [1e-30, None, True, (1, 2)]}),
    "no weights": RecordedReward,
    "a shared part": _shared,
    "half precision": _half,
    "weights in another order in memory": _transposed,
    "a frozen reference": lambda: Backbone("some/encoder"),
    "a frozen reference inside": lambda: Tree(Backbone("some/encoder"), right=Leaf(2)),
    "a reward model": lambda: ProgressReward(state_size=3, observer=ObservationEncoder(width=8, layers=1, heads=2)),
    "a wrapped reward model": lambda: EnsembleReward(
        ProgressReward(state_size=3, observer=ObservationEncoder(width=8, layers=0)), 2
    ),
    "a critic": lambda: ActionCritic(ChunkPerceptron(3, 2, horizon=2, hidden=(8,))),
    "a policy": lambda: GaussianPolicy(3, 2, hidden=(4,)),
    "an advantage source": lambda: RewardToGo(RecordedReward("p"), ValueCritic(3, hidden=(4,))),
    "an objective": lambda: WeightedImitation(Exponential(kappa=1.0)),
    "a proposer": lambda: PolicyProposer(GaussianPolicy(3, 2, hidden=(4,))),
    "a decomposer": RuleDecomposer,
    "an encoder": lambda: ConvEncoder(width=8, channels=(4,), size=8),
    "a text encoder": lambda: HashedText(8, 16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_of_a_component_is_that_of_its_folder(kind, tmp_path):
    component = KINDS[kind]()
    before = hash_component(component)
    assert list(tmp_path.iterdir()) == []
    folder = _saved(component, tmp_path / "saved")
    assert before == component_hash(folder) == hash_component(component)


def test_hashing_writes_no_file(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a file was written")

    monkeypatch.setattr(hub, "save_file", refused)
    monkeypatch.setattr(hub.tempfile, "mkdtemp", refused)
    leaf = Leaf(2)
    before = hash_component(leaf)
    with torch.no_grad():
        leaf.layer.bias[0] += 1e-3
    assert hash_component(leaf) != before


def test_what_cannot_be_saved_has_no_hash():
    with pytest.raises(TypeError, match="expected a guerdon component, got a Linear"):
        hash_component(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="argument 'note' is a set"):
        hash_component(Leaf(1, {1}))
    with pytest.raises(ValueError, match="Sized is not built yet"):
        hash_component(Sized())


# --- what cannot be saved -------------------------------------------------------------------------------------------

ODD = {
    "a set": ({1}, TypeError, "argument 'note' is a set"),
    "deep inside": ({"a": [0, {"b": object()}]}, TypeError, r"argument 'note\.a\.1\.b' is a object"),
    "a tensor": (torch.zeros(1), TypeError, "argument 'note' is a Tensor"),
    "a plain module": (nn.Linear(1, 1), TypeError, "argument 'note' is a Linear"),
    "nan": (float("nan"), ValueError, "argument 'note' is nan"),
    "infinity": ([1.0, float("inf")], ValueError, r"argument 'note\.1' is inf"),
    "numbers as keys": ({1: "x"}, TypeError, "argument 'note'.*text as keys.*1"),
    "a dictionary that looks like a component": (
        {"class_path": "os.system", "init_args": {}},
        TypeError,
        "argument 'note'.*class_path",
    ),
    "a dictionary that looks like a reference": ({"same_as": "left"}, TypeError, "argument 'note'.*same_as"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_argument_that_would_not_come_back_is_refused_by_name(name, tmp_path):
    note, error, message = ODD[name]
    with pytest.raises(error, match=message):
        save_component(Tree(Leaf(1), right=None) if note is None else Leaf(1, note), tmp_path / "leaf")
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_cannot_be_imported_is_refused(tmp_path):
    class Local(Leaf):
        pass

    for component, where in ((Local(), "inside a function"), (Outer.Inner(), "inside a class")):
        with pytest.raises(ValueError, match=f"{where}: move it to the top of a module"):
            save_component(component, tmp_path / "leaf")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_module_is_no_component(tmp_path):
    with pytest.raises(TypeError, match="expected a guerdon component, got a Linear"):
        save_component(nn.Linear(1, 1), tmp_path / "x")


# --- where it cannot be saved ---------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write .*leaf: .*choose a folder that can be written"):
        save_component(Leaf(), tmp_path / "file" / "leaf")
    with pytest.raises(FileExistsError, match="is a file: choose a folder"):
        save_component(Leaf(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("beside", [False, True], ids=["instead of a component", "beside a component"])
def test_what_is_not_ours_is_never_overwritten(beside, tmp_path):
    folder = tmp_path / "thesis"
    if beside:
        save_component(Leaf(), folder)
    else:
        folder.mkdir()
    (folder / "chapter.txt").write_text("three years of work")
    with pytest.raises(FileExistsError, match="choose another folder"):
        save_component(Leaf(), folder)
    assert (folder / "chapter.txt").read_text() == "three years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


def test_an_empty_folder_and_an_older_component_are_replaced(tmp_path, monkeypatch):
    (tmp_path / "leaf").mkdir()
    assert reload(Leaf(1), tmp_path / "leaf").layer.in_features == 1
    assert reload(Leaf(3), tmp_path / "leaf").layer.in_features == 3
    monkeypatch.chdir(tmp_path)
    assert reload(Leaf(2), "leaf").layer.in_features == 2
    assert [p.name for p in tmp_path.iterdir()] == ["leaf"]


def test_the_working_directory_is_not_replaced_under_its_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="working directory"):
        save_component(Leaf(), ".")


def test_a_failed_replacement_leaves_the_old_component(tmp_path, monkeypatch):
    folder = _saved(Leaf(1), tmp_path / "leaf")
    before = component_hash(folder)
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append((source, target))
        if len(calls) == 2:  # the old folder was moved away, the new one is about to take its place
            raise OSError("no space left")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no space left"):
        save_component(Leaf(3), folder)
    assert len(calls) == 3
    assert component_hash(folder) == before
    assert isinstance(load_component(folder, trust=True), Leaf)
    assert [p.name for p in tmp_path.iterdir()] == ["leaf"]


def test_an_interrupted_save_leaves_the_old_component(tmp_path, monkeypatch):
    folder = _saved(Leaf(1), tmp_path / "leaf")
    before = component_hash(folder)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_component(Leaf(3), folder)
    assert component_hash(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["leaf"]


# --- what cannot be opened ------------------------------------------------------------------------------------------


def change(folder, **entries):
    spec = json.loads((folder / hub.SPEC).read_text())
    (folder / hub.SPEC).write_text(json.dumps({**spec, **entries}))


DAMAGED = {
    "cut weights": (
        lambda f: (f / hub.WEIGHTS).write_bytes((f / hub.WEIGHTS).read_bytes()[:-7]),
        ValueError,
        "cut short or was replaced",
    ),
    "no weights": (lambda f: (f / hub.WEIGHTS).unlink(), FileNotFoundError, "copy the whole folder"),
    "no description": (lambda f: (f / hub.SPEC).unlink(), FileNotFoundError, "holds no component.json"),
    "half a description": (
        lambda f: (f / hub.SPEC).write_text((f / hub.SPEC).read_text()[:40]),
        ValueError,
        "not valid JSON.*did not finish",
    ),
    "not text": (lambda f: (f / hub.SPEC).write_bytes(b"\xff\xfe\x00\x80"), ValueError, "not valid JSON"),
    "a list": (lambda f: (f / hub.SPEC).write_text("[1]"), ValueError, "not a component guerdon wrote"),
    "somebody else's JSON": (
        lambda f: (f / hub.SPEC).write_text('{"architectures": ["BertModel"]}'),
        ValueError,
        "not a component guerdon wrote",
    ),
    "a later format": (
        lambda f: change(f, format=3),
        ValueError,
        "has format 3, this version of guerdon reads 1 and 2",
    ),
    "a class that is gone": (
        lambda f: change(f, class_path="guerdon.policies.gaussian.Poisson"),
        ValueError,
        "cannot find guerdon.policies.gaussian.Poisson",
    ),
    "a module that is gone": (
        lambda f: change(f, class_path="guerdon.nowhere.Policy"),
        ValueError,
        "cannot find guerdon.nowhere.Policy",
    ),
    "a function": (lambda f: change(f, class_path="guerdon.core.hub.class_path"), ValueError, "is not a component"),
    "other arguments": (lambda f: change(f, init_args={"wings": 2}), ValueError, "does not take the saved arguments"),
    "another size": (
        lambda f: change(f, init_args={"state_size": 9, "action_size": 2, "hidden": [4]}),
        ValueError,
        r"differ, first 'inputs.mean': expected \(9,\), got \(3,\)",
    ),
    "more weights than the class has": (
        lambda f: change(f, init_args={"state_size": 3, "action_size": 2, "hidden": []}),
        ValueError,
        "weights do not fit GaussianPolicy",
    ),
    "a reference to nothing": (
        lambda f: change(f, init_args={"state_size": {"same_as": "critic"}}),
        ValueError,
        "argument 'state_size' is the same as 'critic', which is not there",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_folder_is_one_clear_error(name, tmp_path):
    damage, error, message = DAMAGED[name]
    folder = _saved(GaussianPolicy(3, 2, hidden=(4,)), tmp_path / "policy")
    damage(folder)
    with pytest.raises(error, match=message):
        load_component(folder)


def test_weights_that_are_no_safetensors_are_refused_even_if_their_hash_fits(tmp_path):
    folder = _saved(Leaf(), tmp_path / "leaf")
    (folder / hub.WEIGHTS).write_bytes(b"\x80\x04pickled")
    change(folder, weights_sha256=hub._sha256(folder / hub.WEIGHTS))
    with pytest.raises(ValueError, match="cannot be read"):
        load_component(folder, trust=True)


@pytest.mark.parametrize("name", ["missing", "runs/missing", "/nowhere/at/all", "two/slashes/here", "a b/c"])
def test_a_folder_that_is_not_there_is_one_clear_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{name} (holds no component.json|is no folder here)"):
        load_component(name)


def foreign(tmp_path, monkeypatch, nested):
    """A saved component whose class lives in a module that leaves a mark when it is imported."""
    mark = tmp_path / "mark"
    (tmp_path / "trojan.py").write_text(
        f"import pathlib\nfrom guerdon.core.interfaces import RewardModel\npathlib.Path({str(mark)!r}).touch()\n"
        "class Horse(RewardModel):\n    def __init__(self):\n        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trojan", raising=False)
    horse = {"class_path": "trojan.Horse", "init_args": {}}
    if nested:
        folder = _saved(RewardToGo(RecordedReward(), ValueCritic(1, hidden=())), tmp_path / "source")
        spec = read_spec(folder)
        change(folder, init_args={**spec["init_args"], "reward": horse})
    else:
        folder = _saved(RecordedReward(), tmp_path / "reward")
        change(folder, **horse)
    return folder, mark


@pytest.mark.parametrize("nested", [False, True])
def test_foreign_code_is_not_even_imported_unless_trusted(nested, tmp_path, monkeypatch):
    folder, mark = foreign(tmp_path, monkeypatch, nested)
    with pytest.raises(PermissionError, match=r"trojan\.Horse, which is not part of guerdon.*trust=True"):
        load_component(folder)
    assert not mark.exists()
    assert "trojan" not in sys.modules
    opened = load_component(folder, trust=True)
    assert mark.exists()
    assert type(opened.reward if nested else opened).__name__ == "Horse"


def test_a_name_that_merely_begins_like_ours_is_foreign(tmp_path):
    folder = _saved(RecordedReward(), tmp_path / "reward")
    change(folder, class_path="guerdonian.Horse")
    with pytest.raises(PermissionError, match="guerdonian"):
        load_component(folder)


def test_a_class_in_hand_is_trusted_its_parts_are_not(tmp_path):
    assert isinstance(Leaf.from_pretrained(_saved(Leaf(), tmp_path / "leaf")), Leaf)
    with pytest.raises(PermissionError, match="Leaf"):
        Tree.from_pretrained(_saved(Tree(Leaf()), tmp_path / "tree"))
