"""The messages of a batch are acknowledged at once, and as Celery would have it done one by one."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.worker import state as worker_state
from nonsense import call
from vine import promise

from celery_batches.worker import acks
from celery_batches.worker.acks import DeferredAck, LeanPromise, collect_acks
from kit.brokers import Batch, Broker, tags
from kit.clock import Clock
from kit.consumer import FakeConsumer
from kit.deliveries import Delivery
from kit.log import Problems
from kit.requests import worker_request
from kit.tasks import make_task
from kit.worker import InProcessWorker


@pytest.fixture
def memory(app: Any) -> Iterator[Broker]:
    broker = Broker(app, "memory://")
    yield broker
    broker.close()


def test_other_transports_are_told_of_each_message(memory: Broker) -> None:
    """In order of arrival, in one turn of the event loop."""
    batch = Batch(memory)
    said: list[Any] = []
    for message in batch.messages:
        message.channel = SimpleNamespace(
            no_ack_consumers=set(), basic_ack=lambda tag, multiple: said.append((tag, multiple))
        )
    batch.end()
    assert memory.soon == 1
    assert said == []
    memory.run_the_loop()
    assert said == [(tag, False) for tag in tags(batch)]
    assert all(batch.acknowledged)


def test_kombus_own_books_are_kept(memory: Broker) -> None:
    batch = Batch(memory)
    batch.end()
    memory.run_the_loop()
    assert all(batch.acknowledged)
    assert memory.held == 0


@pytest.mark.parametrize(
    ("error", "acknowledged"),
    [
        # Logged by kombu, or at least none of its neighbours' concern.
        (redis.ConnectionError("lost"), [True, False, True]),
        (KeyError("a bug"), [True, False, True]),
        # Where kombu raises this, the connection is gone.
        (BrokenPipeError("gone"), [True, False, False]),
    ],
)
def test_an_error_is_told_as_celery_tells_it(
    memory: Broker, caplog: pytest.LogCaptureFixture, error: Exception, acknowledged: list[bool]
) -> None:
    batch = Batch(memory, 3)

    def fail(tag: Any, multiple: bool) -> None:
        raise error

    batch.messages[1].channel = SimpleNamespace(no_ack_consumers=set(), basic_ack=fail)
    batch.end()
    if isinstance(error, redis.ConnectionError):
        memory.run_the_loop()
    else:
        with pytest.raises(type(error)):
            memory.run_the_loop()
    assert batch.acknowledged == acknowledged
    lines = [record.getMessage() for record in caplog.records]
    tag = batch.messages[1].delivery_tag
    expected = f"Couldn't ack {tag!r}, reason:{error!r}"
    assert lines == ([] if isinstance(error, KeyError) else [expected])


def test_a_request_by_itself_is_acknowledged_as_ever(memory: Broker) -> None:
    """One that is revoked while it waits in the buffer, for example."""
    batch = Batch(memory)
    batch.requests[0].acknowledge()
    assert memory.soon == 1
    memory.run_the_loop()
    assert batch.acknowledged == [True, False, False, False, False]


def test_only_what_celery_gives_to_a_strategy_is_collected(memory: Broker) -> None:
    """Whoever calls the strategy with another function is called back, there and then."""
    batch = Batch(memory)
    called: list[Any] = []
    request = worker_request(
        memory.app,
        batch.task,
        batch.messages[0],
        on_ack=DeferredAck(lambda *args: called.append(args)),
    )
    with collect_acks():
        request.acknowledge()
        assert len(called) == 1
    assert memory.soon == 0


def test_what_another_thread_acknowledges_is_not_kept_waiting(memory: Broker) -> None:
    """With a pool of threads, several batches end at the same time."""
    batch = Batch(memory)
    with collect_acks():
        thread = Thread(target=batch.requests[0].acknowledge)
        thread.start()
        thread.join()
        assert memory.soon == 1
        batch.requests[1].acknowledge()
        assert memory.soon == 1
    assert memory.soon == 2
    memory.run_the_loop()
    assert batch.acknowledged == [True, True, False, False, False]


def test_what_was_collected_is_done_whatever_happens_then(memory: Broker) -> None:
    batch = Batch(memory)

    @collect_acks()
    def end() -> None:
        batch.requests[0].acknowledge()
        raise SystemExit

    with pytest.raises(SystemExit):
        end()
    memory.run_the_loop()
    assert batch.acknowledged == [True, False, False, False, False]


def test_the_strategy_has_its_requests_acknowledged_together(memory: Broker) -> None:
    task = make_task(memory.app, flush_every=3, acks_late=True)
    consumer = FakeConsumer(memory.app)
    strategy = task.Strategy(task, memory.app, consumer)
    memory.send(task.name, 3)
    messages = [memory.receive() for _ in range(3)]
    for message in messages:
        ack = promise(memory.call_soon, (message.ack_log_error,))
        strategy(message, None, ack, message.reject_log_error, [])
    (job,) = consumer.sent
    job.on_success((False, [(False, "None")] * 3, 0.5))
    assert memory.soon == 1
    memory.run_the_loop()
    assert all(message.acknowledged for message in messages)


@pytest.mark.parametrize("kind", [DeferredAck, LeanPromise])
@pytest.mark.parametrize("when", ["before", "after"])
def test_who_waits_for_what_was_promised_is_told(kind: Any, when: str) -> None:
    """Whether they ask before the strategy gets the promise, as Celery does, or the request."""
    done: list[Any] = []
    told: list[Any] = []

    def soon(call: Any, *args: Any) -> str:
        done.append((call, args))
        return "done"

    given = promise(soon, (len,))
    if when == "before":
        given.then(told.append)
    promised = kind(given)
    if when == "after":
        promised.then(told.append)
    with collect_acks():
        assert promised("logger", "errors") == "done"
    assert done == [(len, ("logger", "errors"))]
    assert told == ["done"]


@pytest.mark.parametrize("kind", [DeferredAck, LeanPromise])
def test_what_cannot_be_done_is_told(kind: Any) -> None:
    """Celery gives the promise something to call then."""
    failed: list[Any] = []

    def soon(*args: Any) -> None:
        raise OSError

    kind(promise(soon, (len,), on_error=lambda *args: failed.append(args)))("logger", "errors")
    ((call, exc),) = failed
    assert call is len
    assert isinstance(exc, OSError)


def test_the_strategy_has_its_requests_rejected_as_promised(memory: Broker) -> None:
    task = make_task(memory.app, flush_every=1, acks_late=True)
    consumer = FakeConsumer(memory.app)
    strategy = task.Strategy(task, memory.app, consumer)
    memory.send(task.name, 1)
    message = memory.receive()
    ack, reject = message.ack_log_error, message.reject_log_error
    strategy(message, None, *(promise(memory.call_soon, (call,)) for call in (ack, reject)), [])
    (job,) = consumer.sent
    job.requests[0].reject(requeue=True)
    assert memory.soon == 1
    memory.run_the_loop()
    assert message.acknowledged
    assert memory.receive().headers["id"] == message.headers["id"]


def test_what_celerys_own_handler_promises_is_collected(app: Any) -> None:
    """It is not kept for something out of the ordinary: batches would be acknowledged slowly."""
    task = make_task(app, flush_every=3, acks_late=True)
    with Problems() as problems:
        worker = InProcessWorker(app, Clock(), problems)
        for number in range(2):
            worker.deliver(Delivery(call(task.name, f"id-{number}")))
        requests = list(worker_state.reserved_requests)
        assert len(requests) == 2
        with collect_acks():
            for request in requests:
                request.acknowledge()
            assert worker.channel.of(0) == []
            assert len(acks._collection.acks or ()) == 2
        worker_state.reset_state()
