"""Time that a test moves: a clock that stands still, and the timer that goes by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

__all__ = ("Clock", "Timer", "TimerEntry")

#: Times are sums of floats. Those that differ by less are the same.
TOLERANCE_SECONDS = 1e-6


class Clock:
    """Stands in for the clock of the system. It stands still until a test moves it.

    Arguments:
        now: What ``time.monotonic`` would return, in seconds.

    Attributes:
        now: The same, which a test may set.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._start = now
        self._date = datetime.now(timezone.utc)

    def monotonic(self) -> float:
        """Return the seconds of the monotonic clock."""
        return self.now

    def time(self) -> float:
        """Return the seconds since the epoch."""
        return self.utc.timestamp()

    @property
    def utc(self) -> datetime:
        """The date and time in UTC. It is that of the system when the clock was made."""
        return self._date + timedelta(seconds=round(self.now - self._start, 6))

    def time_of(self, date: datetime) -> float:
        """Return the seconds of the monotonic clock at a date."""
        return self._start + (date - self._date).total_seconds()


@dataclass(eq=False)
class TimerEntry:
    """Stands in for what the worker's timer returns for a call that it is to make.

    Attributes:
        eta: When to call the function, by the monotonic clock.
        fun: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        priority: Not used.
        cancelled: Whether not to call it.
    """

    eta: float
    fun: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    cancelled: bool = False

    @property
    def tref(self) -> TimerEntry:
        """The entry itself, as in kombu."""
        return self

    def cancel(self) -> None:
        """Do not call the function."""
        self.cancelled = True


class Timer:
    """Stands in for the worker's timer, kombu's ``Timer``. It fires when a test says so.

    Arguments:
        clock: The clock by which it goes.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        #: What it is still to call, or was cancelled.
        self.entries: list[TimerEntry] = []

    def call_at(
        self,
        eta: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> TimerEntry:
        """Call a function at a time of the monotonic clock."""
        # Celery calls a function with a request at its ETA, as a time of the system's clock.
        date = getattr(args[0], "eta", None) if args else None
        if isinstance(date, datetime):
            eta = self.clock.time_of(date)
        entry = TimerEntry(eta, fun, args, kwargs or {}, priority)
        self.entries.append(entry)
        return entry

    def call_after(
        self,
        secs: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> TimerEntry:
        """Call a function after so many seconds."""
        return self.call_at(self.clock.now + secs, fun, args, kwargs, priority)

    def cancel(self, tref: TimerEntry) -> None:
        """Cancel an entry."""
        tref.cancel()

    @property
    def armed(self) -> list[TimerEntry]:
        """The entries that are still to fire."""
        return [entry for entry in self.entries if not entry.cancelled]

    def fire(self, entry: TimerEntry) -> None:
        """Call an entry, as the timer does: even if it was cancelled a moment too late."""
        if entry in self.entries:
            self.entries.remove(entry)
        entry.fun(*entry.args, **entry.kwargs)

    def advance(self, seconds: float, *, after_each: Callable[[], Any] | None = None) -> None:
        """Move the clock, and fire each entry at its time, also those that another one adds.

        Arguments:
            seconds: How far to move the clock.
            after_each: Called after each entry that has fired.
        """
        end = self.clock.now + seconds
        while due := [e for e in self.armed if e.eta <= end + TOLERANCE_SECONDS]:
            entry = min(due, key=lambda entry: entry.eta)
            self.clock.now = max(self.clock.now, entry.eta)
            self.fire(entry)
            if after_each is not None:
                after_each()
        self.clock.now = max(self.clock.now, end)
