"""Warns of waits that reach the visibility timeout of the broker. Runs in the main process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from celery.utils.log import get_logger

from .traits import visibility_timeout_of

if TYPE_CHECKING:
    from kombu.transport.base import StdChannel

__all__ = ("warn_of_eta", "warn_of_visibility_timeout")

logger = get_logger(__name__)

TOO_LATE = (
    "Task %s: flush_interval is %gs, but the broker redelivers a message that is not acknowledged "
    "within its visibility_timeout of %gs. Calls would run twice. A call waits unacknowledged for "
    "its ETA, then for its batch to fill%s. Lower flush_interval, or set for example "
    "broker_transport_options = {'visibility_timeout': %d}."
)
ETA_TOO_LATE = (
    "Task %s: a call with an ETA waits for %gs, and up to %gs more for its batch to fill, but the "
    "broker redelivers a message that is not acknowledged within its visibility_timeout of %gs. "
    "Such calls would run twice. Use shorter ETAs, or set for example broker_transport_options = "
    "{'visibility_timeout': %d}. (Logged once for each connection.)"
)


class BufferingTask(Protocol):
    """The attributes of a batch task that the warnings depend on."""

    name: str
    acks_late: bool


def warn_of_visibility_timeout(task: BufferingTask, channel: StdChannel, interval: float) -> None:
    """Warn if messages may wait in the buffer for the visibility timeout or longer.

    Arguments:
        task: The batch task.
        channel: The channel of its messages.
        interval: The ``flush_interval`` of the task, in seconds.
    """
    timeout = visibility_timeout_of(channel)
    if timeout is not None and interval >= timeout:
        rest = ", and with acks_late for the batch to end" if task.acks_late else ""
        suggestion = max(3600, round(2 * interval))
        logger.warning(TOO_LATE, task.name, interval, timeout, rest, suggestion)


def warn_of_eta(task: BufferingTask, channel: StdChannel, wait: float, interval: float) -> bool:
    """Warn if a call may wait for the visibility timeout or longer, for its ETA and its batch.

    Arguments:
        task: The batch task.
        channel: The channel of its messages.
        wait: Seconds until the ETA of the call.
        interval: The ``flush_interval`` of the task, in seconds.

    Returns:
        Whether it has warned.
    """
    timeout = visibility_timeout_of(channel)
    if timeout is None or wait + interval < timeout:
        return False
    suggestion = max(3600, round(2 * (wait + interval)))
    logger.warning(ETA_TOO_LATE, task.name, round(wait, 1), interval, timeout, suggestion)
    return True
