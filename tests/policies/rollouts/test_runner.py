"""Rollouts in a corridor that writes episode and step into everything it returns, and in a simulated arm."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from guerdon.core.batch import Decision, End
from guerdon.core.interfaces import Policy
from guerdon.envs.reach import joint_angles
from guerdon.envs.vector import make_task
from guerdon.policies.advantages.group_score import GroupScore
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.pieces import batch_pieces
from guerdon.policies.rollouts.runner import Runner, split_evenly
from guerdon.rewards.grape.trajectory import GrapeScore
from guerdon.rewards.stages.rule_decomposer import RuleDecomposer
from guerdon.rewards.stages.subgoals import SubgoalReward

from .small_tasks import (
    Corridor,
    Noisy,
    Numbered,
    Street,
    Tracked,
    both,
    building,
    contexts,
    corridor,
    generator,
    same,
)


class Expert(Policy):
    """Moves the arm's joints straight to where its tip is on the goal."""

    horizon = 1

    def __init__(self, noise: float = 0.0):
        super().__init__()
        self.noise = noise

    def act(self, observation, deterministic=False, generator=None):
        state = observation.state.numpy()
        wanted = np.stack([joint_angles(goal) for goal in state[:, 9:12]])
        action = torch.from_numpy((wanted - state[:, :3]) / 0.08).float().clamp(-1, 1)
        if not deterministic:
            action = action + self.noise * torch.randn(action.shape, generator=generator)
        return Decision(chunk=action[:, None], executed=torch.ones(len(state), dtype=torch.long))


def numbers(batch):
    """Number of each decision, and whether it is trained on."""
    found = []
    for row in range(len(batch)):
        for n, step in enumerate(batch.decision_step[row].tolist()):
            if step >= 0:
                found.append((int(batch.behaviour["sample"][row, n, 0, 0] / 1000), bool(batch.weight[row, step] > 0)))
    return found


# --- everything in its place ----------------------------------------------------------------------------------------


def test_every_part_of_a_batch_is_from_its_own_episode_and_step():
    runner = corridor(envs=3)
    batch = batch_pieces(runner.play(Numbered(2, 2), contexts(0, 3, 4, 5, 9), generator()), "walk")
    assert batch.group.tolist() == [0, 3, 4, 5, 9]
    assert batch.steps.tolist() == [7, 4, 2, 2, 7]
    for row, index in enumerate(batch.group.tolist()):
        real = int(batch.steps[row])
        assert batch.state[row, : real + 1].tolist() == [[index, t] for t in range(real + 1)]
        assert batch.recorded["reward"].values[row, :real].tolist() == [100.0 * index + t + 1 for t in range(real)]
    assert batch.decision_step.tolist() == [
        [0, 2, 4, 6],
        [0, 2, -1, -1],
        [0, -1, -1, -1],
        [0, -1, -1, -1],
        [0, 2, 4, 6],
    ]
    assert batch.instructions == ("walk",) * 5
    assert torch.equal(batch.recorded["reward"].valid, batch.mask)


def test_samples_are_kept_as_drawn_while_actions_are_what_the_environment_executed():
    batch = batch_pieces(corridor(envs=1).play(Numbered(3, 2), contexts(0), generator()))
    # decisions 0, 1, 2, 3 at steps 0, 2, 4, 6; step k of decision n was drawn as 1000 n + k, and clipped to 1
    assert batch.behaviour["sample"][0, :, :, 0].tolist() == [[1000.0 * n + k for k in range(3)] for n in range(4)]
    assert batch.behaviour["log_prob"][0, :, 0].tolist() == [0, -1, -2, -3]
    assert batch.behaviour["number"].tolist() == [[0, 1, 2, 3]], "what a policy records beside comes along"
    _, decision = batch.at(torch.tensor([0]), torch.tensor([2]))
    assert decision.extras["number"].tolist() == [1]
    assert batch.actions[0, :, 0].tolist() == [0, 1, 1, 1, 1, 1, 1]
    _, decision = batch.at(torch.zeros(4).long(), torch.tensor([0, 2, 4, 6]))
    assert decision.executed.tolist() == [2, 2, 2, 1]


def test_a_policy_without_log_probabilities_records_none():
    assert "log_prob" not in batch_pieces(corridor(1).play(Deaf(), contexts(0), generator())).behaviour


