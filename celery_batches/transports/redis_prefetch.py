"""Makes ``worker_disable_prefetch`` count a batch as one task. Runs in the main process."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kombu.transport.virtual import Channel, QoS

__all__ = ("limit_consumption",)


def limit_consumption(channel: Channel, is_full: Callable[[], bool]) -> None:
    """Stop a Redis channel from consuming messages while the worker is full.

    Celery sets a check of its own on the channel's QoS (``worker.consumer.tasks``). It counts
    single requests, so a batch could not grow beyond the number of processes. kombu has no other
    extension point for this.

    Arguments:
        channel: The channel from which the worker consumes.
        is_full: Returns whether the worker has as many batches and tasks as it may have.
    """
    qos = channel.qos

    def can_consume(self: QoS) -> bool:
        return not is_full() and bool(type(self).can_consume(self))

    qos.can_consume = MethodType(can_consume, qos)
