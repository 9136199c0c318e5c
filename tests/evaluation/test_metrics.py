"""The list of metrics."""

from guerdon.evaluation.evaluate import METRICS, evaluate
from guerdon.evaluation.predictions import CONTROLS, MODEL

from .scripted import FEW, scored


def test_keys_and_titles_are_unique_and_sources_exist():
    assert len({m.key for m in METRICS}) == len({m.title.text for m in METRICS}) == len(METRICS)
    assert all(m.source in (MODEL, *CONTROLS) for m in METRICS)
    assert all(m.key.isidentifier() for m in METRICS)


def test_every_metric_is_computed_or_compared():
    rows = scored([0.9, 0.1], [1, 0])
    found = evaluate(rows, settings=FEW, against=rows)
    assert found.comparison is not None
    own = {m.key for m in METRICS if m.section != "comparison"}
    assert set(found.metrics[MODEL]) == own
    assert all(m.compared for m in METRICS if m.section == "comparison")
