"""Turns what the body has returned into outcomes of its requests. Runs in the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import isasyncgen, isgenerator
from typing import TYPE_CHECKING, Any

from ..core.outcomes import Done
from ..core.slot import slot_of
from ..request import SimpleRequest
from .endings import outcome_of
from .retries import retry_automatically

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("check_returned", "record_returned")

FIX = "Return a list or tuple with one item for each request, in order, or a dict by request id"

#: How many ids an error names.
MAX_IDS = 3


def check_returned(task: Batches, returned: Any) -> None:
    """Refuse a value which means that the body did not run.

    Raises:
        TypeError: If it is a generator.
    """
    if isgenerator(returned) or isasyncgen(returned):
        raise TypeError(
            f"Task {task.name!r}: the body returned a {type(returned).__name__}, so nothing of it "
            f"has run. Make the body a function that does the work before it returns"
        )


def record_returned(task: Batches, requests: Sequence[SimpleRequest], returned: Any) -> None:
    """Record the outcome of each request that has none yet.

    If all of them have one, it does not matter what the body returned.

    Arguments:
        task: The batch task.
        requests: The requests that the body got.
        returned: What the body returned.

    Raises:
        TypeError: If it is neither a list or tuple nor a dict.
        ValueError: If it does not have exactly one item for each request.
    """
    try:
        items = _items(task, requests, returned)
    except (TypeError, ValueError):
        if any(slot_of(request).outcome is None for request in requests):
            raise
        return
    for request, item in zip(requests, items, strict=True):
        # A request that was marked before keeps that outcome.
        if isinstance(item, BaseException):
            _record_exception(task, request, item)
        else:
            slot_of(request).record(Done(item))


def _record_exception(task: Batches, request: SimpleRequest, item: BaseException) -> None:
    if not retry_automatically(task, request, item):
        slot_of(request).record(outcome_of(item))


def _items(task: Batches, requests: Sequence[SimpleRequest], returned: Any) -> Sequence[Any]:
    if isinstance(returned, Mapping):
        return _items_by_id(task, requests, returned)
    if not isinstance(returned, list | tuple):
        what = "None" if returned is None else f"a {type(returned).__name__}"
        raise TypeError(_message(task, f"{what} for {len(requests)} requests"))
    if len(returned) != len(requests):
        counts = f"{len(returned)} results for {len(requests)} requests"
        raise ValueError(_message(task, counts))
    return returned


def _items_by_id(
    task: Batches, requests: Sequence[SimpleRequest], returned: Mapping[Any, Any]
) -> Sequence[Any]:
    wanted = {request.id for request in requests}
    unknown = [key for key in returned if key not in wanted]
    # Not by id: a message that is delivered twice makes two requests with one id.
    missing = [
        request.id
        for request in requests
        if request.id not in returned and slot_of(request).outcome is None
    ]
    if unknown or missing:
        counts = f"a dict of {len(returned)} results for {len(requests)} requests"
        named = [
            f"{len(keys)} {kind} ids, such as {', '.join(map(repr, keys[:MAX_IDS]))}"
            for kind, keys in (("missing", missing), ("unknown", unknown))
            if keys
        ]
        raise ValueError(_message(task, f"{counts}: {' and '.join(named)}"))
    return [returned.get(request.id) for request in requests]


def _message(task: Batches, what: str) -> str:
    return f"Task {task.name!r}: return_results is on, but the body returned {what}. {FIX}"
