"""An app with batch tasks, and a worker's clock, for messages of strangers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import signals

from kit.clock import Clock
from kit.endings import make_tasks


@pytest.fixture
def tasks(app: Any) -> Any:
    """An app with three batch tasks; ``app.ran`` are the ids of each batch that was run."""
    app.conf.worker_send_task_events = True
    return make_tasks(app)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def revoked() -> Iterator[list[Any]]:
    """What the worker has dropped since it was revoked or has expired."""
    dropped: list[Any] = []

    def drop(request: Any = None, **_: Any) -> None:
        dropped.append(request.id)

    signals.task_revoked.connect(drop, weak=False)
    yield dropped
    signals.task_revoked.disconnect(drop)
