"""Puts messages into a queue as fast as kombu can, in the form in which Celery sends them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.serialization import dumps
from kombu.utils.uuid import uuid

__all__ = ("Publisher",)


class Publisher:
    """Sends calls of tasks to one queue, over one connection.

    What all messages of a call have in common is made once, by Celery.

    Arguments:
        url: The broker.
        queue: Name of the queue and of its exchange, which are made.
        transport_options: As for `kombu.Connection`.
    """

    def __init__(self, url: str, queue: str, transport_options: dict[str, Any]) -> None:
        self.queue = queue
        self._app = Celery("publisher", set_as_current=False)
        if url.startswith("amqp"):
            # A broker that holds back its publishers is no broker that is gone: by default, py-amqp
            # takes it for that after a second.
            patience = {"socket_settings": {socket.TCP_USER_TIMEOUT: 120_000}}
            transport_options = {**transport_options, **patience}
        self._connection = Connection(url, transport_options=transport_options)
        self._producer = self._connection.Producer()
        self._queue = Queue(queue, Exchange(queue), routing_key=queue)
        self._queue(self._producer.channel).declare()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: Any) -> None:
        self._connection.close()

    def send(
        self, count: int, task: str, padding: str, *, after: float | None = None, spread: float = 0
    ) -> None:
        """Send so many messages.

        Arguments:
            count: How many.
            task: The name of the task.
            padding: The argument that makes them as long as they are.
            after: Seconds from now until the first is to be run, if that is not at once.
            spread: Seconds between the first and the last that is to be run.
        """
        headers = self._headers(task, [0.0, padding])
        body = self._body([0.0, padding])
        start = None if after is None else datetime.now(timezone.utc) + timedelta(seconds=after)
        for number in range(count):
            if start is not None:
                headers["eta"] = (start + timedelta(seconds=spread * number / count)).isoformat()
            self._publish(headers, body)

    def send_each(self, numbers: Iterable[int], tasks: list[str], padding: str) -> None:
        """Send one message for each number, to the tasks in turn."""
        body = self._body([0.0, padding])
        headers = {task: self._headers(task, [0.0, padding]) for task in tasks}
        for number in numbers:
            self._publish(headers[tasks[number % len(tasks)]], body)

    def send_steadily(self, count: int, task: str, padding: str, rate: float) -> None:
        """Send so many a second; the first argument says when each was sent."""
        headers = self._headers(task, [0.0, padding])
        started = time.monotonic()
        for number in range(count):
            early = started + number / rate - time.monotonic()
            if early > 0:
                time.sleep(early)
            self._publish(headers, self._body([time.monotonic(), padding]))

    def messages_ready(self) -> int:
        """How many messages are in the queue, and with no worker."""
        queue = self._queue(self._producer.channel)
        try:
            return int(queue.queue_declare(passive=True).message_count)
        except self._connection.channel_errors:
            return 0  # Redis has no queue that is empty.

    def delete(self) -> None:
        """Delete the queue, with what is in it, and its exchange."""
        channel = self._producer.channel
        channel.queue_delete(self.queue)
        channel.exchange_delete(self.queue)

    def _headers(self, task: str, args: list[Any]) -> dict[str, Any]:
        headers: dict[str, Any] = self._app.amqp.as_task_v2("", task, args, {}).headers
        return headers

    def _body(self, args: list[Any]) -> bytes:
        embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        text: str = dumps([args, {}, embedded], serializer="json")[2]
        return text.encode()

    def _publish(self, headers: dict[str, Any], body: bytes) -> None:
        task_id = uuid()
        self._producer.publish(
            body,
            exchange="",
            routing_key=self.queue,
            headers={**headers, "id": task_id, "root_id": task_id},
            correlation_id=task_id,
            reply_to="",
            content_type="application/json",
            content_encoding="utf-8",
        )
