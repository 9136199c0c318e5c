import numpy as np
import pytest
import torch
from PIL import Image

from guerdon.core.batch import End
from guerdon.datasets.collate import collate
from guerdon.datasets.episodes import ArrayFrames, Episode
from guerdon.datasets.label_sheet import describe, draw_sheet
from guerdon.datasets.labels import LabelFactory

pytestmark = pytest.mark.slow


def episode(frames, success=1.0):
    shown = ArrayFrames(values=np.full((5, 3, 16, 24), 200, np.uint8), step=np.arange(5))
    return Episode(
        index=3,
        state=np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32),
        actions=np.zeros((4, 1), np.float32),
        instruction="open <the> drawer " * 9,
        success=success,
        end=End.SUCCESS if success else End.TIME_LIMIT,
        frames={"wrist": shown} if frames else {},
    )


def sample(frames, factory, success=1.0):
    return factory(collate([episode(frames, success)], ["wrist"] if frames else []), torch.Generator())


def test_a_sheet_is_a_picture_with_a_cell_for_each_sample(tmp_path):
    rewound = sample(True, LabelFactory(rewind=1.0, reverse=0.0, wrong_instruction=0.0))
    assert describe(rewound) == "rewind"
    samples = [rewound, sample(True, LabelFactory(0.0, 0.0, 0.0), 0.0), sample(False, LabelFactory(0.0, 0.0, 0.0))]
    draw_sheet(samples, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        wide, high = picture.size
    draw_sheet(samples[:1], tmp_path / "one.png", columns=1)
    with Image.open(tmp_path / "one.png") as picture:
        assert (wide, high) == (2 * picture.size[0], 2 * picture.size[1])
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["one.png", "sheet.png"]


def test_nothing_is_left_where_drawing_fails(tmp_path):
    with pytest.raises(ValueError, match="at least one sample"):
        draw_sheet([], tmp_path / "sheet.png")
    with pytest.raises(FileNotFoundError):
        draw_sheet([sample(False, LabelFactory())], tmp_path / "no" / "sheet.png")
    assert not list(tmp_path.iterdir())
