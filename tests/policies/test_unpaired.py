"""Preference optimisation on flags of single decisions."""

import copy
from typing import Any

import lightning
import pytest
import torch

from guerdon.core.batch import Advantages, Decision, End, Observation, TrajectoryBatch
from guerdon.core.losses import kto
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.advantages.flagged import FlaggedDecisions
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.optimizer import PolicyOptimizer
from guerdon.policies.unpaired import UnpairedPreference
from guerdon.preference.surrogate import decision_log_prob

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def logs(rows=12, steps=10, seed=0):
    """Successes move up, failures move down at their end."""
    generator = torch.Generator().manual_seed(seed)
    actions = 0.3 * torch.randn(rows, steps, 1, generator=generator)
    good = torch.arange(rows) % 2 == 0
    actions[good] += 1
    actions[~good, -3:] -= 1
    return TrajectoryBatch(
        state=torch.randn(rows, steps + 1, 2, generator=generator),
        actions=actions,
        mask=torch.ones(rows, steps, dtype=torch.bool),
        end=torch.where(good, int(End.SUCCESS), int(End.FAILURE)),
    )


class Once:
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def __iter__(self):
        return iter([self.batch])


def policy():
    torch.manual_seed(0)
    return GaussianPolicy(state_size=2, action_size=1, hidden=(8,))


def fit(module, batch, **more: Any):
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1}
    trainer = lightning.Trainer(**(quiet | more))
    trainer.fit(module, Once(batch))
    return trainer


def test_the_loss_is_that_of_kto_with_the_batch_as_the_reference_point():
    actor, other = policy(), GaussianPolicy(state_size=2, action_size=1, hidden=(4,))
    objective = UnpairedPreference(beta=0.7)
    objective.attach(other)
    observation = Observation(state=torch.randn(6, 2))
    decision = Decision(chunk=torch.randn(6, 1, 1), executed=torch.ones(6, dtype=torch.long))
    signs = torch.tensor([1.0, 1, -1, 1, -1, -1])
    weight = torch.tensor([1.0, 2, 1, 0, 1, 3])
    terms = objective(actor, observation, decision, signs, weight)
    ratio = decision_log_prob(actor, observation, decision) - decision_log_prob(other, observation, decision)
    point = ratio.detach().mean().clamp(min=0)
    assert float(terms["loss"].detach()) == pytest.approx(
        float(kto(ratio, signs > 0, point, 0.7, weight=weight).detach())
    )
    assert not terms["reference_point"].requires_grad and float(terms["desirable_share"]) == 0.5
    assert float(terms["desirable_reward"]) == pytest.approx(0.7 * float(ratio[signs > 0].mean().detach()), abs=1e-6)


def test_weights_follow_the_paper_s_rule():
    flags = torch.tensor([[1.0, 1, 1, -1, 0], [1, -1, 1, 1, 1]])
    batch = logs(rows=2, steps=5)
    advantages = Advantages(advantages=flags, returns=flags, valid=flags != 0)
    weight = UnpairedPreference().weights(batch, advantages)
    desirable, undesirable = float(weight[flags > 0].sum()), float(weight[flags < 0].sum())
    assert 1 <= desirable / undesirable <= 4 / 3 + 1e-6
    only = Advantages(advantages=flags.abs(), returns=flags, valid=flags != 0)
    assert float(UnpairedPreference().weights(batch, only)[flags != 0].min()) == 1


def test_desirable_actions_become_likelier_and_undesirable_ones_less_likely():
    for seed in range(3):
        actor, batch = policy(), logs(seed=seed)
        before = copy.deepcopy(actor)
        module = PolicyOptimizer(
            actor,
            FlaggedDecisions(rate=10.0, seconds=0.3),
            UnpairedPreference(beta=0.5),
            passes=20,
            optimizer=PolicyAdam(1e-2),
        )
        fit(module, batch)
        changes = []
        for row, steps in ((0, range(10)), (1, range(7, 10))):
            at = batch.at(torch.full((len(steps),), row), torch.tensor(list(steps)), 1)
            with torch.no_grad():
                changes.append(float((decision_log_prob(actor, *at) - decision_log_prob(before, *at)).mean()))
        assert changes[0] > 0 > changes[1]


def test_the_reference_is_the_policy_before_the_first_update():
    actor = policy()
    start = copy.deepcopy(actor.state_dict())
    objective = UnpairedPreference()
    with pytest.raises(ValueError, match="there is no reference yet"):
        objective(
            actor,
            Observation(state=torch.zeros(1, 2)),
            Decision(chunk=torch.zeros(1, 1, 1), executed=torch.ones(1, dtype=torch.long)),
            torch.ones(1),
            torch.ones(1),
        )
    fit(PolicyOptimizer(actor, FlaggedDecisions(rate=10.0), objective, passes=5), logs())
    assert objective.reference is not None
    inputs = ("mean", "std", "fitted")  # fitted on the first batch, before the copy counts
    for name, value in objective.reference.state_dict().items():
        assert name.rpartition(".")[2] in inputs or torch.equal(value, start[name]), name
    with pytest.raises(ValueError, match="beta 0"):
        UnpairedPreference(beta=0)
