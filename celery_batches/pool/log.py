"""Logs one line for each batch. Runs in the pool."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.app.trace import get_log_policy
from celery.exceptions import Retry
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr
from kombu.utils.encoding import safe_repr

from ..backends.state import keeps_results
from ..core.outcomes import Unmarked, tally
from ..errors import error_info
from .continuations import is_awaited
from .endings import outcome_of

if TYPE_CHECKING:
    from .run import BatchRun

__all__ = ("log_batch",)

#: Logging configurations can rely on this name, wherever the module is.
logger = get_logger("celery_batches.trace")

#: How many characters of a list of results are logged. To write out long ones takes its time.
MAX_RESULTS = 200

#: The attribute of a task that has logged `LOG_NO_RESULT` in this process.
HAS_LOGGED = "__has_logged_no_result__"

LOG_BATCH = "Batch %(name)s[%(id)s] of %(size)d requests, flushed by %(trigger)s, "
LOG_SUCCESS = LOG_BATCH + "succeeded in %(runtime)ss: %(return_value)s%(others)s"
ALL_FAILED = "every request has failed, the first with %s"
LOG_ENDED = LOG_BATCH + "%(description)s in %(runtime)ss: %(exc)s%(others)s"
LOG_UNMARKED = (
    "Batch %(name)s[%(id)s]: a link, chain or chord waits for %(count)d of its requests and does "
    "not continue, since the body has not marked them. Use request.mark_as_done(result). "
    "The first of them is %(first)r"
)

LOG_NO_RESULT = (
    "Task %(name)s: the body has returned and left %(count)d of %(size)d requests without an "
    "outcome, so their callers wait for ever. The first of them is %(first)r. %(fix)s. If nobody "
    "waits for results, set ignore_result=True. This is logged once for each task and process"
)
MARK = (
    "Call request.mark_as_done(result) for each request, or set return_results=True and return a "
    "list of their results"
)
RETURN = (
    "The body has returned a %(type)s with one item for each request: set return_results=True to "
    "make these the results. Or call request.mark_as_done(result) for each request"
)


def log_batch(batch: BatchRun) -> None:
    """Log one line for a batch, and at level DEBUG one for each request."""
    context = {
        "name": batch.task.name,
        "id": batch.id,
        "size": len(batch.requests),
        "trigger": batch.trigger,
        "waited": batch.info.waited,
        "runtime": batch.runtime,
        "hostname": batch.hostname,
    }
    error = batch.end.error if batch.failure is None else batch.failure
    counts = tally((applied.kind for applied in batch.applied), usual=_usual(error))
    notes = [
        counts,
        f"{len(batch.duplicates)} duplicates" if batch.duplicates else "",
        f"body ran {batch.body_runs} times" if batch.body_runs > 1 else "",
    ]
    others = ", ".join(filter(None, notes))
    context["others"] = f" ({others})" if others else ""
    if error is None:
        if logger.isEnabledFor(logging.INFO):
            context["return_value"] = _returned(batch)
            logger.info(LOG_SUCCESS, context, extra={"data": context})
    elif isinstance(error, Retry):
        context.update(description="retried", exc=str(error))
        logger.info(LOG_ENDED, context, extra={"data": context})
    elif batch.has_failed_by_requests:
        # Each request has a line of its own, at the level that its exception has.
        context.update(description="failed", exc=ALL_FAILED % safe_repr(error))
        logger.info(LOG_ENDED, context, extra={"data": context})
    else:
        _log_error(batch, error, context)
    _log_unmarked(batch, context)
    if logger.isEnabledFor(logging.DEBUG):
        for request, applied in zip(batch.requests, batch.applied, strict=False):
            logger.debug("Batch %s had %r: %s", batch.id, request, applied.kind)


def _returned(batch: BatchRun) -> str:
    longest = batch.task.resultrepr_maxsize
    if batch.task.return_results:
        # The results, each of which is written out elsewhere too.
        longest = min(longest, MAX_RESULTS)
    text: str = saferepr(batch.end.retval, longest)
    return text


def _usual(error: BaseException | None) -> frozenset[str]:
    """Return the kinds of outcome that the line does not count."""
    if error is None:
        return frozenset({"done", "unmarked"})
    return frozenset({outcome_of(error).kind})


def _log_error(batch: BatchRun, error: BaseException, context: dict[str, Any]) -> None:
    einfo = (batch.end.einfo if error is batch.end.error else None) or error_info(error)
    policy = get_log_policy(batch.task, einfo, error)
    context.update(description=policy.description, exc=safe_repr(error), traceback=einfo.traceback)
    logger.log(
        policy.severity,
        LOG_ENDED,
        context,
        exc_info=error if policy.traceback else None,
        extra={"data": context},
    )


def _log_unmarked(batch: BatchRun, context: dict[str, Any]) -> None:
    unmarked = [
        request
        for request, applied in zip(batch.requests, batch.applied, strict=False)
        if isinstance(applied.outcome, Unmarked)
    ]
    if not unmarked:
        return
    awaited = [request for request in unmarked if is_awaited(request)]
    if awaited:
        details = {**context, "count": len(awaited), "first": awaited[0]}
        logger.warning(LOG_UNMARKED, details, extra={"data": details})
    # The result of an eager call is what the body returns.
    if batch.eager or not keeps_results(batch.task.backend):
        return
    without_result = [request for request in unmarked if not request.ignore_result]
    if without_result and not batch.task.__dict__.get(HAS_LOGGED):
        batch.task.__dict__[HAS_LOGGED] = True
        details = {**context, "count": len(without_result), "first": without_result[0]}
        details["fix"] = _fix(batch)
        logger.warning(LOG_NO_RESULT, details, extra={"data": details})


def _fix(batch: BatchRun) -> str:
    returned = batch.end.retval
    if isinstance(returned, list | tuple) and len(returned) == len(batch.active):
        return RETURN % {"type": type(returned).__name__}
    return MARK
