"""Reading many frames in one turn of the event loop: py-amqp's connection, kombu's own loop."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
from amqp.exceptions import RecoverableConnectionError, UnexpectedFrame
from amqp.transport import SSLTransport, TCPTransport, _AbstractTransport
from kombu.asynchronous import Hub
from kombu.transport.pyamqp import Transport

from celery_batches.core.shortcuts import SETTING, SHORTCUTS
from celery_batches.transports.amqp_reader import READ_BYTES, READS_PER_TURN, read_many
from celery_batches.worker.bootstep import BatchesStep

Frame = tuple[int, int, bytes]


class Connection(amqp.Connection):  # type: ignore[misc]  # py-amqp is not typed
    """A connection to this test, which keeps the frames that it is given."""

    def __init__(self, transport: Any, sock: Any) -> None:
        self.transport = transport
        transport.sock = sock
        transport._setup_transport()
        transport.connected = True
        self.frames: list[Frame] = []
        self.on_inbound_frame = self.take
        #: What is done with the next frame, before the one after it.
        self.amid: Callable[[], Any] | None = None

    def take(self, frame: Frame) -> bool:
        self.frames.append(frame)
        amid, self.amid = self.amid, None
        if amid is not None:
            amid()
        return True


class Decrypting:
    """A socket with TLS: what it has decrypted is not in the socket any more."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decrypted = b""

    def recv(self, size: int) -> bytes:
        self._decrypted = self._decrypted or self._sock.recv(1_000_000)
        # At most one record.
        record, self._decrypted = self._decrypted[:100], self._decrypted[100:]
        return record

    read = recv

    def pending(self) -> int:
        return len(self._decrypted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class TLS(SSLTransport):  # type: ignore[misc]
    def _setup_transport(self) -> None:
        """No handshake."""
        self._quick_recv, self._write = self.sock.read, self.sock.sendall


class Broker:
    """The other end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def write(self, frames: list[Frame]) -> None:
        self.sock.sendall(b"".join(map(encoded, frames)))


def encoded(frame: Frame, end: int = 0xCE) -> bytes:
    kind, channel, payload = frame
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


def frames_of(number: int, size: int = 10) -> list[Frame]:
    return [(1, 7, b"%d" % i * size) for i in range(number)]


@pytest.fixture
def hub() -> Any:
    hub = Hub()
    hub.propagate_errors = (Exception,)
    yield hub
    hub.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def broker(ends: Any) -> Broker:
    return Broker(ends[1])


@pytest.fixture
def connection(ends: Any) -> Connection:
    return Connection(TCPTransport("localhost"), ends[0])


def consumer_of(connection: Any, transport: Any = None) -> Any:
    """Return a consumer whose connection kombu has registered with the event loop."""
    transport = transport or Transport(SimpleNamespace())
    return SimpleNamespace(
        connection=SimpleNamespace(connection=connection, transport=transport), task_consumer=None
    )


@pytest.fixture
def turn(hub: Hub, connection: Connection) -> Callable[[], None]:
    """Let the loop come round once."""
    read_many(consumer_of(connection), hub)
    loop = hub.create_loop()
    return lambda: next(loop)


def test_frames_are_read_many_at_a_time(
    turn: Callable[[], None], hub: Hub, connection: Connection, broker: Broker
) -> None:
    """In one turn of the loop as much as may be, in the next the rest, and then no more."""
    frames = frames_of(5, size=READ_BYTES // 2)
    broker.write(frames)
    turn()
    assert connection.frames == frames[: (READS_PER_TURN * READ_BYTES) // len(encoded(frames[0]))]
    others: list[int] = []
    hub.call_soon(lambda: others.append(len(connection.frames)))
    turn()
    assert connection.frames == frames
    assert others, "the loop did not see to anything else"
    broker.write(frames[:1])
    turn()
    assert len(connection.frames) == len(frames) + 1


@pytest.mark.parametrize("part", [1, 6, 7, 8, 16, 17])
def test_a_frame_in_parts(
    turn: Callable[[], None], connection: Connection, broker: Broker, part: int
) -> None:
    """What is not complete waits for the rest, and what is complete does not."""
    first, second = frames_of(2)
    broker.sock.sendall(encoded(first) + encoded(second)[:part])
    turn()
    assert connection.frames == [first]
    broker.sock.sendall(encoded(second)[part:] + encoded(first))
    turn()
    assert connection.frames == [first, second, first]


def test_a_frame_without_payload(
    turn: Callable[[], None], connection: Connection, broker: Broker
) -> None:
    """A heartbeat is one."""
    broker.write([(8, 0, b"")])
    turn()
    assert connection.frames == [(8, 0, b"")]


def test_a_frame_that_takes_many_reads(
    turn: Callable[[], None], connection: Connection, broker: Broker
) -> None:
    frame = (3, 1, b"x" * (3 * READS_PER_TURN * READ_BYTES))
    broker.sock.setblocking(False)
    left = memoryview(encoded(frame))
    for _ in range(100):
        if left:
            left = left[broker.sock.send(left) :]
        turn()
        if connection.frames:
            break
    assert connection.frames == [frame]


def test_an_answer_that_is_waited_for_amid_messages(
    turn: Callable[[], None], connection: Connection, broker: Broker
) -> None:
    """Whoever reads from the connection while a message is taken in gets what comes next."""
    frames = frames_of(4)
    order: list[tuple[str, int]] = []

    def wait() -> None:
        connection.drain_events()
        order.append(("answered", len(connection.frames)))

    connection.amid = wait
    broker.write(frames)
    turn()
    assert order == [("answered", 2)]
    assert connection.frames == frames


def test_an_answer_that_comes_in_parts(
    turn: Callable[[], None], connection: Connection, broker: Broker
) -> None:
    """What is left of it is not lost when what waits for it gives up."""
    frames = frames_of(3)

    def wait() -> None:
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.001)
        broker.sock.sendall(encoded(frames[1])[9:] + encoded(frames[2]))

    connection.amid = wait
    broker.sock.sendall(encoded(frames[0]) + encoded(frames[1])[:9])
    turn()
    assert connection.frames == frames


def test_messages_that_are_decrypted_already(hub: Hub, ends: Any, broker: Broker) -> None:
    """Of these the poller knows nothing: nobody must wait for more."""
    connection = Connection(TLS("localhost"), Decrypting(ends[0]))
    read_many(consumer_of(connection), hub)
    frames = frames_of(100)
    broker.write(frames)
    next(hub.create_loop())
    assert connection.frames == frames


@contextmanager
def encrypted(ends: Sequence[socket.socket]) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Both ends of a connection, with TLS: nobody has a certificate."""
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    here.check_hostname = False
    here.verify_mode = ssl.CERT_NONE
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for context in (here, there):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.set_ciphers("AECDH:@SECLEVEL=0")
        except ssl.SSLError:
            pytest.skip("this OpenSSL wants a certificate")
    with ThreadPoolExecutor(2) as threads:
        client = threads.submit(here.wrap_socket, ends[0])
        server = threads.submit(there.wrap_socket, ends[1], server_side=True)
    with client.result() as ours, server.result() as theirs:
        yield ours, theirs


def test_an_encrypted_connection(hub: Hub, ends: Any) -> None:
    """All comes in, in order, in whatever records it is sent."""
    frames = [frame for size in (1, 700, 9_000) for frame in frames_of(60, size)]
    with encrypted(ends) as (client, server):
        connection = Connection(TLS("localhost"), client)
        read_many(consumer_of(connection), hub)
        sender = threading.Thread(target=Broker(server).write, args=[frames])
        sender.start()
        hub.call_later(30, pytest.fail, "it waits for what it has")
        loop = hub.create_loop()
        while len(connection.frames) < len(frames):
            next(loop)
            assert not client.pending()
        sender.join()
    assert connection.frames == frames


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EWOULDBLOCK])
def test_nothing_to_read(hub: Hub, ends: Any, broker: Broker, code: int) -> None:
    """A socket that has nothing after all is not an error, and nobody waits for it."""

    class Empty(Decrypting):
        nothing = True

        def recv(self, size: int) -> bytes:
            assert self.gettimeout() == 0, "it must not wait"
            nothing, self.nothing = self.nothing, False
            if nothing:
                raise OSError(code, "nothing")
            return super().recv(size)

    connection = Connection(TCPTransport("localhost"), Empty(ends[0]))
    read_many(consumer_of(connection), hub)
    frames = frames_of(1)
    broker.write(frames)
    loop = hub.create_loop()
    next(loop)
    assert not connection.frames
    next(loop)
    assert connection.frames == frames
    assert ends[0].gettimeout() is None


