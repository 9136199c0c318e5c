"""Supervised fine-tuning of a vision-language task decomposer on annotated episodes, by TRL."""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import datasets

from ...backbones.chat import Prompt
from ...backbones.vlm import VLM
from ...core.arguments import folds
from ...core.batch import TrajectoryBatch
from ...core.files import without_nan, write_json
from ...core.interfaces import TaskDecomposer, TaskPlan
from ...core.intervals import mean_estimate
from ..moments import moments
from .decomposer import LETTERS, VlmDecomposer
from .fine_tuning import WEIGHTS, AdapterTrainer, FineTuning, to_dataset
from .plans import plan_to_json
from .stage_metrics import stage_accuracy, stage_iou

_CHECKPOINTS, _STATE = "checkpoints", "trainer_state.json"


@dataclass
class Examples:
    """Examples to learn from, and episodes that gave none."""

    prompts: list[Prompt] = field(default_factory=list[Prompt])
    """Prompt of each example."""
    answers: list[str] = field(default_factory=list[str])
    """Answer to each prompt."""
    plans: int = 0
    """Number of examples that ask for a plan; the others ask how many stages are complete."""
    left_out: dict[int, str] = field(default_factory=dict[int, str])
    """Index of an episode → reason why it gave no example."""

    def add(self, prompt: Prompt, answer: str) -> None:
        """Add an example.

        Args:
            prompt: Prompt of the model.
            answer: Answer to learn.
        """
        self.prompts.append(prompt)
        self.answers.append(answer)

    def dataset(self) -> datasets.Dataset:
        """Convert the examples into TRL's rows of prompt, completion and images."""
        return to_dataset(self.prompts, self.answers)


