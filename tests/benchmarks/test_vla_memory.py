"""The benchmark of VLA policies on a tiny checkpoint."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_way_is_measured_on_a_tiny_checkpoint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("vla_memory")
    benchmark.write_checkpoint("tiny", tmp_path / "tiny")
    setting = benchmark.Setting(folder=str(tmp_path / "tiny"), device="cpu", dtype="float32", batch=2, steps=1)
    found = {way: benchmark.measure(way, setting) for way in benchmark.WAYS}
    assert all(one["seconds"] > 0 and one["peak_bytes"] > 0 for one in found.values())
    assert len({one["tokens"] for one in found.values()}) == 1, "every way reads the same prompts"
    learning = {way: one["learning"] for way, one in found.items()}
    assert learning["lora"] == learning["lora, checkpointed"] > learning["frozen"] == learning["act"]
