"""The three ways to pay milestones, by hand."""

from typing import Any

import pytest
import torch

from guerdon.core.batch import End, Labelled, TrajectoryBatch
from guerdon.rewards.milestones.payment import MilestonePayment


def paid(mode, end=End.CUT, **more):
    z = torch.tensor([[0, 0.3, 0.5, 0.4, 1.0]])
    y = torch.tensor([[0, 1, 1, 0.0]])
    every = torch.ones(1, 5, dtype=torch.bool)
    batch = TrajectoryBatch(
        state=torch.zeros(1, 5, 1), actions=torch.zeros(1, 4, 0), mask=every[:, 1:], end=torch.tensor([int(end)])
    )
    payment = MilestonePayment(mode, milestones=2, gamma=0.9, **more)
    return payment.pay(Labelled(values=y, valid=every[:, 1:]), Labelled(values=z, valid=every), batch)


def test_the_three_modes_by_hand():
    assert paid("additive", bonus=0.5).rewards.tolist() == [[0, 0.5, 0.5, 0]]
    # milestones passed 0, 0, 1, 0, 2: falling back loses none, and the second is paid once it comes
    assert paid("first_hit").rewards.tolist() == [[0, 1, 0, 1]]
    assert paid("first_hit", slack=0.2).rewards.tolist() == [[1, 0, 0, 1]]  # 0.3 + 0.2 passes the first
    # ½ (0.9 · 0.3 − 0), ½ (0.9 · 0.5 − 0.3), ½ (0.9 · 0.4 − 0.5), and ½ (0.9 · 1 − 0.4), or ½ (0 − 0.4) after an end
    assert paid("potential").rewards[0].tolist() == pytest.approx([0.135, 0.075, -0.07, 0.25])
    ended = paid("potential", End.SUCCESS)
    assert ended.rewards[0].tolist() == pytest.approx([0.135, 0.075, -0.07, -0.2])
    assert sum(0.9**t * r for t, r in enumerate(ended.rewards[0].tolist())) == pytest.approx(0, abs=1e-6)  # −½ Φ_0
    assert ended.terms["milestone"].tolist() == [[0, 1, 1, 0]]


def test_a_model_fills_in_what_the_payment_leaves_out():
    filled = MilestonePayment(mode="first_hit", bonus=2.0).filled(milestones=3, slack=0.1)
    assert (filled.mode, filled.milestones, filled.bonus, filled.slack) == ("first_hit", 3, 2.0, 0.1)
    kept = MilestonePayment(milestones=5, slack=0.0, beta=0.2, gamma=0.9).filled(milestones=3, slack=0.1)
    assert (kept.milestones, kept.slack, kept.beta, kept.gamma) == (5, 0.0, 0.2, 0.9)


def test_bad_settings_are_named():
    refused: list[tuple[dict[str, Any], str]] = [
        ({"milestones": 0}, "milestones 0"),
        ({"bonus": float("inf")}, "bonus inf"),
        ({"gamma": 1.5}, r"gamma 1\.5"),
        ({"slack": 1.0}, r"slack 1\.0"),
    ]
    for wrong, match in refused:
        with pytest.raises(ValueError, match=match):
            MilestonePayment(**wrong)
    column = Labelled(values=torch.zeros(1, 2), valid=torch.ones(1, 2, dtype=torch.bool))
    batch = TrajectoryBatch(state=torch.zeros(1, 2, 1), actions=torch.zeros(1, 1, 0), mask=column.valid[:, 1:])
    step = Labelled(values=column.values[:, 1:], valid=column.valid[:, 1:])
    with pytest.raises(ValueError, match="first_hit needs the number of milestones"):
        MilestonePayment("first_hit").pay(step, column, batch)


def test_a_saved_payment_is_the_same(tmp_path):
    MilestonePayment("first_hit", milestones=2, slack=0.2).save_pretrained(tmp_path / "payment")
    opened = MilestonePayment.from_pretrained(tmp_path / "payment")
    assert (opened.mode, opened.milestones, opened.slack) == ("first_hit", 2, 0.2)