class Deaf(Numbered):
    """Says nothing of how likely its actions were."""

    def act(self, observation, deterministic=False, generator=None):
        return replace(super().act(observation), log_prob=None)


# --- how episodes end -----------------------------------------------------------------------------------------------


def test_ends_and_outcomes():
    batch = batch_pieces(corridor(envs=2).play(Numbered(), contexts(0, 3, 4, 5), generator()))
    assert batch.end.tolist() == [End.TIME_LIMIT, End.SUCCESS, End.FAILURE, End.SUCCESS]
    assert batch.terminated.tolist() == [False, True, True, True]
    assert batch.success.tolist() == [0, 1, 0, 1]
    assert batch.success_known.all()
    assert batch.last_observed.all()
    flags = batch.labels["success"]
    assert flags.values[1].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert flags.valid[1].tolist() == [False, True, True, True, True, False, False, False]


def test_a_success_that_does_not_end_the_episode_is_still_a_success():
    batch = batch_pieces(corridor(end_on_success=False).play(Numbered(), contexts(3, 0, 5), generator()))
    assert batch.end.tolist() == [End.TIME_LIMIT, End.TIME_LIMIT, End.SUCCESS]
    assert batch.steps.tolist() == [7, 7, 2]
    assert batch.success.tolist() == [1, 0, 1]
    assert batch.terminated.tolist() == [False, False, True]
    assert batch.labels["success"].values[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]


def test_success_at_the_time_limit_is_a_success():
    pieces = corridor(horizon=4).play(Numbered(), contexts(3), generator())
    assert pieces[0].end == End.SUCCESS


# --- pieces that go on ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("execute", [1, 2, 3])
@pytest.mark.parametrize("envs", [1, 3])
def test_every_decision_is_handed_out_for_training_exactly_once(execute, envs):
    runner, policy = corridor(envs), Numbered(3, execute)
    draws, trained, before = generator(), [], set()
    for _ in range(6):
        batch = batch_pieces(runner.collect(policy, 5, contexts(0, 3, 4, 5, 6), draws))
        found = numbers(batch)
        assert len({n for n, _ in found}) == len(found), "a decision stands twice in one rollout"
        assert {n for n, fresh in found if not fresh} <= before, "what is context was handed out before"
        trained += [n for n, fresh in found if fresh]
        before |= {n for n, _ in found}
    assert sorted(trained) == list(range(policy.given))


def test_a_piece_that_goes_on_comes_back_from_its_start():
    runner, policy, draws = corridor(envs=1), Numbered(2, 2), generator()
    first = runner.collect(policy, 3, contexts(0), draws)
    # two decisions of two steps: the least that is at least three steps
    assert [(p.end, len(p.actions), p.fresh) for p in first] == [(End.CUT, 4, 0)]
    second = runner.collect(policy, 4, contexts(0), draws)
    # three steps to the time limit, then a new episode of two: cut again
    assert [(p.end, len(p.actions), p.fresh) for p in second] == [(End.TIME_LIMIT, 7, 4), (End.CUT, 2, 0)]
    batch = batch_pieces(second)
    assert batch.weight.tolist() == [[0, 0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0]]
    assert batch.state[0, :, 1].tolist() == list(range(8))
    assert batch.end.tolist() == [End.TIME_LIMIT, End.CUT]
    assert batch.success_known.tolist() == [True, False]
    assert not batch.terminated.any()
    assert len(first[0].actions) == 4, "what was handed out does not grow afterwards"


@pytest.mark.parametrize("execute", [1, 2, 3])
def test_rollouts_are_cut_between_decisions_only(execute):
    runner, draws = corridor(envs=3), generator()
    for _ in range(5):
        for piece in runner.collect(Numbered(3, execute), 4, contexts(0, 1, 4), draws):
            steps = list(range(0, len(piece.actions), execute))
            assert piece.decision_step == steps
            if piece.end == End.CUT:
                assert len(piece.actions) % execute == 0


def test_about_as_many_steps_are_taken_as_asked_for():
    runner = corridor(envs=3)
    for _ in range(5):
        pieces = runner.collect(Numbered(2, 2), 10, contexts(0), generator())
        taken = sum(len(p.actions) - p.fresh for p in pieces)
        assert 10 <= taken < 10 + 3 * 2


