import copy
import json
import warnings
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file

from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.cli import main
from guerdon.core.batch import End, Sampled, TrajectoryBatch
from guerdon.core.hub import describe, load_component
from guerdon.datasets.formats.video import write_video
from guerdon.datasets.labels import LabelFactory
from guerdon.rewards.frame_windows import FrameWindows
from guerdon.rewards.heads import PredictionSettings
from guerdon.rewards.moments import moments
from guerdon.rewards.vlm_progress import VlmProgressReward
from guerdon.scoring.scores import read_scores
from guerdon.testing import check_reward_model, pad_steps, trajectory_batches
from guerdon.testing.vlm_checkpoints import tiny_vlm

ARCHITECTURES: list[Literal["qwen2_5_vl", "smolvlm"]] = ["qwen2_5_vl", "smolvlm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("vlm")
    return {name: tiny_vlm(place / name, name) for name in ARCHITECTURES}


def labelled(batch):
    return LabelFactory(assume_success=True).targets(batch)


def model(folder, rank=2, **more):
    torch.manual_seed(1)
    made = VlmProgressReward(VLM(str(folder), lora=LoRA(rank=rank)), **{"cameras": ["wrist"], "bins": 11, **more})
    with torch.no_grad():  # updates that are not 0, or a broken save of them would not show
        for parameter in made.vlm.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return made.eval()


def rows(frames, steps=None, camera="wrist", **more):
    """Clips: a frame at every observation."""
    count, length = frames.shape[:2]
    real = torch.tensor(steps or [length - 1] * count)
    mask = torch.arange(length - 1)[None] < real[:, None]
    step = torch.arange(length).repeat(count, 1)
    step = torch.where(step <= real[:, None], step, -1)
    shown = {camera: Sampled(values=frames, step=step)}
    empty = torch.zeros(count, length, 0)
    return TrajectoryBatch(state=empty, actions=empty[:, 1:], mask=mask, frames=shown, **more)


def noise(count, length, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, length, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.slow
@settings(max_examples=2)
@given(batch=trajectory_batches(max_rows=3, state_size=0, stored_labels=False, cameras=("wrist", "front")))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_keeps_every_promise(folders, architecture, batch):
    if bool((labelled(batch).labels["progress"].valid).any()):
        small = {"max_frames": 3, "context_frames": 2, "micro_batch": 2}  # so that rows of four frames need windows
        made = model(folders[architecture], cameras=["wrist", "front", "absent"], **small)
        check_reward_model(made, labelled(batch), tolerance=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_keeps_every_promise_on_a_long_row(folders, architecture):
    batch = labelled(rows(noise(2, 8), [7, 4], instructions=("open the drawer", "close it")))
    check_reward_model(model(folders[architecture], max_frames=4, context_frames=2), batch)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_window_is_a_slow_loop_over_prefixes(folders, architecture):
    """Frame i of a row is read as the last frame of a prompt that ends with it."""
    made = model(folders[architecture], max_frames=4, context_frames=2)
    frames = noise(1, 7)
    tokens = made.encode(rows(frames, instructions=("open the drawer",)))
    shown = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 3, 4], [0, 3, 4, 5], [0, 5, 6]]
    opening = made.prompt.replace("{instruction}", "open the drawer")
    for place, seen in enumerate(shown):
        prompt = [opening, *[part for i in seen for part in (frames[0, i], "Progress:")]]
        wanted = made.norm(made.vlm.hidden_states([prompt]).hidden[0, -1])
        torch.testing.assert_close(tokens.hidden[0, place], wanted, atol=2e-4, rtol=1e-3)


def test_cameras_show_their_last_frame_under_their_name(folders):
    made = model(folders["smolvlm"], cameras=["wrist", "front:left"])
    frames = noise(2, 3)
    wrist = Sampled(values=frames[:1], step=torch.tensor([[0, 2, 4]]))
    front = Sampled(values=frames[1:], step=torch.tensor([[1, 2, -1]]))
    empty = torch.zeros(1, 6, 0)
    mask = torch.ones(1, 5, dtype=torch.bool)
    batch = TrajectoryBatch(state=empty, actions=empty[:, 1:], mask=mask, frames={"wrist": wrist, "front:left": front})
    found = moments(batch, made.cameras)[0]
    assert [moment.step for moment in found] == [0, 1, 2, 4]
    wanted = [[(0, 0)], [(0, 0), (1, 0)], [(0, 1), (1, 1)], [(0, 2), (1, 1)]]  # camera, frame
    names = [" wrist", " front left"]
    for moment, shown in zip(found, wanted, strict=True):
        assert [part for part in moment.parts if isinstance(part, str)] == [names[camera] for camera, _ in shown]
        for picture, (camera, place) in zip(moment.parts[1::2], shown, strict=True):
            assert isinstance(picture, torch.Tensor) and torch.equal(picture, frames[camera, place])
    assert made(batch).progress.valid.all()


def test_a_row_without_any_frame_gets_no_estimate(folders):
    made = model(folders["smolvlm"])
    batch = rows(noise(2, 3))
    gone = Sampled(values=batch.frames["wrist"].values, step=torch.tensor([[0, 1, 2], [-1, -1, -1]]))
    assert made(replace(batch, frames={"wrist": gone})).valid.tolist() == [[True, True], [False, False]]
    none = replace(batch, frames={"wrist": gone.map(lambda t: t[1:].repeat(2, *(1,) * (t.ndim - 1)))})
    assert not made(none).valid.any()
    with pytest.raises(ValueError, match="expected frames of wrist, the trajectories hold frames of no camera"):
        made(replace(batch, frames={}))


def test_the_instruction_matters_and_a_long_one_is_cut(folders):
    made = model(folders["smolvlm"], max_instruction_tokens=16)
    batch = rows(noise(1, 3))
    texts = ("open the drawer", "close the door")
    one, other = (made(replace(batch, instructions=(text,))).progress.values.detach() for text in texts)
    assert float((one - other).abs().max()) > 1e-4
    with pytest.warns(UserWarning, match="the end of this instruction is ignored"):
        assert made(replace(batch, instructions=("open the drawer " * 30,))).valid.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(replace(batch, instructions=("",)))


def test_too_many_tokens_say_what_to_do(folders, tmp_path):
    folder = tiny_vlm(tmp_path / "short", "qwen2_5_vl", max_tokens=128)
    with pytest.raises(ValueError, match=r"longer than the 128 .*max_frames.*frame_size.*image_options"):
        model(folder)(rows(noise(1, 9, size=32)))
    assert model(folder, max_frames=3, context_frames=1)(rows(noise(1, 9, size=16))).valid.all()


def test_bad_arguments_are_named(folders):
    vlm = VLM(str(folders["smolvlm"]))
    for wrong, message in (
        ({"cameras": []}, "expected at least one"),
        ({"max_frames": 4}, "expected more frames than context"),
        ({"micro_batch": 0}, "expected positive numbers"),
        ({"prompt": "Look."}, "once"),
        ({"marker": " "}, "some text"),
    ):
        with pytest.raises(ValueError, match=message):
            VlmProgressReward(vlm, **{"cameras": ["wrist"], **wrong})


def test_a_bad_word_in_an_instruction_is_named(folders):
    with pytest.raises(ValueError, match=r"a token of .* with a meaning of its own"):
        model(folders["smolvlm"])(rows(noise(1, 3), instructions=("put <image> here",)))


def test_frames_and_predictions_are_objects_or_given_flat(folders):
    vlm = VLM(str(folders["smolvlm"]))
    flat = VlmProgressReward(vlm, ["wrist"], max_frames=8, bins=11, success_weight=0.5)  # pyright: ignore[reportCallIssue]
    frames, predictions = FrameWindows(max_frames=8), PredictionSettings(bins=11, success_weight=0.5)
    whole = VlmProgressReward(vlm, ["wrist"], frames=frames, predictions=predictions)
    assert describe(flat) == describe(whole)
    assert flat.head.predictions.bins == 11 and flat.inputs.frames_every == 1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_saved_file_holds_updates_and_heads_only(folders, architecture, tmp_path):
    made = model(folders[architecture])
    made.train()
    made.loss(labelled(rows(noise(2, 4))))["loss"].backward()
    trained = {name for name, p in made.named_parameters() if p.grad is not None}
    assert all("lora_" in name or name.startswith(("head.", "norm.")) for name in trained)
    made.save_pretrained(tmp_path / "m")
    assert set(load_file(tmp_path / "m" / "model.safetensors")) == trained
    spec = json.loads((tmp_path / "m" / "component.json").read_text())["init_args"]["vlm"]["init_args"]
    assert spec["name"] == str(folders[architecture]) and spec["fingerprint"] == made.vlm.fingerprint
    batch = pad_steps(rows(noise(2, 6), [5, 2]), 1)
    again = load_component(tmp_path / "m")
    assert torch.equal(again(batch).rewards, made.eval()(batch).rewards)


def brightening(count, seed):
    """Clips of different lengths, speeds and textures whose pictures grow brighter from start to end."""
    generator = torch.Generator().manual_seed(seed)
    length = 7
    steps = torch.randint(3, length, (count,), generator=generator)
    frames = torch.zeros(count, length, 3, 8, 8, dtype=torch.uint8)
    for row in range(count):
        done = torch.linspace(0, 1, int(steps[row]) + 1)
        texture = torch.rand(len(done), 3, 8, 8, generator=generator) * 60
        frames[row, : len(done)] = (done[:, None, None, None] * 180 + texture).to(torch.uint8)
    return rows(frames, steps.tolist(), end=torch.full((count,), int(End.SUCCESS)))


def turned_round(batch):
    """The same clips, each played from its end to its start."""
    shown = batch.frames["wrist"]
    place = batch.steps[:, None] - torch.arange(shown.step.shape[1])
    rows_of = torch.arange(len(batch))[:, None]
    return replace(batch, frames={"wrist": Sampled(values=shown.values[rows_of, place.clamp(min=0)], step=shown.step)})


@pytest.mark.slow
def test_progress_is_learned_on_held_out_clips(folders):
    """Against the constant with the least error: ½. Without reversed rows it would count frames instead of looking."""
    factory = LabelFactory(rewind=0.0, reverse=0.5, wrong_instruction=0.0)
    gains = []
    for seed in range(3):
        torch.manual_seed(seed)
        made = VlmProgressReward(
            VLM(str(folders["smolvlm"]), lora=LoRA(rank=4)), ["wrist"], predictions=PredictionSettings(bins=11)
        )
        optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-2)
        held_out = labelled(brightening(24, 100 + seed))
        before = copy.deepcopy(made.vlm.state_dict())
        generator = torch.Generator().manual_seed(seed)
        train = factory(brightening(64, seed), generator)
        made.train()
        for _ in range(50):
            loss = made.loss(train[torch.randperm(64, generator=generator)[:8]])["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            error = float(made.eval().loss(held_out)["progress_error"])
            backwards = made(turned_round(held_out)).progress.values
        target = held_out.labels["progress"]
        constant = float((target.values[target.valid] - 0.5).abs().mean())
        gains.append(error / constant)
        last = backwards.gather(1, held_out.steps[:, None])
        assert float((backwards[:, :1] > last).float().mean()) > 0.9  # it reads pictures, not a clock
        assert all(not torch.equal(before[name], value) for name, value in made.vlm.state_dict().items())
    assert np.mean(gains) < 0.4 and max(gains) < 0.6, gains


@pytest.mark.slow
def test_fit_and_score_through_the_command(folders, tmp_path, capsys):
    clips = tmp_path / "clips"
    clips.mkdir()
    told = []
    for number in range(3):
        write_video(clips / f"{number}.mp4", noise(1, 6, 32, number)[0].numpy(), 10)
        split = "val" if number == 2 else "train"
        told.append(json.dumps({"file": f"{number}.mp4", "instruction": f"task {number % 2}", "split": split}))
    (clips / "metadata.jsonl").write_text("\n".join(told))
    reward, data = "--model.init_args.reward.init_args", "--data.init_args"
    frames = f"{reward}.frames.init_args"
    run = ["fit", "--config", "configs/progress_vlm.yaml", "--out", str(tmp_path / "run")]
    run += [f"{reward}.vlm.init_args.name", str(folders["qwen2_5_vl"]), f"{frames}.frames_every", "2"]
    run += [f"{frames}.frame_size", "32", f"{data}.frame_size", "32", f"{data}.batch_size", "2"]
    run += [f"{data}.path", str(clips), f"{data}.cache", str(tmp_path / "cache")]
    run += [f"{reward}.vlm.init_args.dtype", "float32", "--trainer.precision", "32-true", "--trainer.max_epochs"]
    run.append("1")
    assert main(run) == 0
    folder = capsys.readouterr().out.splitlines()[-1]
    assert main(["score", "--model", folder, "--data", str(clips), "--out", str(tmp_path / "scores")]) == 0
    scores = read_scores(tmp_path / "scores" / "scores.parquet")
    assert len(scores.episodes) == 3 and not scores.bad
    assert all(np.isfinite(episode.progress).all() for episode in scores.episodes)
    # training goes on from the checkpoint, which holds nothing frozen
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    held = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert any("lora_" in name for name in held)
    assert not [name for name in held if ".vlm." in name and "lora_" not in name]
    assert main([*run[:-1], "2", "--ckpt_path", str(checkpoint)]) == 0
