"""Rewards, rollouts and short training runs that the tests of the watch share."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.critics.value import ValueCritic
from guerdon.datasets.labels import with_progress_targets, with_success_targets
from guerdon.evaluation.watch.callback import HackingWatch
from guerdon.policies.advantages.reward_to_go import RewardToGo
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import WeightedImitation
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.success import SuccessReward


class Told(RewardModel):
    """Takes the first number of the state for its success probability, and pays its change."""

    def forward(self, batch):
        success = Labelled(values=batch.state[:, :, 0], valid=batch.observed)
        return RewardEstimates(
            rewards=batch.state[:, 1:, 0] - batch.state[:, :-1, 0], valid=batch.mask, success=success
        )


class Abstaining(Told):
    """Estimates nothing for a row that ends below 0."""

    def forward(self, batch):
        estimates = super().forward(batch)
        known = batch.state[:, -1, 0] >= 0
        assert estimates.success is not None
        success = replace(estimates.success, valid=estimates.success.valid & known[:, None])
        return replace(estimates, valid=estimates.valid & known[:, None], success=success)


def rollout(best, success=None, steps=4, end=End.TIME_LIMIT):
    """Episodes whose first state number climbs evenly from 0 to ``best``."""
    rows = len(best)
    climb = torch.linspace(0, 1, steps + 1)[None] * torch.tensor(best)[:, None]
    more: dict[str, Any] = {} if success is None else {"success": torch.tensor([float(s) for s in success])}
    if success is None:
        more = {"success": torch.zeros(rows), "success_known": torch.zeros(rows, dtype=torch.bool)}
    return TrajectoryBatch(
        state=torch.stack([climb, torch.linspace(-1, 1, steps + 1).expand(rows, -1)], 2),
        actions=torch.zeros(rows, steps, 2),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        end=torch.full((rows,), int(end)),
        **more,
    )


MIXED = rollout([0.9, 0.6, 0.1, 0.2, 0.8, 0.3], [1, 0, 0, 0, 1, 1])


def with_instructions(batch, *texts):
    """The same episodes with these instructions in turn."""
    return replace(batch, instructions=tuple(texts[i % len(texts)] for i in range(len(batch))))


def normal(rows, seed, shift=0.0, width=3, steps=9):
    """Episodes of correlated normal states; the second number is 2 · the first + 0.5 · noise."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.5, 0.0], [0.0, 0.0, 3.0]])[:width, :width]
    state = torch.randn(rows, steps + 1, width, generator=generator) @ mixing.T + shift
    return TrajectoryBatch(
        state=state,
        actions=torch.zeros(rows, steps, 1),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        episode=torch.arange(rows) + 1000 * seed,
    )


# --- training runs --------------------------------------------------------------------------------------------------


class Loader:
    """A sized stream of given batches."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Data(lightning.LightningDataModule):
    """Given batches as training data."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return Loader(self.batches)


def module(reward, state=2, actions=2):
    policy = GaussianPolicy(state, actions, hidden=(4,))
    source = RewardToGo(reward, ValueCritic(state, hidden=(4,)))
    return PolicyOptimizer(policy, source, WeightedImitation(), passes=1, minibatch_size=64)


def trainer(folder, *callbacks, **more: Any):
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "max_epochs": 1,
    }
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    return lightning.Trainer(**(quiet | {"default_root_dir": folder, "callbacks": list(callbacks)} | more))


def watch(folder, batches, reward=None, **options: Any):
    """Train on given rollouts under a watch; returns the trainer, the callback and the lines it wrote."""
    callback = HackingWatch(**options)
    run = trainer(folder, callback)
    run.fit(module(reward or Told()), Loader(batches))
    return run, callback, lines(folder)


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "watch.jsonl").read_text().splitlines()]


# --- a reward model that can be hacked ------------------------------------------------------------------------------


def moved(last, steps, seed):
    """Episodes that go from about (0, 0) to about the given (x, y); of x little can be seen."""
    generator = torch.Generator().manual_seed(seed)
    path = torch.linspace(0, 1, steps + 1)[None, :, None] * last[:, None]
    rows = len(last)
    noise = torch.randn(rows, steps + 1, 2, generator=generator) * torch.tensor([0.2, 0.05])
    return TrajectoryBatch(
        state=path + noise,
        actions=torch.zeros(rows, steps, 2),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        end=torch.full((rows,), int(End.TIME_LIMIT)),
        success=(last[:, 0] > 0.5).float(),
    )


def recordings(seed, rows=64, steps=4):
    """Training data in which success is x at 1, and y is always where x is: one batch."""
    goal = (torch.arange(rows) % 2).float()
    batch = with_success_targets(moved(goal[:, None].expand(-1, 2), steps, seed))
    return [replace(with_progress_targets(batch), episode=torch.arange(rows))]


def hacked(seed, rows=20, steps=4):
    """What a policy does that found out that y pays: x stays at 0."""
    return moved(torch.tensor([[0.0, 1.2]]).expand(rows, -1), steps, 100 + seed)


def trained(data, steps=50, model: type[ProgressReward | SuccessReward] = SuccessReward) -> Any:
    torch.manual_seed(0)
    reward = model(state_size=2, observer=ObservationEncoder(width=16, layers=0))
    reward.fit_normaliser(data)
    optimizer = torch.optim.Adam(reward.parameters(), 2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        reward.loss(data[0])["loss"].backward()
        optimizer.step()
    return reward.eval()


@torch.no_grad()
def claimed(reward, batch):
    """Share of episodes that a reward model takes for successes."""
    return float((reward(batch).success.values.max(1).values >= 0.5).float().mean())
