"""Shortcut ``amqp_acks``: acknowledges many AMQP messages in one frame.

Runs in the worker's main process. kombu acknowledges each message with a ``basic.ack`` of its own.
AMQP lets one of these cover several messages: all that are outstanding up to its delivery tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import amqp

from ..core.delivery_tags import DeliveryTags

__all__ = ("acknowledge", "is_supported")

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


def acknowledge(channel: Any, tags: Sequence[int]) -> None:
    """Acknowledge deliveries; one frame covers those that no outstanding delivery comes before.

    What is decided first is written first: a frame that covers many must not come before one that
    covers some of them.
    """
    known, lock = _tags.setdefault(channel, (DeliveryTags(), RLock()))
    with lock:
        try:
            for tag, multiple in known.acknowledge(tags):
                channel.basic_ack(tag, multiple=multiple)
        except BaseException:
            known.give_up()
            raise
