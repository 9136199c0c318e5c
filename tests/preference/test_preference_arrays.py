"""Arrays of preference pairs: labels the right way round, exact round trips, bad files."""

import numpy as np
import pytest
import torch

from guerdon.core.batch import PreferencePairs, TrajectoryBatch
from guerdon.preference.preference_arrays import read_preference_arrays, write_preference_arrays

FILES = ("can_mh", "can_ph", "lift_mh", "lift_ph", "square_mh", "square_ph")


def arrays(pairs: int = 3, steps: int = 4) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "obs_1": draw.normal(size=(pairs, steps, 5)).astype(np.float32),
        "obs_2": draw.normal(size=(pairs, steps, 5)).astype(np.float32),
        "action_1": draw.normal(size=(pairs, steps, 2)).astype(np.float32),
        "action_2": draw.normal(size=(pairs, steps, 2)).astype(np.float32),
        "label_human": np.array([0.0, 0.5, 1.0], np.float32)[:pairs],
        "label_script": np.array([1.0, 1.0, 0.0], np.float32)[:pairs],
    }


def save(folder, **changes):
    path = folder / "pairs.npz"
    entries = {k: v for k, v in {**arrays(), **changes}.items() if v is not None}
    np.savez(path, **entries)
    return path


def test_rows_and_labels_are_those_of_the_file(tmp_path):
    given, path = arrays(), save(tmp_path)
    pairs = read_preference_arrays(path)
    assert pairs.label.tolist() == [1.0, 0.5, 0.0]  # the file's 1 prefers segment 2, which is `rejected`
    assert read_preference_arrays(path, "script").label.tolist() == [0.0, 0.0, 1.0]
    for rows, number in ((pairs.chosen, 1), (pairs.rejected, 2)):
        assert torch.equal(pairs.batch.state[rows, :-1], torch.from_numpy(given[f"obs_{number}"]))
        assert torch.equal(pairs.batch.actions[rows], torch.from_numpy(given[f"action_{number}"]))
    assert torch.equal(pairs.batch.state[:, -1], pairs.batch.state[:, -2])
    assert not pairs.batch.last_observed.any()
    assert pairs.batch.steps.tolist() == [4] * 6
    assert len(set(pairs.batch.group.tolist())) == 6


def test_alike_segments_share_an_episode(tmp_path):
    given = arrays()
    given["obs_2"][1], given["action_2"][1] = given["obs_1"][0], given["action_1"][0]
    given["obs_2"][2] = given["obs_1"][0]  # the actions differ
    episode = read_preference_arrays(save(tmp_path, **given)).batch.episode.tolist()
    assert episode[0] == episode[4]
    assert len(set(episode)) == 5


def test_the_round_trip_is_exact(tmp_path):
    pairs = read_preference_arrays(save(tmp_path))
    script = torch.tensor([0.0, 0.0, 1.0])
    write_preference_arrays(pairs, tmp_path / "deep" / "again.npz", script=script)
    with np.load(tmp_path / "deep" / "again.npz") as file:
        assert set(file.files) == set(arrays())
        for name, value in arrays().items():
            assert np.array_equal(file[name], value), name
            assert file[name].dtype == value.dtype


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_human": None}, "missing arrays: label_human"),
        ({"extra": np.zeros(3)}, "unknown arrays: extra"),
        ({"obs_2": np.zeros((3, 5, 5), np.float32)}, "obs_2 has shape"),
        ({"action_2": np.zeros((3, 4, 3), np.float32)}, "action_2 has shape"),
        ({"action_1": np.zeros((2, 4, 2), np.float32)}, "action_1 has shape"),
        ({"label_human": np.zeros(2)}, "label_human has shape"),
        ({"obs_1": np.full((3, 4, 5), np.nan)}, "obs_1 .* finite"),
        ({"label_human": np.array([0.0, np.nan, 1.0])}, "label_human .* finite"),
        ({"label_human": np.array([0.0, 0.3, 1.0])}, "holds 0.3: expected 0"),
        ({"label_human": np.array([0, 1, "first"], dtype=object)}, "no .npz file of plain arrays"),
        ({"obs_1": np.array([["a"]])}, "obs_1"),
    ],
)
def test_bad_files_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_preference_arrays(save(tmp_path, **changes))


def test_a_file_cut_in_the_middle_is_refused(tmp_path):
    path = save(tmp_path)
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="cut or no"):
            read_preference_arrays(path)
    with pytest.raises(FileNotFoundError, match="obs_1"):
        read_preference_arrays(tmp_path / "none.npz")


def test_what_the_layout_cannot_hold_is_refused(tmp_path):
    mask = torch.tensor([[True, True], [True, False]])
    batch = TrajectoryBatch(state=torch.zeros(2, 3, 1), actions=torch.zeros(2, 2, 1), mask=mask)

    def pairs(chosen: int, label: float = 1.0, weight: float = 1.0) -> PreferencePairs:
        row, other = torch.tensor([chosen]), torch.tensor([0])
        return PreferencePairs(
            batch=batch, chosen=row, rejected=other, label=torch.tensor([label]), weight=torch.tensor([weight])
        )

    for wrong, message in (
        (pairs(1), "rows of .1, 2. steps"),
        (pairs(0, label=0.7), "expected 0"),
        (pairs(0, weight=2.0), "weights other than 1"),
    ):
        with pytest.raises(ValueError, match=message):
            write_preference_arrays(wrong, tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        write_preference_arrays(pairs(0), tmp_path / "x.np")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_published_files_come_back_as_they_are(name, real_data, tmp_path):
    folder = real_data / "ipl_human_preferences"
    if not folder.is_dir():
        pytest.skip(f"the published files are not here ({folder})")
    path = next(folder.glob(f"{name}_*.npz"))
    pairs = read_preference_arrays(path)
    script = read_preference_arrays(path, "script").label
    write_preference_arrays(pairs, tmp_path / "again.npz", script)
    with np.load(path) as first, np.load(tmp_path / "again.npz") as second:
        assert set(first.files) == set(second.files)
        assert all(np.array_equal(first[k], second[k]) for k in first.files)
    if name == "lift_ph":  # its readme counts 105 distinct segments among 200
        assert len(pairs.batch.episode.unique()) == 105
