"""Finds what comes first, of entries whose times change. Pure. Used in the main process."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from math import inf
from typing import Generic, TypeVar

__all__ = ("Schedule",)

T = TypeVar("T")

#: So many outdated entries stay, whatever the number of the others.
FEW = 64


class Schedule(Generic[T]):
    """Entries by time. Among those of the same time, the one that was added first is the first.

    The time of an entry may become later at any moment: then nothing needs to be said. An infinite
    time means that the entry is no longer there.

    Arguments:
        time_of: Returns the time of an entry.
    """

    __slots__ = ("_count", "_heap", "_time_of")

    def __init__(self, time_of: Callable[[T], float]) -> None:
        self._time_of = time_of
        self._heap: list[tuple[float, int, T]] = []
        self._count = count()

    def add(self, entry: T, *, alive: int) -> None:
        """Add an entry, or note that its time has become earlier.

        Arguments:
            entry: The entry.
            alive: How many entries there are, so that outdated ones do not pile up.
        """
        heappush(self._heap, (self._time_of(entry), next(self._count), entry))
        if len(self._heap) > 2 * alive + FEW:
            self._tidy()

    def first(self) -> T | None:
        """Return the entry with the earliest time, or None if there is none."""
        heap = self._heap
        while heap:
            noted, order, entry = heap[0]
            at = self._time_of(entry)
            if at == noted:
                return entry
            if at == inf:
                heappop(heap)
            else:  # It has become later. Had it become earlier, there would be another note of it.
                heapreplace(heap, (at, order, entry))
        return None

    def _tidy(self) -> None:
        """Keep one note of each entry."""
        orders: dict[T, int] = {}
        for _, order, entry in self._heap:
            orders[entry] = min(order, orders.get(entry, order))
        notes = [(self._time_of(entry), order, entry) for entry, order in orders.items()]
        self._heap = [note for note in notes if note[0] < inf]
        heapify(self._heap)
