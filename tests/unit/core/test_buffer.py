"""The pure core against a naive model, on a clock that is held by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celery_batches.core.buffer import Batch, Buffer, Buffered
from celery_batches.core.rules import Limits

LIMITS = st.builds(
    Limits,
    flush_every=st.integers(1, 5),
    flush_interval=st.sampled_from([0.001, 0.5, 1, 3, 10.25]),
)


class BufferMachine(RuleBasedStateMachine):
    """`Buffer`, next to a model that only remembers when each item came."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.added = 0
        self.emitted: list[Batch[int]] = []
        self.discarded: list[int] = []
        self.model: list[tuple[int, float]] = []  # what must be waiting: (item, arrival)

    @initialize(limits=LIMITS)
    def make(self, limits: Limits) -> None:
        self.buffer: Buffer[int] = Buffer(limits)

    @property
    def limits(self) -> Limits:
        return self.buffer.limits

    @property
    def due(self) -> float:
        return self.model[0][1] + self.limits.flush_interval if self.model else inf

    def take(self, batch: Batch[int], trigger: str) -> None:
        """The oldest items have left: as many as a batch may have, or all there are."""
        size = min(len(self.model), self.limits.flush_every)
        assert batch.trigger == ("size" if size == self.limits.flush_every else trigger)
        assert list(batch) == [item for item, _ in self.model[:size]]
        self.emitted.append(batch)
        del self.model[:size]

    def take_all(self, batches: list[Batch[int]], trigger: str) -> None:
        for batch in batches:
            self.take(batch, trigger)
        assert self.model == [], "something was left"

    @rule()
    def add(self) -> None:
        item, self.added = self.added, self.added + 1
        self.model.append((item, self.now))
        is_full = self.buffer.add(item, now=self.now)
        assert is_full == self.buffer.is_full == (len(self.model) >= self.limits.flush_every)

    @rule()
    def take_full(self) -> None:
        is_full = self.buffer.is_full
        batch = self.buffer.take_full()
        assert is_full == (batch is not None)
        if batch is not None:
            self.take(batch, "size")
            assert len(batch) == self.limits.flush_every

    @rule(limits=LIMITS)
    def change_limits(self, limits: Limits) -> None:
        """An option of the task is set while the worker runs."""
        self.buffer.limits = limits

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_until_wakeup(self) -> None:
        if self.buffer.next_wakeup < inf:
            self.now = max(self.now, self.buffer.next_wakeup)

    @rule()
    def poll(self) -> None:
        due = self.due
        batches = self.buffer.poll(now=self.now)
        if self.now >= due:
            self.take_all(batches, "interval")
        else:
            assert batches == [], "a batch was emitted before it was due"
        assert self.due > self.now, "something overdue is left"
        assert self.buffer.poll(now=self.now) == [], "a repeated poll found more"

    @rule(fraction=st.floats(0, 0.999))
    def poll_before_wakeup(self, fraction: float) -> None:
        wakeup = self.buffer.next_wakeup
        if self.now < wakeup < inf:
            early = self.now + (wakeup - self.now) * fraction
            if early < wakeup:
                assert self.buffer.poll(now=early) == []

    @rule(trigger=st.sampled_from(["shutdown", "manual"]))
    def drain(self, trigger: str) -> None:
        batches = self.buffer.drain(trigger)  # type: ignore[arg-type]
        self.take_all(batches, trigger)

    @rule()
    def discard(self) -> None:
        items = [each.item for each in self.buffer.discard()]
        assert items == [item for item, _ in self.model]
        self.discarded += items
        self.model = []

    @invariant()
    def each_item_is_in_exactly_one_place(self) -> None:
        if not hasattr(self, "buffer"):
            return
        out = [item for batch in self.emitted for item in batch]
        waiting = [item for item, _ in self.model]
        assert sorted(out + self.discarded + waiting) == list(range(self.added))
        assert out == sorted(out), "not first in, first out"
        assert len(self.buffer) == len(self.model)
        assert all(self.emitted), "a batch is empty"

    @invariant()
    def it_wakes_up_for_the_oldest_item(self) -> None:
        if hasattr(self, "buffer"):
            assert self.buffer.next_wakeup == self.due


TestBuffer = BufferMachine.TestCase
TestBuffer.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_full_batch_leaves_with_the_item_that_fills_it() -> None:
    """The request that makes a batch full is known at once; the batch is in order of arrival."""
    buffer: Buffer[str] = Buffer(Limits(3, 10))
    assert [buffer.add(item, now=0) for item in "abc"] == [False, False, True]
    assert buffer.take_full() == Batch(("a", "b", "c"), "size")
    assert buffer.take_full() is None
    assert len(buffer) == 0


def test_flush_every_of_one_never_waits() -> None:
    """With flush_every=1 each call is a batch of its own, at once."""
    buffer: Buffer[str] = Buffer(Limits(1, 10))
    assert buffer.add("a", now=0)
    assert buffer.take_full() == Batch(("a",), "size")
    assert buffer.next_wakeup == inf


def test_full_batches_that_wait() -> None:
    """What is not taken at once goes on waiting, each item for its own time."""
    buffer: Buffer[str] = Buffer(Limits(2, 10))
    for now, item in enumerate("abcde"):
        buffer.add(item, now=now)
    assert buffer.next_wakeup == 10
    assert buffer.take_full() == Batch(("a", "b"), "size")
    assert buffer.next_wakeup == 12
    assert buffer.poll(now=12) == [Batch(("c", "d"), "size"), Batch(("e",), "interval")]


