"""Many messages go to Redis in one round trip, as kombu stores them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_py
from kombu import Connection, Exchange, Queue
from kombu.transport import redis as kombu_redis

from celery_batches.transports import redis_publish
from celery_batches.transports.outgoing import Outgoing
from kit.brokers import RedisBroker
from kit.wires import Wire

pytestmark = pytest.mark.redis


@pytest.fixture(params=["batch", "pipeline"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the batches of kombu 5.7, and without them."""
    if request.param == "pipeline":
        monkeypatch.setattr(kombu_redis.Channel, "supports_batch_publish", False, raising=False)
    elif not hasattr(kombu_redis.Channel, "create_publish_batch"):
        pytest.skip("this kombu has no batches")
    return str(request.param)


def made(channel: Any, key: str, numbers: Any, exchange: str = "") -> list[Outgoing]:
    options = {"exchange": exchange, "routing_key": key, "mandatory": False, "immediate": False}
    return [
        Outgoing(
            channel.prepare_message(
                f"{number}", number % 10, "text/plain", "utf-8", {"id": "x"}, {"reply_to": "r"}
            ),
            options,
        )
        for number in numbers
    ]


def stored(broker: RedisBroker) -> list[Any]:
    """What is in the lists of the queue, by priority, but for its numbers."""
    found = []
    for step in (0, 3, 6, 9):
        key = broker.prefix + broker.channel._q_for_pri(broker.queue.name, step)
        for text in reversed(broker.redis.lrange(key, 0, -1)):
            message = json.loads(text)
            assert len(message["properties"].pop("delivery_tag")) == 36
            found.append((step, message))
        broker.redis.delete(key)
    return found


def test_redis_publish_stores_what_kombu_stores(broker: RedisBroker, way: str) -> None:
    """In the lists of its priorities, with a prefix for the keys and without."""
    channel = broker.channel
    assert redis_publish.is_supported(channel)
    for message, options in made(channel, broker.queue.name, range(12)):
        channel.basic_publish(message, **options)
    control = stored(broker)
    published: list[int] = []
    redis_publish.publish(channel, made(channel, broker.queue.name, range(12)), published.append)
    assert published == list(range(12))
    assert stored(broker) == control
    assert len(control) == 12


def test_redis_publish_takes_one_round_trip(broker: RedisBroker, wire: Wire, way: str) -> None:
    outgoing = made(broker.channel, broker.queue.name, range(100))
    redis_publish.check(broker.channel)
    before = wire.sends
    redis_publish.publish(broker.channel, outgoing, lambda position: None)
    assert wire.sends == before + 1


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_named_exchanges(broker: RedisBroker, way: str, kind: str) -> None:
    """A message goes where kombu sends it, in order with the others."""
    channel = broker.channel
    exchange = Exchange(f"{broker.queue.name}-x", type=kind)(channel)
    exchange.declare()
    if kind != "fanout":
        broker.queue.bind_to(exchange, "key")
    outgoing = [
        *made(channel, broker.queue.name, [0]),
        *made(channel, "key", [3], exchange.name),
        *made(channel, broker.queue.name, [3]),
    ]
    published: list[int] = []
    redis_publish.publish(channel, outgoing, published.append)
    assert published == [0, 1, 2]
    # With fanout nobody listens.
    exchanges = [m["properties"]["delivery_info"]["exchange"] for _, m in stored(broker)]
    assert exchanges == (["", ""] if kind == "fanout" else ["", exchange.name, ""])
    exchange.delete()


def test_a_queue_that_expires(broker: RedisBroker, way: str) -> None:
    """With a kombu that has such queues on Redis."""
    if not hasattr(kombu_redis.Channel, "_get_queue_expire"):
        pytest.skip("this kombu has no queues on Redis that expire")
    channel = broker.channel
    queue = Queue(broker.queue.name, expires=100)(channel)
    queue.declare()
    redis_publish.publish(channel, made(channel, queue.name, range(3)), lambda position: None)
    assert 0 < broker.redis.pttl(broker.prefix + queue.name) <= 100_000
    assert len(stored(broker)) == 3


def test_redis_refuses_some(broker: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipeline it is known which ones: the others are published."""
    monkeypatch.setattr(kombu_redis.Channel, "supports_batch_publish", False, raising=False)
    channel = broker.channel
    bad = f"{broker.prefix}{broker.queue.name}-bad"
    broker.redis.set(bad, "no list")
    outgoing = [
        *made(channel, broker.queue.name, [0]),
        *made(channel, f"{broker.queue.name}-bad", [0]),
        *made(channel, broker.queue.name, [3]),
    ]
    published: list[int] = []
    with pytest.raises(redis_py.ResponseError, match="WRONGTYPE"):
        redis_publish.publish(channel, outgoing, published.append)
    assert published == [0, 2]
    assert len(stored(broker)) == 2
    broker.redis.delete(bad)


def test_check_finds_a_redis_that_is_away(broker: RedisBroker) -> None:
    redis_publish.check(broker.channel)
    with Connection("redis://127.0.0.1:1//") as connection, pytest.raises(Exception, match="111"):
        redis_publish.check(connection.default_channel)


class Own(kombu_redis.Channel):
    """A channel that puts messages elsewhere."""

    def _put(self, queue: str, message: Any, **options: Any) -> None: ...


@pytest.fixture
def connect(redis_url: str) -> Iterator[Callable[..., Any]]:
    opened: list[Connection] = []

    def connect(**options: Any) -> Any:
        opened.append(Connection(redis_url, transport_options=options))
        return opened[-1].default_channel

    yield connect
    for connection in opened:
        connection.release()


def test_channels_that_are_not_as_known(
    connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message is published by kombu then: see `bulk_publish.publish_each`."""
    channel = connect()
    assert redis_publish.is_supported(channel)
    # redis-py would send a pipeline again, of which Redis may have run all or a part.
    assert not redis_publish.is_supported(connect(retry_on_timeout=True))
    assert not redis_publish.is_supported(object())
    monkeypatch.setattr(channel, "__class__", Own)
    assert not redis_publish.is_supported(channel)
