"""Many messages are written to RabbitMQ at once, and it says which of them it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import amqp
import pytest
from celery.exceptions import OperationalError
from kombu import Connection, Exchange, Producer, Queue

from celery_batches.transports import amqp_publish
from celery_batches.transports.outgoing import NotPublished, Outgoing
from kit.brokers import Broker
from kit.wires import Socket

pytestmark = pytest.mark.rabbitmq


def made(channel: Any, queue: str, numbers: Any, size: int = 10, **options: Any) -> list[Outgoing]:
    """Messages as a channel has made them."""
    common = {"exchange": "", "routing_key": queue, "mandatory": False, "immediate": False}
    headers = {"id": "x", "eta": None, "timelimit": [None, 3], "stamps": {}}
    return [
        Outgoing(
            channel.prepare_message(
                f"{number}".rjust(size).encode(),
                *(number % 3, "text/plain", "utf-8", headers, {"correlation_id": "c"}),
            ),
            {**common, **options},
        )
        for number in numbers
    ]


def bodies(broker: Broker) -> list[int]:
    queue = broker.queue
    got = iter(lambda: queue.get(no_ack=True), None)
    return [int(message.body) for message in got]


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_amqp_publish_writes_the_frames_of_py_amqp(rabbitmq: Broker, size: int) -> None:
    """Byte by byte, also for bodies of several frames, and in one write."""
    assert amqp_publish.is_supported(rabbitmq.channel)
    outgoing = made(rabbitmq.channel, rabbitmq.queue.name, range(3), size)
    socket = Socket(rabbitmq)
    for message, options in outgoing:
        rabbitmq.channel.basic_publish(message, **options)
    one_by_one = b"".join(socket.writes)
    socket.writes.clear()
    published: list[int] = []
    amqp_publish.publish(rabbitmq.channel, outgoing, published.append)
    at_once, question = socket.writes
    assert at_once == one_by_one
    assert len(question) < 20
    assert published == [0, 1, 2]
    assert bodies(rabbitmq) == [0, 1, 2] * 2


@pytest.fixture
def confirmed(rabbitmq: Broker) -> Any:
    """A connection on which RabbitMQ confirms each message."""
    with Connection(rabbitmq.url, transport_options={"confirm_publish": True}) as connection:
        yield connection


def test_each_message_is_confirmed(rabbitmq: Broker, confirmed: Any) -> None:
    """The channel of the caller goes on as before."""
    channel = confirmed.default_channel
    channels = set(channel.connection.channels)
    published: list[int] = []
    for _ in range(2):
        outgoing = made(channel, rabbitmq.queue.name, range(200))
        amqp_publish.publish(channel, outgoing, published.append)
    assert sorted(published) == sorted([*range(200)] * 2)
    assert set(channel.connection.channels) == channels
    Producer(channel).publish(b"7", routing_key=rabbitmq.queue.name)
    assert bodies(rabbitmq) == [*range(200), *range(200), 7]


def test_messages_that_rabbitmq_refuses(rabbitmq: Broker, confirmed: Any) -> None:
    """A full queue has the first two. The others are refused, and not reported as published."""
    channel = confirmed.default_channel
    arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
    full = Queue(f"{rabbitmq.queue.name}-full", queue_arguments=arguments)(channel)
    full.declare()
    published: list[int] = []
    try:
        with pytest.raises(NotPublished, match=r"has refused 2 of 4 messages \(basic.nack\)"):
            amqp_publish.publish(channel, made(channel, full.name, range(4)), published.append)
        assert sorted(published) == [0, 1]
        assert channel.connection.connected
        assert issubclass(NotPublished, OperationalError)
    finally:
        full.delete()


@pytest.mark.parametrize("confirm", [True, False])
def test_an_exchange_that_is_not_there(rabbitmq: Broker, confirm: bool) -> None:
    """RabbitMQ closes the channel. No message after that is reported as published."""
    options = {"confirm_publish": confirm}
    with Connection(rabbitmq.url, transport_options=options) as connection:
        channel = connection.default_channel
        outgoing = [
            *made(channel, rabbitmq.queue.name, [0]),
            *made(channel, "x", [1], exchange="no-such-exchange"),
            *made(channel, rabbitmq.queue.name, [2]),
        ]
        published: list[int] = []
        with pytest.raises(amqp.NotFound):
            amqp_publish.publish(channel, outgoing, published.append)
        assert set(published) <= {0}
        assert connection.connected


@pytest.mark.parametrize("confirm", [True, False])
def test_a_message_that_has_no_queue(rabbitmq: Broker, confirm: bool) -> None:
    """With ``mandatory``, RabbitMQ returns it; a callback of the producer gets it."""
    returned: list[Any] = []
    with Connection(rabbitmq.url, transport_options={"confirm_publish": confirm}) as connection:
        channel = connection.default_channel
        channel.events["basic_return"].add(lambda *message: returned.append(message))
        outgoing = made(channel, "no-such-queue", range(2), mandatory=True)
        amqp_publish.publish(channel, outgoing, lambda position: None)
        assert len(returned) == 2


@pytest.mark.parametrize("confirm", [True, False])
def test_a_broker_that_does_not_answer(
    rabbitmq: Broker, confirm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the timeout of the caller nothing is reported as published; the connection ends."""
    with Connection(rabbitmq.url, transport_options={"confirm_publish": confirm}) as connection:
        channel = connection.default_channel
        outgoing = made(channel, rabbitmq.queue.name, range(2), timeout=0.05)
        monkeypatch.setattr(amqp_publish, "_write", lambda *_: None)
        monkeypatch.setattr(channel, "send_method", lambda *_, **__: None)
        published: list[int] = []
        with pytest.raises(TimeoutError):
            amqp_publish.publish(channel, outgoing, published.append)
        assert published == []
        assert not connection.connected


