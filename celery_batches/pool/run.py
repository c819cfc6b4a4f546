"""One run of a batch, from its requests to their reports. Runs in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.app.task import Context
from celery.app.trace import traceback_clear
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_logger

from ..core.batch_info import BatchInfo, FlushInfo
from ..core.outcomes import Failed, Outcome, Retried, decide
from ..core.slot import OutcomeSlot, Progress, slot_of
from ..errors import error_info
from ..request import SimpleRequest
from .applied import Applied, Report
from .async_body import has_running_loop
from .beginning import begin_all, check_done_before, leave_out_duplicates
from .body_runs import run_body
from .context import acting_for_body, acting_in_coroutine, current_task
from .end_notes import NO_NOTES, EndNotes
from .exceptions import BodyEnd, raisable
from .failure_log import log_own_failures
from .handlers import Handlers
from .log import log_batch
from .marking import intercept_marks_of
from .running import running
from .settle import Settlement
from .soft_limit import SoftLimit
from .store import deduplicates
from .tracer import run_in_tracer
from .unique import Duplicate, end_duplicates

if TYPE_CHECKING:
    from ..task import Batches

__all__ = ("BatchRun",)

logger = get_logger(__name__)


@dataclass(slots=True, eq=False)
class BatchRun:
    """One run of a batch and its results. Implements `core.slot.RunningBatch`."""

    task: Batches
    requests: Sequence[SimpleRequest]
    id: str
    trigger: str
    hostname: str
    body_args: tuple[Any, ...] | None = None
    #: What the main process says of it.
    flush: FlushInfo = field(default_factory=FlushInfo)
    loglevel: int | None = None
    logfile: str | None = None
    eager: bool = False
    #: Whether `run` raises an exception of the body.
    propagate: bool = False
    #: Whether outcomes are recorded only, and nothing is stored or sent.
    records_only: bool = False

    #: What the body may know of it.
    info: BatchInfo = field(init=False)
    #: Where the requests that have ended are noted, for the case that the process is lost.
    notes: EndNotes = NO_NOTES
    #: Has the soft time limit interrupt the body only. The caller enters it.
    soft_limit: SoftLimit = field(default_factory=SoftLimit)
    #: How the body has ended.
    end: BodyEnd = field(default_factory=BodyEnd)
    #: The exception with which the batch as a whole has failed.
    failure: BaseException | None = None
    #: The exception that `execute` raises, since the batch has ended with it.
    raised: BaseException | None = None
    #: Where that was raised before.
    failure_traceback: TracebackType | None = None
    #: The exceptions of the requests whose retries are exhausted.
    exhausted: list[BaseException] = field(default_factory=list)
    #: Whether something other than the body has failed.
    has_failed_outside: bool = False
    #: The run time of the body in seconds.
    runtime: float = 0.0
    #: The outcomes that have been applied, in the order of the requests.
    applied: list[Applied] = field(default_factory=list)
    #: The requests that the body gets: those without an outcome, or a half of them.
    active: list[SimpleRequest] = field(default_factory=list)
    #: The requests that the body does not get, since they have the key of another one.
    duplicates: Sequence[Duplicate] = ()
    #: How often the body has run.
    body_runs: int = 0
    #: The context that Celery's tracer makes for the batch.
    context: Context | None = None
    handlers: Handlers = field(init=False)
    _by_id: dict[str | None, SimpleRequest] | None = None

    def __post_init__(self) -> None:
        self.handlers = Handlers.of(self.task, raises=self.eager)
        self.info = BatchInfo.begin(
            self.id, self.trigger, len(self.requests), self.flush, now=monotonic()
        )

    @property
    def by_id(self) -> dict[str | None, SimpleRequest]:
        """The requests, by id."""
        if self._by_id is None:
            self._by_id = {request.id: request for request in self.requests}
        return self._by_id

    @property
    def reports(self) -> list[Report]:
        """The report on each request for the main process, in order."""
        return [applied.report for applied in self.applied]

    def unsettled(self) -> list[SimpleRequest]:
        """Return the active requests that have no outcome yet."""
        return [request for request in self.active if slot_of(request).outcome is None]

    def update_state(
        self, request: SimpleRequest, state: str | None, meta: Any, **options: Any
    ) -> None:
        """Store a custom state for a request."""
        if not self.records_only:
            self.task.backend.store_result(request.id, meta, state, request=request, **options)

    def acting_as(self, request: SimpleRequest) -> AbstractContextManager[Context]:
        """Make a request the current request of the task, for the body."""
        act = acting_in_coroutine if has_running_loop() else acting_for_body
        return act(self.task, request)

    def note_end(self, request: SimpleRequest, outcome: Outcome) -> None:
        """Note that this outcome of a request has been applied, but for its handlers."""
        self.notes.note(request, outcome)

    def run(self) -> None:
        """Run the body once, inside the context and the signals of one task: the batch."""
        for request in self.requests:
            request.outcome_slot = OutcomeSlot(self)
        if self.records_only:
            for request in self.requests:
                slot_of(request).progress = Progress.COMPLETE
        self.active = list(self.requests)
        if deduplicates(self.task):
            for request in self.requests:
                check_done_before(self, request)
            self.active = self.unsettled()
        if not self.active:
            self._apply_outcomes()
            return
        if self.body_args is None:
            self.body_args = (self.active,)
        intercept_marks_of(self.task)
        with running(self):
            run_in_tracer(self)
        if self.failure is not None and self.has_failed_by_requests:
            # Raised once more, it must not keep alive what `execute` has used.
            self.failure.__traceback__ = self.failure_traceback

    def execute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the body and apply the outcome of each request. Celery's tracer calls it.

        Raises:
            Exception: The exception with which the batch as a whole has ended.
        """
        self.context = self.task.request_stack.top
        with current_task(self.task):
            try:
                returned = self._call_body(args, kwargs)
            except Exception as exc:
                if self.propagate and not isinstance(exc, Ignore | Reject | Retry):
                    raise
                # Handlers and signal receivers find the exception by `sys.exc_info()` here.
                self.end = BodyEnd.of(exc)
                self._apply_outcomes()
                if self.failure is None or self.failure is self.end.error:
                    self.raised = exc
                    raise
            else:
                self.end = BodyEnd(retval=returned)
                self._apply_outcomes()
            if self.failure is not None:
                # Raised outside of the `except`, so that `exc` is not the failure's context.
                self.raised, self.failure_traceback = self.failure, self.failure.__traceback__
                raise self.failure
            log_batch(self)
            return returned

    def _call_body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        started = monotonic()
        try:
            if self.task.track_started or "before_start" in self.handlers.names:
                begin_all(self)
            args = leave_out_duplicates(self, args)
            return run_body(self, args, kwargs) if self.active else None
        finally:
            self.runtime = monotonic() - started

    def on_error(self, exc: BaseException) -> ExceptionInfo:
        """Send the signal and log the end of a batch that raised. Celery's tracer calls it."""
        if self.propagate and not isinstance(exc, Ignore | Reject | Retry):
            raise exc
        if len(self.applied) < len(self.requests):
            self.fail_the_rest(exc)
        elif exc is not self.raised:
            # Each request has ended as it should.
            self._log_critical(exc)
        if self.failure is not None and not self.has_failed_by_requests:
            self._send_failure(self.failure)
        log_batch(self)
        if self.end.error is not None:
            # As in Celery: a traceback keeps every local variable of the body alive.
            traceback_clear(self.end.error)
        return self.end.einfo

    def _apply_outcomes(self) -> None:
        """Apply the outcome of each request whose outcome is not applied yet."""
        self.soft_limit.end()
        self.notes.end_body()
        end_duplicates(self.duplicates)
        rest = self.requests[len(self.applied) :]
        recorded = [slot_of(request).close() for request in rest]
        if self.end.error is not None:
            for request in rest:
                # A thread of the body that comes too late finds out.
                slot_of(request).outcome = slot_of(request).outcome or self.end.outcome
        settlement = Settlement(
            *(self.task, self.end, self.handlers, self.notes),
            eager=self.eager,
            propagate=self.propagate,
        )
        for applied in settlement.apply_all(rest, decide(recorded, default=self.end.outcome)):
            self.applied.append(applied)
        self._conclude(settlement)
        if not self.propagate:
            log_own_failures(self, rest, self.applied[len(self.applied) - len(rest) :])

    def _conclude(self, settlement: Settlement) -> None:
        """Determine whether the batch as a whole has failed."""
        outcome = self.end.outcome
        self.exhausted = [exc for _, exc in settlement.exhausted]
        if isinstance(outcome, Failed):
            self.failure = self.end.error
        elif isinstance(outcome, Retried) and self.exhausted:
            if any(isinstance(applied.outcome, Retried) for applied in self.applied):
                settlement.send_exhausted()
            else:
                self.failure = self.exhausted[0]
        elif self.end.error is None:
            failed = [each.outcome for each in self.applied if isinstance(each.outcome, Failed)]
            if failed and len(failed) == len(self.requests):
                self.failure = raisable(failed[0].exc)

    @property
    def has_failed_by_requests(self) -> bool:
        """Whether the body has returned, and each request has failed by an exception of its own."""
        return self.failure is not None and self.end.error is None

    @property
    def shared_errors(self) -> list[BaseException]:
        """The exceptions that are logged and signalled for the batch, and not for a request."""
        if self.end.error is None:
            return []
        is_exhausted = self.failure is not None and self.failure is not self.end.error
        return [self.end.error, *(self.exhausted if is_exhausted else ())]

    def _send_failure(self, error: BaseException) -> None:
        signals.task_failure.send(
            sender=self.task,
            task_id=self.id,
            exception=error,
            args=self.body_args,
            kwargs={},
            traceback=error.__traceback__,
            einfo=self.end.einfo if error is self.end.error else error_info(error),
        )

    def fail_the_rest(self, exc: BaseException) -> None:
        """Fail every request without an outcome, since Celery raised and not the body."""
        self._log_critical(exc)
        self.has_failed_outside = True
        self.end = BodyEnd.of(exc)
        self._apply_outcomes()

    def _log_critical(self, exc: BaseException) -> None:
        logger.critical("Batch %s[%s]: %r", self.task.name, self.id, exc, exc_info=exc)
