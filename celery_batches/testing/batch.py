"""Runs a batch in a test, without a worker, a broker or a result backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from celery import Signature
from celery.utils.nodenames import gethostname
from kombu.utils.uuid import uuid

from ..core.batch_info import FlushInfo
from ..pool.async_body import check_eager
from ..pool.run import BatchRun
from ..request import SimpleRequest
from ..task import Batches
from .results import BatchResult, result_of

__all__ = ("make_request", "make_run", "run_batch")

#: A call, as `run_batch` takes it.
Call: TypeAlias = SimpleRequest | Signature | Sequence[Any]


def make_request(
    args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **headers: Any
) -> SimpleRequest:
    """Make a request as the body of a batch task gets it.

    Arguments:
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        **headers: What else to say of the call, with the names of ``task.request``: ``id``,
            ``retries``, ``eta``, ``delivery_info``, …; or headers of your own.
    """
    task_id = str(headers.pop("id", None) or uuid())
    name = headers.pop("task", "test")
    options = {name: headers.pop(name, None) for name in ("reply_to", "correlation_id")}
    ignore_result = bool(headers.pop("ignore_result", False))
    delivery_info = {"redelivered": False, **headers.pop("delivery_info", {})}
    hostname = headers.pop("hostname", None) or gethostname()
    given = list(args), dict(kwargs or {})
    context = {
        "id": task_id,
        "task": name,
        "root_id": task_id,
        "retries": 0,
        "args": given[0],
        "kwargs": given[1],
        "is_eager": True,
        **headers,
    }
    return SimpleRequest(
        task_id,
        name,
        *given,
        delivery_info,
        hostname,
        ignore_result,
        **options,
        request_dict=context,
    )


def run_batch(
    task: Batches, calls: Iterable[SimpleRequest | Signature | Sequence[Any]]
) -> BatchResult:
    """Run a batch of these calls in this process, and return what became of each.

    The body runs inside the signals and handlers of the task, as in a worker. Nothing is sent or
    stored: no retry, no link, no result. Marks by ``app.backend.mark_as_done`` count too.

    Arguments:
        task: The batch task.
        calls: For each call, a request of `make_request`, a signature such as ``task.s(1)``, or a
            list or tuple of positional arguments.

    Raises:
        TypeError: If the task is not a batch task, or a call is something else.
        RuntimeError: If the body is async, and an event loop is running in this thread. Call
            ``await asyncio.to_thread(run_batch, task, calls)`` there.
        Exception: What a handler of the task raises.
    """
    if not isinstance(task, Batches):
        raise TypeError(f"run_batch() runs batch tasks. {task!r} has another base than Batches")
    task = task.app.tasks[task.name]
    check_eager(task)
    requests = [_as_request(task, call) for call in calls]
    batch = make_run(task, uuid(), requests, "manual")
    batch.run()
    return result_of(batch)


def make_run(
    task: Batches,
    id: str,
    requests: Sequence[SimpleRequest],
    trigger: str,
    hostname: str | None = None,
    body_args: tuple[Any, ...] | None = None,
    flush: FlushInfo | None = None,
) -> BatchRun:
    """Make a run of a batch that sends and stores nothing, from the arguments of a real one."""
    for request in requests:
        # Celery sends the retry of a call unless the call is eager.
        request.request_dict = {**(request.request_dict or {}), "is_eager": True}
    return BatchRun(
        task,
        requests,
        id,
        trigger,
        hostname or gethostname(),
        body_args=body_args,
        # It begins at once: the clock of a test does not go on meanwhile.
        flush=replace(flush or FlushInfo(), sent_at=None),
        eager=True,
        records_only=True,
    )


def _as_request(task: Batches, call: Call) -> SimpleRequest:
    if isinstance(call, SimpleRequest):
        return call
    # A signature is a dictionary.
    if isinstance(call, Signature):
        options = {"id" if key == "task_id" else key: value for key, value in call.options.items()}
        return make_request(call.args, call.kwargs, **{"task": task.name, **options})
    if isinstance(call, list | tuple):
        return make_request(call, task=task.name)
    raise TypeError(
        f"run_batch(): a call is a request of make_request(), a signature such as "
        f"{task.name}.s(1), or a list or tuple of positional arguments, not {call!r}"
    )
