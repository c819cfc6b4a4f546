"""Sees to it that each request ends as its outcome says. Runs in the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.exceptions import Reject, Retry
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr

from ..backends.bulk import State, store_at_once
from ..core.outcomes import Kind, Outcome
from ..request import SimpleRequest
from .context import acting_as, call_handler, describe, sendable
from .results import store_done, store_failure, stores_errors, stores_results

__all__ = ("Report", "Settled", "Settler")

logger = get_logger(__name__)

#: What the pool says of one request: whether it failed, and the representation of its result or
#: the ``ExceptionInfo`` of its failure (the first two values that ``Request.on_success`` takes).
Report = tuple[bool, Any]


@dataclass(frozen=True, slots=True)
class Settled:
    """How a request has ended.

    Attributes:
        kind: Which way: not always that of its outcome, since a result that cannot be stored is a
            failure, as is a retry too many.
        value: Its result, or the exception.
        report: What the worker's main process is told.
    """

    kind: Kind
    value: Any
    report: Report


@dataclass(slots=True)
class Settler:
    """Settles the requests of one batch.

    Arguments:
        task: The batch task.
        retval: What the body returned.
        error: What the body raised, if it did.
        einfo: The ``ExceptionInfo`` of that.
        eager: Whether the batch is run eagerly.
        propagate: Whether errors are raised, not recorded.
        handlers: Names of the handlers that the task has of its own.
    """

    task: Any
    retval: Any = None
    error: BaseException | None = None
    einfo: Any = None
    eager: bool = False
    propagate: bool = False
    handlers: frozenset[str] = frozenset()
    #: Why the retries of some requests have come to their end.
    exhausted: list[BaseException] = field(default_factory=list)
    #: What was made of each exception, once for all requests that have it in common: it is sent to
    #: the main process once then.
    _made: dict[tuple[str, int], Any] = field(default_factory=dict)
    #: What the body has said nothing of: the same for all such requests.
    _left: Settled | None = None

    def settle_all(
        self, requests: Sequence[SimpleRequest], outcomes: Sequence[Outcome]
    ) -> Iterator[Settled]:
        """Do what follows from each outcome, in order; store at once what can be."""
        known = [self._state(*each) for each in zip(requests, outcomes, strict=True)]
        stored = store_at_once(self.task.backend, known)
        for request, outcome, done in zip(requests, outcomes, stored, strict=True):
            yield self.settle(request, _stored(request, outcome) if done else outcome)

    def _state(self, request: SimpleRequest, outcome: Outcome) -> State | None:
        """Return what is to be stored of a request, if that is the first thing to do."""
        if outcome.kind == "unmarked" or outcome.written or request._sets_off():
            return None
        try:
            if outcome.kind == "done" and stores_results(self.task, request, eager=self.eager):
                return State(request, outcome.value, states.SUCCESS)
            if outcome.kind == "failed" and stores_errors(self.task, request, eager=self.eager):
                exc = self._sendable(outcome.value)
                return State(request, exc, states.FAILURE, self._einfo(exc).traceback)
        except Exception as exc:
            logger.debug("Cannot say what to store of %r: %r", request, exc)
        return None

    def settle(self, request: SimpleRequest, outcome: Outcome) -> Settled:
        """Do what follows from the outcome; if that goes wrong, it is this request that fails."""
        try:
            settle: Callable[[SimpleRequest, Outcome], Settled] = getattr(self, f"_{outcome.kind}")
            return settle(request, outcome)
        except Exception as exc:
            if self.propagate:
                raise
            logger.error("Cannot settle %r as %s: %r", request, outcome.kind, exc, exc_info=True)
            return self._failed(request, Outcome("failed", sendable(exc)))

    def _done(self, request: SimpleRequest, outcome: Outcome) -> Settled:
        if not outcome.written:
            store_done(self.task, request, outcome.value, eager=self.eager, stored=outcome.stored)
        report = (False, saferepr(outcome.value, self.task.resultrepr_maxsize))
        return self._succeeded(request, Settled("done", outcome.value, report))

    def _unmarked(self, request: SimpleRequest, outcome: Outcome) -> Settled:
        if self._left is None:
            report = (False, saferepr(self.retval, self.task.resultrepr_maxsize))
            self._left = Settled("unmarked", self.retval, report)
        return self._succeeded(request, self._left)

    def _repeated(self, request: SimpleRequest, outcome: Outcome) -> Settled:
        return Settled("repeated", None, (False, None))

    def _succeeded(self, request: SimpleRequest, settled: Settled) -> Settled:
        if self.handlers:
            self._tell(request, "on_success", (settled.value,))
            self._tell(request, "after_return", (states.SUCCESS, settled.value), (None,))
        return settled

    def _failed(self, request: SimpleRequest, outcome: Outcome) -> Settled:
        exc = self._sendable(outcome.value)
        einfo = self._einfo(exc)
        if not outcome.written:
            how = {"eager": self.eager, "stored": outcome.stored}
            try:
                store_failure(self.task, request, exc, einfo.traceback, **how)
            except Exception as error:
                logger.exception("Cannot store the failure of %r: %r", request, error)
        self._tell(request, "on_failure", (exc,), (einfo,))
        self._tell(request, "after_return", (states.FAILURE, exc), (einfo,))
        return Settled("failed", exc, (True, self._reported(exc, einfo)))

    def _retried(self, request: SimpleRequest, outcome: Outcome) -> Settled:
        exc = None if outcome.value is None else sendable(outcome.value)
        traceback = None if exc is None else exc.__traceback__
        try:
            reason = self._send_again(request, exc, outcome.options)
        except Reject as rejected:  # The message could not be sent.
            return self._rejected(request, Outcome("rejected", rejected))
        except Exception as error:
            if error is exc:
                # Raised for the sake of raising it: where it came from is what counts.
                error.__traceback__ = traceback
            self.exhausted.append(error)
            return self._failed(request, Outcome("failed", error))
        cause = reason.exc
        einfo = self._retry_einfo(reason, exc)
        if stores_errors(self.task, request, eager=self.eager):
            self.task.backend.mark_as_retry(request.id, cause, einfo.traceback, request=request)
        self._tell(request, "on_retry", (cause,), (einfo,))
        if signals.task_retry.receivers:
            with acting_as(self.task, request) as context:
                signals.task_retry.send(
                    sender=self.task, request=context, reason=reason, einfo=einfo
                )
        return Settled("retried", reason, (True, einfo))

    def _send_again(self, request: SimpleRequest, exc: Any, options: Any) -> Retry:
        if options is None:
            return Retry(exc=exc)
        reason: Retry = self.task.retry_request(request, exc=exc, **options)
        return reason

    def _rejected(self, request: SimpleRequest, outcome: Outcome) -> Settled:
        exc = outcome.value
        if exc is None:
            exc = Reject("rejected by the body", requeue=(outcome.options or {})["requeue"])
        return Settled("rejected", exc, (True, self._internal(exc)))

    def _ignored(self, request: SimpleRequest, outcome: Outcome) -> Settled:
        return Settled("ignored", outcome.value, (True, self._internal(outcome.value)))

    def _tell(
        self,
        request: SimpleRequest,
        handler: str,
        before: tuple[Any, ...],
        after: tuple[Any, ...] = (),
    ) -> None:
        if handler in self.handlers:
            call_handler(self.task, request, handler, before, after, raises=self.eager)

    def _sendable(self, exc: BaseException) -> BaseException:
        if exc is self.error:
            return exc
        sent: BaseException = self._once("sent", exc, lambda: sendable(exc))
        return sent

    def _einfo(self, exc: BaseException) -> Any:
        """Return the ``ExceptionInfo`` of what the body raised, or of another exception."""
        return self.einfo if exc is self.error else self._once("raised", exc, lambda: describe(exc))

    def _retry_einfo(self, reason: Retry, exc: BaseException | None) -> Any:
        """Return that of a retry: the same for all that are retried for the same reason."""
        if isinstance(self.error, Retry) and self.error.exc is exc:
            return self.einfo
        return self._once("retried", exc, lambda: describe(reason))

    def _internal(self, exc: BaseException) -> Any:
        if exc is self.error:
            return self.einfo
        try:
            raise exc
        except BaseException:
            return ExceptionInfo(internal=True)

    def _reported(self, exc: BaseException, einfo: Any) -> Any:
        """Return what the main process may hear of: some exceptions would end it."""
        if isinstance(exc, Exception) and not isinstance(exc, MemoryError):
            return einfo
        return self._once("reported", exc, lambda: describe(RuntimeError(repr(exc))))

    def _once(self, use: str, exc: BaseException | None, make: Callable[[], Any]) -> Any:
        key = use, id(exc)
        if key not in self._made:
            # With the exception, so that no other gets its id.
            self._made[key] = make(), exc
        return self._made[key][0]


def _stored(request: SimpleRequest, outcome: Outcome) -> Outcome:
    """Note that the state of a done or failed request has been stored."""
    return Outcome(outcome.kind, outcome.value, written=not request._has_followers(), stored=True)
