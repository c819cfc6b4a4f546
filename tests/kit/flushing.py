"""Batch tasks whose `flush` is overridden, in a worker that runs what it is sent when told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state

from celery_batches import Batches
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.pool import Pool
from kit.tasks import make_task

__all__ = ("Flushing", "Override")

#: What an override of `flush` does: it gets the task's own `flush`, and the requests.
Override = Callable[[Any, Any], Any]


def mark_all(requests: Any, *more: Any) -> None:
    for request in requests:
        request.mark_as_done()


class Flushing(BatchWorker):
    """A worker with a batch task that flushes as it is told to, and a pool that runs batches."""

    def __init__(self, app: Any, clock: Clock, override: Override, **options: Any) -> None:
        self.override = override
        self.received: list[Any] = []
        self.bodies: list[list[str]] = []
        self.body: Callable[..., Any] = mark_all

        class Own(Batches):
            abstract = True

            def flush(own, requests: Any) -> Any:
                return self.override(super().flush, requests)

        options = {"flush_every": 3, "flush_interval": 10, **options}
        task = make_task(app, self.run_body, base=Own, **options)
        super().__init__(task, clock)

    def run_body(self, requests: Any, *more: Any) -> Any:
        self.bodies.append([request.id for request in requests])
        return self.body(requests, *more)

    def receive(self, **options: Any) -> None:
        self.received.append(self.send(**options))

    def receive_batch(self, size: int = 3) -> None:
        for _ in range(size):
            self.receive()

    def run_all(self) -> None:
        """The pool runs all batches that it was sent."""
        jobs, self.consumer.sent[:] = list(self.consumer.sent), []
        for job in jobs:
            self.run(job)

    def run(self, job: Any) -> None:
        pool = Pool()
        try:
            job.execute_using_pool(pool)
        except TaskRevokedError:
            return
        pool.run()

    @property
    def said(self) -> list[list[str]]:
        """What the broker was told of each message."""
        return [[what for what, _ in message.channel.said] for message in self.received]

    def state(self, number: int) -> str:
        return str(self.app.AsyncResult(f"id-{number}").state)

    def assert_nothing_left(self) -> None:
        """Nothing is left of any request, in the worker or in the prefetch budget."""
        self.advance(100)
        assert not self.waiting
        assert not worker_state.requests
        assert not worker_state.reserved_requests
        assert not worker_state.active_requests
        assert self.consumer.qos.busy(0, 0) == 0
        assert self.consumer.qos.total == self.consumer.initial_prefetch_count
