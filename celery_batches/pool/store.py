"""Writes the outcome of one request to the result backend. Runs in the pool."""

from __future__ import annotations

from collections.abc import Mapping
from os import getpid
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import BackendGetMetaError
from celery.utils.log import get_logger
from celery.worker.state import successful_requests

from ..backends.bulk import unintercepted
from ..backends.chord_parts import ChordParts
from ..backends.state import State
from ..compat import counts_parts_once
from ..core.outcomes import Repeated
from ..core.slot import Progress, slot_of
from ..request import SimpleRequest
from .continuations import parent_context, send_continuations

if TYPE_CHECKING:
    from ..task import Batches

__all__ = (
    "deduplicates",
    "record_if_done_before",
    "started_state",
    "store_done",
    "store_failure",
    "stores_errors",
    "stores_results",
)

logger = get_logger(__name__)


def deduplicates(task: Batches) -> bool:
    """Whether redelivered messages are looked up in the result backend before they run.

    As in ``celery.app.trace``, this needs ``worker_deduplicate_successful_tasks``, a task with
    ``acks_late``, and a backend that keeps results.
    """
    is_enabled = task.acks_late and task.app.conf.worker_deduplicate_successful_tasks
    return bool(is_enabled and task.app.backend.persistent)


def record_if_done_before(task: Batches, request: SimpleRequest) -> None:
    """Record `Repeated` if the request was redelivered and has succeeded before."""
    if not request.redelivered:
        return
    if request.id not in successful_requests:
        try:
            meta = task.app.backend.get_task_meta(request.id)
        except BackendGetMetaError:
            return
        if meta["status"] != states.SUCCESS:
            return
        with parent_context(task, request):
            _continue_again(task, request, meta)
    logger.info("%r has succeeded before and does not run again", request)
    slot_of(request).record(Repeated())


def _continue_again(task: Batches, request: SimpleRequest, meta: Mapping[str, Any]) -> None:
    """Do what the first worker may not have done, because it was lost."""
    result = meta["result"]
    if not meta.get("children"):
        send_continuations(task, request, result)
    if request.chord and counts_parts_once(task.app.backend):
        task.app.backend.on_chord_part_return(request, states.SUCCESS, result)


def started_state(
    task: Batches, request: SimpleRequest, hostname: str, *, eager: bool
) -> State | None:
    """Return the ``STARTED`` state of a request, if ``track_started`` is on."""
    if not task.track_started or eager or request.ignore_result:
        return None
    return State(request, {"pid": getpid(), "hostname": hostname}, states.STARTED)


def store_done(
    task: Batches, request: SimpleRequest, value: Any, parts: ChordParts, *, eager: bool
) -> None:
    """Store the result of a request, and send its links, chain and chord, as Celery does.

    Arguments:
        task: The batch task.
        request: The request. If its slot says that the result is stored, only the rest is done.
        value: Its result.
        parts: The chord parts of its batch.
        eager: Whether it runs eagerly.

    Raises:
        Exception: Whatever the result backend or the broker raises if a write fails.
    """
    is_stored = slot_of(request).progress >= Progress.STORED
    store_result = not is_stored and stores_results(task, request, eager=eager)
    with parent_context(task, request):
        send_continuations(task, request, value)
        parts.mark_as_done(request, request.id, value, request, store_result=store_result)
    slot_of(request).progress = Progress.COMPLETE


def store_failure(
    task: Batches, request: SimpleRequest, exc: BaseException, traceback: str, *, eager: bool
) -> None:
    """Store the failure of a request, and notify its chord, chain and errbacks, as Celery does.

    Arguments:
        task: The batch task.
        request: The request. If its slot says that the failure is stored, only the rest is done.
        exc: The exception.
        traceback: Its traceback, as text.
        eager: Whether it runs eagerly.

    Raises:
        Exception: Whatever the result backend raises if a write fails.
    """
    is_stored = slot_of(request).progress >= Progress.STORED
    with parent_context(task, request):
        unintercepted(task.backend, "mark_as_failure")(
            request.id,
            exc,
            traceback,
            request=request,
            store_result=not is_stored and stores_errors(task, request, eager=eager),
            call_errbacks=True,
        )


def stores_results(task: Batches, request: SimpleRequest, *, eager: bool) -> bool:
    """Whether the result of the request goes to the result backend."""
    return not request.ignore_result and (not eager or bool(task.store_eager_result))


def stores_errors(task: Batches, request: SimpleRequest, *, eager: bool) -> bool:
    """Whether a failure or retry of the request goes to the result backend."""
    if request.ignore_result:
        return bool(task.store_errors_even_if_ignored)
    return not eager or bool(task.store_eager_result)
