"""Shortcut ``bulk_results`` for Redis: one MGET and one transaction for all states of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery.utils.log import get_logger

from .state import State, copy_of

__all__ = ("store_in_redis",)

logger = get_logger(__name__)

#: Bytes after which results are sent though there are more: when they are large, neither this
#: process nor Redis should have to hold those of a whole batch.
MAX_PIPELINE_BYTES = 16 * 1024 * 1024


class _Client:
    """In place of a Redis client: reads what was read before, and keeps what is written.

    It has the commands that Celery stores a state with, and no others: what needs more is an error.
    """

    def __init__(self, found: dict[Any, Any]) -> None:
        self.found = found
        self.commands: list[tuple[Any, ...]] = []
        self.size = 0
        self._pipeline: list[tuple[Any, ...]] = []

    def get(self, key: Any) -> Any:
        return self.found[key]

    @contextmanager
    def pipeline(self) -> Iterator[_Client]:
        self._pipeline = []
        yield self

    def set(self, key: Any, value: Any) -> None:
        self._pipeline.append(("SET", key, value))

    def setex(self, key: Any, seconds: int, value: Any) -> None:
        self._pipeline.append(("SETEX", key, seconds, value))

    def publish(self, channel: Any, value: Any) -> None:
        self._pipeline.append(("PUBLISH", channel, value))

    def execute(self) -> None:
        for _, key, *_, value in self._pipeline:
            # What it would find if this had been sent: an id may come twice.
            self.found[key] = value
            self.size += len(value)
        self.commands += self._pipeline

    def send(self, client: Any) -> None:
        with client.pipeline() as pipeline:
            for command in self.commands:
                pipeline.execute_command(*command)
            pipeline.execute()
        self.commands, self.size = [], 0


def store_in_redis(backend: Any, states: Sequence[State]) -> list[bool]:
    """Store states at once, each as Celery stores it; return for each whether it was stored."""
    from redis import Redis

    if not isinstance(backend.client, Redis):
        return [False] * len(states)  # Such as a cluster: it has no transactions on several nodes.
    keys = [backend.get_key_for_task(each.request.id) for each in states]
    client = _Client(dict(zip(keys, backend.mget(keys), strict=True)))
    # It has no connection to lose.
    copy = copy_of(backend, client=client, ensure=lambda fun, args, **_: fun(*args))
    stored = []
    for each in states:
        stored.append(_keeps(copy, each))
        if client.size >= MAX_PIPELINE_BYTES:
            backend.ensure(client.send, (backend.client,))
    backend.ensure(client.send, (backend.client,))
    return stored


def _keeps(copy: Any, state: State) -> bool:
    try:
        state.store(copy)
    except Exception as exc:
        logger.debug("Cannot store %r together with others: %r", state.request, exc)
        return False
    return True
