"""The messages of a batch are acknowledged at once, and as Celery would have it done one by one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
import redis
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu import Connection, Queue
from kombu.asynchronous import Hub
from kombu.transport import virtual
from kombu.utils.uuid import uuid
from nonsense import call
from redis.connection import AbstractConnection
from unit.inprocess import Delivery, InProcessWorker, Problems
from unit.support import Clock, FakeConsumer, make_request, protocol_2
from vine import promise

from celery_batches import Batches
from celery_batches.worker import acks
from celery_batches.worker.acks import BatchAck, Promised, together
from celery_batches.worker.job import BatchJob

SIZE = 5
PRIORITIES = [0, 3, 6, 9]


class Broker:
    """A queue on a real broker, and requests for the messages that came from it."""

    def __init__(self, app: Any, url: str, **options: Any) -> None:
        self.app = app
        self.url = url
        self.connection = Connection(url, transport_options=options)
        self.channel: Any = self.connection.default_channel
        self.queue = Queue(f"test-{uuid()}")(self.channel)
        self.queue.declare()
        # As the worker's event loop: what is to be done soon is done when it comes round.
        self.hub: Any = Hub()
        self._pending_operations: deque[Any] = deque()
        self.soon = 0

    def call_soon(self, *args: Any) -> Any:
        self.soon += 1
        return Consumer.call_soon(self, *args)

    def run_the_loop(self) -> None:
        Consumer.perform_pending_operations(self)
        for callback in list(self.hub._ready) if self.hub else ():
            self.hub._ready.discard(callback)
            callback()

    def send(self, name: str, size: int, **options: Any) -> None:
        producer = self.connection.Producer(self.channel)
        for number in range(size):
            sent = protocol_2(self.app, f"id-{number}", name, [number])
            producer.publish(
                sent.payload,
                routing_key=self.queue.name,
                headers=sent.headers,
                serializer="json",
                priority=number,
                **options,
            )

    def receive(self) -> Any:
        """Take a message from the queue, as the consumer does."""
        message = self.queue.get(accept=["json"])
        assert message is not None
        return message

    def request(self, task: Any, **options: Any) -> Any:
        message = self.receive()
        return make_request(self.app, task, message, on_ack=self.ack_of(message), **options)

    def ack_of(self, message: Any) -> BatchAck:
        """What a request is given to acknowledge it: see Celery's ``create_task_handler``."""
        return BatchAck(promise(self.call_soon, (message.ack_log_error,)))

    def delivered_again(self) -> list[Any]:
        """What the broker has back when the connection is closed, in order of arrival."""
        self.connection.close()
        with Connection(self.url) as connection:
            queue = self.queue(connection.default_channel)
            messages = iter(lambda: queue.get(no_ack=True, accept=["json"]), None)
            again = list(messages)
            queue.delete()
        return again

    @property
    def held(self) -> int:
        """How many messages kombu counts against the prefetch count."""
        qos = self.channel.qos
        return len(qos._delivered) - len(qos._dirty)

    def close(self) -> None:
        if self.connection.connected:
            self.queue.delete()
        self.connection.close()
        if self.hub:
            self.hub.close()


class RedisBroker(Broker):
    def __init__(self, app: Any, url: str, prefix: str) -> None:
        name = uuid()
        self.keys = [f"{name}.{key}" for key in ("unacked", "unacked_index")]
        unacked, index = self.keys
        options = {"unacked_key": unacked, "unacked_index_key": index, "global_keyprefix": prefix}
        super().__init__(app, url, priority_steps=PRIORITIES, **options)
        self.redis = redis.Redis.from_url(url)
        self.prefix = prefix

    @property
    def unacked(self) -> tuple[int, int]:
        """How many messages Redis has as delivered: in the hash, and in the index."""
        unacked, index = (self.prefix + key for key in self.keys)
        return int(self.redis.hlen(unacked)), int(self.redis.zcard(index))  # type: ignore[arg-type]

    def close(self) -> None:
        super().close()
        # What was not acknowledged has gone back to its queue.
        queues = [self.channel._q_for_pri(self.queue.name, step) for step in PRIORITIES]
        self.redis.delete(*(self.prefix + key for key in (*self.keys, *queues)))
        self.redis.close()


@pytest.fixture(params=["", "some-prefix:"], ids=["bare", "prefixed"])
def broker(app: Any, redis_url: str, request: pytest.FixtureRequest) -> Iterator[RedisBroker]:
    broker = RedisBroker(app, redis_url, request.param)
    yield broker
    broker.close()