@pytest.mark.parametrize("spares", [0, 2])
def test_whole_episodes_between_rollouts_change_nothing(spares):
    def rollouts(judged):
        runner, policy, draws = corridor(2, task=Stepping, spares=spares), Noisy(), generator()
        found = []
        for _ in range(4):
            found.append(batch_pieces(runner.collect(policy, 5, contexts(0, 3, 6, 7), draws)))
            if judged:
                episodes = runner.play(policy, contexts(0, 9, 3, 8, 8), generator(7), False)
                assert all(piece.fresh == 0 and piece.end != End.CUT for piece in episodes)
        runner.close()
        return found

    for one, other in zip(rollouts(judged=False), rollouts(judged=True), strict=True):
        assert same(one, other)


class Stepping(Corridor):
    """Cannot be saved: its episodes are repeated by their actions."""


def test_contexts_are_drawn_by_the_generator():
    def drawn(seed):
        pieces = corridor(envs=2).collect(Numbered(), 60, contexts(*range(6, 30)), generator(seed))
        return [p.context.index for p in pieces]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_a_piece_that_goes_on_is_no_whole_episode():
    runner, draws = corridor(envs=1), generator()
    # steps 1 … 4; then 5 … 7 to the time limit, and one more of a new episode
    assert batch_pieces(runner.collect(Numbered(), 4, contexts(0), draws)).length.tolist() == [5]
    assert batch_pieces(runner.collect(Numbered(), 4, contexts(0), draws)).length.tolist() == [7, 2]


# --- tracks ---------------------------------------------------------------------------------------------------------


def test_tracks_stand_at_their_observation_in_pieces_and_whole_episodes():
    runner, draws = corridor(envs=2, task=Tracked), generator()
    batches = [batch_pieces(runner.collect(Numbered(2, 2), 9, contexts(0, 3, 4, 6), draws)) for _ in range(4)]
    batches.append(batch_pieces(runner.play(Numbered(), contexts(0, 3, 5), draws)))
    assert {int(e) for b in batches for e in b.end} >= {End.CUT, End.SUCCESS, End.TIME_LIMIT}
    for batch in batches:
        point, sensor = batch.tracks["point"], batch.tracks["sensor"]
        assert point.values.dtype == sensor.values.dtype == torch.float32
        assert point.values.shape == (*batch.made.shape, 3)
        assert torch.equal(point.valid, batch.made)
        assert torch.equal(point.values[..., :2], batch.state), "the corridor's state is its context and step"
        assert torch.equal(point.values[..., 2], batch.made.float()), "padding is 0"
        seen = batch.made & (batch.state[..., 1] != 3)
        assert torch.equal(sensor.valid, seen), "what is no number is unknown"
        assert torch.equal(sensor.values, torch.where(seen, batch.state[..., 1] / 10, 0))


def test_a_task_without_tracks_gives_none():
    assert batch_pieces(corridor().play(Numbered(), contexts(0), generator())).tracks == {}


# --- whole episodes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("envs", [1, 2, 5])
def test_whole_episodes_come_in_the_order_of_their_contexts(envs):
    order = [4, 0, 3, 0, 5, 9, 4]
    pieces = corridor(envs).play(Numbered(), contexts(*order), generator())
    assert [int(p.state[0][0]) for p in pieces] == order
    assert all(p.end != End.CUT and p.fresh == 0 for p in pieces)


class Uneven(Numbered):
    """Executes one more step with every decision, up to three, and returns as many log-probabilities."""

    def act(self, observation, deterministic=False, generator=None):
        decision = super().act(observation)
        steps = 1 + decision.extras["number"] % 3
        return replace(decision, executed=steps)


def test_decisions_may_execute_different_numbers_of_steps():
    batch = batch_pieces(corridor(envs=2).play(Uneven(3), contexts(0, 1), generator()))
    for row in range(2):
        numbers = batch.behaviour["number"][row].tolist()
        starts = [step for step in batch.decision_step[row].tolist() if step >= 0]
        lengths = [1 + number % 3 for number, _ in zip(numbers, starts, strict=False)]
        assert starts == [sum(lengths[:n]) for n in range(len(starts))]
        rows = torch.full((len(starts),), row)
        _, decision = batch.at(rows, torch.tensor(starts))
        assert decision.executed.tolist() == [min(n, 7 - s) for n, s in zip(lengths, starts, strict=True)]


