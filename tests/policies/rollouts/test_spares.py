"""Spare simulators: prepared while others play, the same results whatever the time, errors and ends."""

import threading
from typing import Any

import pytest

from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.pieces import batch_pieces
from guerdon.policies.rollouts.runner import Runner
from guerdon.policies.rollouts.spares import Spares, Start

from .small_tasks import Corridor, Noisy, Numbered, Slow, SlowStreet, Street, both, contexts, corridor, generator, same


def reset_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("guerdon-reset")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert reset_threads() == []


def supply(*starts: Start):
    waiting = list(starts)
    return lambda name: waiting.pop(0) if waiting else None


def starts(*indices):
    return [Start(context=context, place=place) for place, context in enumerate(contexts(*indices))]


# --- one exchange after the other -----------------------------------------------------------------------------------


def test_starts_are_taken_in_order_and_every_simulator_is_used_in_turn():
    first, second, third = Corridor(), Corridor(), Corridor()
    spares, source = Spares([first, second]), supply(*starts(6, 7, 8, 9))
    free, begun = third, []
    for _ in range(4):
        prepared = spares.begin(free, source)
        assert prepared is not None
        begun.append((prepared.start.place, int(prepared.state[0]), prepared.task))
        free = prepared.task
    assert begun == [(0, 6, first), (1, 7, second), (2, 8, third), (3, 9, first)]
    assert spares.begin(free, source) is None
    spares.close()


def test_a_task_without_a_spare_is_reset_in_place():
    task = Street()
    spares = Spares([Corridor()])
    prepared = spares.begin(task, supply(Start(context=contexts(2, task=Street)[0])))
    assert prepared is not None and prepared.task is task and prepared.state.tolist() == [2, 0]
    assert spares.begin(task, supply()) is None
    spares.close()


def test_episodes_that_were_prepared_are_given_up():
    spares, free = Spares([Corridor(), Corridor()]), Corridor()
    prepared = spares.begin(free, supply(*starts(6, 7, 8)))
    assert prepared is not None
    spares.drop()
    again = spares.begin(prepared.task, supply(*starts(9)))
    assert again is not None and again.state.tolist() == [9, 0]
    spares.close()


def test_closing_closes_idle_and_prepared_simulators_and_ends_the_thread():
    idle: list[Any] = [Slow(), Slow(), SlowStreet()]
    spares = Spares(idle)
    other: Any = Slow()
    prepared = spares.begin(other, supply(*starts(0, 1, 2, 3)))
    assert prepared is not None and reset_threads()
    spares.close()
    assert [getattr(task, "closed", False) for task in idle if task is not prepared.task] == [True, True]
    assert not reset_threads()


# --- a reset holds nobody up ----------------------------------------------------------------------------------------


class Gated(Corridor):
    """The reset to context 2 ends when others have made three steps since it began; they would wait for ever for it."""

    steps, moved, seen, begun = 0, threading.Condition(), 0, threading.Event()

    def reset(self, context):
        if context.index == 2:
            with Gated.moved:
                wanted = Gated.steps + 3
                Gated.begun.set()
                assert Gated.moved.wait_for(lambda: Gated.steps >= wanted, timeout=60), "nobody stepped meanwhile"
                Gated.seen += 1
        return super().reset(context)

    def step(self, action):
        assert Gated.begun.wait(timeout=60), "the reset of the third episode is asked for before the first step"
        with Gated.moved:
            Gated.steps += 1
            Gated.moved.notify_all()
        return super().step(action)


def test_the_others_step_while_one_resets():
    runner = corridor(envs=2, task=Gated, spares=1)
    pieces = runner.play(Numbered(), contexts(0, 1, 2, 6), generator())
    assert [len(piece.actions) for piece in pieces] == [7] * 4
    assert Gated.seen == 1
    runner.close()


# --- the same whatever the time -------------------------------------------------------------------------------------

