"""Brokers that deliver a message again if it is not acknowledged in time. In the main process."""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger

from .traits import visibility_timeout_of

__all__ = ("warn_of_eta", "warn_of_visibility_timeout")

logger = get_logger(__name__)

TOO_LATE = (
    "Task %s: flush_interval is %gs, but the broker delivers a message again that is not "
    "acknowledged within its visibility_timeout of %gs: calls would run twice. A call waits "
    "unacknowledged for its ETA, then for its batch to fill%s. Lower flush_interval, or set for "
    "example broker_transport_options = {'visibility_timeout': %d}."
)
ETA_TOO_LATE = (
    "Task %s: a call with an ETA waits for %gs, and up to %gs more for its batch to fill, but the "
    "broker delivers a message again that is not acknowledged within its visibility_timeout of "
    "%gs: such calls would run twice. Use shorter ETAs, or set for example "
    "broker_transport_options = {'visibility_timeout': %d}. (Said once for each connection.)"
)


def warn_of_visibility_timeout(task: Any, channel: Any, interval: float) -> None:
    """Warn if messages may wait in the buffer for longer than the broker waits for them.

    Kombu's transports for Redis, SQS and a few others have such a time-out; others have none.

    Arguments:
        task: The batch task.
        channel: The channel that its messages come on.
        interval: Its ``flush_interval`` in seconds.
    """
    timeout = visibility_timeout_of(channel)
    if timeout is not None and interval >= timeout:
        late = ", and with acks_late for the batch to end" if task.acks_late else ""
        wanted = max(3600, round(2 * interval))
        logger.warning(TOO_LATE, task.name, interval, timeout, late, wanted)


def warn_of_eta(task: Any, channel: Any, wait: float, interval: float) -> bool:
    """Warn if a call that waits so many seconds for its ETA, and then for its batch, is too late.

    Returns:
        Whether it is.
    """
    timeout = visibility_timeout_of(channel)
    if timeout is None or wait + interval < timeout:
        return False
    wanted = max(3600, round(2 * (wait + interval)))
    logger.warning(ETA_TOO_LATE, task.name, round(wait, 1), interval, timeout, wanted)
    return True
