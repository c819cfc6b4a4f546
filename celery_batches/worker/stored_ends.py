"""Finds the requests that had ended before their batch was lost. Runs in the worker's main process.

A process that is lost, or that the worker ends, cannot report on its batch. But some requests may
have ended: the body has marked them by the result backend, or their outcomes were applied. What the
result backend has of them is their report. They must hear of nothing else: their links were sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TypeAlias

from billiard.einfo import ExceptionInfo
from celery import states
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.utils.saferepr import saferepr

from ..backends.state_lookup import StoredEnd, look_up_ends
from ..errors import error_info

if TYPE_CHECKING:
    from ..task import Batches
    from .member_request import MemberRequest

__all__ = ("Report", "find_reports", "told_failures")

#: As the pool makes it for a request: whether it failed, and what with.
Report: TypeAlias = "tuple[bool, str | ExceptionInfo]"

#: With these exceptions, Celery's ``Request`` does something else than report a failure. Here they
#: are nothing but the reason of one.
SPECIAL_EXCEPTIONS = (
    *(Ignore, Reject, Retry, Terminated, TimeLimitExceeded, WorkerLostError),
    MemoryError,
)


def find_reports(task: Batches, requests: Sequence[MemberRequest]) -> dict[str, Report]:
    """Return a report for each request that has ended, by id.

    Call it when the process of the batch has ended, since it may store more until then.
    """
    by_id = {request.id: request for request in requests if request.store_errors}
    reports: dict[str, Report] = {}
    failed: set[str] = set()
    dates: dict[str, datetime | None] = {}
    for task_id, end in look_up_ends(task.backend, list(by_id)):
        # The state of an earlier run has no date. The pool sends a request again before it stores
        # this state.
        if end.state == states.RETRY and not by_id[task_id].is_first_run:
            continue
        if end.state == states.FAILURE:
            failed.add(task_id)
        reports[task_id], dates[task_id] = _report(task, end), end.date_done
    awaited = {task_id for task_id in failed if by_id[task_id].is_awaited_on_failure}
    for task_id in failed - told_failures(failed, awaited, dates, since=_started(requests)):
        del reports[task_id]
    return reports


def _started(requests: Sequence[MemberRequest]) -> datetime | None:
    started = min((each.time_start for each in requests if each.time_start), default=None)
    return None if started is None else datetime.fromtimestamp(started, timezone.utc)


def told_failures(
    failed: set[str],
    awaited: set[str],
    dates: Mapping[str, datetime | None],
    *,
    since: datetime | None,
) -> set[str]:
    """Return the failed requests of a lost batch that need not be told of their failure again.

    Celery stores a failure before it notifies the errbacks, the chain and the chord of a request.
    The pool does this for one request after the other. So only what was stored last may not have
    been told.

    Arguments:
        failed: The ids of the requests with a stored failure.
        awaited: Those of them that have errbacks, a chain or a chord.
        dates: When the end of each request was stored, be it a failure or a success.
        since: When the batch was started. An older failure is that of an earlier run.
    """
    known = [date for date in dates.values() if date is not None]
    if since is None or not known:
        return set()
    last = max(known)
    return {
        task_id
        for task_id in failed
        if (date := dates[task_id]) is not None
        and date >= since
        and (date < last or task_id not in awaited)
    }


def _report(task: Batches, end: StoredEnd) -> Report:
    if end.state == states.SUCCESS:
        return False, saferepr(end.result, task.resultrepr_maxsize)
    exc = end.result
    if end.state == states.RETRY:
        exc = Retry(exc=exc if isinstance(exc, Exception) else None)
    elif not isinstance(exc, Exception) or isinstance(exc, SPECIAL_EXCEPTIONS):
        exc = RuntimeError(repr(exc))
    info = error_info(exc)
    info.exception = exc  # As in Celery's main process, without billiard's wrapper.
    info.traceback = end.traceback or info.traceback
    return True, info
