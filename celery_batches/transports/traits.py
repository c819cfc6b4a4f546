"""The traits of a broker on which the worker depends. Runs in the main process.

Whether acknowledgements can be collected depends on each channel: see `transports.bulk_acks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

from ..compat import has_prefetch_per_consumer

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer
    from kombu.transport.base import StdChannel

__all__ = ("TransportTraits", "traits_of", "visibility_timeout_of")


@dataclass(frozen=True, slots=True)
class TransportTraits:
    """The traits of the broker of one connection.

    Attributes:
        requeues_on_stop: Whether the worker can requeue messages before it closes the connection.
            On Redis it cannot, since kombu polls. A pending poll could receive a requeued message,
            and keep it until the worker ends.
        static_prefetch: Whether the prefetch count of a running consumer cannot change. This is so
            for RabbitMQ's quorum queues, which Celery 5.5 and newer detect.
        takes_what_is_free: Whether the worker receives a message only if a process is free for it.
            This is ``worker_disable_prefetch``, on Redis, in Celery 5.6 and newer.
    """

    requeues_on_stop: bool
    static_prefetch: bool
    takes_what_is_free: bool


def traits_of(consumer: Consumer) -> TransportTraits:
    """Return the traits of the broker to which the worker's consumer is connected."""
    # There is no connection if the worker stops with an error while it reconnects.
    driver = consumer.connection.transport.driver_type if consumer.connection else None
    return TransportTraits(
        requeues_on_stop=driver == "amqp",
        static_prefetch=driver == "amqp" and has_prefetch_per_consumer(consumer),
        takes_what_is_free=driver == "redis" and _disables_prefetch(consumer),
    )


def _disables_prefetch(consumer: Consumer) -> bool:
    return bool(consumer.app.conf.get("worker_disable_prefetch", False))


def visibility_timeout_of(channel: StdChannel) -> float | None:
    """Return the seconds after which the broker redelivers an unacknowledged message, or None.

    Kombu's transports for Redis and SQS, and a few more, have such a timeout.
    """
    timeout = getattr(channel, "visibility_timeout", None)
    return float(timeout) if isinstance(timeout, Real) and not isinstance(timeout, bool) else None
