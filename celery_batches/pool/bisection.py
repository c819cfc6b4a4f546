"""Decides whether the body runs again in halves after it has raised. Runs in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("OF_THE_PROCESS", "halves", "is_bisected")

T = TypeVar("T")

#: These are not about a request, so the batch ends.
OF_THE_PROCESS = (SoftTimeLimitExceeded, MemoryError)

#: With the others, the body says what becomes of the requests.
NOT_BISECTED = (*OF_THE_PROCESS, Retry, Ignore, Reject)


def is_bisected(task: Batches, exc: BaseException | None, unsettled: Sequence[object]) -> bool:
    """Whether ``bisect_on_failure`` chooses this exception, and there is something to halve.

    Arguments:
        task: The batch task.
        exc: The exception that the body has raised.
        unsettled: The requests that have no outcome.
    """
    chosen = task.bisect_on_failure
    if chosen is False or len(unsettled) < 2:
        return False
    if isinstance(exc, NOT_BISECTED):
        return False
    return isinstance(exc, Exception if chosen is True else chosen)


def halves(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """Return the first and the second half."""
    middle = len(items) // 2
    return list(items[:middle]), list(items[middle:])
