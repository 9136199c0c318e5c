"""Conformance checks of reward models, critics and policies.

Each check raises an ``AssertionError`` whose message names the promise that was broken.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..core.batch import Decision, Observation, RewardEstimates, TrajectoryBatch, ValueEstimates
from ..core.hub import component_hash, hash_component, load_component
from ..core.interfaces import Component, Critic, Policy, Proposer, RewardModel
from .altered import cut_after, junk_padding, pad_steps, with_other_future

C = TypeVar("C", bound=Component)
_TOLERANCE = 1e-4


def check_reward_model(model: RewardModel, batch: TrajectoryBatch, tolerance: float = _TOLERANCE) -> None:
    """Assert the contract of reward models on a batch that the model can read (and learn from, if it learns).

    Shapes; validity on real steps only; numbers where valid and 0 elsewhere; nothing depends on padding or on the other
    rows; ``causal`` is kept; evaluation changes no state and is repeatable; saving and opening gives the same
    estimates; the loss is finite and its gradient reaches a parameter.

    Raises:
        AssertionError: Naming what broke.
    """
    name, training = type(model).__name__, model.training
    model.eval()
    before = _state(model)
    with torch.no_grad():
        scored = model(batch)
        _check_estimates(name, scored, batch)
        _expect_same(f"{name}: evaluating twice", scored, model(batch), 0.0)
        _expect_unchanged(name, before, model)
        for what, padded in _repaddings(batch).items():
            _expect_same(f"{name}: {what}", scored, _cut(model(padded), batch), tolerance)
        for row in range(len(batch)):
            _expect_same(f"{name}: row {row} alone", scored[row], model(batch[row]), tolerance)
        if model.causal:
            _check_causal(model, batch, scored, tolerance)
        _expect_same(f"{name}: saved and opened again", scored, reopen(model)(batch), tolerance)
    if type(model).loss is not RewardModel.loss:
        _check_loss(name, model, lambda: model.loss(batch))
    model.train(training)


def check_critic(
    critic: Critic,
    batch: TrajectoryBatch,
    rewards: RewardEstimates | None = None,
    proposer: Proposer | None = None,
    tolerance: float = _TOLERANCE,
) -> None:
    """Assert the contract of critics: shapes, numbers, independence of padding and rows, saving, the loss.

    Args:
        critic: The critic.
        batch: Trajectories to value.
        rewards: Rewards to learn from; without them the loss is not checked.
        proposer: Source of the policy's chunks, where the critic needs one.
        tolerance: Largest difference that counts as equal.

    Raises:
        AssertionError: Naming what broke.
    """
    name, training = type(critic).__name__, critic.training
    critic.eval()
    before = _state(critic)
    with torch.no_grad():
        values = critic(batch, proposer)
        _check_values(name, values, batch)
        _expect_same_values(f"{name}: evaluating twice", values, critic(batch, proposer), batch, 0.0)
        _expect_unchanged(name, before, critic)
        for what, padded in _repaddings(batch).items():
            _expect_same_values(f"{name}: {what}", values, critic(padded, proposer), batch, tolerance)
        if proposer is None:
            for row in range(len(batch)):
                alone = critic(batch[row])
                _expect_same_values(f"{name}: row {row} alone", values[row], alone, batch[row], tolerance)
        again = reopen(critic)(batch, proposer)
        _expect_same_values(f"{name}: saved and opened again", values, again, batch, tolerance)
    if rewards is not None and type(critic).loss is not Critic.loss:
        _check_loss(name, critic, lambda: critic.loss(batch, rewards, proposer))
        critic.after_step()
    critic.train(training)


def check_policy(policy: Policy, observation: Observation | TrajectoryBatch, tolerance: float = _TOLERANCE) -> None:
    """Assert the contract of policies: shapes, repeatable draws, log-probabilities that agree, saving, imitation.

    Args:
        policy: The policy.
        observation: Observations to act on; a batch stands for every row's first observation.
        tolerance: Largest difference that counts as equal.

    Raises:
        AssertionError: Naming what broke.
    """
    if isinstance(observation, TrajectoryBatch):
        rows = torch.arange(len(observation))
        observation = observation.observe(rows, torch.zeros_like(rows))
    name, training, points = type(policy).__name__, policy.training, len(observation)
    policy.eval()
    before = _state(policy)
    with torch.no_grad():
        likely = policy.act(observation, deterministic=True)
        _check_decision(name, policy, likely, points)
        again = policy.act(observation, deterministic=True)
        _expect_close(f"{name}: acting twice deterministically", likely.chunk, again.chunk, 0.0)
        drawn = policy.act(observation, generator=torch.Generator().manual_seed(0))
        redrawn = policy.act(observation, generator=torch.Generator().manual_seed(0))
        _check_decision(name, policy, drawn, points)
        _expect_close(f"{name}: acting twice with the same generator", drawn.chunk, redrawn.chunk, 0.0)
        _expect_unchanged(name, before, policy)
        alone = policy.act(observation[0], deterministic=True)
        _expect_close(f"{name}: decision point 0 alone", likely.chunk[:1], alone.chunk, tolerance)
        opened = reopen(policy).act(observation, deterministic=True)
        _expect_close(f"{name}: saved and opened again", likely.chunk, opened.chunk, tolerance)
    if type(policy).evaluate is not Policy.evaluate:
        _check_evaluation(name, policy, observation, drawn, tolerance)
    if type(policy).imitation_loss is not Policy.imitation_loss:
        _check_imitation(name, policy, observation, drawn, tolerance)
    policy.train(training)


def reopen(component: C) -> C:
    """Save a component to a temporary folder and open it again; the hash of the folder must be known beforehand."""
    with tempfile.TemporaryDirectory() as parent:
        path = Path(parent) / "component"
        expected = hash_component(component)
        component.save_pretrained(path)
        assert component_hash(path) == expected, f"{type(component).__name__}: saved with another hash than computed"
        opened = load_component(path, trust=True, known=(type(component),))
    assert isinstance(opened, type(component)), f"saved a {type(component).__name__}, opened a {type(opened).__name__}"
    return opened


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _expect_unchanged(name: str, before: Mapping[str, Tensor], module: nn.Module) -> None:
    for key, value in module.state_dict().items():
        assert torch.equal(before[key], value), f"{name}: evaluating changed its state {key!r}"


def _expect_close(what: str, one: Tensor, other: Tensor, tolerance: float) -> None:
    assert one.shape == other.shape, f"{what}: expected shape {tuple(one.shape)}, got {tuple(other.shape)}"
    if one.dtype == torch.bool or not one.numel():
        assert torch.equal(one, other), f"{what}: gives another validity"
        return
    gap = (one.detach().double() - other.detach().double()).abs().max()
    assert float(gap) <= tolerance, f"{what}: differs by {float(gap):.3g}, more than {tolerance:g}"


def _parts(scored: RewardEstimates) -> dict[str, Tensor]:
    parts = {"rewards": scored.rewards, "valid": scored.valid}
    for name, column in (("progress", scored.progress), ("success", scored.success)):
        if column is not None:
            parts |= {name: column.values, f"{name}.valid": column.valid}
    if scored.std is not None:
        parts["std"] = scored.std
    return parts | {f"terms[{name!r}]": term for name, term in scored.terms.items()}


def _expect_same(what: str, one: RewardEstimates, other: RewardEstimates, tolerance: float) -> None:
    mine, theirs = _parts(one), _parts(other)
    assert mine.keys() == theirs.keys(), f"{what}: gives other parts: {sorted(mine)} and {sorted(theirs)}"
    for part, values in mine.items():
        _expect_close(f"{what}: {part}", values, theirs[part], tolerance)


def _check_estimates(name: str, scored: RewardEstimates, batch: TrajectoryBatch) -> None:
    assert isinstance(scored, RewardEstimates), f"{name}: expected RewardEstimates, got {type(scored).__name__}"
    shape = tuple(batch.mask.shape)
    assert tuple(scored.rewards.shape) == shape, f"{name}: rewards: expected {shape}, got {tuple(scored.rewards.shape)}"
    assert not bool((scored.valid & ~batch.mask).any()), f"{name}: valid on a step that is not real"
    index = torch.arange(shape[1] + 1, device=batch.mask.device)
    made = batch.observed & (index <= batch.steps[:, None])
    for part, column in (("progress", scored.progress), ("success", scored.success)):
        if column is None:
            continue
        assert not bool((column.valid & ~made).any()), f"{name}: {part} valid at an observation that was not made"
        inside = (column.values >= 0) & (column.values <= 1)
        assert bool(inside[column.valid].all()), f"{name}: {part} is not in [0, 1] where valid"
        assert bool((column.values[~column.valid] == 0).all()), f"{name}: {part} is not 0 where invalid"
    std = {} if scored.std is None else {"std": scored.std}
    for part, values in {"rewards": scored.rewards, **std, **scored.terms}.items():
        assert bool(values[scored.valid].isfinite().all()), f"{name}: {part} is not a number where valid"
        assert bool((values[~scored.valid] == 0).all()), f"{name}: {part} is not 0 where invalid"
    assert scored.std is None or bool((scored.std >= 0).all()), f"{name}: std is negative"


def _repaddings(batch: TrajectoryBatch) -> dict[str, TrajectoryBatch]:
    longer = pad_steps(batch, 3)
    return {
        "other padding": junk_padding(batch),
        "more padding": longer,
        "more padding of rubbish": junk_padding(longer),
    }


def _cut(scored: RewardEstimates, batch: TrajectoryBatch) -> RewardEstimates:
    """Cut added padding, which must be invalid and 0, off estimates."""
    steps, padded = batch.mask.shape[1], scored.rewards.shape[1]
    for part, values in _parts(scored).items():
        rest = values[:, steps + (values.shape[1] - padded) :]
        assert not bool((rest != 0).any()), f"{part} is not 0 in added padding"
    return scored.map(lambda t: t[:, : steps + (t.shape[1] - padded)])


def _check_causal(model: RewardModel, batch: TrajectoryBatch, scored: RewardEstimates, tolerance: float) -> None:
    name, steps = type(model).__name__, batch.mask.shape[1]
    for step in sorted({0, steps // 3, steps // 2, max(steps - 2, 0)} & set(range(steps))):
        for what, known in (("another future", with_other_future(batch, step)), ("no future", cut_after(batch, step))):
            rewards = model(known).rewards[:, : step + 1]
            gap = (rewards.double() - scored.rewards[:, : step + 1].double()).abs().max() if len(batch) else 0.0
            assert float(gap) <= tolerance, (
                f"{name}: not causal: with {what} after observation {step + 1}, a reward at or before step {step} "
                f"differs by {float(gap):.3g}"
            )


def _check_loss(name: str, module: nn.Module, loss: Callable[[], dict[str, Tensor]]) -> None:
    module.train()
    parameters = [p for p in module.parameters() if p.requires_grad]
    module.zero_grad(set_to_none=True)
    parts = loss()
    assert "loss" in parts, f"{name}: loss() has no entry 'loss', only {sorted(parts)}"
    assert parts["loss"].ndim == 0, f"{name}: loss is not one number but {tuple(parts['loss'].shape)}"
    for part, value in parts.items():
        assert bool(value.isfinite().all()), f"{name}: {part!r} of the loss is not finite"
    if parameters:
        assert parts["loss"].requires_grad, f"{name}: the loss carries no gradient"
        parts["loss"].backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert all(bool(g.isfinite().all()) for g in gradients), f"{name}: a gradient is not finite"
        assert any(bool((g != 0).any()) for g in gradients), f"{name}: no parameter gets a gradient"
    module.zero_grad(set_to_none=True)
    module.eval()


def _check_values(name: str, values: ValueEstimates, batch: TrajectoryBatch) -> None:
    assert isinstance(values, ValueEstimates), f"{name}: expected ValueEstimates, got {type(values).__name__}"
    rows, steps = batch.mask.shape
    shapes = {"v": (values.v, (rows, steps + 1)), "q": (values.q, (rows, steps))}
    for part, (value, shape) in shapes.items():
        if value is not None:
            assert tuple(value.shape) == shape, f"{name}: {part}: expected {shape}, got {tuple(value.shape)}"
    if values.members is not None:
        got = tuple(values.members.shape)
        assert got[1:] == (rows, steps), f"{name}: members: expected (K, {rows}, {steps}), got {got}"
    for part, value in _value_parts(values, batch).items():
        assert bool(value.isfinite().all()), f"{name}: {part} is not a number on a real entry"


def _value_parts(values: ValueEstimates, batch: TrajectoryBatch) -> dict[str, Tensor]:
    """Collect the values on real entries, flat: a last observation that was not made has no value to compare."""
    index = torch.arange(batch.mask.shape[1] + 1, device=batch.mask.device)
    made, steps = batch.observed & (index <= batch.steps[:, None]), batch.mask.shape[1]
    parts = {"v": values.v[:, : steps + 1][made]}
    if values.q is not None:
        parts["q"] = values.q[:, :steps][batch.mask]
    if values.members is not None:
        parts["members"] = values.members[:, :, :steps][:, batch.mask]
    return parts


def _expect_same_values(
    what: str, one: ValueEstimates, other: ValueEstimates, batch: TrajectoryBatch, tolerance: float
) -> None:
    mine, theirs = _value_parts(one, batch), _value_parts(other, batch)
    assert mine.keys() == theirs.keys(), f"{what}: gives other parts: {sorted(mine)} and {sorted(theirs)}"
    for part, value in mine.items():
        _expect_close(f"{what}: {part}", value, theirs[part], tolerance)


def _check_decision(name: str, policy: Policy, decision: Decision, points: int) -> None:
    assert isinstance(decision, Decision), f"{name}: expected a Decision, got {type(decision).__name__}"
    chunk = decision.chunk
    assert tuple(chunk.shape[:2]) == (points, policy.horizon), (
        f"{name}: chunk: expected ({points}, {policy.horizon}, A), got {tuple(chunk.shape)}"
    )
    assert bool(chunk.isfinite().all()), f"{name}: the chunk is not a number"
    inside = (decision.executed >= 1) & (decision.executed <= policy.horizon)
    assert bool(inside.all()), f"{name}: executed is not in 1 … {policy.horizon}"
    if decision.log_prob is not None:
        assert bool(decision.log_prob.isfinite().all()), f"{name}: log_prob is not a number"


def _check_evaluation(
    name: str, policy: Policy, observation: Observation, decision: Decision, tolerance: float
) -> None:
    evaluated = policy.evaluate(observation, decision)
    assert evaluated.unit_mask.shape == evaluated.log_prob.shape, f"{name}: unit_mask and log_prob differ in shape"
    assert bool(evaluated.log_prob[evaluated.unit_mask].isfinite().all()), f"{name}: evaluate gives no number"
    if decision.log_prob is not None:
        used = evaluated.unit_mask
        _expect_close(
            f"{name}: log_prob of act and of evaluate", decision.log_prob[used], evaluated.log_prob[used], tolerance
        )
    if any(p.requires_grad for p in policy.parameters()):
        assert evaluated.log_prob.requires_grad, f"{name}: evaluate carries no gradient"
    if evaluated.entropy is not None:
        assert tuple(evaluated.entropy.shape) == (len(decision),), f"{name}: entropy is not one number per decision"


def _check_imitation(name: str, policy: Policy, observation: Observation, decision: Decision, tolerance: float) -> None:
    points, horizon = decision.chunk.shape[:2]
    chunk_mask = torch.ones(points, horizon, dtype=torch.bool)
    chunk_mask[0, 1:] = False
    torch.manual_seed(0)  # some losses draw noise
    unreduced = policy.imitation_loss(observation, decision.chunk, chunk_mask)
    assert tuple(unreduced.shape) == (points,), f"{name}: imitation_loss: expected ({points},), got {unreduced.shape}"
    torch.manual_seed(0)
    junk = torch.where(chunk_mask[..., None], decision.chunk, 9.0)
    again = policy.imitation_loss(observation, junk, chunk_mask)
    _expect_close(f"{name}: imitation_loss where chunk_mask is False", unreduced, again, tolerance)
    _check_loss(name, policy, lambda: {"loss": policy.imitation_loss(observation, decision.chunk, chunk_mask).mean()})
