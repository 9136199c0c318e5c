"""Supervised fine-tuning of a vision-language task decomposer on annotated episodes, by TRL."""

import io
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from trl import SFTConfig, SFTTrainer

import datasets

from ...backbones.chat import Prompt
from ...backbones.vlm import VLM
from ...core.batch import TrajectoryBatch
from ...core.files import replacing, without_nan, write_json
from ...core.interfaces import TaskDecomposer, TaskPlan
from ...core.intervals import mean_estimate
from ..moments import moments
from .decomposer import LETTERS, VlmDecomposer
from .plans import plan_to_json
from .stage_metrics import stage_accuracy, stage_iou

_CHECKPOINTS, _WEIGHTS, _STATE = "checkpoints", "trained.safetensors", "trainer_state.json"
_TURN = {"role": datasets.Value("string"), "content": [{k: datasets.Value("string") for k in ("type", "text")}]}
_COLUMNS = datasets.Features({"prompt": [_TURN], "completion": [_TURN], "images": [datasets.Image()]})


@dataclass
class Examples:
    """What there is to learn from, and what could not be used."""

    prompts: list[Prompt] = field(default_factory=list[Prompt])
    answers: list[str] = field(default_factory=list[str])
    plans: int = 0
    """How many of them ask for a plan; the others ask how far one is."""
    left_out: dict[int, str] = field(default_factory=dict[int, str])
    """Number of an episode → why it taught nothing."""

    def add(self, prompt: Prompt, answer: str) -> None:
        """Add one."""
        self.prompts.append(prompt)
        self.answers.append(answer)

    def dataset(self) -> datasets.Dataset:
        """The examples as TRL's rows of prompt, completion and images."""
        rows = [_row(prompt, answer) for prompt, answer in zip(self.prompts, self.answers, strict=True)]
        return datasets.Dataset.from_list(rows, features=_COLUMNS)


