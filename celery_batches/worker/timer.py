"""The one timer of a strategy. Runs in the worker's main process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .interfaces import Consumer

__all__ = ("FlushTimer",)


class FlushTimer:
    """Wakes a strategy up. The strategy calls every method under its lock.

    A timer that fires too early does nothing and is armed again. So there is never more than one
    entry, and a flush by size does not touch it.

    Arguments:
        consumer: The worker's consumer. Its timer is used.
        on_wakeup: Called with the time for which the timer was armed.
    """

    __slots__ = ("_consumer", "_entry", "_on_wakeup", "wakeup")

    def __init__(self, consumer: Consumer, on_wakeup: Callable[[float], None]) -> None:
        self._consumer = consumer
        self._on_wakeup = on_wakeup
        self._entry: Any = None
        #: The time at which it fires, or None while it is not armed.
        self.wakeup: float | None = None

    def arm(self, wakeup: float) -> None:
        """Arm the timer for this time, unless it is armed for an earlier one."""
        if self.wakeup is not None and self.wakeup <= wakeup:
            return
        self.disarm()
        self.wakeup = wakeup
        self._entry = self._consumer.timer.call_at(wakeup, self._on_wakeup, (wakeup,))

    def disarm(self) -> None:
        """Disarm the timer. It may still fire if it was about to: see `fire`."""
        entry, self._entry, self.wakeup = self._entry, None, None
        if entry is not None:
            self._consumer.timer.cancel(entry)

    def fire(self, armed_for: float) -> bool:
        """Record that the timer fires. Return False if it was disarmed or armed again before."""
        if armed_for != self.wakeup:
            return False
        self._entry = self.wakeup = None
        return True
