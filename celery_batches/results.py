"""Writes to the result backend, and sees what the body writes to it. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from celery._state import _task_stack

from .outcomes import Kind, Outcome
from .request import SimpleRequest

__all__ = ("store_failure", "watch")

#: The methods by which a body settles a request, and how it ends by each.
WATCHED: dict[str, Kind] = {"mark_as_done": "done", "mark_as_failure": "failed"}


def watch(backend: Any) -> None:
    """See to it that each request knows what the body wrote of it to the result backend.

    The documented way to give a request its result is ``app.backend.mark_as_done(request.id,
    value, request=request)``. A backend has no hook to be told of that, and it is the app that
    makes it, so it is this one instance that gets methods of its own: they call Celery's and note
    the outcome. Without it a body that raises after having marked some of its requests would turn
    these into failures.
    """
    for name, kind in WATCHED.items():
        if name not in vars(backend):
            setattr(backend, name, _noting(kind, getattr(backend, name)))


def _noting(kind: Kind, mark: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(mark)
    def noting(task_id: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        returned = mark(task_id, value, *args, **kwargs)
        given = [arg for arg in (*args, kwargs.get("request")) if isinstance(arg, SimpleRequest)]
        member = given[0] if given else _current_members().get(task_id)
        if member is not None:
            member._settle(Outcome(kind, value))
        return returned

    return noting


def _current_members() -> dict[str, SimpleRequest]:
    """Return the requests of the batch that is being run, by id."""
    task = _task_stack.top
    members: dict[str, SimpleRequest] = task.request.get("members", {}) if task else {}
    return members


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
