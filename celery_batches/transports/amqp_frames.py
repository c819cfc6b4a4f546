"""Shortcut ``amqp_frames``: writes many acknowledgements to an AMQP connection at once.

Runs in the worker's main process. py-amqp writes each frame separately, which costs the worker and
the broker more.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING

import amqp

from ..core.delivery_tags import Ack

if TYPE_CHECKING:
    from kombu.transport.base import StdChannel

__all__ = ("is_supported", "write_acks")

#: Class and method of ``basic.ack``.
BASIC_ACK = (60, 80)

#: A method frame of AMQP 0-9-1 that holds a ``basic.ack``. Its fields are: type, channel, size of
#: the payload, class, method, delivery tag, ``multiple``, end of frame.
ACK_FRAME = Struct(">BHIHHQBB")


def is_supported(channel: StdChannel) -> bool:
    """Whether py-amqp numbers methods and channels, and writes frames, as this shortcut expects."""
    connection = channel.connection
    method = getattr(getattr(getattr(amqp, "spec", None), "Basic", None), "Ack", None)
    return (
        method == BASIC_ACK
        and isinstance(getattr(channel, "channel_id", None), int)
        and isinstance(getattr(connection, "bytes_sent", None), int)
        and callable(getattr(getattr(connection, "transport", None), "write", None))
    )


def write_acks(channel: amqp.Channel, acks: Sequence[Ack]) -> None:
    """Write the frames that py-amqp would write for these delivery tags, in one write.

    Call it only on the thread that makes all writes to the connection, since it does not take
    py-amqp's lock.

    Arguments:
        channel: The channel.
        acks: A ``(delivery_tag, multiple)`` pair for each frame.
    """
    channel_id, connection = channel.channel_id, channel.connection
    frames = [
        ACK_FRAME.pack(1, channel_id, 13, *BASIC_ACK, tag, multiple, 0xCE) for tag, multiple in acks
    ]
    connection.transport.write(b"".join(frames))
    connection.bytes_sent += len(frames)
