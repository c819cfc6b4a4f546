"""Shortcut ``amqp_prefetch``: sends a prefetch count over AMQP without waiting for a reply.

Runs in the worker's main process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import amqp

from .traits import traits_of

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer

__all__ = ("without_waiting",)


def without_waiting(consumer: Consumer) -> Callable[[int], None] | None:
    """Return a function that sends a prefetch count to an AMQP broker without waiting.

    py-amqp's ``basic_qos`` reads from the connection until the reply arrives. Messages that arrive
    meanwhile require another prefetch count. A frozen network stops the whole worker. A signal
    handler may re-enter the read. Nothing needs the reply: a broker handles methods in order, and
    closes the channel if it refuses one.

    Returns:
        The function, or None. It is None for any other broker, for an unexpected py-amqp, and if a
        prefetch count applies to new consumers only.
    """
    channel = consumer.task_consumer.channel
    own_method = getattr(amqp.Channel, "basic_qos", None)
    method = getattr(getattr(getattr(amqp, "spec", None), "Basic", None), "Qos", None)
    if own_method is None or method is None:
        return None
    if getattr(type(channel), "basic_qos", None) is not own_method:
        return None
    # RabbitMQ applies a count with `global` to all consumers of the channel. Celery relies on that.
    if consumer.connection.qos_semantics_matches_spec or traits_of(consumer).static_prefetch:
        return None

    def send_prefetch_count(prefetch_count: int) -> None:
        consumer.task_consumer.channel.send_method(method, "lBb", (0, prefetch_count, True))

    return send_prefetch_count
