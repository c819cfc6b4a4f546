"""What the broker may deliver ahead, with kombu's own QoS as Celery uses it."""

from __future__ import annotations

import logging
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import state as worker_state
from hypothesis import given
from hypothesis import strategies as st
from kombu.common import QoS
from kombu.transport.virtual import QoS as VirtualQoS

from celery_batches.worker.allowance import BatchAllowance
from celery_batches.worker.prefetch import (
    Charge,
    Prefetch,
    count_batches_as_one,
    warn_of_prefetch_limit,
)
from kit.consumer import PrefetchConsumer


def make(budget: int, flush_every: int, **options: Any) -> tuple[BatchAllowance, Prefetch]:
    consumer = PrefetchConsumer(budget, **options)
    return BatchAllowance(consumer, flush_every), consumer.qos


def test_an_open_room_holds_a_whole_batch() -> None:
    """The broker may deliver a whole batch beside the normal budget, however often it is opened."""
    room, qos = make(4, 100)
    room.open()
    room.open()
    assert qos.total == 104


def test_closing_gives_back_what_was_taken() -> None:
    """A connection's end leaves the budget as it was, however often it is closed."""
    room, qos = make(4, 100)
    room.close()
    assert qos.total == 4
    room.open()
    room.close()
    room.close()
    assert qos.total == 4


def test_a_batch_on_its_way_is_charged_as_one() -> None:
    """A batch that is at work costs one of the budget, and nothing once it is done."""
    room, qos = make(4, 100)
    room.open()
    charge = qos.charge(100)
    assert qos.total == 104 + 99
    charge.refund()
    charge.refund()
    charge.finish()
    assert qos.total == 104


def test_no_more_batches_than_the_budget_says() -> None:
    """Beyond (budget + 1) batches nothing is delivered, and a batch that ends lets the next in."""
    room, qos = make(4, 100)
    room.open()
    charges = [qos.charge(100) for _ in range(7)]
    assert qos.total == (4 + 1) * 100
    for charge in charges[:3]:
        charge.refund()
        assert qos.total == (4 + 1) * 100
    charges[5].refund()
    assert qos.total == 104 + 3 * 99


def test_expected_batches_fill_the_budget() -> None:
    """What is expected has the room that no batch on its way takes, the larger ones in turn."""
    consumer = PrefetchConsumer(4)
    small, large = BatchAllowance(consumer, 10), BatchAllowance(consumer, 100)
    small.start_read_ahead(until=1.0)
    assert consumer.qos.total == 4, "not before it is open"
    small.open()
    small.start_read_ahead(until=1.0)
    small.start_read_ahead(until=1.0)
    assert consumer.qos.total == 4 + 10 + 4 * 9
    charge = consumer.qos.charge(5)
    assert consumer.qos.total == 4 + 10 + 4 + 3 * 9
    large.open()
    large.start_read_ahead(until=1.0)
    assert consumer.qos.total == 4 + 110 + 4 + 9 + 99 + 9
    small.stop_read_ahead()
    small.stop_read_ahead()
    assert consumer.qos.total == 4 + 110 + 4 + 3 * 99
    charge.refund()
    large.close()
    assert consumer.qos.total == 4 + 10


def test_batches_that_were_expected_are_no_news() -> None:
    """While full batches come and go, the broker is told nothing."""
    consumer = PrefetchConsumer(4)
    room = BatchAllowance(consumer, 10)
    room.open()
    room.start_read_ahead(until=1.0)
    assert consumer.loop() == [4 + 10 + 4 * 9]
    for _ in range(3):
        first, second = consumer.qos.charge(10), consumer.qos.charge(10)
        assert consumer.loop() == []
        first.finish()
        second.finish()
        assert consumer.loop() == []
    room.stop_read_ahead()
    assert consumer.loop() == [4 + 10]


def test_no_limit_stays_no_limit() -> None:
    """A prefetch count of 0 means unlimited, and is never turned into a limit."""
    consumer = PrefetchConsumer(0)
    room = BatchAllowance(consumer, 100)
    room.open()
    consumer.qos.charge(100).refund()
    assert consumer.loop() == [0]
    room.close()
    assert consumer.loop() == []


