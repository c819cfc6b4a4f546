"""Makes one request of a batch the current request of its task. Runs in the pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, NamedTuple

from celery._state import _task_stack
from celery.app.task import Context
from celery.exceptions import Retry

from ..request import SimpleRequest, context_of

if TYPE_CHECKING:
    from ..task import Batches

__all__ = (
    "acting_as",
    "acting_for_body",
    "acting_in_coroutine",
    "coroutine_context",
    "current_context",
    "current_task",
    "member_of",
)


class _Acting(NamedTuple):
    """A request for which a coroutine acts."""

    task: Batches
    context: Context
    thread: int
    #: The length of the stack of the task.
    depth: int


#: Coroutines take turns in one thread, so they cannot share a stack.
_acting: ContextVar[_Acting | None] = ContextVar("celery_batches_acting", default=None)


@contextmanager
def acting_as(task: Batches, request: SimpleRequest) -> Iterator[Context]:
    """Make this request the current request of its task, as if it ran alone."""
    context = context_of(request, task.name)
    with current_task(task):
        task.request_stack.push(context)
        try:
            yield context
        finally:
            task.request_stack.pop()


@contextmanager
def acting_for_body(task: Batches, request: SimpleRequest) -> Iterator[Context]:
    """Do the same while the body runs, so that `retry` of the task retries this request alone."""
    with acting_as(task, request) as context, _retrying(context, request):
        yield context


@contextmanager
def acting_in_coroutine(task: Batches, request: SimpleRequest) -> Iterator[Context]:
    """Do the same for the asyncio task that enters it, and for those that it starts inside."""
    context = context_of(request, task.name)
    depth = len(task.request_stack)
    token = _acting.set(_Acting(task, context, get_ident(), depth))
    try:
        with _retrying(context, request):
            yield context
    finally:
        _acting.reset(token)


@contextmanager
def _retrying(context: Context, request: SimpleRequest) -> Iterator[None]:
    context.batch_member = request
    try:
        yield
    except Retry as reason:
        if reason is not getattr(context, "batch_member_retry", None):
            raise


def coroutine_context(task: Batches) -> Context | None:
    """Return the context of the innermost `acting_in_coroutine`, or None outside of one.

    A task that is called inside has its context on the stack. In another thread, the stack is
    another one.
    """
    acting = _acting.get()
    if acting is None or acting.task is not task or acting.thread != get_ident():
        return None
    return acting.context if acting.depth == len(task.request_stack) else None


def current_context(task: Batches) -> Context | None:
    """Return the context of the current request of the task, or None if there is none."""
    return coroutine_context(task) or task.request_stack.top


def member_of(task: Batches) -> SimpleRequest | None:
    """Return the request that the body acts for, or None."""
    member: SimpleRequest | None = getattr(current_context(task), "batch_member", None)
    return member


@contextmanager
def current_task(task: Batches) -> Iterator[None]:
    """Make this task the current task of the thread."""
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
