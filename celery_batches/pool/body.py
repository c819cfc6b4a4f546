"""The body of a task, below what tools have put around it. Runs wherever a task is defined."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

from celery import Task
from celery.utils.objects import mro_lookup

__all__ = ("Body", "body_of", "keep_body")


class Body(NamedTuple):
    """What runs the body of a task.

    Attributes:
        call: What a batch calls: ``__call__`` if the task has its own, else ``run``.
        run: What the task has as ``run``: with ``autoretry_for``, a function that Celery has put
            around the body.
    """

    call: Callable[..., Any]
    run: Callable[..., Any]


def body_of(task: Any) -> Body:
    """Return the body of a task, without what was put around it since `keep_body`.

    Whatever replaces the body, such as a mock in a test, counts.
    """
    now = _body_now(task)
    kept: Body | None = task.__dict__.get("__body__")
    return kept if kept is not None and _wraps(now.run, kept.run) else now


def keep_body(task: Any) -> None:
    """Keep the body as it is now, before a worker builds its tracers.

    A worker builds a tracer for each task when it starts, which no batch is run by. Tools that
    hook into that put a wrapper around ``run`` or ``__call__`` of the task. They put one around
    those of a batch too (see `pool.tracer`), and would see each exception twice.
    """
    task.__dict__.setdefault("__body__", _body_now(task))


def _body_now(task: Any) -> Body:
    run = task.run
    # A worker gives Celery's base class a ``__call__`` that protects its stack of requests.
    if mro_lookup(task.__class__, "__call__") is not Task:
        return Body(MethodType(task.__class__.__call__, task), run)
    return Body(run, run)


def _wraps(function: Any, kept: Any) -> bool:
    """Whether it is that function, or a wrapper around it (see ``functools.wraps``)."""
    kept = getattr(kept, "__func__", kept)
    while function is not None:
        if getattr(function, "__func__", function) is kept:
            return True
        function = getattr(function, "__wrapped__", None)
    return False
