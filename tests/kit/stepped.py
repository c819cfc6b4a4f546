"""The pool and the consumer of a worker whose threads are actors on a stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import TaskRevokedError
from kombu.asynchronous.semaphore import DummyLock

from celery_batches.worker.job import BatchJob
from kit.clock import Clock
from kit.consumer import FakeConsumer
from kit.pool import Call, Handle, Pool
from kit.stage import Stage


class SteppedPool(Pool):
    """Stands in for the pool: actors run what it was given."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        #: What runs.
        self.running: list[Call] = []
        #: Whether the caller had a lock.
        self.locked = False
        #: The id of each batch that it was given.
        self.batches: list[str] = []
        #: Those that it has begun to run, and the ids in each.
        self.begun: list[str] = []
        self.given: list[list[str]] = []

    def apply_async(
        self, target: Callable[..., Any], args: tuple[Any, ...] = (), **options: Any
    ) -> Handle | None:
        self.stage.point()
        if self.stage.current is not None and self.stage.current.locks:
            # The solo pool would run the body now; that of gevent may wait for another to end.
            self.locked = True
        handle = super().apply_async(target, args, **options)
        self.batches.append(self.calls[-1].id)
        # It may be run, and end, before the caller hears of it.
        self.stage.point()
        return handle


class SteppedConsumer(FakeConsumer):
    """Stands in for Celery's consumer: it sends what is ready to the pool, as the worker does."""

    def __init__(self, app: Celery, clock: Clock, pool: SteppedPool) -> None:
        super().__init__(app, clock, disable_rate_limits=False)
        self.qos._mutex = DummyLock()  # As Celery does, on every pool.
        self.pool = pool

    def on_task_request(self, job: BatchJob) -> None:
        with contextlib.suppress(TaskRevokedError):
            job.execute_using_pool(self.pool)
