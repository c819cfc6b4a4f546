"""Batch tasks for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from celery_batches import Batches

#: A body takes the requests, and before them the task if it is bound.
Body = Callable[..., Any]


def do_nothing(requests: Any) -> None:
    """The body of a task that is of no concern."""


def make_task(app: Celery, body: Body = do_nothing, **options: Any) -> Batches:
    """A batch task of that app.

    Arguments:
        app: The app.
        body: What it runs.
        options: Those of the task. It is ``unit.click`` unless they give it another name.
    """
    if "<" in body.__name__:
        body.__name__ = "body"  # Celery writes the name of a body into code.
    task: Batches = app.task(**{"base": Batches, "name": "unit.click", **options})(body)
    return task