def test_a_connection_that_the_broker_closes(
    turn: Callable[[], None], connection: Connection, broker: Broker
) -> None:
    """What came before is taken in; then the worker hears of it as from kombu's own reader."""
    frames = frames_of(2)
    broker.write(frames)
    broker.sock.close()
    with pytest.raises(OSError, match="closed"):
        turn()
    assert connection.frames == frames
    assert not connection.connected


def test_a_connection_that_breaks(hub: Hub, ends: Any, broker: Broker) -> None:
    """py-amqp finds it out, and knows of it then."""

    class Broken(Decrypting):
        def recv(self, size: int) -> bytes:
            raise OSError(errno.ECONNRESET, "reset")

    connection = Connection(TCPTransport("localhost"), Broken(ends[0]))
    read_many(consumer_of(connection), hub)
    broker.write(frames_of(1))
    with pytest.raises(ConnectionResetError):
        next(hub.create_loop())
    assert not connection.connected


def test_an_error_that_is_over(hub: Hub, ends: Any, broker: Broker) -> None:
    """If py-amqp can read after all, all is well, whether there is something or not."""

    class Shaky(Decrypting):
        reads = 0

        def recv(self, size: int) -> bytes:
            self.reads += 1
            if self.reads == 1:
                raise OSError(errno.EIO, "shaky")
            return self._sock.recv(size)

    connection = Connection(TCPTransport("localhost"), Shaky(ends[0]))
    read_many(consumer_of(connection), hub)
    frames = frames_of(2)
    broker.sock.sendall(encoded(frames[0])[:3])
    loop = hub.create_loop()
    next(loop)
    broker.sock.sendall(encoded(frames[0])[3:] + encoded(frames[1]))
    next(loop)
    assert connection.frames == frames