class Wire:
    """What is sent to Redis, and which of the acknowledgements fail: these, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cut: Callable[[int], bool] = lambda number: False
        self.sends = 0
        self.acks = 0
        send = AbstractConnection.send_packed_command

        def counted(connection: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
            self.sends += 1
            if b"ZREM" in b"".join([command] if isinstance(command, bytes) else command):
                self.acks += 1
                if self.cut(self.acks):
                    connection.disconnect()
                    raise redis.ConnectionError("the wire is cut")
            return send(connection, command, *args, **kwargs)

        monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


def make_task(app: Any, **options: Any) -> Any:
    @app.task(base=Batches, name="unit.click", **options)
    def click(requests: Any) -> None: ...

    return click


class Batch:
    """A batch whose messages came from the broker."""

    def __init__(
        self,
        broker: Broker,
        size: int = SIZE,
        *,
        late: bool = True,
        cls: Any = Request,
        task: Any = None,
    ):
        self.task = make_task(broker.app, acks_late=late) if task is None else task
        broker.send(self.task.name, size)
        errors = (*broker.connection.connection_errors, redis.ConnectionError)
        self.requests = [
            broker.request(self.task, cls=cls, connection_errors=errors) for _ in range(size)
        ]
        self.messages = [request.message for request in self.requests]
        self.job = BatchJob(self.task, self.requests, trigger="size", hostname="w@h")

    def end(self) -> None:
        """The pool tells of it as Celery's does."""
        self.job.on_accepted(7, 0.0)
        self.job.on_success((False, [(False, "None")] * len(self.requests), 0.5))

    @property
    def acknowledged(self) -> list[bool]:
        return [message.acknowledged for message in self.messages]


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


def tags(batch: Batch) -> list[str]:
    return [message.delivery_tag for message in batch.messages]


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


