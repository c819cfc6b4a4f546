"""A worker for tests: with one batch task, a clock that the test moves, and no broker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from celery import Signature, states
from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state
from kombu import Message
from kombu.utils.imports import symbol_by_name
from kombu.utils.uuid import uuid

from ..backends.recording import RecordingBackend
from ..task import Batches
from ..worker.bootstep import BatchesStep
from ..worker.member_request import MemberRequest
from ..worker.strategy import strategy_of
from .broker import make_message
from .clock import Clock
from .consumer import StandInConsumer
from .pool import InlinePool
from .results import BatchResult

if TYPE_CHECKING:
    from ..worker.job import BatchJob

__all__ = ("BatchWorker", "SentCall")

DELIVERIES = {"ack": "acknowledged", "reject": "rejected", "requeue": "requeued"}


@dataclass(slots=True, eq=False)
class SentCall:
    """A call that a test has sent, and what has become of it until now.

    Attributes:
        id: The id of the call.
        message: Its message, or that of its last retry.
        state: The state of its result, as in `CallOutcome`. ``"PENDING"`` until it has run, and
            ``"REVOKED"`` if it was revoked or has expired.
        result: The result if it is done, or None.
        exception: The exception with which it has ended, or None.
    """

    id: str
    message: Message = field(repr=False)
    state: str = states.PENDING
    result: Any = None
    exception: BaseException | None = None

    @property
    def delivery(self) -> str:
        """What the broker was told of the message.

        ``"acknowledged"``, ``"rejected"`` or ``"requeued"``; ``"unacknowledged"`` until then.
        """
        said = self.message.channel.said
        return DELIVERIES[said[-1][0]] if said else "unacknowledged"


class BatchWorker:
    """A worker with one batch task, whose clock stands still until a test moves it.

    It buffers and flushes with the code of a real worker. It runs each batch at once, in the
    process of the test. There is no broker and no result backend: links, chains and chords are not
    sent, and no time limit is kept. A call that is retried comes back to the buffer at its time.

    Use it as a context manager, or call `stop` at the end.

    Arguments:
        task: The batch task.

    Attributes:
        batches: What became of each batch that has run, in order.
        clock: The clock. ``clock.monotonic()`` are its seconds.

    Raises:
        TypeError: If the task is not a batch task.
        celery.exceptions.ImproperlyConfigured: If an option of the task cannot work.
    """

    def __init__(self, task: Batches) -> None:
        if not isinstance(task, Batches):
            raise TypeError(f"BatchWorker runs batch tasks. {task!r} has another base than Batches")
        # Of a shared task, each app has its own.
        self.task: Batches = task.app.tasks[task.name]
        self.clock: Clock = Clock()
        self.batches: list[BatchResult] = []
        self._calls: dict[str, SentCall] = {}
        self._retries: list[Signature] = []
        self._revoked: set[str] = set()
        self._is_stopped = False
        self._backend = RecordingBackend(task.app, self._record)
        self._pool = InlinePool(self.task, self._on_result)
        self._consumer = StandInConsumer(task.app, self.clock, self._pool, self._process)
        self._step = BatchesStep(self._consumer)
        with self._working():
            self.task.Request = _request_class(self.task.Request, self.clock)
            self._consumer.add_task(self.task)
            self._step.start(self._consumer)

    def __enter__(self) -> BatchWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def now(self) -> datetime:
        """The date and time of the worker's clock, in UTC."""
        return self.clock.utc

    @property
    def buffered(self) -> int:
        """The number of calls in the buffer. Those that wait for their ETA do not count."""
        strategy = strategy_of(self._consumer, self.task.name)
        return 0 if strategy is None else strategy.buffered

    def send(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> SentCall:
        """Send a call to the worker, which receives it at once.

        The arguments go through the serializer of the task, as in a message.

        Arguments:
            args: Positional arguments of the call, as a list or tuple.
            kwargs: Keyword arguments of the call.
            **options: Those of ``apply_async``: ``countdown``, ``eta``, ``expires``, ``task_id``,
                ``headers``, …. An ``eta`` is a time of this worker's clock: see `now`.

        Returns:
            The call. Its attributes change when it runs.

        Raises:
            RuntimeError: If the worker is stopped.
            TypeError: If the arguments are no list or tuple, or the keyword arguments no mapping.
            kombu.exceptions.EncodeError: If the serializer cannot encode the arguments.
            Exception: What a handler of the task raises, if the call fills a batch.
        """
        if self._is_stopped:
            raise RuntimeError("This BatchWorker is stopped, and receives no more calls")
        with self._working():
            call = self._deliver(args, kwargs or {}, options)
            self._deliver_retries()
        return call

    def advance(self, seconds: float) -> None:
        """Move the clock. What comes due on the way happens at its time.

        Arguments:
            seconds: How far to move it, at least 0.

        Raises:
            ValueError: If the seconds are negative.
            Exception: What a handler of the task raises.
        """
        if seconds < 0:
            raise ValueError(f"A clock does not go back: advance({seconds})")
        with self._working():
            self._consumer.timer.advance(seconds, after_each=self._deliver_retries)

    def revoke(self, call: SentCall | str) -> None:
        """Revoke a call, as ``app.control.revoke`` does. It takes effect if it has not run yet.

        Arguments:
            call: The call, or its id.
        """
        self._revoked.add(call if isinstance(call, str) else call.id)

    def stop(self) -> None:
        """Stop the worker warm. What is still buffered goes back to the broker and does not run.

        A second call does nothing.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        with self._working():
            self._consumer.close()
            self._step.stop(self._consumer)
            for entry in self._consumer.timer.armed:
                for request in entry.args:
                    if isinstance(request, MemberRequest):  # It waits for its ETA.
                        worker_state.task_ready(request)

    def _deliver(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> SentCall:
        task_id = options.get("task_id") or uuid()
        others = {name: value for name, value in options.items() if name != "task_id"}
        message = make_message(self.task, task_id, args, kwargs, others, now=self.now)
        call = self._calls.setdefault(task_id, SentCall(task_id, message))
        call.message = message
        receive = self._consumer.strategies[self.task.name]
        receive(message, None, message.ack_log_error, message.reject_log_error, ())
        return call

    def _deliver_retries(self) -> None:
        while self._retries and not self._is_stopped:
            sig = self._retries.pop(0)
            self._deliver(sig.args, sig.kwargs, sig.options)

    def _process(self, job: BatchJob) -> None:
        # As ``celery.worker.worker.WorkController`` does.
        with suppress(TaskRevokedError):
            job.execute_using_pool(self._pool)

    def _on_result(self, result: BatchResult) -> None:
        self.batches.append(result)
        for outcome in result:
            call = self._calls[outcome.request.id]
            call.state, call.result = outcome.state, outcome.result
            call.exception = outcome.exception
            if outcome.retry is not None and outcome.retry.sig is not None:
                self._retries.append(outcome.retry.sig)

    def _record(self, task_id: str, state: str, exc: BaseException) -> None:
        """Record what the main process says of a call that has not run."""
        call = self._calls.get(task_id)
        if call is not None:
            call.state, call.exception = state, exc

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Let the worker work, and leave the task and Celery's state as they were."""
        attributes = self.task.__dict__
        before = {name: attributes.get(name) for name in ("_backend", "Request")}
        revoked = [id for id in self._revoked if id not in worker_state.revoked]
        self.task.backend = self._backend
        for id in revoked:
            worker_state.revoked.add(id)
        try:
            yield
        finally:
            for name, value in before.items():
                attributes.pop(name, None)
                if value is not None:
                    attributes[name] = value
            for id in revoked:
                worker_state.revoked.discard(id)
        if self._pool.errors:
            raise self._pool.errors.pop()


def _request_class(request_class: type | str, clock: Clock) -> type:
    """Return a subclass of a task's ``Request`` class whose requests expire by this clock."""
    base = symbol_by_name(request_class)

    def maybe_expire(self: Any) -> bool:
        return self.expires is not None and clock.utc > self.expires

    attributes = {"__module__": base.__module__, "maybe_expire": maybe_expire}
    return type(base.__name__, (base,), attributes)
