"""Checkpoints between rollouts: when they are written, and what they hold."""

from typing import Any

import lightning
import pytest
import torch

from guerdon.policies.rollouts.checkpoint import RolloutCheckpoint
from guerdon.policies.rollouts.data import RolloutData

from .test_data import Counting, Versioned, trainer


class Written(lightning.Callback):
    """Notes after which rollouts there is a new checkpoint, by what it holds."""

    def __init__(self, keep: RolloutCheckpoint) -> None:
        self.keep, self.found = keep, []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.note()

    def note(self) -> None:
        if self.keep.path is None:
            return
        made = torch.load(self.keep.path, weights_only=True)["RolloutData"]["ranks"][0]["rollouts_made"]
        if made not in self.found:
            self.found.append(made)


def run(tmp_path, epochs=3, rollouts=2, eval_contexts=0, **more):
    keep = RolloutCheckpoint(tmp_path, **more)
    written = Written(keep)
    data = RolloutData("mujoco/reach", steps=6, rollouts=rollouts, envs=2, horizon=4, eval_contexts=eval_contexts)
    module = Counting(Versioned())
    trainer(max_epochs=epochs, enable_checkpointing=True, callbacks=[keep, written]).fit(module, data)
    return keep, written, module


def test_rollouts_are_counted_over_epochs_and_the_end_is_kept(tmp_path):
    keep, written, module = run(tmp_path, every=4)
    assert written.found == [4]
    written.note()
    assert written.found == [4, 6]
    assert keep.path == tmp_path / "last.ckpt"
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"], "nothing half-written is left"


def test_every_rollout_is_kept_by_default_and_time_may_space_them(tmp_path):
    assert run(tmp_path / "all")[1].found == [1, 2, 3, 4, 5]
    assert run(tmp_path / "spaced", seconds=1e6)[1].found == [1]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".last.123-abc.part.ckpt").write_bytes(b"half")
    run(tmp_path, epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("more", [{"every": 0}, {"seconds": -1.0}])
def test_settings_that_make_no_sense(more):
    with pytest.raises(ValueError, match="expected at least 1 rollout, and no negative time"):
        RolloutCheckpoint(**more)
