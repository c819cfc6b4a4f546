"""When not all calls are sent, the error says which are, which may be, and which are not."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import kombu
import pytest
import redis
from celery.exceptions import OperationalError, SoftTimeLimitExceeded
from kombu.exceptions import EncodeError

from celery_batches import SendError, SendOperationalError
from celery_batches.transports import amqp_publish, redis_publish
from kit.sending import ids_of

CHUNK = 3


class Unsayable:
    """What no serializer knows."""


def numbers(calls: list[dict[str, Any]]) -> list[int]:
    return [call["args"][0] for call in calls]


def send(task: Any, calls: Any, **options: Any) -> SendError:
    with pytest.raises(SendError) as caught:
        task.apply_async_many(calls, chunk=CHUNK, **options)
    return caught.value


def counted(last: int, error: Exception | None = None) -> Iterator[tuple[Any, ...]]:
    for number in range(last):
        yield ((number,),)
    if error is not None:
        raise error


def sent_numbers(deployment: Any) -> list[int]:
    return [message.payload[0][0] for message in deployment.take()]


BAD: dict[str, tuple[Any, type[Exception]]] = {
    "cannot be serialized": (((Unsayable(),),), EncodeError),
    "not a list": ({"args": 5}, TypeError),
    "no such serializer": ({"args": (1,), "serializer": "none"}, Exception),
    "late limit": ({"args": (1,), "countdown": -1e12}, ValueError),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("before", [0, 1, 2, 3, 4])
def test_a_call_among_many_that_cannot_be_sent(deployment: Any, bad: str, before: int) -> None:
    """As in a loop: the calls before it are sent, it is not, and those after it are not taken."""
    call, cause = BAD[bad]
    calls = iter([*counted(before), call, *counted(2)])
    error = send(deployment.task, calls)
    assert isinstance(error.__cause__, cause)
    assert not isinstance(error, OperationalError)
    messages = deployment.take()
    assert ids_of(messages) == [result.id for result in error.sent]
    assert [message.payload[0][0] for message in messages] == list(range(before))
    assert error.uncertain == []
    (unsent,) = error.unsent
    assert unsent["args"] == (call["args"] if isinstance(call, dict) else call[0])
    assert len(list(calls)) == 2


def test_an_item_that_is_no_call(deployment: Any) -> None:
    """The calls before it are sent. The message says what a call is."""
    error = send(deployment.task, [*counted(2), "what"])
    assert isinstance(error.__cause__, TypeError)
    assert "a call is (args,)" in str(error)
    assert (len(error.sent), error.uncertain, error.unsent) == (2, [], [])
    assert sent_numbers(deployment) == [0, 1]


def test_a_generator_that_raises(deployment: Any) -> None:
    """What it has given before is sent."""
    boom = KeyError("boom")
    error = send(deployment.task, counted(4, boom))
    assert error.__cause__ is boom
    assert (len(error.sent), error.uncertain, error.unsent) == (4, [], [])
    assert sent_numbers(deployment) == [0, 1, 2, 3]
    assert str(error) == (
        "Task 'unit.click': 4 calls are sent, 0 may be sent, and 0 that were taken are not sent: "
        "KeyError('boom')"
    )


@pytest.mark.parametrize("stop", [SoftTimeLimitExceeded(), KeyboardInterrupt(), SystemExit()])
def test_what_stops_the_process_is_raised_as_it_is(deployment: Any, stop: Any) -> None:
    """A body that sends calls sees its own time limit."""
    with pytest.raises(type(stop)):
        deployment.task.apply_async_many(counted(4, stop), chunk=CHUNK)
    deployment.take()


CHUNKS = pytest.mark.parametrize(
    ("broker", "module"),
    [
        pytest.param("redis", redis_publish, marks=pytest.mark.redis),
        pytest.param("rabbitmq", amqp_publish, marks=pytest.mark.rabbitmq),
    ],
)
RETRY = pytest.mark.parametrize("retry", [True, False])


@CHUNKS
@RETRY
def test_a_connection_that_is_lost_amid_a_chunk(
    deploy: Any, broker: str, module: Any, retry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls may be sent. They are not sent again, as all of them could be there."""
    deployment = deploy(broker)
    cut = cut_after(module, monkeypatch, chunks=1)
    calls = counted(9)
    error = send(deployment.task, calls, retry=retry)
    assert isinstance(error, SendOperationalError)
    assert isinstance(error, OperationalError)
    assert isinstance(error, deployment.task.OperationalError)
    assert cut.calls == 2
    assert len(error.sent) == CHUNK
    assert numbers(error.uncertain) == [3, 4, 5]
    assert error.unsent == []
    assert len(list(calls)) == 3
    # With the same ids.
    again = deployment.task.apply_async_many(error.uncertain)
    assert [result.id for result in again] == [call["task_id"] for call in error.uncertain]
    messages = deployment.take()
    assert ids_of(messages)[:CHUNK] == [result.id for result in error.sent]
    assert ids_of(messages)[-CHUNK:] == [result.id for result in again]


