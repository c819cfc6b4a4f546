"""Buffers requests and decides when they leave. Runs in the worker's main process.

It combines the buffers, the rate limit, the timer, and the allowance of the prefetch count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, itemgetter

from ..core.buffer import Batch, Buffer, Limits
from ..core.suspects import GATHER_SECONDS, LAST_LEVEL, batch_size
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
        #: Full batches leave a buffer at once, unless a rate limit delays them. Suspects have
        #: buffers of their own, one for each level, so that full batches go on beside them.
        self._buffers: list[Buffer[MemberRequest]] = [
            Buffer(level_limits) for level_limits in _limits_of_levels(limits)
        ]
        #: The buffer for all other requests.
        self._buffer = self._buffers[0]
        self._limit = RateLimit(consumer, task_name)
        self._allowance = BatchAllowance(consumer, limits.flush_every)
        self._is_static = False
        self.timer = FlushTimer(consumer, on_wakeup)

    def __len__(self) -> int:
        return sum(map(len, self._buffers))

    def reserve(self, batches: int, *, suspects: bool) -> None:
        """Let the broker deliver that many batches, where it cannot be asked again.

        Arguments:
            batches: The number of full batches.
            suspects: Whether it may also deliver suspects beside them.
        """
        self._is_static = True
        self._allowance.open(batches, more=_room(self._buffers[1:]) if suspects else 0)

    def change(self, limits: Limits, *, now: float) -> None:
        """Use these limits from now on, since an option of the task has changed."""
        self.limits = limits
        for buffer, level_limits in zip(self._buffers, _limits_of_levels(limits), strict=True):
            buffer.limits = level_limits
        self._allowance.resize(limits.flush_every)
        if any(self._buffers[1:]):
            self._allowance.hold(self._room_of_suspects)
            self._arm(now)  # The next request may go to another buffer.

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

    def add_again(
        self, request: MemberRequest, *, arrival: float, now: float
    ) -> Sequence[Batch[MemberRequest]]:
        """Buffer a request that was delivered or buffered before, and return the batches to send.

        Arguments:
            request: The request.
            arrival: When it was buffered first. `flush_interval` counts from there.
            now: The time.
        """
        self._insert(request, arrival, now)
        batches = self._take_full()
        self._arm(now)
        return batches

    def take_over(self, requests: Iterable[tuple[float, MemberRequest]], *, now: float) -> None:
        """Buffer the requests of another strategy. The timer sends full batches.

        Arguments:
            requests: The requests, with their arrivals.
            now: The time.
        """
        for arrival, request in requests:
            self._insert(request, arrival, now)
        self._arm(now)

    def _insert(self, request: MemberRequest, arrival: float, now: float) -> None:
        level = request.suspect_level
        is_full = self._buffers[level].insert(request, arrival=arrival)
        if level:
            self._allowance.hold(self._room_of_suspects, at_least=True)
            return
        self._allowance.open()
        if is_full:
            self._read_ahead(now)

    @property
    def _room_of_suspects(self) -> int:
        """The messages that fill the batches of suspects of which there are some."""
        return _room([buffer for buffer in self._buffers[1:] if buffer])

    def _put(self, request: MemberRequest, now: float) -> bool:
        """Buffer a request, and return whether there are enough for a full batch."""
        self._allowance.open()
        is_full = self._buffer.add(request, now=now)
        if is_full:
            self._read_ahead(now)
        return is_full

    def _read_ahead(self, now: float) -> None:
        if self._limit.is_off and not self._is_static:
            self._allowance.start_read_ahead(until=now + READ_AHEAD_SECONDS)

    def wake_up(self, *, now: float) -> Sequence[Batch[MemberRequest]]:
        """Return the batches to send when the timer has fired, and arm it again."""
        batches = self._take_due(now)
        ahead_until = self._allowance.ahead_until
        if ahead_until is not None and ahead_until <= now:
            self._allowance.stop_read_ahead()
        self._arm(now)
        self._allowance.hold(self._room_of_suspects)
        if not self._is_static and not self._buffer:
            self._shrink(now, just_read_ahead=ahead_until is not None)
        return batches

    def _shrink(self, now: float, *, just_read_ahead: bool) -> None:
        """Close the allowance of an empty buffer, or do so later if it was reading ahead."""
        if just_read_ahead:
            self.timer.arm(now + self.limits.flush_interval)
        else:
            self._allowance.close()

    def close(self) -> list[tuple[float, MemberRequest]]:
        """Empty the buffers. Disarm the timer and close the allowance.

        Returns:
            The requests with their arrivals, in the order of these.
        """
        self.timer.disarm()
        self._allowance.close()
        self._allowance.hold(0)
        requests = [pair for buffer in self._buffers for pair in buffer.discard()]
        requests.sort(key=itemgetter(0))
        return requests

    def _take_full(self) -> list[Batch[MemberRequest]]:
        """Return the full batches that the rate limit allows."""
        batches = []
        while full := [buffer for buffer in self._buffers if buffer.is_full]:
            if not self._limit.allows():
                break
            batch = _oldest(full).take_full()
            if batch is not None:
                batches.append(batch)
        return batches

    def _take_due(self, now: float) -> list[Batch[MemberRequest]]:
        """Return the full batches, and those that have waited for their interval.

        A batch that the rate limit does not allow stays in its buffer and continues to fill.
        """
        batches = self._take_full()
        while due := [b for b in self._buffers if b.is_due(now=now) and not b.is_full]:
            if not self._limit.allows():
                break
            batches.extend(_oldest(due).poll(now=now))
        return batches

    def _arm(self, now: float) -> None:
        """Arm the timer for the next flush, or for the end of the read-ahead."""
        wakeups = [buffer.next_wakeup for buffer in self._buffers]
        wakeup = min((at for at in wakeups if at is not None), default=None)
        is_full = any(buffer.is_full for buffer in self._buffers)
        if is_full or (wakeup is not None and wakeup <= now):
            wakeup = now + self._limit.wait()  # The rate limit delays it.
        ahead_until = self._allowance.ahead_until
        if ahead_until is not None:
            wakeup = ahead_until if wakeup is None else min(wakeup, ahead_until)
        if wakeup is not None:
            self.timer.arm(wakeup)


def _limits_of_levels(limits: Limits) -> list[Limits]:
    """Return the limits of each level of suspects. Level 0 has those of the task."""
    gather = min(limits.flush_interval, GATHER_SECONDS)
    levels = range(1, LAST_LEVEL + 1)
    return [limits, *(Limits(batch_size(level, limits.flush_every), gather) for level in levels)]


def _room(buffers: Iterable[Buffer[MemberRequest]]) -> int:
    """Return the messages that fill these buffers. One that takes one only is never filling."""
    sizes = [buffer.limits.flush_every for buffer in buffers]
    return sum(size for size in sizes if size > 1)


def _oldest(buffers: Iterable[Buffer[MemberRequest]]) -> Buffer[MemberRequest]:
    """Return the buffer whose oldest request has waited longest."""
    return min(buffers, key=attrgetter("oldest"))
