"""Episodes for a person to label are written and read, and so are the labels."""

from dataclasses import replace

import pytest
import torch

from guerdon.core.batch import Labelled, Sampled
from guerdon.evaluation.watch.spot_labels import load_episode, read_labels, save_episode, stack_rows

from .watched_runs import rollout, with_instructions


def test_an_episode_is_written_and_read_again(tmp_path):
    frames = torch.randint(0, 255, (2, 3, 3, 8, 8), dtype=torch.uint8)
    batch = replace(
        with_instructions(rollout([0.3, 0.9]), "one", "two"),
        frames={"front": Sampled(values=frames, step=torch.tensor([[0, 2, 4], [0, 3, -1]]))},
    )
    save_episode(batch[1], tmp_path, "x")
    assert (tmp_path / "x.png").stat().st_size > 1000
    read = load_episode(tmp_path, "x")
    assert torch.equal(read.state, batch.state[1:]) and read.instructions == ("two",)
    assert torch.equal(read.frames["front"].values, frames[1:, :2])  # without the padding
    assert read.frames["front"].step.tolist() == [[0, 3]]
    both = stack_rows([batch[0], rollout([0.1], steps=2)[:0], read])
    assert both.instructions == ("one", "two") and torch.equal(both.state, batch.state)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def tracked(to, steps):
    """A row whose hand goes evenly from 0 to a place."""
    hand = torch.linspace(0, to, steps + 1)[None, :, None] * torch.ones(3)
    return replace(
        rollout([to], steps=steps),
        tracks={"hand": Labelled(values=hand, valid=torch.ones(1, steps + 1, dtype=torch.bool))},
    )


def test_tracks_that_all_rows_have_are_stacked():
    both = stack_rows([tracked(0.9, 4), tracked(0.8, 6)])
    hand = both.tracks["hand"]
    assert hand.valid.tolist() == [[True] * 5 + [False] * 2, [True] * 7]
    assert hand.values[0, 4, 0] == pytest.approx(0.9) and not hand.values[0, 5:].any()
    some = stack_rows([tracked(0.9, 4), rollout([0.1], steps=2)]).tracks["hand"]
    assert some.valid.tolist() == [[True] * 5, [False] * 5]


def test_rows_of_different_length_are_stacked():
    both = stack_rows([rollout([0.4], steps=2), rollout([0.8], steps=5)])
    assert both.mask.tolist() == [[True] * 2 + [False] * 3, [True] * 5]
    assert both.state[0, :3, 0].tolist() == pytest.approx([0, 0.2, 0.4])
    assert not both.state[0, 3:].any()
    seen = {"wrist": Sampled(values=torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), step=torch.zeros(1, 1).long())}
    blind, sighted = rollout([0.4]), replace(rollout([0.4]), frames=seen)
    assert stack_rows([blind, sighted]).frames["wrist"].step.tolist() == [[-1], [0]]
    assert stack_rows([sighted, blind]).frames["wrist"].step.tolist() == [[0], [-1]]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"episode": "a", "success": 1}\nnonsense\n', "line 2: expected a JSON object, got 'nonsense'"),
        ('\n{"episode": "a", "success": 0.5}\n', 'line 2: expected {"episode": "…", "success": 0 or 1}, got'),
        ('{"episode": 3, "success": 1}\n', "line 1: expected"),
        ('{"success": 1}\n', "line 1: expected"),
        ("[1, 2]\n", "line 1: expected a JSON object"),
    ],
)
def test_a_label_that_is_none_is_named_with_its_line(text, message, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_labels(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_label_that_is_being_written_waits_and_the_last_word_counts(tmp_path):
    path = tmp_path / "labels.jsonl"
    assert read_labels(path) == {}
    path.write_text('{"episode": "a", "success": 1}\n{"episode": "a", "success": 0}\n\n{"episode": "b", "suc')
    assert read_labels(path) == {"a": 0}
