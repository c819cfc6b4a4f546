"""Runs one call in the process of its caller, as a batch of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from billiard.einfo import ExceptionInfo
from celery._state import _task_stack
from celery.result import EagerResult
from celery.utils.functional import maybe_list
from celery.utils.nodenames import gethostname

from .compat import eager_result
from .core.context_keys import CONTEXT_KEYS
from .core.outcomes import Done, Failed, Ignored, Outcome, Rejected, Retried
from .pool.applied import Applied
from .pool.async_body import check_eager
from .pool.endings import STATES
from .pool.run import BatchRun
from .request import SimpleRequest

if TYPE_CHECKING:
    from .task import Batches

__all__ = ("LogOptions", "apply_eagerly")

#: The calling options that become part of the context.
EAGER_KEYS = CONTEXT_KEYS | {"headers"}


class LogOptions(NamedTuple):
    """The log of a worker, for ``task.request``."""

    loglevel: int
    logfile: str | None


def apply_eagerly(
    task: Batches,
    task_id: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    context: dict[str, Any],
    throw: bool | None,
    log: LogOptions,
) -> EagerResult:
    """Run a call of a batch task as a batch of one, whose id is that of the call.

    Arguments:
        task: The batch task.
        task_id: Id of the call.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        context: The other keys of the context, with the names of message headers.
        throw: Whether to raise an exception of the body. Defaults to ``task_eager_propagates``.
        log: What ``task.request`` says of the log.

    Returns:
        The mark of the body as a result, or else the return value of the body.

    Raises:
        RuntimeError: If the body is async, and an event loop is running in this thread.
    """
    check_eager(task)
    propagate = task.app.conf.task_eager_propagates if throw is None else throw
    hostname = gethostname()
    request = _eager_request(task, task_id, args, kwargs, hostname, context)
    how = {"eager": True, "propagate": propagate, **log._asdict()}
    batch = BatchRun(task, [request], id=task_id, trigger="manual", hostname=hostname, **how)
    batch.run()
    (applied,) = batch.applied
    value = _value_of(applied.outcome, batch.end.retval)
    if isinstance(applied.outcome, Retried) and getattr(value, "sig", None) is not None:
        return value.sig.apply(retries=(request.retries or 0) + 1, throw=propagate)
    if isinstance(applied.outcome, Failed) and propagate:
        raise value
    return _eager_result(task, task_id, value, applied)


def _eager_result(task: Batches, task_id: str, value: Any, applied: Applied) -> EagerResult:
    _, report = applied.report
    traceback = report.traceback if isinstance(report, ExceptionInfo) else None
    state = STATES[type(applied.outcome)]
    return eager_result(task_id, value, state, traceback=traceback, name=task.name)


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
    task: Batches,
    task_id: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    hostname: str,
    context: dict[str, Any],
) -> SimpleRequest:
    routing = {key: context.pop(key, None) for key in ("exchange", "routing_key", "priority")}
    delivery_info = {"is_eager": True, "redelivered": False, **routing}
    ignore_result = bool(context.pop("ignore_result", task.ignore_result))
    request_dict = {
        "task": task.name,
        "id": task_id,
        **_origin(task_id),
        "group": context.pop("group_id", None),
        "timelimit": [context.pop(f"{kind}time_limit", None) for kind in ("", "soft_")],
        "ignore_result": ignore_result,
        "is_eager": True,
        "hostname": hostname,
        "delivery_info": delivery_info,
        "args": args,
        "kwargs": kwargs,
        **_stamps(context),
        # The remaining keys are options for publishing, and nothing is published here.
        **{key: value for key, value in context.items() if key in EAGER_KEYS},
    }
    name = context.get("shadow") or task.name
    reply = context.get("reply_to"), context.get("correlation_id")
    return SimpleRequest(
        task_id, name, args, kwargs, delivery_info, hostname, ignore_result, *reply, request_dict
    )


def _origin(task_id: str) -> dict[str, str | None]:
    """Return the root id and the parent id: those of the current task, if there is one."""
    parent = _task_stack.top
    if not parent or not parent.request:
        return {"root_id": task_id, "parent_id": None}
    return {
        "root_id": parent.request.root_id or parent.request.id,
        "parent_id": parent.request.id,
    }


def _stamps(context: dict[str, Any]) -> dict[str, Any]:
    """Remove the stamped headers and their values from a context, and return them."""
    names = maybe_list(context.pop("stamped_headers", None))
    if not names:
        return {}
    stamps = {name: maybe_list(context.pop(name, [])) for name in names}
    return {"stamped_headers": names, "stamps": stamps}
