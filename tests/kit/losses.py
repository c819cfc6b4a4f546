"""Processes that end at any command that they send to Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis


class Killed(BaseException):
    """The process ends here."""


def kill(monkeypatch: pytest.MonkeyPatch, backend: Any, at: int, *, sent: bool) -> None:
    """End the process at this command to the backend: before or after it is sent."""
    connections = backend.client.connection_pool._in_use_connections
    seen: list[str] = []
    send: Any = redis.connection.AbstractConnection.send_packed_command

    def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        data = command if isinstance(command, bytes) else b"".join(command)
        names = list(names_of(data))
        if self not in connections:  # One that is left from another test says good-bye.
            send(self, command, *args, **kwargs)
            return
        seen.append(names[0])
        if sent or len(seen) <= at:
            send(self, command, *args, **kwargs)
        if len(seen) > at:
            for _ in names if sent else ():
                self.read_response()  # So that it is known to have been carried out.
            self.disconnect()
            raise Killed

    monkeypatch.setattr(
        redis.connection.AbstractConnection, "send_packed_command", send_packed_command
    )


def names_of(data: bytes) -> Iterator[str]:
    """The names of the commands in this piece of Redis's protocol."""
    while data:
        head, data = data.split(b"\r\n", 1)
        for index in range(int(head[1:])):
            length, data = data.split(b"\r\n", 1)
            size = int(length[1:])
            if index == 0:
                yield data[:size].decode()
            data = data[size + 2 :]
