"""Components saved by version 0.1, which named classes by their modules, open and estimate what they did.

`layout_0_1/` holds folders that version wrote, and what it estimated on `batch.safetensors`.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import guerdon
from guerdon import Critic, Policy, RewardModel, Sampled, TrajectoryBatch, load_component
from guerdon.core.hub import class_path, component_hash, read_spec
from guerdon.core.moved import MOVED, first_names, identity_path, public_path, renew

FOLDER = Path(__file__).with_name("layout_0_1")
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
OLD_NAMES = [f"guerdon.{module}.{name}" for module, names in MOVED.items() for name in names]
RESTRUCTURED = {
    *("progress", "progress_pixels", "success", "milestones", "oracle", "ensemble", "sum", "reward_to_go"),
    *("action_critic", "transformer_critic", "iql", "best_of", "monte_carlo", "action_advantage", "surrogate"),
}
"""Components whose constructors take objects or further arguments now: saving them again writes other arguments."""


@pytest.fixture(scope="module")
def batch() -> TrajectoryBatch:
    with safe_open(FOLDER / "batch.safetensors", "pt") as file:
        held = {key: file.get_tensor(key) for key in file.keys()}
        instructions = tuple(json.loads(file.metadata()["instructions"]))
    return TrajectoryBatch(
        state=held["state"],
        actions=held["actions"],
        mask=held["mask"],
        end=held["end"],
        instructions=instructions,
        frames={"front": Sampled(values=held["frames"], step=held["frame_step"])},
    )


class Still:
    """Proposes to stand still."""

    version = 0

    def __call__(self, batch, rows, steps, n):
        return torch.zeros(n, len(rows), 2, 2)


def estimates(component, batch):
    """What the component makes of the batch, under the name it has in expected.json; None where nothing is recorded."""
    with torch.no_grad():
        if isinstance(component, RewardModel):
            return "rewards", component(batch).rewards
        if isinstance(component, Critic):
            return "v", component(batch, Still()).v
        if isinstance(component, Policy):
            point = batch.observe(torch.tensor([0, 1]), torch.tensor([0, 1]))
            return "chunk", component.act(point, deterministic=True).chunk
    return None, None


@pytest.mark.parametrize("old", OLD_NAMES)
def test_every_old_name_leads_to_something_public(old):
    (new,), found = renew([old])
    assert found == [old]
    assert new == f"guerdon.{old.rpartition('.')[2]}"
    assert getattr(guerdon, new.rpartition(".")[2]).__name__ == old.rpartition(".")[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_component_of_version_0_1_opens_with_one_warning_and_estimates_the_same(name, batch, tmp_path):
    with pytest.warns(DeprecationWarning, match="names guerdon.*as version 0.1 did; it still opens") as seen:
        component: Any = load_component(FOLDER / name)
    assert len(seen) == 1
    recorded = EXPECTED[name].get("rewards") or EXPECTED[name].get("v") or EXPECTED[name].get("chunk")
    if recorded is not None:
        kind, got = estimates(component, batch)
        torch.testing.assert_close(got, torch.tensor(EXPECTED[name][kind]), rtol=1e-5, atol=1e-6)
    component.save_pretrained(tmp_path / "again")
    assert "guerdon." in json.dumps(read_spec(tmp_path / "again"))
    assert renew(read_spec(tmp_path / "again"))[1] == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_component(tmp_path / "again")
    if recorded is not None:
        torch.testing.assert_close(estimates(again, batch)[1], got, rtol=0, atol=0)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_hash_of_an_old_folder_is_what_it_was(name):
    """Finished score files name the model by it."""
    assert component_hash(FOLDER / name) == EXPECTED[name]["hash"]


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - RESTRUCTURED))
def test_saving_again_keeps_the_hash(name, tmp_path):
    with pytest.warns(DeprecationWarning):
        component: Any = load_component(FOLDER / name)
        component.save_pretrained(tmp_path / "again")
    assert component_hash(tmp_path / "again") == EXPECTED[name]["hash"]


def test_public_classes_are_named_by_the_root_and_others_by_their_module():
    assert class_path(guerdon.ProgressReward) == "guerdon.ProgressReward"
    assert identity_path(guerdon.ProgressReward) == "guerdon.rewards.progress.ProgressReward"
    local = type("ProgressReward", (), {"__module__": "elsewhere"})
    assert public_path(local) == identity_path(local) == "elsewhere.ProgressReward"


def test_first_names_change_class_paths_alone():
    arguments = {"rewards": [{"class_path": "guerdon.RecordedReward"}], "note": "guerdon.Sum"}
    value = {"class_path": "guerdon.Sum", "init_args": arguments}
    assert first_names(value) == {
        "class_path": "guerdon.rewards.combine.Sum",
        "init_args": {"rewards": [{"class_path": "guerdon.rewards.recorded.RecordedReward"}], "note": "guerdon.Sum"},
    }


def test_a_class_that_never_existed_is_named_with_the_nearest(tmp_path):
    guerdon.RecordedReward().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "component.json"
    file.write_text(file.read_text().replace("guerdon.RecordedReward", "guerdon.rewards.progress.ProgresReward"))
    with pytest.raises(ValueError, match=r"cannot find guerdon.*ProgresReward; did you mean ProgressReward"):
        load_component(tmp_path / "model")
