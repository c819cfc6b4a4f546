"""What a worker knows of requests that the broker may redeliver. Runs in its main process.

`core/suspects.py` has the rules. The broker adds what other workers have done with a message:
RabbitMQ counts deliveries from quorum queues in a header, and most brokers flag a redelivered one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

from celery.utils.log import get_logger

from ..core.suspects import Memory, Past, batch_size, level_after_loss, level_of
from .member_request import MemberRequest

__all__ = ("Redeliveries", "suspecting")

logger = get_logger(__name__)

SUSPECTS = (
    "Task %s: %d requests run again, since their batch has lost its process or reached its time "
    "limit. They run in batches of at most %d, so that a call that does this is alone in the end."
)

#: RabbitMQ's count of the failed deliveries of a message, in quorum queues. Before 4.3, it counts
#: every return of the message.
DELIVERY_COUNT = "x-delivery-count"

#: RabbitMQ 4.3 and newer: how often a consumer has got the message. Its presence says that the
#: queue counts.
ACQUIRED_COUNT = "x-acquired-count"


class Redeliveries:
    """Remembers requests that were given back to the broker, for all connections of a task.

    Any thread may call it, also while its own thread holds the lock of a strategy.

    Arguments:
        monotonic: Returns the time of the worker's clock.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._memory = Memory()
        #: What is remembered, by the id of the request. It is always the same object.
        self.remembered: Mapping[str, Past] = self._memory.past
        # Reentrant, since a signal handler that stops the pool may run callbacks.
        self._lock = RLock()

    def remember(self, request: MemberRequest, *, arrival: float | None = None) -> None:
        """Remember a request that goes back to the broker, with its level.

        Arguments:
            request: The request.
            arrival: When it was buffered, if it still was.
        """
        now = self._monotonic()
        past = Past(request.suspect_level, _deliveries(request) or 0, arrival, noted=now)
        with self._lock:
            self._memory.remember(request.id, past)

    def recall(self, request: MemberRequest, *, acks_late: bool, now: float) -> float | None:
        """Set the level of a request that was delivered, and forget what is remembered of it.

        Arguments:
            request: The request.
            acks_late: Whether its message is acknowledged after it has run. Otherwise a redelivered
                request has not run, and other workers have not lost it.
            now: The time.

        Returns:
            When it was buffered first, or now if that is not known. None if there is nothing to
            know, as for most requests.
        """
        with self._lock:
            past = self._memory.recall(request.id, now=now)
        is_redelivered = request.is_redelivered
        if past is None and not is_redelivered:
            return None
        request.suspect_level = level_of(
            past,
            deliveries=_deliveries(request) if acks_late else None,
            is_redelivered=is_redelivered and acks_late,
        )
        return now if past is None or past.arrival is None else past.arrival


@contextmanager
def suspecting(requests: Sequence[MemberRequest], *, is_lost: bool) -> Iterator[None]:
    """Have those requests of a batch that are requeued or retried meanwhile run in smaller ones.

    Arguments:
        requests: The requests of the batch.
        is_lost: Whether the batch has lost its process. Otherwise it has reached a time limit.
    """
    strategy = requests[0].strategy if requests else None
    if strategy is None:
        yield
        return
    size, flush_every = len(requests), strategy.options.limits.flush_every
    # Before they are requeued, since they may come again before the last one is.
    for request in requests:
        level = level_after_loss(request.suspect_level, size=size, flush_every=flush_every)
        request.suspect_level = level
    yield
    again = [r for r in requests if r.is_requeued or (is_lost and r.is_retried_when_lost)]
    for request in again:
        if not request.is_requeued:  # A retry is a new message, with the same id.
            strategy.redeliveries.remember(request)
    if again and size > 1:
        at_most = batch_size(min(request.suspect_level for request in again), flush_every)
        logger.warning(SUSPECTS, strategy.task.name, len(again), at_most)


def _deliveries(request: MemberRequest) -> int | None:
    """Return how often the broker has counted the message as returned, or None."""
    headers: Mapping[str, Any] | None = request.message.headers
    count = (headers or {}).get(DELIVERY_COUNT)
    if isinstance(count, int):
        return count
    return 0 if headers and ACQUIRED_COUNT in headers else None
