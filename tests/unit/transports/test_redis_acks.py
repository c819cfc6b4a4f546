"""With Redis, the messages of a batch are acknowledged in one round trip."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from kombu.transport import virtual

from kit.brokers import SIZE, Batch, Broker, RedisBroker, tags
from kit.wires import Wire


@pytest.mark.redis
@pytest.mark.parametrize("late", [True, False])
def test_a_batch_is_acknowledged_in_one_round_trip(
    broker: RedisBroker, wire: Wire, late: bool
) -> None:
    """Messages of several priorities: nothing is left of them, neither in Redis nor in kombu."""
    batch = Batch(broker, late=late)
    assert broker.unacked == (SIZE, SIZE)
    batch.end()
    assert all(request.acknowledged for request in batch.requests)
    assert not any(batch.acknowledged)
    before = wire.sends
    broker.run_the_loop()
    assert wire.sends - before == 1
    assert broker.soon == 1
    assert all(batch.acknowledged)
    assert broker.unacked == (0, 0)
    assert broker.held == 0


@pytest.mark.redis
def test_kombu_may_receive_as_many_again(broker: RedisBroker) -> None:
    """What is acknowledged is not counted against the prefetch count any more."""
    batch = Batch(broker)
    broker.channel.basic_qos(prefetch_count=SIZE)
    assert not broker.channel.qos.can_consume()
    batch.end()
    broker.run_the_loop()
    assert broker.channel.qos.can_consume()
    broker.send(batch.task.name, 1)
    message = broker.receive()
    assert list(broker.channel.qos._delivered) == [message.delivery_tag]
    assert broker.channel.qos._dirty == set()


@pytest.mark.redis
def test_other_messages_stay_unacknowledged(broker: RedisBroker) -> None:
    broker.send("other", 1)
    other = broker.receive()
    batch = Batch(broker)
    batch.end()
    broker.run_the_loop()
    assert broker.unacked == (1, 1)
    assert list(broker.channel.qos._delivered) == [other.delivery_tag, *tags(batch)]
    assert broker.channel.qos._dirty == set(tags(batch))


@pytest.mark.redis
def test_what_cannot_be_done_at_once_is_done_one_by_one(
    broker: RedisBroker, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that has gone stale costs no message its acknowledgement."""
    batch = Batch(broker)
    batch.end()
    wire.cut = lambda number: number == 1
    broker.run_the_loop()
    assert all(batch.acknowledged)
    assert broker.unacked == (0, 0)
    assert caplog.records == []


@pytest.mark.redis
def test_what_fails_half_way_is_delivered_again(
    broker: RedisBroker, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery's own line tells of each message that is not acknowledged, and these come again."""
    batch = Batch(broker)
    batch.end()
    wire.cut = lambda number: number in (1, 4)  # All at once, then the third by itself.
    broker.run_the_loop()
    assert batch.acknowledged == [True, True, False, True, True]
    assert broker.unacked == (1, 1)
    assert broker.held == 1
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.CRITICAL, "celery.worker.request")
    lost = batch.messages[2]
    assert record.getMessage().startswith(f"Couldn't ack {lost.delivery_tag!r}, reason:")
    broker.channel.qos.restore_unacked()
    again = broker.receive()
    assert again.headers["id"] == lost.headers["id"]
    assert again.delivery_info["redelivered"]


@pytest.mark.redis
def test_a_broker_that_is_gone_takes_all_messages_back(
    broker: RedisBroker, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    batch = Batch(broker)
    batch.end()
    wire.cut = lambda number: True
    broker.run_the_loop()
    wire.cut = lambda number: False
    assert not any(batch.acknowledged)
    assert broker.unacked == (SIZE, SIZE)
    assert broker.held == SIZE
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL] * SIZE


@pytest.mark.redis
def test_a_message_that_is_acknowledged_already_is_for_kombu_to_judge(broker: RedisBroker) -> None:
    """It raises, as it would by itself, and its neighbours are acknowledged."""
    batch = Batch(broker)
    batch.messages[1].ack()
    batch.end()
    with pytest.raises(batch.messages[1].MessageStateError):
        broker.run_the_loop()
    assert all(batch.acknowledged)
    assert broker.unacked == (0, 0)


@pytest.mark.redis
def test_a_closed_channel_is_left_to_kombu(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost while a batch runs: what is done then is what was always done."""
    batch = Batch(broker)
    batch.end()
    broker.connection.close()
    asked: list[Any] = []
    monkeypatch.setattr(virtual.Channel, "basic_ack", lambda self, tag, **_: asked.append(tag))
    broker.run_the_loop()
    assert asked == tags(batch)


@pytest.mark.redis
def test_without_emulated_acknowledgements_there_is_nothing_to_send(
    app: Any, redis_url: str, wire: Wire
) -> None:
    """The transport option ``ack_emulation``."""
    broker = Broker(app, redis_url, ack_emulation=False)
    batch = Batch(broker)
    batch.end()
    before = wire.sends
    broker.run_the_loop()
    assert wire.sends == before
    assert all(batch.acknowledged)
    assert broker.held == 0
    broker.close()
