"""A worker whose clock stands still, and what it has received."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import signals

from celery_batches import Batches
from kit.batch_worker import BatchWorker
from kit.clock import Clock
from kit.tasks import make_task


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def worker(app: Any, clock: Clock) -> BatchWorker:
    return BatchWorker(make_task(app, flush_every=3, flush_interval=10), clock)


@pytest.fixture
def received() -> Iterator[list[str]]:
    ids: list[str] = []

    def receive(request: Any = None, **_: Any) -> None:
        ids.append(request.id)

    signals.task_received.connect(receive, weak=False)
    yield ids
    signals.task_received.disconnect(receive)


@pytest.fixture
def task(app: Any) -> Any:
    @app.task(base=Batches, name="unit.click", flush_every=2, flush_interval=10)
    def click(requests: Any) -> None: ...

    return click
