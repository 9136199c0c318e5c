"""Claims of papers on policy optimisation that span several components, as exact statements."""

from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from guerdon.core.batch import Advantages, Decision, End, Evaluation, Observation, RewardEstimates, TrajectoryBatch
from guerdon.core.interfaces import AdvantageSource, Policy
from guerdon.core.returns import leave_one_out
from guerdon.policies.advantages.group_score import GroupScore
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.objectives import ClippedSurrogate
from guerdon.policies.optimizer import PolicyAdam, PolicyOptimizer
from guerdon.rewards.recorded import RecordedSuccess

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`|.*does not have many workers")
LENGTHS, WON, GROUP = (3, 7, 5, 2, 6, 4), (1, 0, 0, 1, 1, 0), (0, 0, 0, 1, 1, 1)


def episodes(policy: GaussianPolicy) -> TrajectoryBatch:
    """Two groups of three whole episodes of different lengths, acted by a policy from random states."""
    generator = torch.Generator().manual_seed(0)
    rows, steps = len(LENGTHS), max(LENGTHS)
    mask = torch.arange(steps) < torch.tensor(LENGTHS)[:, None]
    state = torch.randn(rows, steps + 1, 2, generator=generator)
    decision = policy.eval().act(Observation(state=state[:, :-1].flatten(0, 1)), generator=generator)
    policy.train()
    assert decision.log_prob is not None
    return TrajectoryBatch(
        state=state,
        actions=torch.zeros(rows, steps, 2),
        mask=mask,
        end=torch.tensor([int(End.SUCCESS if won else End.TIME_LIMIT) for won in WON]),
        success=torch.tensor(WON, dtype=torch.float32),
        group=torch.tensor(GROUP),
        decision_step=torch.where(mask, torch.arange(steps), -1),
        behaviour={
            "sample": decision.chunk.view(rows, steps, 1, -1),
            "log_prob": decision.log_prob.view(rows, steps, -1),
        },
    )


def one_step(
    policy: Policy,
    batch: TrajectoryBatch,
    objective: ClippedSurrogate,
    advantage: AdvantageSource | None = None,
    **more: Any,
) -> dict[str, torch.Tensor]:
    """Train for one pass with one minibatch; return the gradient of each parameter before it is clipped."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        p.register_hook(lambda grad, name=name: found.update({name: grad})) for name, p in policy.named_parameters()
    ]
    module = PolicyOptimizer(
        policy,
        advantage or GroupScore(RecordedSuccess()),
        objective,
        passes=1,
        minibatch_size=1_000,
        optimizer=PolicyAdam(),
        **more,
    )
    run = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    listed: Any = [batch]
    run.fit(module, DataLoader(listed, batch_size=None))
    for hook in hooks:
        hook.remove()
    return found


def reinforce(policy: GaussianPolicy, batch: TrajectoryBatch, per: int) -> dict[str, torch.Tensor]:
    """Gradient of −Σ_k A_k log π(episode k)/per, with the leave-one-out advantage of each episode."""
    rows, steps = batch.mask.nonzero(as_tuple=True)
    observation, decision = batch.at(rows, steps, policy.horizon)
    log_prob = policy.evaluate(observation, decision).log_prob.sum(1)
    gain = leave_one_out(batch.success, batch.group)[rows]
    loss = -(gain * log_prob).sum() / per
    names, parameters = zip(*policy.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize(
    "objective, whole, per",
    [
        (ClippedSurrogate(), None, sum(LENGTHS)),
        (ClippedSurrogate(unit="trajectory"), 6, len(LENGTHS)),
        (ClippedSurrogate(unit="action"), None, sum(LENGTHS)),
    ],
)
def test_one_pass_with_one_full_minibatch_is_the_gradient_of_rloo(objective, whole, per):
    """LOOP (arXiv 2502.01600): one epoch and one minibatch reduce it to REINFORCE with a leave-one-out baseline."""
    torch.manual_seed(0)
    policy = GaussianPolicy(2, 2, hidden=(8,))
    batch = episodes(policy)
    expected = reinforce(policy, batch, per)
    found = one_step(policy, batch, objective, minibatch_episodes=whole)
    assert found.keys() == expected.keys()
    for name in expected:
        assert bool((expected[name] != 0).any()), name
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


class Knobs(Policy):
    """Policy with one parameter for each row of a batch, which the state names: the log-probability of every unit."""

    horizon, state_size, action_size = 1, 1, 1

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.knob = nn.Parameter(torch.zeros(rows))

    def evaluate(self, observation: Observation, decision: Decision) -> Evaluation:
        """Return the parameter of the row for each of three units."""
        assert observation.state is not None
        log_prob = self.knob[observation.state[:, 0].long()][:, None].expand(-1, 3)
        return Evaluation(log_prob=log_prob, unit_mask=torch.ones_like(log_prob, dtype=torch.bool))


class Paid(AdvantageSource):
    """Advantage 1 of every decision."""

    def estimate(self, batch: TrajectoryBatch) -> RewardEstimates:
        """Return no reward."""
        return RewardEstimates(rewards=torch.zeros_like(batch.weight), valid=batch.mask)

    def forward(self, batch: TrajectoryBatch, rewards: RewardEstimates, proposer: Any = None) -> Advantages:
        """Return 1 where there is a decision."""
        one = batch.decision_mask.float()
        return Advantages(advantages=one, returns=one, valid=batch.decision_mask)


@pytest.mark.parametrize(
    "options, short, long",
    [
        # all units of the minibatch alike (RIPT-VLA with QueST: tokens; VLA-RL, RL4VLA: actions)
        ({"unit": "token", "average": "step"}, 10 / 110, 100 / 110),
        ({"unit": "action", "average": "step"}, 3 * 10 / 110, 3 * 100 / 110),
        # mean of each rollout, then over the rollouts (RIPT-VLA with OpenVLA-OFT, SimpleVLA-RL)
        ({"unit": "token", "average": "trajectory"}, 1 / 2, 1 / 2),
        # mean of each rollout, then over the configured number, 8, of which two are there (LOOP)
        ({"unit": "token", "average": 8}, 1 / 8, 1 / 8),
        # one product of each rollout: every unit has the whole advantage, and the long rollout ten times the gradient
        ({"unit": "trajectory", "average": "trajectory"}, 3 * 10 / 2, 3 * 100 / 2),
    ],
)
def test_averages_weigh_rollouts_of_10_and_100_steps_as_documented(options, short, long):
    policy = Knobs(2)
    mask = torch.arange(100) < torch.tensor([10, 100])[:, None]
    batch = TrajectoryBatch(
        state=torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 101, 1),
        actions=torch.zeros(2, 100, 1),
        mask=mask,
        end=torch.full((2,), int(End.TIME_LIMIT)),
        decision_step=torch.where(mask, torch.arange(100), -1),
        behaviour={"sample": torch.zeros(2, 100, 1, 1), "log_prob": torch.zeros(2, 100, 3)},
    )
    found = one_step(policy, batch, ClippedSurrogate(**options), Paid(), minibatch_episodes=2)
    assert found["knob"].tolist() == pytest.approx([-short, -long], rel=1e-5)
