"""Shortcut ``amqp_reader``: reads many AMQP messages in one turn of the event loop.

Runs in the worker's main process, for each message that the worker receives.
"""

from __future__ import annotations

from itertools import count
from struct import Struct
from typing import Any

import amqp
import amqp.transport
from amqp.exceptions import RecoverableConnectionError
from kombu.transport.base import Transport

__all__ = ("read_many",)

#: Bytes in one read: some 20 small messages.
READ = 16 * 1024

#: Reads in a row, before the event loop sees to timers, the pool and other connections.
TURN = 2

#: What a frame of AMQP 0-9-1 begins with: type, channel, and the size of its payload.
FRAME = Struct(">BHI")

#: What it ends with.
FRAME_END = 0xCE


def read_many(consumer: Any, hub: Any) -> None:
    """Have the event loop read what there is on the consumer's connection, in large pieces.

    kombu's own reader has py-amqp read one message in each turn of the loop, with nine calls of
    ``recv``; then the loop comes round, asks the poller, and looks at its timers.
    """
    connection = consumer.connection.connection
    transport = consumer.connection.transport
    own = getattr(type(transport), "on_readable", None) is not Transport.on_readable
    if isinstance(connection, amqp.Connection) and not own and _is_known(connection):
        hub.add_reader(connection.sock, _read, connection)


def _is_known(connection: Any) -> bool:
    """Whether py-amqp keeps what it has read where it is known here, and looks there first."""
    transport = connection.transport
    classes = (getattr(amqp.transport, name, None) for name in ("TCPTransport", "SSLTransport"))
    readers = {vars(cls).get("_read") for cls in classes if cls is not None} - {None}
    return (
        getattr(type(transport), "_read", None) in readers
        and isinstance(getattr(transport, "_read_buffer", None), bytes)
        and all(hasattr(transport, name) for name in ("having_timeout", "read_frame", "sock"))
        and callable(getattr(connection, "on_inbound_frame", None))
    )


def _read(connection: Any) -> None:
    for reads in count(1):
        if not connection.connected:
            raise RecoverableConnectionError("Socket was disconnected")
        transport = connection.transport
        try:
            with transport.having_timeout(0):
                received = transport.sock.recv(READ)
        except TimeoutError:
            return
        except OSError:
            received = b""
        if received:
            _take_in(connection, transport, received)
        else:
            _find_out(connection)
        # Of what TLS has decrypted already, the poller knows nothing.
        if reads >= TURN and not _is_pending(transport.sock):
            return


def _is_pending(sock: Any) -> bool:
    return hasattr(sock, "pending") and sock.pending() > 0


def _take_in(connection: Any, transport: Any, received: bytes) -> None:
    """Give py-amqp the frames that are complete; keep the rest where it will look for it."""
    on_frame = connection.on_inbound_frame
    buffer = transport._read_buffer + received
    start = 0
    transport._read_buffer = buffer
    while len(buffer) - start > FRAME.size:
        kind, channel, size = FRAME.unpack_from(buffer, start)
        payload = start + FRAME.size
        end = payload + size
        if end >= len(buffer):
            return
        if buffer[end] != FRAME_END:
            transport.read_frame()  # It is for py-amqp to say so.
        start = end + 1
        rest = transport._read_buffer = buffer[start:]
        on_frame((kind, channel, buffer[payload:end]))
        if transport._read_buffer is not rest:  # Somebody has waited for an answer amid that.
            buffer, start = transport._read_buffer, 0


def _find_out(connection: Any) -> None:
    """Let py-amqp find the connection lost, in its own way."""
    try:
        connection.drain_events(timeout=0)
    except TimeoutError:
        return
