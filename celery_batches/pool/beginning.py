"""Selects the requests that the body gets, and begins them. Runs in the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..backends.bulk import store_in_bulk
from ..backends.state import State
from ..core.slot import slot_of
from ..request import SimpleRequest
from .body_runs import args_for
from .endings import outcome_of
from .store import record_if_done_before, started_state
from .unique import find_duplicates

if TYPE_CHECKING:
    from .run import BatchRun

__all__ = ("begin_all", "check_done_before", "leave_out_duplicates")


def check_done_before(batch: BatchRun, request: SimpleRequest) -> None:
    """Look up whether a request was done before. If the lookup fails, it does not run."""
    try:
        record_if_done_before(batch.task, request)
    except Exception as exc:
        slot_of(request).record(outcome_of(exc, "cannot be looked up"))


def begin_all(batch: BatchRun) -> None:
    """Store ``STARTED`` and call ``before_start`` for each active request."""
    members = batch.active
    states = [
        started_state(batch.task, each, batch.hostname, eager=batch.eager) for each in members
    ]
    stored = store_in_bulk(batch.task.backend, states)
    for request, state, is_stored in zip(members, states, stored, strict=True):
        _begin(batch, request, None if is_stored else state)
    members[:] = batch.unsettled()


def _begin(batch: BatchRun, request: SimpleRequest, state: State | None) -> None:
    """Store ``STARTED`` and call ``before_start``. If one of them fails, it does not run."""
    try:
        if state is not None:
            state.store(batch.task.backend)
        batch.handlers.before_start(request)
    except Exception as exc:
        if batch.propagate:
            raise
        slot_of(request).record(outcome_of(exc, "cannot start"))


def leave_out_duplicates(batch: BatchRun, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of the body without the requests that have the key of another."""
    batch.duplicates = find_duplicates(batch.task, batch.active)
    left_out = {id(duplicate.request) for duplicate in batch.duplicates}
    kept = [request for request in batch.unsettled() if id(request) not in left_out]
    if len(kept) == len(batch.active):
        return args
    batch.active = kept
    return args_for(kept, args)
