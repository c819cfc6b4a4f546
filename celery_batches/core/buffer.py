"""Decides when one batch is full or due. Pure. Used in the main process."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar, overload

from .rules import NOTHING, Facts, Limits, Trigger

__all__ = ("Batch", "Buffer", "Buffered")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch(Sequence[T]):
    """Items that leave the buffer together, oldest first.

    Attributes:
        items: The items, in the order in which they arrived. Never empty.
        trigger: Why they were flushed.
        key: The key that all of them have.
        weight: Their weight together, or None if there is no limit of it.
    """

    items: tuple[T, ...]
    trigger: Trigger
    key: Hashable = None
    weight: float | None = None

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
class Buffered(Generic[T]):
    """An item that waits, with its arrival and its facts."""

    arrival: float
    item: T
    facts: Facts = NOTHING


class Buffer(Generic[T]):
    """Collects items of one key until a batch is full or due, as its rules say.

    All times are in seconds of one monotonic clock, which the caller owns.

    Arguments:
        limits: The rules. The caller may replace them at any time. New limits also apply to items
            that are buffered already.
        key: The key of all items.
    """

    __slots__ = (
        "_arrivals",
        "_closed_by",
        "_facts",
        "_items",
        "_limits",
        "_size",
        "_weight",
        "flush_by",
        "key",
        "newest",
    )

    def __init__(self, limits: Limits, key: Hashable = None) -> None:
        self.key = key
        self._limits = limits
        self._items: list[T] = []
        #: The arrival time of each item, the oldest first.
        self._arrivals: list[float] = []
        self._facts: list[Facts] = []
        #: The size and the weight of the batch that leaves next: the oldest items.
        self._size = 0
        self._weight = 0.0
        #: Why that batch takes no more items, or None if it does.
        self._closed_by: Trigger | None = None
        #: When the last item came.
        self.newest = -inf
        #: The earliest time by which an item is flushed, since it expires.
        self.flush_by = inf

    def __len__(self) -> int:
        return len(self._items)

    @property
    def limits(self) -> Limits:
        """The rules by which batches are flushed."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self._measure()

    @property
    def is_full(self) -> bool:
        """Whether there is a batch that takes no more items."""
        return self._closed_by is not None

    @property
    def oldest(self) -> float:
        """The arrival time of the oldest item. Infinite if there is none."""
        return self._arrivals[0] if self._arrivals else inf

    @property
    def next_wakeup(self) -> float:
        """The time at which `poll` returns a batch. Infinite while the buffer is empty."""
        if not self._items:
            return inf
        return min([rule.wakes_at(self) for rule in self._limits.timing])

    @property
    def due_by(self) -> Trigger:
        """The trigger of the rule that is due first."""
        return min(self._limits.timing, key=lambda rule: rule.wakes_at(self)).trigger

    def is_due(self, *, now: float) -> bool:
        """Whether the items have waited long enough."""
        return self.next_wakeup <= now

    def add(self, item: T, facts: Facts = NOTHING, *, now: float) -> bool:
        """Add an item that has just arrived, and return whether there is a full batch.

        ``now`` must not be before the arrival of any item that is buffered: see `insert`.
        """
        self._items.append(item)
        self._arrivals.append(now)
        self._facts.append(facts)
        self.newest = now
        if facts.flush_by < self.flush_by:
            self.flush_by = facts.flush_by
        return self._closed_by is not None or self._extend(facts)

    def insert(self, item: T, facts: Facts = NOTHING, *, arrival: float, now: float) -> bool:
        """Add an item that has arrived before, at its place among the items.

        Arguments:
            item: The item.
            facts: What the rules need to know of it.
            arrival: When it arrived first.
            now: When it has come again.

        Returns:
            Whether there is a full batch.
        """
        place = bisect_right(self._arrivals, arrival)
        self._items.insert(place, item)
        self._arrivals.insert(place, arrival)
        self._facts.insert(place, facts)
        self.newest = max(self.newest, now)
        self.flush_by = min(self.flush_by, facts.flush_by)
        if place < len(self._items) - 1:
            self._measure()
        elif self._closed_by is None:
            self._extend(facts)
        return self.is_full

    def take(self, trigger: Trigger) -> Batch[T]:
        """Return the batch that leaves next. The buffer must not be empty.

        Arguments:
            trigger: Why it leaves, unless it is full.
        """
        size = self._size
        weight = None if self._limits.flush_max_weight is None else self._weight
        batch = Batch(tuple(self._items[:size]), self._closed_by or trigger, self.key, weight)
        del self._items[:size], self._arrivals[:size], self._facts[:size]
        self._measure()
        return batch

    def take_full(self) -> Batch[T] | None:
        """Return a full batch of the oldest items, or None if there is none."""
        return None if self._closed_by is None else self.take(self._closed_by)

    def poll(self, *, now: float) -> list[Batch[T]]:
        """Return all items as batches if they have waited long enough, else nothing."""
        return self.drain(self.due_by) if self.is_due(now=now) else []

    def drain(self, trigger: Trigger = "shutdown") -> list[Batch[T]]:
        """Empty the buffer and return its items as batches to run."""
        batches = []
        while self._items:
            batches.append(self.take(trigger))
        return batches

    def discard(self) -> list[Buffered[T]]:
        """Empty the buffer and return its items, which do not run from here.

        They are in the order of their arrival.
        """
        waiting = zip(self._arrivals, self._items, self._facts, strict=True)
        self._items, self._arrivals, self._facts = [], [], []
        self._measure()
        return [Buffered(*each) for each in waiting]

    def _extend(self, facts: Facts) -> bool:
        """Have the next item join the batch that leaves next, and return whether that is full."""
        size, weight, limits = self._size, self._weight, self._limits
        if size:
            for rule in limits.joining:
                if not rule.fits(weight, facts):
                    self._closed_by = rule.trigger
                    return True
        self._size = size = size + 1
        self._weight = weight = weight + facts.weight
        for closing in limits.closing:
            if closing.is_full(size, weight):
                self._closed_by = closing.trigger
                return True
        return False

    def _measure(self) -> None:
        """Find the batch that leaves next, and when an item expires."""
        self._size, self._weight, self._closed_by = 0, 0.0, None
        for facts in self._facts:
            if self._extend(facts):
                break
        if self.flush_by < inf:
            self.flush_by = min([facts.flush_by for facts in self._facts], default=inf)
