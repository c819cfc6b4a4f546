"""The rules by which a batch is flushed, one small type for each. Pure. Used in the main process.

A buffer asks its rules. Each rule answers what it has a say in:

* `JoinRule.fits`: may a request join the batch that fills, or is that one flushed first?
* `FullRule.is_full`: is the batch flushed now?
* `TimeRule.wakes_at`: when is what waits flushed, even if nothing else happens?
* `WindowRule.is_over`: must one of all buffers be flushed, since they hold too much?

All times are in seconds of one monotonic clock, which the caller owns.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, Literal, Protocol

__all__ = (
    "EXPIRY_MARGIN_SECONDS",
    "FLUSH_KEYS",
    "NOTHING",
    "Expiry",
    "Facts",
    "FullRule",
    "Idle",
    "Interval",
    "JoinRule",
    "Keys",
    "Limits",
    "Room",
    "Size",
    "TimeRule",
    "Trigger",
    "Weight",
    "WindowRule",
    "flush_before",
)

#: Why a batch was flushed.
Trigger = Literal[
    "size", "interval", "idle", "weight", "expires", "keys", "room", "manual", "shutdown"
]

#: The default of the most keys that are buffered at a time.
FLUSH_KEYS = 100

#: Seconds before it expires at which a request is flushed. One that expires sooner than twice that
#: is flushed after half of the time that it has left, so that others can still join it.
EXPIRY_MARGIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules need to know of one request.

    Attributes:
        key: A batch holds requests of one key only.
        weight: Its weight, at least 0.
        flush_by: The time by which it is flushed, since it expires. Infinite if it does not.
    """

    key: Hashable = None
    weight: float = 0
    flush_by: float = inf


#: The facts of a request of which there is nothing to know, as of most.
NOTHING = Facts()


def flush_before(expiry: float, *, now: float) -> float:
    """Return the time by which a request is flushed that arrives now and expires then."""
    return expiry - min(EXPIRY_MARGIN_SECONDS, max(0.0, expiry - now) / 2)


class Waiting(Protocol):
    """What the rules see of the requests that wait in a buffer."""

    @property
    def oldest(self) -> float:
        """When the oldest arrived."""

    @property
    def newest(self) -> float:
        """When the last one came."""

    @property
    def flush_by(self) -> float:
        """The earliest `Facts.flush_by`."""


class FullRule:
    """Says when a batch is full."""

    __slots__ = ()

    trigger: ClassVar[Trigger]

    def is_full(self, size: int, weight: float) -> bool:
        """Whether a batch of that size and weight is flushed now."""
        raise NotImplementedError


class JoinRule(FullRule):
    """Says also which requests may join a batch."""

    __slots__ = ()

    def fits(self, weight: float, facts: Facts) -> bool:
        """Whether a request may join a batch of that weight, which is not empty."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Size(FullRule):
    """At most so many requests."""

    trigger: ClassVar[Trigger] = "size"
    most: int

    def is_full(self, size: int, weight: float) -> bool:
        """Whether there are so many."""
        return size >= self.most


@dataclass(frozen=True, slots=True)
class Weight(JoinRule):
    """At most so much weight. A request that is heavier is alone in its batch."""

    trigger: ClassVar[Trigger] = "weight"
    most: float

    def fits(self, weight: float, facts: Facts) -> bool:
        """Whether the batch stays within the weight."""
        return weight + facts.weight <= self.most

    def is_full(self, size: int, weight: float) -> bool:
        """Whether a request that has a weight no longer fits."""
        return weight >= self.most


class TimeRule:
    """Says when requests have waited long enough."""

    __slots__ = ()

    trigger: ClassVar[Trigger]

    def wakes_at(self, waiting: Waiting) -> float:
        """Return the time at which these requests are flushed."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Interval(TimeRule):
    """No request waits longer than that."""

    trigger: ClassVar[Trigger] = "interval"
    seconds: float

    def wakes_at(self, waiting: Waiting) -> float:
        """Return when the oldest has waited so long."""
        return waiting.oldest + self.seconds


@dataclass(frozen=True, slots=True)
class Idle(TimeRule):
    """Requests do not wait any more when no other one has come for so long."""

    trigger: ClassVar[Trigger] = "idle"
    seconds: float

    def wakes_at(self, waiting: Waiting) -> float:
        """Return when the last one has come so long ago."""
        return waiting.newest + self.seconds


@dataclass(frozen=True, slots=True)
class Expiry(TimeRule):
    """Requests are flushed before one of them expires."""

    trigger: ClassVar[Trigger] = "expires"

    def wakes_at(self, waiting: Waiting) -> float:
        """Return the time for the one that expires first."""
        return waiting.flush_by


class WindowRule:
    """Says when all buffers of a task together hold too much."""

    __slots__ = ()

    trigger: ClassVar[Trigger]

    def is_over(self, keys: int, requests: int) -> bool:
        """Whether the key that waits longest is flushed, with so many keys and requests."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Keys(WindowRule):
    """At most so many keys wait at a time."""

    trigger: ClassVar[Trigger] = "keys"
    most: int

    def is_over(self, keys: int, requests: int) -> bool:
        """Whether there are more."""
        return keys > self.most


@dataclass(frozen=True, slots=True)
class Room(WindowRule):
    """The broker delivers no more than so many requests, so no batch would become full."""

    trigger: ClassVar[Trigger] = "room"
    most: float

    def is_over(self, keys: int, requests: int) -> bool:
        """Whether there are so many."""
        return requests >= self.most


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch is flushed: the values of the options, and the rules that follow from them.

    Attributes:
        flush_every: The number of items in a full batch, at least 1.
        flush_interval: Seconds that an item may wait, more than 0.
        flush_idle: Seconds without another item after which a batch is flushed, or None.
        flush_max_weight: The most weight of a batch, more than 0, or None.
        flush_keys: The most keys that are buffered at a time, at least 1.
        joining: The rules that say which requests may join a batch.
        closing: The rules that say when a batch is full.
        timing: The rules that say when it is due. The first of those that agree is the trigger.
    """

    flush_every: int
    flush_interval: float
    flush_idle: float | None = None
    flush_max_weight: float | None = None
    flush_keys: int = FLUSH_KEYS
    joining: tuple[JoinRule, ...] = field(init=False, compare=False, repr=False)
    closing: tuple[FullRule, ...] = field(init=False, compare=False, repr=False)
    timing: tuple[TimeRule, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        most = self.flush_max_weight
        joining = () if most is None else (Weight(most),)
        closing = (Size(self.flush_every), *joining)
        timing: list[TimeRule] = [Interval(self.flush_interval), Expiry()]
        if self.flush_idle is not None:
            timing.append(Idle(self.flush_idle))
        object.__setattr__(self, "joining", joining)
        object.__setattr__(self, "closing", closing)
        object.__setattr__(self, "timing", tuple(timing))
