"""With AMQP, one frame acknowledges a batch, unless a message before it is outstanding."""

from __future__ import annotations

from typing import Any

import pytest

from kit.brokers import FRAME, SIZE, Batch, Broker
from kit.wires import Socket


@pytest.mark.rabbitmq
@pytest.mark.parametrize("loop", [True, False], ids=["loop", "greenlets"])
@pytest.mark.parametrize("late", [True, False])
def test_amqp_gets_one_frame_for_each_message_after_an_outstanding_one(
    rabbitmq: Broker, late: bool, loop: bool
) -> None:
    """What is delivered before and after them on the same channel stays unacknowledged.

    With an event loop it is one write. Without one, others may write to the connection, and so
    py-amqp writes each frame under its lock.
    """
    rabbitmq.hub = rabbitmq.hub if loop else None
    rabbitmq.send("before", 1)
    rabbitmq.receive()
    batch = Batch(rabbitmq, late=late)
    rabbitmq.send("after", 1)
    rabbitmq.receive()
    socket = Socket(rabbitmq)
    batch.end()
    assert socket.writes == []
    rabbitmq.run_the_loop()
    assert [len(data) for data in socket.writes] == ([SIZE * FRAME] if loop else [FRAME] * SIZE)
    assert all(batch.acknowledged)
    names = [message.headers["task"] for message in rabbitmq.delivered_again()]
    assert names == ["before", "after"]


@pytest.mark.rabbitmq
@pytest.mark.parametrize("loop", [True, False], ids=["loop", "greenlets"])
@pytest.mark.parametrize("late", [True, False])
def test_amqp_gets_one_frame_for_a_batch_that_is_next_in_line(
    rabbitmq: Broker, late: bool, loop: bool
) -> None:
    """With an event loop and with greenlets; what comes after the batch stays outstanding."""
    rabbitmq.hub = rabbitmq.hub if loop else None
    batches = [Batch(rabbitmq, late=late)]
    batches += [Batch(rabbitmq, task=batches[0].task) for _ in range(2)]
    rabbitmq.send("after", 1)
    rabbitmq.receive()
    socket = Socket(rabbitmq)
    # The third ends before the second: it may not speak for it.
    for batch, frames in zip((batches[0], batches[2], batches[1]), (1, SIZE, 1), strict=True):
        batch.end()
        rabbitmq.run_the_loop()
        assert sum(map(len, socket.writes)) == FRAME * frames
        socket.writes.clear()
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
        written, failed = transport._write, []

        def write(data: Any) -> None:
            if not failed:
                failed.append(data)
                raise RuntimeError("odd")
            written(data)

        patch.setattr(transport, "_write", write)
        batch.end()
        rabbitmq.run_the_loop()
    assert failed
    socket = Socket(rabbitmq)
    following.end()
    rabbitmq.run_the_loop()
    assert [len(data) for data in socket.writes] == [SIZE * FRAME]
    assert rabbitmq.delivered_again() == []


@pytest.mark.rabbitmq
def test_kombus_messages_know_of_it(rabbitmq: Broker) -> None:
    """Nobody can acknowledge them again, which would close the channel; they keep that channel."""
    batch = Batch(rabbitmq)
    batch.end()
    rabbitmq.run_the_loop()
    for message in batch.messages:
        assert message.channel is rabbitmq.channel
        with pytest.raises(message.MessageStateError):
            message.ack()
    assert rabbitmq.delivered_again() == []
