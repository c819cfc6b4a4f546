"""Makes one request of a batch the current request of its task. Runs in the pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from celery._state import _task_stack
from celery.app.task import Context
from celery.exceptions import Retry

from ..request import SimpleRequest, context_of

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("acting_as", "acting_for_body", "current_task", "member_of")


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
    with acting_as(task, request) as context:
        context.batch_member = request
        try:
            yield context
        except Retry as reason:
            if reason is not getattr(context, "batch_member_retry", None):
                raise


def member_of(task: Batches) -> SimpleRequest | None:
    """Return the request of the innermost `acting_for_body`, or None outside of one."""
    member: SimpleRequest | None = getattr(task.request_stack.top, "batch_member", None)
    return member


@contextmanager
def current_task(task: Batches) -> Iterator[None]:
    """Make this task the current task of the thread."""
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
