"""Reading many messages in one turn of the event loop, with kombu's own loop."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
from amqp.exceptions import RecoverableConnectionError
from kombu.asynchronous import Hub
from kombu.transport.pyamqp import Transport

from celery_batches.reading import TURN, read_many


class Connection(amqp.Connection):  # type: ignore[misc]  # py-amqp is not typed
    """One whose messages are bytes in a pipe."""

    def __init__(self) -> None:
        self.socket, self.sender = os.pipe()
        os.set_blocking(self.socket, False)
        self.read = 0
        self.is_connected = True
        self.error: Exception | None = None

    @property
    def sock(self) -> int:
        return self.socket

    @property
    def connected(self) -> bool:
        return self.is_connected

    def drain_events(self, timeout: float | None = None) -> None:
        assert timeout == 0, "it must not wait"
        if self.error is not None:
            raise self.error
        try:
            assert os.read(self.socket, 1)
        except BlockingIOError:
            raise TimeoutError from None
        self.read += 1

    def deliver(self, messages: int) -> None:
        os.write(self.sender, b"m" * messages)


@pytest.fixture
def hub() -> Any:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def connection() -> Any:
    connection = Connection()
    yield connection
    os.close(connection.socket)
    os.close(connection.sender)


def consumer_of(connection: Any, transport: Any = None) -> Any:
    """Return a consumer whose connection kombu has registered with the event loop."""
    transport = transport or Transport(SimpleNamespace())
    return SimpleNamespace(
        connection=SimpleNamespace(connection=connection, transport=transport), task_consumer=None
    )


def test_messages_are_read_many_at_a_time(hub: Hub, connection: Connection) -> None:
    """In one turn of the loop as many as may be, in the next the others, and then no more."""
    read_many(consumer_of(connection), hub)
    loop = hub.create_loop()
    connection.deliver(TURN + 3)
    next(loop)
    assert connection.read == TURN
    others: list[int] = []
    hub.call_soon(lambda: others.append(connection.read))
    next(loop)
    assert connection.read == TURN + 3
    assert others, "the loop did not see to anything else"
    connection.deliver(1)
    next(loop)
    assert connection.read == TURN + 4


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINTR])
def test_nothing_to_read(hub: Hub, connection: Connection, code: int) -> None:
    """A socket that has nothing after all is not an error."""
    read_many(consumer_of(connection), hub)
    connection.deliver(1)
    connection.error = OSError(code, "nothing")
    next(hub.create_loop())
    connection.error = None
    next(hub.create_loop())
    assert connection.read == 1


@pytest.mark.parametrize("error", [OSError(errno.ECONNRESET, "reset"), RuntimeError("other")])
def test_errors_are_for_celery(hub: Hub, connection: Connection, error: Exception) -> None:
    """What is wrong with the connection reaches the worker, as from kombu's own reader."""
    hub.propagate_errors = (OSError, RuntimeError)
    read_many(consumer_of(connection), hub)
    connection.deliver(1)
    connection.error = error
    with pytest.raises(type(error)):
        next(hub.create_loop())


def test_a_connection_that_is_gone(hub: Hub, connection: Connection) -> None:
    """Amid messages too: it may be closed by what one of them says."""
    hub.propagate_errors = (RecoverableConnectionError,)
    read_many(consumer_of(connection), hub)
    connection.deliver(1)
    connection.is_connected = False
    with pytest.raises(RecoverableConnectionError):
        next(hub.create_loop())
    assert connection.read == 0


def test_connections_that_are_read_in_their_own_way(hub: Hub, connection: Connection) -> None:
    """Those of other brokers, and of transports that read otherwise than kombu's."""

    class Own(Transport):  # type: ignore[misc]
        def on_readable(self, connection: Any, loop: Any) -> None:
            """Do something else."""

    read_many(consumer_of(SimpleNamespace(sock=connection.sock)), hub)
    read_many(consumer_of(connection, Own(SimpleNamespace())), hub)
    assert not hub.readers
    read_many(consumer_of(connection), hub)
    assert list(hub.readers) == [connection.sock]
