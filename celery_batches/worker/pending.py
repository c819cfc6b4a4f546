"""Buffers requests and decides when they leave. Runs in the worker's main process.

It combines the buffers, the rate limit, the timer, and the allowance of the prefetch count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import inf

from ..core.buffer import Batch, Buffer, Buffered
from ..core.buffers import Buffers
from ..core.rules import NOTHING, Facts, Limits
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
        #: Batches leave at once when they are full, unless a rate limit delays them.
        self._buffers: Buffers[MemberRequest] = Buffers(_limits_of_levels(limits))
        self._limit = RateLimit(consumer, task_name)
        self._allowance = BatchAllowance(consumer, limits.flush_every)
        self._is_static = False
        self.timer = FlushTimer(consumer, on_wakeup)

    def __len__(self) -> int:
        return len(self._buffers)

    def reserve(self, batches: int, *, has_keys: bool, suspects: bool) -> None:
        """Let the broker deliver that many batches, where it cannot be asked again.

        Arguments:
            batches: The number of full batches, one of which fills.
            has_keys: Whether there is one that fills for each key.
            suspects: Whether it may also deliver suspects beside them.
        """
        self._is_static = True
        filling = self.limits.flush_keys if has_keys else 1
        more = _room_for(_limits_of_levels(self.limits)[1:]) if suspects else 0
        self._allowance.reserve(batches - 1 + filling, filling=filling, more=more)

    def change(self, limits: Limits, *, now: float) -> None:
        """Use these limits from now on, since an option of the task has changed."""
        self.limits = limits
        self._buffers.change(_limits_of_levels(limits))
        self._allowance.resize(limits.flush_every)
        if self._buffers:
            self._open()
            self._arm(now)  # The next request may go to another buffer.

    def warn_of_static_limit(self, task_name: str) -> None:
        """Warn if a batch can no longer fill, since the prefetch count cannot change."""
        self._allowance.warn_of_static_limit(task_name)

    def add(
        self, request: MemberRequest, facts: Facts = NOTHING, *, now: float
    ) -> Sequence[Batch[MemberRequest]]:
        """Buffer a request, and return the batches to send.

        Arguments:
            request: The request.
            facts: What the rules need to know of it.
            now: The time.
        """
        if not self._buffers.add(request, facts, now=now):
            return ()
        return self._react(now)

    def add_again(
        self, request: MemberRequest, facts: Facts = NOTHING, *, arrival: float, now: float
    ) -> Sequence[Batch[MemberRequest]]:
        """Buffer a request that was delivered or buffered before, and return the batches to send.

        Arguments:
            request: The request.
            facts: What the rules need to know of it.
            arrival: When it was buffered first. `flush_interval` counts from there.
            now: The time.
        """
        level = request.suspect_level
        self._buffers.insert(request, facts, arrival=arrival, now=now, level=level)
        return self._react(now)

    def take_over(self, requests: Iterable[Buffered[MemberRequest]], *, now: float) -> None:
        """Buffer the requests of another strategy. The timer sends full batches.

        Arguments:
            requests: The requests.
            now: The time.
        """
        for each in requests:
            level = each.item.suspect_level
            self._buffers.insert(each.item, each.facts, arrival=each.arrival, now=now, level=level)
        self._open()
        self._arm(now)

    def _react(self, now: float) -> Sequence[Batch[MemberRequest]]:
        """Return the batches to send, since a request has come that may be the last of one."""
        self._open()
        if self._buffers.is_full and self._limit.is_off and not self._is_static:
            self._allowance.start_read_ahead(until=now + READ_AHEAD_SECONDS)
        batches = self._take(now)
        self._arm(now)
        return batches

    def _open(self) -> None:
        """Have the broker deliver as much as fills the batches of which there are some."""
        if suspects := self._buffers.suspects:
            self._allowance.hold(_room_of(suspects), at_least=True)
        if self._buffers.filling:
            self._allowance.open(self._batches_to_fill)
            self._note_room()

    def _note_room(self) -> None:
        """Set the room for several keys. One key alone has enough, or there is a warning."""
        self._buffers.room = self._allowance.room if self._buffers.filling > 1 else inf

    @property
    def _batches_to_fill(self) -> int:
        """One for each key. More than one are rounded up, so that the count changes less often."""
        keys = self._buffers.filling
        return 1 if keys < 2 else min(1 << (keys - 1).bit_length(), self.limits.flush_keys)

    def wake_up(self, *, now: float) -> Sequence[Batch[MemberRequest]]:
        """Return the batches to send when the timer has fired, and arm it again."""
        batches = self._take(now)
        ahead_until = self._allowance.ahead_until
        if ahead_until is not None and ahead_until <= now:
            self._allowance.stop_read_ahead()
        self._arm(now)
        self._allowance.hold(_room_of(self._buffers.suspects))
        if not self._is_static:
            self._shrink(now, just_read_ahead=ahead_until is not None)
        return batches

    def _shrink(self, now: float, *, just_read_ahead: bool) -> None:
        """Close the allowance of empty buffers, or do so later if it was reading ahead."""
        if self._buffers.filling:
            self._allowance.shrink(self._batches_to_fill)
            self._note_room()
        elif just_read_ahead:
            self.timer.arm(now + self.limits.flush_interval)
        else:
            self._allowance.close()

    def close(self) -> list[Buffered[MemberRequest]]:
        """Empty the buffers. Disarm the timer and close the allowance.

        Returns:
            The requests, in the order of their arrival.
        """
        self.timer.disarm()
        self._allowance.close()
        self._allowance.hold(0)
        return self._buffers.discard()

    def _take(self, now: float) -> list[Batch[MemberRequest]]:
        """Return the batches that are full or due, and that the rate limit allows.

        A batch that it does not allow stays in its buffer and continues to fill.
        """
        batches = []
        while (ready := self._buffers.ready(now=now)) is not None and self._limit.allows():
            batches.append(self._buffers.take(ready))
        return batches

    def _arm(self, now: float) -> None:
        """Arm the timer for the next flush, or for the end of the read-ahead."""
        wakeup = self._buffers.next_wakeup
        if self._buffers.ready(now=now) is not None:
            wakeup = now + self._limit.wait()  # The rate limit delays it.
        ahead_until = self._allowance.ahead_until
        if ahead_until is not None:
            wakeup = min(wakeup, ahead_until)
        if wakeup < inf:
            self.timer.arm(wakeup)


def _limits_of_levels(limits: Limits) -> list[Limits]:
    """Return the limits of each level of suspects. Level 0 has those of the task."""
    gather = min(limits.flush_interval, GATHER_SECONDS)
    return [
        limits,
        *(
            replace(
                limits, flush_every=batch_size(level, limits.flush_every), flush_interval=gather
            )
            for level in range(1, LAST_LEVEL + 1)
        ),
    ]


def _room_of(buffers: Iterable[Buffer[MemberRequest]]) -> int:
    """Return the messages that fill these buffers."""
    return _room_for([buffer.limits for buffer in buffers])


def _room_for(limits: Iterable[Limits]) -> int:
    """Return the messages in batches of these limits. A batch of one is never filling."""
    return sum(each.flush_every for each in limits if each.flush_every > 1)
