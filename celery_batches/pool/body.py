"""Finds the body of a task below the wrappers of tools. Runs wherever a task is defined."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import Task
from celery.utils.objects import mro_lookup

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("Body", "body_of", "keep_body")


class Body(NamedTuple):
    """The callables that run the body of a task.

    Attributes:
        call: The callable for a batch: ``__call__`` if the task defines one, else ``run``.
        run: The ``run`` of the task. With ``autoretry_for`` it is Celery's wrapper of the body.
    """

    call: Callable[..., Any]
    run: Callable[..., Any]


def body_of(task: Batches) -> Body:
    """Return the body of a task, without the wrappers that were added since `keep_body`.

    If the body was replaced, for example by a mock, return the replacement.
    """
    current = _current_body(task)
    kept: Body | None = task.__dict__.get("__body__")
    return kept if kept is not None and _wraps(current.run, kept.run) else current


def keep_body(task: Batches) -> None:
    """Keep the current body, before a worker builds its tracers.

    A worker that starts builds a tracer for each task. No batch uses this one, but tools wrap
    ``run`` or ``__call__`` of the task while it is built. They also wrap the tracer of a batch
    (see `pool.tracer`), so with both wrappers they would report each exception twice.
    """
    task.__dict__.setdefault("__body__", _current_body(task))


def _current_body(task: Batches) -> Body:
    run = task.run
    # A worker gives Celery's base class a `__call__` that protects the request stack.
    if mro_lookup(task.__class__, "__call__") is not Task:
        return Body(MethodType(task.__class__.__call__, task), run)
    return Body(run, run)


def _wraps(function: Callable[..., Any] | None, kept: Callable[..., Any]) -> bool:
    """Whether the function is the kept one, or a ``functools.wraps`` wrapper of it."""
    kept = getattr(kept, "__func__", kept)
    while function is not None:
        if getattr(function, "__func__", function) is kept:
            return True
        function = getattr(function, "__wrapped__", None)
    return False
