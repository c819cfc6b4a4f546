"""Stands in for Celery's consumer and its connection, as far as a batch task sees them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery.bootsteps import CLOSE, RUN
from celery.utils.nodenames import gethostname
from celery.utils.time import rate
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from kombu.common import QoS

from .broker import Channel
from .clock import TOLERANCE_SECONDS, Clock, Timer

if TYPE_CHECKING:
    from celery import Celery

    from ..task import Batches
    from ..worker.interfaces import Bucket
    from ..worker.job import BatchJob

__all__ = ("StandInConsumer", "TokenBucket")


class TokenBucket:
    """Stands in for kombu's token bucket of a rate limit. It holds one token at most.

    Arguments:
        fill_rate: Tokens in a second.
        clock: The clock by which it is filled.
    """

    def __init__(self, fill_rate: float, clock: Clock) -> None:
        self._seconds = 1 / fill_rate
        self._clock = clock
        self._ready = clock.now

    def can_consume(self, tokens: int = 1) -> bool:
        """Take a token if there is one, and return whether there was."""
        if self.expected_time(tokens) > 0:
            return False
        self._ready = self._clock.now + self._seconds
        return True

    def expected_time(self, tokens: int = 1) -> float:
        """Return the seconds until there is a token."""
        wait = self._ready - self._clock.now
        return wait if wait > TOLERANCE_SECONDS else 0.0


class StandInConsumer:
    """Stands in for ``celery.worker.consumer.Consumer`` on a connection.

    Arguments:
        app: The app of the worker.
        clock: The clock of its timer.
        pool: The pool of the worker.
        process: Called with each batch that is ready for the pool.
    """

    connection_errors = ()
    event_dispatcher = None
    apply_eta_task = Consumer.apply_eta_task

    def __init__(
        self, app: Celery, clock: Clock, pool: Any, process: Callable[[BatchJob], Any]
    ) -> None:
        self.app = app
        self.pool = pool
        self._process = process
        self.timer = Timer(clock)
        self.hostname = gethostname()
        self.initial_prefetch_count = app.conf.worker_prefetch_multiplier * pool.num_processes
        self.qos: Any = QoS(lambda prefetch_count: None, self.initial_prefetch_count)
        self.controller = SimpleNamespace(state=worker_state)
        self.blueprint = SimpleNamespace(state=RUN)
        self.connection: Any = SimpleNamespace(
            transport=SimpleNamespace(driver_type="memory"), connection_errors=()
        )
        self.task_consumer = SimpleNamespace(channel=Channel(), cancel=lambda: None)
        self.disable_rate_limits = bool(app.conf.worker_disable_rate_limits)
        self.task_buckets: dict[str, Bucket | None] = {}
        self.strategies: dict[str, Any] = {}

    def add_task(self, task: Batches) -> None:
        """Make the strategy of a task, and the bucket of its rate limit, as Celery does."""
        limit = rate(task.rate_limit)
        bucket = TokenBucket(limit, self.timer.clock) if limit else None
        self.task_buckets[task.name] = bucket
        self.strategies[task.name] = task.Strategy(task, self.app, self)

    def on_task_request(self, job: BatchJob) -> Any:
        """Process a batch, or a request."""
        return self._process(job)

    def close(self) -> None:
        """Let the steps of the worker see that it stops warm."""
        self.blueprint.state = CLOSE

    def perform_pending_operations(self) -> None:
        """Do nothing: nothing is left for later."""

    def _limit_task(self, *_: Any) -> None:
        """Celery's strategy reads this, for rate limits of single requests. A batch has its own."""

    _limit_post_eta = _limit_task
