"""How a batch ends, and how its requests are notified. Runs in the worker's main process.

The pool calls `on_accepted` when it starts the batch, and then

* `on_success` with one report for each request;
* `on_failure` if it could not run the batch, or lost the process that did;
* `on_timeout` when a time limit is reached.

Celery calls `terminate` when it has terminated or cancelled one of the requests. The other requests
of the batch have lost their process then.

A batch without reports may have requests that have ended. `lost_batch` reports them first.

"The ways of ending" in ``docs/architecture.rst`` has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import ref

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.request import Request

from ..compat import TIMEOUT_IS_FAILURE
from ..errors import UnstoredFailure, error_info, exception_of
from .acks import collect_acks
from .hard_limit import HardLimit
from .lost_batch import LostBatch, Requests
from .member_request import MemberRequest, notify
from .prefetch import Charge
from .redeliveries import suspecting

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("BatchEndings", "Requests")

logger = get_logger(__name__)


class BatchEndings(LostBatch):
    """A batch in the pool. It notifies its requests by the methods of Celery's ``Request``.

    Arguments:
        task: The batch task.
        requests: The requests of the batch.
        charge: Its charge on the prefetch budget, if the counter has an allowance for batches.
    """

    def __init__(self, task: Batches, requests: Requests, charge: Charge | None) -> None:
        super().__init__(task, requests)
        self._charge = charge
        self._lock = Lock()
        self._accepted = False
        #: Whether its greenlet was killed, and whether Celery has terminated one of its requests.
        self._killed = self._terminated = False
        #: The handle that the pool has returned.
        self._result: ref[Any] | None = None
        #: Its hard time limit, unless the pool sees to it alone.
        self._limit: HardLimit | None = None

    @collect_acks()
    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Notify the requests that the pool has started the batch."""
        with self._lock:
            self._accepted = True
        self._pid = pid
        if self._limit is not None:
            self._limit.start(self._on_limit)
        self._notify_each(lambda request: request.on_accepted(pid, time_accepted))
        if self._charge is not None and not self.task.acks_late:
            self._charge.refund()

    @collect_acks()
    def on_success(self, returned: Any, **_: Any) -> None:
        """Notify each request of its report, since the pool has run the batch.

        Arguments:
            returned: The value that `trace_batch` returned. Some pools pass the ``ExceptionInfo``
                of a `SystemExit` instead. The gevent pool passes ``(False, None, None)`` for a
                greenlet that was killed, for example by `revoke(terminate=True)`.
        """
        if isinstance(returned, ExceptionInfo):
            return self.on_failure(returned)
        _, reports, runtime = returned
        if reports is not None:
            self._record.close()
        if not self.requests:
            return  # It was withdrawn, but the process had started it already.
        if reports is None:
            return self._on_killed()
        for request, (failed, retval) in zip(self.requests, reports, strict=True):
            if failed and isinstance(retval.exception, ExceptionWithTraceback):
                # Pickle unwraps it. A pool without processes does not pickle.
                retval.exception = retval.exception.exc
            if request.is_reported:
                continue
            if isinstance(retval, UnstoredFailure):
                notify(request.fail, retval, about=self)
            else:
                notify(request.on_success, (failed, retval, runtime), about=self)
        self._finish()

    @collect_acks()
    def on_failure(self, exc_info: ExceptionInfo) -> None:
        """Notify the requests that the pool could not run the batch, or lost its process."""
        if not self.requests:
            return
        exc = exception_of(exc_info)
        if isinstance(exc, Terminated | SystemExit) and self._is_any_ended():
            self._on_terminated()
        elif isinstance(exc, SystemExit | KeyboardInterrupt):
            lost = WorkerLostError(f"Worker exited prematurely: {exc!r}.")
            with suspecting(self.requests, is_lost=True):
                self._on_lost(error_info(lost), self.requests)
        elif isinstance(exc, TimeLimitExceeded):
            if self._limit is not None:
                exc = TimeLimitExceeded(self._limit.seconds)
                exc_info = error_info(exc)
            self._end_by_limit(exc)
            # The pool calls `on_timeout` next, which does the rest.
            with suspecting(self.requests, is_lost=False):
                self._notify_each(
                    lambda request: request.on_failure(
                        exc_info, send_failed_event=not TIMEOUT_IS_FAILURE, return_ok=True
                    )
                )
            return
        elif isinstance(exc, WorkerLostError):
            with suspecting(self.requests, is_lost=True):
                self._on_lost(exc_info, self.requests)
        else:
            self._report_ended(self.requests, exc)
            self._notify_each(lambda request: request.on_failure(exc_info))
        self._finish()

    def terminate(self, signum: int) -> None:
        """Terminate the handle of the pool, after Celery has terminated or cancelled a request."""
        handle = self._handle
        if handle is not None:
            handle.terminate(signum)
        self._terminated = True
        self._notify_after_kill()

    def _on_killed(self) -> None:
        """Notify the requests of a batch whose greenlet was killed.

        The greenlet was killed because Celery terminated one member and will notify that member
        itself. Celery may not have done so yet, since gevent does not wait for a greenlet to end.
        """
        is_ending = self._is_ending or self._terminated
        if is_ending or self.task.acks_late or self._is_any_ended():
            self._killed = True
            for request in self.requests:
                worker_state.task_ready(request)
                request.killed_job = self  # The pool no longer has it.
            self._finish()
            self._notify_after_kill()
        else:
            self.on_failure(error_info(Terminated("killed")))

    def _notify_after_kill(self) -> None:
        """Notify the remaining requests, after the greenlet has ended and one is notified."""
        # On a lost connection, Celery cancels all requests, one after the other.
        cancelled = any(request.is_cancelled for request in self.requests)
        if self._killed and self._terminated and not cancelled:
            self._on_terminated()

    def _on_terminated(self) -> None:
        """Notify the requests that were revoked; the other requests have lost their process."""
        for request in self.requests:
            if request.is_reported or not request.is_ended:
                continue
            notify(request.on_failure, error_info(Terminated("revoked")), about=self)
            # Without this, Celery sends the event again when it terminates this request too.
            request.time_start = None
        self._notify_lost()

    def _notify_lost(self) -> None:
        """Notify the requests that were neither revoked nor cancelled: their process is lost."""
        lost = [request for request in self.requests if not request.is_ended]
        if lost:
            reason = "Its process was ended to terminate another request of the batch."
            self._on_lost(error_info(WorkerLostError(reason)), lost)

    def _on_lost(self, exc_info: ExceptionInfo, requests: Sequence[MemberRequest]) -> None:
        """Notify these requests that their process was lost, and with it their outcomes."""
        requests = self._report_ended(requests, exception_of(exc_info))
        if not requests:
            return
        logger.error(
            "Batch %s[%s] of %d requests was lost: %s",
            self.task.name,
            self.id,
            len(requests),
            exception_of(exc_info),
        )
        for request in requests:
            # With `return_ok`, Celery does not log each request again.
            notify(lambda lost: lost.on_failure(exc_info, return_ok=True), request, about=self)

    @collect_acks()
    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Notify the requests that the batch has reached a time limit."""
        if soft:
            logger.warning(
                "Batch %s[%s] of %d requests: soft time limit (%ss) exceeded",
                self.task.name,
                self.id,
                len(self.requests),
                timeout,
            )
        else:
            timeout = timeout if self._limit is None else self._limit.seconds
            self._end_by_limit(TimeLimitExceeded(timeout))
        for request in self._unreported():
            # For a soft limit, Celery's own method only logs.
            if not soft or type(request).on_timeout is not Request.on_timeout:
                notify(lambda one: one.on_timeout(soft, timeout), request, about=self)
        if not soft:
            self._finish()

    def _on_limit(self) -> None:
        """Have the pool end the batch, unless its body has ended. The pool tells of that."""
        handle, limit = self._handle, self._limit
        if limit is None or handle is None:
            return
        if not self._record.has_body_ended:
            limit.end(handle)
            return
        logger.warning(
            "%s of %d requests: hard time limit (%ss) exceeded after its body. Until %ss, its "
            "outcomes are still applied.",
            *(self, len(self.requests), limit.seconds, limit.for_pool),
        )

    @property
    def _handle(self) -> Any:
        return None if self._result is None else self._result()

    def _is_any_ended(self) -> bool:
        return any(request.is_ended for request in self.requests)

    def _notify_each(self, callback: Callable[[MemberRequest], None]) -> None:
        for request in self._unreported():
            notify(callback, request, about=self)

    def _finish(self) -> None:
        self._record.leave(self._pid)
        if self._limit is not None:
            self._limit.cancel()
        if self._charge is not None:
            self._charge.finish()
