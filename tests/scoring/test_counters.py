"""Counters of a model and its parts: found, summed, and told from what was counted before."""

from collections import Counter

from torch import nn

from guerdon.core.interfaces import RewardModel
from guerdon.scoring.counters import add_counters, model_counters, subtract_counters


class Asking(nn.Module):
    def __init__(self, **failures):
        super().__init__()
        self.failures = Counter(failures)
        self.abstained = 3  # no counter


class Judge(RewardModel):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.abstained = Counter({"no idea": 2, "never": 0, 404: 1})


def test_counters_are_found_in_every_module_and_summed_by_class():
    model = Judge(Asking(timeout=1), Asking(timeout=2, refusal=1), Asking())
    assert model_counters(model) == {
        "Judge.abstained": {"no idea": 2, "404": 1},
        "Asking.failures": {"timeout": 3, "refusal": 1},
    }
    assert model_counters(Judge.__mro__[1]()) == {}  # a plain reward model counts nothing


def test_sums_and_differences_leave_out_what_is_nothing():
    one, other = {"a": {"x": 1, "y": 2}, "b": {"z": 0}}, {"a": {"x": 3}, "c": {"w": 1}}
    total = add_counters(one, other)
    assert total == {"a": {"x": 4, "y": 2}, "c": {"w": 1}}
    assert subtract_counters(total, one) == {"a": {"x": 3}, "c": {"w": 1}}
    assert subtract_counters(total, total) == {} == add_counters({}, {})
