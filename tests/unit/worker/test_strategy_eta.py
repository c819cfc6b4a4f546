"""What waits for its ETA, has expired or is revoked never counts as buffered."""

from __future__ import annotations

import pytest
from celery.worker import state as worker_state
from celery.worker.request import Request

from kit.batch_worker import BatchWorker


def test_an_eta_is_the_timers(worker: BatchWorker) -> None:
    """A call with a countdown waits in the worker's timer, in sight of `inspect scheduled`."""
    worker.send(countdown=36_000)
    (entry,) = worker.timer.armed
    assert isinstance(entry.args[0], Request)
    assert entry.args[0].id == "id-0"
    assert entry.eta == pytest.approx(worker.clock.now + 36_000, abs=600)
    assert worker.waiting == 0


def test_an_eta_counts_in_prefetch_until_it_is_due(worker: BatchWorker) -> None:
    """What waits for its ETA is charged as Celery does: one more until it is ready."""
    worker.send(countdown=60)
    assert worker.consumer.qos.total == 4 + 1
    (entry,) = worker.timer.armed
    worker.timer.fire(entry)
    assert worker.consumer.qos.total == 4 + 3
    assert worker.waiting == 1


def test_the_interval_of_an_eta_starts_when_it_is_ready(worker: BatchWorker) -> None:
    """A call with an ETA joins the buffer at its ETA and waits the interval from there."""
    worker.send(countdown=60)
    (entry,) = worker.timer.armed
    worker.clock.now += 60
    worker.timer.fire(entry)
    assert [e.eta for e in worker.timer.armed] == [worker.clock.now + 10]
    worker.send()
    worker.send()
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]


@pytest.mark.parametrize("reloads", [1, 2])
def test_an_eta_that_outlives_a_reload_is_run(worker: BatchWorker, reloads: int) -> None:
    """A call that waited for its ETA while tasks were reloaded joins the buffer that is new."""
    worker.send(countdown=60)
    (entry,) = worker.timer.armed
    for _ in range(reloads):
        worker.connect()
    worker.timer.fire(entry)
    assert worker.waiting == 1
    assert len(worker_state.reserved_requests) == 1
    worker.advance(10)
    assert worker.batches == [("interval", ["id-0"])]


def test_an_eta_that_outlives_a_reload_and_its_connection_is_dropped(worker: BatchWorker) -> None:
    """The same call does not run from here when the connection is lost after the reload."""
    worker.send(countdown=60)
    (entry,) = worker.timer.armed
    worker.connect()
    worker.strategy.retire()
    worker.timer.fire(entry)
    assert worker.waiting == 0
    assert not worker_state.reserved_requests


def test_an_eta_that_outlives_its_connection_is_dropped(worker: BatchWorker) -> None:
    """A call whose ETA comes after its connection was lost does not run from here."""
    worker.send(countdown=60)
    (entry,) = worker.timer.armed
    worker.strategy.retire()
    worker.timer.fire(entry)
    assert worker.waiting == 0
    assert not worker_state.reserved_requests


def test_revoked_on_receipt(worker: BatchWorker) -> None:
    """A call that was revoked before it came never enters the buffer."""
    worker_state.revoked.add("id-0")
    message = worker.send()
    assert worker.waiting == 0
    assert message.channel.said == [("ack", "tag")]


def test_expired_on_receipt(worker: BatchWorker) -> None:
    """A call that came too late never enters the buffer."""
    message = worker.send(expires="2001-01-01T00:00:00+00:00")
    assert worker.waiting == 0
    assert message.channel.said == [("ack", "tag")]
