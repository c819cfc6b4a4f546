"""Logs the requests of a batch that have failed by an exception of their own. Runs in the pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery.app.trace import get_log_policy
from celery.utils.log import get_logger
from kombu.utils.encoding import safe_repr

from ..core.outcomes import Failed
from ..core.short_repr import short_repr
from ..errors import error_info
from ..request import SimpleRequest

if TYPE_CHECKING:
    from .applied import Applied
    from .run import BatchRun

__all__ = ("log_own_failures",)

#: Logging configurations can rely on this name, wherever the module is.
logger = get_logger("celery_batches.trace")

#: How many requests of a batch have a line, at each level of the log.
MOST_LINES = 10

#: Stands in for an ``ExceptionInfo``, of which the policy reads this only.
NOT_INTERNAL = SimpleNamespace(internal=False)

#: The words and the keys of Celery's line for a task that fails.
LOG_FAILURE = "Task %(name)s[%(id)s] %(description)s: %(exc)s"
LOG_MORE = (
    "Batch %(name)s[%(id)s]: %(count)d more of its %(size)d requests have failed like the "
    "%(lines)d above, each by an exception of its own"
)


def log_own_failures(
    batch: BatchRun, requests: Sequence[SimpleRequest], applied: Sequence[Applied]
) -> None:
    """Log a line for each request that has failed by an exception of its own.

    The exceptions with which the batch has failed as a whole are in the line of the batch.

    Arguments:
        batch: The batch.
        requests: Requests of the batch.
        applied: What has become of each of them.
    """
    shared = {id(exc) for exc in batch.shared_errors}
    counts: Counter[int] = Counter()
    for request, each in zip(requests, applied, strict=True):
        failed = each.outcome
        if not isinstance(failed, Failed) or id(failed.exc) in shared:
            continue
        policy = get_log_policy(batch.task, NOT_INTERNAL, failed.exc)
        counts[policy.severity] += 1
        if counts[policy.severity] > MOST_LINES:
            continue
        context = _context(batch, request, failed, policy.description)
        logger.log(
            policy.severity,
            LOG_FAILURE,
            context,
            exc_info=failed.exc if policy.traceback else None,
            extra={"data": context},
        )
    for severity, count in counts.items():
        if count > MOST_LINES:
            _log_rest(batch, severity, count - MOST_LINES)


def _context(
    batch: BatchRun, request: SimpleRequest, failed: Failed, description: str
) -> dict[str, Any]:
    """Return what the line says, and more for the handlers of a logging configuration."""
    return {
        "hostname": batch.hostname,
        "id": request.id,
        "name": request.name,
        "exc": safe_repr(failed.exc),
        "traceback": error_info(failed.exc).traceback,
        "args": request.get("argsrepr") or short_repr(request.args),
        "kwargs": request.get("kwargsrepr") or short_repr(request.kwargs),
        "description": failed.description or description,
        "internal": False,
        "batch": batch.id,
    }


def _log_rest(batch: BatchRun, severity: int, count: int) -> None:
    context = {
        "hostname": batch.hostname,
        "id": batch.id,
        "name": batch.task.name,
        "size": len(batch.requests),
        "count": count,
        "lines": MOST_LINES,
    }
    logger.log(severity, LOG_MORE, context, extra={"data": context})
