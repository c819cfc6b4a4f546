"""The broker may deliver what fills batches, and no more; nothing is left over."""

from __future__ import annotations

from typing import Any

from celery_batches.worker.bootstep import BatchesStep
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.tasks import make_task


def test_there_is_room_while_a_batch_fills(worker: BatchWorker) -> None:
    """The broker may deliver a batch more from its first request on, until nothing comes in."""
    qos = worker.consumer.qos
    assert qos.total == 4
    worker.send()
    assert qos.total == 4 + 3
    worker.send()
    worker.advance(10)
    assert qos.total == 4 + 1, "no room for the next, and one batch of two on its way"
    worker.send()
    assert qos.total == 4 + 3 + 1
    worker.consumer.sent[0]._finish()
    assert qos.total == 4 + 3
    worker.advance(10)
    assert qos.total == 4, "a batch of one is an ordinary task"


def test_full_batches_are_expected_for_a_second(worker: BatchWorker) -> None:
    """After a full batch the broker may deliver as many as the budget says, and then no more."""
    qos, all_of_it = worker.consumer.qos, 3 * (4 + 1)
    for _ in range(4):
        worker.send()
    assert qos.total == all_of_it
    worker.consumer.sent[0]._finish()
    worker.advance(0.9)
    for _ in range(2):
        worker.send()
    assert qos.total == all_of_it, "the same, however many are on their way"
    worker.send()
    worker.advance(0.9)
    assert qos.total == all_of_it
    worker.advance(0.1)
    assert qos.total == 4 + 3 + 2, "room for one that fills, and one is on its way"
    worker.consumer.sent[1]._finish()
    assert qos.total == 4 + 3
    worker.advance(9)
    assert qos.total == 4
    assert worker.timer.armed == []


def test_after_a_full_batch_the_room_goes_when_nothing_comes_in(worker: BatchWorker) -> None:
    """An empty buffer needs none: when an interval has gone by after that second."""
    for _ in range(2):
        worker.send()
    worker.advance(9.5)
    worker.send()
    worker.consumer.sent[0]._finish()
    worker.advance(0.9)
    assert worker.consumer.qos.total == 3 * (4 + 1), "also though the timer woke up amid that"
    worker.advance(0.1)
    assert worker.consumer.qos.total == 4 + 3
    worker.advance(9.9)
    assert worker.consumer.qos.total == 4 + 3
    worker.advance(0.1)
    assert worker.consumer.qos.total == 4
    assert worker.timer.armed == []


def test_a_short_interval_counts_beside_that_second(app: Any, clock: Clock) -> None:
    """What comes in after a full batch does not wait for longer than its interval."""
    worker = BatchWorker(make_task(app, flush_every=3, flush_interval=0.2), clock)
    for _ in range(3):
        worker.send()
    worker.advance(0.3)
    worker.send()
    worker.advance(0.2)
    assert [trigger for trigger, _ in worker.batches] == ["size", "interval"]
    for job in worker.consumer.sent:
        job._finish()
    worker.advance(0.5)
    assert worker.consumer.qos.total == 4 + 3
    worker.advance(0.2)
    assert worker.consumer.qos.total == 4
    assert worker.timer.armed == []


def test_a_batch_of_one_needs_no_timer(app: Any, clock: Clock) -> None:
    """It is always full, and there is no room that it could give back."""
    worker = BatchWorker(make_task(app, flush_every=1, flush_interval=10), clock)
    worker.send()
    assert len(worker.batches) == 1
    assert worker.timer.armed == []
    assert worker.consumer.qos.total == 4


def test_a_task_without_requests_takes_no_room(app: Any, clock: Clock, worker: BatchWorker) -> None:
    """What other tasks may hold is not more for a batch task that nothing comes in for."""
    BatchesStep(worker.consumer).start(worker.consumer)
    assert worker.consumer.prefetch_counts == [4]


def test_the_step_ends_what_fills(worker: BatchWorker) -> None:
    """When the consumer stops there is no room left over, and nothing waits."""
    step = BatchesStep(worker.consumer)
    worker.consumer.strategies["ordinary"] = lambda *args: None
    step.start(worker.consumer)
    worker.send()
    assert worker.consumer.qos.total == 4 + 3
    step.stop(worker.consumer)
    assert worker.consumer.qos.total == 4
    assert worker.waiting == 0


def test_the_step_shows_the_whole_prefetch_count(worker: BatchWorker) -> None:
    """`inspect stats` has the count that the broker is told, where Celery has its own."""
    step = BatchesStep(worker.consumer)
    step.start(worker.consumer)
    worker.send()
    assert step.info(worker.consumer) == {"prefetch_count": 4 + 3}


def test_a_batch_that_cannot_be_sent_is_not_charged(worker: BatchWorker) -> None:
    """What the pool does not take does not count as on its way."""

    def refuse(job: Any) -> None:
        raise OSError("the pool is gone")

    worker.consumer.on_task_request = refuse
    for _ in range(3):
        worker.send()
    worker.advance(1)
    assert worker.consumer.qos.total == 4 + 3
    assert worker.consumer.qos.busy(0, 0) == 0


def test_static_prefetch_has_room_for_batches_that_run(worker: BatchWorker) -> None:
    """Where the prefetch count cannot be changed, there is room for a batch of each process."""
    worker.consumer.connection.transport.driver_type = "amqp"
    worker.consumer.qos_global = False
    BatchesStep(worker.consumer).start(worker.consumer)
    assert worker.consumer.prefetch_counts == [4 + 3 * (2 + 1)]
    worker.send()
    worker.advance(10)
    worker.connect()
    assert worker.consumer.qos.total == 4 + 3 * (2 + 1), "also after a reload"
    for _ in range(3):
        worker.send()
    worker.consumer.sent[-1]._finish()
    assert worker.consumer.qos.total == 4 + 3 * (2 + 1), "nothing more is expected"


def test_what_a_worker_holds_is_bounded(worker: BatchWorker) -> None:
    """Batches on their way are charged as one each, and nothing is left over when they are done."""
    for _ in range(61):
        worker.send()
    assert worker.consumer.qos.total == 3 * (4 + 1)
    worker.advance(1)
    assert worker.consumer.qos.total == 3 * (4 + 1), "all that are expected are on their way"
    for job in worker.consumer.sent[2:]:
        job._finish()
    assert worker.consumer.qos.total == 4 + 3 + 2 * 2
    for job in worker.consumer.sent:
        job._finish()
    assert worker.consumer.qos.total == 4 + 3
