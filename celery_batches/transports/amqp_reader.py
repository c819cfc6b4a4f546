"""Shortcut ``amqp_reader``: reads many AMQP messages in one turn of the event loop.

Runs in the worker's main process, for each message that the worker receives.
"""

from __future__ import annotations

from itertools import count
from socket import socket
from struct import Struct
from typing import TYPE_CHECKING

import amqp
import amqp.transport
from amqp.exceptions import RecoverableConnectionError
from kombu.transport.base import Transport

if TYPE_CHECKING:
    from amqp.transport import TCPTransport
    from celery.worker.consumer import Consumer
    from kombu.asynchronous import Hub

__all__ = ("read_many",)

#: The most bytes in one read: about 20 small messages.
READ_BYTES = 16 * 1024

#: The most reads in one turn. Then the event loop runs timers, the pool and other connections.
READS_PER_TURN = 2

#: The header of a frame of AMQP 0-9-1: type, channel, and the size of its payload.
FRAME_HEADER = Struct(">BHI")

#: The last byte of a frame.
FRAME_END = 0xCE


def read_many(consumer: Consumer, hub: Hub) -> None:
    """Have the event loop read all available data of the consumer's connection, in large pieces.

    With kombu's own reader, py-amqp reads one message in each turn of the loop, with nine calls of
    ``recv``. In each turn, the loop also polls all connections and runs its timers.
    """
    connection = consumer.connection.connection
    transport = consumer.connection.transport
    is_kombus = getattr(type(transport), "on_readable", None) is Transport.on_readable
    if isinstance(connection, amqp.Connection) and is_kombus and _has_expected_buffer(connection):
        hub.add_reader(connection.sock, _read_turn, connection)


def _has_expected_buffer(connection: amqp.Connection) -> bool:
    """Whether py-amqp keeps incomplete frames in ``_read_buffer``, and reads from there first."""
    transport = connection.transport
    classes = (getattr(amqp.transport, name, None) for name in ("TCPTransport", "SSLTransport"))
    readers = {vars(cls).get("_read") for cls in classes if cls is not None} - {None}
    return (
        getattr(type(transport), "_read", None) in readers
        and isinstance(getattr(transport, "_read_buffer", None), bytes)
        and all(hasattr(transport, name) for name in ("having_timeout", "read_frame", "sock"))
        and callable(getattr(connection, "on_inbound_frame", None))
    )


def _read_turn(connection: amqp.Connection) -> None:
    for reads in count(1):
        if not connection.connected:
            raise RecoverableConnectionError("Socket was disconnected")
        transport = connection.transport
        try:
            with transport.having_timeout(0):
                received = transport.sock.recv(READ_BYTES)
        except TimeoutError:
            return
        except OSError:
            received = b""
        if received:
            _pass_on_frames(connection, transport, received)
        else:
            _detect_loss(connection)
        # The poller does not report data that TLS has decrypted already.
        if reads >= READS_PER_TURN and not _is_pending(transport.sock):
            return


def _is_pending(sock: socket) -> bool:
    return hasattr(sock, "pending") and sock.pending() > 0


def _pass_on_frames(connection: amqp.Connection, transport: TCPTransport, received: bytes) -> None:
    """Pass complete frames to py-amqp, and leave the rest in its buffer."""
    on_frame = connection.on_inbound_frame
    buffer = transport._read_buffer + received
    start = 0
    transport._read_buffer = buffer
    while len(buffer) - start > FRAME_HEADER.size:
        kind, channel, size = FRAME_HEADER.unpack_from(buffer, start)
        payload = start + FRAME_HEADER.size
        end = payload + size
        if end >= len(buffer):
            return
        if buffer[end] != FRAME_END:
            transport.read_frame()  # py-amqp raises its own error for a malformed frame.
        start = end + 1
        rest = transport._read_buffer = buffer[start:]
        on_frame((kind, channel, buffer[payload:end]))
        # A callback consumed the buffer while it waited for a reply.
        if transport._read_buffer is not rest:
            buffer, start = transport._read_buffer, 0


def _detect_loss(connection: amqp.Connection) -> None:
    """Have py-amqp read, so that it detects the lost connection and raises its own error."""
    try:
        connection.drain_events(timeout=0)
    except TimeoutError:
        return
