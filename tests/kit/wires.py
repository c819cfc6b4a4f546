"""The connection to a broker, where a test counts what is written and makes writes fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.connection import AbstractConnection

from kit.brokers import Broker


class Wire:
    """What is sent to Redis, and which of the acknowledgements fail: these, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cut: Callable[[int], bool] = lambda number: False
        self.sends = 0
        self.acks = 0
        send: Any = AbstractConnection.send_packed_command

        def counted(connection: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
            self.sends += 1
            if b"ZREM" in b"".join([command] if isinstance(command, bytes) else command):
                self.acks += 1
                if self.cut(self.acks):
                    connection.disconnect()
                    raise redis.ConnectionError("the wire is cut")
            return send(connection, command, *args, **kwargs)

        monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)


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
