"""Minibatches: fields stay aligned, and equal what the batch itself gives at the same rows and steps."""

from dataclasses import replace

import pytest
import torch

from guerdon.core.batch import Advantages, Sampled
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.minibatches import DecisionPoints, shuffled

from .test_optimizer import rollout


@pytest.mark.parametrize("instructions", [("push",) * 4, ("push", "pull", "push", "lift")])
def test_a_minibatch_is_what_the_batch_holds_there(instructions):
    policy = GaussianPolicy(2, 2, horizon=3, execute=2, hidden=(4,))
    batch = rollout(policy, rows=4, steps=7)
    frames = torch.randint(0, 255, (4, 8, 3, 2, 2), dtype=torch.uint8)
    step = torch.arange(8).expand(4, -1)
    batch = replace(
        batch,
        instructions=instructions,
        frames={"front": Sampled(values=frames, step=step)},
        features={"clip/front": Sampled(values=torch.randn(4, 8, 5), step=step)},
    )
    valid = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) > 0.3
    numbers = torch.arange(16.0).view(4, 4)
    told = Advantages(advantages=numbers, returns=numbers, valid=valid)
    points = DecisionPoints(policy, batch, told, learns=True)
    assert points.of(numbers).tolist() == numbers[valid].tolist()
    chosen = torch.tensor([3, 0, 5])
    part = points.minibatch(chosen, chosen)
    rows, decisions = (index[chosen] for index in valid.nonzero(as_tuple=True))
    assert part.rows.tolist() == rows.tolist() and part.decisions.tolist() == decisions.tolist()
    assert part.steps.tolist() == (2 * decisions).tolist()
    observation, decision = batch.at(rows, part.steps, 3)
    assert torch.equal(part.observation.state, observation.state)
    assert torch.equal(part.observation.frames["front"], observation.frames["front"])
    assert torch.equal(part.observation.features["clip/front"], observation.features["clip/front"])
    assert part.observation.instructions == observation.instructions == tuple(instructions[i] for i in rows)
    assert torch.equal(part.decision.chunk, decision.chunk) and torch.equal(part.decision.executed, decision.executed)
    assert decision.log_prob is not None and part.decision.log_prob is not None
    assert torch.equal(part.decision.log_prob, decision.log_prob)


def test_every_pass_uses_every_number_once_in_an_order_of_its_own():
    found = [[int(i) for i in part] for part, _ in shuffled(10, 3, 2, 7, torch.device("cpu"))]
    assert [len(part) for part in found] == [4, 3, 3] * 2
    first, second = ([i for part in half for i in part] for half in (found[:3], found[3:]))
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    again = [[int(i) for i in part] for part, _ in shuffled(10, 3, 2, 7, torch.device("cpu"))]
    assert again == found


@pytest.mark.parametrize("learns", [True, False])
def test_an_evaluation_is_made_once_and_without_gradient_where_the_policy_is_frozen(learns):
    policy = GaussianPolicy(2, 2, hidden=(4,))
    batch = rollout(policy, rows=2, steps=3)
    ones = torch.ones(2, 3)
    points = DecisionPoints(policy, batch, Advantages(advantages=ones, returns=ones, valid=ones > 0), learns)
    part = points.minibatch(torch.arange(4), torch.arange(4))
    with torch.no_grad():  # a metric may be the first to read it
        first = part.evaluation
    assert part.evaluation is first
    assert part.evaluation.log_prob.requires_grad == learns


def test_blocks_of_rows_stay_together():
    policy = GaussianPolicy(2, 2, hidden=(4,))
    batch = rollout(policy, rows=3, steps=4)
    valid = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]).bool()
    numbers = torch.zeros(3, 4)
    points = DecisionPoints(policy, batch, Advantages(advantages=numbers, returns=numbers, valid=valid), learns=True)
    assert [block.tolist() for block in points.blocks()] == [[0, 1, 2], [3, 4]]
    found = [part.tolist() for part, _ in shuffled(2, 2, 3, 1, torch.device("cpu"), points.blocks())]
    assert all(sorted(found[i : i + 2]) == [[0, 1, 2], [3, 4]] for i in (0, 2, 4))
    nothing = Advantages(advantages=numbers, returns=numbers, valid=torch.zeros_like(valid))
    assert DecisionPoints(policy, batch, nothing, learns=True).blocks() == ()
