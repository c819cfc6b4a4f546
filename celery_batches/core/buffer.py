"""When is a batch full, or due? Pure: no Celery, no clock, no I/O. Used in the main process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, overload

__all__ = ("Batch", "Buffer", "Trigger")

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


class Buffer(Generic[T]):
    """Collects items until there are enough of them or the oldest has waited long enough.

    Every time is in seconds of one monotonic clock, which the caller owns.

    Arguments:
        flush_every: The number of items in a full batch, at least 1.
        flush_interval: Seconds that an item may wait, more than 0.
    """

    __slots__ = ("_deadline", "_items", "flush_every", "flush_interval")

    def __init__(self, *, flush_every: int, flush_interval: float) -> None:
        self.flush_every = flush_every
        self.flush_interval = flush_interval
        self._items: list[T] = []
        self._deadline: float | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def next_wakeup(self) -> float | None:
        """When `poll` will have something to emit, or ``None`` while the buffer is empty."""
        return self._deadline

    def add(self, item: T, *, now: float) -> Batch[T] | None:
        """Take in an item; return the batch that it makes full, if it does."""
        if self._deadline is None:
            self._deadline = now + self.flush_interval
        self._items.append(item)
        if len(self._items) >= self.flush_every:
            return self._emit("size")
        return None

    def poll(self, *, now: float) -> list[Batch[T]]:
        """Return what is due: everything, once the oldest item has waited `flush_interval`."""
        if self._deadline is None or now < self._deadline:
            return []
        return [self._emit("interval")]

    def drain(self, trigger: Trigger = "shutdown") -> list[Batch[T]]:
        """Return all that is left, as batches to be run."""
        return [self._emit(trigger)] if self._items else []

    def discard(self) -> list[T]:
        """Forget all that is left and return it: it will not be run from here."""
        items, self._items, self._deadline = self._items, [], None
        return items

    def _emit(self, trigger: Trigger) -> Batch[T]:
        return Batch(tuple(self.discard()), trigger)
