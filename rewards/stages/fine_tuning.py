"""Supervised fine-tuning of a vision-language model by TRL: settings, rows of data, and checkpoints of what learns."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from trl import SFTConfig, SFTTrainer

import datasets

from ...backbones.chat import Prompt
from ...backbones.chat_rows import content_of, pictures_of
from ...backbones.vlm import VLM
from ...core.files import replacing

WEIGHTS = "trained.safetensors"
"""File of a checkpoint that holds the trained weights."""

_TURN = {"role": datasets.Value("string"), "content": [{k: datasets.Value("string") for k in ("type", "text")}]}
_COLUMNS = datasets.Features({"prompt": [_TURN], "completion": [_TURN], "images": [datasets.Image()]})


class FineTuning:
    """Length and step sizes of a fine-tuning run with AdamW.

    Args:
        learning_rate: Largest learning rate, above 0; reached after a linear warm-up, then falling linearly to 0.
        epochs: Number of passes over the examples, above 0.
        max_steps: Number of updates; −1 leaves it to ``epochs``.
        batch_size: Number of examples that are read at once.
        accumulate: Number of batches in one update.
        warmup_steps: Number of updates until the full learning rate.
        save_every: Number of updates between checkpoints, from which an interrupted run is resumed.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        learning_rate: float | int = 2e-4,
        epochs: float | int = 2,
        max_steps: int = -1,
        batch_size: int = 4,
        accumulate: int = 1,
        warmup_steps: int = 20,
        save_every: int = 200,
    ) -> None:
        if min(batch_size, accumulate, save_every) < 1 or warmup_steps < 0 or max_steps == 0 or max_steps < -1:
            raise ValueError(
                f"batch_size {batch_size}, accumulate {accumulate}, save_every {save_every}, warmup_steps "
                f"{warmup_steps}, max_steps {max_steps}: expected positive numbers"
            )
        if not (0 < learning_rate < math.inf and 0 < epochs < math.inf):
            raise ValueError(f"learning_rate {learning_rate}, epochs {epochs}: expected positive numbers")
        self.learning_rate, self.epochs, self.max_steps = learning_rate, epochs, max_steps
        self.batch_size, self.accumulate = batch_size, accumulate
        self.warmup_steps, self.save_every = warmup_steps, save_every

    def settings(self, folder: Path, dtype: torch.dtype, seed: int) -> SFTConfig:
        """Return the settings of TRL's trainer.

        Args:
            folder: Folder of the checkpoints.
            dtype: Number type of the frozen weights.
            seed: Random seed of the order of examples and of dropout.
        """
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
            seed=seed,
            bf16=dtype == torch.bfloat16,
            gradient_checkpointing=False,  # the model does it itself where it was asked to
            max_length=None,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        )


class AdapterTrainer(SFTTrainer):
    """TRL's trainer for a model with injected low-rank updates, whose checkpoints hold only these.

    Args:
        vlm: Vision-language model with low-rank updates.
        settings: Settings of TRL's trainer.
        rows: Rows of prompt, completion and images.
    """

    def __init__(self, vlm: VLM, settings: SFTConfig, rows: datasets.Dataset) -> None:
        self.vlm = vlm
        super().__init__(
            model=vlm.model,
            args=settings,
            train_dataset=rows,
            processing_class=vlm.processor,
            data_collator=AnswerCollator(vlm),
        )

    def keep(self) -> None:
        """Write a checkpoint of the present state, if there was an update."""
        if self.state.global_step:
            self._save_checkpoint(self.vlm.model, trial=None)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no model card: a checkpoint is for resuming."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or cast(str, self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        held = {n: p.detach().cpu().contiguous() for n, p in self.vlm.model.named_parameters() if p.requires_grad}
        with replacing(folder / WEIGHTS) as fresh:
            save_file(held, fresh)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        held = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        wanted = {n for n, p in self.vlm.model.named_parameters() if p.requires_grad}
        if set(held) != wanted:
            raise ValueError(
                f"{resume_from_checkpoint} holds other low-rank updates than this model: is it the same rank of lora?"
            )
        self.vlm.model.load_state_dict(held, strict=False)


class AnswerCollator:
    """Collator of rows into the prompts of the model in use, followed by their answers; only answers have labels.

    Args:
        vlm: Vision-language model that reads the prompts.
    """

    def __init__(self, vlm: VLM) -> None:
        self.vlm = vlm

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate rows into the inputs of the model, with labels on the answers' tokens alone."""
        reader = self.vlm.reader
        inputs = reader.read([prompt_of(row) for row in rows], answering=True)
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


def to_dataset(prompts: Sequence[Prompt], answers: Sequence[str]) -> datasets.Dataset:
    """Convert prompts and their answers into TRL's rows of prompt, completion and images."""
    rows = [_row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return datasets.Dataset.from_list(rows, features=_COLUMNS)


def _row(prompt: Prompt, answer: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": content_of(prompt)}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        "images": pictures_of(prompt),
    }


def prompt_of(row: dict[str, Any]) -> Prompt:
    """Return the prompt that a row was made of; see `to_dataset`."""
    pictures = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in row["images"])
    return [part["text"] if part["type"] == "text" else next(pictures) for part in row["prompt"][0]["content"]]


__all__ = ["WEIGHTS", "AdapterTrainer", "AnswerCollator", "FineTuning", "prompt_of", "to_dataset"]
