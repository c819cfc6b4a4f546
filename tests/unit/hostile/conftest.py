"""An app with batch tasks, and a worker's clock, for messages of strangers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import signals
from kit.clock import Clock

from celery_batches import Batches


@pytest.fixture
def tasks(app: Any) -> Any:
    """An app with three batch tasks; ``app.ran`` are the ids of each batch that was run."""
    app.conf.worker_send_task_events = True
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

    class Handled(Batches):
        def on_success(self, *args: Any) -> None:
            self.update_state(state="SEEN")

        def on_failure(self, *args: Any) -> None:
            self.update_state(state="SEEN")

    options: dict[str, Any] = {"flush_every": 4, "flush_interval": 10}
    app.task(name="unit.click", base=Batches, **options)(end)
    app.task(name="unit.late", base=Handled, acks_late=True, **options)(end)
    app.task(
        name="unit.again", base=Batches, bind=True, autoretry_for=(OSError,), retry_backoff=True
    )(again)
    return app


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(time.monotonic())  # Celery turns an ETA into a time of this clock.
    monkeypatch.setattr("celery_batches.worker.strategy.monotonic", clock)
    return clock


@pytest.fixture
def revoked() -> Iterator[list[Any]]:
    """What the worker has dropped since it was revoked or has expired."""
    dropped: list[Any] = []

    def drop(request: Any = None, **_: Any) -> None:
        dropped.append(request.id)

    signals.task_revoked.connect(drop, weak=False)
    yield dropped
    signals.task_revoked.disconnect(drop)
