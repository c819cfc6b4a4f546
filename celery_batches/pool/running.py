"""Knows which batch runs in this thread or greenlet. Runs in the pool."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from celery.utils.threads import LocalStack

from ..core.slot import RunningBatch, slot_of
from ..request import SimpleRequest
from .context import current_context

if TYPE_CHECKING:
    from ..task import Batches
    from .run import BatchRun

__all__ = (
    "enclosing_batch",
    "is_running",
    "request_anywhere",
    "running",
    "running_batch",
    "traced_batch",
)

#: The running batches, innermost last, since a body may run another batch eagerly.
_stack = LocalStack()

#: The batches that run in this process, in any thread or greenlet. Adding one, removing one and
#: listing all are atomic.
_everywhere: dict[int, BatchRun] = {}


@contextmanager
def running(batch: BatchRun) -> Iterator[None]:
    """Make this the running batch of the thread or greenlet."""
    _stack.push(batch)
    _everywhere[id(batch)] = batch
    try:
        yield
    finally:
        del _everywhere[id(batch)]
        _stack.pop()


def traced_batch() -> BatchRun:
    """Return the innermost running batch. Call it only while a batch runs."""
    batch: BatchRun = _stack.top
    return batch


def is_running(batch_id: object) -> bool:
    """Whether the innermost running batch has this id."""
    batch: BatchRun | None = _stack.top
    return batch is not None and batch.id == batch_id


def enclosing_batch(task: Batches) -> RunningBatch[SimpleRequest] | None:
    """Return the innermost running batch of the task, also while a handler runs, or None."""
    return next((batch for batch in reversed(_stack.stack) if batch.task == task), None)


def running_batch(task: Batches) -> RunningBatch[SimpleRequest] | None:
    """Return the batch whose context is the current request of the task, or None.

    It is None while a handler runs, because the current request is then that of the handler.
    """
    for batch in reversed(_stack.stack):
        if batch.task == task:
            is_current = batch.context is None or batch.context is current_context(task)
            return batch if is_current else None
    return None


def request_anywhere(task_id: str) -> SimpleRequest | None:
    """Return the request with this id of a batch that runs in any thread or greenlet, or None.

    If two batches have it, since its message was delivered twice, return one that can be marked.
    """
    found = None
    for batch in list(_everywhere.values()):
        request = batch.by_id.get(task_id)
        if request is not None:
            found = request
            if slot_of(request).batch is not None:
                break
    return found
