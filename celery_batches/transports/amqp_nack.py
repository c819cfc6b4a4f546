"""Shortcut ``amqp_nack``: gives messages back to RabbitMQ that have not run.

Runs in the worker's main process. Quorum queues drop a message after too many failed deliveries.
RabbitMQ 4.3 and newer count ``basic.reject`` as a failure and ``basic.nack`` not. py-amqp has no
method that sends a nack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import amqp

if TYPE_CHECKING:
    from kombu import Message
    from kombu.transport.base import StdChannel

__all__ = ("nack_on_reject",)

#: Class and method of ``basic.nack``.
BASIC_NACK = (60, 120)


class NackingChannel:
    """Stands in for the channel of one message, on which a rejection is a nack."""

    def __init__(self, channel: amqp.Channel) -> None:
        self._channel = channel

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Return or drop the message, which does not count as a failure."""
        self._channel.send_method(BASIC_NACK, "Lbb", (delivery_tag, False, requeue))


def nack_on_reject(message: Message) -> None:
    """Have a rejection of the message sent as a nack, if the broker knows that."""
    if _is_supported(message.channel):
        message.channel = NackingChannel(message.channel)


def _is_supported(channel: StdChannel) -> bool:
    """Whether py-amqp would send the rejection itself, and the broker says that it has nacks."""
    own_method = getattr(amqp.Channel, "basic_reject", None)
    method = getattr(getattr(getattr(amqp, "spec", None), "Basic", None), "Nack", None)
    if own_method is None or method != BASIC_NACK:
        return False
    if getattr(type(channel), "basic_reject", None) is not own_method:
        return False
    capabilities = getattr(channel.connection, "server_capabilities", None) or {}
    return bool(capabilities.get("basic.nack"))