@pytest.mark.parametrize("executed", [0, 4])
def test_a_number_of_steps_that_a_chunk_does_not_have_is_refused(executed):
    policy = Numbered(3, executed)
    with pytest.raises(ValueError, match=rf"execute 1 … 3 steps, got \[{executed}\]"):
        corridor().play(policy, contexts(0), generator())


class Talkative(Numbered):
    """Records as many units as its number modulo three, and one more."""

    def act(self, observation, deterministic=False, generator=None):
        decision = super().act(observation)
        width = 1 + int(decision.extras["number"][0]) % 3
        return replace(decision, log_prob=torch.full((len(observation), width), -1.0))


def test_records_of_different_widths_are_padded_and_marked():
    batch = batch_pieces(corridor(envs=1).play(Talkative(2, 2), contexts(0, 3), generator()))
    mask, log_prob = batch.behaviour["unit_mask"], batch.behaviour["log_prob"]
    assert log_prob.shape == mask.shape == (2, 4, 3)
    widths = [[1, 2, 3, 1], [2, 3, 0, 0]]
    assert mask.sum(2).tolist() == widths
    assert torch.equal(log_prob, -mask.float())
    _, decision = batch.at(torch.tensor([0, 1]), torch.tensor([2, 2]))
    assert decision.extras["unit_mask"].tolist() == [[True, True, False], [True, True, True]]


# --- simulators that fail --------------------------------------------------------------------------------------------


class Crashing(Corridor):
    """Crashes at the third step of context 6, as often as told; copies share the count."""

    left = 0
    built = 0

    def __init__(self, horizon=7):
        super().__init__(horizon)
        Crashing.built += 1

    def step(self, action):
        if self.index == 6 and self.at == 2 and Crashing.left:
            Crashing.left -= 1
            raise OSError("the simulator is gone")
        return super().step(action)


def test_a_simulator_that_crashes_costs_its_episode_which_is_counted():
    Crashing.left, Crashing.built = 1, 0
    runner = corridor(envs=2, task=Crashing)
    with building(lambda name: Crashing(7)):
        pieces = runner.collect(Numbered(), 14, contexts(6), generator())
    assert Crashing.built == 3
    assert (runner.lost.fragments, runner.lost.steps) == (1, 2)
    given_up = "the simulator was built again, and its episode given up"
    assert runner.lost.reasons == [f"test/corridor: OSError: the simulator is gone; {given_up}"]
    assert sum(len(piece.actions) for piece in pieces) >= 14
    for row in range(len(batch := batch_pieces(pieces))):
        steps = int(batch.steps[row])
        assert batch.state[row, : steps + 1].tolist() == [[6, t] for t in range(steps + 1)]


def test_a_whole_episode_whose_simulator_crashes_is_played_again():
    Crashing.left = 2
    runner = corridor(envs=2, task=Crashing)
    with building(lambda name: Crashing(7)):
        pieces = runner.play(Numbered(), contexts(0, 6, 7, 6), generator())
    assert [piece.context.index for piece in pieces] == [0, 6, 7, 6]
    assert [len(piece.actions) for piece in pieces] == [7] * 4
    assert runner.lost.fragments == 0 and len(runner.lost.reasons) == 2


def test_a_simulator_that_keeps_crashing_is_an_error():
    Crashing.left = 10**9
    runner = corridor(envs=1, task=Crashing)
    with (
        building(lambda name: Crashing(7)),
        pytest.raises(RuntimeError, match=r"failed 3 times in a row, last at step 2 of context 6: OSError: the sim"),
    ):
        runner.collect(Numbered(), 14, contexts(6), generator())
    Crashing.left = 0


# --- episodes that go on after an interruption -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test/corridor", "mujoco/reach"])
def test_unfinished_episodes_go_on_in_other_simulators(name):
    def make():
        return corridor(3, task=Tracked) if name == "test/corridor" else Runner(name, 3, horizon=9)

    train = contexts(0, 3, 6) if name == "test/corridor" else make_task(name).contexts("train", 4)
    policy, first = Noisy(), make()
    first.collect(policy, 8, train, generator(1))
    pieces = [p for p in first.collect(policy, 8, train, generator(2)) if p.end == End.CUT]
    second = make()
    assert second.restore([replace(p, state=np.asarray(p.state)[-1:]) for p in pieces]) == len(pieces)
    for seed in (3, 4):
        one, other = (batch_pieces(r.collect(policy, 8, train, generator(seed))) for r in (first, second))
        assert same(one, other)
    assert second.lost.fragments == 0


