"""Filters of recorded episodes: plain conditions, the unknown, counts, and what a data module makes of them."""

import pytest
import yaml

from guerdon.cli import main
from guerdon.datasets.filters import EpisodeFilter, FilterCount
from guerdon.datasets.formats.lerobot_writer import LeRobotWriter
from guerdon.datasets.module import EpisodeData

SUCCESS = (1.0, 0.0, 0.5, None)
QUALITY = ("expert", "noisy", "")


@pytest.fixture
def logs(tmp_path, make_episode):
    """Twelve episodes: success, failure, partial, unknown in turn; quality and source in turns of three and two."""
    with LeRobotWriter(tmp_path / "logs", fps=10) as writer:
        for i in range(12):
            facts = {"success": SUCCESS[i % 4], "quality": QUALITY[i % 3], "source": i % 2, "context": f"start {i}"}
            writer.add(make_episode(i, 5, camera=False, **facts))
    return str(tmp_path / "logs")


def places(logs, **more):
    data = EpisodeData(logs, **more)
    data.setup("fit")
    return data.places


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({"success": True}, {0, 4, 8}),
        ({"success": False}, {1, 5, 9}),
        ({"quality": "expert"}, {0, 3, 6, 9}),
        ({"quality": ["expert", "noisy"]}, {0, 1, 3, 4, 6, 7, 9, 10}),
        ({"source": 1}, {1, 3, 5, 7, 9, 11}),
        ({"source": [0, 1]}, set(range(12))),
        ({"success": True, "quality": ["noisy"], "source": [0]}, {4}),
    ],
)
def test_every_condition_has_to_be_met_and_the_unknown_meets_none(logs, conditions, kept):
    found = places(logs, keep=EpisodeFilter(**conditions), val_fraction=0.0)
    assert set(found["train"]) == kept and not found["val"]
    assert places(logs, **conditions, val_fraction=0.0) == found  # one by one


def test_the_split_is_that_without_a_filter(logs):
    whole = places(logs, val_fraction=0.4)
    kept = places(logs, val_fraction=0.4, keep=EpisodeFilter(source=0))
    for side in ("train", "val"):
        assert kept[side] == [place for place in whole[side] if place % 2 == 0]


def test_an_empty_result_counts_what_met_each_condition(logs):
    keep = EpisodeFilter(success=True, quality="perfect", source=1)
    with pytest.raises(ValueError) as caught:
        places(logs, keep=keep, val_fraction=0.0)
    text = str(caught.value)
    assert "keeps 0 of 12 training" in text
    assert "success: 3 (recorded: 1 3, 0 3, 0.5 3, unknown 3)" in text
    assert "quality perfect: 0 (recorded: expert 4, noisy 4, unknown 4)" in text
    assert "source 1: 6 (recorded: 0 6, 1 6)" in text


def test_a_filter_that_leaves_no_validation_episode_is_named(logs):
    (held,) = places(logs, val_fraction=0.08)["val"]
    data = EpisodeData(logs, val_fraction=0.08, keep=EpisodeFilter(source=1 - held % 2))
    with pytest.raises(ValueError, match=r"keep leaves none of the 1 validation episodes.*source.*condition of keep"):
        data.setup("validate")


def test_a_filter_needs_a_condition():
    with pytest.raises(ValueError, match="needs a condition"):
        EpisodeFilter()
    with pytest.raises(ValueError, match="expected at least one each"):
        EpisodeFilter(quality=[])


def test_without_a_filter_everything_is_kept(make_episode):
    count = FilterCount(None)
    assert count.add(make_episode(0, 5)) and (count.seen, count.kept, count.describe()) == (1, 1, "")


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True])
def test_a_filter_in_a_configuration(logs, tmp_path, monkeypatch, capsys, flat):
    monkeypatch.chdir(tmp_path)
    keep = {"class_path": "guerdon.datasets.filters.EpisodeFilter", "init_args": {"success": True}}
    data = {"path": logs, "val_fraction": 0.0} | ({"success": True} if flat else {"keep": keep})
    config = {
        "model": {
            "class_path": "guerdon.PolicyOptimizer",
            "init_args": {
                "policy": {"class_path": "guerdon.GaussianPolicy", "init_args": {"horizon": 1, "execute": 1}},
                "advantage": "guerdon.Uniform",
                "objective": "guerdon.WeightedImitation",
                "passes": 1,
            },
        },
        "data": {"class_path": "guerdon.EpisodeData", "init_args": data},
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    (tmp_path / "clone.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "clone.yaml", "--out", "run"]) == 0
    assert "kept 3 of 12 training and 0 of 0 validation episodes; success: 3" in capsys.readouterr().err
