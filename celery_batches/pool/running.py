"""Which batch runs in this thread or greenlet. Runs in the pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery.utils.threads import LocalStack

from ..core.slot import RunningBatch
from ..request import SimpleRequest

if TYPE_CHECKING:
    from .run import BatchRun

__all__ = ("is_running", "running", "running_batch", "traced_batch")

#: Innermost last: a body may run another batch eagerly.
_stack = LocalStack()


@contextmanager
def running(batch: BatchRun) -> Iterator[None]:
    """Make a batch the one that runs."""
    _stack.push(batch)
    try:
        yield
    finally:
        _stack.pop()


def traced_batch() -> BatchRun:
    """Return the innermost batch that runs here, from what is called while one does."""
    batch: BatchRun = _stack.top
    return batch


def is_running(batch_id: object) -> bool:
    """Whether the innermost batch that runs here has this id."""
    batch: BatchRun | None = _stack.top
    return batch is not None and batch.id == batch_id


def running_batch(task: Any) -> RunningBatch[SimpleRequest] | None:
    """Return the batch whose context is the current request of the task, if it is that of a batch.

    While a handler is called for one request, that one is the current request, and this is None.
    """
    for batch in reversed(_stack.stack):
        if batch.task == task:
            is_current = batch.context is None or batch.context is task.request_stack.top
            return batch if is_current else None
    return None
