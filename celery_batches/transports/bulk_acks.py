"""Acknowledges many messages of one channel at once, where a shortcut can do so.

Runs in the worker's main process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from kombu.message import Message

from ..core.shortcuts import Shortcut
from . import amqp_acks, amqp_frames, redis_acks

__all__ = ("acknowledge_in_bulk",)


def acknowledge_in_bulk(
    channel: Any,
    messages: Sequence[Any],
    shortcuts: Collection[Shortcut],
    *,
    has_loop: bool = False,
) -> bool:
    """Acknowledge messages that came on this channel, if one of the shortcuts can.

    Arguments:
        channel: The channel.
        messages: The messages.
        shortcuts: The shortcuts that are switched on.
        has_loop: Whether an event loop does all that is written to the connection, on one thread.
            If not, other threads or greenlets may be writing to it.

    Returns:
        Whether it did. If not, none of the messages knows that it is acknowledged, and kombu has to
        acknowledge each. Then it is also kombu that finds out what is wrong, if something is.
    """
    try:
        acknowledge = _bulk_ack_of(channel, shortcuts, has_loop=has_loop)
        if acknowledge is None or not _are_plain(channel, messages):
            return False
        acknowledge(channel, [message.delivery_tag for message in messages])
    except Exception:
        return False
    for message in messages:
        _mark_as_acknowledged(message)
    return True


def _bulk_ack_of(
    channel: Any, shortcuts: Collection[Shortcut], *, has_loop: bool
) -> Callable[[Any, Sequence[Any]], None] | None:
    if "amqp_acks" in shortcuts and amqp_acks.is_supported(channel):
        if has_loop and "amqp_frames" in shortcuts and amqp_frames.is_supported(channel):
            return partial(amqp_acks.acknowledge, write=amqp_frames.write_acks)
        return amqp_acks.acknowledge
    if "redis_acks" in shortcuts and redis_acks.is_supported(channel):
        return redis_acks.acknowledge
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
