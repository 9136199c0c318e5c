"""Answers as preference pairs, and runs of TRL's ``DPOTrainer`` on them, without and with pictures."""

import json
import math
from typing import Any

import pytest
import torch
from trl import DPOConfig, DPOTrainer

from guerdon.preference.trl_pairs import AnswerPair, answer_dataset, answer_pairs
from guerdon.testing.language_checkpoints import tiny_language
from guerdon.testing.vlm_checkpoints import tiny_vlm

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")

PICTURE = torch.arange(3 * 16 * 16, dtype=torch.int64).remainder(256).to(torch.uint8).view(3, 16, 16)


def made(pairs: list[AnswerPair]) -> list[tuple[Any, ...]]:
    return [(pair.prompt[0], pair.chosen, pair.rejected, round(pair.margin, 6)) for pair in pairs]


def test_the_best_answer_of_a_prompt_is_paired_with_its_worst():
    prompts = [["open it"], ["close it"]]
    answers = [["a", "b", "c", "d"], ["w", "x"]]
    pairs = answer_pairs(prompts, answers, [[0.1, None, 0.9, math.nan], [3, 2]])
    assert made(pairs) == [("open it", "c", "a", 0.8), ("close it", "w", "x", 1.0)]
    assert made(answer_pairs(prompts, answers, [[0.1, 0.4, 0.9, 0.3], [3, 2]], top=2, margin=0.55)) == [
        *(("open it", "c", "d", 0.6), ("open it", "c", "a", 0.8)),
        ("close it", "w", "x", 1.0),
    ]


def test_answers_of_two_prompts_and_equal_answers_make_no_pair():
    assert answer_pairs([["open it"], ["close it"]], [["a"], ["b"]], [[1.0], [0.0]]) == []
    assert answer_pairs([["open it"]], [["a", "a"]], [[1.0, 0.0]]) == []
    assert answer_pairs([["open it"]], [["a", "b"]], [[1.0, 1.0]]) == []
    assert answer_pairs([["open it"]], [["a", "b"]], [[1.0, None]]) == []


def test_wrong_answers_are_refused():
    with pytest.raises(ValueError, match="answers and scores of each of 2 prompts, got 1 and 2"):
        answer_pairs([["a"], ["b"]], [["x"]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="prompt 1: expected a score of each of 2 answers, got 1"):
        answer_pairs([["a"], ["b"]], [["x"], ["y", "z"]], [[1.0], [2.0]])
    with pytest.raises(ValueError, match="score of row 1 is inf"):
        answer_pairs([["a"]], [["x", "y"]], [[1.0, math.inf]])
    with pytest.raises(ValueError, match="no pair of answers: expected at least one"):
        answer_dataset([])
    with pytest.raises(ValueError, match="some prompts have pictures and others have none"):
        answer_dataset([AnswerPair(prompt=prompt, chosen="a", rejected="b") for prompt in (["x"], ["x", PICTURE])])


def test_rows_without_pictures_are_conversations_of_texts():
    rows = answer_dataset([AnswerPair(prompt=["Is it ", "open?"], chosen="yes", rejected="no", margin=0.5)])
    assert rows[0] == {
        "prompt": [{"role": "user", "content": "Is it open?"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
        "margin": 0.5,
    }


def test_rows_with_pictures_hold_them_in_the_order_of_the_prompt():
    other = 255 - PICTURE
    rows = answer_dataset([AnswerPair(prompt=["first", PICTURE, "last", other], chosen="yes", rejected="no")])
    kinds = [part["type"] for part in rows[0]["prompt"][0]["content"]]
    assert kinds == ["text", "image", "text", "image"]
    shown = [torch.tensor(list(image.tobytes())).view(16, 16, 3).permute(2, 0, 1) for image in rows[0]["images"]]
    assert torch.equal(shown[0].to(torch.uint8), PICTURE) and torch.equal(shown[1].to(torch.uint8), other)


def settings(folder: Any) -> DPOConfig:
    return DPOConfig(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        beta=0.5,
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


@pytest.mark.parametrize("pictures", [False, True])
def test_the_dpo_trainer_of_trl_learns_from_scored_decompositions(tmp_path, pictures):
    plans = [json.dumps({"stages": [{"name": name} for name in names]}) for names in (("reach", "pull"), ("wait",))]
    shown: list[Any] = [PICTURE] if pictures else []
    prompts = [[*shown, f"Plan: {task}"] for task in ("open the drawer", "close the drawer")]
    pairs = answer_pairs(prompts, [plans] * 2, [[1.0, 0.0]] * 2)
    model = tiny_vlm(tmp_path / "tiny") if pictures else tiny_language(tmp_path / "tiny")
    trainer = DPOTrainer(str(model), args=settings(tmp_path), train_dataset=answer_dataset(pairs))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert logs[-1]["loss"] < 0.6 and logs[-1]["rewards/accuracies"] == 1.0
