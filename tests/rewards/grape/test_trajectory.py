import json
import math
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.backbones.model_inputs import ModelInputs
from guerdon.core.batch import End, Labelled, PreferencePairs, Sampled, TrajectoryBatch
from guerdon.core.interfaces import TaskDecomposer, TaskPlan, TaskStage
from guerdon.core.intervals import bootstrap_interval
from guerdon.datasets.collate import collate
from guerdon.envs.collect import collect
from guerdon.envs.vector import make_task
from guerdon.policies.advantages.group_score import GroupScore
from guerdon.rewards.costs import external_reward
from guerdon.rewards.grape.cost_files import load_costs
from guerdon.rewards.grape.trajectory import GrapeScore, carried_units
from guerdon.rewards.stages.rule_decomposer import RuleDecomposer
from guerdon.testing import check_reward_model, pad_steps, reopen

COSTS = {
    "task": "toy",
    "stages": ["reach", "move"],
    "flags": {"closed": {"track": "gripper", "below": 0.5}},
    "constraints": [
        {"stage": 0, "name": "near", "kind": "path", "op": "dist", "a": "hand", "b": "thing", "aggregate": "min"},
        {"stage": 0, "name": "time", "kind": "path", "op": "steps", "a": "hand", "threshold": 1.0, "weight": 0.1},
        {"stage": 1, "name": "held", "kind": "grasp", "op": "flag", "a": "closed", "weight": 0.3},
        {"stage": 1, "name": "there", "kind": "path", "op": "dist", "a": "thing", "b": "goal", "aggregate": "last"},
    ],
}

POINTS = ("hand", "thing", "goal")


