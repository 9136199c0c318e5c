"""Files of rollouts: what was written comes back, and what cannot be read is named."""

import pytest
import torch

from guerdon.core.batch import CLOCKS, End, Labelled, Sampled, TrajectoryBatch
from guerdon.core.record import Record
from guerdon.policies.loops.rollout_files import join_batches, read_about, read_batch, write_batch


def episodes(units: int = 3, length: int = 4) -> TrajectoryBatch:
    generator = torch.Generator().manual_seed(units)
    mask = torch.arange(length) < torch.tensor([length, 2])[:, None]
    return TrajectoryBatch(
        state=torch.randn(2, length + 1, 3, generator=generator),
        actions=torch.randn(2, length, 2, generator=generator),
        mask=mask,
        end=torch.tensor([End.SUCCESS, End.TIME_LIMIT]),
        instructions=("press the | button", "öffne die Tür"),
        group=torch.tensor([7, 1 << 40]),
        frames={"top": Sampled(values=torch.ones(2, 1, 3, 2, 2, dtype=torch.uint8), step=torch.zeros(2, 1).long())},
        tracks={"left/ee": Labelled(values=torch.rand(2, length + 1, 3), valid=torch.ones(2, length + 1).bool())},
        behaviour={
            "sample": torch.randn(2, length, 1, 2, generator=generator) * 5,
            "log_prob": torch.full((2, length, units), -1.0).index_fill(0, torch.tensor([1]), torch.nan),
            "tokens": torch.arange(units).expand(2, length, units),
        },
    )


def equal(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one.nan_to_num(-9.0), two.nan_to_num(-9.0))
    if isinstance(one, Record):
        return all(equal(value, vars(two)[name]) for name, value in vars(one).items())
    if isinstance(one, dict) and isinstance(two, dict):
        return list(sorted(one)) == sorted(two) and all(equal(one[name], two[name]) for name in one)
    return one == two


def test_every_field_comes_back_bit_by_bit(tmp_path):
    batch = episodes()
    write_batch(batch, tmp_path / "new" / "a.safetensors", {"draws": 3})
    back = read_batch(tmp_path / "new" / "a.safetensors")
    for name in CLOCKS:
        assert equal(getattr(batch, name), getattr(back, name)), name
    assert read_about(tmp_path / "new" / "a.safetensors") == {"draws": 3}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_frames_may_be_left_out(tmp_path):
    write_batch(episodes(), tmp_path / "a.safetensors", {})
    back = read_batch(tmp_path / "a.safetensors", frames=False)
    assert not back.frames and torch.equal(back.state, episodes().state)


@pytest.mark.parametrize("cut", [0, 4, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_named(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    write_batch(episodes(), path, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: cut if isinstance(cut, int) else int(cut * len(whole))])
    with pytest.raises(ValueError, match=r"a\.safetensors holds no rollouts that can be read.*remove the folder"):
        read_batch(path)
    with pytest.raises(FileNotFoundError, match="expected rollouts"):
        read_batch(tmp_path / "b.safetensors")


def test_records_of_different_widths_are_joined_with_their_real_units_marked():
    joined = join_batches([episodes(3, 4), episodes(5, 6)])
    mask = joined.behaviour["unit_mask"]
    assert joined.behaviour["log_prob"].shape == joined.behaviour["tokens"].shape == mask.shape == (4, 6, 5)
    assert mask[:2, :4, :3].all() and not mask[:2, :4, 3:].any() and mask[2:].all()
    even = join_batches([episodes(3, 4), episodes(3, 6)])
    assert "unit_mask" not in even.behaviour
