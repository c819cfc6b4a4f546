"""A worker with one batch task, whose clock and timer are moved by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu import Message

from celery_batches import Batches
from celery_batches.worker.strategy import BatchStrategy, strategy_of
from kit.clock import Clock, Timer
from kit.consumer import FakeConsumer
from kit.messages import protocol_2


class BatchWorker:
    """Stands in for a worker with one batch task. Its strategy is real; batches do not run.

    Arguments:
        task: The batch task.
        clock: The clock of the worker.
    """

    def __init__(self, task: Batches, clock: Clock | None = None) -> None:
        self.app = task.app
        self.task = task
        self.clock = clock or Clock()
        self.consumer = FakeConsumer(task.app, self.clock)
        self.count = 0
        self.connect()

    def connect(self) -> BatchStrategy:
        """Make a strategy for the connection, as Celery does."""
        handler = self.task.Strategy(self.task, self.app, self.consumer)
        self.consumer.strategies[self.task.name] = handler
        found = strategy_of(self.consumer, self.task.name)
        assert found is not None
        self.strategy = found
        return found

    def send(self, make: Callable[..., Message] = protocol_2, **options: Any) -> Message:
        """Deliver the message of the next call: ``id-0``, ``id-1`` and so on.

        Arguments:
            make: Makes the message.
            options: Those of the call, and of the message.
        """
        message = make(self.app, f"id-{self.count}", self.task.name, [self.count], **options)
        self.count += 1
        return self.handle(message)

    def handle(self, message: Message, *, acks: list[Any] | None = None) -> Message:
        """Deliver a message, as Celery's handler of messages hands it on."""
        body = None if "task" in message.headers else message.payload
        self.strategy.on_message(
            *(message, body, message.ack_log_error, message.reject_log_error), acks or []
        )
        return message

    @property
    def timer(self) -> Timer:
        return self.consumer.timer

    @property
    def waiting(self) -> int:
        """How many requests are in the buffer."""
        return self.strategy.buffered

    @property
    def batches(self) -> list[tuple[str, list[str]]]:
        """The trigger of each batch that was sent to the pool, and the ids in it."""
        return [(job.trigger, [r.id for r in job.requests]) for job in self.consumer.sent]

    def advance(self, seconds: float) -> None:
        """Move the clock; what comes due on the way is flushed at its time."""
        self.timer.advance(seconds)
