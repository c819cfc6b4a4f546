"""Overrides of `flush` and connections that are lost, tasks that are reloaded, other tasks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state as worker_state

from kit.clock import Clock
from kit.flushing import Flushing


@pytest.fixture
def make(app: Any, clock: Clock) -> Any:
    return lambda override, **options: Flushing(app, clock, override, **options)


def lose_connection(world: Any) -> None:
    """As Celery does: the consumer forgets what it has, and connects again."""
    for known in (worker_state.reserved_requests, worker_state.requests):
        known.clear()
    old = world.strategy
    old.retire()
    old.sender.release_waiting()
    world.consumer.connection = SimpleNamespace(**vars(world.consumer.connection))
    world.connect()


@pytest.mark.parametrize("raises", [False, True])
def test_what_is_left_when_the_connection_is_lost_in_flush(
    raises: bool, make: Any, caplog: Any
) -> None:
    """The broker delivers it again: it is not acknowledged, and does not fail."""

    def override(flush: Any, requests: Any) -> None:
        lose_connection(world)
        flush(requests[:1])
        if raises:
            raise OSError("connection lost")

    world = make(override)
    world.receive_batch()
    world.run_all()
    assert world.said == [[], [], []]
    assert world.bodies == []
    assert world.state(1) == "PENDING"
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    world.assert_nothing_left()


def test_what_is_left_when_the_worker_stops_in_flush(make: Any) -> None:
    """It is requeued, as what is buffered is."""

    def override(flush: Any, requests: Any) -> None:
        world.strategy.retire(requeue=True)
        flush(requests[:1])

    world = make(override)
    world.receive_batch()
    world.run_all()
    assert world.said == [["requeue"]] * 3
    assert world.bodies == []
    world.assert_nothing_left()


def test_what_is_left_when_the_tasks_are_reloaded_in_flush(make: Any) -> None:
    """The messages are still ours: what was passed on runs, and the rest is ignored."""

    def override(flush: Any, requests: Any) -> None:
        world.connect()
        flush(requests[:1])

    world = make(override)
    world.receive_batch()
    world.run_all()
    assert world.said == [["ack"]] * 3
    assert world.bodies == [["id-0"]]
    world.assert_nothing_left()


def test_what_was_left_out_runs_from_a_connection_that_is_lost(make: Any) -> None:
    """Its message was acknowledged: the broker does not deliver it again."""
    kept: list[Any] = []

    def keep(flush: Any, requests: Any) -> None:
        kept.extend(requests)

    world = make(keep)
    world.receive_batch()
    lose_connection(world)
    world.override = lambda flush, requests: flush([*kept, *requests])
    world.receive_batch()
    world.run_all()
    assert world.bodies == [["id-0", "id-1", "id-2", "id-3", "id-4", "id-5"]]
    assert world.said == [["ack"]] * 6
    world.assert_nothing_left()


@pytest.mark.parametrize("when", ["before it is sent", "while it waits"])
def test_a_batch_of_both_kinds_when_its_connection_is_lost(make: Any, when: str) -> None:
    """Only those of its requests run that the broker does not deliver again, and they run once."""
    kept: list[Any] = []

    def keep_the_first(flush: Any, requests: Any) -> None:
        late, kept[:] = list(kept), [requests[0]]
        if late and when == "before it is sent":
            lose_connection(world)
        flush([*late, *requests[1:]])

    world = make(keep_the_first)
    world.receive_batch()
    world.run_all()
    world.receive_batch()
    if when == "while it waits":
        lose_connection(world)
    world.run_all()
    assert world.bodies == [["id-1", "id-2"], ["id-0"]]
    # The fourth was kept, and is left out.
    fourth = [] if when == "before it is sent" else ["ack"]
    assert world.said == [*[["ack"]] * 3, fourth, [], []]
    world.assert_nothing_left()


def test_requests_of_a_lost_connection_that_the_next_one_passes_on(make: Any) -> None:
    """While their own `flush` goes on: the broker delivers them again, so they do not run."""
    kept: list[Any] = []

    def override(flush: Any, requests: Any) -> None:
        if kept:
            flush([*kept, *requests])
            return
        kept.extend(requests)
        lose_connection(world)
        world.receive_batch()

    world = make(override)
    world.receive_batch()
    world.run_all()
    assert world.bodies == [["id-3", "id-4", "id-5"]]
    assert sorted(world.said) == [[], [], [], ["ack"], ["ack"], ["ack"]]
    world.assert_nothing_left()


def test_requests_of_another_task_are_refused(make: Any, app: Any) -> None:
    """The error names both tasks; neither batch is lost."""
    theirs: list[Any] = []
    other = make(lambda flush, requests: theirs.extend(requests))
    other.receive_batch()

    world = make(lambda flush, requests: flush([*requests, *theirs]), name="unit.mine")
    world.receive_batch()
    assert [world.state(number) for number in range(3)] == ["FAILURE"] * 3
    reason = str(app.AsyncResult("id-0").result)
    assert "unit.mine" in reason
    assert "unit.click" in reason
    other.task.apply_buffer(theirs)
    other.run_all()
    assert other.bodies == [["id-0", "id-1", "id-2"]]
    assert other.said == world.said == [["ack"]] * 3
    world.assert_nothing_left()
