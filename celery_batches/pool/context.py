"""Makes one request of a batch the current request of its task. Runs in the pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery._state import _task_stack
from celery.app.task import Context

from ..request import SimpleRequest, context_of

__all__ = ("acting_as", "current_task")


@contextmanager
def acting_as(task: Any, request: SimpleRequest) -> Iterator[Context]:
    """Make a request of the batch the current request of its task, as if it ran alone."""
    context = context_of(request, task.name)
    with current_task(task):
        task.request_stack.push(context)
        try:
            yield context
        finally:
            task.request_stack.pop()


@contextmanager
def current_task(task: Any) -> Iterator[None]:
    """Make a task the current one of the thread."""
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
