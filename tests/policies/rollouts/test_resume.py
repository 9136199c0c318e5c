"""Runs that go on after an interruption: the same as without one, with real simulators and worker processes."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from guerdon.critics.value import ValueCritic
from guerdon.policies.advantages.group_score import GroupScore
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.loops.curriculum import Curriculum
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.rollouts.checkpoint import RolloutCheckpoint
from guerdon.policies.rollouts.data import RolloutData
from guerdon.policies.rollouts.groups import GroupRollouts
from guerdon.policies.rollouts.resume import from_plain, to_plain
from guerdon.rewards.recorded import RecordedReward

from .small_tasks import Noisy, contexts, corridor, generator
from .test_data import trainer

ROLLOUTS = 6


class Stop(lightning.Callback):
    """Ends the run after a number of rollouts, as a signal would; a negative number: in the validation after it."""

    def __init__(self, after: int) -> None:
        self.after, self.seen = after, 0

    def on_train_batch_start(self, trainer: Any, *more: Any) -> None:
        if self.seen == self.after:
            raise KeyboardInterrupt
        self.seen += 1

    def on_validation_batch_start(self, trainer: Any, *more: Any) -> None:
        if self.seen == -self.after:
            raise KeyboardInterrupt


class Noting(lightning.Callback):
    """Notes the batches, by what they hold."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.note(batch)

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.note(batch)

    def note(self, batch: Any) -> None:
        self.shown.append((batch.group.tolist(), batch.state.double().sum().item(), batch.weight.sum().item()))


def parts(kind: str, **more: Any) -> tuple[PolicyOptimizer, RolloutData]:
    torch.manual_seed(0)
    policy = GaussianPolicy(12, 3, hidden=(16,), horizon=2, execute=2)
    settings: dict[str, Any] = {"rollouts": ROLLOUTS, "envs": 3, "horizon": 9, "contexts": 6, "eval_contexts": 2}
    settings |= more
    if kind == "groups":
        module = PolicyOptimizer(policy, GroupScore(RecordedReward()), ClippedSurrogate(), passes=2, minibatch_size=16)
        groups = GroupRollouts(size=2, contexts=3, compare="score", curriculum=Curriculum(), skip_solved=True)
        return module, RolloutData("mujoco/reach", groups=groups, **settings)
    if kind == "curriculum":
        settings["curriculum"] = Curriculum("literal", window=3)
    source = RewardToGo(RecordedReward(), ValueCritic(12, hidden=(16,)))
    module = PolicyOptimizer(policy, source, ClippedSurrogate(), passes=2, minibatch_size=16)
    return module, RolloutData("mujoco/reach", steps=25, **settings)


def run(kind: str, folder: Path, callbacks: list[Any], resume: Path | None = None, **more: Any) -> PolicyOptimizer:
    module, data = parts(kind, **more)
    keep = RolloutCheckpoint(folder)
    train = trainer(
        max_epochs=1, enable_checkpointing=True, callbacks=[*reversed(callbacks), keep], val_check_interval=2
    )
    try:
        train.fit(module, data, ckpt_path=None if resume is None else str(resume), weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        pass
    return module


SETTINGS: list[Any] = [
    ("ppo", {}),
    ("ppo", {"spares": 2}),
    ("curriculum", {}),
    pytest.param("curriculum", {"workers": 2, "overlap": True}, marks=pytest.mark.slow),
    pytest.param("ppo", {"spares": 2, "workers": 2, "envs": 4}, marks=pytest.mark.slow),
    pytest.param("ppo", {"workers": 2}, marks=pytest.mark.slow),
    pytest.param("ppo", {"workers": 2, "overlap": True}, marks=pytest.mark.slow),
    ("groups", {}),
    pytest.param("groups", {"workers": 2}, marks=pytest.mark.slow),
]


@pytest.mark.filterwarnings("ignore:Detected KeyboardInterrupt:UserWarning")
@pytest.mark.parametrize(("kind", "more"), SETTINGS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, kind, more):
    whole = Noting()
    wanted = run(kind, tmp_path / "whole", [whole], **more)
    assert len(whole.shown) == ROLLOUTS + ROLLOUTS // 2
    # processes take seconds to start: with them one interruption must do, in a validation
    for after in (-2,) if "workers" in more else (1, -2, 4, -ROLLOUTS):
        before, rest = Noting(), Noting()
        folder = tmp_path / f"stopped_{after}"
        run(kind, folder, [before, Stop(after)], **more)
        found = run(kind, folder, [rest], resume=folder / "last.ckpt", **more)
        assert [*before.shown, *rest.shown] == whole.shown
        for name, value in wanted.state_dict().items():
            assert torch.equal(value, found.state_dict()[name]), name


def test_what_a_checkpoint_keeps_is_plain(tmp_path):
    runner = corridor(2)
    for seed in range(2):
        pieces = runner.collect(Noisy(), 5, contexts(0, 6), generator(seed))
    kept = [to_plain(piece) for piece in pieces if not piece.end]
    torch.save(kept, tmp_path / "kept.pt")
    again = [from_plain(saved) for saved in torch.load(tmp_path / "kept.pt", weights_only=True)]
    other = corridor(2)
    assert other.restore(again) == len(again) == 2
    assert [p.context for p in again] == [p.context for p in pieces if not p.end]