class DecomposerTraining:
    """Teaches a `VlmDecomposer` the plans and stages of another decomposer: a rule in simulation, or annotations.

    From every episode comes one example that asks for the teacher's plan, and up to ``frames_per_episode`` that ask how
    many stages are complete, drawn evenly over the numbers of complete stages that the episode has, so that short
    stages are met as often as long ones. The loss is the mean negative log-likelihood of the answer's tokens alone; the
    model reads the very prompts it will be asked.

    Args:
        decomposer: Over a `VLM` with ``lora_rank``; only its low-rank updates are trained.
        teacher: Gives plans, and segments whole episodes.
        frames_per_episode: At least 1.
        learning_rate: Of AdamW, after a linear warm-up, falling linearly to 0.
        epochs: Passes over the examples.
        max_steps: Updates in all; −1 leaves it to ``epochs``.
        batch_size: Examples read at once.
        accumulate: Batches of one update.
        warmup_steps: Updates until the full learning rate.
        save_every: Updates between checkpoints, from which an interrupted training goes on.
        seed: Of all draws.

    Raises:
        ValueError: If an argument makes no sense, or nothing of the decomposer can be trained.
    """

    def __init__(
        self,
        decomposer: VlmDecomposer,
        teacher: TaskDecomposer,
        frames_per_episode: int = 12,
        learning_rate: float | int = 2e-4,
        epochs: float | int = 2,
        max_steps: int = -1,
        batch_size: int = 4,
        accumulate: int = 1,
        warmup_steps: int = 20,
        save_every: int = 200,
        seed: int = 0,
    ) -> None:
        counts = (frames_per_episode, batch_size, accumulate, save_every)
        if min(counts) < 1 or warmup_steps < 0 or max_steps == 0 or max_steps < -1:
            raise ValueError(
                f"frames_per_episode {frames_per_episode}, batch_size {batch_size}, accumulate {accumulate}, save_every"
                f" {save_every}, warmup_steps {warmup_steps}, max_steps {max_steps}: expected positive numbers"
            )
        if not (0 < learning_rate < math.inf and 0 < epochs < math.inf):
            raise ValueError(f"learning_rate {learning_rate}, epochs {epochs}: expected positive numbers")
        if not isinstance(decomposer.chat, VLM) or not decomposer.chat.trained:
            got = "lora_rank 0" if isinstance(decomposer.chat, VLM) else f"a {type(decomposer.chat).__name__}"
            raise ValueError(
                "nothing of this decomposer can be trained: expected chat to be a guerdon.backbones.vlm.VLM with "
                f"lora_rank above 0, got {got}"
            )
        self.decomposer, self.teacher, self.vlm = decomposer, teacher, decomposer.chat
        self.frames_per_episode, self.learning_rate, self.epochs = frames_per_episode, learning_rate, epochs
        self.max_steps, self.batch_size, self.accumulate = max_steps, batch_size, accumulate
        self.warmup_steps, self.save_every, self.seed = warmup_steps, save_every, seed

    def examples(self, episodes: Iterable[TrajectoryBatch]) -> Examples:
        """Turn annotated episodes, one row each with frames, into questions with answers."""
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
        except ValueError as error:  # one instruction that the teacher does not know is no reason to stop
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
        """Train, with checkpoints in ``out``.

        Args:
            examples: What to learn from.
            out: Run directory.
            resume: Go on from its last whole checkpoint.

        Returns:
            What was logged, update by update.

        Raises:
            ValueError: If there is no example.
            FileNotFoundError: If there is nothing to go on from.
        """
        if not examples.prompts:
            told = "; ".join(f"episode {n}: {why}" for n, why in list(examples.left_out.items())[:5])
            raise ValueError(
                f"nothing to learn from: expected episodes with frames and stages ({told or 'no episode'})"
            )
        last = self.last_checkpoint(out) if resume else None
        for name, parameter in self.vlm.model.named_parameters():
            parameter.requires_grad_(name in self.vlm.trained)  # whatever a reward around the decomposer froze
        with warnings.catch_warnings():
            # newer transformers call it activation checkpointing, older ones know no other name
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing. is deprecated")
            settings = self._settings(out / _CHECKPOINTS)
        trainer = _Trainer(self.vlm, settings, examples.dataset())
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except KeyboardInterrupt:
            trainer.keep()
            raise
        self.vlm.eval()
        return cast(list[dict[str, Any]], trainer.state.log_history)

    def _settings(self, folder: Path) -> SFTConfig:
        return SFTConfig(
            output_dir=str(folder),
            learning_rate=self.learning_rate,
            num_train_epochs=self.epochs,
            max_steps=self.max_steps,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.accumulate,
            warmup_steps=self.warmup_steps,
            save_steps=self.save_every,
            save_total_limit=2,
            logging_steps=10,
            seed=self.seed,
            bf16=self.vlm.model.dtype == torch.bfloat16,
            gradient_checkpointing=False,  # the model does it itself where it was asked to
            max_length=None,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        )

    @staticmethod
    def last_checkpoint(out: Path) -> Path:
        """The last checkpoint of a run that was written whole: its state is written last.

        Raises:
            FileNotFoundError: If there is none.
        """
        folder = out / _CHECKPOINTS
        whole = [p for p in folder.glob("checkpoint-*") if (p / _STATE).is_file() and (p / _WEIGHTS).is_file()]
        if not whole:
            raise FileNotFoundError(f"{folder} holds no checkpoint to go on from: start anew in another folder")
        return max(whole, key=lambda p: json.loads((p / _STATE).read_text())["global_step"])

    @torch.no_grad()
    def judge(self, episodes: Iterable[TrajectoryBatch], causal: bool = False) -> dict[str, Any]:
        """Compare the decomposer's stages and plans with the teacher's, episode by episode.

        Returns:
            ``stage_accuracy`` and ``stage_iou`` (mean over episodes, with a bootstrap interval over them), ``plans``
            (share of the answers that were a plan) and ``plans_equal`` (share with the names of the teacher's stages),
            ``episodes``, how many there were, and ``left_out``, how many more have no frame or no stage of the teacher.
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


class _Trainer(SFTTrainer):
    """TRL's trainer on a model with injected low-rank updates, whose checkpoints hold these alone."""

    def __init__(self, vlm: VLM, settings: SFTConfig, rows: datasets.Dataset) -> None:
        self.vlm = vlm
        super().__init__(
            model=vlm.model,
            args=settings,
            train_dataset=rows,
            processing_class=vlm.processor,
            data_collator=_Collator(vlm),
        )

    def keep(self) -> None:
        """Write a checkpoint of the present state, if there was an update; the next data are those of the last one."""
        if self.state.global_step:
            self._save_checkpoint(self.vlm.model, trial=None)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No page about the model: a checkpoint is for going on."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or cast(str, self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        held = {n: p.detach().cpu().contiguous() for n, p in self.vlm.model.named_parameters() if p.requires_grad}
        with replacing(folder / _WEIGHTS) as fresh:
            save_file(held, fresh)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        held = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        wanted = {n for n, p in self.vlm.model.named_parameters() if p.requires_grad}
        if set(held) != wanted:
            raise ValueError(f"{resume_from_checkpoint} holds other low-rank updates than this model: same lora_rank?")
        self.vlm.model.load_state_dict(held, strict=False)


