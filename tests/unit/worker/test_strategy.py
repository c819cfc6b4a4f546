"""From a message to the pool: when a batch is sent, and with what in it."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import InvalidTaskError
from celery.worker import state as worker_state
from celery.worker.request import Request

from celery_batches import Batches
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.messages import PROTOCOLS, make_message, protocol_2


@pytest.mark.parametrize("make", PROTOCOLS)
def test_a_full_batch_is_sent_at_once(worker: BatchWorker, make: Any, received: list[str]) -> None:
    """The message that fills a batch sends it, in order, whatever the protocol."""
    worker.send(make)
    worker.send(make)
    assert worker.batches == []
    worker.send(make)
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]
    assert received == ["id-0", "id-1", "id-2"]
    assert all(isinstance(r, Request) for r in worker.consumer.sent[0].requests)


def test_protocols_mix_in_one_batch(worker: BatchWorker) -> None:
    """Calls from clients of different ages share a batch."""
    for make in PROTOCOLS:
        worker.send(make)
    ((trigger, ids),) = worker.batches
    assert (trigger, len(ids)) == ("size", 3)


def test_a_part_filled_batch_is_sent_when_the_oldest_has_waited(worker: BatchWorker) -> None:
    """After the interval what is there is sent, not before."""
    worker.send()
    worker.advance(6)
    worker.send()
    worker.advance(3.999)
    assert worker.batches == []
    worker.advance(0.001)
    assert worker.batches == [("interval", ["id-0", "id-1"])]
    assert worker.timer.armed == []


def test_a_flush_by_size_restarts_the_clock(worker: BatchWorker) -> None:
    """What comes after a full batch waits for its own interval, not the rest of the old one."""
    worker.send()
    worker.advance(9)
    worker.send()
    worker.send()
    worker.send()
    worker.advance(9.999)
    assert len(worker.batches) == 1
    worker.advance(0.001)
    assert worker.batches[1:] == [("interval", ["id-3"])]


def test_never_more_than_one_timer(worker: BatchWorker) -> None:
    """However many requests and batches, there is one timer for the buffer at most."""
    for _ in range(20):
        worker.send()
        assert len(worker.timer.armed) <= 1
        worker.advance(2.5)
        assert len(worker.timer.armed) <= 1
    worker.advance(30)
    assert worker.waiting == 0
    assert worker.timer.armed == []
    assert sum(len(ids) for _, ids in worker.batches) == 20


def test_a_stale_timer_does_nothing(worker: BatchWorker) -> None:
    """A timer that fires although it is over neither flushes nor arms anything."""
    worker.send()
    (stale,) = worker.timer.armed
    worker.advance(10)
    worker.send()
    armed = list(worker.timer.armed)
    worker.timer.fire(stale)
    assert len(worker.batches) == 1
    assert worker.waiting == 1
    assert worker.timer.armed == armed


def test_two_tasks_do_not_share_a_buffer(app: Any, clock: Clock, worker: BatchWorker) -> None:
    """Each batch task has a buffer of its own."""

    @app.task(base=Batches, name="unit.other", flush_every=2)
    def other(requests: Any) -> None: ...

    handler = other.Strategy(other, app, worker.consumer)
    worker.consumer.strategies[other.name] = handler
    worker.send()
    message = protocol_2(app, "other", other.name)
    handler(message, None, message.ack_log_error, message.reject_log_error, [])
    worker.send()
    assert worker.batches == []
    assert (worker.waiting, handler.__self__.buffered) == (2, 1)


HEADERS = {"task": "unit.click", "id": "1"}


@pytest.mark.parametrize(
    "payload",
    [None, [], 5, "text", [[], {}], ["args", {}, {}], [[], [], {}], [[], {}, 5], {"args": 5}],
    ids=repr,
)
def test_nonsense_in_the_body_is_refused(worker: BatchWorker, payload: Any) -> None:
    """A body that is no call raises what Celery rejects it for, and hurts no neighbour."""
    worker.send()
    with pytest.raises(InvalidTaskError):
        worker.handle(make_message(payload, HEADERS))
    worker.send()
    worker.send()
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]


@pytest.mark.parametrize(
    "headers",
    [
        *({"eta": "tomorrow"}, {"eta": 5}, {"eta": []}, {"expires": "never"}, {"expires": {}}),
        *({"eta": {"a": 1}}, {"id": None, "eta": "x"}, {"id": []}),
    ],
    ids=repr,
)
def test_nonsense_in_the_headers_is_refused(worker: BatchWorker, headers: Any) -> None:
    """Headers that cannot be read raise what Celery rejects it for, and hurt no neighbour."""
    worker.send()
    with pytest.raises(InvalidTaskError):
        worker.handle(make_message([[], {}, {}], {**HEADERS, **headers}))
    assert worker.waiting == 1


def test_a_rejected_request_never_enters_the_buffer(worker: BatchWorker) -> None:
    """A time that Celery itself rejects the call for does not make it run as well."""
    message = make_message([[], {}, {}], {**HEADERS, "eta": "0001-01-01T00:00:00+00:00"})
    worker.handle(message)
    if message.channel.said:
        assert message.channel.said == [("reject", "tag")]
        assert worker.waiting == 0
    request = Request(
        protocol_2(worker.app, "x", worker.task.name), app=worker.app, task=worker.task
    )
    request.acknowledged = True
    before = worker.waiting
    worker_state.task_reserved(request)
    worker.strategy.add(request)
    assert worker.waiting == before
    assert request.id not in worker_state.requests
    assert request not in worker_state.reserved_requests
