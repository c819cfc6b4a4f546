"""Batch tasks for tests."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_batches import Batches


def make_task(app: Celery, **options: Any) -> Batches:
    """A batch task of that app whose body does nothing; ``options`` are those of the task."""

    def click(requests: Any) -> None: ...

    task: Batches = app.task(**{"base": Batches, "name": "unit.click", **options})(click)
    return task
