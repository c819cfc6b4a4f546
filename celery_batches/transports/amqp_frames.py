"""Shortcut ``amqp_frames``: writes many acknowledgements to an AMQP connection at once.

Runs in the worker's main process. py-amqp writes each frame by itself, and a broker that gets them
one by one has more to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

import amqp

__all__ = ("is_supported", "write_acks")

#: Class and method of ``basic.ack``.
BASIC_ACK = (60, 80)

#: A method frame of AMQP 0-9-1 with ``basic.ack`` in it: type, channel, size of what follows up to
#: the end, class, method, delivery tag, whether it is for all tags up to this one, end of frame.
ACK_FRAME = Struct(">BHIHHQBB")


def is_supported(channel: Any) -> bool:
    """Whether py-amqp is as known here: how it numbers the method and the channel, and writes."""
    connection = channel.connection
    method = getattr(getattr(getattr(amqp, "spec", None), "Basic", None), "Ack", None)
    return (
        method == BASIC_ACK
        and isinstance(getattr(channel, "channel_id", None), int)
        and isinstance(getattr(connection, "bytes_sent", None), int)
        and callable(getattr(getattr(connection, "transport", None), "write", None))
    )


def write_acks(channel: Any, acks: Sequence[tuple[int, bool]]) -> None:
    """Write the frames that py-amqp would write for these delivery tags, in one write.

    Only for the thread that does all that is written to the connection: py-amqp's own writes are
    not held up.

    Arguments:
        channel: The channel.
        acks: For each frame, a delivery tag, and whether it is for all tags up to this one.
    """
    number, connection = channel.channel_id, channel.connection
    frames = [
        ACK_FRAME.pack(1, number, 13, *BASIC_ACK, tag, multiple, 0xCE) for tag, multiple in acks
    ]
    connection.transport.write(b"".join(frames))
    connection.bytes_sent += len(frames)
