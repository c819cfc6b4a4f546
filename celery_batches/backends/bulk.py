"""Stores many states in the result backend at once, where it can take them so. In the pool.

Celery's own code makes of each state what is stored. It does so in a copy of the backend that has
a stand-in for the connection: this keeps what it is told, and then everything is sent together.
Whatever cannot be stored like that is left to the caller, to be stored one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery.utils.log import get_logger

from ..request import SimpleRequest

__all__ = ("State", "original", "store_at_once")

logger = get_logger(__name__)

#: Bytes after which results are sent though there are more: when they are large, neither this
#: process nor Redis should have to hold those of a whole batch.
ENOUGH = 16 * 1024 * 1024

#: What a state goes through on its way into a result backend. A backend with another of these than
#: Celery's may do anything there, so its states are stored one by one.
STORING = (
    *("mark_as_done", "mark_as_failure", "on_chord_part_return", "store_result", "_store_result"),
    *("encode_result", "encode", "_encode", "decode", "decode_result"),
    *("_get_result_meta", "_get_task_meta_for", "get_key_for_task"),
    *("get", "mget", "set", "_set", "_set_with_state", "ensure"),
    *("_ensure_retryable", "_query_task", "_update_result", "ResultSession"),
)


@dataclass(frozen=True, slots=True)
class State:
    """What the result backend is to know of a request."""

    request: SimpleRequest
    value: Any
    state: str
    traceback: str | None = None

    def store(self, backend: Any) -> None:
        """Store it in the backend."""
        backend.store_result(
            self.request.id, self.value, self.state, self.traceback, request=self.request
        )


def store_at_once(backend: Any, states: Sequence[State | None]) -> list[bool]:
    """Store what can be stored together; return for each whether it was.

    That it was not says nothing of why: that shows when it is stored by itself.
    """
    found = [state for state in states if state is not None]
    store = way_into(backend) if len(found) > 1 else None
    if store is None:
        return [False] * len(states)
    try:
        stored = iter(store(backend, found))
    except Exception as exc:
        why = type(exc).__name__, exc
        logger.warning("Cannot store %d states at once, so one by one: %s: %s", len(found), *why)
        return [False] * len(states)
    return [state is not None and next(stored) for state in states]


def way_into(backend: Any) -> Callable[[Any, Sequence[State]], list[bool]] | None:
    """Return what stores many states at once in this backend, if there is such a thing."""
    for cls in type(backend).__mro__:
        way = WAYS.get(f"{cls.__module__}.{cls.__qualname__}")
        if way is not None:
            return way if all(_is_of(cls, backend, name) for name in STORING) else None
    return None


def _is_of(cls: type, backend: Any, name: str) -> bool:
    """Whether a method of the backend is that of the class, or neither has one."""
    method = original(backend, name)
    return getattr(method, "__func__", method) is getattr(cls, name, None)


def original(backend: Any, name: str) -> Any:
    """Return a method of the result backend as it is when nothing intercepts it."""
    method = getattr(backend, name, None)
    return getattr(method, "intercepted", method)


def _copy(backend: Any, **attributes: Any) -> Any:
    copy = object.__new__(type(backend))
    # What fails is done again by itself, not by this.
    copy.__dict__.update(backend.__dict__, **attributes, always_retry=False)
    return copy


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


def _into_redis(backend: Any, states: Sequence[State]) -> list[bool]:
    """One MGET, and one transaction: as Celery's own for one state, but for all of them."""
    from redis import Redis

    if not isinstance(backend.client, Redis):
        return [False] * len(states)  # Such as a cluster: it has no transactions on several nodes.
    keys = [backend.get_key_for_task(each.request.id) for each in states]
    client = _Client(dict(zip(keys, backend.mget(keys), strict=True)))
    # It has no connection to lose.
    copy = _copy(backend, client=client, ensure=lambda fun, args, **_: fun(*args))
    stored = []
    for each in states:
        stored.append(_keeps(copy, each))
        if client.size >= ENOUGH:
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


class _Session:
    """A database session for many states: it commits when the last of them has been stored."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def join(self) -> _Session:
        if self.failed:
            raise RuntimeError("the transaction has been rolled back")
        return self

    def commit(self) -> None:
        self.session.flush()

    def rollback(self) -> None:
        self.failed = True

    def close(self) -> None:
        pass


def _into_database(backend: Any, states: Sequence[State]) -> list[bool]:
    """One transaction. If one of the states cannot be stored, none is."""
    from celery.backends.database import session_cleanup

    session = backend.ResultSession()
    with session_cleanup(session):
        copy = _copy(backend, ResultSession=_Session(session).join)
        for each in states:
            each.store(copy)
        session.commit()
    return [True] * len(states)


WAYS = {
    "celery.backends.redis.RedisBackend": _into_redis,
    "celery.backends.database.DatabaseBackend": _into_database,
}
