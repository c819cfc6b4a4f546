"""Batch tasks whose requests end in many ways."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_batches import Batches
from kit.tasks import make_task

TASKS = ["unit.click", "unit.late", "unit.again"]


class Handled(Batches):
    """A task whose handlers change the states of its requests."""

    abstract = True

    def on_success(self, *args: Any) -> None:
        self.update_state(state="SEEN")

    def on_failure(self, *args: Any) -> None:
        self.update_state(state="SEEN")


def make_tasks(app: Celery) -> Celery:
    """Give an app these tasks; ``app.ran`` are the ids of each batch that was run."""
    app.ran = []

    def end(requests: Any) -> None:
        app.ran.append([request.id for request in requests])
        for number, request in enumerate(requests):
            repr((request, request.headers, request.redelivered, request.chord))
            if number % 4 == 0:
                request.mark_as_done(number)
            elif number % 4 == 1:
                app.backend.mark_as_done(request.id, number, request=request)
            elif number % 4 == 2:
                request.mark_as_failure(ValueError("no"))

    def again(self: Any, requests: Any) -> None:
        app.ran.append([request.id for request in requests])
        raise self.retry(exc=KeyError("again"), max_retries=1)

    options: dict[str, Any] = {"flush_every": 4, "flush_interval": 10}
    click, late, retries = TASKS
    make_task(app, end, name=click, **options)
    make_task(app, end, name=late, base=Handled, acks_late=True, **options)
    make_task(app, again, name=retries, bind=True, autoretry_for=(OSError,), retry_backoff=True)
    return app
