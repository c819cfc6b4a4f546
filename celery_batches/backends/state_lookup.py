"""Looks up how requests have ended in the result backend. Used in the worker's main process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.base import DisabledBackend, KeyValueStoreBackend
from celery.utils.log import get_logger

from .state import copy_backend

if TYPE_CHECKING:
    from .state import Backend

__all__ = ("StoredEnd", "look_up_ends")

logger = get_logger(__name__)

#: How often a lookup is tried. The main process does nothing else meanwhile, so it gives up soon.
MAX_ATTEMPTS = 3
#: So many results are in memory at a time.
CHUNK = 100
#: The states in which a body or the settlement leaves a request.
END_STATES = frozenset({states.SUCCESS, states.FAILURE, states.RETRY})


@dataclass(frozen=True, slots=True)
class StoredEnd:
    """How a request has ended, as the result backend has it.

    Attributes:
        state: ``SUCCESS``, ``FAILURE`` or ``RETRY``.
        result: The result, or the exception.
        traceback: The traceback of the exception, as text.
        date_done: When it was stored, if the backend has the date.
    """

    state: str
    result: Any
    traceback: str | None = None
    date_done: datetime | None = None


def look_up_ends(backend: Backend, ids: Sequence[str]) -> Iterator[tuple[str, StoredEnd]]:
    """Yield the id and the end of each request that is done, failed or retried in the backend.

    A backend with keys and values is asked for many at a time. If the backend cannot be reached,
    the log has a warning, and nothing more is yielded.
    """
    if not ids or isinstance(backend, DisabledBackend):
        return
    try:
        if backend.as_uri() == "rpc://":
            return  # The results are in a queue of the caller.
        lookup = _Lookup(backend)
        for start in range(0, len(ids), CHUNK):
            yield from lookup.ends(ids[start : start + CHUNK])
    except Exception as exc:
        logger.warning("Cannot look up the states of a batch: %s: %s", type(exc).__name__, exc)


class _Lookup:
    """Reads from a backend, and counts the attempts that fail."""

    def __init__(self, backend: Backend) -> None:
        # Without Celery's retries, which may go on for ever.
        self._cache: dict[str, Any] = {}
        self._backend = copy_backend(backend, _cache=self._cache)
        self._failed = 0
        self._reads_many = isinstance(backend, KeyValueStoreBackend)

    def ends(self, ids: Sequence[str]) -> list[tuple[str, StoredEnd]]:
        if self._reads_many:
            try:
                many = self._backend.get_many(
                    ids, interval=0, max_iterations=1, READY_STATES=END_STATES
                )
                return [(task_id, _end(meta)) for task_id, meta in many]
            except Exception as exc:
                logger.debug("Cannot look up many states at once, so one by one: %r", exc)
                self._reads_many = False
            finally:
                self._cache.clear()
        metas = ((task_id, self._get(task_id)) for task_id in ids)
        return [(task_id, _end(meta)) for task_id, meta in metas if meta["status"] in END_STATES]

    def _get(self, task_id: str) -> dict[str, Any]:
        while True:
            try:
                meta: dict[str, Any] = self._backend.get_task_meta(task_id, cache=False)
            except Exception:
                self._failed += 1
                if self._failed >= MAX_ATTEMPTS:
                    raise
            else:
                return meta


def _end(meta: dict[str, Any]) -> StoredEnd:
    return StoredEnd(
        meta["status"], meta.get("result"), meta.get("traceback"), _date(meta.get("date_done"))
    )


def _date(stored: str | datetime | None) -> datetime | None:
    """Return the date of a result with its time zone. Some backends store text, and some UTC."""
    try:
        date = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    except ValueError:
        return None
    if date is None or date.tzinfo is not None:
        return date
    return date.replace(tzinfo=timezone.utc)
