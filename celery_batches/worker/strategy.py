"""Buffers the requests of one task on one connection. Runs in the worker's main process.

Celery calls a task's strategy once for each connection to the broker. What `BatchStrategy` holds
belongs to that connection: when it is lost, the broker delivers the messages again.

A strategy ends in one of two ways. `retire`: its connection is lost, or the worker stops.
`hand_over`: the tasks were reloaded on the same connection, and the new strategy gets the buffer.
To `release` a request means that it will not run from here, and that the broker delivers it again.

The consumer (`on_message`, `reserve`, `hand_over`, `retire`) and the timer (`_on_timer`, and `add`
for requests with an ETA) enter here, on threads that depend on the pool. The lock guards all that
changes here, and the token bucket of the rate limit. Under it there is no I/O and no code of the
user. The mutex of the worker's timer and the lock of the prefetch count are taken under it, never
the other way round; `hand_over` holds two, that of the older strategy first. "Threads and locks" in
``docs/architecture.rst`` has the table of threads, and says why what may come in between does no
harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.exceptions import InvalidTaskError
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.strategy import default as default_strategy
from kombu import Message

from ..core.buffer import Limits
from ..core.shortcuts import enabled_shortcuts
from ..transports.visibility import warn_of_visibility_timeout
from .acks import DeferredAck, LeanPromise
from .checks import MALFORMED_MESSAGE_ERRORS, check_message
from .eta import BufferingConsumer
from .flush_options import FlushOptions
from .interfaces import Consumer
from .member_request import MemberRequest, member_class
from .pending import PendingRequests
from .prefetch import warn_of_prefetch_limit
from .sender import BatchSender

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("BatchStrategy", "strategy_of")

logger = get_logger(__name__)


class BatchStrategy:
    """Buffers the requests of one batch task on one connection, and has batches sent to the pool.

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
        shortcuts = enabled_shortcuts(app.conf)
        self._deferred_ack = (
            DeferredAck.with_shortcuts(shortcuts) if "lean_promises" in shortcuts else None
        )
        self.options: FlushOptions = FlushOptions(task, None if old is None else old.options)
        self.sender: BatchSender = BatchSender(
            task, consumer, self, None if old is None else old.sender
        )
        self._lock = Lock()
        self._pending = PendingRequests(
            consumer, task.name, self.options.limits, on_wakeup=self._on_timer
        )
        self._reserved = 0
        self._retired = False
        self._requeues = False
        #: The strategy that has the buffer now, if the connection goes on.
        self._successor: BatchStrategy | None = None
        task.Request = member_class(task.Request)
        self._receive = default_strategy(
            task,
            app,
            BufferingConsumer(consumer, self.add, task, self.options),
            # One line for each batch is enough: single requests are for those who debug.
            info=logger.debug,
        )

    @property
    def buffered(self) -> int:
        """How many requests are not on their way to the pool yet."""
        return len(self._pending)

    def reserve(self, batches: int) -> None:
        """Let the broker deliver that many batches, where it cannot be asked again."""
        self._reserved = batches
        self._pending.reserve(batches)

    def on_message(
        self,
        message: Message,
        body: Any,
        ack: Callable[..., Any],
        reject: Callable[..., Any],
        callbacks: Sequence[Callable[[MemberRequest], Any]],
    ) -> Any:
        """Take in a message (Celery's interface of a strategy).

        Raises:
            celery.exceptions.InvalidTaskError: If it is malformed. Celery rejects it then.
        """
        if self._successor is not None:
            return self._successor.on_message(message, body, ack, reject, callbacks)
        if message.body is None:
            message.body = b""  # Celery's line in the log says how long it is.
        try:
            check_message(message, body)
            if self._deferred_ack is not None:
                ack, reject = self._deferred_ack(ack), LeanPromise(reject)
            return self._receive(message, body, ack, reject, callbacks)
        except MALFORMED_MESSAGE_ERRORS as exc:
            if message.acknowledged:
                raise
            raise InvalidTaskError(f"{type(exc).__name__}: {exc}") from exc

    def add(self, request: MemberRequest) -> None:
        """Put a request that is ready to run into the buffer."""
        if request.acknowledged:
            # Celery (before 5.7) has rejected it as malformed, and goes on.
            worker_state.task_ready(request)
            return
        limits = self.options.read()  # Without the lock: a property is the user's code.
        if limits is not self._pending.limits:
            self._change(limits)
        with self._lock:
            over = self._is_over
            if not over:
                request.strategy = self
                batches = self._pending.add(request, now=monotonic())
        if not over:
            for batch in batches:
                self.sender.flush(batch)
        elif self._successor is not None:
            self._successor.add(request)
        else:
            self.release(request)

    @property
    def _is_over(self) -> bool:
        """Whether it takes in no more.

        With greenlets, a timer can fire before the bootstep is notified of a lost connection.
        """
        return self._retired or self.consumer.connection is not self.connection

    def _change(self, limits: Limits) -> None:
        """Flush by these limits from now on: an option of the task has been set."""
        with self._lock:
            if not self._retired:
                self._pending.change(limits)
        self.warn_of_broker_limits()

    def warn_of_broker_limits(self) -> None:
        """Warn if a batch cannot fill, or a request may wait too long, with this broker."""
        limits, budget = self.options.limits, self.consumer.initial_prefetch_count
        warn_of_prefetch_limit(self.task.name, limits.flush_every, budget)
        self._pending.warn_of_static_limit(self.task.name)
        channel = getattr(self.consumer.task_consumer, "channel", None)
        warn_of_visibility_timeout(self.task, channel, limits.flush_interval)

    def _on_timer(self, armed_for: float) -> None:
        limits = self.options.read()
        if limits is not self._pending.limits:
            self._change(limits)
        with self._lock:
            if self._is_over or not self._pending.timer.fire(armed_for):
                return
            batches = self._pending.wake_up(now=monotonic())
        for batch in batches:
            self.sender.flush(batch)

    def hand_over(self, to: BatchStrategy) -> None:
        """End it: Celery has another strategy for the task from now on."""
        if to.connection is not self.connection:
            self.retire()
            return
        with self._lock, to._lock:
            if not self._retired:
                to.sender.share_jobs(self.sender)
                to._take_over(self._close(successor=to), self._reserved)

    def _take_over(self, requests: Sequence[MemberRequest], reserved: int) -> None:
        """Take in what another strategy has buffered. Called under the lock."""
        if reserved:
            self.reserve(reserved)
        for request in requests:
            request.strategy = self
        # Full batches are for the timer to send: Celery does not know this strategy yet, and
        # sending may block.
        self._pending.take_over(requests, now=monotonic())

    def retire(self, *, requeue: bool = False) -> list[MemberRequest]:
        """End it, with the connection: nothing that is buffered here will run from here.

        Arguments:
            requeue: Whether to send it back to the broker now, since the connection goes on for a
                while.

        Returns:
            What was in the buffer.
        """
        with self._lock:
            self._requeues = requeue
            requests = [] if self._retired else self._close()
        # The newest first, so that the oldest is the first to be delivered again.
        for request in reversed(requests):
            self.release(request)
        return requests

    def _close(self, successor: BatchStrategy | None = None) -> list[MemberRequest]:
        """Take in no more, and return what is buffered. Called under the lock."""
        self._successor = successor
        # Last, since other threads look at it without the lock, and then at the rest.
        self._retired = True
        return self._pending.close()

    @property
    def lost(self) -> BatchStrategy | None:
        """The last strategy that this one was handed over to, if its connection is lost.

        Without the lock: a signal handler that stops the pool may come here while its own thread
        has it.
        """
        strategy = self
        while strategy._is_over:
            if strategy._successor is None:
                return strategy
            strategy = strategy._successor
        return None

    def release(self, request: MemberRequest) -> None:
        """Release a request: the broker delivers it again."""
        worker_state.task_ready(request)
        if self._requeues:
            # Now: the event loop that it would be left to has ended.
            request.on_reject = request.message.reject_log_error
            request.reject(requeue=True)


def strategy_of(consumer: Consumer, name: str) -> BatchStrategy | None:
    """Return the consumer's strategy for the task of that name, if it is a batch task."""
    strategy = getattr(consumer.strategies.get(name), "__self__", None)
    return strategy if isinstance(strategy, BatchStrategy) else None
