"""Intercepts ``mark_as_done`` and ``mark_as_failure`` of the result backend. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, TypeAlias

from celery._state import _task_stack
from celery.app.task import Context
from celery.utils.log import get_logger
from kombu.exceptions import EncodeError

from ..backends.chord_parts import ChordParts
from ..core.outcomes import Done, Failed, Outcome
from ..core.slot import Progress, RunningBatch, slot_of
from ..errors import error_info, pickleable
from ..request import SimpleRequest
from .context import member_of
from .continuations import parent_context, send_continuations, sends_on_success
from .running import request_anywhere, running_batch
from .store import store_failure

if TYPE_CHECKING:
    from celery import Celery

    from ..backends.state import Backend
    from ..task import Batches

__all__ = ("intercept_marks", "intercept_marks_of", "intercept_new_backends")

logger = get_logger(__name__)

#: The method of an app that makes a result backend. Celery has no public name for it.
MAKER = "_get_backend"

ENDED = "%r: its batch has ended, and it is %s: %s has no effect"
ENDED_UNMARKED = (
    "%r: its batch has ended before %s was called, so its link or chain does not continue. Mark it "
    "before the body of the task returns"
)

Batch: TypeAlias = RunningBatch[SimpleRequest]


def intercept_marks_of(task: Batches) -> None:
    """Intercept them on each result backend by which a body of this task may mark a request.

    In Celery, each thread and each greenlet of the body makes a backend of its own.
    """
    intercept_marks(task.backend)
    intercept_marks(task.app.backend)
    intercept_new_backends(task.app)


def intercept_new_backends(app: Celery) -> None:
    """Intercept the marks on each result backend that the app makes from now on."""
    make = getattr(app, MAKER, None)
    if make is not None and not isinstance(make, _BackendMaker):
        setattr(app, MAKER, _BackendMaker(make))


class _BackendMaker:
    """Makes the backend of a thread or greenlet, as the app does."""

    def __init__(self, make: Callable[[], Backend]) -> None:
        self._make = make

    def __call__(self) -> Backend:
        backend = self._make()
        intercept_marks(backend)
        return backend


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
        given = next((arg for arg in (*args, kwargs.get("request")) if _is_request(arg)), None)
        request = _request_of(task_id, given)
        batch = None if request is None else slot_of(request).batch
        if request is None or batch is None:
            if request is not None and not isinstance(given, Context) and self._is_late(request):
                return None
            return self.intercepted(task_id, value, *args, **kwargs)
        if given is None and not args and not request.ignore_result:
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
        # If the body returns meanwhile, the batch leaves this request to this thread.
        slot.progress = Progress.COMPLETE
        final: Outcome | None = None
        try:
            with parent_context(batch.task, request):
                self.prepare(batch, request, value)
                returned = self.write(request, task_id, value, *args, **kwargs)
            final = outcome
        except Exception as exc:
            slot.progress = Progress.RECORDED
            final = self.recover(batch, request, value, exc)
            return None
        finally:
            if final is not outcome:
                slot.replace(final)
            if final is not None:
                slot.progress = Progress.COMPLETE
                batch.note_end(request, final)
        return returned

    def _is_late(self, request: SimpleRequest) -> bool:
        """Whether the batch of a request has ended, and has given it an outcome."""
        slot = slot_of(request)
        if slot.outcome is not None:
            logger.warning(ENDED, request, slot.outcome.kind, self.__name__)
            return True
        if slot.closed and self.outcome_type is Done and sends_on_success(request):
            logger.warning(ENDED_UNMARKED, request, self.__name__)
        return False

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


def _is_request(arg: object) -> bool:
    return isinstance(arg, SimpleRequest | Context)


def _request_of(task_id: str, given: SimpleRequest | Context | None) -> SimpleRequest | None:
    """Return the request that a call of the result backend is about, if it is one of a batch.

    Arguments:
        task_id: The id that the backend gets.
        given: The request that it gets, if any.
    """
    if isinstance(given, SimpleRequest):
        return given
    task = _task_stack.top
    if task:
        member = member_of(task)
        batch = running_batch(task) if member is None else slot_of(member).batch
        if batch is not None and task_id in batch.by_id:
            return batch.by_id[task_id]
    # Celery itself passes a context. And what is about the current task is not about a batch.
    if given is not None or (task and task.request.id == task_id):
        return None
    # Helper threads and greenlets of a body have no current task.
    return request_anywhere(task_id)
