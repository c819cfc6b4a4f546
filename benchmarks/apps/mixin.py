"""Receives and acknowledges as kombu's documentation has it: with its `ConsumerMixin`.

So it decodes the bodies, which `floor` leaves as they are, and looks once a second whether it is to
stop.
"""

from __future__ import annotations

from typing import Any

import recording
from floor import SETTINGS, Floor, connect
from kombu import Connection, Queue
from kombu.mixins import ConsumerMixin


class Worker(ConsumerMixin):  # type: ignore[misc]  # kombu is not typed
    def __init__(self, connection: Connection, queue: Queue) -> None:
        self.connection, self.queue, self.floor = connection, queue, Floor()

    def get_consumers(self, Consumer: Any, channel: Any) -> list[Any]:
        consumer = Consumer(
            [self.queue],
            callbacks=[self.on_task],
            accept=["json"],
            prefetch_count=SETTINGS["prefetch_count"],
        )
        return [consumer]

    def on_consume_ready(self, connection: Any, channel: Any, consumers: Any, **_: Any) -> None:
        self.floor.watch()
        recording.note_ready()

    def on_task(self, body: Any, message: Any) -> None:
        self.floor.on_message(message)


if __name__ == "__main__":
    connection, queue = connect()
    with connection:
        Worker(connection, queue).run()