def rollouts(rows=5, steps=6, seed=0, ends=None, units=3):
    """Whole episodes with everything known, of any lengths, stage 1 never reached by some."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(1, steps + 1, (rows,), generator=generator)
    mask = torch.arange(steps) < length[:, None]
    observed = torch.arange(steps + 1) <= length[:, None]

    def column(values):
        return Labelled(values=values, valid=observed)

    end = torch.randint(1, 4, (rows,), generator=generator) if ends is None else torch.tensor([int(e) for e in ends])
    stage = (torch.rand(rows, steps + 1, generator=generator) < 0.3).int().cummax(1).values
    return TrajectoryBatch(
        state=torch.zeros(rows, steps + 1, 0),
        actions=torch.zeros(rows, steps, 0),
        mask=mask,
        instructions=("do it",) * rows,
        end=end,
        group=torch.arange(rows) % 2,
        labels={"stage": column(stage)},
        tracks={
            **{
                n: column(0.5 * torch.randn(rows, steps + 1, 3, generator=generator)) for n in ("hand", "thing", "goal")
            },
            "gripper": column(torch.rand(rows, steps + 1, generator=generator)),
        },
        behaviour={"log_prob": -torch.rand(rows, steps, units, generator=generator)},
    )


def track_of(batch, row):
    """Steps of a row as `external_reward` takes them: step t is the observation it leads to."""
    after = slice(1, int(batch.steps[row]) + 1)
    track = {name: column.values[row, after].numpy() for name, column in batch.tracks.items()}
    return track | {"stage": batch.labels["stage"].values[row, after].numpy()}


@given(seed=st.integers(0, 1000))
def test_the_external_term_is_external_reward(seed):
    batch, costs = rollouts(seed=seed), load_costs(COSTS)
    scored = GrapeScore([COSTS], weights=[0, 1, 0], unreached=0.8)(batch)
    for row in range(len(batch)):
        expected = external_reward(costs.constraints, costs.complete(track_of(batch, row)), unreached=0.8)
        assert float(scored.rewards[row].sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
@torch.enable_grad()
def test_every_promise_is_kept(seed):
    ends = [End.SUCCESS, End.FAILURE, End.SUCCESS, End.TIME_LIMIT, End.FAILURE]
    model = GrapeScore([COSTS], weights="paper", self_reduce="mean", log_prob_floor=-2.0, compare="task")
    check_reward_model(model, rollouts(seed=seed, ends=ends))


def test_by_hand():
    """One row of 2 steps: near 0.5 (free), 1 step in stage 0; 1 step in stage 1, not held, 0.2 from the goal."""
    known = torch.ones(1, 3, dtype=torch.bool)

    def points(*x):
        return Labelled(values=torch.tensor([[[v, 0.0, 0.0] for v in x]]), valid=known)

    batch = TrajectoryBatch(
        state=torch.zeros(1, 3, 0),
        actions=torch.zeros(1, 2, 0),
        mask=torch.ones(1, 2, dtype=torch.bool),
        end=torch.tensor([int(End.SUCCESS)]),
        success=torch.ones(1),
        success_known=torch.ones(1, dtype=torch.bool),
        labels={"stage": Labelled(values=torch.tensor([[0, 0, 1]]), valid=known)},
        tracks={
            "hand": points(9, 0.0, 0.3),
            "thing": points(9, 0.5, 0.6),
            "goal": points(0.8, 0.8, 0.8),
            "gripper": Labelled(values=torch.tensor([[0.0, 0.0, 0.9]]), valid=known),
        },
        behaviour={"log_prob": torch.tensor([[[-1.0, -0.5], [-4.0, -1.0]]])},
    )
    external = math.exp(-(0.5 + 0.1 * 0 + 0.3 * 1 + 0.2))
    for weights, (one, two, three) in {"paper": (0.01, 0.01, 2), "repository": (0.01, 1, 5)}.items():
        scored = GrapeScore([COSTS], weights)(batch)
        parts = {"self": one * -6.5, "external": two * external, "success": three * 1.0}
        assert {n: t[0].tolist() for n, t in scored.terms.items()} == {
            n: [0.0, pytest.approx(v)] for n, v in parts.items()
        }
        assert scored.rewards[0].tolist() == [0.0, pytest.approx(sum(parts.values()))]
        assert scored.valid.tolist() == [[True, True]]
    floored = GrapeScore([COSTS], [1, 0, 0], log_prob_floor=math.log(0.05))(batch)
    assert float(floored.rewards.sum()) == pytest.approx(-1.5 + math.log(0.05))  # floored per decision, in log space
    mean = GrapeScore([COSTS], [1, 0, 0], self_reduce="mean")(batch)
    assert float(mean.rewards.sum()) == pytest.approx(-6.5 / 2)
    assert list(mean.terms) == ["self"]


def test_the_sum_of_terms_is_the_reward_on_the_last_step():
    batch = rollouts(rows=8, seed=3)
    scored = GrapeScore([COSTS])(batch)
    torch.testing.assert_close(torch.stack(list(scored.terms.values())).sum(0), scored.rewards)
    last = torch.arange(6)[None] == (batch.steps - 1)[:, None]
    assert bool((scored.rewards[~last] == 0).all())
    assert bool((scored.rewards[last] != 0).all())
    assert torch.equal(scored.valid, batch.mask)


@pytest.fixture(autouse=True)
def no_gradients_unless_asked():
    """Scores carry gradients, as those of every model that learns; most tests look at numbers."""
    with torch.no_grad():
        yield


def without(batch, kind, name):
    return replace(batch, **{kind: {k: v for k, v in getattr(batch, kind).items() if k != name}})


@pytest.mark.parametrize(
    ("change", "weights", "reason"),
    [
        (lambda b: without(b, "behaviour", "log_prob"), [0, 1, 5], "log-probability"),
        (lambda b: without(b, "tracks", "goal"), [1, 0, 5], "no track 'goal'"),
        (lambda b: without(b, "labels", "stage"), [1, 0, 5], "no stages"),
        (lambda b: replace(b, instructions=("else",) * len(b)), [1, 0, 5], "no costs for the instruction 'else'"),
        (lambda b: replace(b, success_known=torch.zeros(len(b), dtype=torch.bool)), [1, 1, 0], "succeeded"),
    ],
)
def test_an_unknown_term_is_left_out_only_where_it_has_no_weight(change, weights, reason):
    batch = change(rollouts())
    costs = [COSTS | {"instructions": ["do it"]}]
    model = GrapeScore(costs)
    scored = model(batch)
    assert not bool(scored.valid.any())
    assert not bool(scored.rewards.any())
    assert all(reason in why for why in model.why(batch))
    rest = GrapeScore(costs, weights)
    assert torch.equal(rest(batch).valid, batch.mask)
    assert rest.why(batch) == [""] * len(batch)
    assert bool(model.raw_terms(batch)["success"].isnan().all()) == ("succeeded" in reason)


def test_whole_episodes_without_a_recorded_end_are_scored_where_that_is_asked_for():
    ends = [End.CUT, End.CUT, End.SUCCESS]
    batch = rollouts(rows=3, seed=2, ends=ends)
    batch = replace(batch, length=batch.steps + torch.tensor([0, 3, 0]))  # the second is a piece
    assert GrapeScore([COSTS], (0, 1, 0))(batch).valid.any(1).tolist() == [False, False, True]
    opened = GrapeScore([COSTS], (0, 1, 0), open_ends=True)(batch)
    assert opened.valid.any(1).tolist() == [True, False, True]
    known = GrapeScore([COSTS], (0, 1, 0))(replace(batch, end=torch.tensor([End.FAILURE, End.CUT, End.SUCCESS])))
    assert torch.equal(opened.rewards, known.rewards)


def test_rows_are_unknown_one_by_one():
    batch = rollouts(rows=6, seed=1, ends=[End.SUCCESS, End.CUT, End.FAILURE, End.FAILURE, End.TIME_LIMIT, End.SUCCESS])
    log_prob = batch.behaviour["log_prob"].clone()
    log_prob[2, 0, 1] = math.nan
    track = batch.tracks["hand"]
    valid = track.valid.clone()
    valid[3, int(batch.steps[3])] = False
    stage = batch.labels["stage"].valid.clone()
    stage[4, int(batch.steps[4])] = False
    batch = replace(
        batch,
        behaviour={"log_prob": log_prob},
        tracks={**batch.tracks, "hand": replace(track, valid=valid)},
        labels={"stage": replace(batch.labels["stage"], valid=stage)},
        offset=torch.tensor([0, 0, 0, 0, 0, 2]),
        length=batch.steps + torch.tensor([0, 0, 0, 0, 0, 2]),
    )
    assert GrapeScore([COSTS])(batch).valid.any(1).tolist() == [True, False, False, False, False, False]
    assert [bool(why) for why in GrapeScore([COSTS]).why(batch)] == [False, True, True, True, True, True]
    # observation 0 is read by nobody
    valid = track.valid.clone()
    valid[:, 0] = False
    batch = replace(rollouts(rows=6, seed=1), tracks={**batch.tracks, "hand": replace(track, valid=valid)})
    assert bool(GrapeScore([COSTS])(batch).valid.any(1).all())


def test_an_observation_never_made_is_not_looked_at():
    batch = rollouts(rows=4, seed=2)
    batch = replace(batch, last_observed=torch.zeros(4, dtype=torch.bool))
    costs, model = load_costs(COSTS), GrapeScore([COSTS], [0, 1, 0])
    for row in range(4):
        track = {name: values[:-1] for name, values in track_of(batch, row).items()}
        expected = external_reward(costs.constraints, costs.complete(track))
        assert float(model(batch).rewards[row].sum()) == pytest.approx(expected, rel=1e-5)


def test_bad_values_are_named():
    batch, model = rollouts(seed=1), GrapeScore([COSTS])
    track = batch.tracks["hand"]
    broken = track.values.clone()
    broken[1, 1] = math.nan
    with pytest.raises(ValueError, match=r"toy, episode 1: 'hand'.*finite"):
        model(replace(batch, tracks={**batch.tracks, "hand": replace(track, values=broken)}))
    stage = batch.labels["stage"]
    with pytest.raises(ValueError, match=r"stage 5 came.*reach, move"):
        model(replace(batch, labels={"stage": replace(stage, values=stage.values + 5)}))
    with pytest.raises(ValueError, match="stage index"):
        model(replace(batch, labels={"stage": replace(stage, values=stage.values + 0.5)}))
    with pytest.raises(ValueError, match="several costs"):
        GrapeScore([COSTS, COSTS])(batch)
    weights: list[Any] = ["papers", [1, 2], [1, -1, 0], [1, math.nan, 0]]
    for wrong in weights:
        with pytest.raises(ValueError, match="weights"):
            GrapeScore([COSTS], weights=wrong)
    with pytest.raises(ValueError, match="no costs"):
        GrapeScore([])
    with pytest.raises(ValueError, match="unreached"):
        GrapeScore([COSTS], unreached=-1)
    with pytest.raises((ValueError, TypeError), match="self_reduce"):
        GrapeScore([COSTS], self_reduce="median")  # pyright: ignore[reportArgumentType]


def test_each_row_takes_the_costs_of_its_instruction():
    other = COSTS | {"task": "other", "instructions": ["do that"], "constraints": [COSTS["constraints"][1]]}
    batch = replace(rollouts(rows=4, seed=5), instructions=("do it", "do that", "do it", "do that"))
    scored = GrapeScore([COSTS, other], [0, 1, 0])(batch)
    for row, costs in enumerate([COSTS, other] * 2):
        costs = load_costs(costs)
        expected = external_reward(costs.constraints, costs.complete(track_of(batch, row)))
        assert float(scored.rewards[row].sum()) == pytest.approx(expected, rel=1e-5)


def test_one_stage_needs_no_stages():
    one = {"task": "one", "stages": ["all"], "constraints": [COSTS["constraints"][0]]}
    batch = without(rollouts(rows=3), "labels", "stage")
    assert bool(GrapeScore([one], [0, 1, 0])(batch).valid.any(1).all())


class Halves(TaskDecomposer):
    """Two stages of equal length; no plan for "what?"."""

    def __init__(self, second: str = "move") -> None:
        super().__init__()
        self.second = second

    def plan(self, instructions, first_frames=None):
        stages = (TaskStage(name="reach"), TaskStage(name=self.second))
        assert "else" not in instructions  # nobody is asked about rows that have no costs
        return [TaskPlan(instruction=t, stages=() if t == "what?" else stages) for t in instructions]

    def segment(self, batch, plans, causal):
        index = torch.arange(batch.mask.shape[1] + 1).expand(len(batch), -1)
        return Labelled(values=(2 * index > batch.steps[:, None]).long(), valid=batch.made)


def test_stages_of_a_decomposer():
    batch = replace(rollouts(rows=4, seed=7), instructions=("do it", "what?", "do it", "else"))
    costs = COSTS | {"instructions": ["do it", "what?"]}
    model = GrapeScore([costs], [0, 1, 0], decomposer=Halves())
    scored = model(batch)
    assert scored.valid.any(1).tolist() == [True, False, True, False]
    assert "no plan" in model.why(batch)[1]
    assert "no costs" in model.why(batch)[3]
    stage = Halves().segment(batch, [], False)
    labelled = replace(batch, labels={"stage": stage})
    torch.testing.assert_close(scored.rewards[[0, 2]], GrapeScore([COSTS], [0, 1, 0])(labelled).rewards[[0, 2]])
    wrong = GrapeScore([costs], [0, 1, 0], decomposer=Halves("carry"))
    with pytest.warns(UserWarning, match=r"no plan of the batch fits.*reach, move.*reach, carry"):
        assert not bool(wrong(batch).valid.any())
    assert "reach, carry" in wrong.why(batch)[0]  # warned of once only: warnings are errors here


class Looking(Halves):
    """Plans from pictures of one camera: a bright one shows another task."""

    inputs = ModelInputs(cameras=("wrist",))

    def plan(self, instructions, first_frames=None):
        assert first_frames is not None and len(first_frames) == len(instructions)
        self.seen = [int(frame.amax()) for frame in first_frames]
        bright = TaskStage(name="reach"), TaskStage(name="pour")
        made = super().plan(instructions)
        return [replace(p, stages=bright) if light > 9 else p for p, light in zip(made, self.seen, strict=True)]


def test_one_bad_row_leaves_the_others():
    """Row 1 has a plan of other stages, row 2 no first frame; what the other camera shows is nobody's business."""
    wrist = Sampled(
        values=torch.tensor([1, 200, 3, 4]).to(torch.uint8)[:, None, None, None, None].expand(4, 1, 3, 2, 2),
        step=torch.tensor([[0], [0], [1], [0]]),
    )
    other = Sampled(values=torch.full((4, 1, 3, 2, 2), 250, dtype=torch.uint8), step=torch.zeros(4, 1).long())
    batch = replace(rollouts(rows=4, seed=7), frames={"other": other, "wrist": wrist})
    model = GrapeScore([COSTS], [0, 1, 0], decomposer=Looking())
    scored, why = model(batch), model.why(batch)
    assert model.decomposer.seen == [1, 200, 4]
    assert scored.valid.any(1).tolist() == [True, False, False, True]
    assert "reach, pour" in why[1]
    assert "no first frame of wrist" in why[2]
    assert (why[0], why[3]) == ("", "")
    plain = GrapeScore([COSTS], [0, 1, 0], decomposer=Halves())(batch)  # reads no camera: asked about every row
    assert bool(plain.valid.any(1).all())
    assert torch.equal(scored.rewards[[0, 3]], plain.rewards[[0, 3]])
    assert not bool(model(replace(batch, frames={"other": other})).valid.any())