class DecomposerTraining:
    """Supervised training of a `VlmDecomposer` on the plans and stages of a teacher: a rule, or annotations.

    Every episode gives one example that asks for the teacher's plan, and up to ``frames_per_episode`` that ask how many
    stages are complete. These are drawn evenly over the numbers of complete stages in the episode, so that short stages
    occur as often as long ones. The loss is the mean negative log-likelihood of the answer's tokens alone. The prompts
    are those of the decomposer in use.

    Args:
        decomposer: Decomposer over a `VLM` with ``lora``; only its low-rank updates are trained.
        teacher: Decomposer that gives plans and segments whole episodes.
        frames_per_episode: Largest number of stage questions per episode, at least 1.
        tuning: Length and step sizes of the run; None takes the defaults. Its arguments may also be given here one by
            one, such as ``epochs=4``.
        seed: Random seed of all draws.

    Raises:
        ValueError: If an argument is out of its range, or nothing of the decomposer can be trained.
    """

    @folds(tuning=FineTuning)
    def __init__(
        self,
        decomposer: VlmDecomposer,
        teacher: TaskDecomposer,
        frames_per_episode: int = 12,
        tuning: FineTuning | None = None,
        seed: int = 0,
    ) -> None:
        if frames_per_episode < 1:
            raise ValueError(f"frames_per_episode is {frames_per_episode}: expected at least 1")
        if not isinstance(decomposer.chat, VLM) or not decomposer.chat.trained:
            got = "one without" if isinstance(decomposer.chat, VLM) else f"a {type(decomposer.chat).__name__}"
            raise ValueError(
                f"nothing of this decomposer can be trained: expected chat to be a guerdon.VLM with lora, got {got}"
            )
        self.decomposer, self.teacher, self.vlm = decomposer, teacher, decomposer.chat
        self.frames_per_episode, self.seed = frames_per_episode, seed
        self.tuning = FineTuning() if tuning is None else tuning

    def examples(self, episodes: Iterable[TrajectoryBatch]) -> Examples:
        """Convert annotated episodes into prompts with answers.

        Args:
            episodes: Batches of whole episodes with frames.
        """
        found = Examples()
        for batch in episodes:
            for row in range(len(batch)):
                problem = self._teach(found, batch[row])
                if problem:
                    found.left_out[int(batch.episode[row])] = problem
        return found

    def _teach(self, found: Examples, batch: TrajectoryBatch) -> str:
        row = moments(batch, self.decomposer.cameras)[0]
        if not row:
            return "no frame"
        try:
            plan = self._plan(batch)
        except ValueError as error:  # one instruction without a plan must not stop the others
            return str(error)
        if not plan.stages:
            return "the teacher has no plan"
        if len(plan.stages) > self.decomposer.max_stages:
            return f"a plan of {len(plan.stages)} stages, more than max_stages {self.decomposer.max_stages}"
        done = self.teacher.completed(batch, [plan], causal=False)
        reached = {m.step: int(done.values[0, m.step]) for m in row if bool(done.valid[0, m.step])}
        if not reached:
            return "no stage is known at any frame"
        pictures = [part for part in row[0].parts if isinstance(part, Tensor)]
        found.add(self.decomposer.plan_question(plan.instruction, pictures[0]), plan_to_json(plan))
        found.plans += 1
        generator = np.random.default_rng([self.seed, int(batch.episode[0])])
        at = {moment.step: moment for moment in row}
        for step in _evenly(reached, self.frames_per_episode, generator):
            found.add(self.decomposer.stage_question(plan, row[0], at[step]), LETTERS[reached[step]])
        return ""

    def _plan(self, batch: TrajectoryBatch) -> TaskPlan:
        return self.teacher.plan(batch.instructions, None)[0]

    def fit(self, examples: Examples, out: Path, resume: bool = False) -> list[dict[str, Any]]:
        """Train on examples, with checkpoints in ``out``.

        Args:
            examples: Prompts with answers.
            out: Run directory.
            resume: Resume from its last complete checkpoint.

        Returns:
            Logged metrics, one dictionary per entry.

        Raises:
            ValueError: If there is no example.
            FileNotFoundError: If there is no checkpoint to resume from.
        """
        if not examples.prompts:
            reasons = "; ".join(f"episode {n}: {why}" for n, why in list(examples.left_out.items())[:5])
            raise ValueError(
                f"nothing to learn from: expected episodes with frames and stages ({reasons or 'no episode'})"
            )
        last = self.last_checkpoint(out) if resume else None
        for name, parameter in self.vlm.model.named_parameters():
            parameter.requires_grad_(name in self.vlm.trained)  # a reward around the decomposer may have frozen it
        with warnings.catch_warnings():
            # newer transformers call it activation checkpointing, older ones know no other name
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing. is deprecated")
            settings = self.tuning.settings(out / _CHECKPOINTS, self.vlm.model.dtype, self.seed)
        trainer = AdapterTrainer(self.vlm, settings, examples.dataset())
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except KeyboardInterrupt:
            trainer.keep()
            raise
        self.vlm.eval()
        return cast(list[dict[str, Any]], trainer.state.log_history)

    @staticmethod
    def last_checkpoint(out: Path) -> Path:
        """Find the last complete checkpoint of a run; its state file is written last.

        Args:
            out: Run directory.

        Raises:
            FileNotFoundError: If there is none.
        """
        folder = out / _CHECKPOINTS
        whole = [p for p in folder.glob("checkpoint-*") if (p / _STATE).is_file() and (p / WEIGHTS).is_file()]
        if not whole:
            raise FileNotFoundError(f"{folder} holds no checkpoint to resume from: start again in another folder")
        return max(whole, key=lambda p: json.loads((p / _STATE).read_text())["global_step"])

    @torch.no_grad()
    def evaluate(self, episodes: Iterable[TrajectoryBatch], causal: bool = False) -> dict[str, Any]:
        """Evaluate the decomposer's stages and plans against the teacher's, episode by episode.

        Args:
            episodes: Batches of one whole episode with frames each.
            causal: Segment from the past alone.

        Returns:
            ``stage_accuracy`` and ``stage_iou`` (mean over episodes, with a bootstrap interval over them), ``plans``
            (share of the answers that were a plan), ``plans_equal`` (share with the names of the teacher's stages),
            ``episodes``, their number, and ``left_out``, the number of episodes without a frame or a stage of the
            teacher.
        """
        accuracy: list[float] = []
        overlap: list[float] = []
        made, equal, left_out = 0, 0, 0
        for batch in episodes:
            row = moments(batch, self.decomposer.cameras)[0]
            try:
                plan = self._plan(batch)
            except ValueError:
                plan = TaskPlan(instruction="", stages=())
            right = self.teacher.segment(batch, [plan], causal=False) if row and plan.stages else None
            if right is None or not bool(right.valid.any()):
                left_out += 1
                continue
            seen = self.decomposer.segment(batch, [plan], causal)
            pair = (seen.values[0].long(), right.values[0].long(), right.valid[0], seen.valid[0])
            accuracy.append(stage_accuracy(*pair))
            overlap.append(stage_iou(*pair))
            proposed = self.decomposer.plan(batch.instructions, [p for p in row[0].parts if isinstance(p, Tensor)][:1])
            made += bool(proposed[0].stages)
            equal += [s.name for s in proposed[0].stages] == [s.name for s in plan.stages]
        count = len(accuracy)
        return {
            "episodes": count,
            "left_out": left_out,
            "stage_accuracy": _figure(accuracy),
            "stage_iou": _figure(overlap),
            "plans": made / count if count else None,
            "plans_equal": equal / count if count else None,
        }


def _evenly(reached: dict[int, int], most: int, generator: np.random.Generator) -> list[int]:
    """Draw at most ``most`` observations, evenly over the numbers of complete stages, in order of time."""
    counts = sorted(set(reached.values()))
    groups = {n: generator.permutation([s for s, k in reached.items() if k == n]).tolist() for n in counts}
    taken: list[int] = []
    while len(taken) < most and any(groups.values()):
        for n in counts:
            if groups[n] and len(taken) < most:
                taken.append(int(groups[n].pop()))
    return sorted(taken)


def _figure(values: Sequence[float]) -> dict[str, float | None]:
    found = mean_estimate(values)
    return without_nan({"mean": found.value, "low": found.low, "high": found.high})


def write_examples(examples: Examples, path: Path, count: int = 20) -> None:
    """Write texts and answers of the first examples as JSON, to review the training data.

    Args:
        examples: Prompts with answers; pictures are written as ``"<picture>"``.
        path: File to write.
        count: Number of examples.
    """
    shown = [
        {"prompt": [p if isinstance(p, str) else "<picture>" for p in prompt], "answer": answer}
        for prompt, answer in zip(examples.prompts[:count], examples.answers[:count], strict=True)
    ]
    write_json(path, {"examples": len(examples.prompts), "plans": examples.plans, "shown": shown})


__all__ = ["DecomposerTraining", "Examples", "write_examples"]
