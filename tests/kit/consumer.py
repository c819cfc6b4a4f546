"""The worker's consumer: as much of it as a strategy and the bootstep see."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.worker import state as worker_state
from kombu.common import QoS

from celery_batches.testing.consumer import StandInConsumer
from celery_batches.worker.job import BatchJob
from celery_batches.worker.prefetch import Prefetch
from kit.clock import Clock
from kit.requests import HOSTNAME


class PrefetchConsumer:
    """Stands in for the part of Celery's consumer that has to do with prefetch.

    Arguments:
        prefetch: How many tasks the worker may hold.
        options: Those of kombu's ``QoS``.
    """

    def __init__(self, prefetch: int = 4, **options: Any) -> None:
        #: What the broker was told.
        self.prefetch_counts: list[int] = []
        self.initial_prefetch_count = prefetch
        # As Celery's step makes it, and ours.
        counter = QoS(self._tell, prefetch, **options)
        self.qos = Prefetch(counter, lambda: self.initial_prefetch_count)
        self.controller: Any = SimpleNamespace(state=worker_state)
        self.pool: Any = SimpleNamespace(apply_async=None, num_processes=2)

    def _tell(self, prefetch_count: int) -> None:
        self.prefetch_counts.append(prefetch_count)

    def loop(self) -> list[int]:
        """Do what Celery's event loop does each time it comes round; return what was told."""
        self.prefetch_counts.clear()
        if self.qos.prev != self.qos.value:
            self.qos.update()
        return self.prefetch_counts


class FakeConsumer(StandInConsumer, PrefetchConsumer):
    """Stands in for Celery's consumer on a connection, with batches kept instead of sent.

    Arguments:
        app: The app of the worker.
        clock: The clock of its timer.
        disable_rate_limits: Whether no task has a rate limit.
    """

    def __init__(
        self, app: Celery, clock: Clock | None = None, *, disable_rate_limits: bool = True
    ) -> None:
        #: The batches that were sent to the pool.
        self.sent: list[BatchJob] = []
        StandInConsumer.__init__(
            self, app, clock or Clock(), SimpleNamespace(num_processes=2), self.sent.append
        )
        PrefetchConsumer.__init__(self)
        self.hostname = HOSTNAME
        self.disable_rate_limits = disable_rate_limits
        self.task_consumer.cancel = self._cancel
        #: How often it was told to take in no more messages.
        self.cancelled = 0
        self.pending_operations: list[Callable[[], Any]] = []

    def _cancel(self) -> None:
        self.cancelled += 1

    def perform_pending_operations(self) -> None:
        while self.pending_operations:
            self.pending_operations.pop(0)()

    def _limit_task(self, *_: Any) -> None:
        raise AssertionError("a single request was rate limited")

    _limit_post_eta = _limit_task
