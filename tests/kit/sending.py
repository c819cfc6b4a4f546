"""An app whose messages are taken from a real broker as they are there."""

from __future__ import annotations

from typing import Any

from kombu import pools
from kombu.utils.uuid import uuid

from celery_batches import Batches

ACCEPT = ["json", "pickle", "yaml", "msgpack"]


class Deployment:
    """An app, a task of its own queue, and what is in the queue."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.queue = f"test-{uuid()}"
        app.conf.task_default_queue = self.queue
        self.task = self.make_task("unit.click")

    def make_task(self, name: str, **options: Any) -> Any:
        def body(requests: Any) -> None: ...

        return self.app.task(name=name, **{"base": Batches, **options})(body)

    def take(self) -> list[Any]:
        """Take all messages out of the queue."""
        with self.app.connection_for_write() as connection:
            queue = self.app.amqp.queues[self.queue](connection.default_channel)
            queue.declare()
            return list(iter(lambda: queue.get(no_ack=True, accept=ACCEPT), None))

    def close(self) -> None:
        with self.app.connection_for_write() as connection:
            connection.default_channel.queue_delete(self.queue)
        pools.reset()


def ids_of(messages: list[Any]) -> list[str]:
    """The ids of the calls."""
    return [message.properties["correlation_id"] for message in messages]
