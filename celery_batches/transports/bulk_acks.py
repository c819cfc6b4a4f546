"""Chooses how to acknowledge many messages of one channel.

Runs in the worker's main process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kombu.message import Message

from ..core.shortcuts import Shortcut
from . import amqp_acks, amqp_frames, redis_acks

if TYPE_CHECKING:
    from kombu.transport.base import StdChannel

__all__ = ("acknowledge_in_bulk",)


def acknowledge_in_bulk(
    channel: StdChannel,
    messages: Sequence[Message],
    shortcuts: Collection[Shortcut],
    *,
    has_loop: bool = False,
) -> bool:
    """Acknowledge messages of one channel together, if a shortcut supports the channel.

    Arguments:
        channel: The channel.
        messages: The messages.
        shortcuts: The enabled shortcuts.
        has_loop: Whether an event loop makes all writes to the connection, on one thread. Without
            one, several threads or greenlets can write to it at once.

    Returns:
        Whether the messages are acknowledged. If not, kombu has to acknowledge each of them, and
        raises its own error if that fails.
    """
    try:
        acknowledge = _bulk_ack_of(channel, shortcuts, has_loop=has_loop)
        if acknowledge is None or not _use_only_basic_ack(channel, messages):
            return False
        acknowledge(channel, [message.delivery_tag for message in messages])
    except Exception:
        return False
    for message in messages:
        _mark_as_acknowledged(message)
    return True


def _bulk_ack_of(
    channel: StdChannel, shortcuts: Collection[Shortcut], *, has_loop: bool
) -> Callable[[StdChannel, Sequence[Any]], None] | None:
    if "amqp_acks" in shortcuts and amqp_acks.is_supported(channel):
        if has_loop and "amqp_frames" in shortcuts and amqp_frames.is_supported(channel):
            return partial(amqp_acks.acknowledge, write=amqp_frames.write_acks)
        return amqp_acks.acknowledge
    if "redis_acks" in shortcuts and redis_acks.is_supported(channel):
        return redis_acks.acknowledge
    return None


def _use_only_basic_ack(channel: StdChannel, messages: Sequence[Message]) -> bool:
    """Whether kombu would only call ``basic_ack`` of the channel for these messages."""
    if not all(_has_kombus_ack(kind) for kind in set(map(type, messages))):
        return False
    no_ack = channel.no_ack_consumers or ()
    return not any(
        message.acknowledged or message.delivery_info.get("consumer_tag") in no_ack
        for message in messages
    )


def _has_kombus_ack(kind: type[Message]) -> bool:
    return kind.ack is Message.ack and kind.ack_log_error is Message.ack_log_error


class _SilentChannel:
    """Stands in for the channel of a message that is acknowledged at the broker."""

    no_ack_consumers = None

    def basic_ack(self, delivery_tag: int | str, multiple: bool = False) -> None:
        """Send nothing."""


_SILENT_CHANNEL = _SilentChannel()


def _mark_as_acknowledged(message: Message) -> None:
    """Set the state of kombu's message, so that no code acknowledges it again."""
    channel, message.channel = message.channel, _SILENT_CHANNEL
    message.ack()
    message.channel = channel
