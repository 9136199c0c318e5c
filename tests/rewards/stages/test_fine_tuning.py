"""Settings of a fine-tuning run, and rows that give back the prompts they were made of."""

import math

import pytest
import torch

from guerdon.rewards.stages.fine_tuning import FineTuning, prompt_of, to_dataset


def test_the_settings_of_a_run_are_those_of_the_trainer(tmp_path):
    batches = {"batch_size": 2, "accumulate": 5, "save_every": 6}
    tuning = FineTuning(learning_rate=0.1, epochs=3, max_steps=7, warmup_steps=4, **batches)
    made = tuning.settings(tmp_path, torch.float32, seed=9)
    assert (made.learning_rate, made.num_train_epochs, made.max_steps, made.seed) == (0.1, 3, 7, 9)
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (2, 5)
    assert (made.warmup_steps, made.save_steps, made.output_dir) == (4, 6, str(tmp_path))
    assert not made.bf16


@pytest.mark.parametrize(
    "wrong",
    [
        *({"epochs": 0}, {"epochs": math.inf}, {"learning_rate": -1.0}, {"learning_rate": math.nan}),
        *({"batch_size": 0}, {"accumulate": 0}, {"save_every": 0}, {"warmup_steps": -1}),
        *({"max_steps": 0}, {"max_steps": -5}),
    ],
)
def test_bad_settings_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} .*expected positive numbers"):
        FineTuning(**wrong)


def test_a_row_gives_back_its_prompt_and_answer():
    picture = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    row = to_dataset([["before", picture, "behind"]], ["A"])[0]
    before, shown, behind = prompt_of(row)
    assert (before, behind) == ("before", "behind")
    assert isinstance(shown, torch.Tensor) and torch.equal(shown, picture)
    assert row["completion"][0]["content"][0]["text"] == "A"
