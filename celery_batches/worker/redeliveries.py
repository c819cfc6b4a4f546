"""What a worker knows of requests that the broker may redeliver. Runs in its main process.

`core/suspects.py` has the rules. The broker adds what other workers have done with a message:
RabbitMQ counts deliveries from quorum queues in a header, and most brokers flag a redelivered one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import RLock
from time import monotonic
from typing import Any

from celery.utils.log import get_logger

from ..core.suspects import Memory, Past, batch_size, level_after_loss, level_of
from .member_request import MemberRequest

__all__ = ("Redeliveries", "suspect_requeued")

logger = get_logger(__name__)

SUSPECTS = (
    "Task %s: %d requests were requeued, since their batch has lost its process or reached its "
    "time limit. They run again in batches of at most %d, so that a call that does this runs alone."
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
        task_name: The name of the batch task.
    """

    def __init__(self, task_name: str) -> None:
        self._task_name = task_name
        self._memory = Memory()
        #: What is remembered, by the id of the request. It is always the same object.
        self.remembered: Mapping[str, Past] = self._memory.past
        # Reentrant, since a signal handler that stops the pool may run callbacks.
        self._lock = RLock()

    def remember(self, request: MemberRequest, *, arrival: float | None = None) -> None:
        """Remember a request that goes back to the broker and is no suspect for that.

        Arguments:
            request: The request.
            arrival: When it was buffered, if it still was.
        """
        self._note(request, request.suspect_level, arrival)

    def suspect(self, requests: Sequence[MemberRequest], *, size: int, flush_every: int) -> None:
        """Have requests of a lost batch run again in smaller batches, if their task acks late.

        Arguments:
            requests: Those that were requeued.
            size: The number of requests in the lost batch.
            flush_every: The number of requests in a full batch.
        """
        lowest = None
        for request in requests:
            level = level_after_loss(request.suspect_level, size=size, flush_every=flush_every)
            self._note(request, level, None)
            lowest = level if lowest is None else min(lowest, level)
        if lowest is not None:
            at_most = batch_size(lowest, flush_every)
            logger.warning(SUSPECTS, self._task_name, len(requests), at_most)

    def recall(self, request: MemberRequest, *, acks_late: bool, now: float) -> float | None:
        """Set the level of a request that was delivered, and forget what is remembered of it.

        Arguments:
            request: The request.
            acks_late: Whether its message is acknowledged after it has run. Otherwise a redelivered
                request has not run, and is no suspect.
            now: The time.

        Returns:
            When it was buffered first, or now if that is not known. None if there is nothing to
            know, as for most requests.
        """
        with self._lock:
            past = self._memory.recall(request.id, now=now)
        if past is None and not request.is_redelivered:
            return None
        if acks_late:
            request.suspect_level = level_of(
                past, deliveries=_deliveries(request), is_redelivered=request.is_redelivered
            )
        return now if past is None or past.arrival is None else past.arrival

    def _note(self, request: MemberRequest, level: int, arrival: float | None) -> None:
        past = Past(level, _deliveries(request) or 0, arrival, noted=monotonic())
        with self._lock:
            self._memory.remember(request.id, past)


def suspect_requeued(requests: Sequence[MemberRequest]) -> None:
    """Have those requests of a lost batch that were requeued run again in smaller batches."""
    requeued = [request for request in requests if request.is_requeued]
    strategy = requeued[0].strategy if requeued else None
    if strategy is not None:
        strategy.redeliveries.suspect(
            requeued, size=len(requests), flush_every=strategy.options.limits.flush_every
        )


def _deliveries(request: MemberRequest) -> int | None:
    """Return how often the broker has counted the message as returned, or None."""
    headers: Mapping[str, Any] | None = request.message.headers
    count = (headers or {}).get(DELIVERY_COUNT)
    if isinstance(count, int):
        return count
    return 0 if headers and ACQUIRED_COUNT in headers else None
