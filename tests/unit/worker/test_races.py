"""Two threads or greenlets meet at one object: each thing is done once, and nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous.semaphore import DummyLock
from kombu.common import QoS

import celery_batches.pool.marking
import celery_batches.request
import celery_batches.worker.job
import celery_batches.worker.limits
import celery_batches.worker.prefetch
import celery_batches.worker.strategy
from celery_batches import SimpleRequest
from celery_batches.core.outcomes import UNMARKED, Done, Failed, Outcome
from celery_batches.core.slot import OutcomeSlot
from celery_batches.worker.job import BatchJob
from celery_batches.worker.prefetch import Prefetch
from kit.actors import StagedWorker
from kit.interleave import SteppedRLock, explore
from kit.stage import Stage


def test_what_waited_for_a_slot_is_sent_without_the_lock(task: Any) -> None:
    """A signal handler may do so (cold shutdown stops the pool), while its thread has the lock."""
    with StagedWorker(task, ()) as world:
        world.receiver(2)
        jobs: list[BatchJob] = []
        world.consumer.on_task_request = jobs.append  # type: ignore[method-assign]
        world.stage.run()
        with world.strategy._lock:
            jobs[0].execute_using_pool(world.pool)
        assert len(world.pool.batches) == 1


def new_prefetch(stage: Stage, tell: Any = None) -> Prefetch:
    """A prefetch count of 4 as a worker has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("celery_batches.worker.prefetch.RLock", partial(SteppedRLock, stage))
        prefetch = Prefetch(QoS(tell or (lambda prefetch_count: None), 4), lambda: 4)
    prefetch._mutex = DummyLock()  # As Celery does, on every pool.
    return prefetch


def test_a_batch_that_ends_twice_at_once() -> None:
    """Its room is given back once, between whichever two instructions its callbacks meet."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, fine=[Prefetch.refund, Prefetch.finish])
        prefetch = new_prefetch(stage)
        ended, running = prefetch.charge(10), prefetch.charge(10)

        def succeeds() -> None:
            ended.finish()

        def times_out() -> None:
            ended.finish()

        for fun in (succeeds, times_out):
            stage.actor(fun)
        stage.run()
        assert prefetch.total == 4 + 9
        assert prefetch.busy(10, 0) == 1
        running.finish()
        assert prefetch.total == 4
        return stage

    assert explore(play, departures=2) > 500


def test_batches_end_while_they_are_counted() -> None:
    """``worker_disable_prefetch`` counts batches that end on other threads."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, trace=[celery_batches.worker.prefetch])
        stage.everywhere = True
        prefetch = new_prefetch(stage)
        batches = [prefetch.charge(10) for _ in range(3)]
        counted: list[int] = []

        def counts() -> None:
            counted.append(prefetch.busy(30, 0))

        def ends() -> None:
            batches[1].finish()

        stage.actor(counts)
        stage.actor(ends)
        stage.run()
        assert counted in ([3], [2 + 10])  # Its requests are not told yet.
        return stage

    assert explore(play, departures=2) > 30


def test_telling_the_broker_holds_up_nobody() -> None:
    """While the broker is told, batches come and go on other threads, and it is told of them."""
    told: list[int] = []

    def tell(prefetch_count: int) -> None:
        told.append(prefetch_count)
        if len(told) == 1:
            # With gevent, the consumer may be here and wait for the pool to have room for a batch.
            other = threading.Thread(target=batch.finish)
            other.start()
            other.join(10)
            assert not other.is_alive()

    prefetch = Prefetch(QoS(tell, 4), lambda: 4)
    batch = prefetch.charge(10)
    while prefetch.prev != prefetch.value:  # As Celery's loop has it.
        prefetch.update()
    assert told == [13, 4]


def test_the_broker_is_told_of_every_change() -> None:
    """A change that comes while the broker is told of another is not forgotten."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, trace=[celery_batches.worker.prefetch])
        stage.everywhere = True
        told: list[int] = []

        def tell(prefetch_count: int) -> None:
            told.append(prefetch_count)
            stage.point()

        prefetch = new_prefetch(stage, tell)

        def consumer() -> None:
            prefetch.update()

        def other() -> None:
            prefetch.make_room(10)

        stage.actor(consumer)
        stage.actor(other)
        stage.run()
        while prefetch.prev != prefetch.value:  # As Celery's loop has it.
            prefetch.update()
        assert told[-1] == prefetch.total == 14
        return stage

    assert explore(play, departures=2) > 100


def new_request() -> SimpleRequest:
    return SimpleRequest("id", "unit.click", (), {}, {}, "host")


def test_the_first_outcome_wins_on_any_thread() -> None:
    """Of two threads that mark a request while the body ends, one is right; too late is told."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, fine=[SimpleRequest._record, OutcomeSlot.record])
        stage.fine.add(OutcomeSlot.close.__code__)
        request = new_request()
        slot = request.outcome_slot = OutcomeSlot(SimpleNamespace())
        said: list[str] = []
        ended: list[Outcome] = []

        def mark(how: str, value: Any) -> None:
            try:
                getattr(request, how)(value)
                said.append(how)
            except RuntimeError:
                said.append("too late")

        def marks_as_done() -> None:
            mark("mark_as_done", 1)

        def marks_as_failure() -> None:
            mark("mark_as_failure", KeyError("no"))

        def body_ends() -> None:
            slot.close()
            ended.append(slot.outcome or UNMARKED)

        for fun in (marks_as_done, marks_as_failure, body_ends):
            stage.actor(fun)
        stage.run()
        assert (slot.outcome or UNMARKED) is ended[0], "it has changed since"
        if ended[0] is UNMARKED:
            assert said == ["too late", "too late"]
        else:
            assert {"done": "mark_as_done", "failed": "mark_as_failure"}[ended[0].kind] in said
        return stage

    assert explore(play, departures=2) > 500


def test_the_backend_is_told_once_of_a_request(task: Any) -> None:
    """Two greenlets mark the same request, and writing lets others go on: one write is made."""

    def play(decisions: Sequence[int]) -> Stage:
        stage = Stage(decisions, trace=[celery_batches.pool.marking])
        request = new_request()
        noted: list[Outcome] = []
        batch = SimpleNamespace(
            task=task, eager=False, note_end=lambda request, outcome: noted.append(outcome)
        )
        slot = request.outcome_slot = OutcomeSlot(batch)
        written: list[Any] = []

        class Backend:
            def mark_as_done(self, task_id: str, value: Any, request: Any = None) -> None:
                stage.point()
                written.append(value)

            mark_as_failure = mark_as_done

        backend = Backend()
        celery_batches.pool.marking.intercept_marks(backend)

        def marks_as_done() -> None:
            backend.mark_as_done("id", 1, request=request)

        def marks_as_failure() -> None:
            backend.mark_as_failure("id", KeyError("no"), request=request)

        stage.actor(marks_as_done)
        stage.actor(marks_as_failure)
        stage.run()
        match slot.outcome:
            case Done(result=value) | Failed(exc=value):
                assert written == [value]
                assert noted == [slot.outcome]
            case other:
                raise AssertionError(other)
        return stage

    assert explore(play, departures=2) > 50