def test_a_lower_flush_every_splits_what_is_buffered() -> None:
    """No batch has more than the limit that holds when it leaves."""
    buffer: Buffer[str] = Buffer(Limits(9, 10))
    for item in "abcde":
        buffer.add(item, now=0)
    buffer.limits = Limits(2, 10)
    assert buffer.is_full
    assert buffer.take_full() == Batch(("a", "b"), "size")
    assert buffer.take_full() == Batch(("c", "d"), "size")
    assert buffer.take_full() is None


def test_a_shorter_interval_holds_for_what_is_buffered() -> None:
    """The wait counts from the arrival of each item, whatever the limit was then."""
    buffer: Buffer[str] = Buffer(Limits(9, 10))
    buffer.add("a", now=0)
    buffer.limits = Limits(9, 3)
    assert buffer.next_wakeup == 3
    buffer.limits = Limits(9, 30)
    assert buffer.poll(now=10) == []
    assert buffer.next_wakeup == 30


def test_the_interval_counts_from_the_oldest() -> None:
    """A later arrival does not postpone the flush; at the very moment it is due, it happens."""
    buffer: Buffer[str] = Buffer(Limits(10, 10))
    buffer.add("a", now=100)
    buffer.add("b", now=109.9)
    assert buffer.next_wakeup == 110
    assert buffer.poll(now=109.99) == []
    assert buffer.poll(now=110) == [Batch(("a", "b"), "interval")]


def test_a_flush_by_size_restarts_the_clock() -> None:
    """What comes after a full batch gets the whole interval, not what the old one left over."""
    buffer: Buffer[str] = Buffer(Limits(2, 10))
    buffer.add("a", now=0)
    buffer.add("b", now=9)
    buffer.take_full()
    buffer.add("c", now=9.5)
    assert buffer.next_wakeup == 19.5
    assert buffer.poll(now=10) == []
    assert buffer.poll(now=19.5) == [Batch(("c",), "interval")]


def test_time_zero_is_a_time() -> None:
    """A clock that reads 0 is not mistaken for no clock."""
    buffer: Buffer[str] = Buffer(Limits(2, 10))
    buffer.add("a", now=-10)
    assert buffer.next_wakeup == 0
    assert len(buffer.poll(now=0)) == 1


def test_drain_says_shutdown_by_itself() -> None:
    """What is drained is marked as flushed by shutdown, unless another reason is given."""
    buffer: Buffer[str] = Buffer(Limits(9, 10))
    buffer.add("a", now=0)
    assert buffer.drain() == [Batch(("a",), "shutdown")]
    assert buffer.drain() == []
    assert buffer.next_wakeup == inf


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9))), LIMITS)
def test_an_item_that_has_arrived_before_takes_its_place(
    steps: list[tuple[bool, int]], limits: Limits
) -> None:
    """The order is that of the arrivals, and the wait counts from the first of them."""
    buffer: Buffer[int] = Buffer(limits)
    model: list[tuple[float, int]] = []
    for item, (is_again, before) in enumerate(steps):
        now = float(item)
        arrival = now - before if is_again else now
        model.append((arrival, item))
        is_full = (
            buffer.insert(item, arrival=arrival, now=now) if is_again else buffer.add(item, now=now)
        )
        assert is_full == buffer.is_full == (len(model) >= limits.flush_every)
        oldest = min(at for at, _ in model)
        assert buffer.oldest == oldest
        assert buffer.next_wakeup == oldest + limits.flush_interval
        assert buffer.is_due(now=now) == (oldest + limits.flush_interval <= now)
    assert buffer.discard() == [Buffered(*each) for each in sorted(model)]
    assert buffer.oldest == inf


def test_discard_forgets() -> None:
    """What is discarded is returned, and never comes out of the buffer again."""
    buffer: Buffer[str] = Buffer(Limits(9, 10))
    buffer.add("a", now=0)
    assert buffer.discard() == [Buffered(0, "a")]
    assert (buffer.discard(), buffer.drain(), buffer.poll(now=1e9)) == ([], [], [])


def test_the_clock_is_the_callers() -> None:
    """There is no way to leave the time out and have the real clock slip in."""
    buffer: Buffer[str] = Buffer(Limits(9, 10))
    with pytest.raises(TypeError):
        buffer.add("a")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        buffer.add("a", 0)  # type: ignore[misc]
    with pytest.raises(TypeError):
        buffer.poll()  # type: ignore[call-arg]


@given(st.lists(st.integers(), min_size=1), st.integers(-20, 20), st.integers(-20, 20))
def test_a_batch_is_a_sequence(items: list[int], start: int, stop: int) -> None:
    """A batch can be used as the list of its items."""
    batch = Batch(tuple(items), "size")
    assert isinstance(batch, Sequence)
    assert len(batch) == len(items)
    assert list(batch) == items
    assert list(reversed(batch)) == items[::-1]
    assert (batch[0], batch[-1]) == (items[0], items[-1])
    assert list(batch[start:stop]) == items[start:stop]
    assert items[0] in batch
    with pytest.raises(IndexError):
        batch[len(items)]


def test_a_batch_does_not_change() -> None:
    """Once emitted, a batch can neither grow nor be given another reason."""
    batch = Batch((1,), "size")
    with pytest.raises(FrozenInstanceError):
        batch.items = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        batch.trigger = "manual"  # type: ignore[misc]