def test_only_what_was_carried_out_counts():
    """Chunks of 2 steps with 2 dimensions; decisions at 0 and 1, then at 3 of 4 steps."""
    step = torch.tensor([[0, 1, 3]])
    batch = TrajectoryBatch(
        state=torch.zeros(1, 5, 0),
        actions=torch.zeros(1, 4, 2),
        mask=torch.ones(1, 4, dtype=torch.bool),
        end=torch.tensor([2]),
        decision_step=step,
        behaviour={"sample": torch.zeros(1, 3, 2, 2), "log_prob": -torch.tensor([[[1.0, 2, 4, 8]] * 3])},
    )
    assert carried_units(batch, 4).tolist() == [[[True, True, False, False], [True] * 4, [True, True, False, False]]]
    assert float(GrapeScore((), [1, 0, 0])(batch).rewards.sum()) == -(3 + 15 + 3)
    tokens = replace(batch, behaviour={**batch.behaviour, "log_prob": -torch.ones(1, 3, 7)})
    assert float(GrapeScore((), [1, 0, 0])(tokens).rewards.sum()) == -21  # tokens belong to the whole decision


def test_chunks_with_a_unit_per_step_are_cut_too():
    """Chunks of 2 steps at 0 and 2; a row of 3 steps took 2 + 1 of them, one of 4 all: −3 and −4."""
    behaviour = {"sample": torch.zeros(2, 3, 2, 2), "log_prob": -torch.ones(2, 3, 2)}
    batch = TrajectoryBatch(
        state=torch.zeros(2, 5, 0),
        actions=torch.zeros(2, 4, 2),
        mask=torch.tensor([[True, True, True, False], [True] * 4]),
        end=torch.tensor([2, 2]),
        decision_step=torch.tensor([[0, 2, -1]] * 2),
        behaviour=behaviour,
    )
    assert GrapeScore((), [1, 0, 0])(batch).rewards.sum(1).tolist() == [-3, -4]
    for whole in ("tokens", "chain"):  # as many tokens or denoising steps as steps: chance
        recorded = replace(batch, behaviour={**behaviour, whole: torch.zeros(2, 3, 2)})
        assert GrapeScore((), [1, 0, 0])(recorded).rewards.sum(1).tolist() == [-4, -4]


