import json
import math
import shutil
from typing import Any

import pytest
import torch

from guerdon.backbones.chat import Chat
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.core.batch import Labelled, Sampled, TrajectoryBatch
from guerdon.core.interfaces import TaskDecomposer, TaskPlan, TaskStage
from guerdon.rewards.stages.decomposer import VlmDecomposer
from guerdon.rewards.stages.decomposer_training import DecomposerTraining, Examples, write_examples
from guerdon.rewards.stages.fine_tuning import AnswerCollator, FineTuning, prompt_of
from guerdon.testing.vlm_checkpoints import tiny_vlm

STEPS = 12


class Teacher(TaskDecomposer):
    """Two stages, complete from observations 5 and 9 on; no plan for an instruction with "unknown", an error for
    "dance", no stage for "dark"."""

    def plan(self, instructions, first_frames=None):
        if "dance" in instructions:
            raise ValueError("no rule for 'dance'")
        stages = (TaskStage(name="reach"), TaskStage(name="pull"))
        return [TaskPlan(instruction=text, stages=() if "unknown" in text else stages) for text in instructions]

    def completed(self, batch, plans, causal):
        count = torch.tensor([(t >= 5) + (t >= 9) for t in range(batch.mask.shape[1] + 1)]).float()
        dark = torch.tensor([text == "dark" for text in batch.instructions])[:, None]
        return Labelled(values=count.expand(len(batch), -1), valid=batch.made & ~dark)

    def segment(self, batch, plans, causal):
        done = self.completed(batch, plans, causal)
        return Labelled(values=done.values.clamp(max=1).long(), valid=done.valid)


def episode(number=0, instruction="open the drawer", seen=True):
    """Grey noise whose brightness tells the stage: 40, 120, 200."""
    generator = torch.Generator().manual_seed(number)
    noise = torch.randint(0, 40, (STEPS + 1, 3, 16, 16), generator=generator)
    level = torch.tensor([20 + 80 * ((t >= 5) + (t >= 9)) for t in range(STEPS + 1)])
    frames = (noise + level[:, None, None, None]).to(torch.uint8)
    step = torch.arange(STEPS + 1) if seen else torch.full((STEPS + 1,), -1)
    return TrajectoryBatch(
        actions=torch.zeros(1, STEPS, 1),
        state=torch.zeros(1, STEPS + 1, 1),
        mask=torch.ones(1, STEPS, dtype=torch.bool),
        frames={"wrist": Sampled(values=frames[None], step=step[None])},
        instructions=(instruction,),
        episode=torch.tensor([number]),
    )


def training(folder, rank=4, **more: Any):
    vlm = VLM(str(folder), lora=LoRA(rank=rank))
    decomposer = VlmDecomposer(vlm, ["wrist"], attempts=1, max_new_tokens=4, min_mass=0.0)
    return DecomposerTraining(decomposer, Teacher(), **{"warmup_steps": 0, "frames_per_episode": 6, **more})


def test_an_episode_gives_a_plan_and_frames_of_every_stage_alike(folders):
    found = training(folders["smolvlm"]).examples([episode(0), episode(1)])
    assert found.plans == 2 and len(found.prompts) == len(found.answers) == 14
    assert json.loads(found.answers[0])["stages"][1]["name"] == "pull"
    letters = found.answers[1:7]
    assert letters == ["A", "A", "B", "B", "C", "C"]  # in order of time, two of each
    assert not found.left_out


def test_few_frames_of_a_stage_leave_room_for_others(folders):
    """5 observations of A, 4 of B, 4 of C: with 13 asked for, all are taken; with 14, too."""
    for most in (13, 14):
        letters = training(folders["smolvlm"], frames_per_episode=most).examples([episode()]).answers[1:]
        assert letters == ["A"] * 5 + ["B"] * 4 + ["C"] * 4


def test_episodes_that_teach_nothing_are_named(folders):
    made = training(folders["smolvlm"])
    taught = [episode(3, "unknown task"), episode(4, seen=False), episode(5), episode(6, "dance"), episode(7, "dark")]
    found = made.examples(taught)
    assert found.left_out == {
        3: "the teacher has no plan",
        4: "no frame",
        6: "no rule for 'dance'",
        7: "no stage is known at any frame",
    }
    assert found.plans == 1
    made.decomposer.max_stages = 1
    assert "a plan of 2 stages, more than max_stages 1" in made.examples([episode(5)]).left_out[5]


