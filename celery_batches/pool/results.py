"""Writes to the result backend what became of a request, and sends what follows. In the pool."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from os import getpid
from typing import Any

from celery import canvas, states
from celery.exceptions import BackendGetMetaError
from celery.utils.log import get_logger
from celery.worker.state import successful_requests

from ..backends.bulk import State, original
from ..compat import publish
from ..core.outcomes import Outcome
from ..request import SimpleRequest
from .context import acting_as

__all__ = (
    "deduplicates",
    "done_before",
    "on_its_way",
    "set_off",
    "started",
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
    """Note that a request was run before, if it comes again and has been done."""
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
            # It was lost between its result and what was to follow.
            with on_its_way(task, request):
                set_off(task, request, meta["result"])
    logger.info("%r was done before: it is not run again", request)
    request._settle(Outcome("repeated"))


def started(task: Any, request: SimpleRequest, hostname: str, *, eager: bool) -> State | None:
    """Return what is to be recorded of a request that runs, if ``track_started`` is on."""
    if not task.track_started or eager or request.ignore_result:
        return None
    return State(request, {"pid": getpid(), "hostname": hostname}, states.STARTED)


def store_done(
    task: Any, request: SimpleRequest, value: Any, *, eager: bool, stored: bool = False
) -> None:
    """Record that a request is done, as Celery does for a task: callbacks, chain and chord go on.

    Arguments:
        task: The batch task.
        request: The request.
        value: Its result.
        eager: Whether it is run eagerly.
        stored: Whether its result is stored already: then all but that is done.

    Raises:
        Exception: Whatever the result backend or the broker raises when it cannot be written to.
    """
    wanted = not stored and stores_results(task, request, eager=eager)
    with on_its_way(task, request):
        set_off(task, request, value)
        original(task.backend, "mark_as_done")(request.id, value, request, store_result=wanted)


def store_failure(
    task: Any,
    request: SimpleRequest,
    exc: BaseException,
    traceback: str,
    *,
    eager: bool,
    stored: bool = False,
) -> None:
    """Record that a request failed, as Celery does for a task: chord, chain and errbacks included.

    Arguments:
        task: The batch task.
        request: The request.
        exc: Why it failed.
        traceback: Where.
        eager: Whether it is run eagerly.
        stored: Whether its failure is stored already: then all but that is done.

    Raises:
        Exception: Whatever the result backend raises when it cannot be written to.
    """
    with on_its_way(task, request):
        original(task.backend, "mark_as_failure")(
            request.id,
            exc,
            traceback,
            request=request,
            store_result=not stored and stores_errors(task, request, eager=eager),
            call_errbacks=True,
        )


def stores_results(task: Any, request: SimpleRequest, *, eager: bool) -> bool:
    """Whether the result backend is to hear of the result of the request."""
    return not request.ignore_result and (not eager or bool(task.store_eager_result))


def stores_errors(task: Any, request: SimpleRequest, *, eager: bool) -> bool:
    """Whether the result backend is to hear of a failure or retry of the request."""
    if request.ignore_result:
        return bool(task.store_errors_even_if_ignored)
    return not eager or bool(task.store_eager_result)


def on_its_way(task: Any, request: SimpleRequest) -> AbstractContextManager[Any]:
    """Make the request the current one, if others hear of how it has ended: it is their parent."""
    return acting_as(task, request) if request._has_followers() else nullcontext()


def set_off(task: Any, request: SimpleRequest, value: Any) -> None:
    """Send the callbacks of a done request, and the next task of its chain.

    Before the result is stored, so that this knows the request's children (as in
    ``celery.app.trace``). The request must be the current one of the task.
    """
    callbacks, chain = request.callbacks, request.chain
    if not callbacks and not chain:
        return
    app = task.app
    priority = None
    if app.conf.task_inherit_parent_priority:
        priority = (request.delivery_info or {}).get("priority")
    options = {
        "parent_id": request.id,
        "root_id": request.root_id or request.id,
        "priority": priority,
    }
    signatures = [canvas.signature(callback, app=app) for callback in callbacks or ()]
    # A group leaves a trail of its own: it is sent as it is.
    alone = [sig for sig in signatures if isinstance(sig, canvas.group)]
    others = [sig for sig in signatures if not isinstance(sig, canvas.group)]
    if len(others) > 1:
        others = [canvas.group(others, app=app)]
    for sig in [*alone, *others]:
        publish(app, sig.apply_async, (value,), **options)
    if chain:
        following = canvas.signature(chain[-1], app=app)
        publish(app, following.apply_async, (value,), chain=chain[:-1], **options)
    request._children = task.request.children