def test_a_batch_of_one_makes_no_round_trip() -> None:
    """A batch of one is an ordinary task to the prefetch budget."""
    consumer = PrefetchConsumer(4)
    consumer.loop()
    BatchAllowance(consumer, 1).open()
    charge = consumer.qos.charge(1)
    assert consumer.loop() == []
    charge.refund()
    assert consumer.loop() == []


def test_the_broker_is_told_once_of_what_has_come_together() -> None:
    """A batch that ends while another is sent changes nothing for the broker."""
    consumer = PrefetchConsumer(4)
    room = BatchAllowance(consumer, 10)
    room.open()
    charge = consumer.qos.charge(10)
    assert consumer.loop() == [4 + 10 + 9]
    assert consumer.loop() == []
    charge.refund()
    consumer.qos.charge(10)
    assert consumer.loop() == []


def test_room_that_is_made_while_the_broker_is_told() -> None:
    """Where the answer is waited for, messages may come in: what they need is told next."""
    consumer = PrefetchConsumer(4)
    first, second = BatchAllowance(consumer, 10), BatchAllowance(consumer, 20)

    def basic_qos(prefetch_count: int) -> None:
        consumer.prefetch_counts.append(prefetch_count)
        second.open()

    consumer.qos.callback = basic_qos
    first.open()
    assert consumer.loop() == [4 + 10]
    assert consumer.loop() == [4 + 10 + 20]
    assert consumer.loop() == []


def test_charges_are_refunded_to_the_connection_they_came_from() -> None:
    """What an old connection's batch gives back does not shrink the budget of the new one."""
    consumer = PrefetchConsumer(4)
    first, room = consumer.qos, BatchAllowance(consumer, 10)
    room.open()
    charge = first.charge(10)
    consumer.qos = Prefetch(QoS(lambda prefetch_count: None, 4), lambda: 4)
    room.close()
    charge.refund()
    assert consumer.qos.total == 4
    assert first.total == 4


def test_another_counter_is_left_alone() -> None:
    """Without our own counter there is no room, and nothing breaks."""
    consumer: Any = SimpleNamespace(qos=QoS(lambda prefetch_count: None, 4))
    room = BatchAllowance(consumer, 10)
    room.open()
    assert consumer.qos.value == 4
    room.close()


@given(
    st.integers(1, 50),
    st.integers(2, 20),
    st.lists(st.one_of(st.integers(1, 20), st.none())),
)
def test_the_room_is_exact(budget: int, flush_every: int, steps: list[int | None]) -> None:
    """The budget, one batch, and what `budget` batches on their way hold at one less each."""
    room, qos = make(budget, flush_every)
    room.open()
    on_their_way: list[Charge] = []
    for size in steps:
        if size is not None:
            on_their_way.append(qos.charge(min(size, flush_every)))
        elif on_their_way:
            on_their_way.pop(0).refund()
        # Their order is the order in which they were sent.
        granted = sum(charge.size - 1 for charge in on_their_way[:budget])
        assert qos.total == budget + flush_every + granted
        assert qos.total <= (budget + 1) * flush_every


def test_celery_counts_on_as_if_there_were_no_room() -> None:
    """The pool grows and shrinks, and Celery restores its count after a reconnect, beside it."""
    consumer = PrefetchConsumer(4)
    room = BatchAllowance(consumer, 100)
    room.open()
    charges = [consumer.qos.charge(100) for _ in range(6)]
    assert consumer.loop() == [4 + 100 + 4 * 99]
    consumer.initial_prefetch_count = 8
    consumer.qos.increment_eventually(4)
    assert consumer.loop() == [8 + 100 + 6 * 99]
    consumer.initial_prefetch_count = 2
    consumer.qos.decrement_eventually(6)
    assert consumer.loop() == [2 + 100 + 2 * 99]
    charge, *others = charges
    for other in others:
        other.finish()
    # As `Consumer._restore_prefetch_count_after_connection_restart` does.
    consumer.qos.value = 6
    consumer.prefetch_counts.clear()
    consumer.qos.set(consumer.qos.value)
    assert consumer.prefetch_counts == [6 + 100 + 99]
    charge.finish()
    room.close()
    assert consumer.loop() == [6]


