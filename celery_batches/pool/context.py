"""Makes one request of a batch the current request of its task. Runs in the pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from celery._state import _task_stack
from celery.app.task import Context

from ..request import SimpleRequest, context_of

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("acting_as", "current_task")


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
def current_task(task: Batches) -> Iterator[None]:
    """Make this task the current task of the thread."""
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
