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
  been sent a moment before: `drop_waiting` knows it already, whichever strategy has sent it.
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

from collections import deque
from collections.abc import Sequence
from threading import Lock
from time import monotonic, time
from typing import Any
from weakref import WeakValueDictionary

from celery.exceptions import InvalidTaskError
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.strategy import default as default_strategy

from ..core.buffer import Batch, Buffer
from ..core.shortcuts import enabled_shortcuts
from ..transports.visibility import warn_of_eta
from .acks import DeferredAck, LeanPromise
from .checks import NONSENSE, check_message
from .job import BatchJob
from .limits import RateLimit
from .prefetch import PrefetchRoom, prefetch_of

__all__ = ("BatchStrategy", "strategy_of")

logger = get_logger(__name__)

#: Seconds after a full batch in which more of them are expected.
AHEAD = 1.0


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
    """

    def __init__(self, task: Any, app: Any, consumer: Any) -> None:
        self.task = task
        self.consumer = consumer
        self.connection = consumer.connection
        self._shortcuts = enabled_shortcuts(app.conf)
        self._lock = Lock()
        self._buffer: Buffer[Any] = Buffer(
            flush_every=task.flush_every, flush_interval=task.flush_interval_seconds
        )
        #: Full batches, which go to the pool at once unless a rate limit holds them back.
        self._full: deque[Batch[Any]] = deque()
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
        self._room = PrefetchRoom(consumer, task.flush_every)
        self._reserved = 0
        self._warned_of_eta = False
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
        return len(self._buffer) + sum(map(len, self._full))

    def reserve(self, batches: int) -> None:
        """Let the broker deliver that many batches, where it cannot be told of more later."""
        self._reserved = batches
        self._room.open(batches)

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
        except NONSENSE as exc:
            if message.acknowledged:
                raise
            raise InvalidTaskError(f"{type(exc).__name__}: {exc}") from exc

    def _on_eta(self, request: Any) -> None:
        """A request is about to wait for its ETA."""
        if not self._warned_of_eta:
            channel, wait = request.message.channel, request.eta.timestamp() - time()
            self._warned_of_eta = warn_of_eta(self.task, channel, wait)

    def add(self, request: Any) -> None:
        """Put a request that is ready to run into the buffer."""
        if request.acknowledged:
            # Celery (before 5.7) found something wrong with it, has rejected it, and goes on.
            worker_state.task_ready(request)
            return
        with self._lock:
            over = self._is_over
            batches = () if over else self._add(request)
        if not over:
            for batch in batches:
                self._flush(batch)
        elif self._successor is not None:
            self._successor.add(request)
        else:
            self._let_go(request)

    @property
    def _is_over(self) -> bool:
        """Whether the connection is lost. With greenlets, timers go on before we are told."""
        return self._retired or self.consumer.connection is not self.connection

    def _add(self, request: Any) -> Sequence[Batch[Any]]:
        """Buffer a request; return the batches to be sent. Called under the lock."""
        now = monotonic()
        self._put(request, now)
        batches = self._take_full() if self._full else ()
        self._arm(now)
        return batches

    def _put(self, request: Any, now: float) -> None:
        request.batch_strategy = self
        self._room.open()
        batch = self._buffer.add(request, now=now)
        if batch is not None:
            self._full.append(batch)
            if self._limit.is_off and not self._reserved:
                self._room.go_ahead(until=now + AHEAD)

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
        wakeup = self._buffer.next_wakeup
        is_due = wakeup is not None and wakeup <= now
        if is_due and not self._full and self._limit.allows():
            batches.extend(self._buffer.poll(now=now))
        return batches

    def _arm(self, now: float) -> None:
        """See to it that the timer wakes us when there will be something to do. Under the lock.

        A timer that wakes up too early only sets the next one: so there is never more than one,
        and a flush by size need not touch it.
        """
        wakeup, ahead_until = self._buffer.next_wakeup, self._room.ahead_until
        if self._full or (wakeup is not None and wakeup <= now):
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
        with self._lock:
            if self._is_over or armed_for != self._timer_at:
                return  # It was set for something that is over.
            self._timer = self._timer_at = None
            now = monotonic()
            batches = self._take_due(now)
            ahead_until = self._room.ahead_until
            if ahead_until is not None and ahead_until <= now:
                self._room.wait_and_see()
            self._arm(now)
            if not self._reserved and not self.buffered:
                # Nothing has come in since the last flush, or that was one by interval: other tasks
                # shall not make use of the room.
                if ahead_until is not None:
                    self._wake_at(now + self._buffer.flush_interval)
                else:
                    self._room.close()
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
        prefetch = prefetch_of(self.consumer)
        charge = None if prefetch is None else prefetch.charge(len(requests))
        job = BatchJob(
            self.task,
            list(requests),
            trigger=getattr(requests, "trigger", "manual"),
            hostname=self.consumer.hostname,
            drop=self._drop,
            charge=charge,
            body_args=body_args,
        )
        self._jobs[job.id] = job
        try:
            self.consumer.on_task_request(job)
        except BaseException:
            if charge is not None:
                charge.finish()
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

    def drop_waiting(self) -> None:
        """The connection is lost: run no batch that the pool has not started on."""
        for reference in self._jobs.valuerefs():
            job = reference()
            if job is not None:
                job.drop()

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
            self._let_go(request)
        return requests

    def _end(self, successor: BatchStrategy | None = None) -> list[Any]:
        """Take in no more, and return what is waiting. Called under the lock."""
        if self._retired:
            return []
        self._successor = successor
        # Last, since others look at it without the lock, and then at the rest.
        self._retired = True
        self._disarm()
        requests = [request for batch in self._full for request in batch]
        requests += self._buffer.discard()
        self._full.clear()
        self._room.close()
        return requests

    def _drop(self, requests: Sequence[Any]) -> bool:
        """Let requests go that are on their way to the pool, if it is too late for them.

        Without the lock: a signal handler that stops the pool may come here while its own thread
        has it.
        """
        strategy = self
        while strategy._is_over:
            if strategy._successor is None:
                for request in reversed(requests):
                    strategy._let_go(request)
                return True
            strategy = strategy._successor
        return False

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
