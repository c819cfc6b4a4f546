"""What is buffered when a strategy, a connection or a worker ends."""

from __future__ import annotations

import pytest
from celery import bootsteps
from celery.worker import state as worker_state

from celery_batches.worker.bootstep import BatchesStep
from kit.batch_worker import BatchWorker


def test_retire_drops_and_cancels(worker: BatchWorker) -> None:
    """A lost connection's requests are dropped unanswered, and their timer is cancelled."""
    messages = [worker.send(), worker.send()]
    (entry,) = worker.timer.armed
    assert len(worker_state.reserved_requests) == 2
    assert len(worker.strategy.retire()) == 2
    assert worker.timer.armed == []
    assert worker.strategy.retire() == []
    assert not worker_state.reserved_requests
    worker.clock.now += 100
    worker.timer.fire(entry)
    assert worker.batches == []
    assert [message.channel.said for message in messages] == [[], []]
    assert worker.consumer.qos.total == 4


def test_nothing_enters_a_retired_strategy(worker: BatchWorker) -> None:
    """A request that comes ready after the connection was lost is dropped: it will come again."""
    worker.strategy.retire()
    worker.send()
    assert worker.waiting == 0
    assert worker.timer.armed == []
    assert not worker_state.reserved_requests


def test_a_reconnect_starts_anew(worker: BatchWorker) -> None:
    """On a new connection the old buffer is dropped: the broker delivers its messages again."""
    old = worker.strategy
    worker.send()
    worker.send()
    worker.consumer.connection = object()
    worker.connect()
    assert old.buffered == 0
    assert worker.waiting == 0
    assert worker.timer.armed == []
    worker.send()
    worker.advance(10)
    assert worker.batches == [("interval", ["id-2"])]


def test_a_reload_keeps_what_is_waiting(worker: BatchWorker) -> None:
    """Strategies that are renewed on the same connection lose no request."""
    worker.send()
    worker.send()
    worker.connect()
    assert len(worker.timer.armed) == 1
    assert len(worker_state.reserved_requests) == 2
    assert worker.consumer.qos.total == 4 + 3, "the room for a batch is still there"
    worker.send()
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]
    assert worker.strategy.task.flush_every == 3


@pytest.mark.parametrize("state", [bootsteps.CLOSE, bootsteps.TERMINATE])
def test_a_worker_that_stops_sends_its_buffer_back(worker: BatchWorker, state: int) -> None:
    """What is buffered goes back while batches still run, and is not fetched again."""
    said: list[str] = []
    consumer = worker.consumer
    consumer.task_consumer.cancel = lambda: said.append("cancel")
    for _ in range(2):
        worker.send()
    (buffer,) = worker.strategy._pending._buffers
    for request in buffer._items:
        request.message.reject_log_error = lambda *args, id=request.id: said.append(
            f"{id} {args[-1]}"
        )
    consumer.blueprint.state = state
    consumer.connection.transport.driver_type = "amqp"
    BatchesStep(consumer).stop(consumer)
    assert said == ["cancel", "id-1 True", "id-0 True"]


def test_a_worker_that_a_channel_error_ends_sends_nothing_back(worker: BatchWorker) -> None:
    """The broker has closed the channel and requeued all. Each message would be an error."""
    message = worker.send()
    consumer = worker.consumer
    consumer.blueprint.state = bootsteps.CLOSE
    consumer.connection.transport.driver_type = "amqp"
    consumer.task_consumer.channel.connection = None  # type: ignore[attr-defined]
    BatchesStep(consumer).stop(consumer)
    assert message.channel.said == []
    assert worker.waiting == 0
    assert not worker_state.reserved_requests


def test_a_worker_that_stops_without_a_connection_retires_its_buffer(worker: BatchWorker) -> None:
    """An error in the middle of a reconnect may end the worker: there is no broker to tell."""
    message = worker.send()
    worker.consumer.blueprint.state = bootsteps.TERMINATE
    worker.consumer.connection = None
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert message.channel.said == []
    assert worker.timer.armed == []


def test_what_comes_after_that_goes_back_too(worker: BatchWorker) -> None:
    """A message that was on its way when the worker stopped is not kept."""
    worker.strategy.retire(requeue=True)
    message = worker.send()
    assert [what for what, _ in message.channel.said] == ["requeue"]


def test_a_lost_connection_sends_nothing(worker: BatchWorker) -> None:
    """Where the connection is gone, the broker takes the messages back by itself."""
    message = worker.send()
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert message.channel.said == []
    assert worker.consumer.cancelled == 0


def test_a_lost_connection_drops_the_batches_that_wait_for_the_pool(worker: BatchWorker) -> None:
    """The broker delivers what was not started on again; what runs, runs on."""
    for _ in range(6):
        worker.send()
    running, waiting = worker.consumer.sent
    running.on_accepted(1, 0.0)
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert [len(job.requests) for job in (running, waiting)] == [3, 0]
    assert set(worker_state.requests) == {"id-0", "id-1", "id-2"}


def test_a_worker_that_stops_drops_no_batch(worker: BatchWorker) -> None:
    """Its connection goes on until the batches that it has sent to the pool have ended."""
    for _ in range(3):
        worker.send()
    worker.consumer.blueprint.state = bootsteps.CLOSE
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert worker.batches == [("size", ["id-0", "id-1", "id-2"])]


def test_nothing_is_flushed_between_the_loss_of_a_connection_and_its_end(
    worker: BatchWorker,
) -> None:
    """With greenlets, timers go on while Celery closes it: for an interval, and for an ETA."""
    worker.send()
    worker.send()
    worker.consumer.connection = None
    worker.advance(10)
    worker.send()
    assert worker.batches == []
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert not worker_state.reserved_requests


def test_a_worker_that_stops_without_a_connection_lets_go(worker: BatchWorker) -> None:
    """As it does if Celery fails to clean up after a lost connection."""
    message = worker.send()
    worker.consumer.blueprint.state = bootsteps.TERMINATE
    worker.consumer.connection = None
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert worker.waiting == 0
    assert message.channel.said == []


def test_the_step_sends_the_acknowledgements_that_still_wait(worker: BatchWorker) -> None:
    """A worker that stops acknowledges what has run, though its loop will not come round again."""
    sent: list[str] = []
    worker.consumer.pending_operations.append(lambda: sent.append("ack"))
    BatchesStep(worker.consumer).stop(worker.consumer)
    assert sent == ["ack"]
