"""Shortcut ``bulk_results``: stores the states of a batch in the result backend at once.

Runs in the pool.

Celery's own code makes of each state what is stored. It does so in a copy of the backend that has
a stand-in for the connection: this keeps what it is told, and then everything is sent together.
Whatever cannot be stored like that is left to the caller, to be stored one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celery.utils.log import get_logger

from ..core.shortcuts import enabled_shortcuts
from .database_bulk import store_in_database
from .redis_bulk import store_in_redis
from .state import State

__all__ = ("bulk_store_of", "store_in_bulk", "unintercepted")

logger = get_logger(__name__)

#: What a state goes through on its way into a result backend. A backend with another of these than
#: Celery's may do anything there, so its states are stored one by one.
STORING = (
    *("mark_as_done", "mark_as_failure", "on_chord_part_return", "store_result", "_store_result"),
    *("encode_result", "encode", "_encode", "decode", "decode_result"),
    *("_get_result_meta", "_get_task_meta_for", "get_key_for_task"),
    *("get", "mget", "set", "_set", "_set_with_state", "ensure"),
    *("_ensure_retryable", "_query_task", "_update_result", "ResultSession"),
)


def store_in_bulk(backend: Any, states: Sequence[State | None]) -> list[bool]:
    """Store what can be stored together; return for each whether it was.

    That it was not says nothing of why: that shows when it is stored by itself.
    """
    found = [state for state in states if state is not None]
    store = bulk_store_of(backend) if len(found) > 1 else None
    if store is None:
        return [False] * len(states)
    try:
        stored = iter(store(backend, found))
    except Exception as exc:
        why = type(exc).__name__, exc
        logger.warning("Cannot store %d states at once, so one by one: %s: %s", len(found), *why)
        return [False] * len(states)
    return [state is not None and next(stored) for state in states]


def bulk_store_of(backend: Any) -> Callable[[Any, Sequence[State]], list[bool]] | None:
    """Return what stores many states at once in this backend, if there is such a thing."""
    if "bulk_results" not in enabled_shortcuts(backend.app.conf):
        return None
    for cls in type(backend).__mro__:
        store = BULK_STORES.get(f"{cls.__module__}.{cls.__qualname__}")
        if store is not None:
            return store if all(_is_of(cls, backend, name) for name in STORING) else None
    return None


def _is_of(cls: type, backend: Any, name: str) -> bool:
    """Whether a method of the backend is that of the class, or neither has one."""
    method = unintercepted(backend, name)
    return getattr(method, "__func__", method) is getattr(cls, name, None)


def unintercepted(backend: Any, name: str) -> Any:
    """Return a method of the result backend as it is when nothing intercepts it."""
    method = getattr(backend, name, None)
    return getattr(method, "intercepted", method)


BULK_STORES = {
    "celery.backends.redis.RedisBackend": store_in_redis,
    "celery.backends.database.DatabaseBackend": store_in_database,
}
