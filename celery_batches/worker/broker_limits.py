"""Warns of options that do not go with the broker. Runs in the worker's main process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.rules import Limits
from ..transports.consumer_timeout import warn_of_consumer_timeout
from ..transports.visibility import warn_of_visibility_timeout
from .interfaces import Consumer
from .prefetch import warn_of_prefetch_limit

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("warn_of_broker_limits",)


def warn_of_broker_limits(task: Batches, consumer: Consumer, limits: Limits) -> None:
    """Warn if a batch cannot fill, or a request may wait too long, with this broker.

    Arguments:
        task: The batch task.
        consumer: The worker's consumer.
        limits: When a batch is flushed.
    """
    warn_of_prefetch_limit(task.name, limits.flush_every, consumer.initial_prefetch_count)
    channel = getattr(consumer.task_consumer, "channel", None)
    warn_of_visibility_timeout(task, channel, limits.flush_interval)
    warn_of_consumer_timeout(task, consumer, limits.flush_interval)
