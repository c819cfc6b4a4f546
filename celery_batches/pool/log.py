"""What the worker's log says of a batch. Runs in the pool."""

from __future__ import annotations

import logging
from typing import Any

from celery.app.trace import get_log_policy
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr

from ..core.outcomes import tally
from .context import describe

__all__ = ("log_batch",)

#: The name that this has always had in the log.
logger = get_logger("celery_batches.trace")

LOG_BATCH = "Batch %(name)s[%(id)s] of %(size)d requests, flushed by %(trigger)s, "
LOG_SUCCESS = LOG_BATCH + "succeeded in %(runtime)ss: %(return_value)s%(others)s"
LOG_ENDED = LOG_BATCH + "%(description)s in %(runtime)ss: %(exc)s%(others)s"
LOG_UNMARKED = (
    "Batch %(name)s[%(id)s]: a link, chain or chord waits for %(count)d of its requests, and does "
    "not go on, since the body has not said how they ended. Use request.mark_as_done(result). "
    "The first of them is %(first)r"
)


def log_batch(trace: Any) -> None:
    """Log what became of a batch: one line, and one for each request at level DEBUG."""
    context = {
        "name": trace.task.name,
        "id": trace.batch_id,
        "size": len(trace.requests),
        "trigger": trace.trigger,
        "runtime": trace.runtime,
        "hostname": trace.hostname,
    }
    error = next(iter(trace.exhausted), trace.error)
    others = tally((s.kind for s in trace.settled), usual=_usual(trace.error))
    context["others"] = f" ({others})" if others else ""
    if error is None:
        context["return_value"] = saferepr(trace.retval, trace.task.resultrepr_maxsize)
        logger.info(LOG_SUCCESS, context, extra={"data": context})
    elif isinstance(error, Retry):
        context.update(description="retried", exc=str(error))
        logger.info(LOG_ENDED, context, extra={"data": context})
    else:
        _log_error(trace, error, context)
    _log_unmarked(trace, context)
    if logger.isEnabledFor(logging.DEBUG):
        for request, settled in zip(trace.requests, trace.settled, strict=False):
            logger.debug("Batch %s had %r: %s", trace.batch_id, request, settled.kind)


def _usual(error: BaseException | None) -> frozenset[str]:
    """Return the ways to end that need no mention."""
    if error is None:
        return frozenset({"done", "unmarked"})
    kinds = ((Retry, "retried"), (Reject, "rejected"), (Ignore, "ignored"))
    return frozenset({next((name for kind, name in kinds if isinstance(error, kind)), "failed")})


def _log_error(trace: Any, error: BaseException, context: dict[str, Any]) -> None:
    einfo = trace.einfo if error is trace.error else describe(error)
    policy = get_log_policy(trace.task, einfo, error)
    context.update(description=policy.description, exc=repr(error), traceback=einfo.traceback)
    logger.log(
        policy.severity,
        LOG_ENDED,
        context,
        exc_info=error if policy.traceback else None,
        extra={"data": context},
    )


def _log_unmarked(trace: Any, context: dict[str, Any]) -> None:
    waited_for = [
        request
        for request, settled in zip(trace.requests, trace.settled, strict=False)
        if settled.kind == "unmarked" and request._is_waited_for()
    ]
    if waited_for:
        details = {**context, "count": len(waited_for), "first": waited_for[0]}
        logger.warning(LOG_UNMARKED, details, extra={"data": details})
