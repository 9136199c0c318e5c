"""Statistics: numbers by hand, pictures against numpy, and joining against everything at once."""

import numpy as np
import pytest

from guerdon.datasets.formats.lerobot_stats import QUANTILES, complete_stats, join_stats, picture_stats, vector_stats


def test_vector_by_hand():
    stats = vector_stats(np.array([[1.0], [2.0], [6.0]]))
    assert stats is not None
    # mean (1 + 2 + 6) / 3 = 3; variance (4 + 1 + 9) / 3; median 2; 90 % lies 0.8 of the way from 2 to 6
    assert [float(stats[k][0]) for k in ("min", "max", "mean", "q50")] == [1, 6, 3, 2]
    assert float(stats["std"][0]) == pytest.approx((14 / 3) ** 0.5)
    assert float(stats["q90"][0]) == pytest.approx(2 + 0.8 * 4)
    assert stats["count"].tolist() == [3]
    assert vector_stats(np.zeros((0, 2))) is None


@pytest.mark.parametrize("count", [1, 7])
def test_pictures_against_numpy(count):
    frames = np.random.default_rng(count).integers(0, 256, (count, 3, 5, 6)).astype(np.uint8)
    stats = picture_stats(frames)
    assert stats is not None
    pixels = frames.transpose(0, 2, 3, 1).reshape(-1, 3) / 255
    want = {"min": pixels.min(0), "max": pixels.max(0), "mean": pixels.mean(0), "std": pixels.std(0)}
    want |= {name: np.quantile(pixels, level, axis=0) for name, level in QUANTILES.items()}
    for name, value in want.items():
        assert stats[name].shape == (3, 1, 1)
        np.testing.assert_allclose(stats[name].ravel(), value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_joining_equals_all_at_once():
    rng = np.random.default_rng(0)
    parts = [rng.normal(i, 1 + i, (n, 3)) for i, n in enumerate((4, 1, 9))]
    joined = join_stats([s for s in map(vector_stats, parts) if s is not None])
    everything = vector_stats(np.concatenate(parts))
    assert everything is not None
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(joined[name], everything[name], rtol=1e-12)
    # quantiles are averaged by count: (4 a + 1 b + 9 c) / 14
    medians = [np.median(part, axis=0) for part in parts]
    np.testing.assert_allclose(joined["q50"], (4 * medians[0] + medians[1] + 9 * medians[2]) / 14)


def test_an_episode_without_known_values_gets_the_statistics_of_the_others():
    parts = [{"x": vector_stats(np.array(values)), "never": None} for values in ([1.0, 3.0], [], [5.0])]
    whole, rows = complete_stats(parts)
    assert list(whole) == ["x"], "a column that is known nowhere has no statistics"
    assert whole["x"]["mean"] == [3.0] and whole["x"]["count"] == [3] and whole["x"]["max"] == [5.0]
    assert [row["stats/x/mean"] for row in rows] == [[2.0], [3.0], [5.0]]
    assert [row["stats/x/count"] for row in rows] == [[2], [1], [1]]
    assert all(set(row) == set(rows[0]) for row in rows) and "stats/never/mean" not in rows[0]