class _Collator:
    """Reads rows exactly as the model will be asked, with the answer behind; only the answer is learned."""

    def __init__(self, vlm: VLM) -> None:
        self.vlm = vlm

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        reader = self.vlm.reader
        inputs = reader.read([_prompt(row) for row in rows], answering=True)
        answers = [
            reader.answer_tokens(row["completion"][0]["content"][0]["text"]) + reader.end_tokens() for row in rows
        ]
        width = max(len(answer) for answer in answers)
        pad = int(self.vlm.processor.tokenizer.pad_token_id)
        tokens = torch.tensor([answer + [pad] * (width - len(answer)) for answer in answers])
        real = torch.arange(width)[None] < torch.tensor([len(answer) for answer in answers])[:, None]
        before = inputs["input_ids"]
        inputs["labels"] = torch.cat([torch.full_like(before, -100), torch.where(real, tokens, -100)], 1)
        inputs["input_ids"] = torch.cat([before, tokens], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], real.to(inputs["attention_mask"].dtype)], 1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.cat(
                [inputs["mm_token_type_ids"], torch.zeros_like(tokens, dtype=inputs["mm_token_type_ids"].dtype)], 1
            )
        return inputs


def _row(prompt: Prompt, answer: str) -> dict[str, Any]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "text": None} for p in prompt]
    pictures: list[dict[str, Any]] = []
    for part in prompt:
        if isinstance(part, Tensor):
            stream = io.BytesIO()
            Image.fromarray(part.permute(1, 2, 0).numpy()).save(stream, "PNG")
            pictures.append({"bytes": stream.getvalue(), "path": None})
    return {
        "prompt": [{"role": "user", "content": content}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        "images": pictures,
    }


def _prompt(row: dict[str, Any]) -> Prompt:
    pictures = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in row["images"])
    return [part["text"] if part["type"] == "text" else next(pictures) for part in row["prompt"][0]["content"]]


def _evenly(reached: dict[int, int], most: int, generator: np.random.Generator) -> list[int]:
    """At most so many observations, as many from each number of complete stages as there are and fit, in order."""
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
    """Write texts and answers of the first examples as JSON, to look at what is taught; pictures as ``"<picture>"``."""
    shown = [
        {"prompt": [p if isinstance(p, str) else "<picture>" for p in prompt], "answer": answer}
        for prompt, answer in zip(examples.prompts[:count], examples.answers[:count], strict=True)
    ]
    write_json(path, {"examples": len(examples.prompts), "plans": examples.plans, "shown": shown})


__all__ = ["DecomposerTraining", "Examples", "write_examples"]
