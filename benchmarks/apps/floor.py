"""Receives and acknowledges, with kombu alone: no consumer of its messages can do with less."""

from __future__ import annotations

import signal
from typing import Any

import recording
from kombu import Connection, Consumer, Exchange, Queue

#: Messages for each record: a worker for batches does not write one for each message either.
EVERY = 100

SETTINGS = recording.SETTINGS


class Floor:
    """Counts what has come."""

    def __init__(self) -> None:
        self.first = True
        self.unrecorded = 0
        self.last = 0.0
        self.recording = False

    def on_message(self, message: Any) -> None:
        if self.first:
            self.first = False
            recording.note_first()
        if SETTINGS["stamped"]:
            recording.record_waits([message.payload[0][0]])
        message.ack()
        self.unrecorded += 1
        self.last = recording.clock()
        if self.unrecorded >= EVERY:
            self.record()

    def record(self) -> None:
        # The alarm may come amid this.
        if self.unrecorded and not self.recording:
            self.recording = True
            recording.record_body(self.unrecorded, self.last)
            self.unrecorded = 0
            self.recording = False

    def watch(self) -> None:
        """Record the last few too: a time-out of `drain_events` would cost something each time."""
        signal.signal(signal.SIGALRM, lambda *_: self.record())
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)


def connect() -> tuple[Connection, Queue]:
    name, options = SETTINGS["queue"], SETTINGS["transport_options"]
    connection = Connection(SETTINGS["broker_url"], transport_options=options)
    return connection, Queue(name, Exchange(name), routing_key=name)


def main() -> None:
    floor = Floor()
    connection, queue = connect()
    with connection:
        consumer = Consumer(
            connection.channel(),
            [queue],
            on_message=floor.on_message,
            accept=["json"],
            prefetch_count=SETTINGS["prefetch_count"],
        )
        with consumer:
            floor.watch()
            recording.note_ready()
            while True:
                connection.drain_events()


if __name__ == "__main__":
    main()
