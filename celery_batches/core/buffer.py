"""Decides when a batch is full or due. Pure. Used in the main process."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, Literal, TypeVar, overload

__all__ = ("Batch", "Buffer", "Limits", "Trigger")

T = TypeVar("T")

#: Why a batch was flushed.
Trigger = Literal["size", "interval", "manual", "shutdown"]


@dataclass(frozen=True, slots=True)
class Batch(Sequence[T]):
    """Items that leave the buffer together, oldest first.

    Attributes:
        items: The items, in the order in which they arrived. Never empty.
        trigger: Why they were flushed.
    """

    items: tuple[T, ...]
    trigger: Trigger

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.items[index]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch is flushed.

    Attributes:
        flush_every: The number of items in a full batch, at least 1.
        flush_interval: Seconds that an item may wait, more than 0.
    """

    flush_every: int
    flush_interval: float


class Buffer(Generic[T]):
    """Collects items until a batch is full or the oldest item has waited long enough.

    All times are in seconds of one monotonic clock, which the caller owns.

    Attributes:
        limits: When a batch is flushed. The caller may replace them at any time. New limits also
            apply to items that are buffered already.
    """

    __slots__ = ("_arrivals", "_items", "limits")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._items: list[T] = []
        #: The arrival time of each item, the oldest first.
        self._arrivals: list[float] = []

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Whether there are enough items for a full batch."""
        return len(self._items) >= self.limits.flush_every

    @property
    def oldest(self) -> float:
        """The arrival time of the oldest item. Infinite if there is none."""
        return self._arrivals[0] if self._arrivals else inf

    @property
    def next_wakeup(self) -> float | None:
        """The time at which `poll` returns a batch, or None while the buffer is empty."""
        return self._arrivals[0] + self.limits.flush_interval if self._arrivals else None

    def is_due(self, *, now: float) -> bool:
        """Whether the oldest item has waited `flush_interval`."""
        wakeup = self.next_wakeup
        return wakeup is not None and wakeup <= now

    def add(self, item: T, *, now: float) -> bool:
        """Add an item that has just arrived, and return whether there are enough for a full batch.

        ``now`` must not be before the arrival of any item that is buffered: see `insert`.
        """
        self._items.append(item)
        self._arrivals.append(now)
        return len(self._items) >= self.limits.flush_every

    def insert(self, item: T, *, arrival: float) -> bool:
        """Add an item that has arrived before, at its place among the items.

        Returns:
            Whether there are enough items for a full batch.
        """
        place = bisect_right(self._arrivals, arrival)
        self._items.insert(place, item)
        self._arrivals.insert(place, arrival)
        return len(self._items) >= self.limits.flush_every

    def take_full(self) -> Batch[T] | None:
        """Return a full batch of the oldest items, or None if there are too few."""
        return self._emit("size") if self.is_full else None

    def poll(self, *, now: float) -> list[Batch[T]]:
        """Return all items as batches if the oldest has waited `flush_interval`, else nothing."""
        return self.drain("interval") if self.is_due(now=now) else []

    def drain(self, trigger: Trigger = "shutdown") -> list[Batch[T]]:
        """Empty the buffer and return its items as batches to run."""
        batches = []
        while self._items:
            batches.append(self._emit("size" if self.is_full else trigger))
        return batches

    def discard(self) -> list[tuple[float, T]]:
        """Empty the buffer and return its items, which do not run from here, with their arrivals.

        They are in the order of their arrival.
        """
        items, arrivals = self._items, self._arrivals
        self._items, self._arrivals = [], []
        return list(zip(arrivals, items, strict=True))

    def _emit(self, trigger: Trigger) -> Batch[T]:
        """Return the oldest items as a batch of at most `flush_every`."""
        size = self.limits.flush_every
        batch = Batch(tuple(self._items[:size]), trigger)
        del self._items[:size], self._arrivals[:size]
        return batch
