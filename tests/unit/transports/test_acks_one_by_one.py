"""Without a shortcut, and where it does not know what it finds, each message has its own ack."""

from __future__ import annotations

from typing import Any

import amqp
import pytest
from kombu.transport import redis

from celery_batches.core.shortcuts import SHORTCUTS
from kit.brokers import FRAME, SIZE, Batch, Broker, RedisBroker
from kit.wires import Socket, Wire

OTHERS: dict[str, Any] = {
    "amqp_acks": SHORTCUTS - {"amqp_acks"},
    "redis_acks": SHORTCUTS - {"redis_acks"},
}


@pytest.mark.rabbitmq
@pytest.mark.parametrize("late", [True, False])
def test_amqp_acks_switched_off(rabbitmq: Broker, late: bool) -> None:
    """A frame for each message; what comes after the batch stays outstanding, as with it."""
    rabbitmq.shortcuts = OTHERS["amqp_acks"]
    batch = Batch(rabbitmq, late=late)
    rabbitmq.send("after", 1)
    rabbitmq.receive()
    socket = Socket(rabbitmq)
    batch.end()
    rabbitmq.run_the_loop()
    assert [len(data) for data in socket.writes] == [FRAME] * SIZE
    assert all(batch.acknowledged)
    assert [message.headers["task"] for message in rabbitmq.delivered_again()] == ["after"]


@pytest.mark.redis
@pytest.mark.parametrize("late", [True, False])
def test_redis_acks_switched_off(broker: RedisBroker, wire: Wire, late: bool) -> None:
    """A round trip for each message; nothing is left of them, as with it."""
    broker.shortcuts = OTHERS["redis_acks"]
    batch = Batch(broker, late=late)
    batch.end()
    before = wire.sends
    broker.run_the_loop()
    assert wire.sends - before == SIZE
    assert all(batch.acknowledged)
    assert broker.unacked == (0, 0)
    assert broker.held == 0


@pytest.mark.rabbitmq
def test_a_connection_of_py_amqp_that_is_not_as_known(
    rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say whether it is open: kombu acknowledges each message."""
    batch = Batch(rabbitmq)
    socket = Socket(rabbitmq)
    batch.end()
    with monkeypatch.context() as patch:
        patch.delattr(amqp.Connection, "connected")
        rabbitmq.run_the_loop()
    assert [len(data) for data in socket.writes] == [FRAME] * SIZE
    assert all(batch.acknowledged)
    assert rabbitmq.delivered_again() == []


@pytest.mark.redis
def test_a_redis_transport_that_is_not_as_known(
    broker: RedisBroker, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class for what is outstanding has another name: kombu acknowledges each message."""
    batch = Batch(broker)
    batch.end()
    before = wire.sends
    monkeypatch.delattr(redis, "QoS")
    broker.run_the_loop()
    assert wire.sends - before == SIZE
    assert all(batch.acknowledged)
    assert broker.unacked == (0, 0)
