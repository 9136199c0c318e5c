"""Models whose metrics are known by hand, and episodes for them."""

import numpy as np
import torch

from guerdon.core.batch import End, Labelled, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import RewardModel
from guerdon.evaluation.controls import InstructionMatrix, OtherTasks, predict_episodes, with_constant
from guerdon.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from guerdon.evaluation.extraction import describe_conventions
from guerdon.evaluation.predictions import MODEL, EpisodePredictions, Prediction

TASKS = {0: "open the drawer", 1: "close the drawer"}
FEW = EvaluationSettings(samples=50)
"""Where intervals do not matter."""


class Scripted(RewardModel):
    """State 0 is how far the episode is, state 1 which task it shows."""

    def __init__(self, kind: str = "perfect", success: bool = True) -> None:
        super().__init__()
        self.kind, self.success = kind, success

    def forward(self, batch: TrajectoryBatch) -> RewardEstimates:
        progress = batch.state[..., 0].clone()
        if self.kind == "clock":
            progress = torch.arange(progress.shape[1]).expand_as(progress) / (progress.shape[1] - 1)
        elif self.kind == "constant":
            progress = torch.full_like(progress, 0.3)
        elif self.kind == "perfect":
            asked = torch.tensor([float(text == TASKS[1]) for text in batch.instructions])
            progress = torch.where(batch.state[..., 1] == asked[:, None], progress, 0.0)
        valid = batch.observed
        return RewardEstimates(
            rewards=progress.diff(dim=1) * batch.mask,
            valid=batch.mask & valid[:, 1:],
            progress=Labelled(values=progress, valid=valid),
            success=Labelled(values=(progress >= 1).float(), valid=valid) if self.success else None,
        )


def episodes(success, tasks=None, length=4):
    """Progress rises to 1 in a success and to ½ in a failure."""
    rows = len(success)
    top = torch.tensor([0.5 if s is None or s < 1 else 1.0 for s in success])
    task = torch.tensor(tasks if tasks is not None else [0] * rows)
    progress = top[:, None] * torch.linspace(0, 1, length + 1)
    ends = [End.CUT if s is None else End.SUCCESS if s >= 1 else End.FAILURE for s in success]
    return TrajectoryBatch(
        actions=torch.zeros(rows, length, 1),
        mask=torch.ones(rows, length, dtype=torch.bool),
        state=torch.stack([progress, task[:, None].expand_as(progress).float()], dim=-1),
        instructions=tuple(TASKS[int(t)] for t in task),
        task=task,
        end=torch.tensor([int(e) for e in ends]),
        success=torch.tensor([float(s or 0) for s in success]),
        success_known=torch.tensor([s is not None for s in success]),
    )


def matrix_of(batch, chosen=None):
    numbers = range(len(batch)) if chosen is None else chosen
    return InstructionMatrix(instructions=TASKS, episodes=frozenset(numbers))


def run(reward, batch, settings=FEW, **more) -> Evaluation:
    """Evaluate a model on a batch, with all controls."""
    others = OtherTasks(instructions={int(t): TASKS[int(t)] for t in batch.task})
    found = with_constant(predict_episodes(reward, batch, others))
    return evaluate(found, describe_conventions(reward(batch)), settings, **more)


def value(evaluation, name, key):
    return evaluation.metrics[name][key].value


def scored(scores, success, tasks=None, qualities=None):
    """Episodes with nothing but a score each."""
    rows = zip(scores, success, tasks or [0] * len(scores), qualities or [""] * len(scores), strict=True)
    return [
        EpisodePredictions(
            episode=i,
            task=t,
            instruction=TASKS.get(t, f"task {t}"),
            success=float(y),
            quality=q,
            predictions={MODEL: Prediction(values=np.arange(3.0), score=float(s), total=float(s))},
        )
        for i, (s, y, t, q) in enumerate(rows)
    ]


def noisy(noise, seed=0, count=60):
    """Episodes whose scores tell the outcome, more or less."""
    generator = np.random.default_rng(seed)
    success = np.random.default_rng(1).integers(0, 2, count)
    return scored(0.5 + 0.2 * (success - 0.5) + noise * generator.normal(size=count), success)
