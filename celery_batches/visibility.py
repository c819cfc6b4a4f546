"""Brokers that deliver a message again if it is not acknowledged in time. In the main process."""

from __future__ import annotations

from numbers import Real
from typing import Any

from celery.utils.log import get_logger

__all__ = ("warn_of_visibility_timeout",)

logger = get_logger(__name__)

TOO_LATE = (
    "Task %s: flush_interval is %gs, but the broker delivers a message again that is not "
    "acknowledged within its visibility_timeout of %gs: calls would run twice. A call waits "
    "unacknowledged for its ETA, then for its batch to fill%s. Lower flush_interval, or set for "
    "example broker_transport_options = {'visibility_timeout': %d}."
)


def warn_of_visibility_timeout(task: Any, channel: Any) -> None:
    """Warn if messages may wait in the buffer for longer than the broker waits for them.

    Kombu's transports for Redis, SQS and a few others have such a time-out; others have none.

    Arguments:
        task: The batch task.
        channel: The channel that its messages come on.
    """
    timeout = getattr(channel, "visibility_timeout", None)
    if not isinstance(timeout, Real) or isinstance(timeout, bool):
        return
    interval = task.flush_interval_seconds
    if interval >= timeout:
        late = ", and with acks_late for the batch to end" if task.acks_late else ""
        wanted = max(3600, round(2 * interval))
        logger.warning(TOO_LATE, task.name, interval, timeout, late, wanted)
