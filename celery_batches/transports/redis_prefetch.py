"""Has ``worker_disable_prefetch`` count a batch as one task. Runs in the worker's main process."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

__all__ = ("limit_consumption",)


def limit_consumption(channel: Any, is_full: Callable[[], bool]) -> None:
    """Have a channel of Redis take in no message while the worker is full.

    Celery's check is an attribute that it gives to the channel's QoS (``worker.consumer.tasks``).
    It counts single requests, and would not let a batch grow beyond the number of processes. There
    is no other place to say so.

    Arguments:
        channel: The channel that the worker consumes from.
        is_full: Whether the worker has as many batches and tasks as it may have.
    """
    qos = channel.qos

    def can_consume(self: Any) -> bool:
        return not is_full() and bool(type(self).can_consume(self))

    qos.can_consume = MethodType(can_consume, qos)
