"""Preference optimisation of policies in a real trainer."""

import copy
import math
from dataclasses import replace
from typing import Any

import lightning
import pytest
import torch

from guerdon.backbones.decoder_small import SmallDecoder
from guerdon.backbones.encoder_tokens import EncoderBackbone
from guerdon.backbones.token_learner import TokenLearner
from guerdon.core.batch import End, PreferencePairs, TrajectoryBatch
from guerdon.core.losses import trajectory_preference
from guerdon.policies.action_bins import ActionBins
from guerdon.policies.adam import PolicyAdam
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.laplace import LaplacePolicy
from guerdon.policies.preference_optimizer import PreferenceOptimizer, require_one_group
from guerdon.policies.tokens import TokenPolicy
from guerdon.policies.vla import VLAPolicy
from guerdon.preference.references import FrozenReference, RecordedReference
from guerdon.preference.surrogate import decision_log_prob, flow_matching_error, masked_sum
from guerdon.preference.tpo import TrajectoryPreference

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Same:
    """A stream of the same pairs, once an epoch or several times."""

    def __init__(self, pairs, count=1):
        self.pairs, self.count = pairs, count

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter([self.pairs] * self.count)


def fit(module, pairs, held_out=None, epochs=1, count=1, **more: Any):
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    settings |= {"max_epochs": epochs}
    trainer = lightning.Trainer(**(settings | more))
    trainer.fit(module, Same(pairs, count), None if held_out is None else Same(held_out))
    return trainer


