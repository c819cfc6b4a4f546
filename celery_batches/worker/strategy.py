"""Buffers the requests of one task on one connection. Runs in the worker's main process.

Celery makes a task's strategy once for each connection to the broker. The buffer of a
`BatchStrategy` belongs to that connection. When it is lost, the broker redelivers the messages.

A strategy ends in one of two ways. `retire`: its connection is lost, or the worker stops.
`hand_over`: the tasks were reloaded on the same connection, and the new strategy gets the buffer.
To `release` a request means that it does not run in this worker, and that the broker redelivers it.

The consumer calls `on_message`, `reserve`, `hand_over` and `retire`. The timer calls `_on_timer`,
and `add` for requests with an ETA. Their threads depend on the pool. The lock guards all state
here, and the token bucket of the rate limit. Under the lock there is no I/O and no code of the
user. The mutex of the worker's timer and the lock of the prefetch count are taken after it, never
before. `hand_over` holds two locks, that of the older strategy first. "Threads and locks" in
``docs/architecture.rst`` has the table of threads and the possible races.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.worker import state as worker_state
from kombu import Message

from ..core.buffer import Buffered
from ..core.rules import NOTHING, Facts, Limits
from ..core.shortcuts import enabled_shortcuts
from ..transports.amqp_nack import nack_on_reject
from .broker_limits import warn_of_broker_limits
from .clock import clock_of
from .eta import BufferingConsumer
from .flush_options import FlushOptions
from .intake import Intake
from .interfaces import Consumer
from .member_request import MemberRequest, member_class
from .pending import PendingRequests
from .redeliveries import Redeliveries
from .sender import BatchSender

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("BatchStrategy", "strategy_of")


class BatchStrategy:
    """Buffers the requests of one batch task on one connection, and sends batches to the pool.

    Arguments:
        task: The batch task.
        app: The Celery app.
        consumer: The worker's consumer.
        old: The strategy that the consumer had for the task until now.
    """

    def __init__(
        self,
        task: Batches,
        app: Celery,
        consumer: Consumer,
        *,
        old: BatchStrategy | None = None,
    ) -> None:
        self.task = task
        self.consumer = consumer
        self.connection = consumer.connection
        self._clock = clock_of(consumer)
        self._monotonic = monotonic = self._clock.monotonic
        shortcuts = enabled_shortcuts(app.conf)
        self._nacks = "amqp_nack" in shortcuts
        self.options: FlushOptions = FlushOptions(task, None if old is None else old.options)
        self.sender: BatchSender = BatchSender(
            task, consumer, self, None if old is None else old.sender
        )
        #: Shared with the next strategy: the broker redelivers what a lost connection had.
        self.redeliveries: Redeliveries = old.redeliveries if old else Redeliveries(monotonic)
        self._remembered = self.redeliveries.remembered
        self._lock = Lock()
        self._pending = PendingRequests(
            consumer, task.name, self.options.limits, on_wakeup=self._on_timer
        )
        self._reserved = 0
        # Read here, since a property runs code of the user.
        self._may_suspect = bool(task.acks_late)
        self._retired = False
        self._requeues = False
        #: The strategy that has taken over the buffer, if the connection is still open.
        self._successor: BatchStrategy | None = None
        task.Request = member_class(task.Request)
        self._receive = Intake(
            task, app, BufferingConsumer(consumer, self.add, task, self.options), shortcuts
        )

    @property
    def buffered(self) -> int:
        """The number of buffered requests."""
        return len(self._pending)

    def reserve(self, batches: int) -> None:
        """Let the broker deliver that many batches, where it cannot be asked again."""
        self._reserved = batches
        self._pending.reserve(
            batches,
            has_keys=self.options.measures.key is not None,
            suspects=self._may_suspect,
        )

    def on_message(
        self,
        message: Message,
        body: Any,
        ack: Callable[..., Any],
        reject: Callable[..., Any],
        callbacks: Sequence[Callable[[MemberRequest], Any]],
    ) -> Any:
        """Handle a message, with the signature of Celery's strategies.

        Raises:
            celery.exceptions.InvalidTaskError: If it is malformed. Celery then rejects it.
        """
        if self._successor is not None:
            return self._successor.on_message(message, body, ack, reject, callbacks)
        return self._receive(message, body, ack, reject, callbacks)

    def add(self, request: MemberRequest) -> None:
        """Buffer a request that is ready to run."""
        if request.acknowledged:
            # Celery before 5.7 rejects a malformed request and passes it on anyway.
            worker_state.task_ready(request)
            return
        limits = self.options.read()  # Outside of the lock, since a property runs code of the user.
        if limits is not self._pending.limits:
            self._change(limits)
        facts = NOTHING
        if self.options.has_measures or request.expires is not None:
            measured = self._facts(request)
            if measured is None:
                return
            facts = measured
        may_be_known = bool(self._remembered or request.delivery_info.get("redelivered"))
        acks_late = may_be_known and bool(self.task.acks_late)
        with self._lock:
            is_over = self._is_over
            if not is_over:
                request.strategy = self
                now, arrival = self._monotonic(), None
                if may_be_known:
                    arrival = self.redeliveries.recall(request, acks_late=acks_late, now=now)
                request.arrival = now if arrival is None else arrival
                if arrival is None:
                    batches = self._pending.add(request, facts, now=now)
                else:
                    batches = self._pending.add_again(request, facts, arrival=arrival, now=now)
        if not is_over:
            for batch in batches:
                self.sender.flush(batch)
        elif self._successor is not None:
            self._successor.add(request)
        else:
            self.release(request)

    def _facts(self, request: MemberRequest) -> Facts | None:
        """Return what the rules need to know of a request, or None if it has ended."""
        try:
            return self.options.measures.facts(request, self._clock)
        except Exception as exc:
            if self.lost is None:
                self.sender.accounts.fail([request], exc)
            else:
                self.release(request)
            return None

    @property
    def _is_over(self) -> bool:
        """Whether this strategy has ended, and buffers no more requests.

        With greenlets, a timer can fire before the bootstep is notified of a lost connection.
        """
        return self._retired or self.consumer.connection is not self.connection

    def _change(self, limits: Limits) -> None:
        """Use these limits from now on, since an option of the task has changed."""
        with self._lock:
            if not self._retired:
                self._pending.change(limits, now=self._monotonic())
        self.warn_of_broker_limits()

    def warn_of_broker_limits(self) -> None:
        """Warn if a batch cannot fill, or a request may wait too long, with this broker."""
        warn_of_broker_limits(self.task, self.consumer, self.options.limits)
        self._pending.warn_of_static_limit(self.task.name)

    def _on_timer(self, armed_for: float) -> None:
        limits = self.options.read()
        if limits is not self._pending.limits:
            self._change(limits)
        with self._lock:
            if self._is_over or not self._pending.timer.fire(armed_for):
                return
            batches = self._pending.wake_up(now=self._monotonic())
        for batch in batches:
            self.sender.flush(batch)

    def hand_over(self, to: BatchStrategy) -> None:
        """End this strategy, and pass its buffer to the one that replaces it."""
        if to.connection is not self.connection:
            self.retire()
            return
        with self._lock, to._lock:
            if not self._retired:
                to.sender.share_jobs(self.sender)
                to._take_over(self._close(successor=to), self._reserved)

    def _take_over(self, requests: Sequence[Buffered[MemberRequest]], reserved: int) -> None:
        """Buffer the requests of another strategy. Called under the lock."""
        if reserved:
            self.reserve(reserved)
        for each in requests:
            each.item.strategy = self
        # The timer sends full batches. Celery does not have this strategy yet, and sending may
        # block.
        self._pending.take_over(requests, now=self._monotonic())

    def retire(self, *, requeue: bool = False) -> list[MemberRequest]:
        """End this strategy with its connection, and release the buffered requests.

        Arguments:
            requeue: Whether to requeue the messages now, since the connection stays open for a
                while.

        Returns:
            The requests that were in the buffer.
        """
        with self._lock:
            self._requeues = requeue
            requests = [] if self._retired else self._close()
        # The newest first, so that the broker redelivers the oldest first.
        for each in reversed(requests):
            self.release(each.item, arrival=each.arrival)
        return [each.item for each in requests]

    def _close(self, successor: BatchStrategy | None = None) -> list[Buffered[MemberRequest]]:
        """Close the buffer, and return its requests with their arrivals. Called under the lock."""
        self._successor = successor
        # Set last, since other threads read it without the lock before they read the successor.
        self._retired = True
        return self._pending.close()

    @property
    def lost(self) -> BatchStrategy | None:
        """The last successor of this strategy if its connection is lost, or None.

        This does not take the lock. A signal handler that stops the pool may call it while its own
        thread has the lock.
        """
        strategy = self
        while strategy._is_over:
            if strategy._successor is None:
                return strategy
            strategy = strategy._successor
        return None

    def release(self, request: MemberRequest, *, arrival: float | None = None) -> None:
        """Release a request, so that the broker redelivers it.

        Arguments:
            request: The request.
            arrival: When it was buffered, if it still was.
        """
        worker_state.task_ready(request)
        self.redeliveries.remember(request, arrival=arrival)
        if self._requeues:
            if self._nacks:
                nack_on_reject(request.message)
            # Reject directly, since the event loop that would do it has ended.
            request.on_reject = request.message.reject_log_error
            request.reject(requeue=True)


def strategy_of(consumer: Consumer, name: str) -> BatchStrategy | None:
    """Return the consumer's strategy for the task of that name, if it is a batch task."""
    strategy = getattr(consumer.strategies.get(name), "__self__", None)
    return strategy if isinstance(strategy, BatchStrategy) else None
