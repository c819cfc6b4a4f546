"""Shortcut ``amqp_acks``: acknowledges many AMQP messages in one frame.

Runs in the worker's main process. kombu acknowledges each message with a separate ``basic.ack``.
In AMQP, a ``basic.ack`` with ``multiple`` covers all outstanding messages up to its delivery tag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import amqp

from ..core.delivery_tags import Ack, DeliveryTags

if TYPE_CHECKING:
    from kombu.transport.base import StdChannel

__all__ = ("acknowledge", "is_supported", "write_acks")

#: For each channel, the deliveries that were acknowledged here, and the lock that protects them. It
#: is reentrant, since a signal handler that stops the pool may run callbacks.
_tags: WeakKeyDictionary[amqp.Channel, tuple[DeliveryTags, RLock]] = WeakKeyDictionary()


def is_supported(channel: StdChannel) -> bool:
    """Whether this is an open channel of py-amqp with py-amqp's own ``basic_ack``."""
    if not isinstance(channel, amqp.Channel):
        return False
    connection = channel.connection
    # Without a connection, a call would make kombu connect.
    is_open = connection is not None and connection.connected
    return is_open and type(channel).basic_ack is amqp.Channel.basic_ack


def write_acks(channel: amqp.Channel, acks: Sequence[Ack]) -> None:
    """Have py-amqp write one frame for each pair. py-amqp's lock prevents interleaved frames.

    Arguments:
        channel: The channel.
        acks: A ``(delivery_tag, multiple)`` pair for each frame.
    """
    for tag, multiple in acks:
        channel.basic_ack(tag, multiple=multiple)


def acknowledge(
    channel: amqp.Channel,
    tags: Sequence[int],
    *,
    write: Callable[[amqp.Channel, Sequence[Ack]], None] = write_acks,
) -> None:
    """Acknowledge deliveries. One frame covers those before which no delivery is outstanding.

    The lock keeps frames in the order of their decisions. A frame that covers many deliveries must
    not precede a frame for one of them.

    Arguments:
        channel: The channel of the deliveries.
        tags: The delivery tags.
        write: Writes the frames.
    """
    acknowledged, lock = _tags.setdefault(channel, (DeliveryTags(), RLock()))
    with lock:
        try:
            acks = acknowledged.acknowledge(tags)
            # `write` gains nothing for a single frame.
            (write if len(acks) > 1 else write_acks)(channel, acks)
        except BaseException:
            acknowledged.stop_multiple()
            raise