def test_padded_units_do_not_count():
    """Answers of 3, 1 and 2 tokens, padded to 3 with what is no number: −(3 + 1) and −(3 + 1 + 2)."""
    real = torch.arange(3) < torch.tensor([3, 1, 2])[:, None]
    behaviour = {
        "log_prob": torch.where(real, -1.0, torch.nan).expand(2, 3, 3),
        "unit_mask": real.expand(2, 3, 3),
    }
    batch = TrajectoryBatch(
        state=torch.zeros(2, 4, 0),
        actions=torch.zeros(2, 3, 2),
        mask=torch.tensor([[True, True, False], [True] * 3]),
        end=torch.tensor([2, 2]),
        behaviour=behaviour,
    )
    model = GrapeScore((), [1, 0, 0])
    assert model(batch).rewards.sum(1).tolist() == [-4, -6]
    mean = GrapeScore((), [1, 0, 0], self_reduce="mean")(batch).rewards.sum(1)
    assert mean.tolist() == [-2, -2]  # over decisions
    # a NaN on a real unit still counts, and so does a decision none of whose units is real
    assert not bool(model(replace(batch, behaviour={"log_prob": behaviour["log_prob"]})).valid.any())
    none = behaviour["unit_mask"].clone()
    none[1, 1] = False
    assert model(replace(batch, behaviour={**behaviour, "unit_mask": none})).valid.any(1).tolist() == [True, False]
    for wrong in (real.float().expand(2, 3, 3), real[:, :2].expand(2, 3, 2)):
        with pytest.raises(ValueError, match="unit_mask"):
            model(replace(batch, behaviour={**behaviour, "unit_mask": wrong}))
    # together with the cut: 2 of 2 · 2 units are of a step never taken, one more is padding
    cut = TrajectoryBatch(
        state=torch.zeros(1, 2, 0),
        actions=torch.zeros(1, 1, 2),
        mask=torch.ones(1, 1, dtype=torch.bool),
        end=torch.tensor([2]),
        behaviour={
            "sample": torch.zeros(1, 1, 2, 2),
            "log_prob": -torch.tensor([[[1.0, 2, 4, 8]]]),
            "unit_mask": torch.tensor([[[True, False, True, True]]]),
        },
    )
    assert float(model(cut).rewards.sum()) == -1


