"""A request that was buffered before waits for the rest of its interval, not for another one.

A broker may take back what is buffered too long (``consumer_timeout`` of RabbitMQ), and deliver it
again. Otherwise it would never be flushed by interval.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from kit.clock import Clock
from kit.redelivering import Redelivering


@pytest.fixture(params=[True, False], ids=["late", "early"])
def worker(request: pytest.FixtureRequest, app: Any, clock: Clock) -> Redelivering:
    return Redelivering(app, clock, acks_late=request.param, reject_on_worker_lost=None)


def test_the_wait_goes_on_after_a_lost_connection(worker: Redelivering) -> None:
    """Thirty seconds in all, of which ten were before."""
    worker.send()
    worker.advance(10)
    worker.reconnect()
    worker.send_again(0)
    worker.advance(19)
    assert worker.batches == []
    worker.advance(1)
    assert worker.batches == [("interval", ["id-0"])]
    assert worker.consumer.sent[0].flush.waited == 30


def test_what_has_waited_long_enough_is_flushed_at_once(worker: Redelivering) -> None:
    """The broker takes it back before the interval is over, each time."""
    worker.send()
    for _ in range(2):
        worker.advance(12)
        worker.reconnect()
        worker.advance(3)
        worker.send_again(0, deliveries=1)
    worker.advance(0)
    assert worker.batches == [("interval", ["id-0"])]


def test_it_takes_those_along_that_came_later(worker: Redelivering) -> None:
    """The order in the batch is that of the first arrivals."""
    worker.send()
    worker.advance(10)
    worker.send()
    worker.reconnect()
    worker.advance(1)
    worker.send()
    worker.send_again(1, 0)
    worker.advance(19)
    assert worker.batches == [("interval", ["id-0", "id-1", "id-2"])]


def test_a_request_with_an_eta_waits_from_its_eta(worker: Redelivering) -> None:
    """It was buffered then: its ETA is over when it comes again."""
    eta = (datetime.now(timezone.utc) - timedelta(days=365)).isoformat()
    worker.send(more_headers={"eta": eta})
    worker.advance(10)
    worker.reconnect()
    worker.send_again(0, eta=eta)
    worker.advance(20)
    assert worker.batches == [("interval", ["id-0"])]


def test_what_was_flushed_before_starts_anew(worker: Redelivering) -> None:
    """It has waited for a batch, which the pool had not started when the connection was lost."""
    for _ in range(10):
        worker.send()
    worker.reconnect()
    worker.send_again(0)
    worker.advance(29)
    assert worker.sizes == [0]
    worker.advance(1)
    assert worker.sizes == [0, 1]
