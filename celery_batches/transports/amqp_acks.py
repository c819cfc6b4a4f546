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

#: For each open channel, the deliveries that were acknowledged here, and the lock that protects
#: them. It is reentrant, since a signal handler that stops the pool may run callbacks.
_tags: WeakKeyDictionary[amqp.Channel, tuple[DeliveryTags, RLock]] = WeakKeyDictionary()

#: Held while a channel is added to them.
_starting = RLock()


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
    acknowledged, lock = _tags.get(channel) or _start(channel)
    with lock:
        try:
            acks = acknowledged.acknowledge(tags)
            # `write` gains nothing for a single frame.
            (write if len(acks) > 1 else write_acks)(channel, acks)
        except BaseException:
            acknowledged.stop_multiple()
            raise


def _start(channel: amqp.Channel) -> tuple[DeliveryTags, RLock]:
    """Keep account of a channel until py-amqp opens it again.

    When the broker closes a channel because of an error, py-amqp opens it again: the same object,
    whose deliveries are numbered from 1. A call that waits for a reply, such as that of the command
    ``add_consumer``, gets the error, and the worker may go on with the channel.
    """
    with _starting:
        if channel in _tags:
            return _tags[channel]
        # Called now too, since the channel is open.
        listener = channel.then(_forget)
        acknowledged, lock = _tags.setdefault(channel, (DeliveryTags(), RLock()))
        if listener not in channel.on_open.listeners:
            acknowledged.stop_multiple()  # This version of vine does not call it again.
        return acknowledged, lock


def _forget(channel: amqp.Channel) -> None:
    _tags.pop(channel, None)