def test_a_floor_keeps_impossible_decisions_finite():
    batch = rollouts(rows=2, seed=4)
    log_prob = batch.behaviour["log_prob"].clone()
    log_prob[0, 0, 0] = -math.inf
    batch = replace(batch, behaviour={"log_prob": log_prob})
    assert GrapeScore((), [1, 0, 0])(batch).valid.any(1).tolist() == [False, True]
    floored = GrapeScore((), [1, 0, 0], log_prob_floor=-3.0)(batch)
    assert floored.valid.any(1).tolist() == [True, True]
    assert bool((floored.rewards >= -3.0 * batch.steps[:, None]).all())
    for wrong in (math.nan, 0.05, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"a log-probability, at most 0; ln 0\.05 is -3\.0"):
            GrapeScore((), [1, 0, 0], log_prob_floor=wrong)


def test_overflowing_costs_stay_positive_and_trainable():
    heavy = COSTS | {"constraints": [c | {"weight": 1e6} for c in COSTS["constraints"]]}
    batch = rollouts(rows=4, seed=6, ends=[End.SUCCESS, End.SUCCESS, End.FAILURE, End.FAILURE])
    far = {n: replace(c, values=1e30 * c.values) if c.values.ndim == 3 else c for n, c in batch.tracks.items()}
    batch = replace(batch, tracks=far)
    model = GrapeScore([heavy], compare="task")
    external = model.raw_terms(batch)["external"]
    assert bool(((external > 0) & (external <= 1)).all())
    scored = GrapeScore([heavy], [0, 0.01, 0])(batch)  # in the batch's float32, weighed
    assert bool(scored.valid.any(1).all())
    assert bool((scored.rewards.sum(1) >= torch.finfo(torch.float32).tiny).all())
    with torch.enable_grad():
        model.loss(batch)["loss"].backward()
    assert bool(torch.cat([p.grad.flatten() for p in model.parameters()]).isfinite().all())


