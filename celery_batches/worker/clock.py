"""The clock of the worker's timer. Runs in the worker's main process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .interfaces import Consumer

__all__ = ("Clock", "clock_of")


class Clock(Protocol):
    """Tells the time, in seconds."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """Returns the time by which the timer goes, as ``time.monotonic``."""

    @property
    def time(self) -> Callable[[], float]:
        """Returns the time since the epoch, as ``time.time``: that of ETAs and of ``expires``."""


def clock_of(consumer: Consumer) -> Clock:
    """Return the clock of the consumer's timer.

    Celery's timers go by the clock of the system. One that stands in for them in a test may have
    an attribute ``clock``, a clock that the test moves.
    """
    clock: Clock = getattr(consumer.timer, "clock", time)
    return clock
