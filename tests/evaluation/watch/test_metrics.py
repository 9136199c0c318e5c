"""The metrics of a learned reward against outcomes, worked by hand."""

import math
from dataclasses import replace

from guerdon.evaluation.watch.metrics import EpisodeRecord, compare


def test_doubtful_episodes_are_no_sample():
    asked = EpisodeRecord(name="a", learned=1.0, score=0.9, success=0.0, recorded=math.nan, drawn="doubtful")
    assert compare([asked], 0.5)["failures"] == 0
    assert compare([replace(asked, drawn="random")], 0.5)["false_positive_rate"] == 1
