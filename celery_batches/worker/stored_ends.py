"""Finds the requests that had ended before their batch was lost. Runs in the worker's main process.

A process that is lost, or that the worker ends, cannot report on its batch. But some requests may
have ended: the body has marked them by the result backend, or their outcomes were applied. They
must hear of nothing else: their links were sent. The process has noted them in the record of the
batch, and the result backend has their results, if they are stored.
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
from ..core.end_record import End
from ..errors import error_info

if TYPE_CHECKING:
    from ..task import Batches
    from .member_request import MemberRequest

__all__ = ("Report", "find_reports", "told_failures")

#: As the pool makes it for a request: whether it failed, and what with.
Report: TypeAlias = "tuple[bool, str | ExceptionInfo | None]"

#: With these exceptions, Celery's ``Request`` does something else than report a failure. Here they
#: are nothing but the reason of one.
SPECIAL_EXCEPTIONS = (
    *(Ignore, Reject, Retry, Terminated, TimeLimitExceeded, WorkerLostError),
    MemoryError,
)


#: The states of these ends in the result backend. The other ends have none.
STATES = {End.DONE: states.SUCCESS, End.FAILED: states.FAILURE, End.RETRIED: states.RETRY}

#: The process was lost with what it knew of a failure that is not stored.
UNKNOWN_FAILURE = "It had failed before its process was lost"


def find_reports(
    task: Batches, requests: Sequence[MemberRequest], noted: Mapping[str, End] | None = None
) -> dict[str, Report]:
    """Return a report for each request that has ended, by id.

    Call it when the process of the batch has ended, since it may store more until then.

    Arguments:
        task: The batch task.
        requests: The requests.
        noted: Those that have ended, as the process has noted it, by id. None if it noted nothing,
            since it shares no memory with this one.
    """
    known = noted or {}
    by_id = {request.id: request for request in requests}
    reports = {task_id: _noted_report(end) for task_id, end in known.items() if task_id in by_id}
    failed: set[str] = set()
    dates: dict[str, datetime | None] = {}
    for task_id, end in look_up_ends(task.backend, _stored(requests, known)):
        is_known = task_id in known
        # The state of an earlier run has no date. The pool sends a request again before it stores
        # this state.
        if not is_known and end.state == states.RETRY and not by_id[task_id].is_first_run:
            continue
        if is_known and end.state != STATES[known[task_id]]:
            continue
        if not is_known and end.state == states.FAILURE:
            failed.add(task_id)
        reports[task_id], dates[task_id] = _report(task, end), end.date_done
    awaited = {task_id for task_id in failed if by_id[task_id].is_awaited_on_failure}
    told = told_failures(
        failed, awaited, dates, since=_started(requests), are_noted=noted is not None
    )
    for task_id in failed - told:
        del reports[task_id]
    return reports


def _stored(requests: Sequence[MemberRequest], known: Mapping[str, End]) -> list[str]:
    """Return the ids of the requests of which the result backend may have an end."""
    return [
        request.id
        for request in requests
        if request.store_errors and (request.id not in known or known[request.id] in STATES)
    ]


def _started(requests: Sequence[MemberRequest]) -> datetime | None:
    started = min((each.time_start for each in requests if each.time_start), default=None)
    return None if started is None else datetime.fromtimestamp(started, timezone.utc)


def told_failures(
    failed: set[str],
    awaited: set[str],
    dates: Mapping[str, datetime | None],
    *,
    since: datetime | None,
    are_noted: bool = False,
) -> set[str]:
    """Return the failed requests of a lost batch that need not be told of their failure again.

    Celery stores a failure before it notifies the errbacks, the chain and the chord of a request.
    The pool does this for one request after the other, and then notes it. Without notes, only what
    was stored last may not have been told.

    Arguments:
        failed: The ids of the requests with a stored failure.
        awaited: Those of them that have errbacks, a chain or a chord.
        dates: When the end of each request was stored, be it a failure or a success.
        since: When the batch was started. An older failure is that of an earlier run.
        are_noted: Whether the process has noted which failures were told. These are not among them.
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
        and (task_id not in awaited or (date < last and not are_noted))
    }


def _noted_report(end: End) -> Report:
    """Return the report of a request of which nothing but its end is known."""
    match end:
        case End.DONE:
            return False, None
        case End.FAILED:
            exc: Exception = RuntimeError(UNKNOWN_FAILURE)
        case End.RETRIED:
            exc = Retry()
        case End.IGNORED:
            exc = Ignore()
        case End.REJECTED | End.REQUEUED:
            exc = Reject("rejected by the body", requeue=end is End.REQUEUED)
    return True, _error_info(exc)


def _error_info(exc: Exception) -> ExceptionInfo:
    info = error_info(exc)
    info.exception = exc  # As in Celery's main process, without billiard's wrapper.
    return info


def _report(task: Batches, end: StoredEnd) -> Report:
    if end.state == states.SUCCESS:
        return False, saferepr(end.result, task.resultrepr_maxsize)
    exc = end.result
    if end.state == states.RETRY:
        exc = Retry(exc=exc if isinstance(exc, Exception) else None)
    elif not isinstance(exc, Exception) or isinstance(exc, SPECIAL_EXCEPTIONS):
        exc = RuntimeError(repr(exc))
    info = _error_info(exc)
    info.traceback = end.traceback or info.traceback
    return True, info
