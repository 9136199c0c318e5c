"""The demo runs its every step on the small task, goes on where it was interrupted, and refuses folders of others."""

import json

import pytest

from guerdon.commands.demo import Size, run_demo, wilson_interval

TINY = Size(
    task="mujoco/reach",
    horizon=20,
    logs=10,
    held_out=4,
    demonstrations=2,
    reward_epochs=1,
    rollouts=2,
    steps=160,
    judged=4,
    workers=0,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    run_demo(out, size=TINY)
    return out


@pytest.mark.slow
def test_leaves_everything_it_names(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results["rates"]) == {"cloned", "learned reward", "sparse success"}
    for rate in results["rates"].values():
        assert rate["low"] <= rate["success"] <= rate["high"]
        assert rate["episodes"] == TINY.judged
    assert [len(points) for points in results["curves"].values()] == [2, 2]
    assert (finished / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (finished / "report.html").read_text()[:500]
    assert (finished / "scores" / "scores.parquet").is_file()
    assert not list(finished.glob(".*"))  # nothing half-written


@pytest.mark.slow
def test_a_finished_demo_keeps_its_parts_and_gives_the_same_result(finished):
    before = (finished / "results.json").read_text()
    stamps = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    (finished / "results.json").unlink()
    run_demo(finished, size=TINY)
    assert (finished / "results.json").read_text() == before
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")} == stamps


@pytest.mark.slow
def test_other_settings_and_other_folders_are_refused(finished, tmp_path):
    with pytest.raises(ValueError, match="other settings"):
        run_demo(finished, seed=1, size=TINY)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no demo"):
        run_demo(tmp_path, size=TINY)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(OSError, match=r"cannot write .*mine.txt/demo: .*; choose another folder"):
        run_demo(tmp_path / "mine.txt" / "demo", size=TINY)


@pytest.mark.parametrize(
    ("won", "played", "low", "high"),
    # by hand for 5 of 10: centre ½; half = 1.96/(1 + 0.384)·√(0.025 + 0.0096) = 0.2634
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_wilson_interval_by_hand(won, played, low, high):
    assert wilson_interval(won, played) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_against_scipy():
    from scipy.stats import binomtest

    for won, played in [(1, 7), (37, 100), (99, 100)]:
        expected = binomtest(won, played).proportion_ci(method="wilson")
        assert wilson_interval(won, played) == pytest.approx((expected.low, expected.high), abs=1e-6)
    with pytest.raises(ValueError, match="at least one episode"):
        wilson_interval(0, 0)
