"""Leaves out requests with the same ``unique_key`` as another one. Runs in the pool."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..core.keys import key_of
from ..core.outcomes import Failed
from ..core.slot import slot_of
from ..request import SimpleRequest

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("Duplicate", "end_duplicates", "find_duplicates")


class Duplicate(NamedTuple):
    """A request that the body does not get.

    Attributes:
        request: The request.
        kept: The one with the same key that the body gets.
    """

    request: SimpleRequest
    kept: SimpleRequest


def find_duplicates(task: Batches, requests: Sequence[SimpleRequest]) -> list[Duplicate]:
    """Return the requests to leave out, each with the one that is kept.

    A request whose key cannot be computed or hashed fails alone.
    """
    if task.unique_key is None:
        return []
    found: list[Duplicate] = []
    keys = [(request, key) for request in requests if (key := _key(task, request)) is not None]
    kept: dict[Hashable, SimpleRequest] = {}
    for request, key in keys if task.unique_keep == "first" else reversed(keys):
        first = kept.setdefault(key, request)
        if first is not request:
            found.append(Duplicate(request, first))
    return found


def _key(task: Batches, request: SimpleRequest) -> tuple[Hashable] | None:
    """Return the key in a tuple, since None is a key too. Return None if there is none."""
    try:
        key = key_of(task, "unique_key", request)
        hash(key)
    except Exception as exc:
        slot_of(request).record(Failed(exc, "has no unique_key"))
        return None
    return (key,)


def end_duplicates(duplicates: Iterable[Duplicate]) -> None:
    """Give each of them the outcome of the request that was kept, if that has one."""
    for request, kept in duplicates:
        outcome = slot_of(kept).outcome
        if outcome is not None:
            slot_of(request).record(outcome)
