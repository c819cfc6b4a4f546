"""What is given back without having run is a nack to RabbitMQ, which does not count it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
from kombu import Message

from celery_batches.core.shortcuts import SHORTCUTS
from celery_batches.transports.amqp_nack import nack_on_reject
from kit.batch_worker import BatchWorker
from kit.messages import make_message
from kit.tasks import make_task


class Channel(amqp.Channel):  # type: ignore[misc]  # py-amqp is not typed
    """Of a connection to a broker with these capabilities; nobody reads from it."""

    no_ack_consumers: frozenset[str] = frozenset()

    def __init__(self, capabilities: Mapping[str, bool]) -> None:
        self.connection = SimpleNamespace(server_capabilities=capabilities)
        self.sent: list[Any] = []

    def send_method(self, *args: Any, **options: Any) -> None:
        self.sent.append(args)


class Rejecting(Channel):
    """Has a way of its own."""

    def basic_reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        self.sent.append("own")


RABBITMQ = {"basic.nack": True}
NACK = (amqp.spec.Basic.Nack, "Lbb", (7, False, True))
REJECT = (amqp.spec.Basic.Reject, "Lb", (7, True))


def message_on(channel: Channel) -> Message:
    message = make_message({}, channel=channel)
    message.delivery_tag = 7
    return message


@pytest.mark.parametrize(
    ("channel", "sent"),
    [
        (Channel(RABBITMQ), NACK),
        (Channel({"basic.nack": False}), REJECT),
        (Channel({}), REJECT),
        (Rejecting(RABBITMQ), "own"),
    ],
)
def test_a_broker_that_knows_nacks_gets_one(channel: Channel, sent: Any) -> None:
    """Any other, and a channel with a way of its own, gets what kombu sends."""
    message = message_on(channel)
    nack_on_reject(message)
    message.reject(requeue=True)
    assert channel.sent == [sent]
    assert message.acknowledged


def test_without_the_method_it_is_kombus_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """py-amqp may number its methods in another way one day, or not have this one."""
    monkeypatch.setattr("amqp.spec.Basic.Nack", (60, 121))
    message = message_on(channel := Channel(RABBITMQ))
    nack_on_reject(message)
    message.reject(requeue=True)
    assert channel.sent == [REJECT]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_worker_that_stops_gives_back_what_is_buffered(app: Any, enabled: bool) -> None:
    """By a nack, unless the shortcut is switched off."""
    app.conf.batches_shortcuts = SHORTCUTS - (set() if enabled else {"amqp_nack"})
    worker = BatchWorker(make_task(app, flush_every=3))
    message = worker.send(channel=Channel(RABBITMQ))
    message.delivery_tag = 7
    worker.strategy.retire(requeue=True)
    assert message.channel is not None
    channel = getattr(message.channel, "_channel", message.channel)
    assert channel.sent == [NACK if enabled else REJECT]
