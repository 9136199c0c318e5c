import pytest
import torch

from guerdon.core.batch import Sampled, TrajectoryBatch
from guerdon.testing.vlm_checkpoints import tiny_vlm


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Tiny vision-language checkpoints of two families."""
    place = tmp_path_factory.mktemp("vlm")
    return {name: tiny_vlm(place / name, name) for name in ("qwen2_5_vl", "smolvlm")}


@pytest.fixture
def filmed():
    """Makes rows with frames of one camera."""

    def make(lengths=(4, 2), steps=((0, 1, 2, 3, 4), (0, 2, -1, -1, -1)), camera="wrist", seed=0):
        generator = torch.Generator().manual_seed(seed)
        size = (len(lengths), len(steps[0]), 3, 16, 16)
        return TrajectoryBatch(
            actions=torch.zeros(len(lengths), max(lengths), 1),
            state=torch.zeros(len(lengths), max(lengths) + 1, 1),
            mask=torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None],
            frames={
                camera: Sampled(
                    values=torch.randint(0, 256, size, generator=generator, dtype=torch.uint8),
                    step=torch.tensor(steps),
                )
            },
            instructions=("open the drawer", "close the door")[: len(lengths)],
        )

    return make