ORDER = (4, 0, 3, 5, 9, 4, 3, 8, 4, 6)


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("spares", [1, 2, 5])
def test_whole_episodes_are_those_without_spares_bit_by_bit(envs, spares):
    wanted = batch_pieces(corridor(envs).play(Noisy(), contexts(*ORDER), generator(), False))
    runner = corridor(envs, task=Slow, spares=spares)
    for _ in range(2):
        assert same(batch_pieces(runner.play(Noisy(), contexts(*ORDER), generator(), False)), wanted)
    runner.close()


def test_whole_episodes_of_two_tasks_are_those_without_spares_bit_by_bit():
    order = [*contexts(*ORDER[:5]), *contexts(*ORDER, task=Street)]
    wanted = batch_pieces(both(3).play(Noisy(), order, generator(), False))
    for spares in (1, 2):  # one leaves the second task without
        runner = both(3, (Slow, SlowStreet), spares=spares)
        assert same(batch_pieces(runner.play(Noisy(), order, generator(), False)), wanted)
        runner.close()


@pytest.mark.parametrize("tasks", [(Slow,), (Slow, SlowStreet)])
def test_rollouts_do_not_depend_on_the_time_of_resets(tasks):
    train = [context for task in tasks for context in contexts(0, 3, 4, 5, 6, 7, task=task)]

    def rollouts():
        runner = both(3, tasks, spares=2)
        policy, draws = Noisy(), generator()
        batches = [batch_pieces(runner.collect(policy, 12, train, draws)) for _ in range(3)]
        batches.append(batch_pieces(runner.play(policy, train[:4], draws, False)))
        batches.append(batch_pieces(runner.collect(policy, 12, train, draws)))
        runner.close()
        return batches

    one, other = rollouts(), rollouts()
    assert all(same(first, second) for first, second in zip(one, other, strict=True))
    assert len({int(group) for batch in one for group in batch.group}) > 3


def test_rollouts_from_one_context_are_those_without_spares():
    runner, plain = corridor(3, task=Slow, spares=2), corridor(3)
    policy, other = Numbered(), Numbered()
    for _ in range(4):
        one = batch_pieces(runner.collect(policy, 10, contexts(4), generator()))
        assert same(one, batch_pieces(plain.collect(other, 10, contexts(4), generator())))
    runner.close()


def test_prepared_episodes_of_contexts_that_are_no_longer_asked_for_are_given_up():
    runner, draws = corridor(2, task=Slow, spares=2), generator()
    runner.collect(Numbered(), 4, contexts(4), draws)
    pieces = runner.collect(Numbered(), 20, contexts(5), draws)
    assert {p.context.index for p in pieces if p.fresh == 0} == {5}
    runner.close()


# --- errors ---------------------------------------------------------------------------------------------------------


class Broken(Slow):
    """Cannot be reset to context 7."""

    def reset(self, context):
        if context.index == 7:
            raise ZeroDivisionError(f"context {context.index}")
        return super().reset(context)


@pytest.mark.parametrize("spares", [0, 1, 3])
def test_the_error_of_a_reset_is_the_tasks_own_and_the_runner_goes_on(spares):
    runner = corridor(2, task=Broken, spares=spares)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="context 7"):
            runner.play(Numbered(), contexts(4, 0, 7, 6), generator())
        with pytest.raises(ZeroDivisionError, match="context 7"):
            runner.collect(Numbered(), 4, contexts(7), generator())
        pieces = runner.play(Numbered(), contexts(*ORDER), generator())
        assert [int(p.state[0][0]) for p in pieces] == list(ORDER)
    runner.close()


# --- a real simulator, whose resets draw from a generator that all copies share -------------------------------------


@pytest.mark.slow
def test_spares_of_libero_change_nothing():
    pytest.importorskip("libero")
    name = "libero/libero_object/0"
    plain, spared = Runner(name, 2, horizon=4), Runner(name, 2, horizon=4, spares=1)
    task = plain.simulators.tasks[0]
    policy = GaussianPolicy(task.state_size, task.action_size, hidden=(8,), horizon=4, execute=4).eval()
    # official initial states, and two that are drawn
    order = [*task.contexts("train", 1), *task.contexts("eval", 2), *task.contexts("train", 42)[40:]]
    one, other = (batch_pieces(r.play(policy, order, generator(), False)) for r in (plain, spared))
    assert same(one, other)
    plain.close()
    spared.close()
