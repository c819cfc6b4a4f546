"""Shortcut ``redis_acks``: acknowledges many messages from Redis in one transaction.

Runs in the worker's main process. kombu acknowledges each message in a separate round trip.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kombu.transport import virtual

if TYPE_CHECKING:
    from kombu.transport.base import StdChannel
    from kombu.transport.redis import Channel

__all__ = ("acknowledge", "is_supported")


def is_supported(channel: StdChannel) -> bool:
    """Whether this is an open channel of kombu's Redis transport, with kombu's own ``ack``."""
    # The module needs redis-py. Whoever has a channel of it has imported it.
    redis = sys.modules.get("kombu.transport.redis")
    if redis is None or not isinstance(channel, redis.Channel) or channel.closed:
        return False
    has_kombus_ack = type(channel).basic_ack is virtual.Channel.basic_ack
    return has_kombus_ack and type(channel.qos).ack is redis.QoS.ack


def acknowledge(channel: Channel, tags: Sequence[str]) -> None:
    """Acknowledge in one transaction. ``QoS.ack`` makes one transaction for each message."""
    qos = channel.qos
    with qos.pipe_or_acquire() as pipe:
        pipe.zrem(qos.unacked_index_key, *tags).hdel(qos.unacked_key, *tags).execute()
    for tag in tags:
        virtual.QoS.ack(qos, tag)
