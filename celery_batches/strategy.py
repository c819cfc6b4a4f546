"""Message -> Request -> buffer -> pool. Runs in the worker's main process.

Celery calls a task's strategy once for each connection to the broker. What `BatchStrategy` holds
belongs to that connection: when it is lost, the broker delivers the messages again.

Threads: with an event loop, messages, timers and the pool's callbacks take turns on the main
thread. Without one (in-memory broker; gevent and eventlet), the timer is a thread or a greenlet of
its own, so the buffer and the armed timer change under one lock only. Batches are sent to the pool
outside of it: the solo pool runs the body there and then.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from time import monotonic
from typing import Any

from celery import bootsteps
from celery.exceptions import InvalidTaskError
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.strategy import default as default_strategy
from kombu.common import ignore_errors

from .buffer import Batch, Buffer
from .compat import has_static_prefetch
from .dispatch import BatchJob
from .limits import RateLimit
from .messages import check_message
from .prefetch import PrefetchRoom
from .visibility import warn_of_visibility_timeout

__all__ = ("BatchStrategy", "BatchesStep", "strategy_of")

logger = get_logger(__name__)

#: What a message with nonsense in it makes Celery's own code raise.
NONSENSE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _BufferingConsumer:
    """The worker's consumer, as Celery's default strategy sees it on behalf of a batch task.

    It is the real one, except for where requests go when they are ready, and that a rate limit is
    not for single requests.
    """

    disable_rate_limits = True

    def __init__(self, consumer: Any, on_task_request: Any) -> None:
        self._consumer = consumer
        self.on_task_request = on_task_request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def apply_eta_task(self, request: Any) -> None:
        type(self._consumer).apply_eta_task(self, request)


class BatchStrategy:
    """Buffers the requests of one batch task on one connection, and sends batches to the pool.

    Arguments:
        task: The batch task.
        app: The Celery app.
        consumer: The worker's consumer.
    """

    def __init__(self, task: Any, app: Any, consumer: Any) -> None:
        self.task = task
        self.consumer = consumer
        self.connection = consumer.connection
        self._lock = Lock()
        self._buffer: Buffer[Any] = Buffer(
            flush_every=task.flush_every, flush_interval=task.flush_interval_seconds
        )
        #: Full batches, which go to the pool at once unless a rate limit holds them back.
        self._full: deque[Batch[Any]] = deque()
        self._limit = RateLimit(consumer, task.name)
        self._timer: Any = None
        self._timer_at: float | None = None
        self._retired = False
        self._requeues = False
        self._room = PrefetchRoom(consumer, task.flush_every)
        self._receive = default_strategy(
            task,
            app,
            _BufferingConsumer(consumer, self.add),
            # One line for each batch is enough: single requests are for those who debug.
            info=logger.debug,
        )

    def start(self, batches: int = 1) -> None:
        """The consumer is ready: let the broker deliver a whole batch, or several."""
        self._room.open(batches)

    def on_message(
        self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any
    ) -> Any:
        """Take in a message (Celery's interface of a strategy).

        Raises:
            celery.exceptions.InvalidTaskError: If there is no sense in it. Celery rejects it then.
        """
        self._room.open()
        check_message(message, body)
        try:
            return self._receive(message, body, ack, reject, callbacks, **options)
        except NONSENSE as exc:
            if message.acknowledged:
                raise
            raise InvalidTaskError(f"{type(exc).__name__}: {exc}") from exc

    def add(self, request: Any) -> None:
        """Put a request that is ready to run into the buffer."""
        if request.acknowledged:
            return  # Celery found something wrong with it and has rejected it.
        request.batch_strategy = self
        with self._lock:
            batches = None if self._retired else self._add(request)
        if batches is None:
            self._let_go(request)
            return
        for batch in batches:
            self._flush(batch)

    def _add(self, request: Any) -> list[Batch[Any]]:
        """Buffer a request; return the batches to be sent. Called under the lock."""
        now = monotonic()
        batch = self._buffer.add(request, now=now)
        if batch is not None:
            self._full.append(batch)
        batches = self._take_full()
        self._arm(now)
        return batches

    def _take_full(self) -> list[Batch[Any]]:
        """Return the full batches that the rate limit lets go. Called under the lock."""
        batches = []
        while self._full and self._limit.allows():
            batches.append(self._full.popleft())
        return batches

    def _take_due(self, now: float) -> list[Batch[Any]]:
        """Return the full batches, and what has waited for its interval. Called under the lock.

        What the rate limit does not let go stays in the buffer, where the batch goes on filling.
        """
        batches = self._take_full()
        if not self._full and self._is_due(now) and self._limit.allows():
            batches.extend(self._buffer.poll(now=now))
        return batches

    def _is_due(self, now: float) -> bool:
        wakeup = self._buffer.next_wakeup
        return wakeup is not None and wakeup <= now

    def _arm(self, now: float) -> None:
        """See to it that the timer wakes us when there will be something to do. Under the lock.

        A timer that wakes up too early only sets the next one: so there is never more than one,
        and a flush by size need not touch it.
        """
        held_back = self._full or self._is_due(now)
        wakeup = now + self._limit.wait() if held_back else self._buffer.next_wakeup
        if wakeup is None or (self._timer_at is not None and self._timer_at <= wakeup):
            return
        self._disarm()
        self._timer_at = wakeup
        self._timer = self.consumer.timer.call_at(wakeup, self._on_timer, (wakeup,))

    def _disarm(self) -> None:
        timer, self._timer, self._timer_at = self._timer, None, None
        if timer is not None:
            self.consumer.timer.cancel(timer)

    def _on_timer(self, armed_for: float) -> None:
        with self._lock:
            if self._retired or armed_for != self._timer_at:
                return  # It was set for something that is over.
            self._timer = self._timer_at = None
            now = monotonic()
            batches = self._take_due(now)
            self._arm(now)
        for batch in batches:
            self._flush(batch)

    def _flush(self, batch: Batch[Any]) -> None:
        try:
            self.task.flush(batch)
        except Exception as exc:
            # It must not be blamed on the message that happened to fill the batch.
            logger.critical(
                "Cannot send a batch of %d to the pool for %s: %r",
                len(batch),
                self.task.name,
                exc,
                exc_info=True,
            )

    def dispatch(self, requests: Any, body_args: tuple[Any, ...] | None = None) -> None:
        """Send requests to the pool as one batch."""
        room = self._room.take(len(requests))
        job = BatchJob(
            self.task,
            list(requests),
            trigger=getattr(requests, "trigger", "manual"),
            hostname=self.consumer.hostname,
            on_released=lambda: PrefetchRoom.give_back(room),
            body_args=body_args,
        )
        self.consumer.on_task_request(job)

    def take_over(self, old: BatchStrategy) -> None:
        """Replace the strategy that Celery had for the task until now."""
        requests = old.retire()
        if old.connection is self.connection:
            # The tasks were reloaded, the messages are still ours.
            self.start()
            for request in requests:
                worker_state.task_reserved(request)
                self.add(request)

    def retire(self, *, requeue: bool = False) -> list[Any]:
        """End it, with the connection: nothing that is buffered here will run from here.

        Arguments:
            requeue: Whether to send it back to the broker now, since the connection goes on for a
                while.

        Returns:
            What was in the buffer.
        """
        with self._lock:
            self._retired = True
            self._requeues = requeue
            self._disarm()
            requests = [request for batch in self._full for request in batch]
            requests += self._buffer.discard()
            self._full.clear()
        self._room.close()
        # The newest first, so that the oldest is the first to be delivered again.
        for request in reversed(requests):
            self._let_go(request)
        return requests

    def _let_go(self, request: Any) -> None:
        worker_state.task_ready(request)
        if self._requeues:
            # Now: the event loop that it would be left to has ended.
            request.on_reject = request.message.reject_log_error
            request.reject(requeue=True)


def strategy_of(consumer: Any, name: str) -> BatchStrategy | None:
    """Return the consumer's strategy for the task of that name, if it is a batch task."""
    strategy = getattr(consumer.strategies.get(name), "__self__", None)
    return strategy if isinstance(strategy, BatchStrategy) else None


class BatchesStep(bootsteps.StartStopStep):  # type: ignore[misc]  # celery is not typed
    """Tells the batch tasks when the consumer is ready and when it stops.

    Celery also stops its consumer's steps when it loses the connection.
    """

    label = "batches"
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, c: Any) -> None:
        """Let every batch task have its room: the consumer has its ``qos`` by now."""
        for strategy in self._strategies(c):
            strategy.start(_batches_at_once(c))
            warn_of_visibility_timeout(strategy.task, c.task_consumer.channel)
        # Before the first message is asked for.
        c.qos.update()

    def stop(self, c: Any) -> None:
        """Retire every strategy: what is buffered goes back to the broker.

        When the connection is lost it does so by that. When the worker stops, the connection is
        kept until the batches that run have ended: on AMQP, what is buffered is sent back before.
        """
        # Without an event loop, Celery before 5.7 forgets the acknowledgements that still wait for
        # the loop to come round: a batch that has run would be delivered again.
        c.perform_pending_operations()
        stopping = c.blueprint.state in (bootsteps.CLOSE, bootsteps.TERMINATE)
        # Where kombu polls (Redis), a message that goes back now may be taken by the poll that is
        # still under way, and then be with nobody until the worker ends.
        requeue = stopping and c.connection.transport.driver_type == "amqp"
        if requeue and c.task_consumer is not None:
            # Or it would be delivered here again.
            ignore_errors(c.connection, c.task_consumer.cancel)
        for strategy in self._strategies(c):
            strategy.retire(requeue=requeue)

    def _strategies(self, c: Any) -> list[BatchStrategy]:
        found = [strategy_of(c, name) for name in list(c.strategies)]
        return [strategy for strategy in found if strategy is not None]


def _batches_at_once(c: Any) -> int:
    """Return for how many batches of a task there must be room from the start.

    Where the prefetch count cannot be changed later, one batch is filled while the others run.
    """
    return int(c.pool.num_processes) + 1 if has_static_prefetch(c) else 1
