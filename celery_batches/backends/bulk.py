"""Shortcut ``bulk_results``: stores all states of a batch in the result backend together.

Runs in the pool.

Celery's own code makes the commands or rows for each state. It runs on a copy of the backend, in
which a stand-in for the connection collects them. Then they are sent together. The caller stores
the remaining states one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from celery.utils.log import get_logger

from ..core.shortcuts import enabled_shortcuts
from .database_bulk import store_in_database
from .redis_bulk import store_in_redis
from .state import State

if TYPE_CHECKING:
    from celery.backends.base import Backend

__all__ = ("bulk_store_of", "store_in_bulk", "unintercepted")

logger = get_logger(__name__)

CANNOT_STORE_AT_ONCE = "Cannot store %d states at once, so one by one: %s: %s"

#: It takes a backend and states, and returns for each state whether it was stored.
BulkStore: TypeAlias = "Callable[[Backend, Sequence[State]], list[bool]]"

#: The methods that Celery calls to store a state. If a subclass overrides one of them, it may do
#: anything, so its states are stored one by one.
STORING_METHODS = (
    *("mark_as_done", "mark_as_failure", "on_chord_part_return", "store_result", "_store_result"),
    *("encode_result", "encode", "_encode", "decode", "decode_result"),
    *("_get_result_meta", "_get_task_meta_for", "get_key_for_task"),
    *("get", "mget", "set", "_set", "_set_with_state", "ensure"),
    *("_ensure_retryable", "_query_task", "_update_result", "ResultSession"),
)


def store_in_bulk(backend: Backend, states: Sequence[State | None]) -> list[bool]:
    """Store states together, and return for each whether it was stored.

    False does not mean that a state cannot be stored. The caller stores it separately, which then
    raises the error if there is one.
    """
    to_store = [state for state in states if state is not None]
    store = bulk_store_of(backend) if len(to_store) > 1 else None
    if store is None:
        return [False] * len(states)
    try:
        stored = iter(store(backend, to_store))
    except Exception as exc:
        logger.warning(CANNOT_STORE_AT_ONCE, len(to_store), type(exc).__name__, exc)
        return [False] * len(states)
    return [state is not None and next(stored) for state in states]


def bulk_store_of(backend: Backend) -> BulkStore | None:
    """Return the function that stores many states together in this backend, if there is one."""
    if "bulk_results" not in enabled_shortcuts(backend.app.conf):
        return None
    for cls in type(backend).__mro__:
        store = BULK_STORES.get(f"{cls.__module__}.{cls.__qualname__}")
        if store is not None:
            is_celerys = all(_is_method_of(cls, backend, name) for name in STORING_METHODS)
            return store if is_celerys else None
    return None


def _is_method_of(cls: type, backend: Backend, name: str) -> bool:
    """Whether the backend has this method from the class, or neither has it."""
    method = unintercepted(backend, name)
    return getattr(method, "__func__", method) is getattr(cls, name, None)


def unintercepted(backend: Backend, name: str) -> Any:
    """Return a method of the result backend, without the wrapper of `pool.marking`."""
    method = getattr(backend, name, None)
    return getattr(method, "intercepted", method)


BULK_STORES: dict[str, BulkStore] = {
    "celery.backends.redis.RedisBackend": store_in_redis,
    "celery.backends.database.DatabaseBackend": store_in_database,
}
