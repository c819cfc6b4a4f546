"""All buffers of a task against a naive model: each rule by itself, and all of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celery_batches.core.buffer import Batch
from celery_batches.core.buffers import Buffers
from celery_batches.core.rules import NOTHING, Facts, Limits, Trigger, flush_before

#: So long, so many or so heavy that the rule never applies.
NEVER = 10**9

INTERVALS = st.sampled_from([0.001, 0.5, 1, 3, 10.25])
WEIGHTS = st.sampled_from([0, 0.5, 1, 2, 3, 7, 20])


def limits_of(**options: Any) -> st.SearchStrategy[Limits]:
    """Limits with these options, and the others such that they never apply."""
    never = {"flush_every": st.just(NEVER), "flush_interval": st.just(NEVER)}
    return st.builds(Limits, **{**never, "flush_keys": st.just(NEVER), **options})


ALL = limits_of(
    flush_every=st.integers(1, 5),
    flush_interval=INTERVALS,
    flush_idle=st.none() | INTERVALS,
    flush_max_weight=st.none() | st.sampled_from([0.5, 2, 5, 9.5]),
    flush_keys=st.sampled_from([1, 2, 3, 7, 100]),
)


@dataclass
class Waiting:
    """What the model remembers of an item."""

    item: int
    arrival: float
    came: float
    facts: Facts
    level: int

    @property
    def place(self) -> tuple[Hashable, int]:
        return self.facts.key, self.level


class Model:
    """A list of items, from which everything is worked out anew each time."""

    def __init__(self, levels: list[Limits]) -> None:
        self.levels = levels
        self.waiting: list[Waiting] = []
        self.turns: Counter[tuple[Hashable, int]] = Counter()
        self.turn = 0
        self.room = inf

    @property
    def places(self) -> dict[tuple[Hashable, int], list[Waiting]]:
        places: dict[tuple[Hashable, int], list[Waiting]] = {}
        for each in sorted(self.waiting, key=lambda each: each.arrival):
            places.setdefault(each.place, []).append(each)
        return places

    @property
    def keys(self) -> int:
        return len({each.facts.key for each in self.waiting})

    def first_batch(self, group: list[Waiting]) -> tuple[list[Waiting], set[Trigger]]:
        """The batch that leaves next, and why it takes no more (nothing if it does)."""
        limits = self.levels[group[0].level]
        most = inf if limits.flush_max_weight is None else limits.flush_max_weight
        batch: list[Waiting] = []
        for each in group:
            weight = sum(one.facts.weight for one in batch)
            if batch and weight + each.facts.weight > most:
                return batch, {"weight"}
            batch.append(each)
            full: set[Trigger] = set()
            if len(batch) >= limits.flush_every:
                full.add("size")
            if weight + each.facts.weight >= most:
                full.add("weight")
            if full:
                return batch, full
        return batch, set()

    def wakeups(self, group: list[Waiting]) -> dict[Trigger, float]:
        limits = self.levels[group[0].level]
        idle = inf if limits.flush_idle is None else limits.flush_idle
        return {
            "interval": group[0].arrival + limits.flush_interval,
            "idle": max(each.came for each in group) + idle,
            "expires": min(each.facts.flush_by for each in group),
        }

    def next_wakeup(self) -> float:
        return min(
            (min(self.wakeups(group).values()) for group in self.places.values()), default=inf
        )

    def expected(self, now: float) -> tuple[set[tuple[Hashable, int]], set[Trigger]] | None:
        """The places from which the next batch may come, and why it may; None if none is ready."""
        places = self.places
        full = {p: why for p, group in places.items() if (why := self.first_batch(group)[1])}
        if full:
            order = {p: (self.turns[p], places[p][0].arrival) for p in full}
            first = {p for p in full if order[p] == min(order.values())}
            return first, set().union(*(full[p] for p in first))
        wakeup = self.next_wakeup()
        if wakeup <= now:
            all_wakeups = {p: self.wakeups(group) for p, group in places.items()}
            first = {p for p, at in all_wakeups.items() if min(at.values()) == wakeup}
            return first, {t for p in first for t, at in all_wakeups[p].items() if at == wakeup}
        fresh = sum(not each.level for each in self.waiting)
        oldest = min((each.arrival for each in self.waiting), default=inf)
        longest = {p for p, group in places.items() if group[0].arrival == oldest}
        if self.keys > self.levels[0].flush_keys:
            return longest, {"keys"}
        if longest and fresh >= self.room:
            return longest, {"room"}
        return None

    def remove(self, batch: Iterable[int], place: tuple[Hashable, int]) -> None:
        gone = set(batch)
        self.waiting = [each for each in self.waiting if each.item not in gone]
        self.turn += 1
        # A key without items has had no turn.
        if place in self.places:
            self.turns[place] = self.turn
        else:
            del self.turns[place]


class BuffersMachine(RuleBasedStateMachine):
    """`Buffers`, next to the model."""

    LIMITS = ALL
    KEYS: st.SearchStrategy[Hashable] = st.integers(0, 2) | st.integers(0, 99)
    WEIGHTS: st.SearchStrategy[float] = WEIGHTS
    #: Seconds until a call expires.
    EXPIRES: st.SearchStrategy[float] = st.just(inf) | st.sampled_from([0.01, 0.5, 1, 2.5, 30])
    LEVELS = st.integers(0, 2)
    ROOMS: st.SearchStrategy[float] = st.sampled_from([inf, 3, 8])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.added = 0
        self.gone: list[int] = []
        self.facts: dict[int, Facts] = {}
        #: In each place, what has left it: the order in it is that of the arrivals.
        self.buffers: Buffers[int] = Buffers([Limits(1, 1)] * 3)
        self.model = Model([Limits(1, 1)] * 3)

    @initialize(data=st.data())
    def make(self, data: st.DataObject) -> None:
        levels = self.levels(data)
        self.buffers = Buffers(levels)
        self.model = Model(levels)

    def levels(self, data: st.DataObject) -> list[Limits]:
        limits = data.draw(self.LIMITS)
        smaller = replace(limits, flush_every=max(1, limits.flush_every // 2))
        return [limits, smaller, replace(limits, flush_every=1)]

    def new(self, data: st.DataObject, level: int, arrival: float) -> tuple[int, Facts]:
        expiry = self.now + data.draw(self.EXPIRES)
        flush_by = inf if expiry == inf else flush_before(expiry, now=self.now)
        facts = Facts(data.draw(self.KEYS), data.draw(self.WEIGHTS), flush_by)
        item, self.added = self.added, self.added + 1
        self.facts[item] = facts
        self.model.waiting.append(Waiting(item, arrival, self.now, facts, level))
        return item, facts

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        before, was_ready = self.model.next_wakeup(), self.model.expected(self.now) is not None
        item, facts = self.new(data, 0, self.now)
        says = self.buffers.add(item, facts, now=self.now)
        if not was_ready and self.model.expected(self.now) is not None:
            assert says, "nobody looks for the batch that is ready"
        if self.model.next_wakeup() < before:
            assert says, "nobody arms the timer"

    @rule(data=st.data(), before=st.sampled_from([0, 0.1, 1, 20]))
    def insert(self, data: st.DataObject, before: float) -> None:
        level, arrival = data.draw(self.LEVELS), self.now - before
        item, facts = self.new(data, level, arrival)
        self.buffers.insert(item, facts, arrival=arrival, now=self.now, level=level)

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        """An option of the task is set while the worker runs."""
        levels = self.levels(data)
        self.buffers.change(levels)
        self.model.levels = levels

    @rule(data=st.data())
    def give_room(self, data: st.DataObject) -> None:
        self.buffers.room = self.model.room = data.draw(self.ROOMS)

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_until_wakeup(self) -> None:
        if self.buffers.next_wakeup < inf:
            self.now = max(self.now, self.buffers.next_wakeup)

    @rule()
    def take_one(self) -> None:
        """As with a rate limit."""
        self.take()

    def take(self) -> bool:
        """The next batch leaves, if there is one."""
        expected, ready = self.model.expected(self.now), self.buffers.ready(now=self.now)
        if expected is None:
            assert ready is None
            return False
        assert ready is not None
        batch = self.buffers.take(ready)
        self.check(batch, *expected)
        return True

    @rule()
    def take_all(self) -> None:
        while self.take():
            pass
        assert self.buffers.ready(now=self.now) is None
        assert self.buffers.next_wakeup > self.now, "something overdue is left"
        assert self.model.keys <= self.model.levels[0].flush_keys, "too many keys are left"

    def check(
        self, batch: Batch[int], places: set[tuple[Hashable, int]], triggers: set[Trigger]
    ) -> None:
        members = [each for each in self.model.waiting if each.item in set(batch)]
        (place,) = {each.place for each in members}
        assert place in places
        assert batch.trigger in triggers
        assert batch.key == place[0]
        whole, _ = self.model.first_batch(self.model.places[place])
        assert list(batch) == [each.item for each in whole]
        limits, weight = self.model.levels[place[1]], sum(each.facts.weight for each in members)
        assert len(batch) <= limits.flush_every
        if limits.flush_max_weight is None:
            assert batch.weight is None
        else:
            assert batch.weight == weight
            assert weight <= limits.flush_max_weight or len(batch) == 1
        self.gone += batch
        self.model.remove(batch, place)

    @rule()
    def discard(self) -> None:
        discarded = self.buffers.discard()
        expected = sorted(self.model.waiting, key=lambda each: each.arrival)
        assert [each.arrival for each in discarded] == [each.arrival for each in expected]
        assert {each.item: each.facts for each in discarded} == {
            each.item: each.facts for each in expected
        }
        self.gone += [each.item for each in discarded]
        self.model.waiting, self.model.turns = [], Counter()

    @invariant()
    def each_item_is_in_exactly_one_place(self) -> None:
        waiting = [each.item for each in self.model.waiting]
        assert sorted(self.gone + waiting) == list(range(self.added))
        assert len(self.buffers) == len(waiting)
        assert sum(map(len, self.buffers)) == len(waiting)
        assert self.buffers.filling == len(
            {each.place for each in self.model.waiting if not each.level}
        )

    @invariant()
    def it_wakes_up_for_what_is_due_first(self) -> None:
        assert self.buffers.next_wakeup == self.model.next_wakeup()

    @invariant()
    def it_says_whether_a_batch_is_full(self) -> None:
        full = [p for p, group in self.model.places.items() if self.model.first_batch(group)[1]]
        assert self.buffers.is_full == any(not level for _, level in full)


class Plain(BuffersMachine):
    """No option is set, and nothing expires."""

    KEYS = st.none()
    WEIGHTS = st.just(0)
    EXPIRES = st.just(inf)
    LIMITS = limits_of(flush_every=st.integers(1, 5), flush_interval=INTERVALS)
    ROOMS = st.just(inf)


class IdleOnly(Plain):
    LIMITS = limits_of(flush_idle=INTERVALS)
    LEVELS = st.just(0)


class WeightOnly(Plain):
    WEIGHTS = WEIGHTS
    LIMITS = limits_of(flush_max_weight=st.sampled_from([0.5, 2, 5, 9.5]))


class ExpiryOnly(Plain):
    EXPIRES = BuffersMachine.EXPIRES
    LIMITS = limits_of()


class KeysOnly(Plain):
    KEYS = BuffersMachine.KEYS
    LIMITS = limits_of(flush_keys=st.sampled_from([1, 2, 3, 7, 100]))


class RoomOnly(Plain):
    KEYS = BuffersMachine.KEYS
    LIMITS = limits_of()
    ROOMS = st.sampled_from([inf, 1, 3, 8])


MACHINES = [Plain, IdleOnly, WeightOnly, ExpiryOnly, KeysOnly, RoomOnly, BuffersMachine]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_it_does_what_the_model_does(machine: type[BuffersMachine]) -> None:
    """Each rule by itself, and all together with a hundred keys."""
    case = machine.TestCase
    case.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
    case("runTest").debug()


def drain(buffers: Buffers[Any], now: float) -> list[tuple[str, list[Any]]]:
    batches = []
    while (ready := buffers.ready(now=now)) is not None:
        batch = buffers.take(ready)
        batches.append((batch.trigger, list(batch)))
    return batches


def test_keys_take_turns() -> None:
    """A key with a thousand calls does not keep those of other keys waiting."""
    buffers: Buffers[str] = Buffers([Limits(2, 100)])
    for _ in range(8):
        buffers.add("a", Facts("a"), now=0)
    for key in "bc":
        for _ in range(4):
            buffers.add(key, Facts(key), now=1)
    assert "".join(items[0] for _, items in drain(buffers, 1)) == "abcabcaa"


def test_one_key_too_many_flushes_the_one_that_waits_longest() -> None:
    """Not the one with the most calls, nor the one whose call came last."""
    buffers: Buffers[str] = Buffers([Limits(9, 100, flush_keys=2)])
    for now, key in enumerate("abbac"):
        buffers.add(key, Facts(key), now=now)
    assert drain(buffers, 4) == [("keys", ["a", "a"])]
    assert buffers.next_wakeup == 101


def test_a_million_keys_leave_nothing_behind() -> None:
    """What is remembered does not grow with the keys that have been there."""
    buffers: Buffers[int] = Buffers([Limits(2, 1e6, flush_idle=1e5, flush_keys=10)])
    for key in range(10_000):
        for _ in range(3):
            buffers.add(key, Facts(key), now=key)
        drain(buffers, key)
    assert len(buffers) == buffers.filling == len(list(buffers)) == 10
    assert len(buffers._turns) == len(buffers._keys) == 10
    drain(buffers, 1e9)
    assert not buffers._keys
    assert not buffers._turns


def test_a_million_batches_beside_one_that_waits_leave_nothing_behind() -> None:
    """What comes after the first wakeup is not looked at, and yet does not pile up."""
    buffers: Buffers[int] = Buffers([Limits(2, 1e6)])
    buffers.add(0, Facts("waits"), now=0)
    for now in range(10_000):
        for _ in range(2):
            buffers.add(now, Facts(now), now=now)
        drain(buffers, now)
    assert len(buffers) == 1
    for schedule in (buffers._by_wakeup, buffers._by_age):
        assert len(schedule._heap) < 100


def test_an_idle_key_is_flushed_beside_a_busy_one() -> None:
    """Each key has a clock of its own."""
    buffers: Buffers[str] = Buffers([Limits(99, 100, flush_idle=2)])
    buffers.add("a", Facts("a"), now=0)
    for now in range(4):
        buffers.add("b", Facts("b"), now=now)
    assert drain(buffers, 3) == [("idle", ["a"])]
    assert buffers.next_wakeup == 5


def test_facts_of_most_requests_are_one_object() -> None:
    """A request of which there is nothing to know is in the buffer of the key None."""
    buffers: Buffers[str] = Buffers([Limits(2, 100)])
    buffers.add("a", now=0)
    buffers.add("b", NOTHING, now=0)
    assert drain(buffers, 0) == [("size", ["a", "b"])]
