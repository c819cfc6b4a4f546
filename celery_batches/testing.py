"""Runs a batch in a test, without a worker, a broker or a result backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from celery import Signature, states
from celery.exceptions import Retry
from celery.utils.nodenames import gethostname
from kombu.utils.uuid import uuid

from .core.outcomes import Done, Failed, Ignored, Outcome, Rejected, Retried, Unmarked
from .pool.endings import STATES
from .pool.run import BatchRun
from .request import SimpleRequest
from .task import Batches

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("BatchResult", "CallOutcome", "make_request", "run_batch")

#: A call, as `run_batch` takes it.
Call: TypeAlias = SimpleRequest | Signature | Sequence[Any]


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What became of one call.

    Attributes:
        request: The request that the body got.
        state: The state of its result: ``"SUCCESS"``, ``"FAILURE"``, ``"RETRY"``, ``"REJECTED"``
            or ``"IGNORED"``. ``"PENDING"`` if the body has not marked the request: in a worker, its
            caller would wait for ever.
        result: The result if it is done, or None.
        exception: The exception with which it has failed, or was rejected, ignored or retried, or
            None.
        retry: For a call that is retried, Celery's ``Retry``. Its ``when`` is the countdown in
            seconds or the ETA, and its ``sig`` is the call that a worker would send. Or None.
    """

    request: SimpleRequest
    state: str
    result: Any = None
    exception: BaseException | None = None
    retry: Retry | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        outcomes: The outcome of each call, in order.
        returned: What the body has returned, or None if it has raised.
        exception: The exception that the body has raised, or None.
    """

    outcomes: Sequence[CallOutcome]
    returned: Any = None
    exception: BaseException | None = None

    def __iter__(self) -> Iterator[CallOutcome]:
        return iter(self.outcomes)

    @property
    def states(self) -> list[str]:
        """The state of each call, in order."""
        return [outcome.state for outcome in self.outcomes]

    @property
    def results(self) -> list[Any]:
        """The result of each call, in order, or None for a call that is not done."""
        return [outcome.result for outcome in self.outcomes]


def make_request(
    args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None, **headers: Any
) -> SimpleRequest:
    """Make a request as the body of a batch task gets it.

    Arguments:
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        **headers: What else to say of the call, with the names of ``task.request``: ``id``,
            ``retries``, ``eta``, ``delivery_info``, …; or headers of your own.
    """
    task_id = str(headers.pop("id", None) or uuid())
    name = headers.pop("task", "test")
    options = {name: headers.pop(name, None) for name in ("reply_to", "correlation_id")}
    ignore_result = bool(headers.pop("ignore_result", False))
    delivery_info = {"redelivered": False, **headers.pop("delivery_info", {})}
    hostname = headers.pop("hostname", None) or gethostname()
    given = list(args), dict(kwargs or {})
    context = {
        "id": task_id,
        "task": name,
        "root_id": task_id,
        "retries": 0,
        "args": given[0],
        "kwargs": given[1],
        "is_eager": True,
        **headers,
    }
    return SimpleRequest(
        task_id,
        name,
        *given,
        delivery_info,
        hostname,
        ignore_result,
        **options,
        request_dict=context,
    )


def run_batch(
    task: Batches, calls: Iterable[SimpleRequest | Signature | Sequence[Any]]
) -> BatchResult:
    """Run a batch of these calls in this process, and return what became of each.

    The body runs inside the signals and handlers of the task, as in a worker. Nothing is sent or
    stored: no retry, no link, no result. Marks by ``app.backend.mark_as_done`` count too.

    Arguments:
        task: The batch task.
        calls: For each call, a request of `make_request`, a signature such as ``task.s(1)``, or a
            list or tuple of positional arguments.

    Raises:
        TypeError: If the task is not a batch task, or a call is something else.
        Exception: What a handler of the task raises.
    """
    if not isinstance(task, Batches):
        raise TypeError(f"run_batch() runs batch tasks. {task!r} has another base than Batches")
    task = task.app.tasks[task.name]
    requests = [_as_request(task, call) for call in calls]
    batch = BatchRun(task, requests, uuid(), "manual", gethostname(), eager=True, records_only=True)
    batch.run()
    pairs = zip(requests, batch.applied, strict=True)
    outcomes = [_outcome(request, applied.outcome) for request, applied in pairs]
    return BatchResult(outcomes, batch.end.retval, batch.end.error)


def _as_request(task: Batches, call: Call) -> SimpleRequest:
    if isinstance(call, SimpleRequest):
        # Celery sends the retry of a call unless the call is eager.
        call.request_dict = {**(call.request_dict or {}), "is_eager": True}
        return call
    # A signature is a dictionary.
    if isinstance(call, Signature):
        options = {"id" if key == "task_id" else key: value for key, value in call.options.items()}
        return make_request(call.args, call.kwargs, **{"task": task.name, **options})
    if isinstance(call, list | tuple):
        return make_request(call, task=task.name)
    raise TypeError(
        f"run_batch(): a call is a request of make_request(), a signature such as "
        f"{task.name}.s(1), or a list or tuple of positional arguments, not {call!r}"
    )


def _outcome(request: SimpleRequest, outcome: Outcome) -> CallOutcome:
    state = STATES[type(outcome)]
    match outcome:
        case Done():
            return CallOutcome(request, state, outcome.result)
        case Unmarked():
            return CallOutcome(request, states.PENDING)
        case Retried(exc=Retry() as retry):
            return CallOutcome(request, state, exception=retry.exc, retry=retry)
        case Failed() | Rejected() | Ignored() | Retried():
            return CallOutcome(request, state, exception=outcome.exc)
        case _:
            return CallOutcome(request, state)