def made(policy, rows=8, steps=6, lengths=None, seed=0):
    """Let a policy act from states of two groups, and pair its rows in their order."""
    generator = torch.Generator().manual_seed(seed)
    lengths = lengths or [steps - row % 3 for row in range(rows)]
    state = torch.randn(rows, steps + 1, 2, generator=generator)
    sample = torch.full((rows, steps, policy.horizon, 1), math.nan)
    actions = torch.zeros(rows, steps, 1)
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    decision_step = torch.full((rows, steps), -1)
    for row, length in enumerate(lengths):
        at = torch.arange(0, length, policy.execute)
        decision_step[row, : len(at)] = at
    draft = TrajectoryBatch(state=state, actions=actions, mask=mask, decision_step=decision_step)
    rows_at, numbers = draft.decision_mask.nonzero(as_tuple=True)
    at = draft.observe(rows_at, decision_step[rows_at, numbers])
    with torch.no_grad():
        decision = policy.act(at, generator=generator)
    sample[rows_at, numbers] = decision.chunk
    assert decision.log_prob is not None
    log_prob = torch.full((rows, steps, decision.log_prob.shape[1]), math.nan)
    log_prob[rows_at, numbers] = decision.log_prob
    extras = {
        name: torch.zeros(rows, steps, *part.shape[1:], dtype=part.dtype) for name, part in decision.extras.items()
    }
    for name, part in decision.extras.items():
        extras[name][rows_at, numbers] = part
    batch = replace(
        draft,
        end=torch.tensor([int(End.SUCCESS), int(End.FAILURE)] * (rows // 2)),
        group=torch.arange(rows) // 2,
        behaviour={"sample": sample, "log_prob": log_prob, **extras},
    )
    chosen = torch.arange(0, rows, 2)
    ones = torch.ones(len(chosen))
    return PreferencePairs(batch=batch, chosen=chosen, rejected=chosen + 1, label=ones, weight=ones)


def gaussian(**more):
    torch.manual_seed(0)
    return GaussianPolicy(state_size=2, action_size=1, hidden=(8,), **more)


def log_probs(policy, pairs, side):
    rows = getattr(pairs, side)
    shape = (len(rows), pairs.batch.decision_step.shape[1])
    found, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    for place, row in enumerate(rows.tolist()):
        for number, step in enumerate(pairs.batch.decision_step[row].tolist()):
            if step >= 0:
                observation, decision = pairs.batch.at(torch.tensor([row]), torch.tensor([step]), policy.horizon)
                evaluation = policy.evaluate(observation, decision)
                found[place, number] = evaluation.log_prob[evaluation.unit_mask].sum()
                mask[place, number] = True
    return found, mask


@pytest.mark.parametrize("horizon", [1, 3])
def test_one_update_is_a_step_on_the_published_loss(horizon):
    policy = gaussian(horizon=horizon, execute=horizon)
    pairs = made(policy)
    start = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    expected = copy.deepcopy(policy)
    module = PreferenceOptimizer(
        policy, reference=FrozenReference(start), minibatch_pairs=99, optimizer=PolicyAdam(1e-2, max_grad_norm=1e9)
    )
    trainer = fit(module, pairs)
    optimizer = PolicyAdam(1e-2, max_grad_norm=1e9).make(expected, torch.nn.Module())
    sides = [log_probs(expected, pairs, side) for side in ("chosen", "rejected")]
    with torch.no_grad():
        references = [log_probs(start, pairs, side)[0] for side in ("chosen", "rejected")]
    loss = trajectory_preference(
        sides[0][0], references[0], sides[1][0], references[1], sides[0][1], sides[1][1], beta=0.1
    )
    loss.backward()
    optimizer.step()
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(float(loss.detach()), abs=1e-6)
    for (name, found), wanted in zip(policy.named_parameters(), expected.parameters(), strict=True):
        assert torch.allclose(found, wanted, atol=2e-6), name


def test_it_starts_at_ln_2_and_accuracy_one_half():
    policy = gaussian()
    pairs = made(policy)
    trainer = fit(PreferenceOptimizer(policy, minibatch_pairs=99), pairs)
    found = trainer.callback_metrics
    assert float(found["loss"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(found["accuracy"]) == 0.5 and float(found["margin"]) == pytest.approx(0, abs=1e-6)
    assert float(found["pairs"]) == 4 and float(found["updates"]) == 1


def test_micro_batches_make_the_same_step():
    pairs = made(gaussian())
    policies = []
    for micro in (None, 3):
        policy = gaussian()
        fit(PreferenceOptimizer(policy, minibatch_pairs=2, passes=2, micro_batch=micro), pairs)
        policies.append(policy)
    for one, other in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_recorded_reference_is_the_policy_that_acted():
    policies = []
    for reference in (FrozenReference(), RecordedReference()):
        policy = gaussian(horizon=3, execute=2)
        fit(PreferenceOptimizer(policy, reference=reference, passes=3), made(policy))
        policies.append(policy)
    for one, other in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    with pytest.raises(ValueError, match="hold no log-probabilities of the policy that acted"):
        policy = gaussian()
        pairs = made(policy)
        bare = replace(pairs.batch, behaviour={"sample": pairs.batch.behaviour["sample"]})
        fit(PreferenceOptimizer(policy, reference=RecordedReference()), replace(pairs, batch=bare))


def test_the_copy_stays_the_policy_before_the_first_update():
    policy = gaussian()
    before = copy.deepcopy(policy.state_dict())
    module = PreferenceOptimizer(policy, optimizer=PolicyAdam(1e-2))
    fit(module, made(policy), epochs=3)
    assert isinstance(module.reference, FrozenReference) and module.reference.policy is not None
    for name, value in module.reference.policy.state_dict().items():
        assert torch.equal(value, before[name])
    assert any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_an_interrupted_run_goes_on_with_its_reference(tmp_path):
    pairs = made(gaussian())
    whole = gaussian()
    fit(PreferenceOptimizer(whole, optimizer=PolicyAdam(1e-2), minibatch_pairs=2), pairs, epochs=3)
    first, second = gaussian(), gaussian()
    trainer = fit(PreferenceOptimizer(first, optimizer=PolicyAdam(1e-2), minibatch_pairs=2), pairs, epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    module = PreferenceOptimizer(second, optimizer=PolicyAdam(1e-2), minibatch_pairs=2)
    again = lightning.Trainer(
        max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    again.fit(module, Same(pairs), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_padding_and_unused_rows_change_nothing():
    policies = []
    for filler in (0.0, math.nan):
        policy = gaussian()
        pairs = made(policy, lengths=[6, 3, 5, 2, 4, 4, 1, 6])
        batch = pairs.batch
        batch.state[~batch.observed] = filler
        batch.state[6:] = filler if filler == 0 else 7.0
        fit(PreferenceOptimizer(policy, passes=2), pairs[torch.tensor([0, 1, 2])])
        policies.append(policy)
    for one, other in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        assert torch.equal(one, other)


POLICIES = {
    "gaussian": lambda: gaussian(horizon=2, execute=2),
    "laplace": lambda: LaplacePolicy(state_size=2, action_size=1, hidden=(8,)),
    "tokens": lambda: TokenPolicy(
        decoder=SmallDecoder(width=16, layers=1, heads=2), bins=ActionBins(bins=8), state_size=2, action_size=1
    ),
    "vla": lambda: VLAPolicy(
        EncoderBackbone(state_size=2, width=16, hidden=(16,), layers=1, heads=2),
        action_size=1,
        token_learner=TokenLearner(width=16, queries=2, heads=2),
    ),
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "tokens", "vla"])
def test_training_raises_the_margin_of_the_chosen(kind, swap):
    gains = []
    for seed in range(4 if kind == "gaussian" else 2):
        torch.manual_seed(seed)
        policy = POLICIES[kind]()
        pairs = made(policy, rows=16, seed=seed)
        if swap:
            pairs = replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)
        with torch.no_grad():
            before = [log_probs(policy, pairs, side)[0].sum(1) for side in ("chosen", "rejected")]
        fit(PreferenceOptimizer(policy, passes=30, optimizer=PolicyAdam(1e-3)), pairs)
        with torch.no_grad():
            after = [log_probs(policy, pairs, side)[0].sum(1) for side in ("chosen", "rejected")]
        gains.append(float(((after[0] - before[0]) - (after[1] - before[1])).mean()))
    assert min(gains) > 0


def test_held_out_pairs_are_evaluated():
    policy = gaussian()
    pairs = made(policy)
    trainer = fit(PreferenceOptimizer(policy, passes=200, optimizer=PolicyAdam(3e-3)), pairs, held_out=pairs)
    assert float(trainer.callback_metrics["val_preference_accuracy"]) > 0.5
    assert float(trainer.callback_metrics["val_preference_loss"]) < math.log(2)


def test_held_out_pairs_can_be_evaluated_before_any_training():
    policy = gaussian()
    settings: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", **settings)
    found = trainer.validate(PreferenceOptimizer(policy), Same(made(policy)), verbose=False)[0]
    assert found["val_preference_accuracy"] == 0.5
    assert found["val_preference_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_pairs_across_groups_are_refused():
    policy = gaussian()
    pairs = made(policy)
    across = replace(pairs, rejected=pairs.rejected.roll(1))
    with pytest.raises(ValueError, match="pair 0 compares row 0 of group 0 with row 7 of group 3"):
        require_one_group(across)
    with pytest.raises(ValueError, match="one task and one initial state"):
        fit(PreferenceOptimizer(policy), across)
    # groups that two data sets number alike
    task = pairs.batch.task.clone()
    task[pairs.rejected[0]] = 1
    with pytest.raises(ValueError, match=r"pair 0 compares row 0 of group 0, task 0, with row \d+ of group 0, task 1:"):
        require_one_group(replace(pairs, batch=replace(pairs.batch, task=task)))


def test_no_pair_makes_no_update():
    policy = gaussian()
    before = copy.deepcopy(policy.state_dict())
    trainer = fit(PreferenceOptimizer(policy), made(policy)[torch.tensor([], dtype=torch.long)])
    assert float(trainer.callback_metrics["updates"]) == 0
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_frozen_parts_keep_their_bits_and_learn_again_afterwards():
    policy = gaussian()
    before = policy.log_std.detach().clone()
    fit(PreferenceOptimizer(policy, optimizer=PolicyAdam(1e-2, frozen_parts=("log_std",)), passes=3), made(policy))
    assert torch.equal(policy.log_std, before) and policy.log_std.requires_grad


def test_logged_actions_are_cut_into_chunks_that_do_not_overlap():
    policy = gaussian(horizon=2, execute=2)
    pairs = made(policy, lengths=[6] * 8)
    logged = replace(pairs, batch=replace(pairs.batch, behaviour={}, decision_step=torch.arange(6).expand(8, 6)))
    trainer = fit(PreferenceOptimizer(policy), logged)
    with torch.no_grad():
        start = gaussian(horizon=2, execute=2)
        once = [decision_log_prob(start, *logged.batch.at(torch.tensor([0] * 3), torch.tensor([0, 2, 4]), 2))]
        chosen = [
            decision_log_prob(start, *logged.batch.at(torch.tensor([row] * 3), torch.tensor([0, 2, 4]), 2))
            for row in (0, 2, 4, 6)
        ]
    assert len(once[0]) == 3
    assert float(trainer.callback_metrics["chosen_log_prob"]) == pytest.approx(
        float(torch.cat(chosen).mean()), abs=1e-5
    )


class Falling(TrajectoryPreference):
    """A loss that lowers the chosen trajectory as well."""

    def __call__(self, chosen, rejected, label=None, weight=None):
        terms = super().__call__(chosen, rejected, label, weight)
        return terms | {"loss": (chosen.log_prob * chosen.mask).sum()}


def test_a_chosen_trajectory_that_falls_for_long_is_warned_of_once(capsys):
    policy = gaussian()
    fit(PreferenceOptimizer(policy, Falling(), passes=150, minibatch_pairs=99), made(policy))
    assert capsys.readouterr().err.count("less likely than under the reference") == 1


def test_a_saturated_loss_is_warned_of(capsys):
    policy = gaussian()
    optimizer = PolicyAdam(3e-3)
    objective = TrajectoryPreference(beta=20.0)
    fit(PreferenceOptimizer(policy, objective, passes=200, optimizer=optimizer), made(policy))
    assert "the loss is saturated" in capsys.readouterr().err


def test_numbers_that_make_no_sense_are_refused():
    wrongs: list[dict[str, Any]] = [{"passes": 0}, {"minibatch_pairs": 0}, {"micro_batch": 0}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PreferenceOptimizer(gaussian(), **wrong)


class Flow(GaussianPolicy):
    """A flow without a density: it moves noise to its mean on straight lines."""

    def evaluate(self, observation, decision):
        raise NotImplementedError("a flow has no density")

    def surrogate_log_prob(self, observation, decision, seed):
        generator = torch.Generator().manual_seed(seed)
        t = 0.1 + 0.9 * torch.rand(8, 1, 1, 1, generator=generator)
        noise = torch.randn(8, 1, *decision.chunk.shape[1:], generator=generator)
        executed = torch.arange(self.horizon) < decision.executed[:, None]
        mask = executed[..., None].expand_as(decision.chunk)
        chunk = torch.where(mask, decision.chunk, 0.0)
        velocity = (t * noise + (1 - t) * chunk - self.distribution(observation).mean) / t
        return -flow_matching_error(velocity, chunk, noise, mask, weight=t.flatten().square())


def test_a_flow_learns_through_its_surrogate():
    torch.manual_seed(0)
    actor = gaussian()
    flow = Flow(state_size=2, action_size=1, hidden=(8,))
    flow.load_state_dict(actor.state_dict())
    pairs = made(actor)
    trainer = fit(PreferenceOptimizer(flow, minibatch_pairs=99), pairs)
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(math.log(2), abs=1e-6)
    fit(PreferenceOptimizer(flow, minibatch_pairs=99, passes=50, optimizer=PolicyAdam(1e-3)), pairs)
    better = decision_log_prob(flow, *pairs.batch.at(torch.tensor([0]), torch.tensor([0]), 1))
    assert bool(better.isfinite().all())
    with pytest.raises(ValueError, match="has a surrogate"):
        fit(PreferenceOptimizer(flow, micro_batch=2), pairs)


def test_masked_sum_reads_executed_units_only():
    values = torch.tensor([[1.0, math.nan], [2.0, 3.0]])
    assert masked_sum(values, torch.tensor([[True, False], [True, True]])).tolist() == [1.0, 5.0]
