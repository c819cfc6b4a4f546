"""What the worker has to know of a broker: one place that asks. Runs in the main process.

Whether acknowledgements can be collected is a question for each channel: see
`transports.bulk_acks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..compat import counts_for_new_consumers

__all__ = ("TransportTraits", "traits_of", "visibility_timeout_of")


@dataclass(frozen=True, slots=True)
class TransportTraits:
    """What sets the broker of one connection apart.

    Attributes:
        requeues_on_stop: Whether messages can go back before the connection is closed. Where kombu
            polls (Redis), the poll that is still under way may take such a message, which is with
            nobody then until the worker ends.
        static_prefetch: Whether the broker cannot be told another prefetch count once messages are
            asked for: RabbitMQ's quorum queues, which Celery 5.5 and newer detect.
        takes_what_is_free: Whether the worker takes in only what a process is free for:
            ``worker_disable_prefetch``, on Redis, in Celery 5.6 and newer.
    """

    requeues_on_stop: bool
    static_prefetch: bool
    takes_what_is_free: bool


def traits_of(consumer: Any) -> TransportTraits:
    """Return the traits of the broker that the worker's consumer is connected to."""
    # There is no connection if the worker ends for an error in the middle of a reconnect.
    driver = consumer.connection.transport.driver_type if consumer.connection else None
    return TransportTraits(
        requeues_on_stop=driver == "amqp",
        static_prefetch=driver == "amqp" and counts_for_new_consumers(consumer),
        takes_what_is_free=driver == "redis" and _disables_prefetch(consumer),
    )


def _disables_prefetch(consumer: Any) -> bool:
    return bool(consumer.app.conf.get("worker_disable_prefetch", False))


def visibility_timeout_of(channel: Any) -> float | None:
    """Return the seconds after which the broker delivers again what is not acknowledged.

    Kombu's transports for Redis, SQS and a few others have such a time-out; others have none.
    """
    timeout = getattr(channel, "visibility_timeout", None)
    return float(timeout) if isinstance(timeout, Real) and not isinstance(timeout, bool) else None
