"""Stores the results of done chord parts, and counts the parts. Used in the pool.

A part that is stored and not counted would keep its chord waiting for ever: what comes later finds
it done and leaves it alone. So where the backend counts, a part is never stored in bulk. In Redis,
its result and its count are one transaction. Other backends do as Celery does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

from ..request import SimpleRequest
from .bulk import bulk_store_of, unintercepted
from .redis_bulk import is_plain_client, store_in_redis
from .redis_parts import OldStates, RedisPart

if TYPE_CHECKING:
    from celery.backends.base import Backend

__all__ = ("ChordParts",)

logger = get_logger(__name__)

CANNOT_COUNT_AT_ONCE = "Cannot store a chord part and count it at once, so one by one: %s: %s"


class ChordParts:
    """The chord parts of one batch.

    Arguments:
        backend: The result backend.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._old_states: OldStates = {}
        self._counts_at_once: bool | None = None

    def counts_at_once(self, request: SimpleRequest) -> bool:
        """Whether this is a chord part whose result and count are one transaction."""
        if not request.chord:
            return False
        if self._counts_at_once is None:
            is_redis = bulk_store_of(self._backend) is store_in_redis
            self._counts_at_once = is_redis and is_plain_client(self._backend.client)
        return self._counts_at_once

    def read_old_states(self, requests: Iterable[SimpleRequest]) -> None:
        """Read what is stored for these chord parts, so that none of them needs to."""
        backend = self._backend
        keys = [backend.get_key_for_task(each.id) for each in requests if self.counts_at_once(each)]
        if not keys:
            return
        try:
            self._old_states.update(zip(keys, backend.mget(keys), strict=True))
        except Exception as exc:
            logger.debug("Cannot read %d states at once: %r", len(keys), exc)

    def mark_as_done(self, part: SimpleRequest, /, *args: Any, **kwargs: Any) -> Any:
        """Call Celery's ``mark_as_done`` for a request, which need not be a chord part.

        Raises:
            Exception: Whatever the backend raises.
        """
        if not self.counts_at_once(part):
            return unintercepted(self._backend, "mark_as_done")(*args, **kwargs)
        stored = RedisPart(self._backend, self._old_states)
        try:
            return stored.mark_as_done(*args, **kwargs)
        finally:
            if stored.refusal is not None:
                self._counts_at_once = False
                logger.warning(CANNOT_COUNT_AT_ONCE, type(stored.refusal).__name__, stored.refusal)