def test_nothing_to_learn_is_an_error(folders, tmp_path):
    made = training(folders["smolvlm"])
    with pytest.raises(ValueError, match=r"nothing to learn.*episode 3: the teacher has no plan"):
        made.fit(made.examples([episode(3, "unknown task")]), tmp_path)


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "smolvlm"])
def test_only_the_answer_is_learned_and_read_as_it_will_be_asked(folders, architecture):
    """The loss of one row is −(log P(answer) + log P(end of the answer)) over their tokens, as the model is used."""
    made = training(folders[architecture])
    found = made.examples([episode()])
    rows: Any = list(found.dataset().select([0, 3]))
    assert rows[0]["completion"][0]["content"][0]["text"] == found.answers[0]
    inputs = AnswerCollator(made.vlm)(rows)
    with torch.no_grad():
        logits = made.vlm.model(**{k: v for k, v in inputs.items() if k != "labels"}).logits.log_softmax(-1)
    for row, index in enumerate((0, 3)):
        labels = inputs["labels"][row]
        learned = (labels != -100).nonzero().flatten()
        end = made.vlm.reader.end_tokens()
        wanted = made.vlm.reader.answer_tokens(found.answers[index])
        assert labels[learned].tolist() == wanted + end
        total = float(sum(logits[row, place - 1, labels[place]] for place in learned[: len(wanted)].tolist()))
        asked = made.vlm.answer_log_probs([found.prompts[index]], [found.answers[index]])
        assert total == pytest.approx(float(asked), abs=2e-3)


def test_pictures_come_through_unchanged(folders):
    found = training(folders["smolvlm"]).examples([episode()])
    rows: Any = found.dataset()
    for prompt, row in zip(found.prompts, rows, strict=True):
        again = prompt_of(row)
        assert [type(p) for p in again] == [type(p) for p in prompt]
        for one, other in zip(again, prompt, strict=True):
            if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
                assert torch.equal(one, other)
            else:
                assert one == other


@pytest.mark.slow
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(folders, tmp_path):
    whole, found = training(folders["smolvlm"], max_steps=4, save_every=2), None
    start = {n: p.detach().clone() for n, p in whole.vlm.model.named_parameters() if p.requires_grad}
    found = whole.examples([episode(n) for n in range(3)])
    whole.fit(found, tmp_path / "run")
    wanted = {n: p.detach().clone() for n, p in whole.vlm.model.named_parameters() if p.requires_grad}
    held = {p.name for p in (tmp_path / "run" / "checkpoints" / "checkpoint-2").iterdir()}
    assert "trained.safetensors" in held and "model.safetensors" not in held  # the published ones stay

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    (tmp_path / "run" / "checkpoints" / "checkpoint-3").mkdir()  # killed while it was written
    second = training(folders["smolvlm"], max_steps=4, save_every=2)
    second.fit(found, tmp_path / "run", resume=True)
    for name, parameter in second.vlm.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.detach(), wanted[name], atol=1e-5, rtol=1e-4)
            assert not torch.equal(parameter.detach(), start[name]) or "lora_A" in name


@pytest.mark.slow
def test_an_interrupt_keeps_the_present_state(folders, tmp_path, monkeypatch):
    made = training(folders["smolvlm"], max_steps=6, batch_size=2)
    steps = iter(range(10))
    monkeypatch.setattr(AnswerCollator, "__call__", interrupted(AnswerCollator.__call__, steps, 3))
    with pytest.raises(KeyboardInterrupt):
        made.fit(made.examples([episode()]), tmp_path / "run")
    kept = DecomposerTraining.last_checkpoint(tmp_path / "run")
    assert json.loads((kept / "trainer_state.json").read_text())["global_step"] >= 1


def interrupted(collate, steps, at):
    def call(self, rows):
        if next(steps) == at:
            raise KeyboardInterrupt
        return collate(self, rows)

    return call