def test_an_episode_that_cannot_be_repeated_is_counted():
    first, second = corridor(2), corridor(1)
    pieces = [p for p in first.collect(Numbered(), 4, contexts(0), generator()) if p.end == End.CUT]
    broken = replace(pieces[0], state=np.asarray(pieces[0].state) + 1)
    assert second.restore([broken, pieces[1]]) == 1, "the second takes the only environment"
    assert second.lost.reasons == ["test/corridor: an episode in progress could not be repeated to its last state"]
    assert second.restore(pieces) == 1
    assert second.lost.reasons[-1] == "test/corridor: no environment is free for an episode in progress"


# --- several tasks --------------------------------------------------------------------------------------------------


def test_environments_are_dealt_to_the_tasks_in_turns():
    for first, envs, wanted in ((0, 3, [0, 1, 0]), (3, 3, [1, 0, 1]), (2, 1, [0])):
        runner = both(envs, first=first)
        train = [*contexts(0, 6), *contexts(1, 7, task=Street)]
        pieces = runner.collect(Numbered(), 4 * envs, train, generator())
        assert [piece.task for piece in pieces] == wanted
        assert [piece.context.task for piece in pieces] == [(Corridor, Street)[k].name for k in wanted]


def test_each_task_keeps_its_bounds_time_limit_and_instruction():
    pieces = both().play(Numbered(), [*contexts(0), *contexts(0, task=Street)], generator())
    assert [len(piece.actions) for piece in pieces] == [7, 5]
    assert [max(float(a[0]) for a in piece.actions) for piece in pieces] == [1, 5]
    assert [piece.instruction for piece in pieces] == ["walk", "cross"]


def test_the_policy_reads_the_instruction_of_each_task():
    policy = Noisy()
    both().play(policy, [*contexts(0), *contexts(0, task=Street)], generator())
    assert [observation.instructions for observation in policy.seen] == [("walk", "cross")] * 5 + [("walk",)] * 2


def test_whole_episodes_of_several_tasks_come_in_the_order_of_their_contexts():
    order = [*contexts(0, task=Street), *contexts(4, 0), *contexts(9, 4, 2, task=Street), *contexts(3)]
    pieces = both(3).play(Numbered(), order, generator())
    assert [piece.context for piece in pieces] == order
    assert [(piece.context.task == Street.name) == piece.task for piece in pieces] == [True] * len(order)


def test_contexts_of_a_task_that_nobody_plays_are_named():
    with pytest.raises(ValueError, match="no environment plays test/street: they play test/corridor"):
        corridor().play(Numbered(), contexts(0, task=Street), generator())
    with pytest.raises(ValueError, match="test/street: expected contexts of this task, got 1 of test/corridor"):
        both().collect(Numbered(), 4, contexts(0), generator())
    with pytest.raises(ValueError, match="test/corridor: expected contexts of this task, got 0 of none"):
        corridor().collect(Numbered(), 4, [], generator())


# --- a real simulator -----------------------------------------------------------------------------------------------


def test_an_expert_reaches_the_goal_from_the_contexts_it_is_given():
    runner = Runner("mujoco/reach", 3)
    starts = make_task("mujoco/reach").contexts("eval", 5)
    batch = batch_pieces(runner.play(Expert(), starts, generator()))
    task = make_task("mujoco/reach")
    for row, context in enumerate(starts):
        assert torch.equal(batch.state[row, 0], torch.from_numpy(task.reset(context)))
    assert batch.end.tolist() == [End.SUCCESS] * 5
    last = batch.state[torch.arange(5), batch.steps]
    assert ((last[:, 6:9] - last[:, 9:12]).norm(dim=1) <= 0.04).all()
    assert batch.labels["success"].values.sum(1).tolist() == [1] * 5, "the first success ends an episode"
    runner.close()


def test_replaying_the_actions_gives_the_states():
    runner = Runner("mujoco/reach", 2, end_on_success=False)
    start = make_task("mujoco/reach").contexts("train", 2)
    batch = batch_pieces(runner.play(Expert(noise=0.5), start, generator(), deterministic=False))
    task = make_task("mujoco/reach")
    for row in range(2):
        task.reset(start[row])
        for t in range(int(batch.steps[row])):
            assert torch.equal(
                batch.state[row, t + 1], torch.from_numpy(task.step(batch.actions[row, t].numpy()).state)
            )
    assert batch.steps.tolist() == [50, 50]
    assert batch.success.tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mujoco/reach", "metaworld/push-v3"])
