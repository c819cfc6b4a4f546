"""Shortcut ``hard_limit``: the hard time limit of a batch ends its body, not what follows it.

Runs in the worker's main process.

At the limit of a task, the pool ends the process, whatever it does. Of a batch, that may leave many
outcomes that are not applied, although the body has ended in time. So the pool gets twice the
limit. At the limit, the worker's timer has the pool end the batch as it would have, unless the
record of the batch says that its body has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from .interfaces import Pool, Timer

__all__ = ("HardLimit",)

#: How long a batch may take in all, in hard time limits.
FACTOR = 2


class HardLimit:
    """The hard time limit of one batch.

    Arguments:
        seconds: The limit.
        end: The pool's function that ends what runs for a handle, and tells of a time limit.
        timer: The worker's timer.
    """

    __slots__ = ("_end", "_entry", "_timer", "seconds")

    def __init__(self, seconds: float, end: Callable[[Any], Any], timer: Timer) -> None:
        self.seconds = seconds
        self._end = end
        self._timer = timer
        self._entry: Any = None

    @classmethod
    def of(cls, pool: Pool, seconds: float | None, timer: Timer | None) -> HardLimit | None:
        """Return the limit of a batch in this pool, or None if the pool has to see to it alone.

        Only a pool of processes with an event loop offers what ends one batch by its handle.
        """
        if not seconds or timer is None:
            return None
        # The pool of billiard, whose method this is.
        billiards = getattr(getattr(pool, "on_apply", None), "__self__", None)
        end: Any = getattr(billiards, "on_hard_timeout", None)
        if getattr(end, "__name__", None) != "on_hard_timeout":
            return None
        return cls(seconds, end, timer)

    @property
    def for_pool(self) -> float:
        """The limit in seconds that the pool gets."""
        return self.seconds * FACTOR

    def start(self, on_limit: Callable[[], Any]) -> None:
        """Call a function at the limit, since the batch has started now."""
        self._entry = self._timer.call_at(monotonic() + self.seconds, on_limit)

    def cancel(self) -> None:
        """Do not call it, since the batch has ended."""
        entry, self._entry = self._entry, None
        if entry is not None:
            self._timer.cancel(entry)

    def end(self, handle: object) -> None:
        """Have the pool end the batch, and tell of a time limit, as it does for any task."""
        self._end(handle)