def test_what_is_no_frame(turn: Callable[[], None], connection: Connection, broker: Broker) -> None:
    """It is for py-amqp to refuse it."""
    frames = frames_of(2)
    broker.sock.sendall(encoded(frames[0]) + encoded(frames[1], end=0))
    with pytest.raises(UnexpectedFrame):
        turn()
    assert connection.frames == frames[:1]


def test_errors_of_a_message_are_for_celery(
    turn: Callable[[], None], connection: Connection, broker: Broker
) -> None:
    """What is taken in after that is what has come after that."""
    frames = frames_of(3)

    def fail() -> None:
        raise RuntimeError("other")

    connection.amid = fail
    broker.write(frames)
    with pytest.raises(RuntimeError, match="other"):
        turn()
    connection.drain_events()
    assert connection.frames == frames[:2]


def test_a_connection_that_is_gone(
    turn: Callable[[], None], connection: Connection, broker: Broker
) -> None:
    broker.write(frames_of(1))
    connection.transport.connected = False
    with pytest.raises(RecoverableConnectionError):
        turn()
    assert not connection.frames


def test_a_connection_that_is_closed_amid_messages(
    turn: Callable[[], None], connection: Connection, broker: Broker
) -> None:
    """By what one of them says. Who asked py-amqp for its socket then would have it reconnect."""
    frames = frames_of(1, size=READS_PER_TURN * READ_BYTES - 100)
    connection.channels, connection.amid = {}, connection.collect
    broker.write(frames)
    turn()
    assert connection.frames == frames


def test_connections_that_are_read_in_their_own_way(hub: Hub, ends: Any) -> None:
    """Those of other brokers, and of transports that read otherwise than what is known here."""

    class Own(Transport):  # type: ignore[misc]
        def on_readable(self, connection: Any, loop: Any) -> None:
            """Do something else."""

    class Unknown(TCPTransport):  # type: ignore[misc]
        """One that may keep what it reads elsewhere."""

        def _read(self, n: int, initial: bool = False) -> bytes:
            raise NotImplementedError

    connection = Connection(TCPTransport("localhost"), ends[0])
    read_many(consumer_of(SimpleNamespace(sock=ends[0])), hub)
    read_many(consumer_of(connection, Own(SimpleNamespace())), hub)
    read_many(consumer_of(Connection(Unknown("localhost"), ends[0])), hub)
    assert not hub.readers
    read_many(consumer_of(connection), hub)
    assert list(hub.readers) == [ends[0].fileno()]


UNKNOWN = ["no class", "no reader", "no buffer", "another buffer", "no time-out"]


@pytest.mark.parametrize("part", UNKNOWN)
def test_a_py_amqp_that_is_not_as_known(
    hub: Hub, connection: Connection, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """kombu's own reader stays."""
    transport = connection.transport
    changes: dict[str, Callable[[], None]] = {
        "no class": lambda: monkeypatch.delattr(amqp.transport, "TCPTransport"),
        "no reader": lambda: monkeypatch.delattr(TCPTransport, "_read"),
        "no buffer": lambda: monkeypatch.delattr(transport, "_read_buffer"),
        "another buffer": lambda: monkeypatch.setattr(transport, "_read_buffer", bytearray()),
        "no time-out": lambda: monkeypatch.delattr(_AbstractTransport, "having_timeout"),
    }
    changes[part]()
    read_many(consumer_of(connection), hub)
    assert not hub.readers


@pytest.mark.parametrize("enabled", [True, False])
def test_the_worker_reads_so(
    hub: Hub, connection: Connection, broker: Broker, enabled: bool
) -> None:
    """Its step for batches has the event loop do it, unless the shortcut is switched off."""
    consumer = consumer_of(connection)
    shortcuts = SHORTCUTS - (set() if enabled else {"amqp_reader"})
    consumer.app = SimpleNamespace(conf={SETTING: shortcuts})
    BatchesStep(consumer).register_with_event_loop(consumer, hub)
    assert bool(hub.readers) is enabled
    if enabled:
        broker.write(frames_of(3))
        next(hub.create_loop())
        assert len(connection.frames) == 3