def test_replaying_the_actions_gives_the_tracks(name):
    if name.startswith("metaworld"):
        pytest.importorskip("metaworld")
    runner, task = Runner(name, 2, horizon=6), make_task(name)
    policy, draws = GaussianPolicy(task.state_size, task.action_size, hidden=(8,), horizon=2, execute=2), generator()
    starts = task.contexts("train", 3)
    rows = {context.index: context for context in starts}
    for _ in range(3):  # cut pieces, pieces that go on, whole episodes
        batch = batch_pieces(runner.collect(policy.eval(), 8, starts, draws))
        for row, index in enumerate(batch.group.tolist()):
            task.reset(rows[index])
            replayed = [task.tracks()]
            for t in range(int(batch.steps[row])):
                replayed.append(task.step(batch.actions[row, t].numpy()).tracks)
            assert batch.tracks.keys() == replayed[0].keys()
            for track, found in batch.tracks.items():
                wanted = np.stack([points[track] for points in replayed])
                wanted = wanted[:, 0] if wanted.shape[1] == 1 else wanted  # a number stands without a dimension
                assert np.array_equal(found.values[row, : len(wanted)], wanted), track
                assert found.valid[row].tolist() == [t < len(wanted) for t in range(found.valid.shape[1])]
    runner.close()
    task.close()


def test_rewards_that_read_tracks_score_finished_rollouts():
    """GRAPE's score with all of its terms, the baselines made of it, and stages by rule."""
    task = make_task("mujoco/reach")
    runner, starts = Runner("mujoco/reach", 4), task.contexts("train", 2)
    policy = GaussianPolicy(task.state_size, task.action_size, hidden=(8,)).eval()
    pieces = runner.play(policy, [*starts, *starts], generator(), deterministic=False)
    pieces += runner.collect(policy, 20, starts, generator())  # four that go on
    batch = batch_pieces(pieces, task.instruction)
    finished = [True] * 4 + [False] * 4
    assert (batch.end != End.CUT).tolist() == finished
    score = GrapeScore(["mujoco/reach"])
    assert score.why(batch)[:4] == [""] * 4
    assert all("no whole, finished episode" in text for text in score.why(batch)[4:])
    for model in (score, GrapeScore(["mujoco/reach"], weights=(1.0, 1.0, 0.0), open_ends=True)):
        said = model(batch)
        assert said.valid.any(1).tolist() == finished, "a piece that goes on has no open end, it is no episode"
        distance = (batch.tracks["end_effector"].values - batch.tracks["goal"].values).norm(dim=2).double()
        for row in range(4):
            seen = distance[row, 1 : int(batch.steps[row]) + 1]
            cost = 10 * max(0, float(seen[-1]) - 0.05) + 2 * max(0, float(seen.mean()) - 0.1)
            cost += 0.005 * max(0, len(seen) - 30)
            assert float(said.terms["external"][row].detach().sum()) == pytest.approx(np.exp(-cost), rel=1e-5)
        source = GroupScore(model, min_share=0.0)
        advantages = source(batch, source.estimate(batch))
        assert torch.equal(advantages.valid, batch.decision_mask & torch.tensor(finished)[:, None])
        assert source.figures["groups_compared"] == 2
        assert float(advantages.advantages[:2, 0].abs().min()) > 0
    staged = SubgoalReward(RuleDecomposer())(batch)
    assert torch.equal(staged.valid, batch.mask)
    runner.close()


def test_a_shorter_time_limit_is_kept():
    runner = Runner("mujoco/reach", 1, horizon=3)
    pieces = runner.play(Expert(), make_task("mujoco/reach").contexts("train", 1), generator())
    assert (len(pieces[0].actions), pieces[0].end) == (3, End.TIME_LIMIT)


@pytest.mark.parametrize("total, parts", [(7, 3), (2, 2), (5, 1), (3, 5)])
def test_shares_add_up_and_differ_by_at_most_one(total, parts):
    shares = split_evenly(total, parts)
    assert (sum(shares), len(shares)) == (total, parts)
    assert max(shares) - min(shares) <= 1
