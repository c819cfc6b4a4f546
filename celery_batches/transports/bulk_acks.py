"""Acknowledges many messages of one channel at once, where a shortcut can do so.

Runs in the worker's main process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from kombu.message import Message

from ..core.shortcuts import Shortcut
from . import amqp_acks, redis_acks

__all__ = ("acknowledge_in_bulk",)


class _BulkAck(NamedTuple):
    is_supported: Callable[[Any], bool]
    acknowledge: Callable[[Any, Sequence[Any]], None]


_BULK_ACKS: dict[Shortcut, _BulkAck] = {
    "amqp_acks": _BulkAck(amqp_acks.is_supported, amqp_acks.acknowledge),
    "redis_acks": _BulkAck(redis_acks.is_supported, redis_acks.acknowledge),
}


def acknowledge_in_bulk(
    channel: Any, messages: Sequence[Any], shortcuts: Collection[Shortcut]
) -> bool:
    """Acknowledge messages that came on this channel, if one of the shortcuts can.

    Returns:
        Whether it did. If not, none of the messages knows that it is acknowledged, and kombu has to
        acknowledge each. Then it is also kombu that finds out what is wrong, if something is.
    """
    try:
        acknowledge = _bulk_ack_of(channel, shortcuts)
        if acknowledge is None or not _are_plain(channel, messages):
            return False
        acknowledge(channel, [message.delivery_tag for message in messages])
    except Exception:
        return False
    for message in messages:
        _mark_as_acknowledged(message)
    return True


def _bulk_ack_of(
    channel: Any, shortcuts: Collection[Shortcut]
) -> Callable[[Any, Sequence[Any]], None] | None:
    for name, bulk_ack in _BULK_ACKS.items():
        if name in shortcuts and bulk_ack.is_supported(channel):
            return bulk_ack.acknowledge
    return None


def _are_plain(channel: Any, messages: Sequence[Any]) -> bool:
    """Whether kombu would have the channel acknowledge these messages, and do nothing else."""
    if not all(_acks_plainly(kind) for kind in set(map(type, messages))):
        return False
    no_ack = channel.no_ack_consumers or ()
    return not any(
        message.acknowledged or message.delivery_info.get("consumer_tag") in no_ack
        for message in messages
    )


def _acks_plainly(kind: type[Any]) -> bool:
    return kind.ack is Message.ack and kind.ack_log_error is Message.ack_log_error


class _Acknowledged:
    """Stands in for the channel of a message that the broker knows to be acknowledged."""

    no_ack_consumers = None

    def basic_ack(self, delivery_tag: Any, multiple: bool = False) -> None:
        """Say nothing: it has been said."""


_ACKNOWLEDGED = _Acknowledged()


def _mark_as_acknowledged(message: Any) -> None:
    """Let kombu's message know, so that nobody acknowledges it again."""
    channel, message.channel = message.channel, _ACKNOWLEDGED
    message.ack()
    message.channel = channel
