"""Accounts for each request that has left the buffer. Runs in the worker's main process.

The worker hands each batch to ``Batches.flush``, which a subclass may override. The override may
leave requests out, raise, pass on a copy or several parts, or keep requests for later, on any
thread. When it returns, each request of the batch is in one of these states:

* **claimed**: a batch in the pool has the request. Or the request has ended, because it failed or
  was released to the broker.
* **left out**: its message is acknowledged, and Celery's request was notified as for a task that
  raises ``Ignore``. The override may still pass it on, and then it runs.

A request is claimed once, so it runs once, however often it is passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import RLock

from celery.exceptions import Ignore, Retry, Terminated
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from ..errors import error_info
from .acks import collect_acks
from .member_request import MemberRequest, notify

__all__ = ("Accounts",)

logger = get_logger(__name__)

LEFT_OUT = (
    "Task %s: flush() has left out %d of %d requests. They are acknowledged and ignored: their "
    "callers get no result. Pass all requests to super().flush(), and in the body call "
    "request.mark_as_done(), request.mark_as_failure() or request.reject() on those to leave out. "
    "To drop a request without this warning, call its acknowledge() or reject() in flush()."
)
#: What Celery's request does not treat as a failure, or raises again.
NO_FAILURES = (Retry, Terminated, MemoryError)

REPEATED = (
    "Task %s: flush() has passed on %d of %d requests again. A request runs once: these were sent "
    "to the pool before, have failed, or are with the broker again. Pass on each request once."
)


class Accounts:
    """Keeps account of the requests of one batch task, from the buffer to a batch.

    Its lock is held while a request that was left out is notified. Another thread may pass that
    request on at the same moment: it is still acknowledged once, and the worker knows of it while
    it runs. There is no I/O under the lock.

    Arguments:
        task_name: The name of the task, for the log.
    """

    def __init__(self, task_name: str) -> None:
        self._task_name = task_name
        self._lock = RLock()

    def claim(self, requests: Sequence[MemberRequest]) -> list[MemberRequest]:
        """Return the requests that may be sent to the pool now, and mark them as claimed."""
        claimed = []
        with self._lock:
            for request in requests:
                if not request.is_claimed:
                    request.is_claimed = True
                    claimed.append(request)
                    if request.is_left_out:
                        worker_state.task_reserved(request)
        if len(claimed) < len(requests):
            repeated = len(requests) - len(claimed)
            logger.warning(REPEATED, self._task_name, repeated, len(requests))
        return claimed

    def unclaim(self, requests: Iterable[MemberRequest]) -> None:
        """Allow requests that the pool did not get to be claimed again."""
        for request in requests:
            request.is_claimed = False

    def leave_out(self, batch: Sequence[MemberRequest]) -> None:
        """Acknowledge and ignore the requests of a batch that `flush` did not pass on.

        Log one warning for the batch. It does not count requests that `flush` has acknowledged or
        rejected.
        """
        for request in batch:
            if not request.is_claimed:
                break
        else:
            return
        unanswered = 0
        einfo = error_info(Ignore("left out by flush()"))
        with collect_acks(), self._lock:
            for request in _unclaimed(batch):
                request.is_left_out = True
                unanswered += not request.acknowledged
                notify(request.on_success, (True, einfo, 0.0), about=self._task_name)
        if unanswered:
            logger.warning(LEFT_OUT, self._task_name, unanswered, len(batch))

    def fail(self, batch: Sequence[MemberRequest], exc: Exception) -> int:
        """Fail the requests that `flush` had not passed on when it raised. Return their number."""
        rest = self._take(batch)
        reason = error_info(_as_failure(exc))
        with collect_acks():
            for request in rest:
                notify(request.fail, reason, about=self._task_name)
        return len(rest)

    def release(
        self, batch: Sequence[MemberRequest], release: Callable[[MemberRequest], None]
    ) -> None:
        """Release the requests that were not passed on, since their connection is lost."""
        for request in reversed(self._take(batch)):
            release(request)

    def _take(self, batch: Sequence[MemberRequest]) -> list[MemberRequest]:
        """Claim the remaining requests of a batch, so that nothing else runs them."""
        with self._lock:
            rest = _unclaimed(batch)
            for request in rest:
                request.is_claimed = True
        return rest


def _unclaimed(batch: Sequence[MemberRequest]) -> list[MemberRequest]:
    return [request for request in batch if not request.is_claimed]


def _as_failure(exc: Exception) -> Exception:
    """Return an exception that Celery's request handles as a failure, ``Ignore`` or ``Reject``."""
    if not isinstance(exc, NO_FAILURES):
        return exc
    failure = RuntimeError(f"flush() has raised {exc!r}")
    failure.__cause__ = exc
    return failure