def test_amqp_can_count_to_65535() -> None:
    """Beyond that kombu sets no limit at all: the room ends there."""
    consumer = PrefetchConsumer(4)
    room = BatchAllowance(consumer, 65_000)
    room.open()
    charge = consumer.qos.charge(65_000)
    assert consumer.loop() == [65_535]
    charge.refund()
    assert consumer.loop() == [65_004]


def test_a_budget_that_amqp_cannot_count_is_no_limit(caplog: pytest.LogCaptureFixture) -> None:
    """As Celery has it, and kombu warns."""
    consumer = PrefetchConsumer(70_000)
    BatchAllowance(consumer, 100).open()
    assert consumer.loop() == [0]


@pytest.mark.parametrize(
    ("flush_every", "budget", "warned"),
    [
        (65_536, 8, True),
        (65_535, 8, False),
        (65_536, 0, False),
    ],
)
def test_a_batch_that_no_broker_delivers(
    flush_every: int, budget: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so when the worker starts, and what to do."""
    task = SimpleNamespace(name="tasks.click", flush_every=flush_every)
    with caplog.at_level(logging.WARNING):
        warn_of_prefetch_limit(task.name, task.flush_every, budget)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert [
        word in said for word in ("tasks.click", "65536", "worker_prefetch_multiplier = 0")
    ] == [warned] * 3


def test_a_limit_of_eta_tasks_is_none_of_batches() -> None:
    """worker_eta_task_limit bounds what waits for its ETA, and batches fill all the same."""
    if "max_prefetch" not in signature(QoS).parameters:
        pytest.skip("this Kombu knows no such limit")
    room, qos = make(4, 100, max_prefetch=6)
    room.open()
    for _ in range(5):
        qos.increment_eventually()  # As Celery does for each request with an ETA.
    assert qos.total == 106
    charge = qos.charge(100)
    assert qos.total == 106 + 99
    charge.refund()
    room.close()
    assert qos.total == 6


def test_room_for_several_batches() -> None:
    """Where the broker cannot be told later, room for more batches is made at the start."""
    room, qos = make(4, 100)
    room.open(batches=3)
    assert qos.total == 304
    room.close()
    assert qos.total == 4


class TestDisabledPrefetch:
    """`worker_disable_prefetch`: a message is taken in when a process is free for it."""

    def consumer(self, buffered: int = 0) -> Any:
        consumer: Any = PrefetchConsumer(8)
        channel = SimpleNamespace(do_restore=False)
        channel.qos = VirtualQoS(channel, 0)
        consumer.task_consumer = SimpleNamespace(channel=channel)
        count_batches_as_one(consumer, lambda: buffered)
        return consumer

    def reserve(self, count: int) -> list[Any]:
        requests = [type("Request", (), {"__slots__": ("__weakref__",)})() for _ in range(count)]
        worker_state.reserved_requests.update(requests)
        return requests

    def test_what_is_buffered_keeps_no_process_busy(self) -> None:
        consumer = self.consumer(buffered=50)
        requests = self.reserve(50)
        assert consumer.task_consumer.channel.qos.can_consume()
        requests += self.reserve(2)
        assert not consumer.task_consumer.channel.qos.can_consume()

    def test_a_batch_keeps_one_process_busy(self) -> None:
        consumer = self.consumer()
        can_consume = consumer.task_consumer.channel.qos.can_consume
        requests = self.reserve(200)
        charges = [consumer.qos.charge(100)]
        assert not can_consume(), "100 ordinary tasks"
        charges.append(consumer.qos.charge(100))
        assert not can_consume(), "two batches"
        charges[0].refund()
        assert not can_consume(), "acknowledged early, it runs on"
        charges[0].finish()
        del requests[:100]
        assert can_consume()
        consumer.controller.max_concurrency = 1  # With autoscale.
        assert not can_consume()

    def test_the_limit_of_the_transport_holds(self) -> None:
        consumer = self.consumer()
        qos = consumer.task_consumer.channel.qos
        qos.prefetch_count = 1
        assert qos.can_consume()
        qos._delivered["tag"] = object()
        assert not qos.can_consume()
        qos._delivered.clear()
