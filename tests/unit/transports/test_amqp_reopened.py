"""py-amqp reopens a channel that the broker has closed: the same object, with new tags from 1."""

from __future__ import annotations

from collections.abc import Callable

import amqp
import pytest
from amqp.exceptions import PreconditionFailed
from vine import promise

from celery_batches.core.shortcuts import SHORTCUTS, Shortcut
from kit.brokers import FRAME, SIZE, Batch, Broker
from kit.wires import Socket


def acknowledge_what_was_not_delivered(broker: Broker) -> None:
    """The error comes with what is read next."""
    broker.channel.basic_ack(1000)
    broker.channel.queue_declare(broker.queue.name, passive=True)


def declare_with_other_arguments(broker: Broker) -> None:
    """So does ``celery control add_consumer``, on the worker's channel. The worker goes on."""
    broker.channel.queue_declare(broker.queue.name, durable=False, auto_delete=False)


@pytest.mark.rabbitmq
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("bulk", [True, False], ids=["bulk", "one by one"])
@pytest.mark.parametrize(
    "provoke", [acknowledge_what_was_not_delivered, declare_with_other_arguments]
)
def test_tags_start_anew_on_a_reopened_channel(
    rabbitmq: Broker, provoke: Callable[[Broker], None], bulk: bool, times: int
) -> None:
    """What is outstanding there stays so, as if kombu acknowledged each message.

    The tags of the last batch follow on those that were acknowledged before.
    """
    shortcuts: frozenset[Shortcut] = SHORTCUTS if bulk else SHORTCUTS - {"amqp_acks"}
    rabbitmq.shortcuts = shortcuts
    channel = rabbitmq.channel
    batch = Batch(rabbitmq)
    for _ in range(times):
        batch.end()
        rabbitmq.run_the_loop()
        with pytest.raises(PreconditionFailed):
            provoke(rabbitmq)
        assert channel.is_open
        assert rabbitmq.connection.default_channel is channel
        batch = Batch(rabbitmq, task=batch.task)
        assert [message.delivery_tag for message in batch.messages] == [1, 2, 3, 4, 5]
    last = Batch(rabbitmq, task=batch.task)
    last.end()
    rabbitmq.run_the_loop()
    assert all(last.acknowledged)
    assert len(rabbitmq.delivered_again()) == SIZE


@pytest.mark.rabbitmq
def test_a_reopened_channel_gets_one_frame_for_a_batch_again(rabbitmq: Broker) -> None:
    batch = Batch(rabbitmq)
    batch.end()
    rabbitmq.run_the_loop()
    with pytest.raises(PreconditionFailed):
        declare_with_other_arguments(rabbitmq)
    batch = Batch(rabbitmq, task=batch.task)
    socket = Socket(rabbitmq)
    batch.end()
    rabbitmq.run_the_loop()
    assert [len(data) for data in socket.writes] == [FRAME]
    assert rabbitmq.delivered_again() == []


@pytest.mark.rabbitmq
def test_a_vine_that_forgets_listeners(rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would know of a reopened channel: each message has a frame of its own."""
    monkeypatch.setattr(amqp.Channel, "then", lambda channel, fun: promise(fun, (channel,)))
    batch = Batch(rabbitmq)
    socket = Socket(rabbitmq)
    batch.end()
    rabbitmq.run_the_loop()
    assert [len(data) for data in socket.writes] == [SIZE * FRAME]
    assert rabbitmq.delivered_again() == []
