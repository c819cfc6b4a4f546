"""Real result backends, with a clock that stands still and a count of round trips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery
from celery.backends import base

from kit.sites import NOW, Frozen, RedisSite


@pytest.fixture(autouse=True)
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "datetime", Frozen, raising=False)
    monkeypatch.setattr(Celery, "now", lambda self: NOW)


@pytest.fixture
def site(app: Any, redis_url: str) -> Iterator[Callable[..., RedisSite]]:
    made: list[RedisSite] = []

    def make(**config: Any) -> RedisSite:
        made.append(RedisSite(app, redis_url, **config))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each.backend.client.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first command of everything that is sent to Redis: each is a round trip."""
    sent: list[str] = []
    send = redis.connection.AbstractConnection.send_packed_command

    def send_packed_command(self: Any, command: Any, *args: Any, **kwargs: Any) -> None:
        parts = [command] if isinstance(command, bytes) else command
        sent.append(b"".join(parts).split(b"\r\n", 3)[2].decode())
        send(self, command, *args, **kwargs)

    monkeypatch.setattr(
        redis.connection.AbstractConnection, "send_packed_command", send_packed_command
    )
    return sent
