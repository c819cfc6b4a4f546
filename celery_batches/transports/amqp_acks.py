"""Shortcut ``amqp_acks``: acknowledges many AMQP messages in one frame.

Runs in the worker's main process. kombu acknowledges each message with a ``basic.ack`` of its own.
AMQP lets one of these cover several messages: all that are outstanding up to its delivery tag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import amqp

from ..core.delivery_tags import DeliveryTags

__all__ = ("acknowledge", "is_supported", "write_acks")

#: For each channel, the deliveries that were acknowledged here, and the lock of whoever does so. It
#: can be taken again: a signal handler that stops the pool runs callbacks.
_tags: WeakKeyDictionary[Any, tuple[DeliveryTags, Any]] = WeakKeyDictionary()


def is_supported(channel: Any) -> bool:
    """Whether this is an open channel of py-amqp that acknowledges as py-amqp does."""
    if not isinstance(channel, amqp.Channel):
        return False
    connection = channel.connection
    # Without a connection, kombu would make one.
    is_open = connection is not None and connection.connected
    return is_open and type(channel).basic_ack is amqp.Channel.basic_ack


def write_acks(channel: Any, acks: Sequence[tuple[int, bool]]) -> None:
    """Have py-amqp write a frame for each of these: its lock keeps frames of other threads out.

    Arguments:
        channel: The channel.
        acks: For each frame, a delivery tag, and whether it is for all tags up to this one.
    """
    for tag, multiple in acks:
        channel.basic_ack(tag, multiple=multiple)


def acknowledge(
    channel: Any,
    tags: Sequence[int],
    *,
    write: Callable[[Any, Sequence[tuple[int, bool]]], None] = write_acks,
) -> None:
    """Acknowledge deliveries; one frame covers those that no outstanding delivery comes before.

    What is decided first is written first: a frame that covers many must not come before one that
    covers some of them.

    Arguments:
        channel: The channel that they came on.
        tags: Their delivery tags.
        write: Writes the frames.
    """
    known, lock = _tags.setdefault(channel, (DeliveryTags(), RLock()))
    with lock:
        try:
            acks = known.acknowledge(tags)
            # For a single frame nothing is gained.
            (write if len(acks) > 1 else write_acks)(channel, acks)
        except BaseException:
            known.give_up()
            raise
