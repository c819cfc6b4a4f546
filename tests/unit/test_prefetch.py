"""What the broker may deliver ahead, with kombu's own QoS."""

from __future__ import annotations

from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.common import QoS

from celery_batches.prefetch import PrefetchRoom


def make(prefetch: int, flush_every: int) -> tuple[PrefetchRoom, QoS]:
    consumer: Any = SimpleNamespace(qos=QoS(lambda prefetch_count: None, prefetch))
    return PrefetchRoom(consumer, flush_every), consumer.qos


def test_an_open_room_holds_a_whole_batch() -> None:
    """The broker may deliver a whole batch beside the normal budget, however often it is opened."""
    room, qos = make(4, 100)
    room.open()
    room.open()
    assert qos.value == 104


def test_closing_gives_back_what_was_taken() -> None:
    """A connection's end leaves the budget as it was, however often it is closed."""
    room, qos = make(4, 100)
    room.close()
    assert qos.value == 4
    room.open()
    room.close()
    room.close()
    assert qos.value == 4


def test_a_batch_on_its_way_is_charged_as_one() -> None:
    """A batch that is at work costs one of the budget, and nothing once it is done."""
    room, qos = make(4, 100)
    room.open()
    taken = room.take(100)
    assert qos.value == 104 + 99
    room.give_back(taken)
    assert qos.value == 104


def test_no_limit_stays_no_limit() -> None:
    """A prefetch count of 0 means unlimited, and is never turned into a limit."""
    room, qos = make(0, 100)
    room.open()
    room.give_back(room.take(100))
    room.close()
    assert qos.value == 0


def test_a_batch_of_one_makes_no_round_trip() -> None:
    """A batch of one is an ordinary task to the prefetch budget."""
    room, qos = make(4, 1)
    room.open()
    before = qos.value
    room.give_back(room.take(1))
    assert qos.value == before


def test_room_is_given_back_to_the_connection_it_came_from() -> None:
    """What an old connection's batch gives back does not shrink the budget of the new one."""
    first = QoS(lambda prefetch_count: None, 4)
    consumer: Any = SimpleNamespace(qos=first)
    room = PrefetchRoom(consumer, 10)
    room.open()
    taken = room.take(10)
    room.close()
    consumer.qos = QoS(lambda prefetch_count: None, 4)
    room.give_back(taken)
    assert consumer.qos.value == 4
    assert first.value == 4


def test_no_room_before_the_consumer_is_ready() -> None:
    """Without having been opened, a room changes nothing."""
    room, qos = make(4, 10)
    room.give_back(room.take(10))
    assert qos.value == 4


@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.lists(st.one_of(st.integers(1, 20), st.none())),
)
def test_the_budget_is_exact(prefetch: int, flush_every: int, steps: list[int | None]) -> None:
    """The budget is the normal one, plus one batch, plus what is on its way at one less each."""
    room, qos = make(prefetch, flush_every)
    room.open()
    on_its_way: list[tuple[int, Any]] = []
    for size in steps:
        if size is not None:
            size = min(size, flush_every)
            on_its_way.append((size, room.take(size)))
        elif on_its_way:
            room.give_back(on_its_way.pop(0)[1])
        extra = sum(size - 1 for size, _ in on_its_way)
        assert qos.value == prefetch + flush_every + extra


def test_amqp_can_count_to_65535() -> None:
    """Beyond that kombu sets no limit at all: the room ends there, and is given back exactly."""
    room, qos = make(4, 65_000)
    room.open()
    taken = room.take(65_000)
    assert qos.value == 65_535
    room.give_back(taken)
    assert qos.value == 65_004
    room.close()
    assert qos.value == 4


def test_a_limit_of_eta_tasks_is_none_of_batches() -> None:
    """worker_eta_task_limit bounds what waits for its ETA, and batches fill all the same."""
    if "max_prefetch" not in signature(QoS).parameters:
        pytest.skip("this Kombu knows no such limit")
    qos = QoS(lambda prefetch_count: None, 4, max_prefetch=6)
    room = PrefetchRoom(SimpleNamespace(qos=qos), 100)
    room.open()
    assert qos.value == 104
    for _ in range(5):
        qos.increment_eventually()  # As Celery does for each request with an ETA.
    assert qos.value == 106
    taken = room.take(100)
    assert qos.value == 106 + 99
    room.give_back(taken)
    room.close()
    assert (qos.value, qos.max_prefetch) == (6, 6)


def test_room_for_several_batches() -> None:
    """Where the broker cannot be told later, room for more batches is made at the start."""
    room, qos = make(4, 100)
    room.open(batches=3)
    assert qos.value == 304
    room.close()
    assert qos.value == 4
