"""Intercepts what the body of a batch writes to the result backend. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import Any, TypeAlias

from celery._state import _task_stack
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError

from ..core.outcomes import Done, Failed, Outcome
from ..core.slot import Progress, RunningBatch
from ..errors import error_info, pickleable
from ..request import SimpleRequest, slot_of
from .continuations import parent_context, send_continuations
from .running import running_batch
from .store import store_failure

__all__ = ("intercept_marks",)

logger = get_logger(__name__)

Batch: TypeAlias = RunningBatch[SimpleRequest]


def intercept_marks(backend: Any) -> None:
    """Intercept ``mark_as_done`` and ``mark_as_failure`` on this backend.

    The documented way to give a request its result is ``app.backend.mark_as_done(request.id,
    value, request=request)``. A backend has no hook for that, and the app makes the backend. So
    this one instance gets methods of its own: they call Celery's, record the outcome in the
    request, and send what continues. Without them a body that raises after it has marked some of
    its requests would turn these into failures, and the continuations of a marked request would
    never be sent.
    """
    methods = {"mark_as_done": _MarkAsDone, "mark_as_failure": _MarkAsFailure}
    for name, intercepted in methods.items():
        method = getattr(backend, name)
        if not isinstance(method, _Intercepted):
            setattr(backend, name, intercepted(method))


class _Intercepted:
    """A method of a result backend that concerns the batch, if it is about one of its requests."""

    outcome_type: type[Done] | type[Failed]
    __name__: str

    def __init__(self, mark: Callable[..., Any]) -> None:
        self.intercepted = mark
        update_wrapper(self, mark)

    def __call__(self, task_id: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        given = [arg for arg in (*args, kwargs.get("request")) if isinstance(arg, SimpleRequest)]
        request = given[0] if given else _running_requests().get(task_id)
        batch = request and slot_of(request).batch
        if request is None or batch is None:
            return self.intercepted(task_id, value, *args, **kwargs)
        if not given and not args and not request.ignore_result:
            # The 0.11 way, without the request: what the backend needs for RPC and chords.
            kwargs["request"] = request
        # Before it is written, since that may let another thread or greenlet go on.
        slot, outcome = slot_of(request), self.outcome_type(value)
        if not slot.record(outcome):
            known = slot.outcome.kind if slot.outcome else "left to the batch"
            logger.warning("%r is %s already: %s has no effect", request, known, self.__name__)
            return None
        final: Outcome | None = None
        try:
            with parent_context(batch.task, request):
                self.prepare(batch, request, value)
                returned = self.intercepted(task_id, value, *args, **kwargs)
            final = outcome
        except Exception as exc:
            logger.error("Cannot store how %r has ended: %r", request, exc, exc_info=True)
            final = self.recover(batch, request, value, exc)
            return None
        finally:
            if final is not outcome:
                slot.replace(final)
            if final is not None:
                slot.progress = Progress.TOLD
        return returned

    def prepare(self, batch: Batch, request: SimpleRequest, value: Any) -> None:
        """Do what comes before the request is marked."""

    def recover(self, batch: Batch, request: SimpleRequest, value: Any, exc: Exception) -> Outcome:
        """Fail this request alone, as Celery does with what cannot be stored."""
        error = pickleable(exc)
        traceback = error_info(error).traceback
        try:
            store_failure(batch.task, request, error, traceback, eager=batch.eager)
        except Exception:
            raise exc from None
        return Failed(error)


class _MarkAsDone(_Intercepted):
    outcome_type = Done

    def prepare(self, batch: Batch, request: SimpleRequest, value: Any) -> None:
        send_continuations(batch.task, request, value)


class _MarkAsFailure(_Intercepted):
    outcome_type = Failed

    def recover(self, batch: Batch, request: SimpleRequest, value: Any, exc: Exception) -> Outcome:
        if isinstance(exc, EncodeError):
            return super().recover(batch, request, value, exc)
        # It may be an errback that cannot be called: that is no reason to fail twice.
        return Failed(value)


def _running_requests() -> Mapping[str | None, SimpleRequest]:
    """Return the requests of the batch that runs here, by id."""
    task = _task_stack.top
    batch = running_batch(task) if task else None
    return {} if batch is None else batch.by_id
