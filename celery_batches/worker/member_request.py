"""Celery's ``Request`` as a member of a batch. Runs in the worker's main process.

`MemberRequest` declares everything that this package adds to Celery's request. No other module
touches the private attributes of Celery's request.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.exceptions import Ignore, InvalidTaskError, Reject
from celery.utils.functional import maybe_list
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from kombu.utils.imports import symbol_by_name

from ..errors import error_info, exception_of

if TYPE_CHECKING:
    from weakref import ref

    from .endings import BatchEndings
    from .interfaces import TerminatingPool
    from .strategy import BatchStrategy

__all__ = ("MemberRequest", "SignalLog", "member_class", "notify")

logger = get_logger(__name__)

T = TypeVar("T")

#: The ids of the members that have sent a signal to the process of their batch, by signal.
SignalLog = dict[int, set[str]]


if TYPE_CHECKING:
    from .interfaces import Request as _Request
else:
    _Request = object


class MemberRequest(_Request):
    """Mixed into the ``Request`` class of a batch task.

    Celery ends a request by a signal to its process. On a cold shutdown, it does so for each
    running request. The members of a batch share one process, so this class sends each signal once.
    A second SIGTERM would kill a process that cleans up after the first.

    A member may have ended before its process gets the signal. It is reported as what it is then,
    and neither revoked nor cancelled.
    """

    #: Whether a batch has this request, or it has ended. Nothing else may run it.
    is_claimed: bool = False
    #: Whether `flush` has left it out. It is acknowledged and ignored, but may still run.
    is_left_out: bool = False
    #: The strategy that has buffered this request.
    strategy: BatchStrategy | None = None
    #: When it was buffered, in seconds of the worker's monotonic clock.
    arrival: float = 0.0
    #: 0, or more if it may cost its batch the process, and runs in a smaller one.
    suspect_level: int = 0
    #: Whether its message was requeued.
    is_requeued: bool = False
    #: The signals that the members of its batch have sent. All members share one log.
    signalled: SignalLog | None = None
    #: Its batch after its greenlet was killed, since Celery still has to terminate this request.
    killed_job: BatchEndings | None = None
    #: Whether it was reported as the result backend has it. It must hear of nothing else.
    is_reported: bool = False

    def terminate(self, pool: TerminatingPool, signal: Any = None) -> Any:
        """End this request, because it was revoked."""
        with suppress(_Reported):
            return super().terminate(_Once(self, pool), signal)

    def cancel(self, pool: TerminatingPool, signal: Any = None, **options: Any) -> Any:
        """End this request, because the worker stops or has lost its connection."""
        with suppress(_Reported):
            return super().cancel(_Once(self, pool), signal, **options)

    def reject(self, requeue: bool = False) -> None:
        """Reject or requeue the message. The worker knows a requeued one when it comes again."""
        if requeue and not self.acknowledged and self.strategy is not None:
            self.is_requeued = True
            self.strategy.redeliveries.remember(self)
        super().reject(requeue=requeue)

    def terminate_with(self, job: ref[BatchEndings]) -> None:
        """Have Celery call ``terminate`` of the batch after it has terminated or cancelled this."""
        self._apply_result = job

    @property
    def job(self) -> BatchEndings | None:
        """Its batch, while the pool has it."""
        return None if self._apply_result is None else self._apply_result()

    def report(self, failed: bool, retval: Any) -> None:
        """Complete this request as the result backend has it. Its process can tell no more."""
        self.is_reported = True
        self.on_success((failed, retval, None))

    def _success_was_stored(self) -> Any:
        """Tell Celery 5.7 and newer that it need not look: the batch has looked for all members."""
        return False

    def fail(self, exc_info: ExceptionInfo) -> None:
        """Fail like a task that raises, and store the failure. Log nothing.

        For a request that the pool never got, or whose failure the pool could not store.

        Celery's own method logs each request of a batch separately. With ``return_ok`` it does not,
        but then it does not store the result either.
        """
        if not self.task.acks_late:
            self.acknowledge()  # As when the pool accepts a task.
        self.on_failure(exc_info, return_ok=True)
        exc = exception_of(exc_info)
        if isinstance(exc, Ignore | Reject):
            return
        self._store_failure(exc)
        self.task.request_stack.push(self._context)
        try:
            signals.task_failure.send(
                sender=self.task,
                task_id=self.id,
                exception=exc,
                args=self.args,
                kwargs=self.kwargs,
                traceback=exc_info.traceback,
                einfo=exc_info,
            )
        finally:
            self.task.request_stack.pop()

    def _store_failure(self, exc: BaseException, *, attempts: int = 2) -> None:
        try:
            self.task.backend.mark_as_failure(
                self.id, exc, request=self._context, store_result=self.store_errors
            )
        except Exception:
            if attempts == 1:
                raise
            # A lost connection is noticed when it is used. The next attempt makes a new one.
            self._store_failure(exc, attempts=attempts - 1)

    def refuse(self, exc: Exception) -> None:
        """Reject this request, whose headers cannot be used in a batch, and fail it."""
        reason = InvalidTaskError(f"Cannot run {self.humaninfo()} in a batch: {exc!r}")
        reason.__cause__ = exc
        self.reject(requeue=False)
        self.on_failure(error_info(reason))  # Celery logs the error.

    @property
    def is_redelivered(self) -> bool:
        """Whether the broker says that it has delivered the message before."""
        return bool(self.delivery_info.get("redelivered"))

    @property
    def is_retried_when_lost(self) -> bool:
        """Whether Celery 5.7 and newer send it again if its process is lost."""
        most = self.task.max_retries
        return bool(getattr(self.task, "retry_on_worker_lost", False)) and (
            most is None or self._context.retries < most
        )

    @property
    def is_first_run(self) -> bool:
        """Whether its message was neither delivered nor retried before."""
        return not (self.delivery_info.get("redelivered") or self._context.retries)

    @property
    def is_awaited_on_failure(self) -> bool:
        """Whether a failure of this request has to be told to an errback, a chain or a chord."""
        context = self._context
        return bool(context.errbacks or context.chain or context.chord)

    @property
    def is_cancelled(self) -> bool:
        """Whether Celery has cancelled this request, on a stop or a lost connection."""
        return self._already_cancelled

    @property
    def is_ended(self) -> bool:
        """Whether Celery has ended this request while it ran, or is about to."""
        return bool(
            self._already_revoked
            or self._already_cancelled
            or self.id in worker_state.revoked
            or self._is_revoked_by_stamp()
        )

    def _is_revoked_by_stamp(self) -> bool:
        revoked = worker_state.revoked_stamps
        return any(
            stamp in (maybe_list(revoked.get(header)) or ())
            for header, stamps in self.stamps.items()
            for stamp in maybe_list(stamps) or ()
        )


class _Reported(Exception):
    """The request has ended before, so Celery must not announce that it was ended."""


class _Once:
    """Stands in for the pool. It does not repeat a signal that another member has sent."""

    def __init__(self, request: MemberRequest, pool: TerminatingPool) -> None:
        self._request = request
        self._pool = pool

    def terminate_job(self, pid: int, signal: int) -> None:
        """Send the signal. Celery then announces the end of the request.

        Raises:
            _Reported: If the request had ended, and is reported as what it is.
        """
        request, job = self._request, self._request.job
        senders = (
            set() if request.signalled is None else request.signalled.setdefault(signal, set())
        )
        # As in Celery, a member may send the same signal again.
        if not senders or request.id in senders:
            with nullcontext() if job is None else job.ending_process(pid):
                self._pool.terminate_job(pid, signal)
        senders.add(request.id)
        if request.is_reported:
            if job is not None:
                job.terminate(signal)
            raise _Reported(request.id)


def notify(callback: Callable[[T], Any], argument: T, *, about: object) -> None:
    """Call a method of one request, and log an error in it, for the sake of the other requests.

    Arguments:
        callback: The method.
        argument: Its argument.
        about: The batch or task to name in the log.
    """
    try:
        callback(argument)
    except Exception as exc:
        logger.exception("%s: cannot notify a request: %r", about, exc)


def member_class(request_class: type | str) -> type[MemberRequest]:
    """Return a subclass of a task's ``Request`` class for members of batches."""
    base = symbol_by_name(request_class)
    if issubclass(base, MemberRequest):
        members: type[MemberRequest] = base
        return members
    return type(base.__name__, (MemberRequest, base), {"__module__": base.__module__})
