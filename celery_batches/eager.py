"""Runs one call here and now, as a batch of one. Runs in the caller's process."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionInfo
from celery._state import _task_stack
from celery.result import EagerResult
from celery.utils.functional import maybe_list
from celery.utils.nodenames import gethostname

from .compat import eager_result
from .core.context_keys import CONTEXT_KEYS
from .core.outcomes import Done, Failed, Ignored, Outcome, Rejected, Retried
from .pool.endings import STATES
from .pool.run import BatchRun
from .request import SimpleRequest

__all__ = ("apply_eagerly",)

#: The calling options that a call's context keeps.
EAGER_KEYS = CONTEXT_KEYS | {"headers"}


def apply_eagerly(
    task: Any,
    task_id: str,
    args: Any,
    kwargs: Any,
    *,
    propagate: bool,
    loglevel: int | None,
    logfile: str | None,
    **context: Any,
) -> EagerResult:
    """Run a call of a batch task as a batch of one, which goes by the id of the call.

    Arguments:
        task: The batch task.
        task_id: Id of the call.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        propagate: Whether to raise what the body raises.
        loglevel: For ``task.request.loglevel``.
        logfile: For ``task.request.logfile``.
        **context: What else there is to know of the call, as the headers of a message say it.

    Returns:
        What the body has marked the call with, or else what it returned.
    """
    hostname = gethostname()
    request = _eager_request(task, task_id, args, kwargs, hostname, context)
    batch = BatchRun(
        task=task,
        requests=[request],
        id=task_id,
        trigger="manual",
        hostname=hostname,
        loglevel=loglevel,
        logfile=logfile,
        eager=True,
        propagate=propagate,
    )
    batch.run()
    (applied,) = batch.applied
    value = _value_of(applied.outcome, batch.end.retval)
    if isinstance(applied.outcome, Retried) and getattr(value, "sig", None) is not None:
        return value.sig.apply(retries=(request.retries or 0) + 1, throw=propagate)
    if isinstance(applied.outcome, Failed) and propagate:
        raise value
    _, report = applied.report
    return eager_result(
        task_id,
        value,
        STATES[type(applied.outcome)],
        traceback=report.traceback if isinstance(report, ExceptionInfo) else None,
        name=task.name,
    )


def _value_of(outcome: Outcome, returned: Any) -> Any:
    """Return the value of an eager result."""
    match outcome:
        case Done():
            return outcome.result
        case Failed() | Retried() | Rejected() | Ignored():
            return outcome.exc
        case _:
            return returned


def _eager_request(
    task: Any, task_id: str, args: Any, kwargs: Any, hostname: str, context: dict[str, Any]
) -> SimpleRequest:
    parent = _task_stack.top
    parent_request = parent.request if parent else None
    routing = {key: context.pop(key, None) for key in ("exchange", "routing_key", "priority")}
    delivery_info = {"is_eager": True, "redelivered": False, **routing}
    stamped_headers = maybe_list(context.pop("stamped_headers", None))
    if stamped_headers:
        context["stamped_headers"] = stamped_headers
        context["stamps"] = {name: maybe_list(context.pop(name, [])) for name in stamped_headers}
    limits = [context.pop(f"{kind}time_limit", None) for kind in ("", "soft_")]
    ignore_result = bool(context.pop("ignore_result", task.ignore_result))
    # What is left are options of publishing, which nothing is published with here.
    known = {key: value for key, value in context.items() if key in EAGER_KEYS}
    request_dict = {
        "task": task.name,
        "id": task_id,
        "root_id": ((parent_request.root_id or parent_request.id) if parent_request else task_id),
        "parent_id": parent_request and parent_request.id,
        "group": context.pop("group_id", None),
        "timelimit": limits,
        "ignore_result": ignore_result,
        "is_eager": True,
        "hostname": hostname,
        "delivery_info": delivery_info,
        "args": args,
        "kwargs": kwargs,
        **known,
    }
    return SimpleRequest(
        task_id,
        context.get("shadow") or task.name,
        args,
        kwargs,
        delivery_info,
        hostname,
        ignore_result,
        context.get("reply_to"),
        context.get("correlation_id"),
        request_dict,
    )
