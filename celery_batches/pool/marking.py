"""Intercepts ``mark_as_done`` and ``mark_as_failure`` of the result backend. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, TypeAlias

from celery._state import _task_stack
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError

from ..backends.chord_parts import ChordParts
from ..core.outcomes import Done, Failed, Outcome
from ..core.slot import Progress, RunningBatch, slot_of
from ..errors import error_info, pickleable
from ..request import SimpleRequest
from .context import member_of
from .continuations import parent_context, send_continuations
from .running import running_batch
from .store import store_failure

if TYPE_CHECKING:
    from ..backends.state import Backend

__all__ = ("intercept_marks",)

logger = get_logger(__name__)

Batch: TypeAlias = RunningBatch[SimpleRequest]


def intercept_marks(backend: Backend) -> None:
    """Intercept ``mark_as_done`` and ``mark_as_failure`` on this backend.

    In 0.11 a body gives a request its result by ``app.backend.mark_as_done(request.id, value,
    request=request)``. A backend has no hook for that, and the app makes the backend. So this one
    instance gets its own methods. They record the outcome in the request, send its continuations,
    and call Celery's methods. Without them, a body that raises would turn the requests that it has
    marked into failures. The continuations of a marked request would never be sent.
    """
    methods = {"mark_as_done": _MarkAsDone, "mark_as_failure": _MarkAsFailure}
    for name, intercepted in methods.items():
        method = getattr(backend, name)
        if not isinstance(method, _Intercepted):
            setattr(backend, name, intercepted(method, backend))


class _Intercepted:
    """A method of a result backend that records the outcome of a request of a running batch."""

    outcome_type: type[Done] | type[Failed]
    __name__: str

    def __init__(self, mark: Callable[..., Any], backend: Backend) -> None:
        self.intercepted = mark
        self.backend = backend
        update_wrapper(self, mark)

    def __call__(self, task_id: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        given = [arg for arg in (*args, kwargs.get("request")) if isinstance(arg, SimpleRequest)]
        request = given[0] if given else _running_requests().get(task_id)
        batch = None if request is None else slot_of(request).batch
        if request is None or batch is None:
            return self.intercepted(task_id, value, *args, **kwargs)
        if not given and not args and not request.ignore_result:
            # 0.11 allows a call without the request. The backend needs it for RPC and chords.
            kwargs["request"] = request
        # Record before writing: during the write, other threads or greenlets may run.
        slot, outcome = slot_of(request), self.outcome_type(value)
        if not slot.record(outcome):
            recorded = slot.outcome.kind if slot.outcome else "left to the batch"
            logger.warning("%r is %s already: %s has no effect", request, recorded, self.__name__)
            return None
        if slot.progress is Progress.COMPLETE:
            return None
        final: Outcome | None = None
        try:
            with parent_context(batch.task, request):
                self.prepare(batch, request, value)
                returned = self.write(request, task_id, value, *args, **kwargs)
            final = outcome
        except Exception as exc:
            final = self.recover(batch, request, value, exc)
            return None
        finally:
            if final is not outcome:
                slot.replace(final)
            if final is not None:
                slot.progress = Progress.COMPLETE
        return returned

    def prepare(self, batch: Batch, request: SimpleRequest, value: Any) -> None:
        """Prepare the write to the result backend."""

    def write(self, request: SimpleRequest, /, *args: Any, **kwargs: Any) -> Any:
        """Call Celery's method with these arguments."""
        return self.intercepted(*args, **kwargs)

    def recover(self, batch: Batch, request: SimpleRequest, value: Any, exc: Exception) -> Outcome:
        """Fail this request alone, as Celery fails a task whose result cannot be stored.

        Raises:
            Exception: The same, if the failure cannot be stored either. The body gets it.
        """
        error = pickleable(exc)
        traceback = error_info(error).traceback
        try:
            store_failure(batch.task, request, error, traceback, eager=batch.eager)
        except Exception:
            _log_error(request, exc)
            raise exc from None
        return Failed(error, "cannot end as done")


class _MarkAsDone(_Intercepted):
    outcome_type = Done

    def prepare(self, batch: Batch, request: SimpleRequest, value: Any) -> None:
        send_continuations(batch.task, request, value)

    def write(self, request: SimpleRequest, /, *args: Any, **kwargs: Any) -> Any:
        return ChordParts(self.backend).mark_as_done(request, *args, **kwargs)


class _MarkAsFailure(_Intercepted):
    outcome_type = Failed

    def recover(self, batch: Batch, request: SimpleRequest, value: Any, exc: Exception) -> Outcome:
        if isinstance(exc, EncodeError):
            return super().recover(batch, request, value, exc)
        # The failure may be stored already: an errback that cannot be called raises here too.
        _log_error(request, exc)
        return Failed(value)


def _log_error(request: SimpleRequest, exc: Exception) -> None:
    logger.error("Cannot store the outcome of %r: %r", request, exc, exc_info=exc)


def _running_requests() -> Mapping[str | None, SimpleRequest]:
    """Return the requests of the batch that runs in this thread or greenlet, by id."""
    task = _task_stack.top
    if not task:
        return {}
    member = member_of(task)
    batch = running_batch(task) if member is None else slot_of(member).batch
    return {} if batch is None else batch.by_id
