"""Decides how many redelivered items may share a batch. Pure. Used in the main process.

One item can cost a batch its process each time it runs. If the same items came together again, it
would take its neighbours along until a broker with a delivery limit drops all of them. So an item
that was in a lost batch is a suspect, and each loss raises its level by one:

* Level 0 is for items that nothing is known against. They share batches of `flush_every`.
* The levels above have smaller batches, each smaller than the last by the same factor.
* At `LAST_LEVEL`, an item is alone.

So an item is alone after three losses, however large a batch is. That is within any delivery limit
of 3 or more.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = (
    "GATHER_SECONDS",
    "LAST_LEVEL",
    "Memory",
    "Past",
    "batch_size",
    "level_after_loss",
    "level_of",
)

#: Seconds that suspects wait for each other, if `flush_interval` is not shorter. They have waited
#: for a batch before.
GATHER_SECONDS = 1.0

#: The level of an item that is alone in its batch.
LAST_LEVEL = 3

#: The most items that a `Memory` remembers.
MAX_REMEMBERED = 10_000

#: Seconds after which a `Memory` forgets an item: no broker that redelivers it takes longer.
REMEMBERED_SECONDS = 24 * 3600.0


def batch_size(level: int, flush_every: int) -> int:
    """Return the most items in a batch of this level: `flush_every` at level 0, 1 at the last."""
    # The addend is for roots such as that of 1000, which is 9.999… in floating point.
    return max(1, int(flush_every ** (1 - level / LAST_LEVEL) + 1e-9))


def level_after_loss(level: int, *, size: int, flush_every: int) -> int:
    """Return the next level of an item whose batch was lost.

    Arguments:
        level: Its level until now.
        size: The number of items in the lost batch. The next batch is smaller.
        flush_every: The number of items in a full batch.
    """
    level = min(level + 1, LAST_LEVEL)
    while level < LAST_LEVEL and batch_size(level, flush_every) >= size:
        level += 1
    return level


@dataclass(frozen=True, slots=True)
class Past:
    """What this worker remembers of an item that it has given back to the broker.

    Attributes:
        level: Its level.
        deliveries: How often the broker had counted it as returned before, or 0 if it does not
            count.
        arrival: When it was buffered first, or None if it was not buffered any more.
        noted: When this was noted.
    """

    level: int
    deliveries: int
    arrival: float | None
    noted: float


def level_of(past: Past | None, *, deliveries: int | None, is_redelivered: bool) -> int:
    """Return the level of an item that the broker has delivered.

    Arguments:
        past: What this worker remembers of it. It knows what the return of the item was about.
        deliveries: How often the broker has counted it as returned, or None if it does not count.
        is_redelivered: Whether the broker says that it was delivered before.
    """
    if past is not None:
        # Returns that this worker knows nothing of: another worker may have lost the item.
        others = 0 if deliveries is None else max(0, deliveries - past.deliveries - 1)
        level = past.level + others
    elif not is_redelivered:
        level = 0  # A producer may have set the header, or another queue.
    else:
        # Without a count: the worker that had it may have been lost with all of its processes.
        level = 1 if deliveries is None else deliveries
    return max(0, min(level, LAST_LEVEL))


class Memory:
    """Remembers the newest items that were given back to the broker, by id.

    All times are in seconds of one monotonic clock, which the caller owns.
    """

    __slots__ = ("past",)

    def __init__(self) -> None:
        #: What is remembered of each item, in the order in which it was noted. Only to be read.
        self.past: dict[str, Past] = {}

    def remember(self, item_id: str, past: Past) -> None:
        """Remember an item. Of an item that it knows, it keeps the higher level and older arrival.

        Arguments:
            item_id: The id of the item.
            past: What there is to remember.
        """
        known = self.past.pop(item_id, None)
        if known is not None:
            arrivals = [at for at in (known.arrival, past.arrival) if at is not None]
            past = Past(
                level=max(known.level, past.level),
                deliveries=max(known.deliveries, past.deliveries),
                arrival=min(arrivals, default=None),
                noted=past.noted,
            )
        self.past[item_id] = past
        self._forget_oldest(now=past.noted)

    def recall(self, item_id: str, *, now: float) -> Past | None:
        """Return what is remembered of an item, or None, and forget it."""
        past = self.past.pop(item_id, None)
        return None if past is None or _is_old(past, now) else past

    def _forget_oldest(self, now: float) -> None:
        while True:
            oldest = next(iter(self.past))
            if len(self.past) <= MAX_REMEMBERED and not _is_old(self.past[oldest], now):
                return
            del self.past[oldest]


def _is_old(past: Past, now: float) -> bool:
    return now - past.noted > REMEMBERED_SECONDS
