"""Brokers that deliver again what is not acknowledged in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_batches import Batches
from celery_batches.transports.visibility import warn_of_visibility_timeout
from celery_batches.worker.bootstep import BatchesStep
from kit.channel import Channel
from kit.consumer import FakeConsumer
from kit.messages import protocol_2


def make(app: Any, **options: Any) -> Any:
    @app.task(name="unit.slow", base=Batches, **options)
    def slow(requests: Any) -> None: ...

    return slow


@pytest.mark.parametrize(("interval", "warns"), [(9.9, False), (10, True), (60, True)])
def test_an_interval_that_is_too_long(
    app: Any, caplog: pytest.LogCaptureFixture, interval: float, warns: bool
) -> None:
    """An interval that reaches the visibility time-out is warned of, with task and fix."""
    task = make(app, flush_interval=interval)
    warn_of_visibility_timeout(
        task, SimpleNamespace(visibility_timeout=10), task.flush_interval_seconds
    )
    assert [record.levelname for record in caplog.records] == (["WARNING"] if warns else [])
    if warns:
        for part in ("unit.slow", f"{interval}s", "10s", "flush_interval", "visibility_timeout'"):
            assert part in caplog.records[0].getMessage()


@pytest.mark.parametrize("channel", [SimpleNamespace(), SimpleNamespace(visibility_timeout=None)])
def test_brokers_that_wait(app: Any, caplog: pytest.LogCaptureFixture, channel: Any) -> None:
    """Where a broker has no such time-out, there is nothing to warn of."""
    warn_of_visibility_timeout(make(app, flush_interval=1e9), channel, 1e9)
    assert caplog.records == []


def test_acks_late_counts_the_run(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With acks_late a message also waits for its batch to end, and the warning says so."""
    task = make(app, flush_interval=60, acks_late=True)
    warn_of_visibility_timeout(
        task, SimpleNamespace(visibility_timeout=10), task.flush_interval_seconds
    )
    assert "with acks_late for the batch to end" in caplog.text


def test_an_eta_that_is_too_late(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A call whose ETA and interval together reach the time-out is warned of once, with a fix."""
    consumer = FakeConsumer(app)
    task = make(app, flush_interval=60)
    strategy = task.Strategy(task, app, consumer).__self__
    channel = Channel()
    for countdown, warnings in ((30, 0), (50, 1), (70, 1)):
        message = protocol_2(app, "id", task.name, channel=channel, countdown=countdown)
        channel.visibility_timeout = 100  # type: ignore[attr-defined]
        strategy.on_message(message, None, message.ack, message.reject, [])
        assert len(consumer.timer.armed) == countdown // 20
        assert len(caplog.records) == warnings
    for part in ("unit.slow", "60s", "100s", "'visibility_timeout': 3600"):
        assert part in caplog.records[0].getMessage()


def test_the_worker_warns_when_it_starts(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The step that runs at each start of the consumer looks at every batch task."""
    consumer = FakeConsumer(app)
    consumer.task_consumer.channel.visibility_timeout = 5
    task = make(app, flush_interval=60)
    consumer.strategies = {task.name: task.Strategy(task, app, consumer)}
    BatchesStep(consumer).start(consumer)
    assert "unit.slow" in caplog.text
