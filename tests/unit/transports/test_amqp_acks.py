"""With AMQP, the frames that acknowledge a batch are written at once, and are those of py-amqp."""

from __future__ import annotations

from typing import Any

import pytest

from kit.brokers import SIZE, Batch, Broker
from kit.wires import Socket


@pytest.mark.rabbitmq
@pytest.mark.parametrize("late", [True, False])
def test_amqp_gets_one_frame_for_each_message_in_one_write(rabbitmq: Broker, late: bool) -> None:
    """What is delivered before and after them on the same channel stays unacknowledged."""
    rabbitmq.send("before", 1)
    rabbitmq.receive()
    batch = Batch(rabbitmq, late=late)
    rabbitmq.send("after", 1)
    rabbitmq.receive()
    socket = Socket(rabbitmq)
    batch.end()
    assert socket.writes == []
    rabbitmq.run_the_loop()
    (written,) = socket.writes
    assert len(written) == SIZE * 21
    assert all(batch.acknowledged)
    names = [message.headers["task"] for message in rabbitmq.delivered_again()]
    assert names == ["before", "after"]


@pytest.mark.rabbitmq
@pytest.mark.parametrize("late", [True, False])
def test_amqp_gets_one_frame_for_a_batch_that_is_next_in_line(rabbitmq: Broker, late: bool) -> None:
    """Byte by byte what py-amqp writes for ``multiple``; what comes after it stays."""
    batches = [Batch(rabbitmq, late=late)]
    batches += [Batch(rabbitmq, task=batches[0].task) for _ in range(2)]
    rabbitmq.send("after", 1)
    rabbitmq.receive()
    socket = Socket(rabbitmq)
    # The third ends before the second: it may not speak for it.
    for batch, frames in zip((batches[0], batches[2], batches[1]), (1, SIZE, 1), strict=True):
        batch.end()
        rabbitmq.run_the_loop()
        assert len(socket.writes.pop()) == frames * 21
        assert all(batch.acknowledged)
    names = [message.headers["task"] for message in rabbitmq.delivered_again()]
    assert names == ["after"]


@pytest.mark.rabbitmq
def test_after_a_write_that_failed_no_frame_is_for_many(
    rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what the broker has got of it."""
    batch = Batch(rabbitmq)
    following = Batch(rabbitmq, task=batch.task)
    transport = rabbitmq.channel.connection.transport
    with monkeypatch.context() as patch:
        written, wholes = transport.write, []

        def write(data: Any) -> None:
            if not wholes:
                wholes.append(data)
                raise RuntimeError("odd")
            written(data)

        patch.setattr(transport, "write", write)
        batch.end()
        rabbitmq.run_the_loop()
    socket = Socket(rabbitmq)
    following.end()
    rabbitmq.run_the_loop()
    assert [len(data) for data in socket.writes] == [SIZE * 21]
    assert rabbitmq.delivered_again() == []


@pytest.mark.rabbitmq
def test_amqp_frames_for_many_are_those_that_kombu_writes(rabbitmq: Broker) -> None:
    batch = Batch(rabbitmq)
    socket = Socket(rabbitmq)
    batch.end()
    rabbitmq.run_the_loop()
    (at_once,) = socket.writes
    socket.writes.clear()
    socket.error = ConnectionResetError("not twice")
    with pytest.raises(ConnectionResetError):
        rabbitmq.channel.basic_ack(batch.messages[-1].delivery_tag, multiple=True)
    assert socket.writes == [at_once]


@pytest.mark.rabbitmq
def test_amqp_frames_are_those_that_kombu_writes(rabbitmq: Broker) -> None:
    """Byte by byte."""
    rabbitmq.send("before", 1)
    rabbitmq.receive()
    batch = Batch(rabbitmq)
    socket = Socket(rabbitmq)
    batch.end()
    rabbitmq.run_the_loop()
    (at_once,) = socket.writes
    socket.writes.clear()
    socket.error = ConnectionResetError("not twice")
    for message in batch.messages:
        with pytest.raises(ConnectionResetError):
            message.channel.basic_ack(message.delivery_tag)
    assert b"".join(socket.writes) == at_once
