"""What the worker says of a batch that it sends: its trigger, and how long it has waited."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.flushing import Flushing
from kit.tasks import make_task


def test_the_oldest_of_a_batch_by_size(app: Any, clock: Clock) -> None:
    """It has waited since it arrived."""
    worker = BatchWorker(make_task(app, flush_every=3, flush_interval=60), clock)
    for seconds in (4, 2.5, 0):
        worker.send()
        worker.advance(seconds)
    (job,) = worker.consumer.sent
    assert (job.trigger, job.flush.waited) == ("size", 6.5)
    assert (job.flush.key, job.flush.weight) == (None, None)


def test_the_oldest_of_a_batch_by_interval(app: Any, clock: Clock) -> None:
    """It has waited for the interval."""
    worker = BatchWorker(make_task(app, flush_every=3, flush_interval=60), clock)
    worker.send()
    worker.advance(20)
    worker.send()
    worker.advance(40)
    (job,) = worker.consumer.sent
    assert (job.trigger, job.flush.waited) == ("interval", 60)


@pytest.mark.parametrize(
    ("override", "waited"),
    [
        (lambda flush, requests: flush(requests), [30]),
        (lambda flush, requests: [flush(requests[1:]), flush(requests[:1])], [20, 30]),
        (lambda flush, requests: flush(list(requests)[::-1]), [30]),
    ],
    ids=["whole", "split", "reversed"],
)
def test_batches_that_an_override_makes(
    app: Any, clock: Clock, override: Any, waited: list[float]
) -> None:
    """Each counts from the oldest of its own requests."""
    world = Flushing(app, clock, override)
    for _ in range(3):
        world.receive()
        clock.now += 10
    clock.now -= 10
    assert [job.flush.waited for job in world.consumer.sent] == [seconds - 10 for seconds in waited]


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("no pickle for me")

    def __repr__(self) -> str:
        return "<a key>"


class Keyed(list[Any]):
    """Requests with a key and a weight."""

    key: Any = None
    weight = 3.0


@pytest.mark.parametrize(
    ("key", "sent"),
    [("user", "user"), (("user", 7), ("user", 7)), (None, None), (Unpicklable(), "<a key>")],
    ids=["text", "tuple", "none", "no pickle"],
)
def test_a_key_crosses_to_the_pool(app: Any, clock: Clock, key: Any, sent: Any) -> None:
    """One that cannot crosses as text, since the batch could not be sent."""

    def override(flush: Any, requests: Any) -> None:
        keyed = Keyed(requests)
        keyed.key = key
        flush(keyed)

    world = Flushing(app, clock, override)
    world.receive_batch()
    (job,) = world.consumer.sent
    assert (job.flush.key, job.flush.weight) == (sent, 3.0)
    pickle.dumps(job.flush)


def test_the_pool_gets_it(app: Any, clock: Clock) -> None:
    """The body finds it in `self.batch`."""
    seen: list[Any] = []
    world = Flushing(app, clock, lambda flush, requests: flush(requests))

    def body(requests: Any) -> None:
        seen.append(world.task.batch)

    world.body = body
    world.receive()
    world.advance(10)
    world.run_all()
    (info,) = seen
    assert (info.trigger, info.size) == ("interval", 1)
    assert info.waited >= 10
