"""Chooses how to publish many messages on one channel. Runs in the process that sends calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from ..core.shortcuts import Shortcut
from . import amqp_publish, redis_publish

if TYPE_CHECKING:
    from kombu import Connection
    from kombu.transport.base import StdChannel

    from .outgoing import OnPublished, Outgoing

__all__ = ("BulkTransport", "bulk_transport", "publish_each")


class BulkTransport(Protocol):
    """What the module for one technology does."""

    def is_supported(self, channel: StdChannel) -> bool:
        """Whether the channel is as known."""

    def check(self, channel: StdChannel) -> None:
        """Raise an error if the connection is lost. No message is sent."""

    def publish(
        self, channel: StdChannel, outgoing: Sequence[Outgoing], on_published: OnPublished
    ) -> None:
        """Publish messages, in order.

        Arguments:
            channel: The channel, which `check` has found open.
            outgoing: The messages.
            on_published: Called with the position of each message that the broker has. If this
                raises, the broker may have any of the other messages.
        """


def bulk_transport(connection: Connection, shortcuts: Collection[Shortcut]) -> BulkTransport | None:
    """Return the module for the broker of a connection, or None. This does not connect.

    Arguments:
        connection: The connection.
        shortcuts: The enabled shortcuts.
    """
    match connection.transport.driver_type:
        case "redis" if "redis_publish" in shortcuts:
            return redis_publish
        case "amqp" if "amqp_publish" in shortcuts:
            return amqp_publish
    return None


def publish_each(
    channel: StdChannel, outgoing: Sequence[Outgoing], on_published: OnPublished
) -> None:
    """Publish messages as kombu does, one after the other."""
    for position, (message, options) in enumerate(outgoing):
        channel.basic_publish(message, **options)
        on_published(position)
