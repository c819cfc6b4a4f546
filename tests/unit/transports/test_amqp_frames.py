"""Frames that are written at once are those of py-amqp, and where it is not as known it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import amqp
import pytest

from celery_batches.core.shortcuts import SHORTCUTS
from kit.brokers import FRAME, SIZE, Batch, Broker
from kit.wires import Socket

Ended = Callable[[], tuple[Batch, list[bytes]]]


@pytest.fixture
def ended(rabbitmq: Broker) -> Ended:
    """End a batch behind an outstanding message; return it, and what is written for it."""

    def end() -> tuple[Batch, list[bytes]]:
        rabbitmq.send("before", 1)
        rabbitmq.receive()
        batch = Batch(rabbitmq)
        socket = Socket(rabbitmq)
        batch.end()
        rabbitmq.run_the_loop()
        assert all(batch.acknowledged)
        return batch, socket.writes

    return end


@pytest.mark.rabbitmq
def test_amqp_frames_are_those_that_kombu_writes(rabbitmq: Broker, ended: Ended) -> None:
    """Byte by byte."""
    batch, (at_once,) = ended()
    socket = Socket(rabbitmq)
    socket.error = ConnectionResetError("not twice")
    for message in batch.messages:
        with pytest.raises(ConnectionResetError):
            message.channel.basic_ack(message.delivery_tag)
    assert b"".join(socket.writes) == at_once


@pytest.mark.rabbitmq
def test_py_amqp_counts_the_frames(rabbitmq: Broker) -> None:
    """It sends no heartbeat while something else is sent."""
    rabbitmq.send("before", 1)
    rabbitmq.receive()
    batch = Batch(rabbitmq)
    connection = rabbitmq.channel.connection
    before = connection.bytes_sent
    batch.end()
    rabbitmq.run_the_loop()
    assert connection.bytes_sent == before + SIZE


@pytest.mark.rabbitmq
def test_the_switch(rabbitmq: Broker, ended: Ended) -> None:
    """Without the shortcut py-amqp writes each frame; the same messages are acknowledged."""
    rabbitmq.shortcuts = SHORTCUTS - {"amqp_frames"}
    _, writes = ended()
    assert [len(data) for data in writes] == [FRAME] * SIZE
    assert [message.headers["task"] for message in rabbitmq.delivered_again()] == ["before"]


UNKNOWN: dict[str, Callable[[pytest.MonkeyPatch, Any], None]] = {
    "no method": lambda patch, channel: patch.delattr(amqp.spec.Basic, "Ack"),
    "another method": lambda patch, channel: patch.setattr(amqp.spec.Basic, "Ack", (60, 81)),
    "another count": lambda patch, channel: patch.setattr(channel.connection, "bytes_sent", 1.5),
}


@pytest.mark.rabbitmq
@pytest.mark.parametrize("part", UNKNOWN)
def test_a_py_amqp_that_is_not_as_known(
    rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """It writes each frame itself, as it does for Celery."""
    rabbitmq.send("before", 1)
    rabbitmq.receive()
    batch = Batch(rabbitmq)
    written: list[Any] = []
    basic_ack = rabbitmq.channel.basic_ack
    monkeypatch.setattr(rabbitmq.channel, "basic_ack", lambda *tag, **_: written.append(tag))
    batch.end()
    with monkeypatch.context() as patch:
        UNKNOWN[part](patch, rabbitmq.channel)
        rabbitmq.run_the_loop()
    assert written == [(message.delivery_tag,) for message in batch.messages]
    for (tag,) in written:
        basic_ack(tag)
    assert len(rabbitmq.delivered_again()) == 1
