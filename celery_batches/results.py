"""Writes what became of each request to the result backend. Runs in the pool."""

from __future__ import annotations

from typing import Any

from .request import SimpleRequest

__all__ = ("store_failure",)


def store_failure(
    task: Any, request: SimpleRequest, exc: BaseException, traceback: str, *, eager: bool
) -> None:
    """Record that a request failed, as Celery does for a task: chord, chain and errbacks included.

    Raises:
        Exception: Whatever the result backend raises when it cannot be written to.
    """
    if request.ignore_result:
        store = bool(task.store_errors_even_if_ignored)
    else:
        store = not eager or bool(task.store_eager_result)
    task.backend.mark_as_failure(
        request.id, exc, traceback, request=request, store_result=store, call_errbacks=True
    )
