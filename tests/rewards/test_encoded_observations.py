"""Between evaluated observations the last one holds; labels and weights are read where something was evaluated."""

import torch

from guerdon.core.batch import Labelled, TrajectoryBatch
from guerdon.rewards.encoded_observations import EncodedObservations, last_at_or_before


def encoded(step):
    return EncodedObservations(step=torch.tensor(step), hidden=torch.zeros(len(step), len(step[0]), 1))


def rows(*lengths, **more):
    width = max(lengths)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    state, actions = torch.zeros(len(lengths), width + 1, 0), torch.zeros(*mask.shape, 0)
    return TrajectoryBatch(state=state, actions=actions, mask=mask, **more)


def test_the_last_of_ascending_steps_is_found():
    step = torch.tensor([[1, 4, 6], [0, 2, -1], [-1, -1, -1]])
    found = last_at_or_before(step, torch.arange(8).expand(3, -1).contiguous())
    assert found.tolist() == [[-1, 0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1], [-1] * 8]


def test_an_observation_holds_the_last_evaluated_one_if_it_was_made():
    batch = rows(4, 2, last_observed=torch.tensor([False, True]))
    place, valid = encoded([[1, 3], [0, -1]]).last_at_observations(batch)
    assert valid.tolist() == [[False, True, True, True, False], [True, True, True, False, False]]
    assert place[0, 1:4].tolist() == [0, 0, 1] and place[1, :3].tolist() == [0, 0, 0]


def test_labels_are_selected_where_something_was_evaluated():
    label = Labelled(values=torch.tensor([[0.1, 0.2, torch.nan, 0.4]]), valid=torch.tensor([[True, True, False, True]]))
    found = encoded([[1, 2, 3, -1]]).select(label)
    assert found.valid.tolist() == [[True, False, True, False]]
    assert torch.allclose(found.values, torch.tensor([[0.2, 0, 0.4, 0]]))


def test_an_observation_weighs_as_the_heavier_step_next_to_it():
    batch = rows(3, 2, weight=torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 9.0]]))
    weights = encoded([[0, 1, 2, 3], [0, 1, 2, -1]]).weights(batch)
    # steps 0, 1, 2 lie between observations 0 1 2 3; the second row has two steps
    assert weights.tolist() == [[1, 1, 2, 2], [3, 3, 0, 0]]
    assert encoded([[0, -1]]).mask.tolist() == [[True, False]]


def test_a_batch_on_the_device_of_the_features_stays_as_it_is():
    batch, meta = rows(2), torch.device("meta")
    assert encoded([[0, 1]]).match_device(batch) is batch
    step = torch.zeros(1, 2, dtype=torch.long, device=meta)
    away = EncodedObservations(step=step, hidden=torch.zeros(1, 2, 1, device=meta))
    assert away.match_device(batch).mask.device == meta
