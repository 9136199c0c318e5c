import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from guerdon.core.batch import End, TrajectoryBatch
from guerdon.datasets.labels import LabelFactory
from guerdon.preference.pairs import preference_pairs
from guerdon.rewards.encoded_observations import EncodedObservations
from guerdon.rewards.heads import PREDICTS, Heads, PredictionSettings, pooled
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.testing import check_reward_model, trajectory_batches


def rows(steps, end, states=2, **more):
    width = max(steps)
    mask = torch.arange(width)[None] < torch.tensor(steps)[:, None]
    state = torch.arange(width + 1).float()[None, :, None].repeat(len(steps), 1, states)
    more = {"instructions": ("open",) * len(steps), "task": torch.zeros(len(steps), dtype=torch.long), **more}
    return TrajectoryBatch(
        state=state,
        actions=torch.zeros(len(steps), width, 0),
        mask=mask,
        end=torch.tensor([int(e) for e in end]),
        **more,
    )


def fixed(head, **constants):
    """Heads that say the same of everything: the given logits."""
    with torch.no_grad():
        for name, bias in constants.items():
            head.of[name].weight.zero_()
            head.of[name].bias.copy_(torch.tensor(bias))
    return head


def tokens(batch, width=4):
    index = torch.arange(batch.mask.shape[1] + 1).expand(len(batch), -1)
    made = batch.observed & (batch.steps > 0)[:, None]
    return EncodedObservations(step=torch.where(made, index, -1), hidden=torch.randn(*index.shape, width))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("predicts", "weight"),
    [(PREDICTS, 0.5), (("progress",), 0.0), (("success",), 1.0), (("preference",), 0.0), (("remaining",), 0.0)],
)
@settings(max_examples=6)
@given(batch=trajectory_batches(state_size=2, stored_labels=False))
def test_any_subset_keeps_every_promise(predicts, weight, batch):
    labelled = LabelFactory(assume_success=True).targets(batch)
    if not bool(labelled.labels["progress"].valid.any()) or (
        "preference" in predicts and not len(preference_pairs(labelled))
    ):
        return
    torch.manual_seed(0)
    model = ProgressReward(
        state_size=2, predicts=predicts, success_weight=weight, observer=ObservationEncoder(width=16, layers=1, heads=2)
    )
    check_reward_model(model, labelled)


def test_remaining_time_by_hand():
    batch = LabelFactory().targets(rows([3], [End.SUCCESS]))
    head = fixed(Heads(4, PredictionSettings(["remaining"], bins=2, longest=3)), remaining=[0.0, 0.0])
    seen = tokens(batch)
    # centres 0 and log 4, so 0 and 3 steps, each with probability ½: 1.5 steps to go everywhere, Φ never changes
    estimates = head.estimates(seen, batch)
    assert estimates.terms["remaining"].tolist() == [pytest.approx([1.5] * 3)]
    assert estimates.rewards.tolist() == [[0, 0, 0]] and estimates.progress is None
    assert estimates.std.detach().tolist() == [
        pytest.approx([math.sqrt(2 * 2.25 / 9)] * 3)
    ]  # variance 1.5² / 3², twice
    parts = head.loss(seen, batch)
    assert float(parts["remaining_loss"].detach()) == pytest.approx(math.log(2))  # any target against a fair coin
    assert float(parts["remaining_labels"]) == 4
    sure = fixed(head, remaining=[50.0, -50.0])
    # all mass on 0: the cross-entropy is the weight of the other centre, log(1 + left) / log 4, times 100
    wanted = 100 * sum(math.log(1 + left) / math.log(4) for left in (3, 2, 1, 0)) / 4
    assert float(sure.loss(seen, batch)["remaining_loss"].detach()) == pytest.approx(wanted, rel=1e-4)


def test_preferences_by_hand():
    batch = LabelFactory().targets(rows([3, 2], [End.SUCCESS, End.FAILURE]))
    head = Heads(1, PredictionSettings(["preference"]))
    with torch.no_grad():
        linear: Any = head.of["preference"]
        linear.weight.fill_(1.0)
        linear.bias.zero_()
    seen = tokens(batch, 1)
    seen = EncodedObservations(step=seen.step, hidden=torch.tensor([[[1.0], [2], [3], [6]], [[1], [1], [4], [9]]]))
    parts = head.loss(seen, batch)
    # means 12 / 4 = 3 and 6 / 3 = 2 (the padding's 9 does not count): −log σ(1)
    assert float(parts["preference_loss"].detach()) == pytest.approx(math.log1p(math.exp(-1)))
    assert (float(parts["preference_pairs"]), float(parts["preference_accuracy"])) == (1, 1)
    assert head.estimates(seen, batch).rewards.tolist() == [[2, 3, 6], [1, 4, 0]]
    alone = LabelFactory().targets(rows([3], [End.SUCCESS]))
    assert float(head.loss(tokens(alone, 1), alone)["preference_loss"].detach()) == 0
    assert pooled(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)).tolist() == [0]


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="the reward would be 0"):
        PredictionSettings(["success"])
    with pytest.raises(ValueError, match="expected some of progress, success, preference, remaining"):
        PredictionSettings(["speed"])
    with pytest.raises(ValueError, match="each once"):
        PredictionSettings(["progress", "progress"])
    with pytest.raises(ValueError, match="bins is 1"):
        PredictionSettings(bins=1)
    with pytest.raises(ValueError, match="learn from labels progress and success, this batch holds none"):
        batch = rows([3], [End.SUCCESS])
        Heads(4, PredictionSettings(["preference"])).loss(tokens(batch), batch)


def train(head_names, seed, **more):
    """Reach a line: progress is the first state number over six; lengths differ, so a clock does not do."""
    torch.manual_seed(seed)
    lengths = torch.randint(3, 12, (32,), generator=torch.Generator().manual_seed(seed)).tolist()
    batch = rows(lengths, [End.SUCCESS] * 32)
    scale = torch.tensor(lengths).float()[:, None, None]
    batch = LabelFactory(0.0, 0.0, 0.0, clip=0.5).draw(
        TrajectoryBatch(**{**vars(batch), "state": batch.state / scale}), torch.Generator().manual_seed(seed)
    )[0]
    model = ProgressReward(
        state_size=2, predicts=head_names, longest=12, observer=ObservationEncoder(width=16, layers=0), **more
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(batch)["loss"].backward()
        optimizer.step()
    return model.eval(), batch


@pytest.mark.slow
def test_the_heads_learn_over_seeds():
    accuracy, gap = [], []
    for seed in range(4):
        model, batch = train(("remaining", "preference"), seed)
        parts = model.loss(batch)
        accuracy.append(float(parts["preference_accuracy"]))
        left = batch.labels["remaining"]
        told = model(batch).terms["remaining"].detach()
        known = left.valid[:, 1:] & batch.mask
        error = (told - left.values[:, 1:])[known].abs().mean()
        constant = (left.values[:, 1:][known] - left.values[:, 1:][known].median()).abs().mean()
        gap.append(float(error / constant))
    assert sum(accuracy) / 4 > 0.95 and sum(gap) / 4 < 0.6
