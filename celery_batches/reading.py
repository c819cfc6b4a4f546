"""Reading many messages from an AMQP connection in one turn of the event loop."""

from __future__ import annotations

import errno
from typing import Any

import amqp
from amqp.exceptions import RecoverableConnectionError
from kombu.transport.base import Transport

__all__ = ("read_many",)

#: Messages in a row, before the event loop sees to timers, the pool and other connections.
TURN = 20

_UNAVAILABLE = (errno.EAGAIN, errno.EINTR)


def read_many(consumer: Any, hub: Any) -> None:
    """Have the event loop read so many messages of the consumer's connection in each turn.

    kombu's own reader reads one; then the loop comes round, asks the poller, and looks at its
    timers, which on a busy connection costs as much as the reading.
    """
    connection = consumer.connection.connection
    transport = consumer.connection.transport
    own = type(transport).on_readable is not Transport.on_readable
    if isinstance(connection, amqp.Connection) and not own:
        hub.add_reader(connection.sock, _read, connection, hub)


def _read(connection: amqp.Connection, hub: Any) -> None:
    try:
        for _ in range(TURN):
            if not connection.connected:
                raise RecoverableConnectionError("Socket was disconnected")
            connection.drain_events(timeout=0)
    except TimeoutError:
        return
    except OSError as exc:
        if exc.errno in _UNAVAILABLE:
            return
        raise
    hub.call_soon(_read, connection, hub)
