"""Score files: rows of an episode as they are written, and what is read back, of earlier versions too."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from guerdon.core.batch import Labelled, RewardEstimates, ValueEstimates
from guerdon.datasets.episodes import BadEpisodeError
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.scoring.scores import SCHEMA, ScoredEpisode, bad_episodes, bad_rows, episode_rows, read_scores


def rewards(steps, known, progress=None):
    """Estimates of one row: reward t at step t where known."""
    valid = torch.tensor([known])
    values = torch.arange(float(steps))[None]
    column = None if progress is None else Labelled(values=torch.tensor([progress]), valid=torch.ones(1, steps + 1) > 0)
    return RewardEstimates(rewards=values * valid, valid=valid, progress=column)


def test_the_rows_of_a_reward_model_by_hand(episode):
    table = episode_rows(episode(4, 3, fps=5.0), rewards(3, [True, False, True], [0.0, 0.25, 0.5, 1.0]), 0)
    assert table.schema == SCHEMA
    found = table.to_pydict()
    assert found["episode_index"] == [4] * 4 and found["frame_index"] == [0, 1, 2, 3]
    assert found["timestamp"] == [0.0, 0.2, 0.4, 0.6]
    assert found["reward"] == [0.0, None, 2.0, None] and found["progress"] == [0.0, 0.25, 0.5, 1.0]
    assert found["valid"] == [True] * 4 and found["status"] == ["ok"] * 4 and found["reason"] == [None] * 4
    for name in ("success", "std", "value", "q"):
        assert found[name] == [None] * 4


def test_the_rows_of_a_critic_by_hand(episode):
    estimates = ValueEstimates(v=torch.tensor([[1.0, 2.0, 3.0]]), q=torch.tensor([[4.0, 5.0]]))
    for terminated, last in ((False, 3.0), (True, None)):  # nothing follows a termination
        found = episode_rows(episode(0, 2), estimates, 0, terminated).to_pydict()
        assert found["value"] == [1.0, 2.0, last] and found["q"] == [4.0, 5.0, None]
        assert found["reward"] == [None] * 3 and found["valid"] == [True, True, not terminated]


def test_an_observation_that_was_not_made_has_no_row(episode):
    state = np.zeros((3, 3), np.float32)
    table = episode_rows(episode(0, 2, state=state, last_observed=False, frames={}), rewards(2, [True, True]), 0)
    assert table["frame_index"].to_pylist() == [0, 1] and table["reward"].to_pylist() == [0.0, 1.0]


def test_a_number_that_is_none_where_the_model_claims_to_know_spoils_the_episode(episode):
    claimed = rewards(2, [True, True], [0.0, float("nan"), 1.0])
    values = ValueEstimates(v=torch.tensor([[1.0, float("inf"), 3.0]]))
    for estimates in (claimed, values):
        found = episode_rows(episode(7, 2), estimates, 0).to_pydict()
        assert found["status"] == ["model_not_finite"] * 3 and found["valid"] == [False] * 3
        assert "NaN or infinity" in found["reason"][0]
    beyond = ValueEstimates(v=torch.tensor([[1.0, 2.0, float("inf")]]))  # of the observation after the end
    assert set(episode_rows(episode(7, 2), beyond, 0, terminated=True)["status"].to_pylist()) == {"ok"}


def test_rows_of_a_bad_episode_are_null_and_name_it():
    error = BadEpisodeError(3, "video", "there is no such file")
    for steps, rows in ((4, 4), (0, 1)):
        table = bad_rows(error, steps)
        assert table.schema == SCHEMA and len(table) == rows
        assert set(table["status"].to_pylist()) == {"video"} and table["progress"].null_count == rows
        assert [(e.index, e.status, e.reason) for e in bad_episodes(table)] == [(3, "video", "there is no such file")]


def test_an_episode_knows_its_sum_and_its_last_number():
    some = np.array([np.nan, 0.5, np.nan])
    one = ScoredEpisode(
        index=0, status="ok", seconds=np.arange(3.0), progress=some, success=some * np.nan, reward=some, std=some
    )
    assert one.usable and one.total == 0.5 and one.last("progress") == 0.5
    assert np.isnan(one.last("success")) and np.isnan(one.value).all() and len(one.q) == 3
    nothing = ScoredEpisode(
        index=0, status="video", seconds=some, progress=some, success=some, reward=some * 0, std=some
    )
    assert not nothing.usable and nothing.total == 0.0


def test_what_is_no_score_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run `guerdon score` first"):
        read_scores(tmp_path / "nowhere")
    (tmp_path / "parts").mkdir()
    with pytest.raises(FileNotFoundError, match="the run was interrupted"):
        read_scores(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "scores.parquet")
    with pytest.raises(ValueError, match="is no score file: it lacks episode_index"):
        read_scores(tmp_path)
    (tmp_path / "scores.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        read_scores(tmp_path / "scores.parquet")


@pytest.fixture
def scored(data, tmp_path, score):
    return score(
        ProgressReward(state_size=3, observer=ObservationEncoder(width=8, layers=0)), data, tmp_path / "out"
    ).path


def test_a_file_from_before_anything_was_counted_is_read(scored):
    table = pq.read_table(scored)
    added = {b"observations", b"estimated", b"counters"}
    old = {k: v for k, v in table.schema.metadata.items() if k not in added}
    assert len(old) == len(table.schema.metadata) - 3
    pq.write_table(table.replace_schema_metadata(old), scored)
    found = read_scores(scored)
    assert found.estimated == (41, 41) and found.counters == {}


def test_a_file_from_before_critics_were_scored_is_read(scored):
    table = pq.read_table(scored)
    assert table["value"].null_count == table["q"].null_count == len(table)
    pq.write_table(table.drop_columns(["value", "q"]), scored)
    scores = read_scores(scored)
    assert scores.table.column_names[-2:] == ["value", "q"] and len(scores.episodes) == 7
    assert all(np.isnan(e.value).all() and len(e.value) == len(e.seconds) for e in scores.episodes)