def test_what_is_saved_holds_its_costs(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(COSTS))
    model, batch = GrapeScore([str(path)]), rollouts()
    with torch.no_grad():
        model.log_scales.uniform_(-1, 1)
        model.log_weights.uniform_(-1, 1)
    path.unlink()
    torch.testing.assert_close(reopen(model)(batch).rewards, model(batch).rewards)


# training


def test_before_training_nothing_changes_and_a_weight_of_0_stays():
    model = GrapeScore([COSTS], [0.01, 1, 0])
    assert model.term_weights.tolist() == [0.01, 1.0, 0.0]
    assert model.constraint_weights.tolist() == [c.weight for c in load_costs(COSTS).constraints]
    with torch.no_grad():
        model.log_weights.fill_(-9.0)
        model.log_scales.fill_(3.0)
    assert bool((model.constraint_weights > 0).all())
    assert float(model.term_weights[2]) == 0.0


def test_the_loss_by_hand():
    """Score without success; one pair in each group of the two: −log σ(chosen − rejected)."""
    batch = rollouts(rows=4, seed=9, ends=[End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.SUCCESS])
    model = GrapeScore([COSTS])
    terms = model.raw_terms(batch)
    score = 0.01 * terms["self"] + terms["external"]
    gaps = torch.stack([score[0] - score[2], score[3] - score[1]])
    parts = model.loss(batch)
    assert float(parts["loss"]) == pytest.approx(float(torch.nn.functional.softplus(-gaps).mean()), rel=1e-5)
    assert float(parts["pairs"]) == 2
    assert float(parts["preference_accuracy"]) == pytest.approx(float((gaps > 0).double().mean()))
    assert float(GrapeScore([COSTS], compare="task").loss(batch)["pairs"]) == 4
    torch.testing.assert_close(model.loss(pad_steps(batch, 2))["loss"], parts["loss"])


