"""How a batch ends, and how its requests are notified. Runs in the worker's main process.

The pool calls `on_accepted` when it starts on the batch, and then

* `on_success` with one report for each request;
* `on_failure` if it could not run the batch, or lost the process that did;
* `on_timeout` when a time limit is reached.

Celery calls `terminate` when it has terminated or cancelled one of the requests. The other requests
of the batch have lost their process then.

"The ways of ending" in ``docs/architecture.rst`` has a table of them all.
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
from kombu.utils.uuid import uuid

from ..compat import TIMEOUT_IS_FAILURE
from ..errors import error_info, exception_of
from .acks import collect_acks
from .member_request import MemberRequest, notify
from .prefetch import Charge

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("BatchEndings", "Requests")

logger = get_logger(__name__)

Requests = Sequence[MemberRequest]


class BatchEndings:
    """A batch that the pool has: it notifies its requests by the methods of Celery's ``Request``.

    Arguments:
        task: The batch task.
        requests: The requests of the batch.
        charge: What the prefetch budget is charged for it, if it has room for batches.
    """

    def __init__(self, task: Batches, requests: Requests, charge: Charge | None) -> None:
        self.id: str = uuid()
        self.task = task
        self.requests = requests
        self._charge = charge
        self._lock = Lock()
        self._accepted = False
        #: Whether its greenlet was killed, and whether Celery has terminated one of its requests.
        self._killed = self._terminated = False
        #: What the pool has returned for it.
        self._result: ref[Any] | None = None

    def __str__(self) -> str:
        return f"Batch {self.task.name}[{self.id}]"

    @collect_acks()
    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The pool has started on the batch."""
        with self._lock:
            self._accepted = True
        self._notify_each(lambda request: request.on_accepted(pid, time_accepted))
        if self._charge is not None and not self.task.acks_late:
            self._charge.refund()

    @collect_acks()
    def on_success(self, returned: Any, **_: Any) -> None:
        """The pool is done with the batch.

        Arguments:
            returned: What `trace_batch` returned. Instead of it, some pools give the
                ``ExceptionInfo`` of a `SystemExit`, and the gevent pool ``(False, None, None)`` for
                a greenlet that was killed, as `revoke(terminate=True)` does.
        """
        if isinstance(returned, ExceptionInfo):
            return self.on_failure(returned)
        if not self.requests:
            return  # It was withdrawn, too late for the process that ran it.
        _, reports, runtime = returned
        if reports is None:
            return self._on_killed()
        for request, (failed, retval) in zip(self.requests, reports, strict=True):
            if failed and isinstance(retval.exception, ExceptionWithTraceback):
                # A pool without processes has not pickled it, which would have unwrapped it.
                retval.exception = retval.exception.exc
            notify(request.on_success, (failed, retval, runtime), about=self)
        self._finish()

    @collect_acks()
    def on_failure(self, exc_info: Any) -> None:
        """The pool could not run the batch, or lost the process that did."""
        if not self.requests:
            return
        exc = exception_of(exc_info)
        if isinstance(exc, Terminated | SystemExit) and self._is_any_ended():
            self._on_terminated()
        elif isinstance(exc, SystemExit | KeyboardInterrupt):
            lost = WorkerLostError(f"Worker exited prematurely: {exc!r}.")
            self._on_lost(error_info(lost), self.requests)
        elif isinstance(exc, TimeLimitExceeded):
            # `on_timeout` follows and does the rest.
            self._notify_each(
                lambda request: request.on_failure(
                    exc_info, send_failed_event=not TIMEOUT_IS_FAILURE, return_ok=True
                )
            )
            return
        elif isinstance(exc, WorkerLostError):
            self._on_lost(exc_info, self.requests)
        else:
            self._notify_each(lambda request: request.on_failure(exc_info))
        self._finish()

    def terminate(self, signum: int) -> None:
        """Tell the pool that Celery has terminated or cancelled a request on purpose."""
        result = None if self._result is None else self._result()
        if result is not None:
            result.terminate(signum)
        self._terminated = True
        self._notify_after_kill()

    def _on_killed(self) -> None:
        """The greenlet was killed because Celery terminated one request, which it notifies itself.

        Celery may not have done so yet: gevent does not wait for a greenlet to end.
        """
        if self._terminated or self.task.acks_late or self._is_any_ended():
            self._killed = True
            for request in self.requests:
                worker_state.task_ready(request)
                request.killed_job = self  # The pool has forgotten it.
            self._finish()
            self._notify_after_kill()
        else:
            self.on_failure(error_info(Terminated("killed")))

    def _notify_after_kill(self) -> None:
        """Notify the other requests, once the greenlet is gone and the first is notified."""
        # On a lost connection, Celery cancels all of them, one after the other.
        cancelled = any(request.is_cancelled for request in self.requests)
        if self._killed and self._terminated and not cancelled:
            self._on_terminated()

    def _on_terminated(self) -> None:
        """Notify the requests that were revoked; the other requests have lost their process."""
        for request in self.requests:
            if not request.is_ended:
                continue
            notify(request.on_failure, error_info(Terminated("revoked")), about=self)
            # Celery would announce it again if it was about to terminate this one too.
            request.time_start = None
        self._notify_lost()

    def _notify_lost(self) -> None:
        """Notify the requests that were neither revoked nor cancelled: their process is lost."""
        lost = [request for request in self.requests if not request.is_ended]
        if lost:
            reason = "Its process was ended to terminate another request of the batch."
            self._on_lost(error_info(WorkerLostError(reason)), lost)

    def _on_lost(self, exc_info: Any, requests: Sequence[MemberRequest]) -> None:
        """The process is lost, and with it the outcomes of these requests."""
        logger.error(
            "Batch %s[%s] of %d requests was lost: %s",
            self.task.name,
            self.id,
            len(requests),
            exception_of(exc_info),
        )
        for request in requests:
            # All that Celery does not do then is to log it once more.
            notify(lambda lost: lost.on_failure(exc_info, return_ok=True), request, about=self)

    @collect_acks()
    def on_timeout(self, soft: bool, timeout: float) -> None:
        """The batch has reached a time limit."""
        if soft:
            logger.warning(
                "Batch %s[%s] of %d requests: soft time limit (%ss) exceeded",
                self.task.name,
                self.id,
                len(self.requests),
                timeout,
            )
        for request in self.requests:
            # For a soft limit, Celery's own method does nothing but log it.
            if not soft or type(request).on_timeout is not Request.on_timeout:
                notify(lambda one: one.on_timeout(soft, timeout), request, about=self)
        if not soft:
            self._finish()

    def _is_any_ended(self) -> bool:
        return any(request.is_ended for request in self.requests)

    def _notify_each(self, callback: Callable[[MemberRequest], None]) -> None:
        for request in self.requests:
            notify(callback, request, about=self)

    def _finish(self) -> None:
        if self._charge is not None:
            self._charge.finish()
