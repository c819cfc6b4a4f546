"""The buffers of one task, one for each key, and which of them is flushed next. Pure.

Used in the main process. Suspects have buffers of their own, one for each key and level: see
`suspects`. So full batches of the same key go on beside them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import Generic, TypeVar

from .buffer import Batch, Buffer, Buffered
from .rules import NOTHING, Facts, Keys, Limits, Room, Trigger, WindowRule
from .schedule import Schedule

__all__ = ("Buffers", "Ready")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ready(Generic[T]):
    """A buffer from which a batch is to leave, and why."""

    buffer: Buffer[T]
    trigger: Trigger


class Buffers(Generic[T]):
    """Collects items in one buffer for each key and level, as the rules say.

    A buffer is there as long as it has items. All times are in seconds of one monotonic clock,
    which the caller owns.

    Arguments:
        levels: The limits of each level. Level 0 has those of the task.
    """

    __slots__ = (
        "_buffers",
        "_by_age",
        "_by_wakeup",
        "_filling",
        "_fresh",
        "_full",
        "_items",
        "_keys",
        "_level_of",
        "_levels",
        "_room",
        "_rules",
        "_turn",
        "_turns",
        "filling",
    )

    def __init__(self, levels: Sequence[Limits]) -> None:
        #: The buffers of each level, by key.
        self._buffers: list[dict[Hashable, Buffer[T]]] = [{} for _ in levels]
        self._fresh = self._buffers[0]
        #: The level of each buffer.
        self._level_of: dict[Buffer[T], int] = {}
        #: How many buffers each key has.
        self._keys: dict[Hashable, int] = {}
        #: The buffers that have a full batch.
        self._full: dict[Buffer[T], None] = {}
        #: When a batch of a buffer left last, as a running number.
        self._turns: dict[Buffer[T], int] = {}
        self._turn = 0
        self._by_wakeup: Schedule[Buffer[T]] = Schedule(attrgetter("next_wakeup"))
        self._by_age: Schedule[Buffer[T]] = Schedule(attrgetter("oldest"))
        self._items = 0
        #: How many items of these are at level 0, and how many keys have some there.
        self._filling = self.filling = 0
        self._room = inf
        self._rules: tuple[WindowRule, ...] = ()
        self.change(levels)

    def __len__(self) -> int:
        return self._items

    def __iter__(self) -> Iterator[Buffer[T]]:
        return iter(self._level_of)

    @property
    def is_full(self) -> bool:
        """Whether there is a full batch at level 0."""
        return any(not self._level_of[buffer] for buffer in self._full)

    @property
    def suspects(self) -> list[Buffer[T]]:
        """The buffers of the levels above 0."""
        return [buffer for buffers in self._buffers[1:] for buffer in buffers.values()]

    @property
    def room(self) -> float:
        """The most items that the broker delivers for batches that fill. Infinite by default."""
        return self._room

    @room.setter
    def room(self, room: float) -> None:
        if room != self._room:
            self._room = room
            self._rules = (*self._rules[:-1], Room(room))

    @property
    def next_wakeup(self) -> float:
        """The time at which the first batch is due. Infinite if there is none."""
        first = self._by_wakeup.first()
        return inf if first is None else first.next_wakeup

    def change(self, levels: Sequence[Limits]) -> None:
        """Use these limits from now on, also for what is buffered."""
        self._levels = tuple(levels)
        self._rules = (Keys(levels[0].flush_keys), Room(self._room))
        for buffer, level in self._level_of.items():
            buffer.limits = self._levels[level]
            self._note(buffer)

    def add(self, item: T, facts: Facts = NOTHING, *, now: float) -> bool:
        """Add an item that has just arrived, at level 0.

        Returns:
            Whether a batch may be ready, or the time of the next wakeup may be another.
        """
        self._items += 1
        self._filling += 1
        buffer = self._fresh.get(facts.key)
        if buffer is None:
            buffer = self._open(facts.key, 0)
            buffer.add(item, facts, now=now)
            self._note(buffer)
            return True
        is_earlier = facts.flush_by < buffer.flush_by
        is_full = buffer.add(item, facts, now=now)
        if is_full or is_earlier:
            self._note(buffer)
            return True
        return self._filling >= self._room

    def insert(
        self, item: T, facts: Facts = NOTHING, *, arrival: float, now: float, level: int = 0
    ) -> None:
        """Add an item that has arrived before, at its place among those of its key.

        Arguments:
            item: The item.
            facts: What the rules need to know of it.
            arrival: When it arrived first.
            now: When it has come again.
            level: Its level.
        """
        self._items += 1
        self._filling += not level
        buffer = self._buffers[level].get(facts.key)
        if buffer is None:
            buffer = self._open(facts.key, level)
        buffer.insert(item, facts, arrival=arrival, now=now)
        self._note(buffer)

    def ready(self, *, now: float) -> Ready[T] | None:
        """Return the buffer of the next batch, or None if all of them go on filling.

        Full batches come first. Keys take turns with them, and the one that waits longest has the
        first turn. Then comes what is due. Then the key that waits longest, if there are too many
        keys or items.
        """
        if self._full:
            # The buffer knows better why.
            return Ready(min(self._full, key=self._order), "size")
        first = self._by_wakeup.first()
        if first is not None and first.is_due(now=now):
            return Ready(first, first.due_by)
        for rule in self._rules:
            if rule.is_over(len(self._keys), self._filling):
                oldest = self._by_age.first()
                return None if oldest is None else Ready(oldest, rule.trigger)
        return None

    def take(self, ready: Ready[T]) -> Batch[T]:
        """Return the next batch of a buffer that is `ready`."""
        buffer = ready.buffer
        batch = buffer.take(ready.trigger)
        self._items -= len(batch)
        if not self._level_of[buffer]:
            self._filling -= len(batch)
        if buffer:
            self._turn += 1
            self._turns[buffer] = self._turn
            self._note(buffer)
        else:
            self._remove(buffer)
        return batch

    def discard(self) -> list[Buffered[T]]:
        """Empty all buffers and return their items, in the order of their arrival."""
        waiting = [each for buffer in list(self._level_of) for each in buffer.discard()]
        for buffer in list(self._level_of):
            self._remove(buffer)
        self._items = self._filling = 0
        waiting.sort(key=attrgetter("arrival"))
        return waiting

    def _open(self, key: Hashable, level: int) -> Buffer[T]:
        buffer: Buffer[T] = Buffer(self._levels[level], key)
        self._buffers[level][key] = buffer
        self._level_of[buffer] = level
        self._keys[key] = self._keys.get(key, 0) + 1
        self.filling += not level
        return buffer

    def _order(self, buffer: Buffer[T]) -> tuple[int, float]:
        """The order of full batches."""
        return self._turns.get(buffer, 0), buffer.oldest

    def _remove(self, buffer: Buffer[T]) -> None:
        key, level = buffer.key, self._level_of.pop(buffer)
        self._full.pop(buffer, None)
        self._turns.pop(buffer, None)
        del self._buffers[level][key]
        self.filling -= not level
        self._keys[key] -= 1
        if not self._keys[key]:
            del self._keys[key]

    def _note(self, buffer: Buffer[T]) -> None:
        """Note what has changed about a buffer with items."""
        if buffer.is_full:
            self._full.setdefault(buffer)
        else:
            self._full.pop(buffer, None)
        alive = len(self._level_of)
        self._by_wakeup.add(buffer, alive=alive)
        self._by_age.add(buffer, alive=alive)
