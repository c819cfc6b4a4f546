"""Acknowledgements for many deliveries at once, against a broker that takes them at their word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import celery_batches.core.delivery_tags
from celery_batches.core.delivery_tags import MAX_AFTER_GAP, DeliveryTags


class Broker:
    """A channel of RabbitMQ: what is outstanding on it."""

    def __init__(self) -> None:
        self.delivered = 0
        self.outstanding: set[int] = set()
        self.frames = 0

    def deliver(self, count: int) -> None:
        new = range(self.delivered + 1, self.delivered + count + 1)
        self.outstanding.update(new)
        self.delivered += count

    def ack(self, tag: int, *, multiple: bool) -> None:
        assert tag in self.outstanding, "PRECONDITION_FAILED - unknown delivery tag"
        self.frames += 1
        acknowledged = {each for each in self.outstanding if each <= tag} if multiple else {tag}
        self.outstanding -= acknowledged


@given(st.data())
def test_nothing_else_is_ever_acknowledged(data: st.DataObject) -> None:
    """Whatever batches there are, in whatever order they end, and whoever else acknowledges."""
    broker, tags = Broker(), DeliveryTags()
    for _ in range(data.draw(st.integers(1, 8))):
        broker.deliver(data.draw(st.integers(0, 6)))
        if not broker.outstanding:
            continue
        some = st.lists(st.sampled_from(sorted(broker.outstanding)), unique=True)
        if data.draw(st.integers(0, 4)) == 0:
            for tag in data.draw(some):  # An ordinary task's, or one that is rejected.
                broker.ack(tag, multiple=False)
        elif batch := data.draw(some):
            wanted = broker.outstanding - set(batch)
            for tag, multiple in tags.acknowledge(batch):
                broker.ack(tag, multiple=multiple)
            assert broker.outstanding == wanted


def test_batches_that_end_in_order_need_one_frame_each() -> None:
    broker, tags = Broker(), DeliveryTags()
    for batch in range(10):
        broker.deliver(100)
        first = batch * 100 + 1
        assert tags.acknowledge(range(first, first + 100)) == [(first + 99, True)]
        broker.ack(first + 99, multiple=True)
    assert not broker.outstanding


def test_batches_that_end_out_of_order_get_back_into_line() -> None:
    tags = DeliveryTags()
    assert tags.acknowledge([3, 4]) == [(3, False), (4, False)]
    assert tags.acknowledge([2, 1]) == [(2, True)]
    assert tags.acknowledge([5, 6]) == [(6, True)]


def test_up_to_a_gap_and_beyond() -> None:
    """What another task has of a batch's range is left alone, for good."""
    tags = DeliveryTags()
    assert tags.acknowledge([1, 2, 4, 5]) == [(2, True), (4, False), (5, False)]
    assert tags.acknowledge([6, 7]) == [(6, False), (7, False)]


def test_a_single_delivery_is_not_multiple() -> None:
    assert DeliveryTags().acknowledge([1]) == [(1, False)]


def test_numbers_that_begin_anew_are_not_trusted_any_more() -> None:
    """No broker does so on one channel; if it did, what is outstanding would not be known."""
    for again in ([1], [2], [4], [4, 9]):
        tags = DeliveryTags()
        tags.acknowledge([1, 2, 4])
        assert [multiple for _, multiple in tags.acknowledge(again)] == [False] * len(again)
        assert tags.acknowledge([5, 6]) == [(5, False), (6, False)]


def test_memory_is_bounded() -> None:
    """A delivery that stays outstanding does not have all after it remembered for ever."""
    tags = DeliveryTags()
    tags.acknowledge(range(2, MAX_AFTER_GAP + 2))
    assert len(tags._after_gap) == MAX_AFTER_GAP
    tags.acknowledge([MAX_AFTER_GAP + 2])
    assert not tags._after_gap
    assert tags.acknowledge([1, MAX_AFTER_GAP + 3]) == [(1, False), (MAX_AFTER_GAP + 3, False)]
    assert celery_batches.core.delivery_tags.MAX_AFTER_GAP >= 9 * 1000, "a window of large batches"