@pytest.mark.slow
def test_a_reward_around_the_decomposer_does_not_keep_it_from_learning(folders, tmp_path):
    made = training(folders["smolvlm"], max_steps=1)
    made.decomposer.requires_grad_(False)  # as SubgoalReward does
    before = {n: p.detach().clone() for n, p in made.vlm.model.named_parameters() if n in made.vlm.trained}
    made.fit(made.examples([episode()]), tmp_path / "run")
    changed = [n for n, p in made.vlm.model.named_parameters() if n in before and not torch.equal(p, before[n])]
    assert changed


def test_nothing_to_go_on_from_is_an_error(folders, tmp_path):
    made = training(folders["smolvlm"])
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        made.fit(made.examples([episode()]), tmp_path, resume=True)


@pytest.mark.slow
def test_training_teaches_stages_of_episodes_it_never_saw(tmp_path):
    """Three seeds of weights and of noise; naming the longer stage everywhere gives 9 of 13 observations, 0.69."""
    before, after = [], []
    for seed in range(3):
        folder = tiny_vlm(tmp_path / f"vlm{seed}", "qwen2_5_vl", width=64, seed=seed)
        torch.manual_seed(seed)
        steps = {"learning_rate": 0.006, "warmup_steps": 2, "max_steps": 45, "batch_size": 16}
        made = training(folder, rank=8, frames_per_episode=9, seed=seed, **steps)
        examples = made.examples([episode(100 * seed + n) for n in range(8)])
        stages_only = Examples(
            prompts=[p for p, a in zip(examples.prompts, examples.answers, strict=True) if len(a) == 1],
            answers=[a for a in examples.answers if len(a) == 1],
        )
        held_out = [episode(100 * seed + 50 + n) for n in range(3)]
        before.append(made.evaluate(held_out)["stage_accuracy"]["mean"])
        made.fit(stages_only, tmp_path / f"run{seed}")
        after.append(made.evaluate(held_out)["stage_accuracy"]["mean"])
    assert sum(after) / 3 > 0.85 > 0.7 >= max(before), (before, after)


def test_judging_counts_plans_and_leaves_out_what_has_no_truth(folders):
    made = training(folders["smolvlm"])
    others = [episode(1, "unknown task"), episode(2, "dance"), episode(3, "dark"), episode(4, seen=False)]
    figures = made.evaluate([episode(0), *others])
    assert figures["episodes"] == 1 and figures["left_out"] == 4 and figures["plans"] == 0.0
    assert figures["stage_accuracy"]["mean"] is not None
    assert made.evaluate([])["stage_accuracy"] == {"mean": None, "low": None, "high": None}


@pytest.mark.slow
def test_wrong_arguments_are_refused(folders):
    refused: list[dict[str, Any]] = [
        *({"epochs": 0}, {"learning_rate": -1.0}, {"batch_size": 0}, {"max_steps": 0}, {"max_steps": -5})
    ]
    for wrong in refused:
        with pytest.raises(ValueError):
            training(folders["smolvlm"], **wrong)
    with pytest.raises(ValueError, match="expected positive numbers"):
        training(folders["smolvlm"], learning_rate=math.nan)
    with pytest.raises(ValueError, match="frames_per_episode is 0: expected at least 1"):
        training(folders["smolvlm"], frames_per_episode=0)
    flat = training(folders["smolvlm"], max_steps=3)
    whole = DecomposerTraining(flat.decomposer, Teacher(), tuning=FineTuning(max_steps=3))
    assert flat.tuning.max_steps == whole.tuning.max_steps == 3
    with pytest.raises(ValueError, match="VLM with lora, got one without"):
        DecomposerTraining(VlmDecomposer(VLM(str(folders["smolvlm"])), ["wrist"]), Teacher())
    with pytest.raises(ValueError, match="VLM with lora, got a Chat"):
        DecomposerTraining(VlmDecomposer(Chat(), ["wrist"]), Teacher())


def test_what_is_taught_can_be_looked_at(folders, tmp_path):
    write_examples(training(folders["smolvlm"]).examples([episode()]), tmp_path / "examples.json", 2)
    held = json.loads((tmp_path / "examples.json").read_text())
    assert held["examples"] == 7 and held["plans"] == 1 and held["shown"][1]["answer"] == "A"
    assert held["shown"][1]["prompt"].count("<picture>") == 2
