"""Telling an AMQP broker of many acknowledgements at once. Runs in the worker's main process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import amqp

from ..core.delivery_tags import DeliveryTags

__all__ = ("acknowledge_at_once", "acknowledge_in_turn")

#: A method frame of AMQP 0-9-1 with ``basic.ack`` in it: type, channel, size of what follows up to
#: the end, class, method, delivery tag, whether it is for all tags up to this one, end of frame.
ACK_FRAME = Struct(">BHIHHQBB")

#: For each channel, what has been acknowledged here, and the lock of who says so. It can be taken
#: again: a signal handler that stops the pool has callbacks run.
_tags: WeakKeyDictionary[Any, tuple[DeliveryTags, Any]] = WeakKeyDictionary()


def acknowledge_at_once(channel: Any, tags: Sequence[int]) -> None:
    """Write what acknowledges these messages at once: one frame for those that are next in line."""
    number, connection = channel.channel_id, channel.connection
    with _saying(channel, tags) as said:
        frames = [
            ACK_FRAME.pack(1, number, 13, *amqp.spec.Basic.Ack, tag, multiple, 0xCE)
            for tag, multiple in said
        ]
        connection.transport.write(b"".join(frames))
    connection.bytes_sent += len(frames)


def acknowledge_in_turn(channel: Any, tags: Sequence[int]) -> None:
    """Have py-amqp write the same frames, which sees to it that others do not write amid one."""
    with _saying(channel, tags) as said:
        for tag, multiple in said:
            channel.basic_ack(tag, multiple=multiple)


@contextmanager
def _saying(channel: Any, tags: Sequence[int]) -> Iterator[list[tuple[int, bool]]]:
    """What to say of these deliveries, and that it has been said.

    What was decided first has to be written first: a frame that is for many must not come before
    one that is for some of them.
    """
    known, lock = _tags.setdefault(channel, (DeliveryTags(), RLock()))
    with lock:
        try:
            yield known.acknowledge(tags)
        except BaseException:
            known.give_up()
            raise
