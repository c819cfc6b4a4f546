"""One batch on its way through the pool and back. Runs in the worker's main process.

The worker takes a `BatchJob` for a request: the pool runs it as one task. What becomes of it is
told to each member by the callbacks of Celery's own ``Request``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any
from weakref import ref

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import (
    InvalidTaskError,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.request import Request
from kombu.utils.uuid import uuid

from ..compat import TIMEOUT_IS_FAILURE
from ..errors import error_info, exception_of
from ..pool.trace import trace_batch
from ..request import SimpleRequest
from .acks import collect_acks
from .body_args import BodyArguments
from .member_request import MemberRequest, SignalLog, terminate_with
from .prefetch import Charge

__all__ = ("BatchJob",)

logger = get_logger(__name__)

Requests = Sequence[MemberRequest]

#: A hard and a soft time limit in seconds, if there are such.
Limits = tuple[float | None, float | None]


class BatchJob:
    """A batch, as the worker hands it to the pool.

    Arguments:
        task: The batch task.
        requests: The ``celery.worker.request.Request`` of each member.
        trigger: Why the batch was flushed.
        hostname: Node name of the worker.
        still_ours: Called at the last moment, with the members that would run. Returns those that
            may, since their connection is not lost, and releases the rest.
        charge: What the prefetch budget is charged for it, if it has room for batches.
        body_args: Positional arguments for the body, if not just the members.
    """

    def __init__(
        self,
        task: Any,
        requests: Requests,
        *,
        trigger: str,
        hostname: str,
        still_ours: Callable[[Requests], Requests] | None = None,
        charge: Charge | None = None,
        body_args: BodyArguments | None = None,
    ) -> None:
        self.id: str = uuid()
        self.task = task
        self.requests = requests
        self.trigger = trigger
        self.hostname = hostname
        self.body_args = body_args
        self._still_ours = still_ours
        self._charge = charge
        #: What the pool holds while the batch waits there, unless the pool has processes.
        self._members: list[SimpleRequest] = []
        self._lock = Lock()
        self._accepted = False
        #: Whether its greenlet has come to its end, and whether Celery has brought that about.
        self._killed = self._terminated = False
        #: A weak reference to what the pool returned.
        self._result: Any = None

    def execute_using_pool(self, pool: Any, **_: Any) -> Any:
        """Send the batch to the pool, without the members that were revoked or have expired.

        Raises:
            celery.exceptions.TaskRevokedError: If no member is left, since all are revoked, their
                connection is lost, or the pool has refused the batch. The worker frees the slot of
                the pool then.
        """
        members, limits = self._take_members()
        # Before it is asked what is still ours: what is withdrawn after that leaves this list.
        self._members = members
        self._leave_lost(members)
        if not self.requests:
            self._finish()
            raise TaskRevokedError(self.id)
        try:
            result = self._apply_async(pool, members, limits)
        except Exception as exc:
            if self._accepted:
                raise
            self._fail(exc)
            raise TaskRevokedError(self.id) from exc
        self._result = None if result is None else ref(result)
        if result is not None:
            signalled: SignalLog = {}
            for request in self.requests:
                request.signalled = signalled
        return result

    def _apply_async(self, pool: Any, members: list[SimpleRequest], limits: set[Limits]) -> Any:
        terminate_with(self.requests, ref(self))
        hard, soft = self._batch_limits(pool, limits)
        args = None if self.body_args is None else self.body_args.fit(members)
        return pool.apply_async(
            trace_batch,
            args=(self.task.name, self.id, members, self.trigger, self.hostname, args),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=soft,
            timeout=hard,
            correlation_id=self.id,
        )

    @collect_acks()
    def _fail(self, exc: Exception) -> None:
        """The pool has refused the batch."""
        logger.critical(
            "Batch %s[%s] of %d requests fails, since the pool has refused it: %r",
            self.task.name,
            self.id,
            len(self.requests),
            exc,
            exc_info=True,
        )
        reason = error_info(exc)
        self._notify_each(lambda request: request.fail(reason))
        self._finish()

    def _batch_limits(self, pool: Any, limits: set[Limits]) -> Limits:
        """Return the tightest hard and soft time limit that any member has."""
        defaults, task = getattr(pool, "options", None) or {}, self.task
        hard, soft = zip(*limits, strict=True)
        return (
            _tightest(hard, task.time_limit or defaults.get("timeout")),
            _tightest(soft, task.soft_time_limit or defaults.get("soft_timeout")),
        )

    @collect_acks()
    def _take_members(self) -> tuple[list[SimpleRequest], set[Limits]]:
        """Return what the body is given, and what time limits there are among them.

        Of the requests, only those that it stands for are kept.
        """
        requests, members, limits = [], [], set()
        make = SimpleRequest.from_request
        if self.body_args is not None:
            make = self.body_args.simple_request
        for request in self.requests:
            try:
                if request.revoked():
                    continue
                its_limits = _time_limits(request)
                members.append(make(request))
            except Exception as exc:
                self._refuse(request, exc)
            else:
                requests.append(request)
                limits.add(its_limits)
        self.requests = requests
        return members, limits

    def _leave_lost(self, members: list[SimpleRequest]) -> None:
        """Keep only the requests whose connection is not lost, and their members."""
        if self._still_ours is None or not self.requests:
            return
        requests = self.requests
        ours = self._still_ours(requests)
        if len(ours) == len(requests):
            return
        kept = set(map(id, ours))
        with self._lock:
            if self.requests is requests:  # It was not withdrawn meanwhile.
                self.requests = ours
                pairs = zip(requests, members, strict=True)
                members[:] = [member for request, member in pairs if id(request) in kept]

    def _refuse(self, request: Any, exc: Exception) -> None:
        """Reject a request whose headers make no sense, and tell its caller and the log."""
        reason = InvalidTaskError(f"Cannot run {request.humaninfo()} in a batch: {exc!r}")
        reason.__cause__ = exc
        request.reject(requeue=False)
        # Celery logs what it is told.
        self._notify(request.on_failure, error_info(reason))

    def withdraw(self) -> Requests:
        """Return the members, unless the pool has started on them; the batch does not run then.

        Celery empties its own queues when a connection is lost, but not those inside of a pool of
        threads or greenlets.
        """
        with self._lock:
            if self._accepted:
                return ()
            withdrawn, self.requests = self.requests, ()
            self._members.clear()
        self._finish()
        return withdrawn

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
            self._notify(request.on_success, (failed, retval, runtime))
        self._finish()

    @collect_acks()
    def on_failure(self, exc_info: Any) -> None:
        """The pool could not run the batch, or lost the process that did."""
        if not self.requests:
            return
        exc = exception_of(exc_info)
        if isinstance(exc, Terminated | SystemExit) and any(
            request.is_ended for request in self.requests
        ):
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
        """Tell the pool that it was on purpose: Celery has terminated or cancelled a member."""
        result = self._result and self._result()
        if result is not None:
            result.terminate(signum)
        self._terminated = True
        self._notify_after_kill()

    def _on_killed(self) -> None:
        """A greenlet was killed, for the sake of members that Celery tells itself.

        It is in the middle of that, or has done it: gevent does not wait for a greenlet to end.
        """
        if (
            self._terminated
            or self.task.acks_late
            or any(request.is_ended for request in self.requests)
        ):
            self._killed = True
            for request in self.requests:
                worker_state.task_ready(request)
                request.killed_job = self  # The pool has forgotten it.
            self._finish()
            self._notify_after_kill()
        else:
            self.on_failure(error_info(Terminated("killed")))

    def _is_any_ended(self) -> bool:
        return any(request.is_ended for request in self.requests)

    def _notify_after_kill(self) -> None:
        """Tell the other members, once the greenlet is gone and Celery has told the first."""
        # On a lost connection, Celery cancels all of them, one after the other.
        cancelled = any(request.is_cancelled for request in self.requests)
        if self._killed and self._terminated and not cancelled:
            self._on_terminated()

    def _on_terminated(self) -> None:
        """Tell the members that were revoked. For the others, the process was lost."""
        for request in self.requests:
            if not request.is_ended:
                continue
            self._notify(request.on_failure, error_info(Terminated("revoked")))
            # Celery would announce it again if it was about to terminate this one too.
            request.time_start = None
        self._notify_lost()

    def _notify_lost(self) -> None:
        """Some members were revoked or cancelled: for the others, the process was lost."""
        lost = [request for request in self.requests if not request.is_ended]
        if lost:
            reason = "Its process was ended to terminate another request of the batch."
            self._on_lost(error_info(WorkerLostError(reason)), lost)

    def _on_lost(self, exc_info: Any, requests: Sequence[MemberRequest]) -> None:
        """The process is gone, and with it what it knew."""
        logger.error(
            "Batch %s[%s] of %d requests was lost: %s",
            self.task.name,
            self.id,
            len(requests),
            exception_of(exc_info),
        )
        for request in requests:
            # All that Celery does not do then is to log it once more.
            self._notify(lambda lost: lost.on_failure(exc_info, return_ok=True), request)

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
                self._notify(lambda one: one.on_timeout(soft, timeout), request)
        if not soft:
            self._finish()

    def _notify_each(self, callback: Callable[[Any], Any]) -> None:
        for request in self.requests:
            self._notify(callback, request)

    def _notify(self, callback: Callable[..., Any], argument: Any) -> None:
        """Call one member's callback; an error in it is not its neighbours' concern."""
        try:
            callback(argument)
        except Exception as exc:
            logger.exception("Batch %s[%s]: %r", self.task.name, self.id, exc)

    def _finish(self) -> None:
        if self._charge is not None:
            self._charge.finish()


def _time_limits(request: Any) -> Limits:
    """Return the hard and the soft limit of one call in seconds.

    Raises:
        TypeError: If they are not two numbers.
        ValueError: If they are not two.
    """
    hard, soft = request.time_limits
    return hard and hard + 0, soft and soft + 0


def _tightest(limits: Sequence[float | None], default: float | None) -> float | None:
    return min(filter(None, [limit or default for limit in limits]), default=None)
