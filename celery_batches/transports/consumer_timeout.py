"""Warns of waits that reach the consumer timeout of RabbitMQ. Runs in the main process.

RabbitMQ calls it the delivery acknowledgement timeout. What becomes of the worker depends on the
version of RabbitMQ: see "RabbitMQ's consumer timeout" in ``docs/how-it-works.rst``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer
    from kombu import Queue

    from ..task import Batches

__all__ = (
    "CONSUMER_TIMEOUT",
    "SETTING",
    "consumer_timeout",
    "warn_of_consumer_timeout",
    "warn_of_late_eta",
)

logger = get_logger(__name__)

#: The app setting: the ``consumer_timeout`` of the broker, in seconds.
SETTING = "batches_consumer_timeout"

#: The default of RabbitMQ 3.8.17 and newer, in seconds.
CONSUMER_TIMEOUT = 1800

#: The argument of a queue or of its consumer, in milliseconds.
ARGUMENT = "x-consumer-timeout"

CHOICES = (
    "a number of seconds above 0, the consumer_timeout of RabbitMQ, or None if RabbitMQ has none. "
    "Set for example batches_consumer_timeout = 3600"
)

TAKES_BACK = (
    "RabbitMQ takes back a message that is not acknowledged within %gs (%s), and closes the "
    "channel or cancels the consumer. The worker ends or reconnects, and"
)
TOO_LATE = (
    f"Task %s: flush_interval is %gs, but {TAKES_BACK} the buffered calls are delivered again, for "
    f"ever. A call waits unacknowledged for its ETA, then for its batch to fill%s. Lower "
    f"flush_interval, or raise %s."
)
TURN_TOO_LATE = (
    f"Task %s: rate_limit lets one batch start in %gs, but {TAKES_BACK} full batches that wait for "
    f"their turn are delivered again. Raise rate_limit, or raise %s."
)
ETA_TOO_LATE = (
    f"Task %s: a call with an ETA waits for %gs, and up to %gs more for its batch to fill, but "
    f"{TAKES_BACK} all that it holds is delivered again. Use shorter ETAs, or raise %s. (Logged "
    f"once for each connection.)"
)


@dataclass(frozen=True, slots=True)
class ConsumerTimeout:
    """The time that RabbitMQ leaves a worker to acknowledge a message.

    Attributes:
        seconds: How long it is.
        source: Where it is set.
        remedy: What to raise.
    """

    seconds: float
    source: str
    remedy: str


def consumer_timeout(conf: Mapping[str, Any]) -> float | None:
    """Return the ``consumer_timeout`` of the broker in seconds, as an app's configuration has it.

    Arguments:
        conf: The configuration, such as ``app.conf``.

    Returns:
        The seconds, by default 1800. None if the broker has no such timeout.

    Raises:
        TypeError: If the setting is neither a number nor None.
        ValueError: If it is not a finite number above 0.
    """
    setting = conf.get(SETTING, CONSUMER_TIMEOUT)
    if setting is None:
        return None
    if isinstance(setting, bool) or not isinstance(setting, Real):
        raise TypeError(f"{SETTING} = {setting!r}: it has to be {CHOICES}")
    seconds = float(setting)
    if not (isfinite(seconds) and seconds > 0):
        raise ValueError(f"{SETTING} = {setting!r}: it has to be {CHOICES}")
    return seconds


def warn_of_consumer_timeout(task: Batches, consumer: Consumer, interval: float) -> None:
    """Warn if messages may wait in the worker for the consumer timeout or longer.

    It may be in the buffer, or for the rate limit.

    Arguments:
        task: The batch task.
        consumer: The worker's consumer.
        interval: The ``flush_interval`` of the task, in seconds.
    """
    limit = _shortest(consumer)
    if limit is None:
        return
    if interval >= limit.seconds:
        rest = ", and with acks_late for the batch to end" if task.acks_late else ""
        logger.warning(
            *(TOO_LATE, task.name, interval),
            *(limit.seconds, limit.source, rest, limit.remedy),
        )
    turn = _turn(task, consumer)
    if turn >= limit.seconds:
        logger.warning(TURN_TOO_LATE, task.name, turn, limit.seconds, limit.source, limit.remedy)


def warn_of_late_eta(task: Batches, consumer: Consumer, wait: float, interval: float) -> bool:
    """Warn if a call may wait for the consumer timeout or longer, for its ETA and its batch.

    Arguments:
        task: The batch task.
        consumer: The worker's consumer.
        wait: Seconds until the ETA of the call.
        interval: The ``flush_interval`` of the task, in seconds.

    Returns:
        Whether it has warned.
    """
    limit = _shortest(consumer)
    if limit is None or wait + interval < limit.seconds:
        return False
    logger.warning(
        *(ETA_TOO_LATE, task.name, round(wait, 1), interval),
        *(limit.seconds, limit.source, limit.remedy),
    )
    return True


def _turn(task: Batches, consumer: Consumer) -> float:
    """Return the seconds between two batches of the task, as its rate limit has it."""
    bucket = None if consumer.disable_rate_limits else consumer.task_buckets[task.name]
    return 0.0 if bucket is None else 1 / float(bucket.fill_rate)


def _shortest(consumer: Consumer) -> ConsumerTimeout | None:
    """Return the shortest timeout of the queues that the worker consumes from, or None.

    A message of any of them that is late costs the worker its channel.
    """
    if not consumer.connection or consumer.connection.transport.driver_type != "amqp":
        return None
    queues: Iterable[Queue] = getattr(consumer.task_consumer, "queues", ())
    default = consumer_timeout(consumer.app.conf)
    limits = [limit for queue in queues if (limit := _timeout_of(queue, default))]
    return min(limits, key=lambda limit: limit.seconds, default=None)


def _timeout_of(queue: Queue, default: float | None) -> ConsumerTimeout | None:
    # RabbitMQ looks at them in this order.
    for arguments, owner in (
        (queue.consumer_arguments, "consumer_arguments"),
        (queue.queue_arguments, "queue_arguments"),
    ):
        value = (arguments or {}).get(ARGUMENT)
        if isinstance(value, int) and value > 0:
            name = f"{ARGUMENT} of queue {queue.name}"
            return ConsumerTimeout(value / 1000, name, f"{ARGUMENT} in its {owner}")
    if default is None:
        return None
    remedy = f"consumer_timeout in rabbitmq.conf and set {SETTING} to it, in seconds"
    return ConsumerTimeout(default, SETTING, remedy)
