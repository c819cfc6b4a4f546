"""Applies each request's outcome: stores it, sends continuations, calls handlers. In the pool.

It also sends the signals of a request, and makes the report for the worker's main process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.exceptions import Reject, Retry
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr

from ..backends.bulk import store_in_bulk
from ..backends.chord_parts import ChordParts
from ..backends.state import State
from ..core.outcomes import (
    UNMARKED,
    Done,
    Failed,
    Ignored,
    Outcome,
    Rejected,
    Repeated,
    Retried,
    Unmarked,
)
from ..core.slot import Progress, slot_of
from ..errors import call_live, pickleable
from ..request import SimpleRequest
from .applied import Applied
from .continuations import has_continuations, sends_on_success
from .end_notes import NO_NOTES, EndNotes
from .exceptions import BodyEnd, ExceptionInfos
from .handlers import Handlers
from .store import store_done, store_failure, stores_errors, stores_results

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("Settlement",)

logger = get_logger(__name__)


@dataclass(slots=True)
class Settlement:
    """Applies the outcomes of one batch.

    Arguments:
        task: The batch task.
        end: How the body has ended.
        handlers: The handlers of the task.
        notes: Where each request is noted as soon as its outcome is applied, but for its handlers.
        eager: Whether the batch runs eagerly.
        propagate: Whether to raise errors instead of storing them.
    """

    task: Batches
    end: BodyEnd
    handlers: Handlers
    notes: EndNotes = NO_NOTES
    eager: bool = False
    propagate: bool = False
    #: The requests whose retries are exhausted, with their exceptions.
    exhausted: list[tuple[SimpleRequest, BaseException]] = field(default_factory=list)
    _infos: ExceptionInfos = field(init=False)
    _parts: ChordParts = field(init=False)
    #: Shared by all unmarked requests.
    _shared_unmarked: Applied | None = None

    def __post_init__(self) -> None:
        self._infos = ExceptionInfos(self.end)
        self._parts = ChordParts(self.task.backend)

    def apply_all(
        self, requests: Sequence[SimpleRequest], outcomes: Sequence[Outcome]
    ) -> Iterator[Applied]:
        """Apply each outcome in order, after storing as many as possible in bulk.

        Each done request is stored, and continues, before a handler is called: a handler may take
        long, or end the process.
        """
        if not self.handlers and all(outcome is UNMARKED for outcome in outcomes):
            self.notes.note_unmarked(len(requests))
            yield from map(self._unmarked, requests)
            return
        states = [self._bulk_state(*each) for each in zip(requests, outcomes, strict=True)]
        stored = store_in_bulk(self.task.backend, states)
        for request, is_stored in zip(requests, stored, strict=True):
            if is_stored:
                continues = has_continuations(request)
                slot_of(request).progress = Progress.STORED if continues else Progress.COMPLETE
        noted = self.notes.note_applied(self.task, requests, outcomes)
        yield from map(self.apply, requests, self._store_done(requests, outcomes, noted))

    def _store_done(
        self, requests: Sequence[SimpleRequest], outcomes: Sequence[Outcome], noted: Sequence[int]
    ) -> list[Outcome]:
        """Store what is done and not stored yet. What cannot be stored has failed."""
        final = list(outcomes)
        pending = [
            (index, request, outcome)
            for index, (request, outcome) in enumerate(zip(requests, outcomes, strict=True))
            if isinstance(outcome, Done) and not _is_complete(request)
        ]
        self._parts.read_old_states(request for _, request, _ in pending)
        for index, request, outcome in pending:
            try:
                store_done(self.task, request, outcome.result, self._parts, eager=self.eager)
            except Exception as exc:
                if self.propagate:
                    raise
                final[index] = Failed(pickleable(exc), "cannot end as done")
            else:
                if not noted[index]:
                    self.notes.note(request, outcome)
        return final

    def _bulk_state(self, request: SimpleRequest, outcome: Outcome) -> State | None:
        """Return the state to store in bulk, or None if the request needs another step before."""
        if isinstance(outcome, Unmarked) or _is_complete(request) or sends_on_success(request):
            return None
        if isinstance(outcome, Failed) and has_continuations(request):
            # If the process is lost, only the failure that was stored last may not have been told.
            return None
        if isinstance(outcome, Done) and self._parts.counts_at_once(request):
            return None
        try:
            if isinstance(outcome, Done) and stores_results(self.task, request, eager=self.eager):
                return State(request, outcome.result, states.SUCCESS)
            if isinstance(outcome, Failed) and stores_errors(self.task, request, eager=self.eager):
                exc = self._infos.pickleable(outcome.exc)
                return State(request, exc, states.FAILURE, self._infos.failure(exc).traceback)
        except Exception as exc:
            logger.debug("Cannot prepare the state of %r: %r", request, exc)
        return None

    def apply(self, request: SimpleRequest, outcome: Outcome) -> Applied:
        """Apply one outcome. If an error occurs, only this request fails."""
        try:
            return self._apply(request, outcome)
        except Exception as exc:
            if self.propagate:
                raise
            failed = Failed(pickleable(exc), f"cannot end as {outcome.kind}")
            return self._failed(request, failed)

    def _apply(self, request: SimpleRequest, outcome: Outcome) -> Applied:
        match outcome:
            case Unmarked():
                return self._unmarked(request)
            case Done():
                return self._done(request, outcome)
            case Failed():
                return self._failed(request, outcome)
            case Retried():
                return self._retried(request, outcome)
            case Rejected():
                return self._rejected(outcome)
            case Ignored():
                return Applied(outcome, (True, self._infos.internal(outcome.exc)))
            case Repeated():
                return Applied(outcome, (False, None))

    def _done(self, request: SimpleRequest, outcome: Done) -> Applied:
        report = (False, saferepr(outcome.result, self.task.resultrepr_maxsize))
        self.handlers.on_success(request, outcome.result)
        return Applied(outcome, report)

    def _unmarked(self, request: SimpleRequest) -> Applied:
        applied = self._shared_unmarked
        if applied is None:
            report = (False, saferepr(self.end.retval, self.task.resultrepr_maxsize))
            applied = self._shared_unmarked = Applied(UNMARKED, report)
        self.handlers.on_success(request, self.end.retval)
        return applied

    def _failed(self, request: SimpleRequest, failed: Failed) -> Applied:
        exc = self._infos.pickleable(failed.exc)
        final = Failed(exc, failed.description)
        einfo = self._infos.failure(exc)
        if not _is_complete(request):
            try:
                store_failure(self.task, request, exc, einfo.traceback, eager=self.eager)
            except Exception as error:
                logger.exception("Cannot store the failure of %r: %r", request, error)
                # As for a task whose tracer raises, the main process stores it and tells of it.
                return Applied(final, (True, self._infos.unstored(exc, einfo)))
            self.notes.note(request, final)
        if exc is self.end.error:
            self.handlers.on_failure(request, exc, einfo)
        elif self.handlers or signals.task_failure.receivers:
            call_live(exc, lambda: self._notify_of_own_failure(request, exc, einfo))
        return Applied(final, (True, self._infos.reported(exc, einfo)))

    def _notify_of_own_failure(
        self, request: SimpleRequest, exc: BaseException, einfo: ExceptionInfo
    ) -> None:
        self.handlers.on_failure(request, exc, einfo)
        is_exhausted = any(exhausted is request for exhausted, _ in self.exhausted)
        if not (is_exhausted and isinstance(self.end.error, Retry)):
            self.handlers.send_failure(request, exc, einfo)

    def send_exhausted(self) -> None:
        """Send ``task_failure`` for each request whose retries are exhausted.

        Call it when all outcomes are applied. Only then is it clear that the batch has not failed
        as a whole.
        """
        for request, exc in self.exhausted:
            send = partial(self.handlers.send_failure, request, exc, self._infos.failure(exc))
            call_live(exc, send)

    def _retried(self, request: SimpleRequest, outcome: Retried) -> Applied:
        exc = None if outcome.exc is None else pickleable(outcome.exc)
        traceback = None if exc is None else exc.__traceback__
        try:
            reason = self._send_again(request, exc, outcome)
        except Reject as rejected:  # The message could not be published.
            return self._rejected(Rejected(rejected))
        except Exception as error:
            if error is exc:
                # Celery has raised `exc` again, so restore the traceback of its origin.
                error.__traceback__ = traceback
            final = self._infos.pickleable(error)
            self.exhausted.append((request, final))
            return self._failed(request, Failed(final))
        self.notes.note(request, outcome)
        einfo = self._infos.retry(reason, exc)
        if not _is_complete(request) and stores_errors(self.task, request, eager=self.eager):
            try:
                self.task.backend.mark_as_retry(
                    request.id, reason.exc, einfo.traceback, request=request
                )
            except Exception as error:
                # It is sent again, so it must not fail too.
                logger.exception("Cannot store the retry of %r: %r", request, error)
        if isinstance(self.end.error, Retry):
            self.handlers.on_retry(request, reason, einfo)
        elif self.handlers or signals.task_retry.receivers:
            call_live(reason, lambda: self.handlers.on_retry(request, reason, einfo))
        return Applied(Retried(reason), (True, einfo))

    def _send_again(
        self, request: SimpleRequest, exc: BaseException | None, outcome: Retried
    ) -> Retry:
        if outcome.options is None:
            return Retry(exc=exc)
        retry = partial(self.task.retry_request, request, exc=exc, **outcome.options)
        # If the retries are exhausted, Celery raises the exception that is being handled.
        reason: Retry = retry() if exc is None else call_live(exc, retry)
        return reason

    def _rejected(self, outcome: Rejected) -> Applied:
        exc = outcome.exc
        if exc is None:
            exc = Reject("rejected by the body", requeue=outcome.requeue)
        return Applied(Rejected(exc), (True, self._infos.internal(exc)))


def _is_complete(request: SimpleRequest) -> bool:
    """Whether the outcome is stored and its continuations are sent."""
    return slot_of(request).progress is Progress.COMPLETE
