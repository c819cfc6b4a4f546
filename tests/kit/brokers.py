"""A queue on a real broker, and batches of the messages that came from it."""

from __future__ import annotations

from collections import deque
from typing import Any

import redis
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu import Connection, Queue
from kombu.asynchronous import Hub
from kombu.utils.uuid import uuid
from vine import promise

from celery_batches.core.shortcuts import SHORTCUTS, Shortcut
from celery_batches.worker.acks import DeferredAck
from celery_batches.worker.job import BatchJob
from kit.messages import protocol_2
from kit.requests import worker_request
from kit.tasks import make_task

SIZE = 5
#: Bytes of an AMQP frame with ``basic.ack`` in it.
FRAME = 21
PRIORITIES = [0, 3, 6, 9]


class Broker:
    """A queue on a real broker, and requests for the messages that came from it."""

    def __init__(self, app: Any, url: str, **options: Any) -> None:
        self.app = app
        self.url = url
        self.connection = Connection(url, transport_options=options)
        self.channel: Any = self.connection.default_channel
        self.queue = Queue(f"test-{uuid()}")(self.channel)
        self.queue.declare()
        # As the worker's event loop: what is to be done soon is done when it comes round.
        self.hub: Any = Hub()
        self._pending_operations: deque[Any] = deque()
        self.soon = 0
        #: Those that are switched on.
        self.shortcuts: frozenset[Shortcut] = SHORTCUTS

    def call_soon(self, *args: Any) -> Any:
        self.soon += 1
        return Consumer.call_soon(self, *args)

    def run_the_loop(self) -> None:
        Consumer.perform_pending_operations(self)
        for callback in list(self.hub._ready) if self.hub else ():
            self.hub._ready.discard(callback)
            callback()

    def send(self, name: str, size: int, **options: Any) -> None:
        producer = self.connection.Producer(self.channel)
        for number in range(size):
            sent = protocol_2(self.app, f"id-{number}", name, [number])
            producer.publish(
                sent.payload,
                routing_key=self.queue.name,
                headers=sent.headers,
                serializer="json",
                priority=number,
                **options,
            )

    def receive(self) -> Any:
        """Take a message from the queue, as the consumer does."""
        message = self.queue.get(accept=["json"])
        assert message is not None
        return message

    def request(self, task: Any, **options: Any) -> Any:
        message = self.receive()
        return worker_request(self.app, task, message, on_ack=self.ack_of(message), **options)

    def ack_of(self, message: Any) -> DeferredAck:
        """What a request is given to acknowledge it: see Celery's ``create_task_handler``."""
        deferred_ack = DeferredAck.with_shortcuts(self.shortcuts)
        return deferred_ack(promise(self.call_soon, (message.ack_log_error,)))

    def delivered_again(self) -> list[Any]:
        """What the broker has back when the connection is closed, in order of arrival."""
        self.connection.close()
        with Connection(self.url) as connection:
            queue = self.queue(connection.default_channel)
            messages = iter(lambda: queue.get(no_ack=True, accept=["json"]), None)
            again = list(messages)
            queue.delete()
        return again

    @property
    def held(self) -> int:
        """How many messages kombu counts against the prefetch count."""
        qos = self.channel.qos
        return len(qos._delivered) - len(qos._dirty)

    def close(self) -> None:
        if self.connection.connected:
            self.queue.delete()
        self.connection.close()
        if self.hub:
            self.hub.close()


class RedisBroker(Broker):
    """The same on Redis, with the keys of its own that it keeps what is delivered in."""

    def __init__(self, app: Any, url: str, prefix: str) -> None:
        name = uuid()
        self.keys = [f"{name}.{key}" for key in ("unacked", "unacked_index")]
        unacked, index = self.keys
        options = {"unacked_key": unacked, "unacked_index_key": index, "global_keyprefix": prefix}
        super().__init__(app, url, priority_steps=PRIORITIES, **options)
        self.redis: Any = redis.Redis.from_url(url)
        self.prefix = prefix

    @property
    def unacked(self) -> tuple[int, int]:
        """How many messages Redis has as delivered: in the hash, and in the index."""
        unacked, index = (self.prefix + key for key in self.keys)
        return int(self.redis.hlen(unacked)), int(self.redis.zcard(index))

    def close(self) -> None:
        super().close()
        # What was not acknowledged has gone back to its queue.
        queues = [self.channel._q_for_pri(self.queue.name, step) for step in PRIORITIES]
        self.redis.delete(*(self.prefix + key for key in (*self.keys, *queues)))
        self.redis.close()


class Batch:
    """A batch whose messages came from the broker."""

    def __init__(
        self,
        broker: Broker,
        size: int = SIZE,
        *,
        late: bool = True,
        cls: Any = Request,
        task: Any = None,
    ):
        self.task = make_task(broker.app, acks_late=late) if task is None else task
        broker.send(self.task.name, size)
        errors = (*broker.connection.connection_errors, redis.ConnectionError)
        self.requests = [
            broker.request(self.task, cls=cls, connection_errors=errors) for _ in range(size)
        ]
        self.messages = [request.message for request in self.requests]
        self.job = BatchJob(self.task, self.requests, trigger="size", hostname="w@h")

    def end(self) -> None:
        """The pool tells of it as Celery's does."""
        self.job.on_accepted(7, 0.0)
        self.job.on_success((False, [(False, "None")] * len(self.requests), 0.5))

    @property
    def acknowledged(self) -> list[bool]:
        return [message.acknowledged for message in self.messages]


def tags(batch: Batch) -> list[str]:
    return [message.delivery_tag for message in batch.messages]
