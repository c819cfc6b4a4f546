"""One batch on its way through the pool and back. Runs in the worker's main process.

The worker takes a `BatchJob` for a request: the pool runs it as one task. What becomes of it is
told to each member by the callbacks of Celery's own ``Request``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import TaskRevokedError, Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils.functional import maybe_list
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.request import Request
from kombu.utils.uuid import uuid

from .compat import TIMEOUT_IS_FAILURE
from .request import SimpleRequest
from .trace import trace_batch

__all__ = ("BatchJob",)

logger = get_logger(__name__)


class BatchJob:
    """A batch, as the worker hands it to the pool.

    Arguments:
        task: The batch task.
        requests: The ``celery.worker.request.Request`` of each member.
        trigger: Why the batch was flushed.
        hostname: Node name of the worker.
        on_released: Called once, when the broker counts none of the members any more.
        body_args: Positional arguments for the body, if not just the members.
    """

    def __init__(
        self,
        task: Any,
        requests: Sequence[Any],
        *,
        trigger: str,
        hostname: str,
        on_released: Callable[[], None],
        body_args: tuple[Any, ...] | None = None,
    ) -> None:
        self.id: str = uuid()
        self.task = task
        self.requests = requests
        self.trigger = trigger
        self.hostname = hostname
        self._on_released: Callable[[], None] | None = on_released
        self._body_args = body_args

    def execute_using_pool(self, pool: Any, **_: Any) -> Any:
        """Send the batch to the pool, without the members that were revoked or have expired.

        Raises:
            celery.exceptions.TaskRevokedError: If no member is left.
        """
        members = self._take_members()
        if not members:
            self._release()
            raise TaskRevokedError(self.id)
        hard, soft = self._batch_limits(pool)
        result = pool.apply_async(
            trace_batch,
            args=(self.task.name, self.id, members, self.trigger, self.hostname, self._body_args),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=soft,
            timeout=hard,
            correlation_id=self.id,
        )
        if result is not None:
            for request in self.requests:
                # Where `Request.terminate` looks for the pool's handle.
                request._apply_result = ref(result)
        return result

    def _batch_limits(self, pool: Any) -> tuple[float | None, float | None]:
        """Return the tightest hard and soft time limit that any member has."""
        defaults = getattr(pool, "options", None) or {}
        hard, soft = zip(*map(_time_limits, self.requests), strict=True)
        return (
            _tightest(hard, self.task.time_limit or defaults.get("timeout")),
            _tightest(soft, self.task.soft_time_limit or defaults.get("soft_timeout")),
        )

    def _take_members(self) -> list[SimpleRequest]:
        """Return what the body is given, and keep just the requests that it stands for."""
        requests, members = [], []
        for request in self.requests:
            try:
                if request.revoked():
                    continue
                _time_limits(request)
                members.append(SimpleRequest.from_request(request))
            except Exception as exc:
                self._refuse(request, exc)
            else:
                requests.append(request)
        self.requests = requests
        return members

    def _refuse(self, request: Any, exc: Exception) -> None:
        """Reject a request whose headers make no sense, and tell its caller."""
        logger.error("Cannot run %s in a batch: %r", request.humaninfo(), exc)
        request.reject(requeue=False)
        self._tell_one(request.on_failure, ExceptionInfo())

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The pool has started on the batch."""
        self._tell(lambda request: request.on_accepted(pid, time_accepted))
        if not self.task.acks_late:
            self._release()

    def on_success(self, returned: Any, **_: Any) -> None:
        """The pool is done with the batch.

        Arguments:
            returned: What `trace_batch` returned. Instead of it, some pools give the
                ``ExceptionInfo`` of a `SystemExit`, and the gevent pool ``(False, None, None)`` for
                a greenlet that was killed, as `revoke(terminate=True)` does.
        """
        if isinstance(returned, ExceptionInfo):
            return self.on_failure(returned)
        _, reports, runtime = returned
        if reports is None:
            return self._on_killed()
        for request, (failed, retval) in zip(self.requests, reports, strict=True):
            if failed and isinstance(retval.exception, ExceptionWithTraceback):
                # A pool without processes has not pickled it, which would have unwrapped it.
                retval.exception = retval.exception.exc
            self._tell_one(request.on_success, (failed, retval, runtime))
        self._release()

    def on_failure(self, exc_info: Any) -> None:
        """The pool could not run the batch, or lost the process that did."""
        exc = _exception_of(exc_info)
        if isinstance(exc, Terminated | SystemExit) and any(map(_is_ended, self.requests)):
            for request in filter(_is_ended, self.requests):
                self._tell_one(request.on_failure, _einfo(Terminated("revoked")))
            self._leave_behind()
        elif isinstance(exc, SystemExit | KeyboardInterrupt):
            lost = WorkerLostError(f"Worker exited prematurely: {exc!r}.")
            self._on_lost(_einfo(lost), self.requests)
        elif isinstance(exc, TimeLimitExceeded):
            # `on_timeout` follows and does the rest.
            self._tell(
                lambda request: request.on_failure(
                    exc_info, send_failed_event=not TIMEOUT_IS_FAILURE, return_ok=True
                )
            )
            return
        elif isinstance(exc, WorkerLostError):
            self._on_lost(exc_info, self.requests)
        else:
            self._tell(lambda request: request.on_failure(exc_info))
        self._release()

    def _on_killed(self) -> None:
        """A greenlet was killed, for the sake of a member that will be told by who does that."""
        if any(map(_is_ended, self.requests)):
            for request in filter(_is_ended, self.requests):
                worker_state.task_ready(request)
            self._leave_behind()
            self._release()
        else:
            self.on_failure(_einfo(Terminated("killed")))

    def _leave_behind(self) -> None:
        """Some members were revoked or cancelled: for the others, the process was lost."""
        lost = [request for request in self.requests if not _is_ended(request)]
        if lost:
            reason = "Its process was ended to terminate another request of the batch."
            self._on_lost(_einfo(WorkerLostError(reason)), lost)

    def _on_lost(self, exc_info: Any, requests: Sequence[Any]) -> None:
        """The process is gone, and with it what it knew."""
        logger.error(
            "Batch %s[%s] of %d requests was lost: %s",
            self.task.name,
            self.id,
            len(requests),
            _exception_of(exc_info),
        )
        for request in requests:
            # All that Celery does not do then is to log it once more.
            self._tell_one(lambda lost: lost.on_failure(exc_info, return_ok=True), request)

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
                self._tell_one(lambda one: one.on_timeout(soft, timeout), request)
        if not soft:
            self._release()

    def _tell(self, callback: Callable[[Any], Any]) -> None:
        for request in self.requests:
            self._tell_one(callback, request)

    def _tell_one(self, callback: Callable[..., Any], argument: Any) -> None:
        """Call one member's callback; an error in it is not its neighbours' concern."""
        try:
            callback(argument)
        except Exception as exc:
            logger.exception("Batch %s[%s]: %r", self.task.name, self.id, exc)

    def _release(self) -> None:
        on_released, self._on_released = self._on_released, None
        if on_released is not None:
            on_released()


def _time_limits(request: Any) -> tuple[float | None, float | None]:
    """Return the hard and the soft limit of one call in seconds.

    Raises:
        TypeError: If they are not two numbers.
        ValueError: If they are not two.
    """
    hard, soft = request.time_limits
    return hard and hard + 0, soft and soft + 0


def _tightest(limits: Sequence[float | None], default: float | None) -> float | None:
    return min(filter(None, [limit or default for limit in limits]), default=None)


def _is_ended(request: Any) -> bool:
    """Whether a request was ended while it ran, or is about to be told so."""
    told = request._already_revoked or request._already_cancelled
    return bool(told or request.id in worker_state.revoked or _is_revoked_by_stamp(request))


def _is_revoked_by_stamp(request: Any) -> bool:
    revoked = worker_state.revoked_stamps
    return any(
        stamp in (maybe_list(revoked.get(header)) or ())
        for header, stamps in request.stamps.items()
        for stamp in maybe_list(stamps) or ()
    )


def _exception_of(exc_info: Any) -> BaseException:
    exc: BaseException = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def _einfo(exc: Exception) -> ExceptionInfo:
    try:
        raise exc
    except type(exc):
        return ExceptionInfo()
