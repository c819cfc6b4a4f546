"""A batch task in a worker whose clock and timer are moved by hand."""

from __future__ import annotations

from typing import Any

from unit.support import Clock, FakeConsumer, protocol_2

from celery_batches import Batches
from celery_batches.worker.strategy import BatchStrategy


class Worker:
    """A batch task in a worker whose clock stands still."""

    task_name = "unit.click"

    def __init__(self, app: Any, clock: Clock, **options: Any) -> None:
        self.app = app
        self.clock = clock

        options.setdefault("base", Batches)

        @app.task(name=self.task_name, **options)
        def click(*args: Any) -> Any:
            return self.run_body(*args)

        self.task = click
        self.consumer = FakeConsumer(app)
        self.count = 0
        self.connect()

    def run_body(self, *args: Any) -> Any:
        """What the body of the task does."""

    def connect(self) -> BatchStrategy:
        handler = self.task.Strategy(self.task, self.app, self.consumer)
        self.consumer.strategies[self.task.name] = handler
        self.strategy: BatchStrategy = handler.__self__
        return self.strategy

    def receive(self, make: Any = protocol_2, **options: Any) -> Any:
        message = make(self.app, f"id-{self.count}", self.task.name, [self.count], **options)
        self.count += 1
        return self.handle(message)

    def handle(self, message: Any, *, acks: Any = None) -> Any:
        body = None if "task" in message.headers else message.payload
        self.strategy.on_message(
            *(message, body, message.ack_log_error, message.reject_log_error), acks or []
        )
        return message

    @property
    def timer(self) -> Any:
        return self.consumer.timer

    @property
    def waiting(self) -> int:
        return len(self.strategy._buffer)

    @property
    def batches(self) -> list[tuple[str, list[str]]]:
        return [(job.trigger, [r.id for r in job.requests]) for job in self.consumer.sent]

    def let_time_pass(self, seconds: float) -> None:
        """Move the clock on, and fire the timer for all that comes due, as it comes due."""
        end = self.clock.now + seconds
        while due := [e for e in self.timer.armed if e.eta <= end]:
            entry = min(due, key=lambda e: e.eta)
            self.clock.now = max(self.clock.now, entry.eta)
            self.timer.fire(entry)
        self.clock.now = end
