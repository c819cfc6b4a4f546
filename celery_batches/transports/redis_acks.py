"""Shortcut ``redis_acks``: acknowledges many messages from Redis in one transaction.

Runs in the worker's main process. kombu acknowledges each message in a round trip of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from kombu.transport import virtual

__all__ = ("acknowledge", "is_supported")


def is_supported(channel: Any) -> bool:
    """Whether this is an open channel of kombu's Redis transport, with kombu's own ``ack``."""
    # Without redis-py the module cannot be imported; with a channel of it, it has been.
    redis = sys.modules.get("kombu.transport.redis")
    if redis is None or not isinstance(channel, redis.Channel) or channel.closed:
        return False
    plain = type(channel).basic_ack is virtual.Channel.basic_ack
    return plain and type(channel.qos).ack is redis.QoS.ack


def acknowledge(channel: Any, tags: Sequence[str]) -> None:
    """Do in one transaction what ``QoS.ack`` does in one for each message."""
    qos = channel.qos
    with qos.pipe_or_acquire() as pipe:
        pipe.zrem(qos.unacked_index_key, *tags).hdel(qos.unacked_key, *tags).execute()
    for tag in tags:
        virtual.QoS.ack(qos, tag)