def test_a_write_that_breaks_off(rabbitmq: Broker) -> None:
    """The connection ends, as part of a frame may be written."""
    outgoing = made(rabbitmq.channel, rabbitmq.queue.name, range(2))
    Socket(rabbitmq).error = KeyboardInterrupt()  # type: ignore[assignment]
    connection = rabbitmq.channel.connection
    published: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        amqp_publish.publish(rabbitmq.channel, outgoing, published.append)
    assert published == []
    assert not connection.connected


def test_check_finds_a_connection_that_is_closed(rabbitmq: Broker) -> None:
    amqp_publish.check(rabbitmq.channel)
    rabbitmq.channel.connection.transport.sock.shutdown(2)
    with pytest.raises(OSError, match=r"closed|reset"):
        amqp_publish.check(rabbitmq.channel)


UNKNOWN: dict[str, Callable[[pytest.MonkeyPatch, Any], None]] = {
    "no method": lambda patch, channel: patch.delattr(amqp.spec.Basic, "Publish"),
    "another method": lambda patch, channel: patch.setattr(amqp.spec.Basic, "Publish", (60, 41)),
    "no frame writer": lambda patch, channel: patch.delattr(amqp.method_framing, "frame_writer"),
    "another broker": lambda patch, channel: patch.setitem(
        channel.connection.server_properties, "product", "Other"
    ),
    "another channel": lambda patch, channel: patch.setattr(
        channel, "__class__", type("Channel", (type(channel),), {})
    ),
}


@pytest.mark.parametrize("part", UNKNOWN)
def test_a_py_amqp_that_is_not_as_expected(
    rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Each message is published by kombu then: see `bulk_publish.publish_each`."""
    with monkeypatch.context() as patch:
        UNKNOWN[part](patch, rabbitmq.channel)
        assert not amqp_publish.is_supported(rabbitmq.channel)
    assert amqp_publish.is_supported(rabbitmq.channel)


def test_a_named_exchange(rabbitmq: Broker) -> None:
    """Messages reach all queues that are bound."""
    channel = rabbitmq.channel
    exchange = Exchange(f"{rabbitmq.queue.name}-x", type="topic", auto_delete=True)(channel)
    exchange.declare()
    rabbitmq.queue.bind_to(exchange, "a.*")
    amqp_publish.publish(channel, made(channel, "a.b", range(2), exchange=exchange.name), print)
    assert bodies(rabbitmq) == [0, 1]
