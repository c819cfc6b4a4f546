"""The one timer of a strategy. Runs in the worker's main process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .interfaces import Consumer

__all__ = ("FlushTimer",)


class FlushTimer:
    """Wakes a strategy up. Every method is called under the lock of the strategy.

    A timer that fires too early finds nothing to do and is armed again. So there is never more than
    one, and a flush by size need not touch it.

    Arguments:
        consumer: The worker's consumer, whose timer it uses.
        on_wakeup: Called with the time that it was armed for.
    """

    __slots__ = ("_consumer", "_entry", "_on_wakeup", "wakeup")

    def __init__(self, consumer: Consumer, on_wakeup: Callable[[float], None]) -> None:
        self._consumer = consumer
        self._on_wakeup = on_wakeup
        self._entry: Any = None
        #: When it will fire, or None while it is not armed.
        self.wakeup: float | None = None

    def arm(self, wakeup: float) -> None:
        """Have it fire at this time, or earlier if it is armed for an earlier one."""
        if self.wakeup is not None and self.wakeup <= wakeup:
            return
        self.disarm()
        self.wakeup = wakeup
        self._entry = self._consumer.timer.call_at(wakeup, self._on_wakeup, (wakeup,))

    def disarm(self) -> None:
        """Have it not fire. It may fire all the same, if it is about to: see `fire`."""
        entry, self._entry, self.wakeup = self._entry, None, None
        if entry is not None:
            self._consumer.timer.cancel(entry)

    def fire(self, armed_for: float) -> bool:
        """Note that it fires; return False if it was disarmed or armed anew a moment too late."""
        if armed_for != self.wakeup:
            return False
        self._entry = self.wakeup = None
        return True