class Cut:
    calls = 0


def cut_after(module: Any, monkeypatch: pytest.MonkeyPatch, *, chunks: int) -> Cut:
    """Have the connection break down while a chunk is written."""
    cut = Cut()
    publish: Callable[..., None] = module.publish

    def publish_or_break(channel: Any, outgoing: Any, on_published: Any) -> None:
        cut.calls += 1
        if cut.calls == chunks + 1:
            sever(channel)
        publish(channel, outgoing, on_published)

    monkeypatch.setattr(module, "publish", publish_or_break)
    return cut


def sever(channel: Any) -> None:
    """Close the socket of the connection, so that the next write fails."""
    if hasattr(channel, "conn_or_acquire"):
        # redis-py would connect again. It finds the socket closed only when it writes.
        with channel.conn_or_acquire() as client:
            connection = client.connection_pool.get_connection()
            connection.send_packed_command = broken
            client.connection_pool.release(connection)
    else:
        channel.connection.transport.sock.close()


def broken(*args: Any, **options: Any) -> None:
    raise redis.ConnectionError("the wire is cut")


@CHUNKS
def test_a_connection_that_is_lost_between_chunks(deploy: Any, broker: str, module: Any) -> None:
    """With retries, which are Celery's default, it is made again: nothing was on its way."""
    deployment = deploy(broker)

    def calls() -> Iterator[tuple[Any, ...]]:
        for number in range(9):
            if number == 4:
                with deployment.app.producer_or_acquire() as producer:
                    lose(producer.channel)
            yield ((number,),)

    results = deployment.task.apply_async_many(calls(), chunk=CHUNK)
    assert len(results) == 9
    assert sent_numbers(deployment) == list(range(9))


def lose(channel: Any) -> None:
    """Close the connection as a broker does that stops."""
    if hasattr(channel, "conn_or_acquire"):
        with channel.conn_or_acquire() as client:
            client.connection_pool.disconnect()
    else:
        channel.connection.transport.sock.shutdown(2)


@CHUNKS
def test_a_broker_that_goes_away_between_chunks(
    deploy: Any, broker: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk that was taken is not sent for sure. What was sent before stays sent."""
    deployment = deploy(broker)
    checks = iter([None, ConnectionError("gone"), None])

    def check(channel: Any) -> None:
        if error := next(checks):
            raise error

    monkeypatch.setattr(module, "check", check)
    error = send(deployment.task, counted(9), retry=False)
    assert isinstance(error, SendOperationalError)
    assert (len(error.sent), error.uncertain) == (CHUNK, [])
    assert numbers(error.unsent) == [3, 4, 5]
    deployment.task.apply_async_many(error.unsent)
    assert sent_numbers(deployment) == [0, 1, 2, 3, 4, 5]


def forget_connections(app: Any) -> None:
    kombu.pools.reset()
    app.amqp._producer_pool = None
    app._pool = None


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1//", "amqp://127.0.0.1:1//"])
def test_a_broker_that_is_away(app: Any, deploy: Any, url: str) -> None:
    """Nothing is sent for sure: the call that was taken is in `unsent`, whatever its broker."""
    deployment = deploy("memory")
    app.conf.broker_url = url
    app.conf.broker_connection_timeout = 1
    forget_connections(app)
    calls = counted(9)
    policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    error = send(deployment.task, calls, retry=True, retry_policy=policy)
    assert isinstance(error, SendOperationalError)
    assert (len(error.sent), error.uncertain) == (0, [])
    assert numbers(error.unsent) in ([0], [0, 1, 2])
    app.conf.broker_url = "memory://"
    forget_connections(app)


def test_the_error_can_be_pickled(deployment: Any) -> None:
    """A body may raise it, and its report goes from the pool to the main process."""
    error = send(deployment.task, counted(4, KeyError("boom")))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert [result.id for result in copy.sent] == [result.id for result in error.sent]
    assert copy.unsent == error.unsent
    deployment.take()


@pytest.mark.redis
def test_redis_refuses_a_message(deploy: Any) -> None:
    """The queue is no list: none of the chunk is reported as sent."""
    deployment = deploy("redis")
    deployment.task.delay_many([(0,)])
    with deployment.app.connection_for_write() as connection:
        client = connection.default_channel.client
        client.delete(deployment.queue)
        client.set(deployment.queue, "no list")
        error = send(deployment.task, counted(2))
        client.delete(deployment.queue)
    assert isinstance(error, SendOperationalError)
    assert len(error.sent) == 0
    assert numbers(error.uncertain) == [0, 1]