def test_a_loss_without_pairs_says_so_once():
    """Nobody grouped the rows: each is alone, and there is nothing to learn."""
    batch = rollouts(rows=4, seed=9, ends=[End.SUCCESS, End.FAILURE, End.TIME_LIMIT, End.SUCCESS])
    alone, model = replace(batch, group=torch.arange(4)), GrapeScore([COSTS])
    with pytest.warns(UserWarning, match=r"nothing is compared.*batch\.group.*compare=\"task\""):
        assert float(model.loss(alone)["pairs"]) == 0
    model.loss(alone)  # warnings are errors here
    GrapeScore([COSTS]).loss(replace(alone, success=torch.zeros(4), success_known=torch.ones(4).bool()))


def test_a_frozen_score_is_not_fitted():
    batch = rollouts(rows=4, seed=9)
    model = GrapeScore([COSTS])
    GroupScore(model)
    ones = torch.ones(1)
    pairs = PreferencePairs(batch=batch, chosen=ones.long(), rejected=0 * ones.long(), label=ones, weight=ones)
    with pytest.raises(ValueError, match="this score is frozen: fit it before it goes into GroupScore"):
        model.fit(pairs)


def pairs_of(batch, model, generator, count=300, noise=1.0):
    """Preferences of somebody who weighs the terms as the model does, with Bradley–Terry noise."""
    score = model(batch).rewards.sum(1).double()
    one, two = (torch.randint(0, len(batch), (count,), generator=generator) for _ in range(2))
    prefers = torch.rand(count, generator=generator) < torch.sigmoid((score[one] - score[two]) / noise)
    chosen, rejected = torch.where(prefers, one, two), torch.where(prefers, two, one)
    ones = torch.ones(count)
    return PreferencePairs(batch=batch, chosen=chosen, rejected=rejected, label=ones, weight=ones)