@pytest.mark.redis
@pytest.mark.parametrize("owner", ["channel", "qos", "message"])
def test_a_transport_with_an_ack_of_its_own_keeps_it(broker: RedisBroker, owner: str) -> None:
    batch = Batch(broker)
    asked: list[Any] = []

    def own(base: type) -> type:
        name = "basic_ack" if owner == "channel" else "ack"

        def ack(self: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(self)
            return getattr(base, name)(self, *args, **kwargs)

        return type("Own", (base,), {name: ack})

    found = {"channel": [broker.channel], "qos": [broker.channel.qos], "message": batch.messages}
    for one in found[owner]:
        one.__class__ = own(type(one))
    batch.end()
    broker.run_the_loop()
    assert len(asked) == SIZE
    assert all(batch.acknowledged)
    assert broker.unacked == (0, 0)


class Picky(Request):
    """Acknowledges when it feels like it."""

    asked = 0

    def acknowledge(self) -> None:
        self.asked += 1
        if self.id != "id-1":
            super().acknowledge()


class Telling(Request):
    """Has something to do of its own when it is acknowledged."""

    def __init__(self, *args: Any, on_ack: Any, **kwargs: Any) -> None:
        self.told: list[Any] = []
        super().__init__(*args, on_ack=self._tell, **kwargs)
        self._inner = on_ack

    def _tell(self, *args: Any) -> None:
        self.told.append(args)
        self._inner(*args)


@pytest.mark.redis
def test_a_request_that_overrides_acknowledge_is_obeyed(broker: RedisBroker) -> None:
    batch = Batch(broker, cls=Picky)
    batch.end()
    broker.run_the_loop()
    ids = [request.id for request in batch.requests]
    assert batch.acknowledged == [id != "id-1" for id in ids]
    assert [request.asked for request in batch.requests] == [1] * SIZE
    assert broker.unacked == (1, 1)


@pytest.mark.redis
def test_a_request_that_wraps_on_ack_is_obeyed(broker: RedisBroker, wire: Wire) -> None:
    batch = Batch(broker, cls=Telling)
    batch.end()
    before = wire.sends
    broker.run_the_loop()
    assert [len(request.told) for request in batch.requests] == [1] * SIZE
    assert wire.sends - before == 1
    assert all(batch.acknowledged)


@pytest.mark.redis
def test_who_waits_for_an_acknowledgement_is_told(broker: RedisBroker) -> None:
    """After a reconnect, Celery raises the prefetch count with each that is done."""
    batch = Batch(broker)
    told: list[Any] = []
    for request in batch.requests[:2]:
        request.on_ack.then(told.append)
    batch.end()
    assert len(told) == 2
    assert broker.soon == 3
    broker.run_the_loop()
    assert all(batch.acknowledged)
    assert broker.unacked == (0, 0)


@pytest.fixture
def rabbitmq(app: Any, rabbitmq_url: str) -> Iterator[Broker]:
    broker = Broker(app, rabbitmq_url)
    broker.channel.no_ack_consumers = set()
    yield broker
    broker.close()


class Socket:
    """What is written to the connection to RabbitMQ."""

    def __init__(self, broker: Broker) -> None:
        self.writes: list[bytes] = []
        self.error: Exception | None = None
        transport = broker.channel.connection.transport
        self._write, transport._write = transport._write, self._written

    def _written(self, data: Any) -> None:
        self.writes.append(bytes(data))
        if self.error is not None:
            raise self.error
        self._write(data)


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


@pytest.mark.rabbitmq
def test_greenlets_do_not_write_long_to_a_connection_that_others_use(rabbitmq: Broker) -> None:
    """Without an event loop, each frame is written by py-amqp, which knows of the others."""
    rabbitmq.hub = None
    rabbitmq.send("before", 1)
    rabbitmq.receive()
    batch = Batch(rabbitmq)
    socket = Socket(rabbitmq)
    batch.end()
    rabbitmq.run_the_loop()
    assert [len(data) for data in socket.writes] == [21] * SIZE
    assert all(batch.acknowledged)
    assert len(rabbitmq.delivered_again()) == 1


@pytest.mark.rabbitmq
def test_greenlets_write_one_frame_for_a_batch_that_is_next_in_line(rabbitmq: Broker) -> None:
    rabbitmq.hub = None
    batches = [Batch(rabbitmq)]
    batches.append(Batch(rabbitmq, task=batches[0].task))
    socket = Socket(rabbitmq)
    for number, batch in enumerate(batches, start=1):
        batch.end()
        rabbitmq.run_the_loop()
        assert [len(data) for data in socket.writes] == [21] * number
        assert all(batch.acknowledged)
    assert rabbitmq.delivered_again() == []


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
    assert [len(data) for data in socket.writes] == [21] * SIZE
    rabbitmq.channel.connection.transport.connected = True


@pytest.fixture
def memory(app: Any) -> Iterator[Broker]:
    broker = Broker(app, "memory://")
    yield broker
    broker.close()


def test_other_transports_are_told_of_each_message(memory: Broker) -> None:
    """In order of arrival, in one turn of the event loop."""
    batch = Batch(memory)
    said: list[Any] = []
    for message in batch.messages:
        message.channel = SimpleNamespace(
            no_ack_consumers=set(), basic_ack=lambda tag, multiple: said.append((tag, multiple))
        )
    batch.end()
    assert memory.soon == 1
    assert said == []
    memory.run_the_loop()
    assert said == [(tag, False) for tag in tags(batch)]
    assert all(batch.acknowledged)


def test_kombus_own_books_are_kept(memory: Broker) -> None:
    batch = Batch(memory)
    batch.end()
    memory.run_the_loop()
    assert all(batch.acknowledged)
    assert memory.held == 0


@pytest.mark.parametrize(
    ("error", "acknowledged"),
    [
        # Logged by kombu, or at least none of its neighbours' concern.
        (redis.ConnectionError("lost"), [True, False, True]),
        (KeyError("a bug"), [True, False, True]),
        # Where kombu raises this, the connection is gone.
        (BrokenPipeError("gone"), [True, False, False]),
    ],
)
def test_an_error_is_told_as_celery_tells_it(
    memory: Broker, caplog: pytest.LogCaptureFixture, error: Exception, acknowledged: list[bool]
) -> None:
    batch = Batch(memory, 3)

    def fail(tag: Any, multiple: bool) -> None:
        raise error

    batch.messages[1].channel = SimpleNamespace(no_ack_consumers=set(), basic_ack=fail)
    batch.end()
    if isinstance(error, redis.ConnectionError):
        memory.run_the_loop()
    else:
        with pytest.raises(type(error)):
            memory.run_the_loop()
    assert batch.acknowledged == acknowledged
    lines = [record.getMessage() for record in caplog.records]
    tag = batch.messages[1].delivery_tag
    expected = f"Couldn't ack {tag!r}, reason:{error!r}"
    assert lines == ([] if isinstance(error, KeyError) else [expected])


def test_a_request_by_itself_is_acknowledged_as_ever(memory: Broker) -> None:
    """One that is revoked while it waits in the buffer, for example."""
    batch = Batch(memory)
    batch.requests[0].acknowledge()
    assert memory.soon == 1
    memory.run_the_loop()
    assert batch.acknowledged == [True, False, False, False, False]


def test_only_what_celery_gives_to_a_strategy_is_collected(memory: Broker) -> None:
    """Whoever calls the strategy with another function is called back, there and then."""
    batch = Batch(memory)
    called: list[Any] = []
    request = make_request(
        memory.app,
        batch.task,
        batch.messages[0],
        on_ack=BatchAck(lambda *args: called.append(args)),
    )
    with together():
        request.acknowledge()
        assert len(called) == 1
    assert memory.soon == 0


def test_what_another_thread_acknowledges_is_not_kept_waiting(memory: Broker) -> None:
    """With a pool of threads, several batches end at the same time."""
    batch = Batch(memory)
    with together():
        thread = Thread(target=batch.requests[0].acknowledge)
        thread.start()
        thread.join()
        assert memory.soon == 1
        batch.requests[1].acknowledge()
        assert memory.soon == 1
    assert memory.soon == 2
    memory.run_the_loop()
    assert batch.acknowledged == [True, True, False, False, False]


def test_what_was_collected_is_done_whatever_happens_then(memory: Broker) -> None:
    batch = Batch(memory)

    @together()
    def end() -> None:
        batch.requests[0].acknowledge()
        raise SystemExit

    with pytest.raises(SystemExit):
        end()
    memory.run_the_loop()
    assert batch.acknowledged == [True, False, False, False, False]


def test_the_strategy_has_its_requests_acknowledged_together(memory: Broker) -> None:
    task = make_task(memory.app, flush_every=3, acks_late=True)
    consumer = FakeConsumer(memory.app)
    strategy = task.Strategy(task, memory.app, consumer)
    memory.send(task.name, 3)
    messages = [memory.receive() for _ in range(3)]
    for message in messages:
        ack = promise(memory.call_soon, (message.ack_log_error,))
        strategy(message, None, ack, message.reject_log_error, [])
    (job,) = consumer.sent
    job.on_success((False, [(False, "None")] * 3, 0.5))
    assert memory.soon == 1
    memory.run_the_loop()
    assert all(message.acknowledged for message in messages)


@pytest.mark.parametrize("kind", [BatchAck, Promised])
@pytest.mark.parametrize("when", ["before", "after"])
def test_who_waits_for_what_was_promised_is_told(kind: Any, when: str) -> None:
    """Whether they ask before the strategy gets the promise, as Celery does, or the request."""
    done: list[Any] = []
    told: list[Any] = []

    def soon(call: Any, *args: Any) -> str:
        done.append((call, args))
        return "done"

    given = promise(soon, (len,))
    if when == "before":
        given.then(told.append)
    promised = kind(given)
    if when == "after":
        promised.then(told.append)
    with together():
        assert promised("logger", "errors") == "done"
    assert done == [(len, ("logger", "errors"))]
    assert told == ["done"]


@pytest.mark.parametrize("kind", [BatchAck, Promised])
def test_what_cannot_be_done_is_told(kind: Any) -> None:
    """Celery gives the promise something to call then."""
    failed: list[Any] = []

    def soon(*args: Any) -> None:
        raise OSError

    kind(promise(soon, (len,), on_error=lambda *args: failed.append(args)))("logger", "errors")
    ((call, exc),) = failed
    assert call is len
    assert isinstance(exc, OSError)


def test_the_strategy_has_its_requests_rejected_as_promised(memory: Broker) -> None:
    task = make_task(memory.app, flush_every=1, acks_late=True)
    consumer = FakeConsumer(memory.app)
    strategy = task.Strategy(task, memory.app, consumer)
    memory.send(task.name, 1)
    message = memory.receive()
    ack, reject = message.ack_log_error, message.reject_log_error
    strategy(message, None, *(promise(memory.call_soon, (call,)) for call in (ack, reject)), [])
    (job,) = consumer.sent
    job.requests[0].reject(requeue=True)
    assert memory.soon == 1
    memory.run_the_loop()
    assert message.acknowledged
    assert memory.receive().headers["id"] == message.headers["id"]


def test_what_celerys_own_handler_promises_is_collected(app: Any) -> None:
    """It is not kept for something out of the ordinary: batches would be acknowledged slowly."""
    task = make_task(app, flush_every=3, acks_late=True)
    with Problems() as problems:
        worker = InProcessWorker(app, Clock(), problems)
        for number in range(2):
            worker.deliver(Delivery(call(task.name, f"id-{number}")))
        requests = list(worker_state.reserved_requests)
        assert len(requests) == 2
        with together():
            for request in requests:
                request.acknowledge()
            assert worker.channel.of(0) == []
            assert len(acks._collection.acks or ()) == 2
        worker_state.reset_state()
