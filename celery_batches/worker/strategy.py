"""Message -> Request -> buffer -> pool. Runs in the worker's main process.

Celery calls a task's strategy once for each connection to the broker. What `BatchStrategy` holds
belongs to that connection: when it is lost, the broker delivers the messages again.

Three come in here: the consumer (`on_message`, `reserve`, `take_over`, `retire`), timers
(`_on_timer`, and `add` for what has waited for its ETA) and, to `BatchJob`, the pool's callbacks.
They are called on

    pool                     consumer       timers         callbacks
    prefork                  main thread    main thread*   main thread
    prefork, no event loop   main thread    Timer thread   billiard's threads: for results, for
                                                           time limits, for lost processes
    threads                  main thread    main thread    the pool's threads
    threads, no event loop   main thread    Timer thread   the pool's threads
    solo                     main thread    main thread    main thread, inside of `dispatch`
    solo, no event loop      main thread    Timer thread   either thread, inside of `dispatch`
    gevent, eventlet         one greenlet   one for each   the greenlet of the batch

AMQP and Redis have an event loop; other transports (in-memory, filesystem, databases) have none,
nor has Windows. (*) While a stopping worker waits for its processes: a thread of its own. With
gevent and eventlet, remote control (`take_over`) has a greenlet of its own on AMQP.

The lock guards all that changes here, and the token bucket of the rate limit. Under it there is no
I/O and nothing of the user's. The mutex of the timer and the lock of the prefetch count are taken
under it, and never the other way round; `take_over` holds two, that of the older strategy first. To
cancel a greenlet of gevent's that waits for the lock lets others run, who wait for the lock too.

What may then come in between, and why it does no harm:

* A timer that was cancelled or replaced a moment too late does nothing: `_timer_at` is not what it
  was armed for. One that is too early arms the next; one that comes before ``call_at`` has returned
  waits for the lock.
* Batches are sent outside of the lock, since the solo pool runs the body there and then and that of
  gevent waits until it has room. So two batches may change places; the requests in one may not.
* A batch that was taken from the buffer may find its connection lost before it is sent: `BatchJob`
  asks (`_drop`) as the last thing that it does. If it is lost after that, it is as if the batch had
  been sent a moment before: `release_waiting` knows it already, whichever strategy has sent it.
* A request that comes when all is over is let go; when the tasks were reloaded, the new strategy
  gets it. `_drop` and `on_message` look at `_retired` and `_successor` without the lock: `_end`
  sets them in the order that lets them do so.
* Callbacks change nothing here. They may come before ``apply_async`` has returned, and two at once
  for one batch: what it is charged for is given back once, and its members are told by the methods
  of Celery's ``Request``, which then do for each what they do for an ordinary task. In the same way
  Celery changes its ``worker.state`` from all these threads, one step on a set or dict at a time.
* Only the consumer tells the broker of the prefetch count. While it does so more messages may come
  in, and on other threads batches may be sent and end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from threading import Lock
from time import monotonic, time
from typing import Any
from weakref import WeakValueDictionary

from celery.exceptions import Ignore, InvalidTaskError, Reject
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.strategy import default as default_strategy

from ..core.buffer import Batch, Buffer, Limits
from ..core.shortcuts import enabled_shortcuts
from ..transports.visibility import warn_of_eta, warn_of_visibility_timeout
from .accounting import Accounts
from .acks import DeferredAck, LeanPromise
from .body_args import BodyArguments
from .checks import MALFORMED_MESSAGE_ERRORS, check_message
from .flush_options import FlushOptions
from .job import BatchJob
from .limits import RateLimit
from .member_request import MemberRequest, member_class
from .prefetch import BatchAllowance, prefetch_of, warn_of_prefetch_limit

__all__ = ("BatchStrategy", "strategy_for", "strategy_of")

logger = get_logger(__name__)

#: Seconds after a full batch in which more of them are expected.
READ_AHEAD_SECONDS = 1.0


FLUSH_RAISED = (
    "Task %s: flush() has raised %r: %d of the %d requests of its batch had not been passed on, "
    "and fail with it. To fail requests, pass them on and mark them as failed in the body."
)


class _BufferingConsumer:
    """The worker's consumer, as Celery's default strategy sees it on behalf of a batch task.

    It is the real one, except for where requests go when they are ready, and that a rate limit is
    not for single requests.
    """

    disable_rate_limits = True

    def __init__(self, consumer: Any, on_task_request: Any, on_eta: Any) -> None:
        self._consumer = consumer
        self.on_task_request = on_task_request
        #: The worker's timer, which gets nothing from the default strategy but ETAs.
        self.timer = self
        self._on_eta = on_eta

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def call_at(self, eta: float, fun: Any, args: tuple[Any], **options: Any) -> Any:
        self._on_eta(*args)
        return self._consumer.timer.call_at(eta, fun, args, **options)

    def apply_eta_task(self, request: Any) -> None:
        type(self._consumer).apply_eta_task(self, request)


class BatchStrategy:
    """Buffers the requests of one batch task on one connection, and sends batches to the pool.

    Arguments:
        task: The batch task.
        app: The Celery app.
        consumer: The worker's consumer.
        old: The strategy that the consumer had for the task until now.
    """

    def __init__(
        self, task: Any, app: Any, consumer: Any, *, old: BatchStrategy | None = None
    ) -> None:
        self.task = task
        #: Shared with what takes over: an override of `flush` may keep requests for longer.
        self.accounts: Accounts = old.accounts if old is not None else Accounts(task.name)
        self.consumer = consumer
        self.connection = consumer.connection
        self._shortcuts = enabled_shortcuts(app.conf)
        self._lock = Lock()
        self.options: FlushOptions = FlushOptions(task, old.options if old is not None else None)
        #: Full batches leave it at once, unless a rate limit holds them back.
        self._buffer: Buffer[MemberRequest] = Buffer(self.options.limits)
        #: The batches of this connection that the pool has, or that wait there, by id. Shared with
        #: what takes over; adding one and listing all are one step each, whatever thread does so.
        self._jobs: WeakValueDictionary[str, BatchJob] = WeakValueDictionary()
        self._limit = RateLimit(consumer, task.name)
        self._timer: Any = None
        self._timer_at: float | None = None
        self._retired = False
        self._requeues = False
        #: What has taken over, if the connection goes on.
        self._successor: BatchStrategy | None = None
        self._allowance = BatchAllowance(consumer, self.options.limits.flush_every)
        self._reserved = 0
        self._warned_of_eta = False
        task.Request = member_class(task.Request)
        self._receive = default_strategy(
            task,
            app,
            _BufferingConsumer(consumer, on_task_request=self.add, on_eta=self._on_eta),
            # One line for each batch is enough: single requests are for those who debug.
            info=logger.debug,
        )

    @property
    def buffered(self) -> int:
        """How many requests are not on their way to the pool yet."""
        return len(self._buffer)

    def reserve(self, batches: int) -> None:
        """Let the broker deliver that many batches, where it cannot be told of more later."""
        self._reserved = batches
        self._allowance.open(batches)

    def on_message(self, message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> Any:
        """Take in a message (Celery's interface of a strategy).

        Raises:
            celery.exceptions.InvalidTaskError: If there is no sense in it. Celery rejects it then.
        """
        if self._successor is not None:
            return self._successor.on_message(message, body, ack, reject, callbacks)
        if message.body is None:
            message.body = b""  # Celery's line in the log says how long it is.
        try:
            check_message(message, body)
            if "lean_promises" in self._shortcuts:
                ack, reject = DeferredAck(ack, self._shortcuts), LeanPromise(reject)
            return self._receive(message, body, ack, reject, callbacks)
        except MALFORMED_MESSAGE_ERRORS as exc:
            if message.acknowledged:
                raise
            raise InvalidTaskError(f"{type(exc).__name__}: {exc}") from exc

    def _on_eta(self, request: Any) -> None:
        """A request is about to wait for its ETA."""
        if not self._warned_of_eta:
            channel, wait = request.message.channel, request.eta.timestamp() - time()
            self._warned_of_eta = warn_of_eta(
                self.task, channel, wait, self.options.limits.flush_interval
            )

    def add(self, request: Any) -> None:
        """Put a request that is ready to run into the buffer."""
        if request.acknowledged:
            # Celery (before 5.7) found something wrong with it, has rejected it, and goes on.
            worker_state.task_ready(request)
            return
        limits = self.options.read()  # Without the lock: a property is the user's code.
        if limits is not self._buffer.limits:
            self._change(limits)
        with self._lock:
            over = self._is_over
            batches = () if over else self._add(request)
        if not over:
            for batch in batches:
                self._flush(batch)
        elif self._successor is not None:
            self._successor.add(request)
        else:
            self.release(request)

    @property
    def _is_over(self) -> bool:
        """Whether the connection is lost. With greenlets, timers go on before we are told."""
        return self._retired or self.consumer.connection is not self.connection

    def _add(self, request: Any) -> Sequence[Batch[Any]]:
        """Buffer a request; return the batches to be sent. Called under the lock."""
        now = monotonic()
        if self._put(request, now):
            batches = self._take_full()
            self._arm(now)
            return batches
        wakeup = self._buffer.next_wakeup
        # Most requests find the timer armed.
        if self._timer_at is None or wakeup is None or wakeup < self._timer_at:
            self._arm(now)
        return ()

    def _put(self, request: MemberRequest, now: float) -> bool:
        """Buffer a request; return whether there are enough for a full batch. Under the lock."""
        request.strategy = self
        self._allowance.open()
        is_full = self._buffer.add(request, now=now)
        if is_full and self._limit.is_off and not self._reserved:
            self._allowance.start_read_ahead(until=now + READ_AHEAD_SECONDS)
        return is_full

    def _change(self, limits: Limits) -> None:
        """Flush by these limits from now on: an option of the task has been set."""
        with self._lock:
            self._buffer.limits = limits
            if not self._retired:
                self._allowance.resize(limits.flush_every)
        self.warn_of_broker_limits()

    def warn_of_broker_limits(self) -> None:
        """Warn if a batch cannot fill, or a request may wait too long, with this broker."""
        limits = self.options.limits
        warn_of_prefetch_limit(
            self.task.name, limits.flush_every, self.consumer.initial_prefetch_count
        )
        if self._reserved:
            self._allowance.warn_of_static_limit(self.task.name)
        channel = getattr(self.consumer.task_consumer, "channel", None)
        warn_of_visibility_timeout(self.task, channel, limits.flush_interval)

    def _take_full(self) -> list[Batch[MemberRequest]]:
        """Return the full batches that the rate limit lets go. Called under the lock."""
        batches = []
        while self._buffer.is_full and self._limit.allows():
            batch = self._buffer.take_full()
            if batch is not None:
                batches.append(batch)
        return batches

    def _take_due(self, now: float) -> list[Batch[MemberRequest]]:
        """Return the full batches, and what has waited for its interval. Called under the lock.

        What the rate limit does not let go stays in the buffer, where the batch goes on filling.
        """
        batches = self._take_full()
        wakeup = self._buffer.next_wakeup
        is_due = wakeup is not None and wakeup <= now
        if is_due and not self._buffer.is_full and self._limit.allows():
            batches.extend(self._buffer.poll(now=now))
        return batches

    def _arm(self, now: float) -> None:
        """See to it that the timer wakes us when there will be something to do. Under the lock.

        A timer that wakes up too early only sets the next one: so there is never more than one,
        and a flush by size need not touch it.
        """
        wakeup, ahead_until = self._buffer.next_wakeup, self._allowance.ahead_until
        if self._buffer.is_full or (wakeup is not None and wakeup <= now):
            wakeup = now + self._limit.wait()  # It is held back.
        if ahead_until is not None:
            wakeup = ahead_until if wakeup is None else min(wakeup, ahead_until)
        if wakeup is not None:
            self._wake_at(wakeup)

    def _wake_at(self, wakeup: float) -> None:
        if self._timer_at is not None and self._timer_at <= wakeup:
            return
        self._disarm()
        self._timer_at = wakeup
        self._timer = self.consumer.timer.call_at(wakeup, self._on_timer, (wakeup,))

    def _disarm(self) -> None:
        timer, self._timer, self._timer_at = self._timer, None, None
        if timer is not None:
            self.consumer.timer.cancel(timer)

    def _on_timer(self, armed_for: float) -> None:
        limits = self.options.read()  # Without the lock: a property is the user's code.
        if limits is not self._buffer.limits:
            self._change(limits)
        with self._lock:
            if self._is_over or armed_for != self._timer_at:
                return  # It was set for something that is over.
            self._timer = self._timer_at = None
            now = monotonic()
            batches = self._take_due(now)
            ahead_until = self._allowance.ahead_until
            if ahead_until is not None and ahead_until <= now:
                self._allowance.stop_read_ahead()
            self._arm(now)
            if not self._reserved and not self.buffered:
                # Nothing has come in since the last flush, or that was one by interval: other tasks
                # shall not make use of the room.
                if ahead_until is not None:
                    self._wake_at(now + self._buffer.limits.flush_interval)
                else:
                    self._allowance.close()
        for batch in batches:
            self._flush(batch)

    def _flush(self, batch: Batch[MemberRequest]) -> None:
        """Have the task flush a batch; then account for each request that it has not passed on."""
        try:
            self.task.flush(batch)
        except Exception as exc:
            # It must not be blamed on the message that happened to fill the batch.
            self._on_flush_error(batch, exc)
        else:
            if self.lost is None:
                self.accounts.leave_out(batch)
            else:
                self.accounts.release(batch, self.lost.release)

    def _on_flush_error(self, batch: Batch[MemberRequest], exc: Exception) -> None:
        lost = self.lost
        if lost is not None:
            self.accounts.release(batch, lost.release)
        failed = 0 if lost is not None else self.accounts.fail(batch, exc)
        logger.log(
            logging.INFO if isinstance(exc, Ignore | Reject) else logging.CRITICAL,
            FLUSH_RAISED,
            *(self.task.name, exc, failed, len(batch)),
            exc_info=True,
        )

    def dispatch(
        self, requests: Sequence[MemberRequest], body_args: tuple[Any, ...] | None = None
    ) -> None:
        """Send requests to the pool as one batch.

        Raises:
            ValueError: If the arguments for the body hold requests that are none of these.
        """
        args = body_args and BodyArguments(self.task.name, body_args, requests)
        self._send(requests, args or None)

    def _send(self, requests: Sequence[MemberRequest], args: BodyArguments | None) -> None:
        members = self.accounts.claim(requests)
        if not members:
            return
        # What left the buffer together is not looked at one by one.
        is_mixed = type(requests) is not Batch and any(r.strategy is not self for r in members)
        prefetch = prefetch_of(self.consumer)
        job = BatchJob(
            self.task,
            members,
            trigger=getattr(requests, "trigger", "manual"),
            hostname=self.consumer.hostname,
            still_ours=self._still_ours if is_mixed else self._ours_unless_lost,
            charge=None if prefetch is None else prefetch.charge(len(members)),
            body_args=args,
        )
        self._jobs[job.id] = job
        try:
            self.consumer.on_task_request(job)
        except BaseException:
            self.accounts.unclaim(job.withdraw())
            raise

    def take_over(self, old: BatchStrategy) -> None:
        """Replace the strategy that Celery had for the task until now."""
        if old.connection is not self.connection:
            old.retire()
            return
        # The tasks were reloaded, the messages are still ours.
        with old._lock, self._lock:
            self._jobs = old._jobs
            requests = old._end(successor=self)
            if old._reserved:
                self.reserve(old._reserved)
            now = monotonic()
            for request in requests:
                self._put(request, now)
            # Full batches are for the timer to send: Celery does not know this strategy yet, and
            # sending may block.
            self._arm(now)

    def release_waiting(self) -> None:
        """The connection is lost: run no batch that the pool has not started on.

        The broker delivers its messages again, but not those that were left out at first, and so
        acknowledged: these are sent once more.
        """
        for reference in self._jobs.valuerefs():
            job = reference()
            if job is not None:
                self._release_job(job)

    def _release_job(self, job: BatchJob) -> None:
        ours = []
        for request in job.withdraw():
            if request.is_left_out:
                ours.append(request)
            else:
                worker_state.task_ready(request)
        if ours:
            self.accounts.unclaim(ours)
            self._send(ours, job.body_args)

    def retire(self, *, requeue: bool = False) -> list[Any]:
        """End it, with the connection: nothing that is buffered here will run from here.

        Arguments:
            requeue: Whether to send it back to the broker now, since the connection goes on for a
                while.

        Returns:
            What was in the buffer.
        """
        with self._lock:
            self._requeues = requeue
            requests = self._end()
        # The newest first, so that the oldest is the first to be delivered again.
        for request in reversed(requests):
            self.release(request)
        return requests

    def _end(self, successor: BatchStrategy | None = None) -> list[Any]:
        """Take in no more, and return what is waiting. Called under the lock."""
        if self._retired:
            return []
        self._successor = successor
        # Last, since others look at it without the lock, and then at the rest.
        self._retired = True
        self._disarm()
        requests = self._buffer.discard()
        self._allowance.close()
        return requests

    @property
    def lost(self) -> BatchStrategy | None:
        """The last that has taken over from this one, if its connection is lost.

        Without the lock: a signal handler that stops the pool may come here while its own thread
        has it.
        """
        strategy = self
        while strategy._is_over:
            if strategy._successor is None:
                return strategy
            strategy = strategy._successor
        return None

    def _still_ours(self, requests: Sequence[MemberRequest]) -> Sequence[MemberRequest]:
        """Return those of a batch that may run, and release those whose connection is lost.

        A request that was left out is acknowledged: the broker will not deliver it again.
        """
        ours = []
        for request in reversed(requests):
            lost = request.strategy and request.strategy.lost
            if lost is None or request.is_left_out:
                ours.append(request)
            else:
                lost.release(request)
        return ours[::-1]

    def _ours_unless_lost(self, requests: Sequence[MemberRequest]) -> Sequence[MemberRequest]:
        """Do as `_still_ours`, of requests that this strategy has buffered."""
        return requests if self.lost is None else self._still_ours(requests)

    def release(self, request: MemberRequest) -> None:
        """Let a request go that will not run from here."""
        worker_state.task_ready(request)
        if self._requeues:
            # Now: the event loop that it would be left to has ended.
            request.on_reject = request.message.reject_log_error
            request.reject(requeue=True)


def strategy_of(consumer: Any, name: str) -> BatchStrategy | None:
    """Return the consumer's strategy for the task of that name, if it is a batch task."""
    strategy = getattr(consumer.strategies.get(name), "__self__", None)
    return strategy if isinstance(strategy, BatchStrategy) else None


def strategy_for(task_name: str, requests: Sequence[Any]) -> BatchStrategy:
    """Return what can send these requests to the pool as a batch of this task.

    Raises:
        ValueError: If they are not all requests that a worker has buffered for the task.
    """
    found: list[BatchStrategy] = []
    # What left the buffer together is not looked at one by one.
    for request in requests[:1] if type(requests) is Batch else requests:
        strategy = getattr(request, "strategy", None)
        if strategy is None:
            raise ValueError(
                f"{task_name}: only requests that a worker has buffered can be flushed; "
                f"use apply_async() to send a call, or apply() to run one here"
            )
        if strategy in found:
            continue
        if strategy.task.name != task_name:
            raise ValueError(
                f"{task_name}: only its own requests can be flushed, not those of "
                f"{strategy.task.name}; use {strategy.task.name}.flush() for these"
            )
        found.append(strategy)
    # Requests that were kept for longer may be those of an older connection.
    return next((strategy for strategy in found if strategy.lost is None), found[0])
