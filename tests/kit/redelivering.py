"""A worker with one batch task that acknowledges late, and a broker that delivers again."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.exceptions import WorkerLostError
from kombu import Message

from celery_batches.worker.bootstep import BatchesStep
from celery_batches.worker.redeliveries import DELIVERY_COUNT
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.messages import protocol_2
from kit.pool import einfo_of
from kit.tasks import make_task

LATE = {"acks_late": True, "reject_on_worker_lost": True}


class Redelivering(BatchWorker):
    """A worker whose broker delivers some messages again."""

    def __init__(self, app: Celery, clock: Clock, **options: Any) -> None:
        options = {"flush_every": 10, "flush_interval": 30, **LATE, **options}
        super().__init__(make_task(app, **options), clock)

    def send_fresh(self, count: int) -> list[Message]:
        return [self.send() for _ in range(count)]

    def send_again(
        self, *numbers: int, flag: bool = True, deliveries: Any = None, **headers: Any
    ) -> list[Message]:
        """Deliver the messages of these calls again."""
        if deliveries is not None:
            headers[DELIVERY_COUNT] = deliveries
        return [
            self.handle(
                protocol_2(
                    *(self.app, f"id-{number}", self.task.name, [number]),
                    redelivered=flag,
                    more_headers=headers,
                )
            )
            for number in numbers
        ]

    def lose(self, batch: int = -1, error: Exception | None = None) -> None:
        """The pool loses the process of a batch."""
        job = self.consumer.sent[batch]
        job.on_accepted(1, 0.0)
        job.on_failure(einfo_of(error or WorkerLostError("signal 9")))

    def reconnect(self) -> None:
        """The connection is lost, and there is another one."""
        BatchesStep(self.consumer).stop(self.consumer)
        self.consumer.connection = type(self.consumer.connection)(**vars(self.consumer.connection))
        self.connect()

    @property
    def sizes(self) -> list[int]:
        return [len(ids) for _, ids in self.batches]
