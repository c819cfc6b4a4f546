"""Writes to the result backend what became of a request. Runs in the pool."""

from __future__ import annotations

from os import getpid
from typing import Any

from celery import states
from celery.exceptions import BackendGetMetaError
from celery.utils.log import get_logger
from celery.worker.state import successful_requests

from ..backends.bulk import original
from ..backends.state import State
from ..core.outcomes import Repeated
from ..core.slot import Progress
from ..request import SimpleRequest, slot_of
from .continuations import parent_context, send_continuations

__all__ = (
    "deduplicates",
    "done_before",
    "started_state",
    "store_done",
    "store_failure",
    "stores_errors",
    "stores_results",
)

logger = get_logger(__name__)


def deduplicates(task: Any) -> bool:
    """Whether messages that come again are looked up in the result backend before they are run.

    As in ``celery.app.trace``: with ``worker_deduplicate_successful_tasks``, if the task has
    ``acks_late`` and the backend keeps results.
    """
    wanted = task.acks_late and task.app.conf.worker_deduplicate_successful_tasks
    return bool(wanted and task.app.backend.persistent)


def done_before(task: Any, request: SimpleRequest) -> None:
    """Record that a request was run before, if it is delivered again and has been done."""
    if not request.redelivered:
        return
    if request.id not in successful_requests:
        try:
            meta = task.app.backend.get_task_meta(request.id)
        except BackendGetMetaError:
            return
        if meta["status"] != states.SUCCESS:
            return
        if not meta.get("children"):
            # Its worker was lost between its result and its continuations.
            with parent_context(task, request):
                send_continuations(task, request, meta["result"])
    logger.info("%r was done before: it is not run again", request)
    slot_of(request).record(Repeated())


def started_state(task: Any, request: SimpleRequest, hostname: str, *, eager: bool) -> State | None:
    """Return what is to be stored of a request that runs, if ``track_started`` is on."""
    if not task.track_started or eager or request.ignore_result:
        return None
    return State(request, {"pid": getpid(), "hostname": hostname}, states.STARTED)


def store_done(task: Any, request: SimpleRequest, value: Any, *, eager: bool) -> None:
    """Store that a request is done, as Celery does for a task: callbacks, chain and chord go on.

    Arguments:
        task: The batch task.
        request: The request. If its slot says that the result is stored, the rest is done.
        value: Its result.
        eager: Whether it is run eagerly.

    Raises:
        Exception: Whatever the result backend or the broker raises when it cannot be written to.
    """
    is_stored = slot_of(request).progress >= Progress.STORED
    wanted = not is_stored and stores_results(task, request, eager=eager)
    with parent_context(task, request):
        send_continuations(task, request, value)
        original(task.backend, "mark_as_done")(request.id, value, request, store_result=wanted)


def store_failure(
    task: Any, request: SimpleRequest, exc: BaseException, traceback: str, *, eager: bool
) -> None:
    """Store that a request failed, as Celery does for a task: chord, chain and errbacks included.

    Arguments:
        task: The batch task.
        request: The request. If its slot says that the failure is stored, the rest is done.
        exc: Why it failed.
        traceback: Where.
        eager: Whether it is run eagerly.

    Raises:
        Exception: Whatever the result backend raises when it cannot be written to.
    """
    is_stored = slot_of(request).progress >= Progress.STORED
    with parent_context(task, request):
        original(task.backend, "mark_as_failure")(
            request.id,
            exc,
            traceback,
            request=request,
            store_result=not is_stored and stores_errors(task, request, eager=eager),
            call_errbacks=True,
        )


def stores_results(task: Any, request: SimpleRequest, *, eager: bool) -> bool:
    """Whether the result of the request goes to the result backend."""
    return not request.ignore_result and (not eager or bool(task.store_eager_result))


def stores_errors(task: Any, request: SimpleRequest, *, eager: bool) -> bool:
    """Whether a failure or retry of the request goes to the result backend."""
    if request.ignore_result:
        return bool(task.store_errors_even_if_ignored)
    return not eager or bool(task.store_eager_result)
