"""Shortcut ``bulk_results`` for Redis: one MGET and one transaction. Runs in the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from celery.utils.log import get_logger

from .state import State, copy_backend

if TYPE_CHECKING:
    from celery.backends.redis import RedisBackend

__all__ = ("Data", "is_plain_client", "store_in_redis")

logger = get_logger(__name__)

#: A pipeline of so many bytes is sent before the rest of the batch is collected. So neither this
#: process nor Redis holds all results of a batch when they are large.
MAX_PIPELINE_BYTES = 16 * 1024 * 1024

#: A key, a channel or a value, as Celery passes it to the client.
Data: TypeAlias = str | bytes


class _CollectingClient:
    """Stands in for a Redis client: answers reads from ``values``, and collects writes.

    It has only the commands with which Celery stores a state. Any other command is an error. What
    has been sent is forgotten, and a read of it goes to ``client``.
    """

    def __init__(self, client: Any, values: dict[Data, Data | None]) -> None:
        # Any: redis-py has types for some of these methods, and not the same in each version.
        self.client = client
        self.values = values
        self.commands: list[tuple[Any, ...]] = []
        self.size = 0
        self._pipeline: list[tuple[Any, ...]] = []

    def get(self, key: Data) -> Data | None:
        if key in self.values:
            return self.values[key]
        value: Data | None = self.client.get(key)
        return value

    @contextmanager
    def pipeline(self) -> Iterator[_CollectingClient]:
        self._pipeline = []
        yield self

    def set(self, key: Data, value: Data) -> None:
        self._pipeline.append(("SET", key, value))

    def setex(self, key: Data, seconds: int, value: Data) -> None:
        self._pipeline.append(("SETEX", key, seconds, value))

    def publish(self, channel: Data, value: Data) -> None:
        self._pipeline.append(("PUBLISH", channel, value))

    def execute(self) -> None:
        for _, key, *_, value in self._pipeline:
            # A later state of the same id reads this value, as if it had been sent.
            self.values[key] = value
            self.size += len(value)
        self.commands += self._pipeline

    def send(self) -> None:
        with self.client.pipeline() as pipeline:
            for command in self.commands:
                pipeline.execute_command(*command)
            pipeline.execute()
        for _, key, *_ in self.commands:
            self.values.pop(key, None)
        self.commands, self.size = [], 0


def store_in_redis(backend: RedisBackend, states: Sequence[State]) -> list[bool]:
    """Store states together, and return for each whether it was stored."""
    if not is_plain_client(backend.client):
        return [False] * len(states)
    keys = [backend.get_key_for_task(each.request.id) for each in states]
    values = dict(zip(keys, backend.mget(keys), strict=True))
    client = _CollectingClient(backend.client, values)
    # `ensure` retries a lost connection. The stand-in has none.
    copy = copy_backend(backend, client=client, ensure=lambda fun, args, **_: fun(*args))
    stored = []
    for each in states:
        stored.append(_try_to_store(copy, each))
        if client.size >= MAX_PIPELINE_BYTES:
            backend.ensure(client.send, ())
    backend.ensure(client.send, ())
    return stored


def is_plain_client(client: Any) -> bool:
    """Whether this is not the client of a cluster, which has no transactions across its nodes."""
    from redis import Redis

    return isinstance(client, Redis)


def _try_to_store(copy: RedisBackend, state: State) -> bool:
    try:
        state.store(copy)
    except Exception as exc:
        logger.debug("Cannot store %r together with the rest: %r", state.request, exc)
        return False
    return True