@pytest.mark.slow
def test_preferences_teach_the_weights():
    """Somebody cares for other things than the preset: held-out agreement with their ordering rises in every seed."""
    gains: list[float] = []
    after: list[float] = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        theirs, model = GrapeScore([COSTS], [0.3, 10, 0]), GrapeScore([COSTS], [0.3, 10, 0], prior=1e-4)
        with torch.no_grad():
            theirs.log_scales.copy_(torch.tensor([-3.0, 1.5, 1.5, -3.0]))
            theirs.log_weights.copy_(torch.tensor([-3.0, 1.0, 0.0]))
        train, held_out = rollouts(rows=40, seed=2 * seed), rollouts(rows=40, seed=2 * seed + 1)
        judged = pairs_of(held_out, theirs, generator, noise=1e-9)
        before = float(model.preference_loss(judged)["preference_accuracy"])
        taught = pairs_of(train, theirs, generator)
        with torch.enable_grad():
            figures = model.fit(taught, steps=60, learning_rate=0.25)
        assert figures["preference_loss_after"] < figures["preference_loss_before"]
        after.append(float(model.preference_loss(judged)["preference_accuracy"]))
        gains.append(after[-1] - before)
    low, _ = bootstrap_interval(np.array(gains), np.arange(6))
    assert low > 0.05, gains
    low, _ = bootstrap_interval(np.array(after), np.arange(6))
    assert low > 0.8, after


def test_ties_and_weights_of_pairs():
    batch = rollouts(rows=3, seed=1, ends=[End.SUCCESS] * 3)
    model = GrapeScore([COSTS])

    def pairs(label, weight):
        return PreferencePairs(
            batch=batch,
            chosen=torch.tensor([0, 1]),
            rejected=torch.tensor([1, 2]),
            label=torch.tensor(label),
            weight=torch.tensor(weight),
        )

    assert float(model.preference_loss(pairs([0.5, 0.5], [1.0, 1.0]))["preference_accuracy"]) == 0.5
    only = model.preference_loss(pairs([1.0, 1.0], [1.0, 0.0]))
    assert float(only["pairs"]) == 1
    swapped = model.preference_loss(pairs([0.0, 1.0], [1.0, 0.0]))
    assert float(swapped["preference_accuracy"]) == 1 - float(only["preference_accuracy"])
    with pytest.raises(ValueError, match="no pair to learn from"):
        model.fit(pairs([1.0, 1.0], [0.0, 0.0]))
    with pytest.raises(ValueError, match="unknown term 'luck'"):
        model.preference_loss(pairs([1.0, 1.0], [1.0, 1.0]), terms=("luck",))


# the library


@pytest.mark.slow
def test_the_library_on_real_rollouts():
    """Experts above those who give up, without the success flag; the kitchen's tracks can be scored."""
    with closing(make_task("metaworld/push-v3", horizon=120)) as task:
        batch = collate(list(collect(task, {"expert": 0.5, "aborted": 0.5}, 6, split="eval", frames=False)))
    batch = replace(batch, success_known=torch.zeros(6, dtype=torch.bool))
    stages = RuleDecomposer(use_success=False)
    model = GrapeScore(["metaworld/push-v3", "metaworld/drawer-open-v3"], [0, 1, 0], decomposer=stages)
    score = model(batch).rewards.sum(1)
    assert model.why(batch) == [""] * 6
    expert = batch.end == End.SUCCESS
    assert 0 < int(expert.sum()) < 6
    assert float(score[expert].min()) > 0.7 > 0.5 > float(score[~expert].max())
    with closing(make_task("kitchen/microwave", horizon=5)) as task:
        batch = collate(list(collect(task, {"random": 1.0}, 1, frames=False)))
    score = GrapeScore(["kitchen/microwave"], [0, 1, 0], decomposer=RuleDecomposer(use_success=False))(batch)
    assert 0 < float(score.rewards.sum()) < math.exp(-3 * 5) * 1.001  # the second stage has three constraints
