"""Buffers requests and decides when they leave. Runs in the worker's main process.

It combines the buffer, the rate limit, the timer, and the allowance of the prefetch count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..core.buffer import Batch, Buffer, Limits
from .allowance import BatchAllowance
from .interfaces import Consumer
from .limits import RateLimit
from .member_request import MemberRequest
from .timer import FlushTimer

__all__ = ("PendingRequests",)

#: Seconds after a full batch in which the broker delivers full batches ahead.
READ_AHEAD_SECONDS = 1.0


class PendingRequests:
    """The requests of one strategy that are in no batch yet.

    The strategy calls every method under its lock. ``now`` is the time of the monotonic clock.

    Arguments:
        consumer: The worker's consumer.
        task_name: The name of the batch task.
        limits: When a batch is flushed.
        on_wakeup: The timer calls it with the time for which it was armed.
    """

    def __init__(
        self,
        consumer: Consumer,
        task_name: str,
        limits: Limits,
        on_wakeup: Callable[[float], None],
    ) -> None:
        #: When a batch is flushed. `change` replaces them.
        self.limits = limits
        #: Full batches leave the buffer at once, unless a rate limit delays them.
        self._buffer: Buffer[MemberRequest] = Buffer(limits)
        self._limit = RateLimit(consumer, task_name)
        self._allowance = BatchAllowance(consumer, limits.flush_every)
        self._is_static = False
        self.timer = FlushTimer(consumer, on_wakeup)

    def __len__(self) -> int:
        return len(self._buffer)

    def reserve(self, batches: int) -> None:
        """Let the broker deliver that many batches, where it cannot be asked again."""
        self._is_static = True
        self._allowance.open(batches)

    def change(self, limits: Limits) -> None:
        """Use these limits from now on, since an option of the task has changed."""
        self.limits = self._buffer.limits = limits
        self._allowance.resize(limits.flush_every)

    def warn_of_static_limit(self, task_name: str) -> None:
        """Warn if a batch can no longer fill, since the prefetch count cannot change."""
        self._allowance.warn_of_static_limit(task_name)

    def add(self, request: MemberRequest, *, now: float) -> Sequence[Batch[MemberRequest]]:
        """Buffer a request, and return the batches to send."""
        if self._put(request, now):
            batches = self._take_full()
            self._arm(now)
            return batches
        wakeup, armed_for = self._buffer.next_wakeup, self.timer.wakeup
        # For most requests, the timer is armed already.
        if armed_for is None or wakeup is None or wakeup < armed_for:
            self._arm(now)
        return ()

    def take_over(self, requests: Iterable[MemberRequest], *, now: float) -> None:
        """Buffer the requests of another strategy. The timer sends full batches."""
        for request in requests:
            self._put(request, now)
        self._arm(now)

    def _put(self, request: MemberRequest, now: float) -> bool:
        """Buffer a request, and return whether there are enough for a full batch."""
        self._allowance.open()
        is_full = self._buffer.add(request, now=now)
        if is_full and self._limit.is_off and not self._is_static:
            self._allowance.start_read_ahead(until=now + READ_AHEAD_SECONDS)
        return is_full

    def wake_up(self, *, now: float) -> Sequence[Batch[MemberRequest]]:
        """Return the batches to send when the timer has fired, and arm it again."""
        batches = self._take_due(now)
        ahead_until = self._allowance.ahead_until
        if ahead_until is not None and ahead_until <= now:
            self._allowance.stop_read_ahead()
        self._arm(now)
        if not self._is_static and not self._buffer:
            self._shrink(now, just_read_ahead=ahead_until is not None)
        return batches

    def _shrink(self, now: float, *, just_read_ahead: bool) -> None:
        """Close the allowance of an empty buffer, or do so later if it was reading ahead."""
        if just_read_ahead:
            self.timer.arm(now + self.limits.flush_interval)
        else:
            self._allowance.close()

    def close(self) -> list[MemberRequest]:
        """Empty the buffer and return its requests. Disarm the timer and close the allowance."""
        self.timer.disarm()
        self._allowance.close()
        return self._buffer.discard()

    def _take_full(self) -> list[Batch[MemberRequest]]:
        """Return the full batches that the rate limit allows."""
        batches = []
        while self._buffer.is_full and self._limit.allows():
            batch = self._buffer.take_full()
            if batch is not None:
                batches.append(batch)
        return batches

    def _take_due(self, now: float) -> list[Batch[MemberRequest]]:
        """Return the full batches, and the batch that has waited for its interval.

        A batch that the rate limit does not allow stays in the buffer and continues to fill.
        """
        batches = self._take_full()
        wakeup = self._buffer.next_wakeup
        is_due = wakeup is not None and wakeup <= now
        if is_due and not self._buffer.is_full and self._limit.allows():
            batches.extend(self._buffer.poll(now=now))
        return batches

    def _arm(self, now: float) -> None:
        """Arm the timer for the next flush, or for the end of the read-ahead."""
        wakeup, ahead_until = self._buffer.next_wakeup, self._allowance.ahead_until
        if self._buffer.is_full or (wakeup is not None and wakeup <= now):
            wakeup = now + self._limit.wait()  # The rate limit delays it.
        if ahead_until is not None:
            wakeup = ahead_until if wakeup is None else min(wakeup, ahead_until)
        if wakeup is not None:
            self.timer.arm(wakeup)
