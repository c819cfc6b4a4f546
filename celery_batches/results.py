"""Writes to the result backend, and sees what the body writes to it. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import update_wrapper
from os import getpid
from typing import Any

from celery import canvas, states
from celery._state import _task_stack
from celery.exceptions import BackendGetMetaError
from celery.utils.log import get_logger
from celery.worker.state import successful_requests
from kombu.exceptions import EncodeError

from .compat import publish
from .context import acting_as, describe, sendable
from .outcomes import Kind, Outcome
from .request import SimpleRequest, running_batch

__all__ = (
    "deduplicates",
    "done_before",
    "store_done",
    "store_failure",
    "store_started",
    "stores_errors",
    "watch",
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
            with _on_its_way(task, request):
                set_off(task, request, meta["result"])
    logger.info("%r was done before: it is not run again", request)
    request._settle(Outcome("repeated"))


def store_started(task: Any, request: SimpleRequest, hostname: str, *, eager: bool) -> None:
    """Record that a request runs, if ``track_started`` is on."""
    if task.track_started and not eager and not request.ignore_result:
        task.backend.store_result(
            request.id, {"pid": getpid(), "hostname": hostname}, states.STARTED, request=request
        )


def store_done(task: Any, request: SimpleRequest, value: Any, *, eager: bool) -> None:
    """Record that a request is done, as Celery does for a task: callbacks, chain and chord go on.

    Raises:
        Exception: Whatever the result backend or the broker raises when it cannot be written to.
    """
    wanted = not request.ignore_result and (not eager or bool(task.store_eager_result))
    with _on_its_way(task, request):
        set_off(task, request, value)
        _original(task.backend, "mark_as_done")(request.id, value, request, store_result=wanted)


def store_failure(
    task: Any, request: SimpleRequest, exc: BaseException, traceback: str, *, eager: bool
) -> None:
    """Record that a request failed, as Celery does for a task: chord, chain and errbacks included.

    Raises:
        Exception: Whatever the result backend raises when it cannot be written to.
    """
    with _on_its_way(task, request):
        _original(task.backend, "mark_as_failure")(
            request.id,
            exc,
            traceback,
            request=request,
            store_result=stores_errors(task, request, eager=eager),
            call_errbacks=True,
        )


def stores_errors(task: Any, request: SimpleRequest, *, eager: bool) -> bool:
    """Whether the result backend is to hear of a failure or retry of the request."""
    if request.ignore_result:
        return bool(task.store_errors_even_if_ignored)
    return not eager or bool(task.store_eager_result)


def _on_its_way(task: Any, request: SimpleRequest) -> AbstractContextManager[Any]:
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


def watch(backend: Any) -> None:
    """See to it that each request knows what the body writes of it to the result backend.

    The documented way to give a request its result is ``app.backend.mark_as_done(request.id,
    value, request=request)``. A backend has no hook to be told of that, and it is the app that
    makes it, so it is this one instance that gets methods of its own: they call Celery's, and see
    to the rest of what the outcome of a request means. Without them a body that raises after
    having marked some of its requests would turn these into failures, and what waits for a
    request that was marked would never be sent.
    """
    for name, watched in {"mark_as_done": _MarkAsDone, "mark_as_failure": _MarkAsFailure}.items():
        method = getattr(backend, name)
        if not isinstance(method, _Watched):
            setattr(backend, name, watched(method))


def _original(backend: Any, name: str) -> Callable[..., Any]:
    method = getattr(backend, name)
    original: Callable[..., Any] = method.mark if isinstance(method, _Watched) else method
    return original


class _Watched:
    """A method of a result backend that concerns the batch, if it is about one of its requests."""

    def __init__(self, mark: Callable[..., Any]) -> None:
        self.mark = mark
        update_wrapper(self, mark)

    def __call__(self, task_id: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        given = [arg for arg in (*args, kwargs.get("request")) if isinstance(arg, SimpleRequest)]
        request = given[0] if given else _current_requests().get(task_id)
        if request is None or request._batch is None:
            return self.mark(task_id, value, *args, **kwargs)
        if not given and not args and not request.ignore_result:
            # The idiom of old, without it: what the backend needs to know for RPC and chords.
            kwargs["request"] = request
        if request._outcome is not None:
            logger.warning(
                "%r is %s already: %s has no effect", request, request._outcome.kind, self.__name__
            )
            return None
        try:
            with _on_its_way(request._batch.task, request):
                self.prepare(request, value)
                returned = self.mark(task_id, value, *args, **kwargs)
        except Exception as exc:
            logger.error("Cannot see to how %r has ended: %r", request, exc, exc_info=True)
            self.recover(request, value, exc)
            return None
        request._settle(Outcome(self.kind, value, written=True))
        return returned

    kind: Kind
    __name__: str

    def prepare(self, request: SimpleRequest, value: Any) -> None:
        """Do what comes before the request is marked."""

    def recover(self, request: SimpleRequest, value: Any, exc: Exception) -> None:
        """Fail this request alone, as Celery does with what cannot be stored."""
        batch, error = request._batch, sendable(exc)
        try:
            store_failure(batch.task, request, error, describe(error).traceback, eager=batch.eager)
        except Exception:
            raise exc from None
        request._settle(Outcome("failed", error, written=True))


class _MarkAsDone(_Watched):
    kind = "done"

    def prepare(self, request: SimpleRequest, value: Any) -> None:
        set_off(request._batch.task, request, value)


class _MarkAsFailure(_Watched):
    kind = "failed"

    def recover(self, request: SimpleRequest, value: Any, exc: Exception) -> None:
        if isinstance(exc, EncodeError):
            super().recover(request, value, exc)
        else:
            # It may be an errback that cannot be called: that is no reason to fail twice.
            request._settle(Outcome("failed", value, written=True))


def _current_requests() -> dict[str, SimpleRequest]:
    """Return the requests of the batch that is being run, by id."""
    task = _task_stack.top
    batch = running_batch(task) if task else None
    return {} if batch is None else batch.by_id
