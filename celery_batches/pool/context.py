"""One request of a batch as the task that it is: its context, handlers, exceptions. In the pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from billiard.einfo import ExceptionInfo
from celery._state import _task_stack
from celery.app.task import Context
from celery.app.trace import task_has_custom
from celery.utils.log import get_logger
from celery.utils.serialization import get_pickleable_etype, get_pickleable_exception

from ..request import SimpleRequest

__all__ = ("acting_as", "call_handler", "current", "custom_handlers", "describe", "sendable")

logger = get_logger(__name__)

HANDLERS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")


@contextmanager
def acting_as(task: Any, request: SimpleRequest) -> Iterator[Context]:
    """Make a request of the batch the current request of its task, as if it ran alone."""
    context = Context(
        request.request_dict or {},
        id=request.id,
        task=task.name,
        args=request.args,
        kwargs=request.kwargs,
        hostname=request.hostname,
        delivery_info=request.delivery_info,
        reply_to=request.reply_to,
        correlation_id=request.correlation_id,
        ignore_result=request.ignore_result,
        called_directly=False,
    )
    with current(task, context):
        yield context


@contextmanager
def current(task: Any, context: Context) -> Iterator[None]:
    """Make a context the current one of its task, and the task the current one of the thread."""
    _task_stack.push(task)
    task.request_stack.push(context)
    try:
        yield
    finally:
        task.request_stack.pop()
        _task_stack.pop()


def custom_handlers(task: Any) -> frozenset[str]:
    """Return the names of the handlers that the task has of its own."""
    return frozenset(name for name in HANDLERS if task_has_custom(task, name))


def call_handler(
    task: Any,
    request: SimpleRequest,
    name: str,
    before: tuple[Any, ...] = (),
    after: tuple[Any, ...] = (),
    *,
    raises: bool = False,
) -> None:
    """Call a handler of the task for one request.

    Arguments:
        task: The batch task.
        request: The request: the handler gets its id and arguments.
        name: Name of the handler, such as ``on_success``.
        before: What it gets before these.
        after: What it gets after these.
        raises: Whether an error in the handler is raised, not logged: it does not change how the
            request ended.
    """
    handler = getattr(task, name)
    try:
        with acting_as(task, request):
            handler(*before, request.id, request.args, request.kwargs, *after)
    except Exception as exc:
        if raises:
            raise
        logger.exception("%s of %s raised: %r", name, request, exc)


def sendable(exc: BaseException) -> BaseException:
    """Return the exception in a form that the result backend and the main process can take."""
    sent: BaseException = get_pickleable_exception(exc)
    if sent.__traceback__ is None:
        sent.__traceback__ = exc.__traceback__
    return sent


def describe(exc: BaseException) -> ExceptionInfo:
    """Return the ``ExceptionInfo`` of an exception, even if it was never raised."""
    if exc.__traceback__ is None:
        try:
            raise exc
        except BaseException as raised:
            einfo = ExceptionInfo((type(raised), raised, raised.__traceback__))
            raised.__traceback__ = None
            return einfo
    return ExceptionInfo((get_pickleable_etype(type(exc)), exc, exc.__traceback__))
