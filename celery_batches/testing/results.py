"""What became of the calls of a batch, for a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import Retry

from ..core.outcomes import Done, Failed, Ignored, Outcome, Rejected, Retried, Unmarked
from ..pool.endings import STATES
from ..request import SimpleRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..pool.run import BatchRun

__all__ = ("BatchResult", "CallOutcome", "result_of")


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
        trigger: Why the batch was flushed: ``"size"``, ``"interval"``, …. It is ``"manual"`` for
            `run_batch`.
    """

    outcomes: Sequence[CallOutcome]
    returned: Any = None
    exception: BaseException | None = None
    trigger: str = "manual"

    def __iter__(self) -> Iterator[CallOutcome]:
        return iter(self.outcomes)

    @property
    def requests(self) -> list[SimpleRequest]:
        """The request of each call, in order."""
        return [outcome.request for outcome in self.outcomes]

    @property
    def states(self) -> list[str]:
        """The state of each call, in order."""
        return [outcome.state for outcome in self.outcomes]

    @property
    def results(self) -> list[Any]:
        """The result of each call, in order, or None for a call that is not done."""
        return [outcome.result for outcome in self.outcomes]


def result_of(batch: BatchRun) -> BatchResult:
    """Return what became of a batch that has run."""
    pairs = zip(batch.requests, batch.applied, strict=True)
    outcomes = [_outcome(request, applied.outcome) for request, applied in pairs]
    return BatchResult(outcomes, batch.end.retval, batch.end.error, batch.trigger)


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
