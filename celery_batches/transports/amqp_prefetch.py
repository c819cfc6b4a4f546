"""Shortcut ``amqp_prefetch``: tells an AMQP broker a prefetch count without waiting for its answer.

Runs in the worker's main process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import amqp

from .traits import traits_of

__all__ = ("without_waiting",)


def without_waiting(consumer: Any) -> Callable[[int], Any] | None:
    """Return what sends a prefetch count to an AMQP broker and does not wait for its answer.

    py-amqp's ``basic_qos`` reads from the connection until the answer comes. Meanwhile the messages
    that come in call for another prefetch count, a frozen network stops the whole worker, and a
    signal handler that stops the worker may re-enter the read. Nothing needs that answer: a broker
    handles methods in order, and closes the channel if it refuses one.

    Returns:
        None for any other broker, for a py-amqp that is not as known here, and where a prefetch
        count is for new consumers only.
    """
    channel = consumer.task_consumer.channel
    plain = getattr(amqp.Channel, "basic_qos", None)
    method = getattr(getattr(getattr(amqp, "spec", None), "Basic", None), "Qos", None)
    if plain is None or method is None or getattr(type(channel), "basic_qos", None) is not plain:
        return None
    # RabbitMQ's meaning of a count for all consumers of a channel, which Celery asks for there.
    if consumer.connection.qos_semantics_matches_spec or traits_of(consumer).static_prefetch:
        return None

    def tell(prefetch_count: int) -> None:
        consumer.task_consumer.channel.send_method(method, "lBb", (0, prefetch_count, True))

    return tell
