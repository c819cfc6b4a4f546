"""Time that a test moves: a clock that stands still, and the timer that goes by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest


class Clock:
    """Stands in for ``time.monotonic``: it stands still until a test moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Have the strategies go by this clock."""
        for module in ("strategy", "redeliveries"):
            patch.setattr(f"celery_batches.worker.{module}.monotonic", self)


@dataclass(eq=False)
class Entry:
    """Stands in for what kombu's timer returns for a call that it is to make."""

    eta: float
    fun: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    cancelled: bool = False

    @property
    def tref(self) -> Entry:
        """The entry itself, as in kombu."""
        return self

    def cancel(self) -> None:
        self.cancelled = True


def do_nothing() -> None:
    """What a timer does between two of its entries, unless it is told otherwise."""


class Timer:
    """Stands in for the worker's timer (kombu's ``Timer``), which fires when a test says so.

    Arguments:
        clock: What the entries' times are times of.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.entries: list[Entry] = []

    def call_at(
        self,
        eta: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Entry:
        entry = Entry(eta, fun, args, kwargs or {}, priority)
        self.entries.append(entry)
        return entry

    def call_after(
        self,
        secs: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Entry:
        return self.call_at(self.clock.now + secs, fun, args, kwargs, priority)

    def cancel(self, tref: Entry) -> None:
        tref.cancel()

    @property
    def armed(self) -> list[Entry]:
        """The entries that are still to fire."""
        return [entry for entry in self.entries if not entry.cancelled]

    def fire(self, entry: Entry) -> None:
        """Call an entry, as the timer does: even if it was cancelled a moment too late."""
        if entry in self.entries:
            self.entries.remove(entry)
        entry.fun(*entry.args, **entry.kwargs)

    def advance(self, seconds: float, *, after_each: Callable[[], None] = do_nothing) -> None:
        """Move the clock, and fire each entry at its time, also those that another one adds.

        Arguments:
            seconds: How far to move the clock.
            after_each: Called after each entry that has fired.
        """
        end = self.clock.now + seconds
        while due := [entry for entry in self.armed if entry.eta <= end]:
            entry = min(due, key=lambda entry: entry.eta)
            self.clock.now = max(self.clock.now, entry.eta)
            self.fire(entry)
            after_each()
        self.clock.now = end
