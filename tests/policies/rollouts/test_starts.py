"""Curricula in rollouts of steps: what is drawn, what is remembered, what is logged, what is refused."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from guerdon.core.batch import End
from guerdon.envs.task import list_contexts
from guerdon.policies.loops.curriculum import Curriculum
from guerdon.policies.rollouts.data import RolloutData
from guerdon.policies.rollouts.decisions import Acting
from guerdon.policies.rollouts.groups import GroupRollouts
from guerdon.policies.rollouts.runner import decided
from guerdon.policies.rollouts.starts import CurriculumStarts

from .small_tasks import Corridor, Noisy, Street, both, contexts, corridor, generator
from .test_data import Counting, Versioned, trainer


def drawn(runner, offered, weights, steps, seed=0):
    noise = generator(seed)
    rounds = runner.collecting(steps, offered, noise, weights)
    return [piece.context for piece in decided(rounds, Acting(Noisy(), noise))]


def ended(index, success, end=End.TIME_LIMIT, task: Any = Corridor):
    """A piece of an episode that ended."""
    piece = decided(corridor(1, task=task).playing(contexts(index, task=task)), Acting(Noisy(), generator()))[0]
    return replace(piece, success=[False, success], end=end)


def test_episodes_begin_where_the_weights_say():
    offered = contexts(0, 1, 2, 3)
    assert {c.index for c in drawn(corridor(2), offered, [0.0, 0.0, 1.0, 0.0], 40)} == {2}
    counts = Counter(c.index for c in drawn(corridor(2, horizon=1), offered, [0.1, 0.2, 0.7, 0.0], 4000))
    shares = [counts[i] / counts.total() for i in range(4)]
    assert shares == pytest.approx([0.1, 0.2, 0.7, 0.0], abs=0.03)  # standard error below 0.01


def test_weights_are_those_of_each_task_among_its_own():
    offered = [*contexts(0, 1), *contexts(0, 1, task=Street)]
    found = drawn(both(2), offered, [1.0, 0.0, 0.0, 5.0], 60)
    assert {(c.task, c.index) for c in found} == {(Corridor.name, 0), (Street.name, 1)}


def test_the_same_seed_draws_the_same_without_weights_as_before_there_were_any():
    offered = contexts(0, 1, 2, 3)
    one = drawn(corridor(2), offered, None, 40)
    noise = generator()
    two = [piece.context for piece in corridor(2).collect(Noisy(), 40, offered, noise)]
    assert one == two


@pytest.mark.parametrize(("mode", "order"), [("literal", (0, 1, 2)), ("frontier", (1, 0, 2)), ("variance", (1, 0, 2))])
def test_outcomes_shape_the_probabilities(mode, order):
    # always failed, half, always solved but once less often tried
    starts = CurriculumStarts(Curriculum(mode, uniform=0.0), contexts(0, 1, 2))
    starts.curriculum.add(f"{Corridor.name}#0", [0] * 10)
    starts.curriculum.add(f"{Corridor.name}#1", [0, 1] * 5)
    starts.curriculum.add(f"{Corridor.name}#2", [1] * 20)
    weights = starts.weights()
    assert sum(weights) == pytest.approx(1.0)
    assert tuple(sorted(range(3), key=lambda i: -weights[i])) == order


def test_finished_episodes_are_attempts_and_unfinished_ones_are_not():
    starts = CurriculumStarts(Curriculum(uniform=0.0), contexts(0, 1))
    starts.add([ended(0, True, End.SUCCESS), ended(0, False), ended(1, True, End.CUT)])
    successes, attempts = starts.curriculum.counts([f"{Corridor.name}#{i}" for i in range(2)])
    assert successes.tolist() == [1, 0] and attempts.tolist() == [2, 0]
    found = starts.metrics()
    assert found["curriculum_tried"] == 0.5
    assert found["curriculum_success"] == 0.5 == found["curriculum_drawn_success"]
    assert found["curriculum_spread"] == pytest.approx(1.0)
    again = CurriculumStarts(Curriculum(uniform=0.0), contexts(0, 1))
    again.load_state_dict(starts.state_dict())
    assert again.metrics() == found


def test_metrics_by_hand():
    # success rates 1/12 and 11/12 under the literal rule: p ∝ exp(±(5/12)/0.2)
    starts = CurriculumStarts(Curriculum("literal", uniform=0.0), contexts(0, 1))
    starts.curriculum.add(f"{Corridor.name}#0", [0] * 10)
    starts.curriculum.add(f"{Corridor.name}#1", [1] * 10)
    high = torch.tensor([5 / 12, -5 / 12]).div(0.2).softmax(0)
    found = starts.metrics()
    assert found["curriculum_drawn_success"] == pytest.approx(float(high[0] / 12 + high[1] * 11 / 12), rel=1e-5)
    assert found["curriculum_spread"] == pytest.approx(float(1 / high.square().sum() / 2), rel=1e-5)
    two = CurriculumStarts(Curriculum(), [*contexts(0), *contexts(0, task=Street)])
    assert two.metrics()[f"curriculum_success/{Street.name}"] == 0.5


def test_the_data_module_draws_by_outcomes_and_reports_it():
    data = RolloutData(
        *("mujoco/reach", 24),
        rollouts=4,
        envs=2,
        horizon=3,
        contexts=3,
        eval_contexts=0,
        curriculum=Curriculum("literal"),
    )
    seen: list[dict[str, float]] = []

    class Module(Counting):
        def training_step(self, batch, index):
            super().training_step(batch, index)
            seen.append(data.metrics)

    trainer(max_epochs=1).fit(Module(Versioned()), data)
    assert [m["curriculum_tried"] > 0 for m in seen] == [True] * 4
    # nothing is ever solved: the estimates fall from 1/2
    assert seen[-1]["curriculum_success"] < seen[0]["curriculum_success"] < 0.5
    assert data.starts is not None
    tried = data.starts.curriculum.counts(
        [f"mujoco/reach#{c.index}" for c in list_contexts("mujoco/reach", "train", 3)]
    )
    assert tried[1].sum() >= 24  # 96 steps in episodes of 3, those of two environments may go on


def test_a_curriculum_needs_outcomes_and_rollouts_of_steps():
    with pytest.raises(ValueError, match="hide_outcome it would show the outcome"):
        RolloutData("mujoco/reach", hide_outcome=True, end_on_success=False, curriculum=Curriculum())
    with pytest.raises(ValueError, match=r"groups\.curriculum instead"):
        RolloutData("mujoco/reach", groups=GroupRollouts(), curriculum=Curriculum())
