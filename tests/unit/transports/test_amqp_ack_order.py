"""Acknowledgements by AMQP when others write, when the connection breaks or is of another kind."""

from __future__ import annotations

from threading import Event, Thread
from typing import Any

import amqp
import pytest

from kit.brokers import FRAME, SIZE, Batch, Broker, tags
from kit.wires import Socket


@pytest.mark.rabbitmq
def test_greenlets_do_not_overtake_each_other(
    rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that is for a batch and all before must not come before one that is for those."""
    monkeypatch.setattr(rabbitmq, "call_soon", lambda fun, *args: fun(*args))
    first = Batch(rabbitmq)
    second = Batch(rabbitmq, task=first.task)
    basic_ack, order = rabbitmq.channel.basic_ack, []
    writing, goes_on = Event(), Event()

    def ack(tag: int, **how: Any) -> None:
        if not writing.is_set():
            writing.set()
            goes_on.wait(5)
        order.append(tag)
        basic_ack(tag, **how)

    monkeypatch.setattr(rabbitmq.channel, "basic_ack", ack)
    threads = [Thread(target=batch.end) for batch in (first, second)]
    threads[0].start()
    assert writing.wait(5)
    threads[1].start()
    # It has nothing to wait for but the first: if it does not, it comes to its end.
    threads[1].join(0.2)
    goes_on.set()
    for thread in threads:
        thread.join(5)
    assert order == [batch.messages[-1].delivery_tag for batch in (first, second)]
    assert rabbitmq.delivered_again() == []


@pytest.mark.rabbitmq
@pytest.mark.parametrize("loop", [True, False])
def test_a_channel_that_acknowledges_in_its_own_way(
    rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch, loop: bool
) -> None:
    """It is asked for each message."""
    told = []
    kind = type(rabbitmq.channel)

    def own(channel: Any, tag: int, multiple: bool = False) -> None:
        told.append((tag, multiple))
        amqp.Channel.basic_ack(channel, tag, multiple=multiple)

    monkeypatch.setattr(kind, "basic_ack", own)
    rabbitmq.hub = rabbitmq.hub if loop else None
    batch = Batch(rabbitmq)
    batch.end()
    rabbitmq.run_the_loop()
    assert told == [(message.delivery_tag, False) for message in batch.messages]
    assert rabbitmq.delivered_again() == []


@pytest.mark.rabbitmq
@pytest.mark.parametrize("loop", [True, False])
def test_a_connection_that_breaks_takes_all_messages_back(
    rabbitmq: Broker, caplog: pytest.LogCaptureFixture, loop: bool
) -> None:
    """With an event loop and without one, each message is told of."""
    rabbitmq.hub = rabbitmq.hub if loop else None
    batch = Batch(rabbitmq)
    socket = Socket(rabbitmq)
    socket.error = ConnectionResetError("gone")
    batch.end()
    rabbitmq.run_the_loop()
    assert not any(batch.acknowledged)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"Couldn't ack {tag!r}, reason:{socket.error!r}" for tag in tags(batch)]
    assert len(rabbitmq.delivered_again()) == SIZE


@pytest.mark.rabbitmq
def test_a_connection_that_is_closed_is_not_opened(rabbitmq: Broker) -> None:
    """For the messages that came on it, there is nothing to be said on another."""
    batch = Batch(rabbitmq)
    batch.end()
    rabbitmq.connection.close()
    rabbitmq.run_the_loop()
    assert not any(batch.acknowledged)
    assert len(rabbitmq.delivered_again()) == SIZE


@pytest.mark.rabbitmq
def test_a_connection_that_has_broken_is_left_to_kombu(rabbitmq: Broker) -> None:
    batch = Batch(rabbitmq)
    socket = Socket(rabbitmq)
    rabbitmq.channel.connection.transport.connected = False
    batch.end()
    rabbitmq.run_the_loop()
    assert [len(data) for data in socket.writes] == [FRAME] * SIZE
    rabbitmq.channel.connection.transport.connected = True
