"""Sees what the body of a batch writes to the result backend. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from celery._state import _task_stack
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError

from ..core.outcomes import Kind, Outcome
from ..request import SimpleRequest, running_batch
from .context import describe, sendable
from .results import on_its_way, set_off, store_failure

__all__ = ("watch",)

logger = get_logger(__name__)


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


class _Watched:
    """A method of a result backend that concerns the batch, if it is about one of its requests."""

    def __init__(self, mark: Callable[..., Any]) -> None:
        self.unwatched = mark
        update_wrapper(self, mark)

    def __call__(self, task_id: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        given = [arg for arg in (*args, kwargs.get("request")) if isinstance(arg, SimpleRequest)]
        request = given[0] if given else _current_requests().get(task_id)
        batch = request and request._batch
        if request is None or batch is None:
            return self.unwatched(task_id, value, *args, **kwargs)
        if not given and not args and not request.ignore_result:
            # The idiom of old, without it: what the backend needs to know for RPC and chords.
            kwargs["request"] = request
        # Before it is written, since that may let another thread or greenlet go on.
        wanted = Outcome(self.kind, value, written=True)
        if not request._settle(wanted):
            known = request._outcome.kind if request._outcome else "left to the batch"
            logger.warning("%r is %s already: %s has no effect", request, known, self.__name__)
            return None
        outcome = None
        try:
            with on_its_way(batch.task, request):
                self.prepare(batch, request, value)
                returned = self.unwatched(task_id, value, *args, **kwargs)
            outcome = wanted
        except Exception as exc:
            logger.error("Cannot see to how %r has ended: %r", request, exc, exc_info=True)
            outcome = self.recover(batch, request, value, exc)
            return None
        finally:
            if outcome is not wanted:
                request._unsettle(to=outcome)
        return returned

    kind: Kind
    __name__: str

    def prepare(self, batch: Any, request: SimpleRequest, value: Any) -> None:
        """Do what comes before the request is marked."""

    def recover(self, batch: Any, request: SimpleRequest, value: Any, exc: Exception) -> Outcome:
        """Fail this request alone, as Celery does with what cannot be stored."""
        error = sendable(exc)
        try:
            store_failure(batch.task, request, error, describe(error).traceback, eager=batch.eager)
        except Exception:
            raise exc from None
        return Outcome("failed", error, written=True)


class _MarkAsDone(_Watched):
    kind = "done"

    def prepare(self, batch: Any, request: SimpleRequest, value: Any) -> None:
        set_off(batch.task, request, value)


class _MarkAsFailure(_Watched):
    kind = "failed"

    def recover(self, batch: Any, request: SimpleRequest, value: Any, exc: Exception) -> Outcome:
        if isinstance(exc, EncodeError):
            return super().recover(batch, request, value, exc)
        # It may be an errback that cannot be called: that is no reason to fail twice.
        return Outcome("failed", value, written=True)


def _current_requests() -> dict[str, SimpleRequest]:
    """Return the requests of the batch that is being run, by id."""
    task = _task_stack.top
    batch = running_batch(task) if task else None
    return {} if batch is None else batch.by_id
